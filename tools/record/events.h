/* SPDX-License-Identifier: Apache-2.0
 *
 * events.h - what the recorder waits for: the clock, the end of the root, signals to pass on. Inside the room
 * only.
 */
#ifndef KJ_EVENTS_H
#define KJ_EVENTS_H

#include "base/log.h"

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

struct kj_events;

/* watch_pid 0: for a command that is still to be started; blocks the signals that will be forwarded to it.
 * Else: for a process that is nobody's child here; makes the socket end.<pid> in the folder. */
int kj_events_open(int32_t watch_pid, int dir_fd, struct kj_events **ret_events, struct kj_error *error);
/* The mask from before, which is the command's. */
const sigset_t *kj_events_outer_mask(const struct kj_events *events);
void kj_events_set_root(struct kj_events *events, int32_t pid);
/* The next tick, CLOCK_MONOTONIC. */
void kj_events_tick_at(struct kj_events *events, uint64_t t_ns);

struct kj_ending {
    bool status_known; /* it was our child */
    int exit_status;   /* as a shell's */
    int exit_signal;
};
/* Waits for the next tick (false) or the root's end (true). Forwards signals and follows stops meanwhile. */
bool kj_events_wait(struct kj_events *events, struct kj_ending *ret_ending);
/* Also hangs up on a process that waits at its end. */
struct kj_events *kj_events_close(struct kj_events *events);

#endif
