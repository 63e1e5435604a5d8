/* SPDX-License-Identifier: Apache-2.0
 *
 * brackets.c - how long a launch ran, by the two events around it. Everything here is called under the
 * context's lock.
 *
 * The bracket, from the start event's time stamp to the end event's, holds more than the launch:
 *   - what one event takes of the stream, `event`: learned where the stream had work waiting, for there
 * nothing but two events lies between the end of one bracket and the start of the next;
 *   - where the stream was idle, the time from the start event to the launch. Both begin as soon as they are
 *     submitted, so on the host's clock that is the time between the two submissions.
 * So the launch began at the later of (start event + event) and (its own submission). A call submits at its
 * end, and from its return to the time stamp of an event on an idle stream it is always as long, whatever the
 * clocks show and however long a submission travels. That distance is the `reach`: seen at each event that
 * was recorded on an idle stream, never less elsewhere, moved by drift alone.
 *
 * A thread may be held up anywhere, and time after time: in a call before or after it has submitted, or
 * between two calls. So bounds rest on what that cannot change: nothing is stamped or begun before the call
 * that asks for it was made, and nothing is submitted after that call has returned. How long calls usually
 * take makes a bound tighter by no more than a call takes that nothing held up, RECORD_MOST_NS and
 * LAUNCH_MOST_NS. Where the end event may have found an idle stream, the launch may have ended at any time
 * before, and what its like took is believed (durations.c).
 *
 * Event times are read from the base event: that truncates start and end alike, so it is right on average,
 * where the difference of the two, truncated, would always be too short.
 */
#include "timing.h"

#define NEAR_NS   500 /* what is read of an event is good to that */
#define SPREAD_NS 300 /* of a submission's journey */
#define FRESH_NS  250 /* the reach may have drifted by that much, to tell more than the launch itself */
/* A start event that seems to have waited no longer: its thread, or the ones before, may have been held up.
 */
#define LOOSE_NS       5000
#define WINDOW_NS      5e6   /* times of events this far apart are compared */
#define BELIEVED_NS    5e5   /* and only while the clocks are tied that well */
#define ODD_CALL_NS    500   /* a call that takes so much more than twice the usual was held up */
#define LATE_NS        20000 /* a kernel's first launch starts no later after its call, on an idle device */
#define BUSY_NS        2000 /* recorded that long before the work ahead of it ended: there was work waiting */
#define EVENT_MOST_NS  20000
#define RECORD_MOST_NS 5000 /* of the host, where nothing holds it up */
#define LAUNCH_MOST_NS 10000
#define EVENT_OFF_NS   100 /* what is learned of them */
#define EVENTS_MEAN    64
#define SUBMITS_PART   4 /* a call rings the device in the last quarter of its time */

static int64_t drift_ns(const struct kj_reach *reach, uint64_t at_ns)
{
    uint64_t age_ns = at_ns > reach->at_ns ? at_ns - reach->at_ns : reach->at_ns - at_ns;
    return (int64_t)((double)age_ns * KJ_DRIFT_PPM * 1e-6);
}

/* Whether a call took about as long as such calls do. *usual_ns follows their median. */
static bool as_usual(uint32_t *usual_ns, uint64_t took_ns)
{
    uint32_t took = took_ns < UINT32_MAX / 4 ? (uint32_t)took_ns : UINT32_MAX / 4;
    bool usual = !*usual_ns || took <= 2 * *usual_ns + ODD_CALL_NS;
    uint32_t step = *usual_ns / 16 + 1;
    if (!*usual_ns || took < *usual_ns / 2)
        *usual_ns = (*usual_ns + took) / (*usual_ns ? 2 : 1) + 1;
    else
        *usual_ns = took > *usual_ns ? *usual_ns + step : *usual_ns - step;
    return usual;
}

/* Pairs of several streams are not seen in the order of their calls. */
static bool is_near(uint64_t a_ns, uint64_t b_ns)
{
    return (double)(a_ns > b_ns ? a_ns - b_ns : b_ns - a_ns) < WINDOW_NS;
}

/* The earliest of events on an idle stream, by the distance from their call's beginning to their stamp, tell
 * the reach: whatever held up the thread before it submitted, or the event, makes that longer. What held it
 * up afterwards shows in the time of the call, so the shortest of those calls count, by their mean. Returns
 * how many of the earliest there are, of *ret_all; 0: too few, or calls so long that they may all have been
 * held up. */
static unsigned settle(const struct kj_reach *reach, uint64_t now_ns, int64_t *ret_ns, uint32_t *ret_took_ns,
                       unsigned *ret_all)
{
    int64_t sum_ns = 0, first = INT64_MIN;
    unsigned kept = reach->kept < KJ_REACH_SEEN ? reach->kept : KJ_REACH_SEEN, near = 0, count = 0, all = 0;
    uint32_t took_ns = UINT32_MAX;
    for (unsigned i = 0; i < kept; i++) {
        const __typeof__(reach->seen[0]) *seen = &reach->seen[i];
        if (seen->ns - (int64_t)seen->took_ns > first && is_near(now_ns, seen->at_ns))
            first = seen->ns - (int64_t)seen->took_ns;
    }
    for (int pass = 0; pass < 2; pass++)
        for (unsigned i = 0; i < kept; i++) {
            const __typeof__(reach->seen[0]) *seen = &reach->seen[i];
            if (!is_near(now_ns, seen->at_ns))
                continue;
            all += !pass;
            if (seen->ns - (int64_t)seen->took_ns < first - 2 * NEAR_NS)
                continue;
            near += !pass;
            took_ns = !pass && seen->took_ns < took_ns ? seen->took_ns : took_ns;
            if (pass && seen->took_ns <= took_ns + NEAR_NS) {
                sum_ns += seen->ns - first;
                count++;
            }
        }
    *ret_all = all;
    if (near < 3 || took_ns > RECORD_MOST_NS)
        return 0;
    *ret_ns = first + sum_ns / (int64_t)count;
    *ret_took_ns = took_ns;
    return near;
}

/* The start event came right behind the end event before it: it had been waiting. */
static bool follows(const struct kj_pair *pair, int64_t start_ns)
{
    int64_t event_ns = atomic_load_explicit(&kj_event_ns, memory_order_relaxed);
    return pair->before_ns != INT64_MIN && start_ns <= pair->before_ns + event_ns + NEAR_NS;
}

void kj_bracket_seen(struct kj_timing *timing, struct kj_pair *pair)
{
    struct kj_reach *reach = &timing->reach;
    const struct kj_tie *tie = &timing->tie[pair->base];
    __typeof__(timing->newest[0]) *newest = &timing->newest[pair->stream_row % KJ_NEWEST];
    int64_t start_ns = pair->start_ns + tie->axis_ns;
    bool same = newest->stream_row == pair->stream_row;
    pair->before_ns = same ? newest->end_ns : INT64_MIN;
    if (same)
        newest->end_ns = start_ns + pair->length_ns;
    uint64_t took_ns = pair->called_ns - pair->launch_ns;
    pair->record_usual = as_usual(&reach->usual_record_ns, took_ns);
    as_usual(&reach->usual_call_ns[pair->call], pair->returned_ns - pair->called_ns);
    int64_t ns = (int64_t)pair->called_ns - start_ns;
    uint32_t took;
    if (!pair->record_usual || follows(pair, start_ns))
        return;
    if (took_ns > UINT32_MAX)
        return;
    reach->seen[reach->kept++ % KJ_REACH_SEEN] =
        (__typeof__(reach->seen[0])){ns, (uint32_t)took_ns, pair->called_ns};
    unsigned all, near = settle(reach, pair->called_ns, &ns, &took, &all);
    bool lower = reach->known && ns < reach->ns - NEAR_NS - drift_ns(reach, pair->called_ns);
    if (!near || (lower && (all < KJ_REACH_SEEN / 2 || near * 3 < all * 2)))
        return; /* or: these had to wait, unless most of them say otherwise */
    if (!reach->known && (!tie->tied || (double)(tie->hi_ns - tie->axis_ns - ns) > BELIEVED_NS))
        return; /* on a stream that always has work waiting, too, events may come evenly */
    reach->ns = ns;
    reach->took_ns = took;
    reach->at_ns = pair->called_ns;
    reach->known = true;
}

bool kj_bracket_event(struct kj_timing *timing, const struct kj_pair *pair, bool busy, uint32_t *event_ns)
{
    const struct kj_reach *reach = &timing->reach;
    if (pair->before_ns == INT64_MIN || pair->flags)
        return false;
    if (reach->known)
        busy = (int64_t)pair->called_ns - reach->ns + BUSY_NS + drift_ns(reach, pair->called_ns) <
               pair->before_ns;
    int64_t between_ns = pair->start_ns + timing->tie[pair->base].axis_ns - pair->before_ns;
    if (!busy || between_ns > EVENT_MOST_NS)
        return false;
    between_ns = between_ns > 0 ? between_ns : 0;
    if (!as_usual(&timing->usual_between_ns, (uint64_t)between_ns))
        return false; /* something else was in between */
    timing->between_ns += (uint64_t)between_ns;
    if (++timing->betweens % EVENTS_MEAN)
        return false;
    uint32_t mean_ns = (uint32_t)(timing->between_ns / EVENTS_MEAN);
    *event_ns = *event_ns == UINT32_MAX ? mean_ns : (3 * *event_ns + mean_ns) / 4;
    timing->between_ns = 0;
    return true;
}

/* When the work was submitted, on the host's clock: as far as is known, and the bounds. */
struct submission {
    int64_t best_ns, low_ns, high_ns;
};

static struct submission submission_of(const struct kj_reach *reach, const struct kj_pair *pair, bool waited)
{
    int64_t called_ns = (int64_t)pair->called_ns, returned_ns = (int64_t)pair->returned_ns;
    int64_t took_ns = returned_ns - called_ns, usual_ns = reach->usual_call_ns[pair->call];
    int64_t part_ns = took_ns / SUBMITS_PART;
    if (waited) { /* the rest of the call is the work itself */
        usual_ns = reach->usual_call_ns[KJ_CALL_KERNEL];
        part_ns = usual_ns && usual_ns < part_ns ? usual_ns : part_ns;
        return (struct submission){called_ns + part_ns, called_ns, returned_ns};
    }
    /* What a graph holds may be submitted piece by piece, and a call that takes longer may be held up behind
     * its submission. */
    bool at_end = pair->call != KJ_CALL_GRAPH && took_ns <= LAUNCH_MOST_NS;
    usual_ns = usual_ns && usual_ns < took_ns ? usual_ns : took_ns;
    return (struct submission){
        returned_ns, at_end ? called_ns + usual_ns - usual_ns / SUBMITS_PART : called_ns, returned_ns};
}

static int64_t later(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* From the host's clock to the events', at the least and at the most: by what is known of the clocks, and by
 * the start event, which is stamped no earlier than it was asked for. */
struct distance {
    int64_t low_ns, high_ns;
};

static struct distance distance_of(const struct kj_tie *tie, const struct kj_pair *pair, int64_t start_ns)
{
    uint64_t age_ns = tie->at_ns > pair->launch_ns ? tie->at_ns - pair->launch_ns : 0;
    int64_t drift = (int64_t)((double)age_ns * KJ_DRIFT_PPM * 1e-6),
            own_ns = start_ns - (int64_t)pair->launch_ns;
    int64_t high_ns = tie->axis_ns - tie->lo_ns + drift, low_ns = tie->axis_ns - tie->hi_ns - drift;
    return (struct distance){low_ns, own_ns < high_ns ? own_ns : high_ns};
}

/* The same on the events' clock. busy: the stream had work waiting when the start event was recorded, by what
 * is known of the clocks alone. */
static struct submission start_of(const struct kj_reach *reach, const struct kj_pair *pair,
                                  const struct submission *host, int64_t start_ns, struct distance distance,
                                  bool busy)
{
    int64_t called_ns = (int64_t)pair->called_ns, drift = drift_ns(reach, pair->called_ns);
    int64_t waited_ns = reach->ns + start_ns - called_ns;
    bool idle = !follows(pair, start_ns) && (reach->known ? waited_ns <= LOOSE_NS + drift : !busy);
    if (reach->known && (!idle || !pair->record_usual)) {
        int64_t off_ns = SPREAD_NS + drift;
        return (struct submission){host->best_ns - reach->ns, host->low_ns - reach->ns - off_ns,
                                   host->high_ns - reach->ns + off_ns};
    }
    /* Nothing begins before its start event. */
    int64_t low_ns = later(start_ns, host->low_ns + distance.low_ns), moved_ns = start_ns - called_ns;
    if (!idle) /* the launch may have come later still, where its thread was held up, or all waited briefly */
        return (struct submission){later(start_ns, host->best_ns + (distance.low_ns + distance.high_ns) / 2),
                                   low_ns, later(start_ns, host->high_ns + distance.high_ns)};
    bool sure = reach->known && waited_ns <= NEAR_NS + drift && drift <= FRESH_NS;
    int64_t held_ns = called_ns - (int64_t)pair->launch_ns - (reach->known ? (int64_t)reach->took_ns : 0);
    return (struct submission){later(low_ns, host->best_ns + moved_ns),
                               sure ? host->low_ns + moved_ns - SPREAD_NS : low_ns,
                               host->high_ns + moved_ns + later(held_ns, 0) + SPREAD_NS};
}

struct kj_bracket kj_bracket_of(const struct kj_timing *timing, const struct kj_ledger_activity *activity,
                                const struct kj_pair *pair, bool busy, bool event_known)
{
    const struct kj_reach *reach = &timing->reach;
    int64_t event_ns = atomic_load_explicit(&kj_event_ns, memory_order_relaxed);
    int64_t start_ns = pair->start_ns + timing->tie[pair->base].axis_ns, end_ns = start_ns + pair->length_ns;
    bool copy = pair->call == KJ_CALL_COPY || pair->call == KJ_CALL_COPY_ASYNC;
    const struct distance distance = distance_of(&timing->tie[pair->base], pair, start_ns);
    /* May the stream have been idle when the end event was recorded? Then the work was over by then. */
    bool known = reach->known && !copy;
    int64_t marked_ns = (int64_t)pair->marked_ns + (known ? -reach->ns : distance.high_ns);
    bool over = end_ns <= marked_ns + NEAR_NS + (known ? drift_ns(reach, pair->marked_ns) : 0);
    /* And was it recorded late, so that its stamp shows when the host recorded it, not when the launch ended?
     */
    int64_t guess_ns = known ? -reach->ns : start_ns - (int64_t)pair->called_ns;
    bool late = over && pair->marked_ns - pair->called_ns > LAUNCH_MOST_NS &&
                end_ns > (int64_t)pair->marked_ns + guess_ns - RECORD_MOST_NS;
    const struct submission host = submission_of(reach, pair, copy && over);
    const struct submission start = start_of(reach, pair, &host, start_ns, distance, busy);
    /* Such a call alone surely returns no earlier than its copy ends. */
    bool waits = pair->call == KJ_CALL_COPY && activity->kind == KJ_ACTIVITY_MEMCPY_DTOH;
    if (waits && over && (int64_t)pair->returned_ns + distance.high_ns < end_ns)
        end_ns = (int64_t)pair->returned_ns + distance.high_ns;
    bool mixed = pair->flags & KJ_INTERVAL_MIXED; /* what ends before it may be another's, begun after it */
    int64_t ready_ns = mixed ? start_ns + event_ns : later(start_ns + event_ns, pair->before_ns);
    int64_t begun_ns = later(ready_ns, start.best_ns);
    struct kj_bracket b = {.ns = end_ns - begun_ns,
                           .low_ns = over ? 0 : end_ns - later(ready_ns, start.high_ns),
                           .high_ns = end_ns - later(ready_ns, start.low_ns),
                           .late = late,
                           .early = over};
    if (start.best_ns < ready_ns) {
        b.low_ns -= event_known ? EVENT_OFF_NS : event_ns;
        b.high_ns += event_known ? EVENT_OFF_NS : event_ns;
    }
    if (pair->flags & KJ_INTERVAL_FIRST)
        b.low_ns -= LATE_NS;
    b.low_ns = mixed ? 0 : later(b.low_ns, 0);
    b.high_ns = later(b.high_ns, b.low_ns);
    b.ns = b.ns > b.low_ns && !mixed && (!late || copy) ? b.ns : (b.low_ns + b.high_ns) / 2;
    b.ns = b.ns < b.high_ns ? b.ns : b.high_ns;
    b.sure = !over && !mixed && b.high_ns - b.low_ns <= later(KJ_SURE_NS, b.ns / KJ_SURE_PART);
    b.end_ns = over ? begun_ns + b.ns : end_ns;
    return b;
}
