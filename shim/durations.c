/* SPDX-License-Identifier: Apache-2.0
 *
 * durations.c - how long a launch is taken to have run, where its own bracket does not tell well. Everything
 * here is called under the context's lock.
 *
 * A host that returns late from a copy, or is preempted before it records the end event, finds an idle
 * stream, and the event is stamped then: of the launch it is only known that it was over. A late one takes
 * the mean of the others that do the same (activity and size), within its own bounds.
 *
 * Copies: such brackets are never too short, so the shortest tells which ones are late. Bounds are the
 * bracket's own, for the copy may have been slow itself.
 *
 * Kernels: brackets.c knows which end events were late, and which brackets leave next to nothing open. What
 * holds a thread up does not depend on how long a kernel runs. So where enough of the latter are known, a
 * late one ran no longer than the longest of them, and no shorter than the shortest. But a kernel that is
 * over before a prompt end event is recorded is never among them: once any bracket is shorter than the
 * shortest of them, nothing says how short a late one may have been.
 *
 * All of that may be learned late: what the ledger says of the late ones before is corrected each time.
 */
#include "timing.h"

#define ENOUGH     8     /* brackets that leave next to nothing open */
#define LATE_NS    20000 /* longer than twice the shortest by more than a wait may end late: it is late */
#define SIZE_SMALL 12    /* copies of up to 2^12 bytes take about the same time */

static bool is_copy(const struct kj_pair *pair)
{
    return pair->call == KJ_CALL_COPY || pair->call == KJ_CALL_COPY_ASYNC;
}

/* Sizes within a factor of two are alike. */
static uint8_t size_of(const struct kj_pair *pair)
{
    return is_copy(pair) && pair->bytes >> SIZE_SMALL ? (uint8_t)(64 - __builtin_clzll(pair->bytes)) : 0;
}

/* NULL: nothing is known of its like, and its own bracket tells. */
static struct kj_alike *alike_of(struct kj_timing *timing, const struct kj_ledger_activity *activity,
                                 const struct kj_pair *pair, bool sure)
{
    const uint8_t size = size_of(pair);
    struct kj_alike *alike = &timing->alike[(pair->activity * 7 + size) % KJ_ALIKE];
    if (alike->used && alike->activity == pair->activity && alike->size == size)
        return alike;
    if (sure && !is_copy(pair))
        return NULL;
    *alike = (struct kj_alike){.used = true,
                               .activity = pair->activity,
                               .size = size,
                               .shortest_ns = UINT64_MAX,
                               .least_ns = INT64_MAX,
                               .least_high_ns = INT64_MAX};
    uint64_t timed = __atomic_load_n(&activity->timed, __ATOMIC_RELAXED);
    if (!timed || is_copy(pair))
        return alike;
    uint64_t open_ns = activity->over_ns + activity->under_ns;
    if (open_ns > timed * KJ_SURE_NS && open_ns > activity->sum_ns / KJ_SURE_PART)
        return alike; /* its place was another's meanwhile */
    alike->known = (struct kj_sum){.count = timed, .ns = activity->sum_ns};
    alike->sure = true;
    alike->least_ns = (int64_t)activity->min_ns - (int64_t)(activity->over_ns / timed);
    alike->most_ns = (int64_t)activity->max_ns + (int64_t)(activity->under_ns / timed);
    alike->least_high_ns = (int64_t)activity->min_ns;
    return alike;
}

static void add(struct kj_sum *sum, const struct kj_sum *more)
{
    sum->count += more->count;
    sum->ns += more->ns;
    sum->ns2 += more->ns2;
    sum->own.low_ns += more->own.low_ns;
    sum->own.high_ns += more->own.high_ns;
    sum->open.low_ns += more->open.low_ns;
    sum->open.high_ns += more->open.high_ns;
}

static uint64_t mean_of(const struct kj_sum *sum)
{
    return sum->ns / sum->count;
}

static int64_t clamp(int64_t ns, int64_t low_ns, int64_t high_ns)
{
    return ns < low_ns ? low_ns : ns > high_ns ? high_ns : ns;
}

/* Of `count` launches whose brackets leave so much open, by what the others of their kind took. */
static struct kj_open narrowed(const struct kj_alike *alike, struct kj_open own, int64_t count)
{
    if (!alike->sure || alike->known.count < ENOUGH)
        return own;
    int64_t least_ns = alike->least_high_ns < alike->least_ns ? 0 : count * alike->least_ns;
    struct kj_open open = {clamp(least_ns, own.low_ns, own.high_ns), own.high_ns};
    open.high_ns = clamp(count * alike->most_ns, open.low_ns, own.high_ns);
    return open;
}

/* What the ledger says of those that took the mean of the others, by what is known now. */
static void correct(struct kj_alike *alike, struct kj_ledger_activity *activity)
{
    struct kj_sum *late = &alike->late;
    int64_t count = (int64_t)late->count, was_ns = (int64_t)late->ns;
    if (!was_ns || !alike->known.count)
        return;
    struct kj_open open = narrowed(alike, late->own, count);
    int64_t ns = clamp(count * (int64_t)mean_of(&alike->known), open.low_ns, open.high_ns);
    int64_t more_ns = ns - was_ns;
    double part = (double)ns / (double)was_ns, ns2 = late->ns2 * part * part;
    __atomic_fetch_add(&activity->sum_ns, (uint64_t)more_ns, __ATOMIC_RELAXED);
    __atomic_fetch_sub(&activity->taken_ns, (uint64_t)more_ns, __ATOMIC_RELAXED);
    __atomic_fetch_add(&activity->over_ns, (uint64_t)(more_ns + late->open.low_ns - open.low_ns),
                       __ATOMIC_RELAXED);
    __atomic_fetch_add(&activity->under_ns, (uint64_t)(open.high_ns - late->open.high_ns - more_ns),
                       __ATOMIC_RELAXED);
    activity->sum_ns2 += ns2 - late->ns2;
    late->ns = (uint64_t)ns;
    late->ns2 = ns2;
    late->open = open;
}

static bool is_late(uint64_t ns, uint64_t shortest_ns)
{
    return ns > 2 * shortest_ns + LATE_NS;
}

/* Whether the bracket is one of those that tell about the others. */
static bool is_copy_believed(struct kj_alike *alike, uint64_t ns)
{
    if (alike->known.count && is_late(mean_of(&alike->known), ns)) {
        add(&alike->late, &alike->known);
        alike->known = (struct kj_sum){0};
    }
    if (ns < alike->shortest_ns)
        alike->shortest_ns = ns;
    return !is_late(ns, alike->shortest_ns);
}

static bool is_kernel_believed(struct kj_alike *alike, const struct kj_bracket *bracket)
{
    if (bracket->high_ns < alike->least_high_ns)
        alike->least_high_ns = bracket->high_ns;
    if (bracket->sure) {
        alike->least_ns = bracket->low_ns < alike->least_ns ? bracket->low_ns : alike->least_ns;
        alike->most_ns = bracket->high_ns > alike->most_ns ? bracket->high_ns : alike->most_ns;
        if (!alike->sure)
            alike->known = (struct kj_sum){0};
        alike->sure = true;
    }
    return alike->sure ? bracket->sure : !bracket->late;
}

struct kj_duration kj_duration_of(struct kj_timing *timing, struct kj_ledger_activity *activity,
                                  const struct kj_pair *pair, const struct kj_bracket *bracket)
{
    const bool first = pair->flags & KJ_INTERVAL_FIRST, copy = is_copy(pair);
    const struct kj_open own = {bracket->low_ns, bracket->high_ns};
    struct kj_alike *alike = first && !copy ? NULL : alike_of(timing, activity, pair, bracket->sure);
    bool believed =
        alike && (copy ? is_copy_believed(alike, (uint64_t)bracket->ns) : is_kernel_believed(alike, bracket));
    bool learned = alike && !believed && alike->known.count;
    struct kj_open open = learned ? narrowed(alike, own, 1) : own;
    int64_t ns = clamp(learned ? (int64_t)mean_of(&alike->known) : bracket->ns, open.low_ns, open.high_ns);
    if (alike && !first) { /* which is in sums of its own */
        const struct kj_sum one = {1, (uint64_t)ns, (double)ns * (double)ns, own, open};
        if (believed)
            add(&alike->known, &one);
        correct(alike, activity);
        if (!believed)
            add(&alike->late, &one);
    }
    return (struct kj_duration){.ns = (uint64_t)ns,
                                .taken_ns = pair->length_ns > ns ? (uint64_t)(pair->length_ns - ns) : 0,
                                .over_ns = (uint64_t)(ns - open.low_ns),
                                .under_ns = (uint64_t)(open.high_ns - ns)};
}
