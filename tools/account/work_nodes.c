/* SPDX-License-Identifier: Apache-2.0
 *
 * work_nodes.c - what graphs run, and how much of a graph's time is whose. A launch of a graph is timed as a
 * whole. Nodes of known duration (work_durations.c) have theirs. Kinds of nodes of unknown duration that run
 * in the same graphs form a group: the time of the group is known, and the shares of its members are
 * guesses.
 */
#include "account/work.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define KNOWN_PART    0.03 /* how far off what is told of a graph's nodes may be, all together */
#define KNOWN_NS      300
#define COPY_GUESS_NS 5000 /* at most, where kernels are beside it */
#define LEAST_NS      1000 /* that may be left over for open nodes */

struct grouping {
    struct kj_work *work;
    const struct kj_durations *durations;
    uint32_t *root_of; /* [class] of its group, as a tree */
    uint32_t
        *group_of; /* [class that is a root] the class of the group; KJ_NO_CLASS: it is its only member */
    bool *waits;   /* [class that is a root] something that is no GPU work is open too */
};

/* ---- graphs and their nodes
 * ---------------------------------------------------------------------------------------------------- */

static int by_graph(const void *a, const void *b)
{
    const struct kj_ledger_graph_node *x = a, *y = b;
    if (x->graph != y->graph)
        return x->graph < y->graph ? -1 : 1;
    return (x->activity > y->activity) - (x->activity < y->activity);
}

/* Rows that a corrupt ledger may hold are left out. */
static bool make_node(const struct kj_work *work, uint32_t v, const struct kj_ledger_graph_node *row,
                      struct kj_work_node *ret_node)
{
    struct kj_ledger_activity activity;
    if (!row->nodes || !kj_ledger_view_row(work->views[v], KJ_SECTION_ACTIVITIES, row->activity, &activity))
        return false;
    uint32_t class = work->class_of[v][row->activity];
    if (class == KJ_NO_CLASS ? activity.kind != KJ_ACTIVITY_HOST
                             : work->classes[class].kind == KJ_ACTIVITY_GRAPH)
        return false;
    *ret_node = (struct kj_work_node){.class = class,
                                      .own = class,
                                      .activity = row->activity,
                                      .kind = activity.kind,
                                      .nodes = row->nodes,
                                      .bytes = row->bytes,
                                      .timed = row->timed,
                                      .sum_ns = (double)row->sum_ns};
    return true;
}

/* A graph whose nodes are known, and none of them yet; NULL: it is none, or out of memory. */
static struct kj_work_graph *add_graph(struct kj_work *work, uint32_t v, uint32_t index)
{
    struct kj_ledger_activity activity;
    if (!kj_ledger_view_row(work->views[v], KJ_SECTION_ACTIVITIES, index, &activity) ||
        activity.kind != KJ_ACTIVITY_GRAPH || !(activity.flags & KJ_GRAPH_KNOWN) ||
        work->class_of[v][index] == KJ_NO_CLASS)
        return NULL;
    void *grown = realloc(work->graphs, (work->graph_count + 1) * sizeof(*work->graphs));
    if (!grown)
        return NULL;
    work->graphs = grown;
    struct kj_work_graph *graph = &work->graphs[work->graph_count++];
    *graph = (struct kj_work_graph){.view = v,
                                    .activity = index,
                                    .first = work->node_count,
                                    .launches = kj_ledger_view_launches(work->views[v], index),
                                    .serial = (activity.flags & KJ_GRAPH_SERIAL) != 0};
    graph->mean_ns = kj_work_launch_ns(&activity);
    double timed = activity.timed ? (double)activity.timed : 1;
    graph->over_ns = (double)(activity.timed ? activity.over_ns : activity.first_over_ns) / timed;
    graph->under_ns = (double)(activity.timed ? activity.under_ns : activity.first_under_ns) / timed;
    return graph;
}

/* CUPTI tells nodes by name and shape, not by who captured them: those of one class have their times
 * together. */
static void share_durations(struct kj_work_node *nodes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < count && !nodes[i].timed; k++)
            if (nodes[k].own == nodes[i].own && nodes[k].timed > nodes[k].nodes) {
                nodes[i].timed = nodes[k].timed;
                nodes[i].sum_ns = nodes[k].sum_ns;
            }
}

static int read_graphs(struct kj_work *work, uint32_t v)
{
    uint32_t rows = kj_ledger_view_rows(work->views[v], KJ_SECTION_GRAPH_NODES), count = 0;
    struct kj_ledger_graph_node *list = malloc(((size_t)rows + 1) * sizeof(*list));
    void *grown = realloc(work->nodes, (work->node_count + rows + 1) * sizeof(*work->nodes));
    work->nodes = grown ? grown : work->nodes;
    if (!list || !grown) {
        free(list);
        return -1;
    }
    while (count < rows && kj_ledger_view_row(work->views[v], KJ_SECTION_GRAPH_NODES, count, &list[count]))
        count++;
    qsort(list, count, sizeof(*list), by_graph);
    uint32_t activities = kj_ledger_view_rows(work->views[v], KJ_SECTION_ACTIVITIES), i = 0;
    for (uint32_t a = 0; a < activities; a++) {
        struct kj_work_graph *graph = add_graph(work, v, a);
        bool timed = false;
        for (; i < count && list[i].graph <= a; i++)
            if (graph && list[i].graph == a && make_node(work, v, &list[i], &work->nodes[work->node_count])) {
                timed = work->nodes[work->node_count++].timed || timed;
                graph->count++;
            }
        if (timed)
            share_durations(work->nodes + graph->first, graph->count);
    }
    free(list);
    return 0;
}

/* ---- what stays open
 * ---------------------------------------------------------------------------------------------------- */

static uint32_t root_of(struct grouping *s, uint32_t class)
{
    while (s->root_of[class] != class)
        class = s->root_of[class] = s->root_of[s->root_of[class]];
    return class;
}

/* Where nodes run beside each other, the time that is left over tells nothing of those that are open: then
 * all of the graph is. */
static void find_open(struct grouping *s, struct kj_work_graph *g)
{
    struct kj_work_node *nodes = s->work->nodes + g->first;
    uint32_t first = KJ_NO_CLASS;
    bool any = false, kernels = false;
    for (size_t i = 0; i < g->count && g->mean_ns > 0; i++)
        any = any || !kj_duration_is_known(s->durations, g, &nodes[i]);
    for (size_t i = 0; i < g->count; i++) {
        nodes[i].open = any && (!g->serial || !kj_duration_is_known(s->durations, g, &nodes[i]));
        kernels =
            kernels || (nodes[i].open && nodes[i].own != KJ_NO_CLASS && !kj_kind_is_copy(nodes[i].kind));
    }
    g->open = any;
    g->group = KJ_NO_CLASS;
    /* Copies of one kind run in graphs that have nothing else in common. */
    for (size_t i = 0; i < g->count; i++) {
        if (!nodes[i].open || nodes[i].own == KJ_NO_CLASS || (kernels && kj_kind_is_copy(nodes[i].kind)))
            continue;
        first = first == KJ_NO_CLASS ? nodes[i].own : first;
        s->root_of[root_of(s, nodes[i].own)] = root_of(s, first);
    }
    g->group = first; /* any of its members, so far */
}

static struct kj_work_part *find_part(struct kj_work *work, uint32_t group, uint32_t class)
{
    for (size_t i = 0; i < work->part_count; i++)
        if (work->parts[i].group == group && work->parts[i].class == class)
            return &work->parts[i];
    void *grown = realloc(work->parts, (work->part_count + 1) * sizeof(*work->parts));
    if (!grown)
        return NULL;
    work->parts = grown;
    work->parts[work->part_count] = (struct kj_work_part){group, class, 0};
    return &work->parts[work->part_count++];
}

/* Groups of two members or more become classes of their own, behind all others. */
static int make_groups(struct grouping *s)
{
    struct kj_work *work = s->work;
    uint32_t classes = (uint32_t)work->class_count;
    uint32_t *only = malloc((classes + 1) * sizeof(*only)); /* the one member so far; KJ_NO_CLASS: none */
    if (!only)
        return -1;
    memset(only, 0xff, (classes + 1) * sizeof(*only));
    memset(s->group_of, 0xff, (classes + 1) * sizeof(*s->group_of));
    for (size_t i = 0; i < work->graph_count; i++) {
        struct kj_work_graph *g = &work->graphs[i];
        g->group = g->group == KJ_NO_CLASS ? KJ_NO_CLASS : root_of(s, g->group);
        for (size_t n = 0; n < g->count && g->group != KJ_NO_CLASS; n++) {
            const struct kj_work_node *node = &work->nodes[g->first + n];
            if (!node->open || (node->own == only[g->group] && node->own != KJ_NO_CLASS))
                continue;
            bool second = only[g->group] != KJ_NO_CLASS || node->own == KJ_NO_CLASS || s->waits[g->group];
            s->waits[g->group] = s->waits[g->group] || node->own == KJ_NO_CLASS;
            if (only[g->group] == KJ_NO_CLASS)
                only[g->group] = node->own;
            if (!second || s->group_of[g->group] != KJ_NO_CLASS || only[g->group] == KJ_NO_CLASS)
                continue;
            const struct kj_work_class *like = &work->classes[only[g->group]];
            s->group_of[g->group] = (uint32_t)work->class_count;
            work->classes[work->class_count++] =
                (struct kj_work_class){.name = "", .device = like->device, .kind = KJ_WORK_GROUP};
        }
    }
    free(only);
    for (size_t i = 0; i < work->graph_count; i++)
        if (work->graphs[i].group != KJ_NO_CLASS)
            work->graphs[i].group = s->group_of[work->graphs[i].group];
    return 0;
}

/* ---- times
 * ---------------------------------------------------------------------------------------------------- */

/* Shares `open_ns` among the open nodes: by guesses where there are some, else evenly, copies less. */
static void share_open(struct kj_work_node *nodes, size_t count, double open_ns)
{
    double guessed = 0, guessed_nodes = 0, all = 0, sum = 0;
    bool works = false;
    for (size_t i = 0; i < count; i++) {
        if (!nodes[i].open)
            continue;
        guessed += nodes[i].ns;
        guessed_nodes += nodes[i].ns > 0 ? nodes[i].nodes : 0;
        all += nodes[i].nodes;
        works = works || nodes[i].own != KJ_NO_CLASS;
    }
    double usual = guessed_nodes > 0 ? guessed / guessed_nodes : open_ns / fmax(all, 1);
    for (size_t i = 0; i < count; i++) {
        if (!nodes[i].open)
            continue;
        double one = kj_kind_is_copy(nodes[i].kind) ? fmin(usual, COPY_GUESS_NS) : usual;
        if (nodes[i].ns <= 0)
            nodes[i].ns = works && nodes[i].own == KJ_NO_CLASS ? 0 : one * nodes[i].nodes;
        sum += nodes[i].ns;
    }
    for (size_t i = 0; i < count; i++)
        if (nodes[i].open)
            nodes[i].ns *= sum > 0 ? open_ns / sum : 0;
}

/* What is left over for the open nodes of a graph: between which bounds, and a guess. */
static double left_over_ns(const struct kj_work_graph *g, double told_ns, double guess_ns, double *ret_low_ns,
                           double *ret_high_ns, double nodes)
{
    double off_ns = KNOWN_PART * told_ns + KNOWN_NS;
    *ret_low_ns = *ret_high_ns = g->mean_ns;
    if (told_ns <= 0) /* nothing is told: all of it */
        return g->mean_ns;
    *ret_low_ns = fmax(kj_graph_least_ns(g, nodes) - told_ns - off_ns, 0);
    *ret_high_ns = fmax(kj_graph_most_ns(g) - told_ns + off_ns, LEAST_NS);
    double left_ns = g->mean_ns - told_ns;
    if (left_ns > off_ns || guess_ns <= 0)
        return fmin(fmax(left_ns, off_ns / 10), g->mean_ns);
    return fmin(fmax(guess_ns, *ret_low_ns), *ret_high_ns);
}

static void time_nodes(const struct grouping *s, struct kj_work_graph *g)
{
    struct kj_work_node *nodes = s->work->nodes + g->first;
    double told_ns = 0, guess_ns = 0, all = 0, left_low_ns = 0, left_high_ns = 0, open_ns = 0;
    bool by_itself = true; /* every node was timed by itself */
    for (size_t i = 0; i < g->count; i++) {
        nodes[i].ns = kj_duration_ns(s->durations, g, &nodes[i]) * nodes[i].nodes;
        *(nodes[i].open ? &guess_ns : &told_ns) += nodes[i].ns;
        by_itself = by_itself && nodes[i].timed;
        all += nodes[i].nodes;
    }
    if (g->open && g->mean_ns > 0) {
        open_ns = left_over_ns(g, told_ns, guess_ns, &left_low_ns, &left_high_ns, all);
        share_open(nodes, g->count, open_ns);
    }
    double scale = g->mean_ns > 0 && told_ns > 0 && !by_itself ? (g->mean_ns - open_ns) / told_ns : 1;
    for (size_t i = 0; i < g->count; i++) {
        struct kj_work_node *node = &nodes[i];
        double low_ns, high_ns;
        if (node->open) {
            node->class = g->group != KJ_NO_CLASS && g->mean_ns > 0 ? g->group : node->own;
            double part = open_ns > 0 ? node->ns / open_ns : 0;
            node->low_ns = fmin(left_low_ns * part, node->ns);
            node->high_ns = fmax(left_high_ns * part, node->ns);
            continue;
        }
        node->ns = node->timed ? node->ns : node->ns * scale;
        node->low_ns = node->high_ns = node->ns;
        if (!kj_duration_is_guess(s->durations, g, node, &low_ns, &high_ns))
            continue;
        if (g->mean_ns <= 0) /* nor is that of the graph */
            node->ns = low_ns = high_ns = 0;
        node->low_ns = fmin(low_ns * node->nodes, node->ns);
        node->high_ns = fmax(high_ns * node->nodes, node->ns);
    }
}

static int add_parts(struct kj_work *work)
{
    for (size_t i = 0; i < work->graph_count; i++)
        for (size_t n = 0; n < work->graphs[i].count; n++) {
            const struct kj_work_node *node = &work->nodes[work->graphs[i].first + n];
            if (node->own == KJ_NO_CLASS || node->class == node->own)
                continue;
            struct kj_work_part *part = find_part(work, node->class, node->own);
            if (!part)
                return -1;
            part->ns += node->ns * (double)work->graphs[i].launches;
        }
    return 0;
}

int kj_work_read_graphs(struct kj_work *work)
{
    struct grouping s = {.work = work};
    struct kj_durations *durations = NULL;
    int status = 0;
    for (size_t v = 0; !status && v < work->view_count; v++)
        status = read_graphs(work, (uint32_t)v);
    if (status || !work->graph_count)
        return status;
    s.root_of = malloc((work->class_count + 1) * sizeof(*s.root_of));
    s.group_of = malloc((work->class_count + 1) * sizeof(*s.group_of));
    s.waits = calloc(work->class_count + 1, sizeof(*s.waits));
    s.durations = durations = kj_durations_learn(work);
    status = s.root_of && s.group_of && s.waits && s.durations ? 0 : -1;
    if (!status) {
        for (uint32_t c = 0; c < work->class_count; c++)
            s.root_of[c] = c;
        for (size_t i = 0; i < work->graph_count; i++)
            find_open(&s, &work->graphs[i]);
        status = make_groups(&s);
        for (size_t i = 0; !status && i < work->graph_count; i++)
            time_nodes(&s, &work->graphs[i]);
        status = status ? status : add_parts(work);
    }
    kj_durations_free(durations);
    free(s.root_of);
    free(s.group_of);
    free(s.waits);
    return status;
}

const struct kj_work_graph *kj_work_graph_of(const struct kj_work *work, uint32_t view, uint32_t activity)
{
    size_t low = 0, high = work->graph_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const struct kj_work_graph *g = &work->graphs[middle];
        if (g->view < view || (g->view == view && g->activity < activity))
            low = middle + 1;
        else
            high = middle;
    }
    const struct kj_work_graph *g = &work->graphs[low];
    return low < work->graph_count && g->view == view && g->activity == activity ? g : NULL;
}
