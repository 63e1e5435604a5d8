/* SPDX-License-Identifier: Apache-2.0
 *
 * timing.h - event pairs of one context: a bounded pool, those under way, and the tie of event time to host
 * time.
 *
 * The tie: every event e of a context says where its base event lies in host time, without anybody waiting.
 * It cannot have happened before its record call was made, nor after it was first seen complete, so
 *     record_call(e) - elapsed(base, e) <= base <= seen_complete(e) - elapsed(base, e)
 * and the intersection over many events is a few microseconds wide. Clocks drift (50 ppm is 0.1 ms in 2 s),
 * so the base is renewed.
 */
#ifndef KJ_TIMING_H
#define KJ_TIMING_H

#include "shim.h"

enum { KJ_PAIRS_CAP = 2048, KJ_PAIRS_BATCH = 32 };

struct kj_pair {
    CUevent start, end;
    CUstream stream; /* as given: to skip others behind an unfinished one */
    uint64_t launch_ns;
    uint32_t activity;
    uint16_t stream_row, thread_row;
    uint8_t flags; /* enum kj_interval_flag */
    uint8_t base;  /* which base event it is measured from */
    bool open;     /* start is recorded, end is not yet */
};

struct kj_tie {
    CUevent event;
    bool recorded;
    uint32_t pending;     /* pairs under way that are measured from it */
    int64_t lo_ns, hi_ns; /* host time of the base event */
    uint64_t recorded_ns;
};

struct kj_timing {
    atomic_flag
        lock; /* held for short stretches of our own; taken by trying, never waited for on the launch path */
    uint32_t made; /* pairs with events */
    uint32_t free_count, head, count;
    uint16_t free[KJ_PAIRS_CAP];
    uint16_t pending[KJ_PAIRS_CAP]; /* ring of pairs in the order of their launches */
    struct kj_pair pairs[KJ_PAIRS_CAP];
    struct kj_tie tie[2];
    uint8_t base; /* of new pairs */
    uint32_t epoch;
};

void kj_timing_init(struct kj_timing *timing);
/* Destroys the events; the context is still alive. */
void kj_timing_drop(struct kj_timing *timing);

#endif
