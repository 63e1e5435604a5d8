/* SPDX-License-Identifier: Apache-2.0
 *
 * work.h - what ran, joined over all ledgers of a run: classes of (device, name, kind), their launches and
 * their time. Inside the room only.
 */
#ifndef KJ_ACCOUNT_WORK_H
#define KJ_ACCOUNT_WORK_H

#include "account/parts.h"
#include "folder/ledgers.h"
#include "model/attribution.h"
#include "model/phases.h"

/* All launches of one name on one device, over processes, threads and launch shapes. */
struct kj_work_class {
    const char *name; /* of the first ledger that had it */
    uint32_t device;  /* index in kj_work.devices */
    uint8_t kind;     /* enum kj_activity_kind */
    uint64_t launches, timed, bytes;
    uint64_t untimed;    /* launches that no activity of this class has a duration for */
    uint64_t unmeasured; /* launches whose own time is not in time_ns: learned, or of a graph */
    uint64_t first_only; /* of these: timed, by a bracket that may hold more than the launch */
    uint64_t open;       /* launches whose time is in that of a group */
    double time_ns;      /* of launches - untimed - open */
    double time_var_ns2; /* variance of the part that is learned; < 0 unknown */
    /* How far off time_ns may be: half of a 90 % interval, squared, of what errs independently; and what adds
     * up, for it errs alike: brackets that hold more than their launch, launches that nothing like them is
     * known of.
     */
    double time_off_ns2, time_below_ns, time_above_ns;
    double phase_launches[KJ_PHASE_COUNT], phase_ns[KJ_PHASE_COUNT]; /* they add up to launches, time_ns */
    double phase_untimed[KJ_PHASE_COUNT];
};

static inline bool kj_kind_is_copy(uint8_t kind) /* or a fill */
{
    return kind >= KJ_ACTIVITY_MEMCPY_HTOD && kind <= KJ_ACTIVITY_MEMSET;
}

/* The kind of a class that is a group: what it holds is known to have run for time_ns together. */
#define KJ_WORK_GROUP UINT8_MAX

/* One kind of node of a graph. */
struct kj_work_node {
    uint32_t class;    /* that its time is of: its own, or a group's */
    uint32_t own;      /* KJ_NO_CLASS: no GPU work, a host function */
    uint32_t activity; /* row of ACTIVITIES */
    uint32_t nodes;
    uint8_t kind;               /* enum kj_activity_kind */
    bool open;                  /* how long it ran is not known */
    uint64_t bytes, timed;      /* timed: by CUPTI */
    double sum_ns;              /* of those */
    double ns, low_ns, high_ns; /* of all `nodes` in one launch; 0 unknown; of open ones a guess */
};

/* A graph of one process, and what one launch of it runs. */
struct kj_work_graph {
    uint32_t view, activity;
    uint32_t group; /* class of what is open in it; KJ_NO_CLASS: none, or one class alone */
    uint64_t launches;
    double mean_ns;           /* of one launch; 0 unknown */
    double over_ns, under_ns; /* that it may be too long, or too short */
    bool serial, open;
    size_t first, count; /* in nodes */
};

/* A class in a group. */
struct kj_work_part {
    uint32_t group, class;
    double ns; /* of the group's time: a guess */
};

#define KJ_PHASE_BLOCKS  10
#define KJ_DEVICE_TEXT   64
#define KJ_INSTANCES_CAP 8 /* a board has at most 7 */
struct kj_work_device {
    char key[KJ_DEVICE_TEXT]; /* "GPU-<uuid>" as NVML has it; "cuda-<ordinal>" where the driver told none */
    char model[64];
    char instances[KJ_INSTANCES_CAP][KJ_DEVICE_TEXT]; /* "MIG-...": the run's parts of the board */
    size_t instance_count;
    uint32_t processes, newest_view; /* how many had a context on it; the last of them */
    uint64_t context_ns;             /* when the first context of the run was made on it */
    uint64_t context_end_ns;         /* when the last one ended; UINT64_MAX: that is not known */
    bool phases_sampled; /* some launches' phases are not told one by one, but by those of bursts */
    /* Of the launches whose phase their order tells: seen in bursts, in blocks one after the other. */
    double block_ns[KJ_PHASE_BLOCKS][KJ_PHASE_COUNT];
    struct kj_work_steps {
        double count;
        bool counted; /* one by one; else by the launches of a backward pass */
        uint64_t timed;
        double sum_ns, sum_ns2, min_ns, max_ns; /* periods of `timed` steps */
    } steps;
};

/* What is known of the phase of an activity's launches. */
struct kj_work_phase {
    int8_t direct;  /* enum kj_phase, of each of them; -1: by their order */
    bool in_graphs; /* their order was seen inside graphs too */
    double share[KJ_PHASE_COUNT];
};

/* A burst: between its first and its last timed launch every launch of the process on the device was timed.
 * Or a rest: the process had nothing to run there. */
struct kj_work_span {
    uint32_t device;
    bool rest;
    uint64_t start_ns, end_ns;
};

/* One of --phase-walk's. No two of a run overlap, but for what the system oversleeps. */
struct kj_work_delay {
    uint64_t start_ns, end_ns;
    uint32_t view;
};

struct kj_work {
    const struct kj_series *series; /* the account's */
    struct kj_ledger_view **views;
    uint32_t **class_of; /* [view][activity]: index in classes */
    struct kj_work_phase **phase_of;
    size_t view_count;
    struct kj_work_device *devices;
    char **gpus; /* the keys, for the components */
    size_t device_count;
    struct kj_work_class *classes;
    size_t class_count;
    struct kj_model_interval *intervals; /* class_index over all devices */
    size_t interval_count, interval_cap;
    struct kj_work_span *spans; /* of one process after the other */
    size_t span_count;
    struct kj_work_delay *delays;
    size_t delay_count;
    struct kj_work_graph *graphs; /* by view and activity; of those whose nodes are known */
    size_t graph_count;
    struct kj_work_node *nodes;
    size_t node_count;
    struct kj_work_part *parts;
    size_t part_count;
};
#define KJ_NO_CLASS UINT32_MAX

/* Mean duration of a launch as far as known, 0 unknown. */
double kj_work_mean_ns(const struct kj_work_class *class);
/* The same of all of them; not known where any launch has no duration. */
struct kj_time kj_work_time(const struct kj_work_class *class);
/* Of one launch as its activity says, 0 unknown. */
double kj_work_launch_ns(const struct kj_ledger_activity *activity);

/* work_spans.c: the bursts of one process, from its intervals as its ledger has them. 0 or -1. */
int kj_work_add_spans(struct kj_work *work, uint32_t view, const struct kj_ledger_interval *rows,
                      size_t count);
/* Its rests, where it uses one device: of several, which one had lost its context is not known. 0 or -1. */
int kj_work_add_rests(struct kj_work *work, uint32_t view, int dir_fd);

/* work_devices.c: the index of a process's device, a new one where it is the first of its board; KJ_NO_CLASS
 * when out of memory. */
uint32_t kj_work_find_device(struct kj_work *work, const struct kj_ledger_device *device);
/* That a process had a context on it, and from when to when. One process after the other. */
void kj_work_add_context(struct kj_work *work, uint32_t device, uint32_t view,
                         const struct kj_ledger_device *row);
/* The MIG instances by name, with a warning of whose the energy is. 0 or -1. */
int kj_work_name_instances(struct kj_report *report, struct kj_report_device *row,
                           const struct kj_work_device *device);

/* work.c: room for so many more intervals. 0 or -1. */
int kj_work_reserve(struct kj_work *work, size_t more);

/* work_nodes.c: graphs, nodes, groups and their parts, and how long each node runs. 0 or -1. */
int kj_work_read_graphs(struct kj_work *work);
/* NULL: its nodes are not known. */
const struct kj_work_graph *kj_work_graph_of(const struct kj_work *work, uint32_t view, uint32_t activity);

/* work_durations.c: how long one node runs. Learned from graphs and nodes as read; a graph that shows that
 * its nodes overlap is no longer `serial` after it. NULL: out of memory. */
struct kj_durations;
struct kj_durations *kj_durations_learn(struct kj_work *work);
/* NULL-safe, returns NULL. */
struct kj_durations *kj_durations_free(struct kj_durations *durations);
bool kj_duration_is_known(const struct kj_durations *durations, const struct kj_work_graph *graph,
                          const struct kj_work_node *node);
/* Whether it was neither timed in the graph nor outside, and so lies between bounds. */
bool kj_duration_is_guess(const struct kj_durations *durations, const struct kj_work_graph *graph,
                          const struct kj_work_node *node, double *ret_low_ns, double *ret_high_ns);
/* The duration that is known, else a guess; 0: none. */
double kj_duration_ns(const struct kj_durations *durations, const struct kj_work_graph *graph,
                      const struct kj_work_node *node);
/* What the nodes of a graph that runs so many, one after the other, take together. */
double kj_graph_least_ns(const struct kj_work_graph *graph, double nodes);
double kj_graph_most_ns(const struct kj_work_graph *graph);

/* work_graphs.c: a timed launch of a graph, as intervals of its nodes, or of the graph where they are not
 * known. 0 or -1. */
int kj_work_add_graph_intervals(struct kj_work *work, uint32_t view, const struct kj_ledger_interval *row);

/* work_phases.c: the phases of one process's launches, from its intervals. 0 or -1. */
int kj_work_add_phases(struct kj_work *work, uint32_t view, const struct kj_ledger_interval *rows,
                       size_t count);

/* work_times.c: fills launches and times of all classes from the views; graphs come last, they need the means
 * of the rest. */
void kj_work_add_times(struct kj_work *work);

/* walk_lines.c: --phase-walk. What one process's ledger says of it in sum; its delays, one by one (0 or -1).
 */
void kj_walk_process(struct kj_report *report, const struct kj_ledger_header *header);
int kj_work_add_delays(struct kj_work *work, uint32_t view, const struct kj_ledger_interval *rows,
                       size_t count);
/* How long a device stood still in the delays of the processes that use it, as far as the timeline tells. */
double kj_walk_idle_ns(const struct kj_work *work, uint32_t device);
/* The steps of a device keep step with a sensor, all the same: a warning where delays had been asked for. */
void kj_walk_fell_short(struct kj_report *report);
/* After all devices: the sums, and a warning where there was no delay. */
void kj_walk_finish(struct kj_report *report);

/* One device's classes in the model's form; index maps the model's to the run's, place the run's to the
 * model's (KJ_NO_CLASS: the model has none). */
struct kj_model_classes {
    struct kj_model_class *classes;
    struct kj_model_interval *intervals;
    uint32_t *index, *place;
    size_t count, interval_count;
};
/* kernel_lines.c: rows of report->kernels, groups and copies; what they hold of the device's energy. result
 * NULL: the energy is not known. 0 or -1. */
int kj_kernel_lines(struct kj_report *report, const struct kj_work *work, uint32_t d,
                    const struct kj_model_classes *m, const struct kj_model_result *result,
                    struct kj_report_device *device);

/* phase_lines.c: the phases of one device. The classes are those of the model: index maps them to the run's.
 */
struct kj_phase_classes {
    const uint32_t *index;
    size_t count;
};
/* The model's label_share, [class][KJ_PHASE_COUNT]; NULL when out of memory. The caller frees. */
double *kj_phase_shares(const struct kj_work *work, const struct kj_phase_classes *classes);
/* The model's label_open: parts of groups. The same. */
bool *kj_phase_guesses(const struct kj_work *work, const struct kj_phase_classes *classes);
/* Rows of report->phases. result NULL: the energy is not known. device: its row, finished. */
int kj_phase_lines(struct kj_report *report, const struct kj_work *work, uint32_t d,
                   const struct kj_phase_classes *classes, const struct kj_model_result *result,
                   const struct kj_report_device *device);
/* report->steps. After the lines of all devices. */
void kj_phase_steps(struct kj_report *report, const struct kj_work *work);

#endif
