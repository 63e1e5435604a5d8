/* SPDX-License-Identifier: Apache-2.0 */
#include "record/looks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN       0.6180340
#define EVEN_SHARE   0.1618034 /* of the interval, at first */
#define CLOSER_TWICE 0.3819    /* of that, and no closer */
#define NEW_SHARE    0.4       /* of the looks see something new: too many to tell when */
#define COST_SHARE   0.01      /* of the time */
#define EVEN_MIN_NS  6.18e6

#define LOOKS_EACH   4      /* about a renewal, mostly; for their cost */
#define STEP_MIN_NS  0.25e6 /* between two of them */
#define HALF_MIN_NS  0.5e6
#define PLACE_LEAST  0.15  /* of what a renewal is off, its place is moved by, */
#define PERIOD_LEAST 0.012 /* and the period */
#define FOLLOW_WIDTH 0.1
#define WIDTH_TIMES  2.5  /* of the mean distance of a renewal from its place: 2 sigma */
#define EVENS_EACH   2.5  /* even looks a renewal, at least: or its period is not known */
#define HALF_MOST    0.25 /* of the period: or it keeps none */
#define PERIOD_OFF   0.1
#define MISSED_MOST  20

uint64_t kj_looks_first_ns(uint64_t interval_ns)
{
    double period_ns = fmax((double)interval_ns * EVEN_SHARE, EVEN_MIN_NS);
    return period_ns < (double)interval_ns ? (uint64_t)period_ns : interval_ns;
}

uint64_t kj_looks_next_ns(uint64_t period_ns, uint64_t interval_ns, double new_share, double cost_ns)
{
    double closer_ns = (double)period_ns * GOLDEN;
    double least_ns = fmax((double)kj_looks_first_ns(interval_ns) * CLOSER_TWICE, EVEN_MIN_NS);
    bool closer = new_share > NEW_SHARE && closer_ns >= 0.999 * least_ns && cost_ns <= COST_SHARE * closer_ns;
    return closer ? (uint64_t)closer_ns : period_ns;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void forget(struct kj_renewals *r)
{
    *r = (struct kj_renewals){.last_look_ns = r->last_look_ns, .cost_ns = r->cost_ns};
}

/* From the first renewals: their usual distance, and where the last one was. */
static void learn_period(struct kj_renewals *r, double even_ns)
{
    double steps[KJ_RENEWALS_LEARNED], sum = 0, n = 0;
    size_t last = KJ_RENEWALS_LEARNED - 1;
    for (size_t i = 0; i < last; i++)
        steps[i] = r->seen_ns[i + 1] - r->seen_ns[i];
    qsort(steps, last, sizeof(*steps), by_value);
    for (size_t i = 0; i < last; i++)
        if (steps[i] < 1.5 * steps[last / 2])
            sum += steps[i], n++;
    double period_ns = sum / n, width_ns = r->seen_ns[last] - r->after_ns[last];
    double place_ns = (r->seen_ns[last] + r->after_ns[last]) / 2;
    forget(r);
    if (period_ns < EVENS_EACH * even_ns || LOOKS_EACH * r->cost_ns > COST_SHARE * period_ns)
        return;
    r->period_ns = r->learned_ns = period_ns;
    r->followed = 2;
    r->due_ns = place_ns + period_ns;
    r->half_ns = width_ns / 2 + even_ns / KJ_RENEWALS_LEARNED;
}

/* The first look at the renewal that is due next. */
static void look_forward(struct kj_renewals *r)
{
    r->next_look_ns = r->due_ns - r->half_ns;
}

static void go_on(struct kj_renewals *r, double from_ns)
{
    if (r->due_ns <= from_ns)
        r->due_ns += ceil((from_ns - r->due_ns) / r->period_ns + 1e-9) * r->period_ns;
    look_forward(r);
}

/* One came, between two looks: where the next will be, and how far from there. The line through all of them
 * so far, step by step, and never with a longer memory than some twenty: no clock runs evenly for ever (g-h
 * filter of growing memory: Brookner, Tracking and Kalman Filtering Made Easy, 1998, 1.3). */
static void follow(struct kj_renewals *r, double after_ns, double seen_ns)
{
    r->due_ns += round(((after_ns + seen_ns) / 2 - r->due_ns) / r->period_ns) * r->period_ns;
    /* Before the first of the looks at it: nearer to them than to the even look before. */
    double low_ns = fmax(after_ns, fmin(r->due_ns - 2 * r->half_ns, seen_ns));
    double off_ns = (low_ns + seen_ns) / 2 - r->due_ns, n = ++r->followed;
    r->half_ns += FOLLOW_WIDTH * (WIDTH_TIMES * fabs(off_ns) + HALF_MIN_NS - r->half_ns);
    r->due_ns += fmax(2 * (2 * n - 1) / (n * (n + 1)), PLACE_LEAST) * off_ns;
    r->period_ns += fmax(6 / (n * (n + 1)), PERIOD_LEAST) * off_ns;
    r->missed = 0;
    r->due_ns += r->period_ns;
    look_forward(r);
}

/* Not yet: again after a quarter of the time in which it may come; later, less and less often. */
static void look_again(struct kj_renewals *r, double t_ns)
{
    double step_ns = fmax(r->half_ns / 2, STEP_MIN_NS), late_ns = t_ns - (r->due_ns + r->half_ns);
    if (t_ns < r->due_ns - r->half_ns) {
        look_forward(r);
    } else if (late_ns < 0) {
        r->next_look_ns = t_ns + step_ns;
    } else if (late_ns < 2 * r->half_ns) {
        r->next_look_ns = t_ns + fmax(step_ns, late_ns);
    } else { /* the same value again, or it went astray */
        r->half_ns = fmin(1.2 * r->half_ns, r->period_ns);
        r->missed++;
        go_on(r, t_ns);
    }
}

void kj_renewals_saw(struct kj_renewals *r, uint64_t at_ns, bool is_new, uint64_t even_ns, double cost_ns)
{
    double t_ns = (double)at_ns, after_ns = r->last_look_ns;
    r->last_look_ns = t_ns;
    r->cost_ns += (r->cost_ns > 0 ? 0.1 : 1) * (cost_ns - r->cost_ns);
    if (after_ns <= 0)
        return;
    if (!r->period_ns && is_new) {
        r->after_ns[r->count] = after_ns;
        r->seen_ns[r->count++] = t_ns;
        if (r->count == KJ_RENEWALS_LEARNED)
            learn_period(r, (double)even_ns);
        if (r->period_ns > 0)
            look_forward(r);
    } else if (r->period_ns > 0) {
        if (is_new)
            follow(r, after_ns, t_ns);
        else
            look_again(r, t_ns);
        if (r->half_ns > HALF_MOST * r->period_ns || r->missed > MISSED_MOST ||
            fabs(r->period_ns / r->learned_ns - 1) > PERIOD_OFF ||
            LOOKS_EACH * r->cost_ns > COST_SHARE * r->period_ns)
            forget(r);
    }
}

void kj_renewals_rest(struct kj_renewals *r, uint64_t until_ns)
{
    r->next_look_ns = r->next_look_ns > 0 ? fmax(r->next_look_ns, (double)until_ns) : 0;
}

uint64_t kj_renewals_next_ns(const struct kj_renewals *r)
{
    return r->period_ns > 0 && r->next_look_ns > 0 ? (uint64_t)ceil(r->next_look_ns) : UINT64_MAX;
}
