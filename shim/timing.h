/* SPDX-License-Identifier: Apache-2.0
 *
 * timing.h - event pairs of one context: a bounded pool, those under way, and the tie of event time to host
 * time.
 *
 * The tie: every event e of a context says where its base event lies in host time, without anybody waiting.
 * It cannot have happened before its record call was made, nor after it was first seen complete, so
 *     record_call(e) - elapsed(base, e) <= base <= seen_complete(e) - elapsed(base, e)
 * and the intersection over many events is a few microseconds wide. Clocks drift (50 ppm is 0.1 ms in 2 s),
 * so what is known loosens with time, and the base is renewed, by ties.c.
 */
#ifndef KJ_TIMING_H
#define KJ_TIMING_H

#include "shim.h"

enum { KJ_PAIRS_CAP = 2048, KJ_PAIRS_BATCH = 32 };
enum { KJ_NEWEST = 64 };
#define KJ_DRIFT_PPM 100 /* what the host's clock and a GPU's are taken to drift at most */

struct kj_pair {
    CUevent start, end;
    CUstream stream; /* as given: to skip others behind an unfinished one */
    /* Before the start event was recorded; between that and the launch call; after that; after the end event.
     */
    uint64_t launch_ns, called_ns, returned_ns, marked_ns;
    uint64_t bytes; /* of a copy or fill */
    uint32_t activity;
    uint32_t mixed_at; /* as its stream's when it began */
    uint16_t stream_row, thread_row;
    uint8_t flags;               /* enum kj_interval_flag */
    uint8_t base;                /* which base event it is measured from */
    bool open;                   /* start is recorded, end is not yet */
    uint8_t call;                /* enum kj_call */
    bool record_usual;           /* recording the start took no longer than it usually does */
    bool seen;                   /* finished: the two below are known */
    int64_t start_ns, length_ns; /* start from the base event */
    int64_t before_ns; /* end of the pair before it on its stream, on the axis; INT64_MIN not known */
};

struct kj_tie {
    CUevent event;
    bool recorded;
    bool continued;       /* what was known of the base before it has been taken over, or could not be */
    bool tied;            /* hi_ns is known */
    uint32_t pending;     /* pairs under way that are measured from it */
    int64_t lo_ns, hi_ns; /* host time of the base event, as of at_ns */
    int64_t axis_ns;      /* from the context's first base event to this one: one axis for all events */
    uint64_t recorded_ns, at_ns;
};

/* Host time at which a call returned, less that of an event which it recorded on an idle stream, on the axis:
 * brackets.c. */
enum { KJ_REACH_SEEN = 16 };
struct kj_reach {
    struct {
        int64_t ns;
        uint32_t took_ns; /* the call */
        uint64_t at_ns;
    } seen[KJ_REACH_SEEN];
    unsigned kept;
    bool known;
    int64_t ns;
    uint64_t at_ns;
    uint32_t took_ns; /* a call that recorded an event, where nothing held it up */
    uint32_t usual_record_ns, usual_call_ns[KJ_CALL_HOST];
};

/* Launches that do the same: durations.c. */
struct kj_open { /* the least and the most that launches may have taken */
    int64_t low_ns, high_ns;
};
struct kj_sum {
    uint64_t count, ns;
    double ns2;
    struct kj_open own, open; /* by their own brackets; and as they are in the ledger */
};
enum { KJ_ALIKE = 128 };
struct kj_alike {
    bool used;
    bool sure; /* known holds brackets alone that leave next to nothing open */
    uint8_t size;
    uint32_t activity;
    struct kj_sum known, late; /* those that are believed, and the others, as they are in the ledger */
    uint64_t shortest_ns;      /* copies: of the former */
    int64_t least_ns, most_ns; /* kernels: what the former took, by their bounds */
    int64_t least_high_ns;     /* and no bracket at all leaves less */
};

struct kj_timing {
    atomic_flag
        lock; /* held for short stretches of our own; taken by trying, never waited for on the launch path */
    atomic_bool closed; /* the context may be ending: no pair is taken, no event asked */
    uint32_t made;      /* pairs with events */
    uint32_t free_count, head, count;
    uint16_t free[KJ_PAIRS_CAP];
    uint16_t pending[KJ_PAIRS_CAP]; /* ring of pairs in the order of their launches */
    struct kj_pair pairs[KJ_PAIRS_CAP];
    struct kj_tie tie[2];
    uint8_t base; /* of new pairs */
    uint32_t epoch;
    atomic_bool gap; /* the next pair has untimed launches before it */
    /* Between a pair's end and the start of the next there is nothing but these two events. Where the device
     * had work waiting, the time from one to the other is what an event takes of it. */
    struct {
        int64_t end_ns; /* of the newest finished pair on the stream, on the axis; INT64_MIN: none */
        uint16_t stream_row;
        _Atomic uint32_t open, mixed; /* pairs that have begun and not ended; launches made among those */
    } newest[KJ_NEWEST];
    uint64_t between_ns, betweens;
    uint32_t usual_between_ns;
    struct kj_reach reach;
    struct kj_alike alike[KJ_ALIKE];
};

void kj_timing_init(struct kj_timing *timing);
/* A base event has just been recorded. */
void kj_tie_begin(struct kj_tie *tie, uint64_t now_ns);
/* Once it is complete: takes over what is known of the one before it. */
void kj_tie_continue(struct kj_tie *tie, const struct kj_tie *before, uint64_t now_ns, uint32_t *conflicts);
/* Narrows where the base lies, by a pair seen finished. */
void kj_tie_narrow(struct kj_tie *tie, const struct kj_pair *pair, uint64_t seen_ns, uint32_t *conflicts);
/* When the pair started, and how far off that may be either way. */
int64_t kj_tie_host_ns(const struct kj_tie *tie, const struct kj_pair *pair, uint64_t *ret_error_ns);
/* A pair is finished, and its times are known: what they tell of submissions. */
void kj_bracket_seen(struct kj_timing *timing, struct kj_pair *pair);
/* In the order of a stream, before it is published: the time between it and the pair before it, where the
 * stream had work waiting (busy), tells what an event takes. True: *event_ns, UINT32_MAX while it is not
 * known, has changed. */
bool kj_bracket_event(struct kj_timing *timing, const struct kj_pair *pair, bool busy, uint32_t *event_ns);
/* Of a bracket that tells about others no more is open than that, or than that part of it. */
#define KJ_SURE_NS   5000
#define KJ_SURE_PART 8
/* How long the launch itself ran, and the least and the most that may be. */
struct kj_bracket {
    int64_t end_ns; /* on the axis */
    int64_t ns, low_ns, high_ns;
    bool sure;  /* it leaves next to nothing open; else other launches tell more */
    bool late;  /* the end event was recorded late: the work was over by then, and no more is known of its end
                 */
    bool early; /* it may have ended before end_ns: then it is the start that is known */
};
/* busy: as far as the host's clock tells, the stream had work waiting. event_known: what an event takes is
 * learned, not guessed. */
struct kj_bracket kj_bracket_of(const struct kj_timing *timing, const struct kj_ledger_activity *activity,
                                const struct kj_pair *pair, bool busy, bool event_known);
/* What it is taken to have run, with what its like tell. May correct what the ledger says of those. */
struct kj_duration kj_duration_of(struct kj_timing *timing, struct kj_ledger_activity *activity,
                                  const struct kj_pair *pair, const struct kj_bracket *bracket);
/* The context is about to end, or may be. Returns once nobody is at work on it any more; waits at most
 * 0.1 s. */
void kj_timing_close(struct kj_timing *timing);
void kj_timing_open(struct kj_timing *timing); /* it lives on */
/* The context has ended, and its events with it. Returns how many launches have lost their time. */
uint32_t kj_timing_abandon(struct kj_timing *timing);
/* Nobody holds a pair of it: it may be another context's. */
bool kj_timing_is_free(const struct kj_timing *timing);

#endif
