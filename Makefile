# kjoule - energy and emissions of an unmodified training run.
# `make help` lists the targets. Quiet by default; V=1 shows the commands. BUILD= chooses the output folder.

BUILD  ?= build
PREFIX ?= /usr/local
CC     ?= gcc
V      ?= 0
SAN    ?=
Q      := $(if $(filter 0,$(V)),@,)
say     = @printf '  %-7s %s\n' $(1) $(2)

ARCH     := $(shell $(CC) -dumpmachine 2>/dev/null | cut -d- -f1)
VERSION  := $(shell cat VERSION)
WARN     := -Wall -Wextra -Werror -Wvla -Wstrict-prototypes -Wmissing-prototypes -Wno-missing-field-initializers
SANFLAGS := $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer)
CFLAGS   ?= -O2 -g
CPPFLAGS += -D_GNU_SOURCE -DKJ_VERSION='"$(VERSION)"' -Itools -Ishim -Iprobes -I$(BUILD)/gen
ALL_CFLAGS  = -std=gnu11 $(WARN) $(CFLAGS) -MMD -MP
TOOL_CFLAGS = $(ALL_CFLAGS) $(SANFLAGS)
TOOL_LIBS   = -ljansson -lz -lm -ldl -lpthread
# A launch passes through half a dozen of the shim's files: as one piece of code it costs a quarter less.
SHIM_LTO   := $(if $(shell $(CC) --version 2>/dev/null | grep -i 'free software foundation'),-flto=auto)
SHIM_CFLAGS = $(ALL_CFLAGS) -fPIC -fvisibility=hidden -ftls-model=initial-exec -fno-stack-protector -U_FORTIFY_SOURCE $(SHIM_LTO)
# It defines what cuda.h and nvml.h declare, and includes neither: its prototypes are elsewhere.
SIM_CFLAGS  = $(ALL_CFLAGS) -Wno-missing-prototypes -fPIC -fvisibility=hidden -Itests/simgpu

# The ABI of cuda.h is declared by the project and checked against a real one where a toolkit is installed.
NVCC      ?= $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc /usr/local/cuda/bin/nvcc) $(shell command -v nvcc 2>/dev/null))
CUDA_INC  ?= $(firstword $(wildcard $(CUDA_HOME)/include/cuda.h /usr/local/cuda/include/cuda.h /usr/include/cuda.h))

ROOMS     := base power model trace folder carbon report account record
LIB_SRC   := $(foreach r,$(ROOMS),$(wildcard tools/$(r)/*.c))
CMD_SRC   := $(wildcard tools/*.c)
SHIM_SRC  := $(wildcard shim/*.c) shim/arch/$(ARCH).S
LIB_OBJ   := $(LIB_SRC:%.c=$(BUILD)/%.o)
CMD_OBJ   := $(CMD_SRC:%.c=$(BUILD)/%.o)
SHIM_OBJ  := $(patsubst %.S,$(BUILD)/%.o,$(SHIM_SRC:%.c=$(BUILD)/%.o))

.PHONY: all help demo fuzz test test-unit test-e2e test-torch torch-venv bench bench-accuracy programs simgpu layers format check-format setup install uninstall clean
.DELETE_ON_ERROR:
.SECONDARY:

all: $(BUILD)/kjoule $(BUILD)/libkjoule.so ## the program and the preload library

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-16s %s\n",$$1,$$2}' $(filter %Makefile %.mk,$(MAKEFILE_LIST))
	@echo "  options: V=1 SAN=address,undefined BUILD=dir PREFIX=dir CC=cc NVCC=path"

$(BUILD)/kjoule: $(CMD_OBJ) $(BUILD)/libkjtools.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(SANFLAGS) -o $@ $(CMD_OBJ) $(BUILD)/libkjtools.a $(LDFLAGS) $(TOOL_LIBS)

$(BUILD)/libkjtools.a: $(LIB_OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^

SHIM_LINK = $(if $(SHIM_LTO),-O2 $(SHIM_LTO) -fPIC -ftls-model=initial-exec -fno-stack-protector) -Wl,-soname,libkjoule.so -Wl,-z,nodelete,-z,now,-z,relro -Wl,-Bsymbolic -Wl,--no-undefined -Wl,--as-needed -Wl,--version-script=shim/shim.map
# -Bsymbolic: the table of wrappers must hold ours, also where another library that wraps the same names comes first.
$(BUILD)/libkjoule.so: $(SHIM_OBJ) shim/shim.map
	$(call say,LINK,$@)
	$(Q)$(CC) -shared -o $@ $(SHIM_OBJ) $(SHIM_LINK) $(LDFLAGS)

$(BUILD)/shim/%.o: shim/%.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(SHIM_CFLAGS) -c $< -o $@
$(BUILD)/shim/abi_check.o: CPPFLAGS += $(if $(CUDA_INC),-I$(dir $(CUDA_INC)))
$(BUILD)/shim/%.o: shim/%.S
	$(call say,AS,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) -c $< -o $@
$(BUILD)/tools/%.o: tools/%.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(TOOL_CFLAGS) -c $< -o $@

# The grid tables as C; the hash names the tables that priced a run.
CARBON_CSV := $(addprefix tools/carbon/data/,sources.csv factors.csv aliases.csv cloud.csv timezones.csv)
$(BUILD)/gen/carbon_tables.def: tools/carbon/data/tables.awk $(CARBON_CSV)
	$(call say,GEN,$@)
	@mkdir -p $(@D)
	$(Q)awk -v hash="$$(cat $(CARBON_CSV) | sha256sum | cut -c1-64)" -f $^ > $@
$(BUILD)/tools/carbon/factors.o: $(BUILD)/gen/carbon_tables.def

include probes/probes.mk
include tests/tests.mk

demo: ## wrap a small training program and show its report
	$(Q)tests/setup.sh demo
	$(Q)$(MAKE) --no-print-directory all $(BUILD)/programs/lm_train
	$(Q)BUILD=$(BUILD) PYTHON=$(PYTHON) tests/demo.sh

setup: ## install what building and testing need (apt, as root or with sudo), saying what
	$(Q)tests/setup.sh

layers: ## fail on an include that goes up, or a file over its size
	$(Q)tests/layers.sh

# Each major version of clang-format formats some lines in its own way. The files are as version 14 leaves them, which is that of
# Debian 12 and Ubuntu 22.04; where another one or none is installed, nothing is checked or changed.
FORMAT_VERSION := 14
CLANG_FORMAT   ?= $(firstword $(shell command -v clang-format-$(FORMAT_VERSION) clang-format))
FORMAT_IS       = $(if $(CLANG_FORMAT),$(shell $(CLANG_FORMAT) --version | sed 's/.*version \([0-9]*\).*/\1/'))
define format_files
$(Q)if [ "$(FORMAT_IS)" = $(FORMAT_VERSION) ]; then git ls-files '*.c' '*.h' '*.cu' | xargs $(CLANG_FORMAT) $(1); \
	else echo "  SKIP    format: the files are in that of clang-format $(FORMAT_VERSION), and here is $(or $(FORMAT_IS),none)"; fi
endef
format: ## clang-format everything
	$(call format_files,-i)
check-format: ## fail on what `make format` would change
	$(call format_files,--dry-run -Werror)

install: all ## into PREFIX (default /usr/local); DESTDIR is honoured
	install -Dm755 $(BUILD)/kjoule $(DESTDIR)$(PREFIX)/bin/kjoule
	install -Dm755 $(BUILD)/libkjoule.so $(DESTDIR)$(PREFIX)/lib/kjoule/libkjoule.so
	install -Dm644 -t $(DESTDIR)$(PREFIX)/share/kjoule tools/report/schema/kjoule.*.json
	install -Dm644 tools/man/kjoule.1 $(DESTDIR)$(PREFIX)/share/man/man1/kjoule.1
uninstall: ## what install put there
	rm -f $(DESTDIR)$(PREFIX)/bin/kjoule $(DESTDIR)$(PREFIX)/share/man/man1/kjoule.1
	rm -rf $(DESTDIR)$(PREFIX)/lib/kjoule $(DESTDIR)$(PREFIX)/libexec/kjoule $(DESTDIR)$(PREFIX)/share/kjoule

clean: ## remove the build folder
	rm -rf $(BUILD)

-include $(LIB_OBJ:.o=.d) $(CMD_OBJ:.o=.d) $(SHIM_OBJ:.o=.d)
