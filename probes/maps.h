/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
 *
 * maps.h - what the BPF programs and their loader share. Included by both sides: fixed-width types only.
 */
#ifndef KJ_PROBE_MAPS_H
#define KJ_PROBE_MAPS_H

#include <linux/types.h>

enum { KJ_COMM_BYTES = 16, KJ_TASK_COPY_BYTES = 16384 };

/* One a logical CPU, written by that CPU alone, read by the loader through a shared mapping. `sequence` is
 * odd while the slot is being written. */
struct kj_cpu_slot {
    __u64 sequence;
    __u64 since_ns;  /* when the task that runs now was switched in; CLOCK_MONOTONIC; 0: no switch seen yet */
    __u32 tid, tgid; /* of the task that runs now; 0 idle */
    __u64 tree_ns;   /* on-CPU time of the tree's tasks, as the scheduler accounts it to them */
    __u64 others_ns; /* of everybody else, idle left out */
    __u64 idle_ns;
    __u64 switches;
    __u64 tree_cycles, tree_instructions;
    __u64 start_cycles, start_instructions; /* of the CPU when the running task was switched in */
    __u64
        unlisted; /* switches of tree tasks that found no room in the thread table: in tree_ns all the same */
    __u64 reserved[3];
};

struct kj_tree_process {
    __u32 parent;
    __u32 seeded; /* put in by the loader, which does not know how many threads it has: never removed */
    __s64 threads;
    __u64 first;         /* the task structure that bears its number; 0: not seen yet */
    __u64 left, left_ns; /* the one that bore it before another thread's exec, and has its last switch yet
                            to make; its sum as counted */
    __u32 first_gone;    /* it has made that switch */
    __u32 reserved;
    char name[KJ_COMM_BYTES]; /* as at its exec, or as its parent's */
};

enum kj_thread_state {
    KJ_THREAD_LIVE,
    KJ_THREAD_EXITING, /* but not switched out for the last time; told apart by the raw programs alone */
    KJ_THREAD_DEAD,    /* nothing of it comes any more: the loader forgets it once it has been sent */
};

struct kj_tree_thread {
    __u32 tgid;
    __u32 state;
    __u64 runtime_ns; /* the scheduler's own sum when last switched out, or what the clock made of it */
    __u64 ns;         /* on-CPU time counted */
    __u64 cycles, instructions;
    char comm[KJ_COMM_BYTES];
    char process[KJ_COMM_BYTES];
};

enum kj_phase_mark {
    KJ_MARK_BACKWARD,
    KJ_MARK_OPTIMIZER,
    KJ_MARK_UNNAMED, /* no phase: the first record of a process has a name that cannot be read */
    KJ_MARKS
};

/* One finished phase of one thread, through the ring buffer. */
struct kj_phase_event {
    __u32 tgid, tid;
    __u32 mark; /* enum kj_phase_mark */
    __u32 reserved;
    __u64 start_ns, end_ns; /* CLOCK_MONOTONIC */
};

#endif
