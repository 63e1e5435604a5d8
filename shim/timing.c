/* SPDX-License-Identifier: Apache-2.0
 *
 * timing.c - times launches by event pairs, in bursts. Nothing here waits: what is not finished is looked at
 * again later.
 */
#include "timing.h"

#include <sched.h>
#include <string.h>

#define BASE_LIFE_NS  2000000000u
#define QUEUED_NS     20000 /* launched that long before the one ahead of it ended: it waited for the device */
#define EVENT_MOST_NS 20000
#define EVENTS_MEAN   64

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
static struct kj_pair *take_pair(struct kj_timing *timing, CUstream stream, uint64_t now_ns, bool burst)
{
    uint16_t index = timing->free[--timing->free_count];
    struct kj_pair *pair = &timing->pairs[index];
    pair->stream = stream;
    pair->launch_ns = now_ns;
    pair->base = timing->base;
    pair->thread_row = kj_self.row;
    pair->open = true;
    pair->seen = false;
    pair->flags = KJ_INTERVAL_ALONE;
    if (burst) {
        uint32_t epoch = atomic_load_explicit(&kj_timing_epoch, memory_order_relaxed);
        bool gap = atomic_exchange_explicit(&timing->gap, false, memory_order_relaxed);
        pair->flags = gap || timing->epoch != epoch ? KJ_INTERVAL_GAP_BEFORE : 0;
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
    if (timing && try_lock(timing)) {
        uint64_t now_ns = kj_now_ns();
        bool open = !atomic_load_explicit(&timing->closed, memory_order_relaxed);
        if (open && !timing->free_count)
            make_pairs(ledger, context, timing);
        if (open && timing->free_count && base_ready(ledger, context, stream, lane, now_ns))
            pair = take_pair(timing, stream, now_ns, burst);
        unlock(timing);
    }
    if (!pair) {
        if (burst)
            kj_timing_gap(context);
        __atomic_fetch_add(&ledger->untimed_no_event, 1, __ATOMIC_RELAXED);
        return NULL;
    }
    pair->stream_row = kj_stream_row(ledger, context, stream, lane);
    if (record(pair->start, stream, lane)) { /* is it another context's stream than we took it for? */
        kj_timing_cancel(context, pair);
        kj_stream_forget(stream);
        kj_context_check(ledger);
        return NULL;
    }
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
    CUresult rc = record(pair->end, stream, lane);
    kj_self.inside = false;
    return rc == CUDA_SUCCESS;
}

void kj_timing_end(struct kj_context *context, struct kj_pair *pair, uint32_t activity, uint64_t returned_ns)
{
    (void)context;
    pair->activity = activity;
    if (returned_ns) {
        struct kj_ledger_activity *rows = kj_section(kj_self.ledger, KJ_SECTION_ACTIVITIES);
        uint64_t call_ns = returned_ns - pair->launch_ns;
        rows[activity].first_call_ns = call_ns < UINT32_MAX ? (uint32_t)call_ns : UINT32_MAX;
        pair->flags |= KJ_INTERVAL_FIRST;
    }
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

enum { UNFINISHED, FINISHED, FAILED };

/* Asks the driver about one pair, and what it says narrows the tie. */
static int look(struct kj_ledger_header *ledger, struct kj_context *context, struct kj_pair *pair)
{
    struct kj_timing *timing = kj_context_timing(context);
    struct kj_tie *tie = &timing->tie[pair->base];
    uint32_t *conflicts = &context_row(ledger, context)->conflicts;
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
    pair->start_ns = (int64_t)((double)start_ms * 1e6);
    pair->length_ns = (int64_t)((double)length_ms * 1e6 + 0.5);
    pair->seen = true;
    if (!tie->continued)
        kj_tie_continue(tie, &timing->tie[pair->base ^ 1], seen_ns, conflicts);
    kj_tie_narrow(tie, pair, seen_ns, conflicts);
    return FINISHED;
}

/* What an event takes of the device: timing.h. */
static void learn_event(struct kj_timing *timing, struct kj_ledger_context *row, const struct kj_pair *pair,
                        uint64_t start_ns)
{
    __typeof__(timing->newest[0]) *newest = &timing->newest[pair->stream_row % KJ_NEWEST];
    uint64_t before_ns = newest->stream_row == pair->stream_row ? newest->end_ns : 0;
    newest->stream_row = pair->stream_row;
    newest->end_ns = pair->flags & KJ_INTERVAL_ALONE ? 0 : start_ns + (uint64_t)pair->length_ns;
    bool waiting = pair->launch_ns + QUEUED_NS < before_ns;
    if (!waiting || pair->flags || start_ns > before_ns + EVENT_MOST_NS)
        return;
    timing->between_ns += start_ns > before_ns ? start_ns - before_ns : 0;
    if (++timing->betweens % EVENTS_MEAN)
        return;
    row->event_ns = (uint32_t)(timing->between_ns / EVENTS_MEAN);
    timing->between_ns = 0;
    atomic_store_explicit(&kj_event_ns, row->event_ns, memory_order_relaxed);
}

static void publish(struct kj_ledger_header *ledger, struct kj_context *context, const struct kj_pair *pair)
{
    struct kj_ledger_context *row = context_row(ledger, context);
    uint64_t error_ns;
    int64_t start_ns = kj_tie_host_ns(&kj_context_timing(context)->tie[pair->base], pair, &error_ns);
    learn_event(kj_context_timing(context), row, pair, (uint64_t)start_ns);
    row->placed++;
    row->error_sum_ns += error_ns;
    row->error_most_ns = error_ns > row->error_most_ns ? error_ns : row->error_most_ns;
    struct kj_ledger_interval interval = {
        .start_ns = (uint64_t)start_ns,
        .end_ns = (uint64_t)(start_ns + pair->length_ns),
        .launch_ns = pair->launch_ns,
        .activity = pair->activity,
        .stream = pair->stream_row,
        .thread = pair->thread_row,
        .flags = pair->flags,
        .context = kj_context_row(context),
    };
    kj_activity_timed(ledger, pair->activity, (uint64_t)pair->length_ns, pair->flags & KJ_INTERVAL_FIRST);
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
