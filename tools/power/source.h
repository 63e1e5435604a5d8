/* SPDX-License-Identifier: Apache-2.0
 *
 * source.h - what a source of readings fills in. One struct of functions a source; power.c holds the table of
 * them. Private to this room and its tests.
 */
#ifndef KJ_POWER_SOURCE_H
#define KJ_POWER_SOURCE_H

#include "power/power.h"

#include <linux/perf_event.h>
#include <sys/types.h>

enum { KJ_CPUS_MAX = 4096 };

/* The processor, as /proc/cpuinfo tells. Read once at open, shared by the sources. */
struct kj_cpu_info {
    char model[96];       /* "" unknown */
    bool virtual_machine; /* the hypervisor says so */
    uint32_t cpus;        /* logical CPUs seen */
    uint16_t package_of_cpu[KJ_CPUS_MAX];
};

/* What a source may look at when it opens. */
struct kj_source_env {
    const char *root; /* prefix of /sys and /proc, never NULL */
    const char *replay_file;
    struct kj_cpu_info cpu;
};

struct kj_source_ops {
    const char *name;
    /* Looks for sensors, adds a channel for each with kj_power_add() and leaves its state in *ret_state. 0:
     * accepted. Negative errno: refused, *ret_state untouched. Either way status->reason says what was found,
     * status->remedy what would mend it. */
    int (*open)(const struct kj_source_env *env, struct kj_power *power, struct kj_source_status *status,
                void **ret_state);
    /* The value of one channel now, by the slot it was added with. Negative errno: no reading. -ENODEV and
     * -ENODATA are for good. */
    int (*read)(void *state, uint32_t slot, uint64_t *ret_value);
    void (*close)(void *state);
    /* Only for recordings, which bring their own times: everything up to now_ns, by slot. NULL otherwise. */
    size_t (*drain)(void *state, uint64_t now_ns, struct kj_sample *ret_samples, size_t cap);
    /* Of a channel added with kj_power_add_ring: what it holds that was not given out before, in order of
     * time, on CLOCK_MONOTONIC; the channel is filled in by the caller. Returns how many, negative errno as
     * read. */
    int (*read_ring)(void *state, uint32_t slot, struct kj_sample *ret_samples, size_t cap);
    /* Beside drain: a slot that fell silent since the last call. */
    bool (*lost)(void *state, uint32_t *ret_slot, char *ret_reason, size_t size);
};

extern const struct kj_source_ops kj_source_nvml, kj_source_rapl_perf, kj_source_rapl_powercap,
    kj_source_hwmon, kj_source_dcmi, kj_source_cpu_model, kj_source_dram_model, kj_source_replay;

/* Adds a channel to the source that is being opened; id and source name are filled in here. slot: handed back
 * to read(). */
int kj_power_add(struct kj_power *power, uint32_t slot, const struct kj_channel *channel);

/* The same for one that brings times of its own: read by read_ring. */
int kj_power_add_ring(struct kj_power *power, uint32_t slot, const struct kj_channel *channel);
/* A channel that this source has added, by its slot, for more that is learned of it. NULL: none. */
struct kj_channel *kj_power_slot(struct kj_power *power, uint32_t slot);

uint64_t kj_power_now_ns(void); /* CLOCK_MONOTONIC */

/* snprintf for texts that may be cut to their room: names, reasons. */
void kj_text(char *ret_text, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The first line of the file at root + formatted path. Negative errno. */
int kj_root_line(const char *root, char *ret_line, size_t size, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* The same as an unsigned number; -EINVAL when it is none. */
int kj_root_number(const char *root, uint64_t *ret_value, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* A number at the start of a file held open, read afresh. */
int kj_fd_number(int fd, uint64_t *ret_value);

/* Calls visit for each name of a folder, in order of name; the dot names are left out. Stops at the first
 * negative result and returns it. Negative errno when the folder cannot be read. */
int kj_root_each(const char *root, const char *folder, int (*visit)(void *context, const char *name),
                 void *context);

void kj_cpu_info_read(const char *root, struct kj_cpu_info *ret_cpu);
/* "package-0", or "package-0-die-1" from the second die of a package on: as the kernel names RAPL zones. */
void kj_package_name(char *ret_name, size_t size, unsigned package, unsigned die);

/* The modelled power of one package. */
struct kj_cpu_model {
    double full_mw;       /* at utilisation 1 */
    const double *shares; /* of it, at 0, 10, 50 and 100 % */
    double low_factor, high_factor;
    char basis[160];
};
/* cpus: logical CPUs of this package that are visible here. */
void kj_cpu_model_of(const char *model_name, bool virtual_machine, uint32_t cpus,
                     struct kj_cpu_model *ret_model);
double kj_cpu_model_power_mw(const struct kj_cpu_model *model, double utilisation);

/* Follows a counter that starts again at zero past range. Returns what was counted since the first call. */
struct kj_unwrap {
    uint64_t last, sum;
    bool begun;
};
uint64_t kj_unwrap(struct kj_unwrap *unwrap, uint64_t raw, uint64_t range);

/* System calls, replaced in tests. Negative errno. */
extern int (*kj_perf_event_open)(struct perf_event_attr *attr, pid_t pid, int cpu);
extern int (*kj_ipmi_ioctl)(int fd, unsigned long request, void *argument);

#endif
