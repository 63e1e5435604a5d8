/* SPDX-License-Identifier: Apache-2.0
 *
 * report.h - the finished answer. account/ fills it, writers turn it into bytes and compute nothing but sums
 * for display.
 *
 * Units are in the names. Strings are owned by the report; NULL is unknown. Energies are integer microjoules;
 * where one is not known its `known` is false and the reason stands in the warnings. low and high bound a 90
 * % interval.
 */
#ifndef KJ_REPORT_H
#define KJ_REPORT_H

#include "base/log.h"
#include "base/units.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define KJ_REPORT_SCHEMA "kjoule.report/1"

struct kj_energy {
    bool known;
    bool bounded; /* not known, but low and high hold */
    enum kj_method method;
    int64_t uj, low_uj, high_uj;
};

struct kj_time {
    bool known;
    enum kj_method method;
    double ns, low_ns, high_ns;
};

/* One part of the total. */
struct kj_report_component {
    char *kind; /* "gpu" "cpu" "dram" */
    char *device, *model;
    char *source, *channel; /* "nvml", "energy_counter" */
    char *basis;
    struct kj_energy energy; /* this run's part */
    int64_t device_uj;       /* the whole device's, over the run */
    double share;            /* energy / device_uj */
    char *share_basis;       /* why that share */
    double coverage;         /* of the run's time that readings cover */
    char *check_source;      /* a second sensor of the same device, and what it says; NULL none */
    int64_t check_uj;
};

/* A meter that holds the parts, or some of them: told beside them and in no sum. */
struct kj_report_beside {
    char *device, *source, *channel, *basis;
    struct kj_energy energy; /* of the whole device */
    double coverage;
};

/* How a GPU's sensor turns power into readings. */
struct kj_report_sensor {
    char *device, *source, *channel, *basis;
    char *shape;  /* where it is known from: "calibrated" "table" "inferred" */
    char *kernel; /* "box" "lag" */
    bool counter;
    uint64_t window_ns, period_ns,
        delay_ns;              /* 0: not known; of a counter's window: it sees all of the time */
    double delay_sd_ns;        /* 1 sigma of delay_ns, as the attribution took it */
    double gain;               /* by the user's own meter; 0 none */
    double gain_mean, gain_sd; /* reading / true, after that */
    double noise_mw;           /* 1 sigma of a reading; 0: unknown */
    double limit_mw;           /* by the driver; 0: unknown */
};

struct kj_report_device {
    char *device, *model;
    char *instances; /* "MIG-..., MIG-...": the run's parts of the board; NULL: it had all of it */
    struct kj_energy energy;
    int64_t kernels_uj, idle_uj, unattributed_uj; /* add up to energy */
    uint64_t kernels_known;                       /* kernels that kernels_uj is the sum of */
    uint64_t kernels_unknown; /* kernels whose energy is not known: it is in unattributed, and idle */
    uint64_t launches;
    double busy_ns;
    double idle_mw;
    uint64_t walk_ns; /* that it stood still in delays of --phase-walk */
    int64_t walk_uj;  /* what it took then, of idle_uj; estimated */
};

struct kj_report_kernel {
    char *name; /* mangled */
    char *device;
    uint64_t launches, timed;
    struct kj_time time;
    double time_sd_ns; /* of what was learned and not measured; < 0 unknown: the spread was never seen */
    struct kj_energy energy;
    double energy_sd_uj;
    double identifiability; /* 0 the prior alone, 1 the data alone */
    int group;              /* kernels of one group cannot be told apart; -1: none */
};

/* Kernels that cannot be told apart, of one device. */
struct kj_report_group {
    char *device;
    int group;
    bool times;              /* for their times in graphs are not known; else for their powers */
    size_t kernels;          /* of kernels[] */
    struct kj_energy energy; /* of all of them together, and of copies beside them in their graphs */
    uint64_t copies;         /* those */
};

/* Copies and fills: their energy is part of the device's kernels + unattributed as the model says, and not
 * listed apart. */
struct kj_report_copy {
    char *kind; /* "HtoD" ... "memset" */
    char *device;
    uint64_t count, bytes;
    struct kj_time time;
};

struct kj_report_process {
    int32_t pid, rank;
    char *exe;
    uint64_t launches, failed_launches;
    int32_t cuda_driver_version;
    char *state; /* "closed" "open" "disabled" */
    char *reason;
    /* How its launches were timed. */
    struct kj_report_timing {
        char *backend; /* "events" "cupti" "count" */
        char *asked;   /* the same */
        char *reason;  /* why they differ; NULL: they do not */
        uint32_t cupti_version;
        uint64_t records, by_name, unmatched, dropped, incomplete; /* CUPTI's */
        double clock_error_ns;                                     /* of CUPTI's clock on ours; < 0 unknown */
    } timing;
};

struct kj_report_factor {
    char *zone, *name;
    double g_per_kwh, low_g_per_kwh, high_g_per_kwh;
    int32_t year; /* 0: the user's own */
    char *source, *licence, *basis, *boundary, *interval_basis;
};

struct kj_report_source {
    char *name, *reason, *remedy;
    bool accepted;
};

struct kj_report_unhooked {
    char *name;
    int32_t version;
    uint64_t requests;
};

/* A hooked driver function and how often it was called, in all processes. */
struct kj_report_call {
    char *name;
    uint64_t count, failed;
    uint64_t host_ns; /* time inside it; of synchronising calls alone, else 0 */
};

/* This run's energy of the CPU packages by thread name. */
struct kj_report_thread {
    char *process, *name;
    bool main; /* a process's first thread */
    uint32_t threads;
    uint64_t cpu_ns, cycles, instructions; /* cycles 0: not counted */
    struct kj_energy energy;               /* of cpu.dynamic_uj */
};

struct kj_report_cpu_process {
    int32_t pid; /* 0: all the others */
    char *process;
    uint64_t cpu_ns;
    struct kj_energy energy;
};

/* A phase of a training on the CPU, as kjoule-probe saw it. */
struct kj_report_cpu_phase {
    char *name; /* "backward" "optimizer" "rest" */
    uint64_t count;
    double time_ns;
    struct kj_energy energy; /* of cpu.dynamic_uj + cpu.idle_uj */
};

/* A phase of a training on one device. All of a device's, and its idle energy, add up to its energy. */
struct kj_report_phase {
    char *name; /* shim/phase_names.h */
    char *device;
    uint64_t launches, copies;
    enum kj_method launches_method; /* measured: told one by one */
    struct kj_time time;            /* of kernels and copies; those that overlap count each */
    struct kj_energy energy;
    double share;           /* of the device's energy */
    double identifiability; /* as a kernel's */
};

struct kj_report_per {
    char *name;
    double count;
};

struct kj_report {
    /* run */
    char *run_id, *folder, *command, *host, *os, *version, *cwd;
    char *container, *virtual_machine; /* NULL: none that shows */
    bool wrapped, complete, exit_known;
    int32_t exit_status, exit_signal, rank, world_size;
    uint64_t start_wall_ns, duration_ns, tree_cpu_ns, memory_bytes;
    uint32_t cores_online, cores_allowed, processes_seen;
    double cores_quota; /* of the control group; 0 none */

    struct kj_energy total;
    uint64_t components_unknown; /* that count for this run and are not in total: their energy is not known */
#define KJ_REPORT_LISTS(X)                                                                                   \
    X(component, components)                                                                                 \
    X(device, devices)                                                                                       \
    X(kernel, kernels)                                                                                       \
    X(group, groups)                                                                                         \
    X(copy, copies)                                                                                          \
    X(process, processes)                                                                                    \
    X(source, sources)                                                                                       \
    X(unhooked, unhooked)                                                                                    \
    X(call, calls)                                                                                           \
    X(beside, besides)                                                                                       \
    X(sensor, sensors)                                                                                       \
    X(thread, threads)                                                                                       \
    X(cpu_process, cpu_processes)                                                                            \
    X(cpu_phase, cpu_phases)                                                                                 \
    X(phase, phases)                                                                                         \
    X(per, per)
#define X(one, many)                                                                                         \
    struct kj_report_##one *many;                                                                            \
    size_t many##_count;
    KJ_REPORT_LISTS(X)
#undef X

    /* A step is one update of the weights: the period of the optimizer. count 0: none was seen. */
    struct kj_report_steps {
        uint64_t count;
        enum kj_method count_method;
        uint64_t timed; /* of which the period was seen */
        double mean_ns, sd_ns, min_ns, max_ns;
        struct kj_energy
            energy; /* of all steps, on all devices: all phases but evaluation and unattributed */
    } steps;

    /* This run's part of the CPU packages. */
    struct kj_report_cpu {
        bool known;
        enum kj_method method;
        char *time_source;    /* "probe" "proc": who counted CPU time */
        char *threads_source; /* the same of the threads; NULL: none were seen */
        double others_ns;     /* CPU time of everybody else; < 0 unknown */
        int64_t dynamic_uj, idle_uj;
        uint64_t packages_unknown; /* whose energy is in neither */
        char *idle_rule;           /* "cores" "cpu" "all" "none" */
        double reserved;           /* of the machine's cores */
        bool wait_known;           /* CPU time spent spinning inside synchronise calls */
        uint64_t wait_inside_ns, wait_cpu_ns, wait_low_ns, wait_high_ns;
        struct kj_energy wait; /* of dynamic_uj */
    } cpu;

    /* carbon: C = E x T x R, of which E x T is total */
    bool carbon_known;
    double total_g, low_g, high_g, pue;
    struct kj_report_factor factor, alternative; /* alternative.zone NULL: none */
    char *location_method, *location_evidence;
    char *location_confidence; /* "low" "medium" "high" */
    char *table_sha256;

    /* overhead and quality */
    uint64_t shim_ns;        /* of all processes; its own estimate */
    uint64_t shim_device_ns; /* of the GPU, by the shim's events; its estimate too */
    /* --phase-walk: delays that the user asked for. Not in shim_ns. */
    struct kj_report_walk {
        double asked_share; /* of the time, at most; 0: it was not asked for */
        uint32_t seed, hosts;
        uint64_t delays, delay_ns, longest_ns; /* of all processes */
        uint64_t idle_ns;                      /* of all devices */
        int64_t idle_uj;
        char *reason; /* why a process could make none; NULL: could */
    } walk;
    struct {
        uint64_t placed; /* timed launches; 0: the rest says nothing */
        uint64_t error_most_ns,
            error_sum_ns; /* how far off each may lie on the host's clock; the sum is over them */
        uint64_t retied, conflicts;
    } clock;
    uint64_t untimed_launches, harvest_errors, dropped_intervals;
    uint64_t context_repairs, contextless_launches; /* as the ledger's */
    double residual_relative;
    char **warnings;
    size_t warnings_count;
};

struct kj_report *kj_report_new(void);
/* NULL-safe, returns NULL. */
struct kj_report *kj_report_free(struct kj_report *report);
/* Whether the energy of any of its kernels is known, or there is none. */
bool kj_kernels_known(const struct kj_report_device *device);
/* Row `index` of phases with the rows of its name on all other devices added; false when an earlier row has
 * that name. ret_sum's strings are the report's. */
bool kj_phase_sum(const struct kj_report *report, size_t index, struct kj_report_phase *ret_sum);
/* A new zeroed last row of a list; NULL when out of memory. */
#define X(one, many) struct kj_report_##one *kj_report_add_##one(struct kj_report *report);
KJ_REPORT_LISTS(X)
#undef X
/* Warnings end with the way out. The same text twice is said once. */
void kj_report_warn(struct kj_report *report, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Formats: "json", "text". -EINVAL for an unknown one (error lists them). Writes to out. */
int kj_report_write(const struct kj_report *report, const char *format, FILE *out, struct kj_error *error);
/* The same into memory: NUL-terminated, the caller frees it, also after an error. */
int kj_report_render(const struct kj_report *report, const char *format, char **ret_text, size_t *ret_size,
                     struct kj_error *error);

#endif
