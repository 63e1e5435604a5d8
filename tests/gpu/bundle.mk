# build/gpu-bundle: all that a bare machine with a card needs to be measured: glibc of BUNDLE_GLIBC or newer, a driver and Python 3 are there.
BUNDLE       := $(BUILD)/gpu-bundle
BUNDLE_GLIBC := 2.31
OLD          := $(BUILD)/old_glibc
# It takes what the build has made, and static libraries; where something is missing, `make test` goes without.
static          = $(filter /%,$(shell $(CC) -print-file-name=$(1)))
BUNDLE_MISSING := $(strip $(foreach l,libjansson.a libz.a,$(if $(call static,$(l)),,$(l))) \
                  $(if $(filter x86_64 aarch64,$(ARCH)),,x86_64-or-aarch64) $(if $(shell command -v readelf),,readelf) $(if $(SAN),no-SAN=))
# Programs of the driver API alone; those that nvcc compiles come with it where it is.
BUNDLE_PROGRAMS := $(addprefix $(BUNDLE)/build/programs/,cuda_driver cuda_graphs) $(addprefix $(BUNDLE)/build/gpu/,workload calls cases hooks early.so) \
                   $(if $(NVCC),$(BUNDLE)/build/programs/cudart_static $(BUNDLE)/build/programs/cudart_per_thread)
BUNDLE_SCRIPTS  := $(wildcard tests/gpu/*.py tests/gpu/checks/*.py tests/programs/train_*.py tests/programs/*.cu tests/programs/data/*.txt)
OLD_SIM         := $(OLD)/simgpu/libcuda.so.1 $(OLD)/simgpu/libnvidia-ml.so.1 $(OLD)/simgpu/cupti/libcupti.so.13
# kjoule-probe comes with it where it is built and what it needs is there as static libraries.
BUNDLE_PROBE    := $(if $(PROBE_MISSING),,$(if $(call static,libbpf.a),$(if $(call static,libelf.a),$(BUNDLE)/build/kjoule-probe)))
BUNDLE_ELF       = $(BUNDLE)/build/kjoule $(BUNDLE)/build/libkjoule.so $(BUNDLE_PROBE) $(BUNDLE_PROGRAMS)

# Last in a link. libpthread and libdl hold part of an old glibc's symbols and are empty in a new one.
OLD_LINK  = -nodefaultlibs $(1) $(OLD)/old_glibc.o -Wl,--no-as-needed $(OLD)/libpthread.so.0 $(OLD)/libdl.so.2 -Wl,--as-needed \
            $(OLD)/libm.so.6 $(OLD)/libc.so.6 $(OLD)/ld-linux*.so.? $(shell $(CC) -print-file-name=libc_nonshared.a) -lgcc
OLD_START = -Wl,--wrap=__libc_start_main

gpu-bundle: $(BUNDLE)/complete ## one folder that measures a card on a bare machine: build/gpu-bundle
ifeq ($(BUNDLE_MISSING),)
test-e2e: gpu-bundle
else
$(BUNDLE_ELF): no-gpu-bundle
.PHONY: no-gpu-bundle
no-gpu-bundle:
	@echo "kjoule: the bundle cannot be made here: missing $(BUNDLE_MISSING)" >&2; exit 1
endif
$(BUNDLE)/complete: $(BUNDLE_ELF) $(BUNDLE_SCRIPTS) tests/gpu/run.sh tests/gpu/bundle.mk
	$(Q)$(PYTHON) tests/gpu/old_glibc.py check $(BUNDLE_GLIBC) $(BUNDLE_ELF)
	$(Q)rm -rf $(BUNDLE)/tests && for f in $(BUNDLE_SCRIPTS); do install -Dm644 $$f $(BUNDLE)/$$f || exit 1; done
	$(Q)install -m755 tests/gpu/run.sh $(BUNDLE)/run
	$(Q)cp shim/hooks.def tests/simgpu/cuda_exports.def VERSION $(BUNDLE)/build
	$(Q)kib=$$(du -sk $(BUNDLE) | cut -f1); echo "  BUNDLE  $(BUNDLE), $$kib KiB"; [ $$kib -lt 40960 ] && touch $@

$(OLD)/libc.so.6: tests/gpu/old_glibc.py
	$(call say,STUBS,$(OLD))
	$(Q)$(PYTHON) $< stubs $(OLD) $(BUNDLE_GLIBC) $(CC)
$(OLD)/old_glibc.o: tests/gpu/old_glibc.c
	@mkdir -p $(@D)
	$(Q)$(CC) -std=gnu11 $(WARN) -Wno-missing-prototypes -D_GNU_SOURCE -O2 -fPIC -c $< -o $@
$(BUNDLE_ELF) $(OLD_SIM): $(OLD)/old_glibc.o | $(OLD)/libc.so.6

$(BUNDLE)/build/kjoule: $(CMD_OBJ) $(BUILD)/libkjtools.a
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -s -o $@ $(CMD_OBJ) $(BUILD)/libkjtools.a $(OLD_START) $(call OLD_LINK,-l:libjansson.a -l:libz.a)
$(BUNDLE)/build/kjoule-probe: $(PROBE_OBJ) $(BUILD)/libkjtools.a
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -s -o $@ $(PROBE_OBJ) $(BUILD)/libkjtools.a $(OLD_START) \
		$(call OLD_LINK,$(addprefix -l:,libbpf.a libelf.a $(notdir $(call static,libzstd.a)) libjansson.a libz.a))
$(BUNDLE)/build/libkjoule.so: $(SHIM_OBJ) shim/shim.map
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -shared -s -o $@ $(SHIM_OBJ) $(SHIM_LINK) $(OLD_LINK)
$(BUNDLE_PROGRAMS): tests/programs/driver.h
$(BUNDLE)/build/programs/%: tests/programs/%.c
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(BUNDLE_CC) -o $@ $< $(OLD_START) $(OLD_LINK)
$(BUNDLE)/build/gpu/%: tests/gpu/%.c tests/gpu/card.c tests/gpu/card.h
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(BUNDLE_CC) -o $@ $(filter %.c,$^) $(OLD_START) $(OLD_LINK)
$(BUNDLE)/build/gpu/early.so: tests/gpu/early.c
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(BUNDLE_CC) -shared -fPIC -o $@ $< $(OLD_LINK)
$(BUNDLE)/build/programs/cudart_%: tests/programs/cuda_runtime.cu
	$(call say,NVCC,$@)
	@mkdir -p $(@D)
	$(Q)$(NVCC) -O1 -std=c++17 -arch=sm_90 $(if $(filter per_thread,$*),--default-stream per-thread) -c -o $(OLD)/cudart_$*.o $<
	$(Q)$(CC) -s -o $@ $(OLD)/cudart_$*.o $(OLD_START) $(call OLD_LINK,$(CUDART_STATIC))
BUNDLE_CC = $(CC) -std=gnu11 $(WARN) -D_GNU_SOURCE -O2 -s -Ishim
CUDART_STATIC = $(firstword $(wildcard $(dir $(NVCC))../lib64/libcudart_static.a $(dir $(NVCC))../targets/*/lib/libcudart_static.a)) \
                $(addprefix -l:,libstdc++.a libgcc_eh.a) $(OLD)/librt.so.1
$(BUNDLE)/build/gpu/hooks: shim/hooks.def

check-gpu: gpu-bundle ## what only a real card can show; figures into tests/gpu/results
	$(Q)out=tests/gpu/results/$$($(PYTHON) tests/gpu/check.py --name) && bash $(BUNDLE)/run $$out --python $(TORCH_PYTHON) $(CHECK_ARGS); \
		status=$$?; echo "  raw results in $$out; tests/gpu/results/README.md says what to do with them"; exit $$status
TORCH_PYTHON ?= $(firstword $(wildcard $(TORCH_VENV)/bin/python) python3)

# The simulated driver, as it has to be for that glibc.
$(OLD)/simgpu/libcuda.so.1: $(SIM_CUDA:%.c=$(BUILD)/%.o)
$(OLD)/simgpu/libnvidia-ml.so.1: $(SIM_NVML:%.c=$(BUILD)/%.o)
$(OLD)/simgpu/cupti/libcupti.so.13: $(BUILD)/tests/simgpu/cupti.o
$(OLD_SIM):
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -shared -o $@ $(filter-out $(OLD)/old_glibc.o,$^) -Wl,-soname,$(@F) -Wl,-Bsymbolic $(OLD_LINK)
test-gpu-bundle: gpu-bundle $(OLD_SIM) ## the bundle on the simulated GPU in a bare Debian 11 (root; debootstrap, or this machine's files)
	$(Q)$(PYTHON) tests/gpu/old_glibc.py check $(BUNDLE_GLIBC) $(OLD_SIM)
	$(Q)tests/gpu/minimal_root.sh $(BUNDLE) $(OLD)/simgpu $(BUILD)/gpu-root $(ROOT_ARGS)
.PHONY: gpu-bundle check-gpu test-gpu-bundle
