/* SPDX-License-Identifier: Apache-2.0
 *
 * ledgers.h - reading the ledgers of a run folder (shim/ledger.h), trusting nothing in them.
 *
 * A ledger is mapped or read, checked (magic, version, sizes, section bounds, counts against caps), and then
 * only reached through the functions below, which check each index and string again: the file may change
 * underneath while its process still runs.
 */
#ifndef KJ_LEDGERS_H
#define KJ_LEDGERS_H

#include "base/log.h"
#include "ledger.h"

#include <stdbool.h>
#include <stddef.h>

struct kj_ledger_view;

/* -EPROTO: not a ledger, truncated or corrupt; -ENOTSUP: written by a newer version. error names the file and
 * what to do. */
int kj_ledger_view_open(int dir_fd, const char *name, struct kj_ledger_view **ret_view,
                        struct kj_error *error);
struct kj_ledger_view *kj_ledger_view_close(struct kj_ledger_view *view);

const struct kj_ledger_header *kj_ledger_view_header(const struct kj_ledger_view *view); /* a checked copy */
/* Complete rows of a section, never more than its cap. */
uint32_t kj_ledger_view_rows(const struct kj_ledger_view *view, enum kj_ledger_section section);
/* Copies row `index` out; false when there is none. `row` has the section's row type. */
bool kj_ledger_view_row(const struct kj_ledger_view *view, enum kj_ledger_section section, uint32_t index,
                        void *ret_row);
/* A name, always terminated and bounded; "" for a bad offset. Valid until close. */
const char *kj_ledger_view_name(const struct kj_ledger_view *view, uint32_t offset);
/* Exact launches of an activity: the sum over the shards. */
uint64_t kj_ledger_view_launches(const struct kj_ledger_view *view, uint32_t activity);
/* Successful calls of the hooked function in row `call` of CALLS. */
uint64_t kj_ledger_view_calls(const struct kj_ledger_view *view, uint32_t call);

/* The intervals of one ledger, drained ones (file "intervals.<pid>.<start_ticks>") and those still in its
 * ring, in order of publication; the caller frees. ret_dropped: published but lost. */
int kj_ledger_view_intervals(int dir_fd, const struct kj_ledger_view *view,
                             struct kj_ledger_interval **ret_intervals, size_t *ret_count,
                             uint64_t *ret_dropped);

/* Recorder's side: moves what the ring holds to the intervals file and advances ring_tail. Returns rows moved
 * or negative errno. Bounded: past the cap (256 MiB) it stops and the ring counts what it drops. */
int kj_ledger_drain(int dir_fd, const char *ledger_name);

/* A stretch in which a process had nothing left to run on any device, and a context. */
struct kj_ledger_rest {
    uint64_t start_ns, end_ns;
};
/* Those of one ledger (file "rests.<pid>.<start_ticks>"), in order; the caller frees. None: 0 rows. */
int kj_ledger_view_rests(int dir_fd, const struct kj_ledger_view *view, struct kj_ledger_rest **ret_rests,
                         size_t *ret_count);

/* Recorder's side: a ledger that is read repeatedly while its process runs. -EPROTO: not one. */
struct kj_ledger_watch;
int kj_ledger_watch_open(int dir_fd, const char *ledger_name, struct kj_ledger_watch **ret_watch);
struct kj_ledger_watch *kj_ledger_watch_close(struct kj_ledger_watch *watch);
const struct kj_ledger_header *kj_ledger_watch_header(const struct kj_ledger_watch *watch); /* when opened */
/* 1: the process has nothing left to run just now (ledger.h, settled_calls); while ret_calls stays the same,
 * it had nothing in between. 0: it has, or may have. -ESRCH: the ledger is no longer open, or cannot be read:
 * no rest will follow. */
int kj_ledger_watch_rests(struct kj_ledger_watch *watch, uint64_t *ret_calls);
/* Appends to its file. 0 or negative errno. */
int kj_ledger_watch_save(struct kj_ledger_watch *watch, const struct kj_ledger_rest *rest);

#endif
