/* SPDX-License-Identifier: Apache-2.0
 *
 * work_graphs.c - a timed launch of a graph, laid out as its nodes. The bracket says when all of it ran; what
 * of it ran when is not seen. So every stretch of it, short beside a sensor's window, holds each node's share
 * of the whole: right on average, and in a graph of many alike layers nearly so everywhere. What is open is
 * one class, that of its group.
 */
#include "account/work.h"

#include <math.h>

#define STRETCH_NS 5e6 /* half the shortest window that sensors have */

static int add_whole(struct kj_work *work, uint32_t v, const struct kj_ledger_interval *row)
{
    if (kj_work_reserve(work, 1))
        return -1;
    work->intervals[work->interval_count++] =
        (struct kj_model_interval){row->start_ns, row->end_ns, work->class_of[v][row->activity], row->stream};
    return 0;
}

int kj_work_add_graph_intervals(struct kj_work *work, uint32_t v, const struct kj_ledger_interval *row)
{
    const struct kj_work_graph *g = kj_work_graph_of(work, v, row->activity);
    double sum_ns = 0, length_ns = (double)(row->end_ns - row->start_ns);
    for (size_t i = 0; g && i < g->count; i++)
        sum_ns += work->nodes[g->first + i].ns;
    if (sum_ns <= 0)
        return add_whole(work, v, row);
    double stretches = fmax(ceil(length_ns / STRETCH_NS), 1), stretch_ns = length_ns / stretches;
    if (kj_work_reserve(work, (size_t)stretches * g->count))
        return -1;
    for (double s = 0; s < stretches; s++) {
        double at_ns = stretch_ns * s, until_ns;
        for (size_t i = 0; i < g->count; i++, at_ns = until_ns) {
            const struct kj_work_node *node = &work->nodes[g->first + i];
            /* What is of one class lies side by side, so as to be one interval. */
            struct kj_model_interval *last =
                work->interval_count && i ? &work->intervals[work->interval_count - 1] : NULL;
            until_ns = at_ns + stretch_ns * node->ns / sum_ns;
            if (node->class == KJ_NO_CLASS || until_ns <= at_ns)
                continue;
            uint64_t start_ns = row->start_ns + (uint64_t)at_ns, end_ns = row->start_ns + (uint64_t)until_ns;
            if (last && last->class_index == node->class && last->end_ns == start_ns)
                last->end_ns = end_ns;
            else
                work->intervals[work->interval_count++] =
                    (struct kj_model_interval){start_ns, end_ns, node->class, row->stream};
        }
    }
    return 0;
}
