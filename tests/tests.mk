# Everything that tests: the simulated GPU, the programs to be wrapped, unit tests, end-to-end tests, benchmarks.

SIM_DIR    := $(BUILD)/simgpu
SIM_COMMON := $(wildcard tests/simgpu/device*.c)
SIM_CUDA   := $(SIM_COMMON) $(wildcard tests/simgpu/cuda*.c)
SIM_NVML   := $(SIM_COMMON) $(wildcard tests/simgpu/nvml*.c)
UNIT_SRC   := $(wildcard tests/unit/test_*.c)
UNIT_BIN   := $(UNIT_SRC:tests/unit/%.c=$(BUILD)/unit/%)
PROGRAM_SRC := $(wildcard tests/programs/*.c)
PROGRAM_BIN := $(PROGRAM_SRC:tests/programs/%.c=$(BUILD)/programs/%)
PYTHON     ?= /usr/bin/python3

simgpu: $(SIM_DIR)/libcuda.so.1 $(SIM_DIR)/libnvidia-ml.so.1 ## the simulated driver and NVML
$(SIM_DIR)/libcuda.so.1: $(SIM_CUDA:%.c=$(BUILD)/%.o)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -shared -o $@ $^ -Wl,-soname,libcuda.so.1 -Wl,-Bsymbolic -lpthread -lm -ldl
	$(Q)ln -sf libcuda.so.1 $(@D)/libcuda.so
$(SIM_DIR)/libnvidia-ml.so.1: $(SIM_NVML:%.c=$(BUILD)/%.o)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -shared -o $@ $^ -Wl,-soname,libnvidia-ml.so.1 -Wl,-Bsymbolic -lpthread -lm -ldl
$(BUILD)/tests/simgpu/%.o: tests/simgpu/%.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(SIM_CFLAGS) -c $< -o $@

programs: $(PROGRAM_BIN) ## the programs that tests and the demo wrap
$(BUILD)/programs/%: tests/programs/%.c
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -std=gnu11 $(WARN) -O2 -fopenmp $(CPPFLAGS) -o $@ $< -lm -ldl -lpthread

$(BUILD)/unit/%: tests/unit/%.c $(BUILD)/libkjtools.a
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(TOOL_CFLAGS) -o $@ $< $(BUILD)/libkjtools.a -lcmocka $(TOOL_LIBS)

test: setup ## everything that needs nothing beyond apt
	$(Q)$(MAKE) --no-print-directory test-unit test-e2e
test-unit: $(UNIT_BIN) ## C unit tests (cmocka)
	$(Q)fail=0; for t in $(UNIT_BIN); do $$t || fail=1; done; exit $$fail
test-e2e: all simgpu programs ## whole runs, wrapped (pytest)
	$(Q)KJ_BUILD=$(abspath $(BUILD)) $(PYTHON) -m pytest -q tests/e2e $(PYTEST_ARGS)
bench: all simgpu programs ## overhead tables; run on an idle machine
	$(Q)KJ_BUILD=$(abspath $(BUILD)) tests/bench/run.sh

-include $(wildcard $(BUILD)/tests/simgpu/*.d)
