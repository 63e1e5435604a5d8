/* SPDX-License-Identifier: Apache-2.0
 *
 * work_durations.c - how long one node of a graph runs, as far as that is known: by CUPTI, by launches of the
 * same kernel in the same shape outside of graphs, or by graphs that run one node after the other and differ
 * in what they hold:
 *
 *     time of the graph = sum over its kinds of nodes of (number x duration)
 *
 * Each duration lies between bounds, which these equations narrow until nothing moves any more. A kind of
 * node whose bounds stay far apart has no known duration.
 */
#include "account/work.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 64 };
#define KNOWN_PART    0.03 /* how far off a duration may be that was learned outside of the graph */
#define KNOWN_NS      300
#define GRAPH_PART    0.01 /* the same of the time of a graph */
#define GRAPH_NS      1000
#define NODE_GAP_NS   1000 /* between two nodes, at most */
#define LEARNED_PART  0.2  /* bounds closer than that, beside the upper one, tell a duration */
#define NARROWER      0.01 /* a bound that moves by less has arrived */
#define SMALL_BYTES   65536
#define SMALL_COPY_NS 30000 /* that many bytes take no longer; and a guess at them */
#define COPY_GUESS_NS 5000

/* A kernel of one launch shape, or copies of one kind, over all processes and threads. */
struct shape {
    struct kj_ledger_activity key;
    uint32_t class;
    uint64_t timed;
    double sum_ns, over_ns, under_ns; /* as an activity's */
    double low_ns, high_ns;           /* of one */
    bool known;                       /* timed outside of graphs */
};

struct kj_durations {
    struct kj_work *work;
    struct usual {
        double timed, sum_ns;
    } * usual; /* [class] launches of any shape */
    struct shape *shapes;
    size_t shape_count;
    uint32_t **shape_of; /* [view][activity] */
};

/* ---- kinds of nodes
 * ---------------------------------------------------------------------------------------------------- */

/* An activity on its way to its shape. */
struct member {
    struct kj_ledger_activity activity;
    uint32_t class, view, index;
};

static int by_shape(const void *a, const void *b)
{
    const struct member *x = a, *y = b;
    if (x->class != y->class)
        return x->class < y->class ? -1 : 1;
    int order = memcmp(x->activity.grid, y->activity.grid, sizeof(x->activity.grid));
    order = order ? order : memcmp(x->activity.block, y->activity.block, sizeof(x->activity.block));
    if (order || x->activity.shared_bytes == y->activity.shared_bytes)
        return order;
    return x->activity.shared_bytes < y->activity.shared_bytes ? -1 : 1;
}

static void add_member(struct kj_durations *s, const struct member *members, size_t i)
{
    const struct kj_ledger_activity *a = &members[i].activity;
    if (!i || by_shape(&members[i - 1], &members[i]))
        s->shapes[s->shape_count++] =
            (struct shape){.key = *a, .class = members[i].class, .high_ns = INFINITY};
    struct shape *shape = &s->shapes[s->shape_count - 1];
    s->shape_of[members[i].view][members[i].index] = (uint32_t)s->shape_count - 1;
    if (members[i].class != KJ_NO_CLASS) {
        s->usual[members[i].class].timed += (double)a->timed;
        s->usual[members[i].class].sum_ns += (double)a->sum_ns;
    }
    /* Launches of any shape are no duration of one shape, nor are copies of any size. */
    if (a->kind != KJ_ACTIVITY_KERNEL || !a->grid[0])
        return;
    shape->timed += a->timed;
    shape->sum_ns += (double)a->sum_ns;
    shape->over_ns += (double)a->over_ns;
    shape->under_ns += (double)a->under_ns;
    if (a->first_ns)
        shape->high_ns =
            fmin(shape->high_ns, (double)(a->first_ns + a->first_under_ns) * (1 + KNOWN_PART) + KNOWN_NS);
}

static int find_shapes(struct kj_durations *s)
{
    struct kj_work *work = s->work;
    size_t total = 0, count = 0;
    s->shape_of = calloc(work->view_count + 1, sizeof(*s->shape_of));
    for (size_t v = 0; s->shape_of && v < work->view_count; v++) {
        uint32_t rows = kj_ledger_view_rows(work->views[v], KJ_SECTION_ACTIVITIES);
        if (!(s->shape_of[v] = calloc(rows + 1, sizeof(**s->shape_of))))
            return -1;
        total += rows;
    }
    struct member *members = malloc((total + 1) * sizeof(*members));
    s->shapes = calloc(total + 1, sizeof(*s->shapes));
    s->usual = calloc(work->class_count + 1, sizeof(*s->usual));
    for (size_t v = 0; s->shape_of && members && v < work->view_count; v++)
        for (uint32_t a = 0;
             kj_ledger_view_row(work->views[v], KJ_SECTION_ACTIVITIES, a, &members[count].activity); a++) {
            members[count].class = work->class_of[v][a];
            members[count].view = (uint32_t)v;
            members[count++].index = a;
        }
    if (!s->shape_of || !members || !s->shapes || !s->usual) {
        free(members);
        return -1;
    }
    qsort(members, count, sizeof(*members), by_shape);
    for (size_t i = 0; i < count; i++)
        add_member(s, members, i);
    free(members);
    for (size_t i = 0; i < s->shape_count; i++) {
        struct shape *shape = &s->shapes[i];
        double mean_ns = shape->timed ? shape->sum_ns / (double)shape->timed : 0;
        shape->known = shape->timed > 0;
        if (!shape->known)
            continue;
        double over_ns = shape->over_ns / (double)shape->timed,
               under_ns = shape->under_ns / (double)shape->timed;
        shape->low_ns = fmax(mean_ns * (1 - KNOWN_PART) - KNOWN_NS - over_ns, 0);
        shape->high_ns = mean_ns * (1 + KNOWN_PART) + KNOWN_NS + under_ns;
    }
    return 0;
}

static struct shape *shape_of(const struct kj_durations *s, const struct kj_work_graph *g,
                              const struct kj_work_node *node)
{
    return &s->shapes[s->shape_of[g->view][node->activity]];
}

/* ---- bounds
 * ---------------------------------------------------------------------------------------------------- */

/* Whether all nodes of this kind take the same time. Copies, host functions and bodies do not. */
static bool has_one_duration(const struct kj_work_node *node)
{
    return node->kind == KJ_ACTIVITY_KERNEL;
}

static bool is_small_copy(const struct kj_work_node *node)
{
    return kj_kind_is_copy(node->kind) && node->bytes && node->bytes / node->nodes <= SMALL_BYTES;
}

/* Of one node. */
static void bounds_of(const struct kj_durations *s, const struct kj_work_graph *g,
                      const struct kj_work_node *node, double *ret_low_ns, double *ret_high_ns)
{
    const struct shape *shape = shape_of(s, g, node);
    *ret_low_ns = has_one_duration(node) ? shape->low_ns : 0;
    *ret_high_ns = has_one_duration(node) ? shape->high_ns : is_small_copy(node) ? SMALL_COPY_NS : INFINITY;
    if (node->timed)
        *ret_low_ns = *ret_high_ns = node->sum_ns / (double)node->timed;
}

struct sums {
    double low_ns, high_ns; /* of the nodes; high: without those that have none, of which there are */
    double endless, nodes;
};

static struct sums sums_of(const struct kj_durations *s, const struct kj_work_graph *g)
{
    struct sums sums = {0};
    for (size_t i = 0; i < g->count; i++) {
        const struct kj_work_node *node = &s->work->nodes[g->first + i];
        double low_ns, high_ns;
        bounds_of(s, g, node, &low_ns, &high_ns);
        sums.low_ns += low_ns * node->nodes;
        sums.nodes += node->nodes;
        if (isinf(high_ns))
            sums.endless++;
        else
            sums.high_ns += high_ns * node->nodes;
    }
    return sums;
}

double kj_graph_least_ns(const struct kj_work_graph *g, double nodes)
{
    return fmax(g->mean_ns * (1 - GRAPH_PART) - g->over_ns - GRAPH_NS - NODE_GAP_NS * nodes, 0);
}

double kj_graph_most_ns(const struct kj_work_graph *g)
{
    return g->mean_ns * (1 + GRAPH_PART) + g->under_ns + GRAPH_NS;
}

/* Narrows the bounds of what one graph runs; whether any moved. */
static bool narrow(struct kj_durations *s, struct kj_work_graph *g)
{
    struct sums sums = sums_of(s, g);
    bool moved = false;
    if (sums.low_ns > kj_graph_most_ns(g))
        g->serial = false; /* so some nodes ran beside each other */
    for (size_t i = 0; i < g->count && g->serial; i++) {
        const struct kj_work_node *node = &s->work->nodes[g->first + i];
        struct shape *shape = shape_of(s, g, node);
        double n = node->nodes, before_ns = shape->high_ns - shape->low_ns;
        if (!has_one_duration(node) || node->timed || shape->known)
            continue;
        double high_ns = (kj_graph_most_ns(g) - (sums.low_ns - n * shape->low_ns)) / n, low_ns = 0;
        if (!sums.endless || (sums.endless == 1 && isinf(shape->high_ns)))
            low_ns =
                (kj_graph_least_ns(g, sums.nodes) - sums.high_ns + (sums.endless ? 0 : n * shape->high_ns)) /
                n;
        if (high_ns < shape->low_ns || low_ns > shape->high_ns) {
            g->serial = false;
            break;
        }
        shape->high_ns = fmin(shape->high_ns, high_ns);
        shape->low_ns = fmax(shape->low_ns, low_ns);
        moved = moved || shape->high_ns - shape->low_ns < before_ns * (1 - NARROWER);
        sums = sums_of(s, g);
    }
    return moved;
}

static void narrow_all(struct kj_durations *s)
{
    bool moved = true;
    for (int round = 0; round < ROUNDS && moved; round++) {
        moved = false;
        for (size_t i = 0; i < s->work->graph_count; i++) {
            struct kj_work_graph *g = &s->work->graphs[i];
            if (g->serial && g->mean_ns > 0)
                moved = narrow(s, g) || moved;
        }
    }
}

/* ---- durations that are known
 * ---------------------------------------------------------------------------------------------------- */

bool kj_duration_is_known(const struct kj_durations *s, const struct kj_work_graph *g,
                          const struct kj_work_node *node)
{
    const struct shape *shape = shape_of(s, g, node);
    if (node->timed || is_small_copy(node))
        return true;
    return has_one_duration(node) &&
           (shape->known ||
            (shape->low_ns > 0 && shape->high_ns - shape->low_ns <= LEARNED_PART * shape->high_ns));
}

double kj_duration_ns(const struct kj_durations *s, const struct kj_work_graph *g,
                      const struct kj_work_node *node)
{
    const struct shape *shape = shape_of(s, g, node);
    if (node->timed)
        return node->sum_ns / (double)node->timed;
    if (has_one_duration(node) && shape->known)
        return shape->sum_ns / (double)shape->timed;
    if (kj_duration_is_known(s, g, node) && has_one_duration(node))
        return (shape->low_ns + shape->high_ns) / 2;
    if (is_small_copy(node))
        return COPY_GUESS_NS;
    const struct usual *usual = node->own == KJ_NO_CLASS ? NULL : &s->usual[node->own];
    return usual && usual->timed > 0 ? usual->sum_ns / usual->timed : 0;
}

bool kj_duration_is_guess(const struct kj_durations *s, const struct kj_work_graph *g,
                          const struct kj_work_node *node, double *ret_low_ns, double *ret_high_ns)
{
    bounds_of(s, g, node, ret_low_ns, ret_high_ns);
    return !node->timed && !shape_of(s, g, node)->known;
}

struct kj_durations *kj_durations_learn(struct kj_work *work)
{
    struct kj_durations *s = calloc(1, sizeof(*s));
    if (!s)
        return NULL;
    s->work = work;
    if (find_shapes(s))
        return kj_durations_free(s);
    narrow_all(s);
    return s;
}

struct kj_durations *kj_durations_free(struct kj_durations *s)
{
    if (!s)
        return NULL;
    for (size_t v = 0; s->shape_of && v < s->work->view_count; v++)
        free(s->shape_of[v]);
    free(s->shape_of);
    free(s->shapes);
    free(s->usual);
    free(s);
    return NULL;
}
