/* SPDX-License-Identifier: Apache-2.0
 *
 * work_graphs.c - a timed launch of a graph, laid out as its nodes. The bracket says when all of it ran; what
 * of it ran when is not seen. So every stretch of it, short beside a sensor's window, holds each node's share
 * of the whole by its duration when launched alone: right on average, and in a graph of many alike layers
 * nearly so everywhere.
 */
#include "account/work.h"

#include <math.h>
#include <stdlib.h>

#define STRETCH_NS 5e6 /* half the shortest window that sensors have */

struct layout {
    uint32_t graph; /* row of ACTIVITIES */
    size_t count;
    uint32_t *class;
    double *share; /* of the bracket; they add up to 1 */
};

struct kj_work_graphs {
    struct layout *layouts;
    size_t count;
};

struct kj_work_graphs *kj_work_graphs_free(struct kj_work_graphs *graphs)
{
    for (size_t i = 0; graphs && i < graphs->count; i++) {
        free(graphs->layouts[i].class);
        free(graphs->layouts[i].share);
    }
    free(graphs ? graphs->layouts : NULL);
    free(graphs);
    return NULL;
}

/* Mean duration of a node, 0 unknown. */
static double node_mean_ns(const struct kj_ledger_view *view, const struct kj_ledger_graph_node *node)
{
    struct kj_ledger_activity activity;
    if (node->timed)
        return (double)node->sum_ns / (double)node->timed;
    return kj_ledger_view_row(view, KJ_SECTION_ACTIVITIES, node->activity, &activity) && activity.timed
               ? (double)activity.sum_ns / (double)activity.timed
               : 0;
}

/* The nodes' weights are their times; one that never ran alone weighs as much as the others on average. */
static int lay_out(const struct kj_work *work, uint32_t v, struct layout *layout)
{
    struct kj_ledger_graph_node node;
    uint32_t rows = kj_ledger_view_rows(work->views[v], KJ_SECTION_GRAPH_NODES);
    uint32_t activities = kj_ledger_view_rows(work->views[v], KJ_SECTION_ACTIVITIES);
    double known_ns = 0, known = 0, sum_ns = 0;
    double *nodes = malloc((rows + 1) * sizeof(*nodes));
    layout->class = malloc((rows + 1) * sizeof(*layout->class));
    layout->share = malloc((rows + 1) * sizeof(*layout->share));
    if (!nodes || !layout->class || !layout->share) {
        free(nodes);
        return -1;
    }
    for (uint32_t i = 0; i < rows; i++) {
        if (!kj_ledger_view_row(work->views[v], KJ_SECTION_GRAPH_NODES, i, &node) ||
            node.graph != layout->graph || node.activity >= activities)
            continue;
        uint32_t class = work->class_of[v][node.activity];
        if (class == KJ_NO_CLASS || work->classes[class].kind == KJ_ACTIVITY_GRAPH)
            continue;
        double mean_ns = node_mean_ns(work->views[v], &node);
        known_ns += mean_ns * node.nodes;
        known += mean_ns > 0 ? node.nodes : 0;
        nodes[layout->count] = node.nodes;
        layout->class[layout->count] = class;
        layout->share[layout->count++] = mean_ns * node.nodes;
    }
    for (size_t i = 0; i < layout->count; i++) {
        layout->share[i] =
            layout->share[i] > 0 ? layout->share[i] : (known > 0 ? known_ns / known : 1) * nodes[i];
        sum_ns += layout->share[i];
    }
    for (size_t i = 0; i < layout->count; i++)
        layout->share[i] /= sum_ns;
    free(nodes);
    return 0;
}

static const struct layout *layout_of(const struct kj_work *work, uint32_t v, uint32_t graph,
                                      struct kj_work_graphs **graphs)
{
    if (!*graphs && !(*graphs = calloc(1, sizeof(**graphs))))
        return NULL;
    for (size_t i = 0; i < (*graphs)->count; i++)
        if ((*graphs)->layouts[i].graph == graph)
            return &(*graphs)->layouts[i];
    void *grown = realloc((*graphs)->layouts, ((*graphs)->count + 1) * sizeof(*(*graphs)->layouts));
    if (!grown)
        return NULL;
    (*graphs)->layouts = grown;
    struct layout *layout = &(*graphs)->layouts[(*graphs)->count++];
    *layout = (struct layout){.graph = graph};
    return lay_out(work, v, layout) ? NULL : layout;
}

int kj_work_add_graph_intervals(struct kj_work *work, uint32_t v, const struct kj_ledger_interval *row,
                                struct kj_work_graphs **graphs)
{
    const struct layout *layout = layout_of(work, v, row->activity, graphs);
    if (!layout)
        return -1;
    double length_ns = (double)(row->end_ns - row->start_ns),
           stretches = fmax(ceil(length_ns / STRETCH_NS), 1);
    size_t more = (size_t)stretches * layout->count;
    if (kj_work_reserve(work, more))
        return -1;
    for (double s = 0; s < stretches; s++) {
        double at_ns = length_ns * s / stretches, until_ns;
        for (size_t i = 0; i < layout->count; i++, at_ns = until_ns) {
            until_ns = at_ns + length_ns / stretches * layout->share[i];
            work->intervals[work->interval_count++] = (struct kj_model_interval){
                row->start_ns + (uint64_t)at_ns, row->start_ns + (uint64_t)until_ns, layout->class[i],
                row -> stream};
        }
    }
    return 0;
}
