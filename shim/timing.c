/* SPDX-License-Identifier: Apache-2.0
 *
 * timing.c - times launches by event pairs, in bursts. Nothing here waits: what is not finished is looked at
 * again later.
 */
#include "timing.h"

#include <sched.h>
#include <string.h>

#define BASE_LIFE_NS 2000000000u
#define QUEUED_NS    20000 /* executed that long after it was recorded, an event had to wait for the device */
#define COARSE_MS    4096  /* from there on a float of milliseconds is coarser than 0.25 us */

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

static void make_pairs(struct kj_ledger_header *ledger, const struct kj_context *context,
                       struct kj_timing *timing)
{
    uint64_t begun_ns = kj_now_ns();
    for (int i = 0; i < KJ_PAIRS_BATCH && timing->made < KJ_PAIRS_CAP; i++) {
        struct kj_pair *pair = &timing->pairs[timing->made];
        if (kj_context_event(context, &pair->start))
            break;
        if (kj_context_event(context, &pair->end)) {
            kj_driver.cuEventDestroy_v2(pair->start);
            break;
        }
        timing->free[timing->free_count++] = (uint16_t)timing->made++;
    }
    kj_self_time_add(ledger, kj_now_ns() - begun_ns);
}

static CUresult record(CUevent event, CUstream stream, int lane)
{
    if (lane && kj_driver.cuEventRecord_ptsz)
        return kj_driver.cuEventRecord_ptsz(event, stream);
    return kj_driver.cuEventRecord(event, stream);
}

static struct kj_ledger_context *context_row(struct kj_ledger_header *ledger,
                                             const struct kj_context *context)
{
    return (struct kj_ledger_context *)kj_section(ledger, KJ_SECTION_CONTEXTS) + kj_context_row(context);
}

/* Makes sure that there is a base event to measure from, and renews it now and then. Under the context's
 * lock. */
static bool base_ready(struct kj_ledger_header *ledger, struct kj_context *context, CUstream stream, int lane,
                       uint64_t now_ns)
{
    struct kj_timing *timing = kj_context_timing(context);
    struct kj_tie *tie = &timing->tie[timing->base];
    if (tie->recorded && now_ns - tie->recorded_ns < BASE_LIFE_NS)
        return true;
    struct kj_tie *next = tie->recorded ? &timing->tie[timing->base ^ 1] : tie;
    if (next->pending)
        return true; /* the other one is still in use: renew later */
    if (!next->event && kj_context_event(context, &next->event))
        return false;
    if (record(next->event, stream, lane))
        return false;
    context_row(ledger, context)->retied += next != tie;
    kj_tie_begin(next, now_ns);
    timing->base = (uint8_t)(next - timing->tie);
    return true;
}

static bool driver_can_time(void)
{
    return kj_driver.cuEventCreate && kj_driver.cuEventRecord && kj_driver.cuEventElapsedTime &&
           kj_driver.cuEventDestroy_v2 && kj_real_of(KJ_HOOK_cuEventQuery);
}

/* A pair from the pool, in its place in the ring. Under the context's lock. */
static struct kj_pair *take_pair(struct kj_timing *timing, CUstream stream, uint16_t stream_row,
                                 uint64_t now_ns, bool burst)
{
    uint16_t index = timing->free[--timing->free_count];
    struct kj_pair *pair = &timing->pairs[index];
    __typeof__(timing->newest[0]) *newest = &timing->newest[stream_row % KJ_NEWEST];
    if (newest->stream_row != stream_row) {
        newest->stream_row = stream_row;
        newest->end_ns = INT64_MIN;
    }
    pair->stream = stream;
    pair->stream_row = stream_row;
    const bool mixed = atomic_fetch_add(&newest->open, 1); /* another thread is in between its two events */
    pair->mixed_at = atomic_fetch_add(&newest->mixed, mixed) + mixed;
    pair->launch_ns = now_ns;
    pair->base = timing->base;
    pair->thread_row = kj_self.row;
    pair->open = true;
    pair->seen = false;
    pair->flags = KJ_INTERVAL_ALONE | (mixed ? KJ_INTERVAL_MIXED : 0);
    if (burst) {
        uint32_t epoch = atomic_load_explicit(&kj_timing_epoch, memory_order_relaxed);
        bool gap = atomic_exchange_explicit(&timing->gap, false, memory_order_relaxed);
        pair->flags ^= KJ_INTERVAL_ALONE;
        pair->flags |= gap || timing->epoch != epoch ? KJ_INTERVAL_GAP_BEFORE : 0;
        timing->epoch = epoch;
    }
    timing->tie[pair->base].pending++;
    timing->pending[(timing->head + timing->count++) % KJ_PAIRS_CAP] = index;
    return pair;
}

struct kj_pair *kj_timing_start(struct kj_ledger_header *ledger, struct kj_context *context, CUstream stream,
                                int lane, bool burst)
{
    if (!kj_config.events || !driver_can_time())
        return NULL;
    struct kj_timing *timing = kj_context_timing(context);
    struct kj_pair *pair = NULL;
    if (!timing) {
        if (burst)
            kj_timing_gap(context);
        __atomic_fetch_add(&ledger->untimed_no_event, 1, __ATOMIC_RELAXED);
        return NULL;
    }
    uint16_t stream_row = kj_stream_row(ledger, context, stream, lane);
    __typeof__(timing->newest[0]) *newest = &timing->newest[stream_row % KJ_NEWEST];
    if (try_lock(timing)) {
        uint64_t now_ns = kj_now_ns();
        bool open = !atomic_load_explicit(&timing->closed, memory_order_relaxed);
        if (open && !timing->free_count)
            make_pairs(ledger, context, timing);
        if (open && timing->free_count && base_ready(ledger, context, stream, lane, now_ns))
            pair = take_pair(timing, stream, stream_row, now_ns, burst);
        unlock(timing);
    }
    if (!pair) {
        if (newest->stream_row == stream_row && atomic_load(&newest->open))
            atomic_fetch_add(&newest->mixed, 1);
        if (burst)
            kj_timing_gap(context);
        __atomic_fetch_add(&ledger->untimed_no_event, 1, __ATOMIC_RELAXED);
        return NULL;
    }
    if (record(pair->start, stream, lane)) { /* is it another context's stream than we took it for? */
        kj_timing_cancel(context, pair);
        kj_stream_forget(stream);
        kj_context_check(ledger);
        return NULL;
    }
    pair->called_ns = kj_now_ns();
    return pair;
}

void kj_timing_gap(struct kj_context *context)
{
    struct kj_timing *timing = kj_context_timing(context);
    if (unlikely(!timing)) /* then each context's next pair comes after a gap */
        atomic_fetch_add(&kj_timing_epoch, 1);
    else if (!atomic_load_explicit(&timing->gap, memory_order_relaxed))
        atomic_store_explicit(&timing->gap, true, memory_order_relaxed);
}

bool kj_timing_mark(struct kj_pair *pair, CUstream stream, int lane)
{
    kj_self.inside = true;
    pair->returned_ns = kj_now_ns();
    CUresult rc = record(pair->end, stream, lane);
    pair->marked_ns = kj_now_ns();
    kj_self.inside = false;
    return rc == CUDA_SUCCESS;
}

static void close_pair(struct kj_context *context, struct kj_pair *pair)
{
    __typeof__(kj_context_timing(context)->newest[0]) *newest =
        &kj_context_timing(context)->newest[pair->stream_row % KJ_NEWEST];
    if (atomic_load(&newest->mixed) != pair->mixed_at)
        pair->flags |= KJ_INTERVAL_MIXED;
    atomic_fetch_sub(&newest->open, 1);
}

void kj_timing_end(struct kj_context *context, struct kj_pair *pair, enum kj_call call, uint32_t activity,
                   uint64_t bytes, bool first)
{
    close_pair(context, pair);
    pair->bytes = bytes;
    pair->activity = activity;
    pair->call = (uint8_t)call;
    pair->flags |= first ? KJ_INTERVAL_FIRST : 0;
    __atomic_store_n(&pair->open, false, __ATOMIC_RELEASE);
    __atomic_fetch_add(&kj_self.ledger->timed_pairs, 1, __ATOMIC_RELAXED);
}

void kj_timing_cancel(struct kj_context *context, struct kj_pair *pair)
{
    close_pair(context, pair);
    pair->activity = UINT32_MAX; /* the harvest recycles it without a record */
    __atomic_store_n(&pair->open, false, __ATOMIC_RELEASE);
}

void kj_activity_timed(struct kj_ledger_header *ledger, uint32_t activity, const struct kj_duration *duration,
                       bool first)
{
    struct kj_ledger_activity *a =
        (struct kj_ledger_activity *)kj_section(ledger, KJ_SECTION_ACTIVITIES) + activity;
    uint64_t ns = duration->ns;
    if (first) {
        a->first_taken_ns = duration->taken_ns;
        a->first_over_ns = duration->over_ns;
        a->first_under_ns = duration->under_ns;
        a->first_ns = ns ? ns : 1;
        return;
    }
    /* Harvesters of two contexts may meet here; a lost update would cost one sample of a mean, but the count
     * must stay whole beside its sum, so both are added atomically. The square is good enough as it is. */
    __atomic_fetch_add(&a->sum_ns, ns, __ATOMIC_RELAXED);
    if (duration->taken_ns)
        __atomic_fetch_add(&a->taken_ns, duration->taken_ns, __ATOMIC_RELAXED);
    if (duration->over_ns)
        __atomic_fetch_add(&a->over_ns, duration->over_ns, __ATOMIC_RELAXED);
    if (duration->under_ns)
        __atomic_fetch_add(&a->under_ns, duration->under_ns, __ATOMIC_RELAXED);
    a->sum_ns2 += (double)ns * (double)ns;
    if (!a->min_ns || ns < a->min_ns)
        a->min_ns = ns;
    if (ns > a->max_ns)
        a->max_ns = ns;
    __atomic_fetch_add(&a->timed, 1, __ATOMIC_RELEASE);
}

enum { UNFINISHED, FINISHED, FAILED };

/* Asks the driver about one pair, and what it says narrows the tie. */
static int look(struct kj_ledger_header *ledger, struct kj_context *context, struct kj_pair *pair)
{
    struct kj_timing *timing = kj_context_timing(context);
    struct kj_tie *tie = &timing->tie[pair->base];
    uint32_t *conflicts = &context_row(ledger, context)->conflicts;
    float start_ms, end_ms, length_ms;
    CUresult rc = ((__typeof__(&cuEventQuery))kj_real_of(KJ_HOOK_cuEventQuery))(pair->end);
    if (rc == CUDA_ERROR_NOT_READY)
        return UNFINISHED;
    uint64_t seen_ns = kj_now_ns();
    if (!rc)
        rc = kj_driver.cuEventElapsedTime(&end_ms, tie->event, pair->end);
    if (!rc)
        rc = kj_driver.cuEventElapsedTime(&start_ms, tie->event, pair->start);
    length_ms = end_ms - start_ms;
    if (!rc && end_ms > COARSE_MS) /* a float is too coarse for the difference */
        rc = kj_driver.cuEventElapsedTime(&length_ms, pair->start, pair->end);
    if (rc == CUDA_ERROR_NOT_READY)
        return UNFINISHED;
    if (rc || length_ms < 0) {
        __atomic_fetch_add(&ledger->harvest_errors, 1, __ATOMIC_RELAXED);
        return FAILED;
    }
    pair->start_ns = (int64_t)((double)start_ms * 1e6 + 0.5);
    pair->length_ns = (int64_t)((double)length_ms * 1e6 + 0.5);
    pair->seen = true;
    if (!tie->continued)
        kj_tie_continue(tie, &timing->tie[pair->base ^ 1], seen_ns, conflicts);
    kj_tie_narrow(tie, pair, seen_ns, conflicts);
    kj_bracket_seen(timing, pair);
    return FINISHED;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static void publish(struct kj_ledger_header *ledger, struct kj_context *context, const struct kj_pair *pair)
{
    struct kj_timing *timing = kj_context_timing(context);
    struct kj_ledger_context *row = context_row(ledger, context);
    uint64_t error_ns;
    int64_t start_ns = kj_tie_host_ns(&timing->tie[pair->base], pair, &error_ns);
    bool busy = start_ns > (int64_t)(pair->called_ns + QUEUED_NS + error_ns);
    if (kj_bracket_event(timing, pair, busy, &row->event_ns))
        atomic_store_explicit(&kj_event_ns, row->event_ns, memory_order_relaxed);
    struct kj_ledger_activity *activity =
        (struct kj_ledger_activity *)kj_section(ledger, KJ_SECTION_ACTIVITIES) + pair->activity;
    const struct kj_bracket bracket =
        kj_bracket_of(timing, activity, pair, busy, row->event_ns != UINT32_MAX);
    const struct kj_duration duration = kj_duration_of(timing, activity, pair, &bracket);
    int64_t end_ns = start_ns + bracket.end_ns - pair->start_ns - timing->tie[pair->base].axis_ns;
    if (bracket.early)
        end_ns -= bracket.ns - (int64_t)duration.ns;
    row->placed++;
    row->error_sum_ns += error_ns;
    row->error_most_ns = error_ns > row->error_most_ns ? error_ns : row->error_most_ns;
    struct kj_ledger_interval interval = {
        .start_ns = (uint64_t)(end_ns - (int64_t)duration.ns),
        .end_ns = (uint64_t)end_ns,
        .launch_ns = pair->launch_ns,
        .activity = pair->activity,
        .stream = pair->stream_row,
        .thread = pair->thread_row,
        .flags = pair->flags,
        .context = kj_context_row(context),
        .taken_ns = (uint32_t)least(duration.taken_ns, UINT32_MAX),
        .unsure_ns = (uint32_t)least(duration.over_ns + duration.under_ns, UINT32_MAX),
    };
    kj_activity_timed(ledger, pair->activity, &duration, pair->flags & KJ_INTERVAL_FIRST);
    kj_interval_publish(ledger, &interval);
}

/* A pair that is not published leaves a hole in the timeline, or takes the mark of one with it: the pair
 * launched next has it then. `after`: how many places behind the head of the ring that one is. */
static void pass_gap_on(struct kj_timing *timing, const struct kj_pair *pair, unsigned after)
{
    if (pair->seen || pair->flags & KJ_INTERVAL_ALONE)
        return;
    if (after < timing->count)
        timing->pairs[timing->pending[(timing->head + after) % KJ_PAIRS_CAP]].flags |= KJ_INTERVAL_GAP_BEFORE;
    else
        atomic_store_explicit(&timing->gap, true, memory_order_relaxed);
}

/* Frees what is finished of the oldest `most` pairs (0: of all), in the order of their launches. Returns at
 * how many it looked. */
static unsigned collect(struct kj_ledger_header *ledger, struct kj_context *context, unsigned most)
{
    struct kj_timing *timing = kj_context_timing(context);
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
                                                   : look(ledger, context, pair);
        if (state != UNFINISHED) {
            timing->tie[pair->base].pending--;
            timing->free[timing->free_count++] = index;
            pass_gap_on(timing, pair, looked + 1);
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
    return looked;
}

void kj_timing_harvest(struct kj_ledger_header *ledger, struct kj_context *context, unsigned most)
{
    struct kj_timing *timing = kj_context_timing(context);
    if (!timing || !timing->count || atomic_load(&kj_captures) || !try_lock(timing))
        return;
    if (atomic_load_explicit(&timing->closed, memory_order_relaxed)) {
        unlock(timing);
        return;
    }
    uint64_t begun_ns = kj_now_ns();
    kj_self.inside = true;
    CUstreamCaptureMode mode =
        CU_STREAM_CAPTURE_MODE_RELAXED; /* our queries must not end a capture that begins meanwhile */
    if (kj_driver.cuThreadExchangeStreamCaptureMode)
        kj_driver.cuThreadExchangeStreamCaptureMode(&mode);
    uint32_t first = timing->free_count;
    unsigned looked = collect(ledger, context, most);
    /* Only now: the later of them have told best where the earlier ones lie on the host's clock. */
    for (uint32_t i = first; i < timing->free_count; i++)
        if (timing->pairs[timing->free[i]].seen)
            publish(ledger, context, &timing->pairs[timing->free[i]]);
    context_row(ledger, context)->tie_lo_ns = timing->tie[timing->base].lo_ns;
    context_row(ledger, context)->tie_hi_ns = timing->tie[timing->base].hi_ns;
    if (kj_driver.cuThreadExchangeStreamCaptureMode)
        kj_driver.cuThreadExchangeStreamCaptureMode(&mode);
    kj_self.inside = false;
    unlock(timing);
    kj_governor_harvested(ledger, kj_now_ns() - begun_ns, looked);
}

bool kj_timing_is_idle(const struct kj_context *context)
{
    const struct kj_timing *timing = kj_context_timing((struct kj_context *)context);
    return timing && !timing->count;
}

/* ---- the context's end
 * ------------------------------------------------------------------------------------------------ */

#define CLOSE_NS 100000000u

bool kj_timing_is_free(const struct kj_timing *timing)
{
    for (uint32_t i = 0; i < timing->count; i++)
        if (__atomic_load_n(&timing->pairs[timing->pending[(timing->head + i) % KJ_PAIRS_CAP]].open,
                            __ATOMIC_ACQUIRE))
            return false;
    return true;
}

void kj_timing_close(struct kj_timing *timing)
{
    const uint64_t until_ns = kj_now_ns() + CLOSE_NS;
    bool locked;
    while (!(locked = try_lock(timing)) && kj_now_ns() < until_ns)
        sched_yield();
    atomic_store(&timing->closed, true);
    if (locked)
        unlock(timing);
    while (!kj_timing_is_free(timing) && kj_now_ns() < until_ns)
        sched_yield();
}

void kj_timing_open(struct kj_timing *timing)
{
    atomic_store(&timing->closed, false);
}

uint32_t kj_timing_abandon(struct kj_timing *timing)
{
    uint32_t lost = 0;
    atomic_store(&timing->closed, true); /* until it is another context's */
    for (uint32_t i = 0; i < timing->count; i++)
        lost += timing->pairs[timing->pending[(timing->head + i) % KJ_PAIRS_CAP]].activity != UINT32_MAX;
    if (lost)
        atomic_fetch_add(&kj_timing_epoch, 1); /* a gap before whatever is timed next */
    return lost;
}
