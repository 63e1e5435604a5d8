/* SPDX-License-Identifier: Apache-2.0
 *
 * timing.c - times launches by event pairs, in bursts. Nothing here waits: what is not finished is looked at
 * again later.
 */
#include "timing.h"

#include <string.h>

#define BASE_LIFE_NS 2000000000u

static bool try_lock(struct kj_timing *timing)
{
    for (int i = 0; i < 64; i++)
        if (!atomic_flag_test_and_set_explicit(&timing->lock, memory_order_acquire))
            return true;
    return false;
}

static void unlock(struct kj_timing *timing)
{
    atomic_flag_clear_explicit(&timing->lock, memory_order_release);
}

void kj_timing_init(struct kj_timing *timing)
{
    memset(timing, 0, sizeof(*timing));
    atomic_flag_clear(&timing->lock);
}

static void make_pairs(struct kj_timing *timing)
{
    for (int i = 0; i < KJ_PAIRS_BATCH && timing->made < KJ_PAIRS_CAP; i++) {
        struct kj_pair *pair = &timing->pairs[timing->made];
        if (kj_driver.cuEventCreate(&pair->start, CU_EVENT_DEFAULT))
            return;
        if (kj_driver.cuEventCreate(&pair->end, CU_EVENT_DEFAULT)) {
            kj_driver.cuEventDestroy_v2(pair->start);
            return;
        }
        timing->free[timing->free_count++] = (uint16_t)timing->made++;
    }
}

static CUresult record(CUevent event, CUstream stream, int lane)
{
    if (lane && kj_driver.cuEventRecord_ptsz)
        return kj_driver.cuEventRecord_ptsz(event, stream);
    return kj_driver.cuEventRecord(event, stream);
}

/* Makes sure that there is a base event to measure from, and renews it now and then. Under the context's
 * lock. */
static bool base_ready(struct kj_timing *timing, CUstream stream, int lane, uint64_t now_ns)
{
    struct kj_tie *tie = &timing->tie[timing->base];
    if (tie->recorded && now_ns - tie->recorded_ns < BASE_LIFE_NS)
        return true;
    struct kj_tie *next = tie->recorded ? &timing->tie[timing->base ^ 1] : tie;
    if (next->pending)
        return true; /* the other one is still in use: renew later */
    if (!next->event && kj_driver.cuEventCreate(&next->event, CU_EVENT_DEFAULT))
        return false;
    if (record(next->event, stream, lane))
        return false;
    next->recorded = true;
    next->recorded_ns = now_ns;
    next->lo_ns = (int64_t)now_ns;
    next->hi_ns = INT64_MAX;
    timing->base = (uint8_t)(next - timing->tie);
    return true;
}

static bool driver_can_time(void)
{
    return kj_driver.cuEventCreate && kj_driver.cuEventRecord && kj_driver.cuEventElapsedTime &&
           kj_driver.cuEventDestroy_v2 && kj_real_of(KJ_HOOK_cuEventQuery);
}

struct kj_pair *kj_timing_start(struct kj_ledger_header *ledger, struct kj_context *context, CUstream stream,
                                int lane)
{
    if (!kj_config.events || !driver_can_time())
        return NULL;
    struct kj_timing *timing = kj_context_timing(context);
    if (!try_lock(timing)) {
        __atomic_fetch_add(&ledger->untimed_no_event, 1, __ATOMIC_RELAXED);
        return NULL;
    }
    struct kj_pair *pair = NULL;
    uint64_t now_ns = kj_now_ns();
    if (!timing->free_count)
        make_pairs(timing);
    if (!timing->free_count) {
        __atomic_fetch_add(&ledger->untimed_no_event, 1, __ATOMIC_RELAXED);
    } else if (base_ready(timing, stream, lane, now_ns)) {
        pair = &timing->pairs[timing->free[--timing->free_count]];
        pair->stream = stream;
        pair->launch_ns = now_ns;
        pair->base = timing->base;
        pair->thread_row = kj_self.row;
        pair->open = true;
        uint32_t epoch = atomic_load_explicit(&kj_timing_epoch, memory_order_relaxed);
        pair->flags = timing->epoch == epoch ? 0 : KJ_INTERVAL_GAP_BEFORE;
        timing->epoch = epoch;
        timing->tie[pair->base].pending++;
        timing->pending[(timing->head + timing->count++) % KJ_PAIRS_CAP] = (uint16_t)(pair - timing->pairs);
    }
    unlock(timing);
    if (!pair)
        return NULL;
    pair->stream_row = kj_stream_row(ledger, context, stream, lane);
    if (record(pair->start, stream, lane)) {
        kj_timing_cancel(context, pair);
        return NULL;
    }
    return pair;
}

bool kj_timing_mark(struct kj_pair *pair, CUstream stream, int lane)
{
    kj_self.inside = true;
    CUresult rc = record(pair->end, stream, lane);
    kj_self.inside = false;
    return rc == CUDA_SUCCESS;
}

void kj_timing_end(struct kj_context *context, struct kj_pair *pair, uint32_t activity, bool first)
{
    (void)context;
    pair->activity = activity;
    if (first)
        pair->flags |= KJ_INTERVAL_FIRST;
    __atomic_store_n(&pair->open, false, __ATOMIC_RELEASE);
    __atomic_fetch_add(&kj_self.ledger->timed_pairs, 1, __ATOMIC_RELAXED);
}

void kj_timing_cancel(struct kj_context *context, struct kj_pair *pair)
{
    (void)context;
    pair->activity = UINT32_MAX; /* the harvest recycles it without a record */
    __atomic_store_n(&pair->open, false, __ATOMIC_RELEASE);
}

void kj_activity_timed(struct kj_ledger_header *ledger, uint32_t activity, uint64_t ns, bool first)
{
    struct kj_ledger_activity *a =
        (struct kj_ledger_activity *)kj_section(ledger, KJ_SECTION_ACTIVITIES) + activity;
    if (first) {
        a->first_ns = ns ? ns : 1;
        return;
    }
    /* Harvesters of two contexts may meet here; a lost update would cost one sample of a mean, but the count
     * must stay whole beside its sum, so both are added atomically. The square is good enough as it is. */
    __atomic_fetch_add(&a->sum_ns, ns, __ATOMIC_RELAXED);
    a->sum_ns2 += (double)ns * (double)ns;
    if (!a->min_ns || ns < a->min_ns)
        a->min_ns = ns;
    if (ns > a->max_ns)
        a->max_ns = ns;
    __atomic_fetch_add(&a->timed, 1, __ATOMIC_RELEASE);
}

/* Narrows where the base lies, by one event seen complete. Under the context's lock. */
static void tie_narrow(struct kj_ledger_header *ledger, struct kj_context *context, struct kj_tie *tie,
                       const struct kj_pair *pair, int64_t start_ns, int64_t end_ns, uint64_t seen_ns)
{
    int64_t lo = (int64_t)pair->launch_ns - start_ns, hi = (int64_t)seen_ns - end_ns;
    if (lo > tie->lo_ns)
        tie->lo_ns = lo;
    if (hi < tie->hi_ns)
        tie->hi_ns = hi;
    if (tie->lo_ns > tie->hi_ns) /* the clocks drifted apart: believe the newest */
        tie->lo_ns = lo, tie->hi_ns = hi;
    struct kj_ledger_context *row =
        (struct kj_ledger_context *)kj_section(ledger, KJ_SECTION_CONTEXTS) + kj_context_row(context);
    row->tie_lo_ns = tie->lo_ns;
    row->tie_hi_ns = tie->hi_ns;
    row->retied++;
}

enum { UNFINISHED, FINISHED, FAILED };

static int collect(struct kj_ledger_header *ledger, struct kj_context *context, struct kj_timing *timing,
                   struct kj_pair *pair)
{
    struct kj_tie *tie = &timing->tie[pair->base];
    float start_ms, length_ms;
    CUresult rc = ((__typeof__(&cuEventQuery))kj_real_of(KJ_HOOK_cuEventQuery))(pair->end);
    if (rc == CUDA_ERROR_NOT_READY)
        return UNFINISHED;
    uint64_t seen_ns = kj_now_ns();
    if (!rc)
        rc = kj_driver.cuEventElapsedTime(&length_ms, pair->start, pair->end);
    if (!rc)
        rc = kj_driver.cuEventElapsedTime(&start_ms, tie->event, pair->start);
    if (rc == CUDA_ERROR_NOT_READY)
        return UNFINISHED;
    if (rc || length_ms < 0) {
        __atomic_fetch_add(&ledger->harvest_errors, 1, __ATOMIC_RELAXED);
        return FAILED;
    }
    int64_t start_ns = (int64_t)((double)start_ms * 1e6);
    int64_t length_ns = (int64_t)((double)length_ms * 1e6 + 0.5);
    tie_narrow(ledger, context, tie, pair, start_ns, start_ns + length_ns, seen_ns);
    int64_t base_ns = tie->lo_ns + (tie->hi_ns - tie->lo_ns) / 2;
    struct kj_ledger_interval interval = {
        .start_ns = (uint64_t)(base_ns + start_ns),
        .end_ns = (uint64_t)(base_ns + start_ns + length_ns),
        .launch_ns = pair->launch_ns,
        .activity = pair->activity,
        .stream = pair->stream_row,
        .thread = pair->thread_row,
        .flags = pair->flags,
        .context = kj_context_row(context),
    };
    kj_activity_timed(ledger, pair->activity, (uint64_t)length_ns, pair->flags & KJ_INTERVAL_FIRST);
    kj_interval_publish(ledger, &interval);
    return FINISHED;
}

void kj_timing_harvest(struct kj_ledger_header *ledger, struct kj_context *context, unsigned most)
{
    struct kj_timing *timing = kj_context_timing(context);
    if (!timing->count || atomic_load(&kj_captures) || !try_lock(timing))
        return;
    uint64_t begun_ns = kj_now_ns();
    kj_self.inside = true;
    CUstreamCaptureMode mode =
        CU_STREAM_CAPTURE_MODE_RELAXED; /* our queries must not end a capture that begins meanwhile */
    if (kj_driver.cuThreadExchangeStreamCaptureMode)
        kj_driver.cuThreadExchangeStreamCaptureMode(&mode);
    CUstream behind[16]; /* streams whose oldest pair is unfinished */
    unsigned behind_count = 0, kept = 0, looked = 0, count = timing->count;
    for (; looked < count && (!most || looked < most) && behind_count < 16; looked++) {
        uint16_t index = timing->pending[(timing->head + looked) % KJ_PAIRS_CAP];
        struct kj_pair *pair = &timing->pairs[index];
        bool blocked = __atomic_load_n(&pair->open, __ATOMIC_ACQUIRE);
        for (unsigned i = 0; i < behind_count && !blocked; i++)
            blocked = behind[i] == pair->stream;
        int state = blocked                        ? UNFINISHED
                    : pair->activity == UINT32_MAX ? FAILED
                                                   : collect(ledger, context, timing, pair);
        if (state != UNFINISHED) {
            timing->tie[pair->base].pending--;
            timing->free[timing->free_count++] = index;
            continue;
        }
        if (!blocked)
            behind[behind_count++] = pair->stream;
        timing->pending[(timing->head + kept++) % KJ_PAIRS_CAP] = index;
    }
    /* Close the gap: move what was kept up against what was not looked at. */
    for (unsigned i = 0; i < kept; i++)
        timing->pending[(timing->head + looked - 1 - i) % KJ_PAIRS_CAP] =
            timing->pending[(timing->head + kept - 1 - i) % KJ_PAIRS_CAP];
    timing->head = (timing->head + looked - kept) % KJ_PAIRS_CAP;
    timing->count = count - (looked - kept);
    if (kj_driver.cuThreadExchangeStreamCaptureMode)
        kj_driver.cuThreadExchangeStreamCaptureMode(&mode);
    kj_self.inside = false;
    unlock(timing);
    kj_self_time_add(ledger, kj_now_ns() - begun_ns);
}

void kj_timing_drop(struct kj_timing *timing)
{
    if (!try_lock(timing))
        return; /* another thread is inside: leave the events to the context's end */
    kj_self.inside = true;
    for (uint32_t i = 0; i < timing->made; i++) {
        kj_driver.cuEventDestroy_v2(timing->pairs[i].start);
        kj_driver.cuEventDestroy_v2(timing->pairs[i].end);
    }
    for (int i = 0; i < 2; i++)
        if (timing->tie[i].event)
            kj_driver.cuEventDestroy_v2(timing->tie[i].event);
    kj_self.inside = false;
    kj_timing_init(timing); /* unlocks too */
}
