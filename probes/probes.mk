# kjoule-probe: optional. Needs clang and bpftool to build its programs, libbpf and libelf to link; without them it is left out, and said.

PROBE_CLANG   ?= $(firstword $(shell command -v clang clang-19 clang-18 clang-17 clang-16 clang-15 clang-14 2>/dev/null))
PROBE_BPFTOOL ?= $(firstword $(shell command -v bpftool 2>/dev/null) $(wildcard /usr/sbin/bpftool))
PROBE_HEADERS := $(wildcard /usr/include/bpf/libbpf.h)
PROBE_MISSING := $(strip $(if $(PROBE_CLANG),,clang) $(if $(PROBE_BPFTOOL),,bpftool) $(if $(PROBE_HEADERS),,libbpf-dev) \
                   $(if $(filter x86_64 aarch64,$(ARCH)),,x86_64-or-aarch64))
PROBE_ARCH    := $(if $(filter aarch64,$(ARCH)),arm64,x86)
PROBE_SRC     := $(filter-out probes/%.bpf.c,$(wildcard probes/*.c))
PROBE_OBJ     := $(PROBE_SRC:%.c=$(BUILD)/%.o)
PROBE_SKEL    := $(patsubst probes/%.bpf.c,$(BUILD)/gen/%.skel.h,$(wildcard probes/*.bpf.c))
BPF_CFLAGS    := -g -O2 -target bpf -mcpu=v2 -D__TARGET_ARCH_$(PROBE_ARCH) -I/usr/include/$(ARCH)-linux-gnu -Wall -Werror
# libbpf.pc names what a static libbpf wants too; the shared one brings it along.
PROBE_LIBS    := -lbpf

.PHONY: probe no-probe install-probe
ifeq ($(PROBE_MISSING),)
all: probe
else
all: no-probe
endif
probe: $(BUILD)/kjoule-probe
no-probe:
	@echo "  SKIP    kjoule-probe (better CPU numbers, optional): missing $(PROBE_MISSING); \`make setup\` installs it"

$(BUILD)/gen/%.bpf.o: probes/%.bpf.c probes/tree.bpf.h probes/kernel.h probes/maps.h
	$(call say,BPF,$<)
	@mkdir -p $(@D)
	$(Q)$(PROBE_CLANG) $(BPF_CFLAGS) -c $< -o $@
$(BUILD)/gen/%.skel.h: $(BUILD)/gen/%.bpf.o
	$(Q)$(PROBE_BPFTOOL) gen skeleton $< name kj_$* > $@
$(BUILD)/probes/%.o: probes/%.c $(PROBE_SKEL)
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(TOOL_CFLAGS) -c $< -o $@
$(BUILD)/kjoule-probe: $(PROBE_OBJ) $(BUILD)/libkjtools.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(SANFLAGS) -o $@ $^ $(LDFLAGS) -Wl,-z,now,-z,relro $(PROBE_LIBS) $(TOOL_LIBS)

PROBE_CAPS := cap_bpf,cap_perfmon,cap_dac_read_search=ep
install-probe: $(if $(PROBE_MISSING),no-probe,probe) ## kjoule-probe with its capabilities, into PREFIX; as root
	$(if $(PROBE_MISSING),@exit 1)
	install -Dm755 $(BUILD)/kjoule-probe $(DESTDIR)$(PREFIX)/libexec/kjoule/kjoule-probe
	setcap $(PROBE_CAPS) $(DESTDIR)$(PREFIX)/libexec/kjoule/kjoule-probe

-include $(PROBE_OBJ:.o=.d)
