# Everything that tests: the simulated GPU, the programs to be wrapped, unit tests, end-to-end tests, benchmarks.

SIM_DIR    := $(BUILD)/simgpu
SIM_COMMON := $(wildcard tests/simgpu/device*.c)
SIM_CUDA   := $(SIM_COMMON) $(wildcard tests/simgpu/cuda*.c)
SIM_NVML   := $(SIM_COMMON) $(wildcard tests/simgpu/nvml*.c)
UNIT_SRC   := $(wildcard tests/unit/test_*.c)
UNIT_BIN   := $(UNIT_SRC:tests/unit/%.c=$(BUILD)/unit/%)
PROGRAM_SRC := $(filter-out $(addprefix tests/programs/,neighbour.c old_kernel.c profiler.c early.c early_main.c),$(wildcard tests/programs/*.c))
PROGRAM_BIN := $(PROGRAM_SRC:tests/programs/%.c=$(BUILD)/programs/%) $(addprefix $(BUILD)/programs/,cuda_linked cuda_asan hello_static neighbour.so old_kernel.so profiler early_main early_main_linked)
CUDART_BIN  := $(addprefix $(BUILD)/programs/cudart_,static shared per_thread)
# The private tables that NVIDIA's own libcudart wants of a simulated driver; kept outside the project.
LAB_TABLES  := $(wildcard ../shared/lab/private_tables.c)
PYTHON     ?= /usr/bin/python3

simgpu: $(SIM_DIR)/libcuda.so.1 $(SIM_DIR)/libnvidia-ml.so.1 $(SIM_DIR)/cupti/libcupti.so.13 $(SIM_DIR)/libsimblas.so $(SIM_DIR)/simgpu-truth ## the simulated driver and NVML
$(SIM_DIR)/libcuda.so.1: $(SIM_CUDA:%.c=$(BUILD)/%.o)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -shared -o $@ $^ -Wl,-soname,libcuda.so.1 -Wl,-Bsymbolic -lpthread -lm -ldl
	$(Q)ln -sf libcuda.so.1 $(@D)/libcuda.so
$(SIM_DIR)/libnvidia-ml.so.1: $(SIM_NVML:%.c=$(BUILD)/%.o)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -shared -o $@ $^ -Wl,-soname,libnvidia-ml.so.1 -Wl,-Bsymbolic -lpthread -lm -ldl
$(SIM_DIR)/libsimblas.so: $(BUILD)/tests/simgpu/blas.o
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -shared -o $@ $^ -lpthread -ldl
# In a folder of its own: who wants a libcupti says so.
$(SIM_DIR)/cupti/libcupti.so.13: $(BUILD)/tests/simgpu/cupti.o
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -shared -o $@ $^ -Wl,-soname,libcupti.so.13 -lpthread -ldl
$(SIM_DIR)/simgpu-truth: $(SIM_COMMON:%.c=$(BUILD)/%.o) $(BUILD)/tests/simgpu/truth.o
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -o $@ $^ -lpthread -lm
# What decides where things lie in a state file, so that no build takes another's for its own.
SIM_LAYOUT := tests/simgpu/device.h $(wildcard tests/simgpu/*.def)
$(BUILD)/tests/simgpu/device.o: $(SIM_LAYOUT)
$(BUILD)/tests/simgpu/device.o: CPPFLAGS += -DSIM_LAYOUT=0x$(shell cat $(SIM_LAYOUT) | sha256sum | cut -c1-16)ULL
$(BUILD)/tests/simgpu/%.o: tests/simgpu/%.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(SIM_CFLAGS) -c $< -o $@

PROGRAM_CC = $(CC) -std=gnu11 $(WARN) -D_GNU_SOURCE -O2 -g -fopenmp
programs: $(PROGRAM_BIN) $(if $(NVCC),$(CUDART_BIN),no-nvcc) $(if $(LAB_TABLES),$(BUILD)/lab/libprivate_tables.so) ## what tests and the demo wrap
$(PROGRAM_BIN) $(addprefix $(BUILD)/,programs/early.so programs/early_linked.so bench/launch bench/graphs): tests/programs/driver.h
$(BUILD)/programs/%: tests/programs/%.c
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(PROGRAM_CC) -o $@ $< -lm -ldl -lpthread
$(BUILD)/programs/cuda_linked: tests/programs/cuda_driver.c $(SIM_DIR)/libcuda.so.1
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(PROGRAM_CC) -DLINKED -o $@ $< -L$(SIM_DIR) -l:libcuda.so.1 -lpthread
$(BUILD)/programs/cuda_asan: tests/programs/cuda_driver.c
	$(call say,CC,$@)
	$(Q)$(PROGRAM_CC) -fsanitize=address -o $@ $< -ldl -lpthread
$(BUILD)/programs/%.so: tests/programs/%.c
	$(call say,CC,$@)
	$(Q)$(PROGRAM_CC) -Wno-missing-prototypes -shared -fPIC -o $@ $< -ldl
$(BUILD)/programs/early_linked.so: tests/programs/early.c $(SIM_DIR)/libcuda.so.1
	$(call say,CC,$@)
	$(Q)$(PROGRAM_CC) -DLINKED -shared -fPIC -o $@ $< -L$(SIM_DIR) -l:libcuda.so.1 -ldl
$(BUILD)/programs/early_main $(BUILD)/programs/early_main_linked: $(BUILD)/programs/early_main%: tests/programs/early_main.c $(BUILD)/programs/early%.so
	$(call say,CC,$@)
	$(Q)$(PROGRAM_CC) -o $@ $< -L$(@D) -l:early$*.so -Wl,-rpath,'$$ORIGIN' -Wl,--allow-shlib-undefined
$(BUILD)/programs/profiler: tests/programs/profiler.c $(SIM_DIR)/cupti/libcupti.so.13
	$(call say,CC,$@)
	$(Q)$(PROGRAM_CC) -o $@ $< -L$(SIM_DIR)/cupti -l:libcupti.so.13 -Wl,--allow-shlib-undefined -ldl
$(BUILD)/programs/hello_static: tests/programs/hello.c
	$(call say,CC,$@)
	$(Q)$(PROGRAM_CC) -static -o $@ $<
$(BUILD)/programs/cudart_static: CUDART_FLAGS = -cudart static
$(BUILD)/programs/cudart_shared: CUDART_FLAGS = -cudart shared
$(BUILD)/programs/cudart_per_thread: CUDART_FLAGS = -cudart static --default-stream per-thread
$(CUDART_BIN): tests/programs/cuda_runtime.cu
	$(call say,NVCC,$@)
	@mkdir -p $(@D)
	$(Q)$(NVCC) -O1 -std=c++17 -arch=sm_90 $(CUDART_FLAGS) -o $@ $<
$(BUILD)/lab/libprivate_tables.so: $(LAB_TABLES)
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -O2 -shared -fPIC -o $@ $<
.PHONY: no-nvcc
no-nvcc:
	@echo "  SKIP    the programs that nvcc compiles: no nvcc (NVCC=path, or CUDA_HOME)"

$(BUILD)/unit/test_probe_example: probes/example.c
$(BUILD)/unit/%: tests/unit/%.c tests/unit/laid.h tests/unit/forged.h $(BUILD)/libkjtools.a
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(TOOL_CFLAGS) -o $@ $(filter %.c,$^) $(BUILD)/libkjtools.a -lcmocka $(TOOL_LIBS)

# The readers against what nobody would write: a fixed sequence of mutations. FUZZ_ROUNDS=, SAN=address,undefined.
FUZZ_ROUNDS ?= 20000
FUZZ_BIN    := $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/%,$(filter-out tests/fuzz/driver.c,$(wildcard tests/fuzz/*.c)))
$(BUILD)/fuzz/%: tests/fuzz/%.c tests/fuzz/driver.c probes/requests.c $(BUILD)/libkjtools.a
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(TOOL_CFLAGS) -MF $@.d -o $@ $(filter %.c,$^) $(BUILD)/libkjtools.a $(TOOL_LIBS)
fuzz: $(FUZZ_BIN) ## the readers against mutated input
	$(Q)for t in $(FUZZ_BIN); do $$t $(FUZZ_ROUNDS) || exit 1; done

test: setup ## everything that needs nothing beyond apt
	$(Q)$(MAKE) --no-print-directory layers check-format test-unit fuzz test-e2e
test-unit: $(UNIT_BIN) ## C unit tests (cmocka)
	$(Q)fail=0; for t in $(UNIT_BIN); do $$t || fail=1; done; exit $$fail
test-e2e: all simgpu programs $(BUILD)/bench/launch ## whole runs, wrapped (pytest)
	$(Q)KJ_BUILD=$(abspath $(BUILD)) KJ_TORCH_PYTHON=$(TORCH_VENV)/bin/python $(PYTHON) -m pytest -q tests/e2e $(PYTEST_ARGS)
TORCH_VENV ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kjoule/torch-2.9.1
torch-venv:
	$(Q)mkdir -p $(dir $(TORCH_VENV)) && tests/torch/venv.sh $(TORCH_VENV)
test-torch: all simgpu programs torch-venv ## PyTorch's CUDA build on the simulated driver (7 GB from PyPI, once)
	$(Q)KJ_BUILD=$(abspath $(BUILD)) KJ_TORCH_PYTHON=$(TORCH_VENV)/bin/python $(PYTHON) -m pytest -q tests/torch $(PYTEST_ARGS)
bench: all simgpu programs $(BUILD)/bench/launch $(BUILD)/bench/floor $(BUILD)/bench/graphs ## overhead tables; run on an idle machine
	$(Q)KJ_BUILD=$(abspath $(BUILD)) $(PYTHON) tests/bench/run.py $(BENCH_ARGS)
bench-accuracy: $(BUILD)/bench/accuracy ## the attribution model against known truth, in virtual time
	$(Q)$(BUILD)/bench/accuracy $(BENCH_ARGS)
$(BUILD)/bench/accuracy: tests/bench/accuracy.c $(BUILD)/libkjtools.a
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(TOOL_CFLAGS) -o $@ $< $(BUILD)/libkjtools.a $(TOOL_LIBS)
TORCH_PYTHON ?= $(firstword $(wildcard $(TORCH_VENV)/bin/python) python3)
include tests/gpu/bundle.mk
$(BUILD)/bench/launch $(BUILD)/bench/floor $(BUILD)/bench/graphs: $(BUILD)/bench/%: tests/bench/%.c
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(PROGRAM_CC) -o $@ $< -ldl -lpthread

-include $(wildcard $(BUILD)/tests/simgpu/*.d)
