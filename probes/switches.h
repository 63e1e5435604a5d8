/* SPDX-License-Identifier: Apache-2.0
 *
 * switches.h - loads the scheduler programs and reads what they counted. One thread, one object a process.
 */
#ifndef KJ_PROBE_SCHED_H
#define KJ_PROBE_SCHED_H

#include "maps.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kj_sched_reader;

/* So that what other machines make happen can be tried on any. */
struct kj_sched_options {
    bool raw;     /* the programs for kernels without BTF */
    bool wall;    /* which take time by the clock, as where the scheduler's sum is not found */
    bool unfreed; /* and which hear of no task that the kernel lets go of */
    bool clock;   /* nanoseconds of the CPUs in place of cycles and instructions */
};

/* Loads and attaches. Negative errno; ret_text then says why in one line, else what was loaded and where a
 * task's time is from. */
int kj_sched_open(const struct kj_sched_options *options, struct kj_sched_reader **ret_reader, char *ret_text,
                  size_t size);
struct kj_sched_reader *kj_sched_close(struct kj_sched_reader *reader);
/* Kernels before 5.19 want the right to use BPF for each look into a table, others only to load. */
bool kj_sched_readable(const struct kj_sched_reader *reader);
bool kj_sched_counts_cycles(const struct kj_sched_reader *reader);
/* Takes the process into the tree; its children from now on follow. */
int kj_sched_watch(struct kj_sched_reader *reader, int32_t pid, const char *name);

struct kj_sched_sums {
    uint64_t t_ns, tree_ns, others_ns, idle_ns;
    uint64_t tree_cycles, tree_instructions, all_cycles;
    uint64_t switches, unlisted;
    uint32_t processes, threads; /* rows in the tables now */
};
/* Calls visit for each thread of the tree, with its running slice added; those that are dead are forgotten
 * once visit has returned true for them. */
int kj_sched_read(struct kj_sched_reader *reader, struct kj_sched_sums *ret_sums,
                  bool (*visit)(void *context, uint32_t tid, const struct kj_tree_thread *thread),
                  void *context);

#endif
