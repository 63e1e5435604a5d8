/* SPDX-License-Identifier: Apache-2.0
 *
 * durations.c - how long a launch is taken to have run, where its own bracket does not tell well. Everything
 * here is called under the context's lock.
 *
 * A host that returns late from a copy, or is preempted before it records the end event, finds an idle
 * stream, and the event is stamped then: of the launch it is only known that it was over. Such brackets are
 * never too short, so among launches that do the same (activity and size) the shortest tells which ones are
 * late. A late one takes the mean of the others. Bounds stay those of its bracket, as it may have been slow
 * itself; but a kernel's bounds are those of its others, where brackets that leave nothing open tell them.
 *
 * The first may be late. When one much shorter comes, those before are corrected in the ledger.
 */
#include "timing.h"

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
    *alike = (struct kj_alike){.used = true, .activity = pair->activity, .size = size};
    uint64_t timed = __atomic_load_n(&activity->timed, __ATOMIC_RELAXED);
    if (timed && !is_copy(pair)) {
        alike->known = (struct kj_sum){timed, activity->sum_ns, activity->over_ns, activity->under_ns, 0};
        alike->sure = true;
    }
    return alike;
}

static void add(struct kj_sum *sum, const struct kj_duration *duration)
{
    sum->count++;
    sum->ns += duration->ns;
    sum->over_ns += duration->over_ns;
    sum->under_ns += duration->under_ns;
    sum->ns2 += (double)duration->ns * (double)duration->ns;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* What was told of unsure ones before is too long: they take ns each, as far as their bounds allow. */
static void correct(struct kj_alike *alike, struct kj_ledger_activity *activity, uint64_t ns)
{
    struct kj_sum *told = &alike->told;
    uint64_t wanted_ns = told->count * ns;
    uint64_t less_ns = told->ns > wanted_ns ? least(told->ns - wanted_ns, told->over_ns) : 0;
    if (!less_ns)
        return;
    double part = (double)(told->ns - less_ns) / (double)told->ns, ns2 = told->ns2 * part * part;
    __atomic_fetch_sub(&activity->sum_ns, less_ns, __ATOMIC_RELAXED);
    __atomic_fetch_sub(&activity->over_ns, less_ns, __ATOMIC_RELAXED);
    __atomic_fetch_add(&activity->under_ns, less_ns, __ATOMIC_RELAXED);
    __atomic_fetch_add(&activity->taken_ns, less_ns, __ATOMIC_RELAXED);
    activity->sum_ns2 -= told->ns2 - ns2;
    told->ns -= less_ns;
    told->over_ns -= less_ns;
    told->under_ns += less_ns;
    told->ns2 = ns2;
}

static bool is_late(uint64_t ns, uint64_t shortest_ns)
{
    return ns > 2 * shortest_ns + LATE_NS;
}

static uint64_t mean_of(const struct kj_sum *sum, uint64_t of_ns)
{
    return of_ns / sum->count;
}

/* Whether the bracket is one of those that tell about the others. */
static bool is_believed(struct kj_alike *alike, struct kj_ledger_activity *activity,
                        const struct kj_pair *pair, const struct kj_bracket *bracket)
{
    struct kj_sum *known = &alike->known;
    const uint64_t ns = (uint64_t)bracket->ns;
    if (alike->sure)
        return bracket->sure;
    alike->sure = bracket->sure && !is_copy(pair);
    if (alike->sure || (known->count && is_late(mean_of(known, known->ns), ns))) {
        *known = (struct kj_sum){0};
        correct(alike, activity, ns);
    }
    if (!known->count || ns < alike->shortest_ns)
        alike->shortest_ns = ns;
    return alike->sure || !is_late(ns, alike->shortest_ns);
}

struct kj_duration kj_duration_of(struct kj_timing *timing, struct kj_ledger_activity *activity,
                                  const struct kj_pair *pair, const struct kj_bracket *bracket)
{
    const bool first = pair->flags & KJ_INTERVAL_FIRST;
    struct kj_alike *alike = first && !is_copy(pair) ? NULL : alike_of(timing, activity, pair, bracket->sure);
    bool learned = alike && !is_believed(alike, activity, pair, bracket);
    int64_t ns = learned ? (int64_t)mean_of(&alike->known, alike->known.ns) : bracket->ns;
    ns = ns < bracket->low_ns ? bracket->low_ns : ns > bracket->high_ns ? bracket->high_ns : ns;
    struct kj_duration duration = {.ns = (uint64_t)ns,
                                   .taken_ns = pair->length_ns > ns ? (uint64_t)(pair->length_ns - ns) : 0,
                                   .over_ns = (uint64_t)(ns - bracket->low_ns),
                                   .under_ns = (uint64_t)(bracket->high_ns - ns)};
    if (learned && alike->sure) {
        duration.over_ns = least(duration.over_ns, mean_of(&alike->known, alike->known.over_ns));
        duration.under_ns = least(duration.under_ns, mean_of(&alike->known, alike->known.under_ns));
    }
    if (alike && !learned)
        add(&alike->known, &duration);
    if (alike && !bracket->sure && !first)
        add(&alike->told, &duration);
    return duration;
}
