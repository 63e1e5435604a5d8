/* SPDX-License-Identifier: Apache-2.0
 *
 * probe.h - the recorder's side of kjoule-probe: starts it, hears it, trusts nothing that it says. One
 * thread; nothing here blocks but kj_probe_await and kj_probe_finish, which are bounded.
 */
#ifndef KJ_RECORD_PROBE_H
#define KJ_RECORD_PROBE_H

#include "folder/cpu_phases.h"
#include "power/power.h"

#include <signal.h>

struct kj_probe;
struct kj_threads;

struct kj_probe_status {
    bool running;     /* it measures */
    char reason[200]; /* what it measures, or why it does not */
    char remedy[400]; /* the command that would mend it; "" none */
};

/* Starts the program beside this one or in ../libexec/kjoule, never from PATH. Before
 * PR_SET_CHILD_SUBREAPER, so that it does not come back to us. Never NULL but for want of memory: where there
 * is none, or it refuses, the status says so. mask: of signals, for the program. */
struct kj_probe *kj_probe_start(bool phases, const sigset_t *mask);
/* Hears a socket that another has connected: for tests. Closed with the probe. */
struct kj_probe *kj_probe_adopt(int socket);
/* Until it measures or refuses, or root_pid has ended (0: none), or the time is up, which counts as refused.
 */
void kj_probe_await(struct kj_probe *probe, int32_t root_pid, int timeout_ms);
void kj_probe_get_status(const struct kj_probe *probe, struct kj_probe_status *ret_status);
/* What starting it has added to the CPU time of our children. The program itself is nobody's child here. */
uint64_t kj_probe_cost_ns(const struct kj_probe *probe);

/* Its channels: sensors, then "tree", "others" and "idle" of source "probe", then cycles if it counts them.
 * ids are places. Valid until close, none before await. */
size_t kj_probe_channels(const struct kj_probe *probe, const struct kj_channel **ret_channels);
void kj_probe_drop_channel(struct kj_probe *probe, uint32_t channel);

void kj_probe_watch(struct kj_probe *probe, int32_t pid);
/* What is read from now on goes there; each may be NULL. */
void kj_probe_connect(struct kj_probe *probe, struct kj_threads *threads,
                      struct kj_cpu_phases_writer *phases);
/* Takes in what has arrived. False: it has ended, or never was. */
bool kj_probe_read(struct kj_probe *probe);
/* Readings that came in; channel: place in kj_probe_channels. Returns how many, in order of time a channel.
 */
size_t kj_probe_samples(struct kj_probe *probe, struct kj_sample *ret_samples, size_t cap);
bool kj_probe_lost(struct kj_probe *probe, uint32_t *ret_channel, char *ret_reason, size_t size);
/* On-CPU time of the tree as last told; 0 while nothing was. */
uint64_t kj_probe_tree_ns(const struct kj_probe *probe);

/* Hands a function of PyTorch in a mapped library to the probe. 0 or negative errno. What the probe answers
 * goes into the phases' file: from when on the function is watched. */
int kj_probe_function(struct kj_probe *probe, int32_t pid, unsigned function, int fd, uint64_t offset);
/* "" or why one could not be watched, in one line. */
const char *kj_probe_function_reason(const struct kj_probe *probe);
/* One at least could. */
bool kj_probe_watches(const struct kj_probe *probe);
/* "" or why the kernel lets nobody watch functions, in one line; from await on. */
const char *kj_probe_no_phases(const struct kj_probe *probe);
/* A process in which the names of records cannot be read, and so say nothing of what they are; each once. */
bool kj_probe_unnamed(struct kj_probe *probe, int32_t *ret_pid);
/* The last numbers, within half a second. */
void kj_probe_finish(struct kj_probe *probe);
/* NULL-safe, returns NULL. The program ends by itself when its socket is gone. */
struct kj_probe *kj_probe_close(struct kj_probe *probe);

#endif
