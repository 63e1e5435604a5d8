/* SPDX-License-Identifier: Apache-2.0
 *
 * timeline.c - what ran when, in order of time; and the energy that it makes up to any moment for powers
 * given, so that the reading of a sensor can be foretold for any window at the price of a search.
 */
#include "model/fit.h"

#include <math.h>
#include <stdlib.h>

struct edge {
    double t_ns, energy_mw_ns; /* cumulative up to here */
    uint32_t column;
    int32_t step; /* 1 a launch begins, -1 it ends */
    double power_mw;
};

struct timeline {
    struct kj_model_interval *sorted;
    uint64_t *reach; /* running maximum of the ends: how far back an interval may begin and still be there */
    size_t count;
    struct edge *edges;
};

static int by_time(const void *a, const void *b)
{
    double x = ((const struct edge *)a)->t_ns, y = ((const struct edge *)b)->t_ns;
    return (x > y) - (x < y);
}

struct timeline *kj_timeline_make(const struct fit *fit)
{
    struct timeline *timeline = calloc(1, sizeof(*timeline));
    if (!timeline)
        return NULL;
    size_t count = timeline->count = fit->input->interval_count;
    timeline->sorted = kj_model_sorted_intervals(fit->input);
    timeline->reach = malloc((count + 1) * sizeof(*timeline->reach));
    timeline->edges = malloc((2 * count + 1) * sizeof(*timeline->edges));
    if ((count && !timeline->sorted) || !timeline->reach || !timeline->edges)
        return kj_timeline_free(timeline);
    uint64_t most_ns = 0;
    for (size_t i = 0; i < count; i++) {
        const struct kj_model_interval *interval = &timeline->sorted[i];
        timeline->reach[i] = most_ns = interval->end_ns > most_ns ? interval->end_ns : most_ns;
        uint32_t column = fit->column_of[interval->class_index];
        timeline->edges[2 * i] = (struct edge){(double)interval->start_ns, 0, column, 1, 0};
        timeline->edges[2 * i + 1] = (struct edge){(double)interval->end_ns, 0, column, -1, 0};
    }
    qsort(timeline->edges, 2 * count, sizeof(*timeline->edges), by_time);
    return timeline;
}

struct timeline *kj_timeline_free(struct timeline *timeline)
{
    if (!timeline)
        return NULL;
    free(timeline->sorted);
    free(timeline->reach);
    free(timeline->edges);
    free(timeline);
    return NULL;
}

void kj_timeline_set_powers(struct timeline *timeline, const double *column_mw)
{
    double power_mw = 0, energy = 0, now_ns = timeline->count ? timeline->edges[0].t_ns : 0;
    for (size_t i = 0; i < 2 * timeline->count; i++) {
        struct edge *edge = &timeline->edges[i];
        energy += power_mw * (edge->t_ns - now_ns);
        now_ns = edge->t_ns;
        power_mw += edge->step * column_mw[edge->column];
        edge->energy_mw_ns = energy;
        edge->power_mw = power_mw;
    }
}

double kj_timeline_energy(const struct timeline *timeline, double t_ns)
{
    size_t lo = 0, hi = 2 * timeline->count; /* the last edge at or before t */
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (timeline->edges[mid].t_ns <= t_ns)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (!lo)
        return 0;
    const struct edge *edge = &timeline->edges[lo - 1];
    return edge->energy_mw_ns + edge->power_mw * (t_ns - edge->t_ns);
}

size_t kj_timeline_first(const struct timeline *timeline, double from_ns)
{
    size_t lo = 0, hi = timeline->count;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if ((double)timeline->reach[mid] <= from_ns)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

const struct kj_model_interval *kj_timeline_intervals(const struct timeline *timeline, size_t *ret_count)
{
    *ret_count = timeline->count;
    return timeline->sorted;
}

/* Idle power is shared equally by what runs at the same moment. Classes without an interval take the average.
 */
double *kj_timeline_static_shares(const struct timeline *timeline, const struct kj_model_input *input,
                                  const struct kj_model_result *result)
{
    const struct kj_model_interval *sorted = timeline->sorted;
    size_t count = timeline->count, running = 0, next = 0;
    double *share = calloc(input->class_count + 1, sizeof(*share)), sum_ns = 0;
    double *all_ns = calloc(input->class_count + 1, sizeof(*all_ns));
    size_t *active = malloc((count + 1) * sizeof(*active));
    uint64_t now_ns = count ? sorted[0].start_ns : 0;
    while (share && all_ns && active && (next < count || running)) {
        if (!running && sorted[next].start_ns > now_ns)
            now_ns = sorted[next].start_ns;
        while (next < count && sorted[next].start_ns <= now_ns)
            active[running++] = next++;
        uint64_t until_ns = next < count ? sorted[next].start_ns : UINT64_MAX;
        for (size_t a = 0; a < running; a++)
            until_ns = sorted[active[a]].end_ns < until_ns ? sorted[active[a]].end_ns : until_ns;
        double length_ns = until_ns > now_ns ? (double)(until_ns - now_ns) : 0;
        for (size_t a = running; a-- > 0;) {
            uint32_t class = sorted[active[a]].class_index;
            share[class] += length_ns / (double)running;
            all_ns[class] += length_ns;
        }
        now_ns = until_ns > now_ns ? until_ns : now_ns;
        for (size_t a = running; a-- > 0;)
            if (sorted[active[a]].end_ns <= now_ns)
                active[a] = active[--running];
    }
    for (size_t c = 0; c < input->class_count; c++)
        sum_ns += result->classes[c].time_ns;
    bool ok = share && all_ns && active;
    for (size_t c = 0; ok && c < input->class_count; c++)
        share[c] = all_ns[c] > 0 ? share[c] / all_ns[c] : sum_ns > 0 ? result->busy_ns / sum_ns : 1;
    free(all_ns);
    free(active);
    if (!ok) {
        free(share);
        return NULL;
    }
    return share;
}
