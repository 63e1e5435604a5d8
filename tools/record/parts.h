/* SPDX-License-Identifier: Apache-2.0
 *
 * parts.h - what the recorder is made of. Inside the room only.
 */
#ifndef KJ_RECORD_PARTS_H
#define KJ_RECORD_PARTS_H

#include "folder/folder.h"
#include "folder/threads.h"
#include "power/power.h"

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

uint64_t kj_mono_ns(void);
uint64_t kj_wall_ns(void);

/* host.c: fills in what is known of machine, job and command. */
void kj_host_describe(struct kj_run_info *info);
/* Why the shim cannot be loaded into this program: static, set-uid, musl. NULL when it can. The caller frees.
 */
char *kj_host_blind_reason(const char *program);
void kj_host_warn(struct kj_run_info *info, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* child.c */
struct kj_child {
    const char *program;
    char *const *argv;
    const char *folder;
    const sigset_t *mask; /* to give back to the command */
    const struct kj_options *options;
};
/* Returns the pid or negative errno of the exec. */
int kj_child_spawn(const struct kj_child *child);

/* threads.c: CPU time by process and thread name. */
struct kj_threads;
struct kj_thread_seen {
    int32_t pid, tid;
    bool dead; /* these are its last numbers */
    uint64_t cpu_ns, cycles, instructions;
    const char *comm, *process; /* 16 characters at most */
};
/* source: as in folder/threads.h */
struct kj_threads *kj_threads_new(const char *source);
void kj_threads_set_source(struct kj_threads *threads, const char *source);
struct kj_threads *kj_threads_close(struct kj_threads *threads);
void kj_threads_note(struct kj_threads *threads, const struct kj_thread_seen *seen);
int kj_threads_save(const struct kj_threads *threads, int dir_fd);

/* tree.c: CPU time of a process tree by /proc, cumulative and never falling. */
struct kj_tree;
struct kj_tree *kj_tree_new(int32_t root_pid, bool is_child);
struct kj_tree *kj_tree_free(struct kj_tree *tree);
/* CPU time of children of ours that were none of the tree's. */
void kj_tree_leave_out(struct kj_tree *tree, uint64_t cpu_ns);
uint64_t kj_tree_cpu_ns(struct kj_tree *tree);
/* From now on the control group's CPU time counts too, where the run has one to itself. False: it has not. */
bool kj_tree_use_cgroup(struct kj_tree *tree);
/* Of one process and the children that it waited for; 0 gone. */
uint64_t kj_tree_process_ns(int32_t pid);
uint32_t kj_tree_processes_seen(const struct kj_tree *tree);
/* As of the last look; in order. Valid until the next. */
size_t kj_tree_alive(const struct kj_tree *tree, const int32_t **ret_pids);
/* Notes each thread that lives now. */
void kj_tree_threads(struct kj_tree *tree, struct kj_threads *threads);
/* Busy CPU time of the whole machine since boot; 0 unknown. */
uint64_t kj_node_busy_ns(void);

/* blind.c: processes that loaded CUDA past the shim. */
struct kj_blind;
struct kj_blind *kj_blind_new(int dir_fd);
struct kj_blind *kj_blind_free(struct kj_blind *blind);
/* Looks at the processes, each ever more rarely, and warns of those that hold the CUDA driver and leave no
 * ledger. */
void kj_blind_look(struct kj_blind *blind, const int32_t *pids, size_t count, struct kj_run_info *info);

/* rests.c: when the run's processes had nothing left to run on a device. */
struct kj_rests;
struct kj_rests *kj_rests_new(int dir_fd);
/* Reads their ledgers, where that is due. NULL-safe, as the next. */
void kj_rests_tick(struct kj_rests *rests);
struct kj_rests *kj_rests_close(struct kj_rests *rests);

/* owners.c: one owner per device within a job. */
struct kj_owners;
/* The job is (kind, id); NULL when the lock folder cannot be had, and then everything is owned. */
struct kj_owners *kj_owners_open(const char *job_kind, const char *job_id, const char *run_id);
/* True: ours. False: ret_owner is the run id of who counts it. */
bool kj_owners_claim(struct kj_owners *owners, const char *device, char *ret_owner, size_t size);
struct kj_owners *kj_owners_close(struct kj_owners *owners);

/* sampler.c: power and CPU time into the series files. */
struct kj_sampler_config {
    int dir_fd;
    struct kj_power *power;
    struct kj_tree *tree;
    struct kj_probe *probe; /* NULL: none */
    double cores;           /* that the run may use */
    uint64_t start_ns;
    uint64_t interval_ns;
};
struct kj_sampler;
int kj_sampler_new(const struct kj_sampler_config *config, struct kj_sampler **ret_sampler);
/* When to come again, CLOCK_MONOTONIC: for an even look at everything, or at one sensor of a GPU that is
 * about to be renewed (looks.h). */
uint64_t kj_sampler_next_ns(const struct kj_sampler *sampler);
/* Looks at the sensors that are about to be renewed. False: it is time for all of them, kj_sampler_tick. */
bool kj_sampler_look(struct kj_sampler *sampler);
void kj_sampler_tick(struct kj_sampler *sampler);
/* A last reading of everything, written out. */
struct kj_sampler *kj_sampler_close(struct kj_sampler *sampler);
void kj_sampler_flush(struct kj_sampler *sampler);

#endif
