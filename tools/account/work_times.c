/* SPDX-License-Identifier: Apache-2.0
 *
 * work_times.c - how long each class ran: exact counts x learned durations; graphs by weights.
 *
 * A launch without a duration of its own takes the mean of its launch shape, else that of its class. The
 * first launch of a shape may have waited for lazy loading, so its bracket is used only where nothing else is
 * known, and then the launch took anything between nothing and that. Few brackets say little of the launches
 * that were not timed: the interval is Student's, and says as much. A node of a graph has its own mean where
 * CUPTI timed it; the others share the measured time of the whole graph in proportion to (nodes x mean
 * duration when launched eagerly). Each launch counts, with its time, for the phases that it is of.
 */
#include "account/work.h"

#include <math.h>

double kj_work_mean_ns(const struct kj_work_class *class)
{
    uint64_t known = class->launches - class->untimed;
    return known ? class->time_ns / (double)known : 0;
}

/* Of rest launches that take a mean of `timed` ones: each has its own spread, and all share the mean's error.
 * Launches are taken as independent of each other. < 0: the spread was not seen. */
static double learned_variance(const struct kj_ledger_activity *activity, double rest)
{
    double n = (double)activity->timed, sum = (double)activity->sum_ns;
    if (rest <= 0)
        return 0;
    if (activity->timed < 2)
        return -1;
    double variance = fmax(activity->sum_ns2 - sum * sum / n, 0) / (n - 1);
    return rest * variance + rest * rest * variance / n;
}

#define SPREAD_PRIOR                                                                                         \
    0.3 /* of launches of one kernel and shape, relative, before any was timed; worth one                    \
         */

/* Half of a 90 % interval of one launch more, by n timed ones of mean 1 and so many squared deviations. */
static double one_more(double n, double squares)
{
    double freedom = n; /* n - 1 of the launches, and the prior's */
    double student = KJ_Z90 + 1.52 / freedom + 1.42 / pow(freedom, 2) + 1.73 / pow(freedom, 3);
    return student * sqrt((SPREAD_PRIOR * SPREAD_PRIOR + squares) / freedom);
}

/* The same, squared, of rest launches that take the mean of the timed ones. */
static double learned_off2(const struct kj_ledger_activity *activity, double rest)
{
    double n = (double)activity->timed, mean_ns = (double)activity->sum_ns / n;
    if (rest <= 0 || mean_ns <= 0)
        return 0;
    double squares = fmax(activity->sum_ns2 / (mean_ns * mean_ns) - n, 0);
    return (rest + rest * rest / n) * pow(mean_ns * one_more(n, squares), 2);
}

#define MEASURED_OFF  0.02 /* of the time, either way: no more is measured, for all that one launch is not */
#define ESTIMATED_OFF 0.2

struct kj_time kj_work_time(const struct kj_work_class *class)
{
    double off_ns = sqrt(class->time_off_ns2), ns = class->time_ns;
    struct kj_time time = {.known = !class->untimed,
                           .method = KJ_MODELLED,
                           .ns = ns,
                           .low_ns = fmax(ns - off_ns - class->time_below_ns, 0),
                           .high_ns = ns + off_ns + class->time_above_ns};
    if (time.high_ns - time.low_ns <= 2 * ESTIMATED_OFF * ns)
        time.method = KJ_ESTIMATED;
    if (class->timed && class->unmeasured == class->first_only &&
        time.high_ns - time.low_ns <= 2 * MEASURED_OFF * ns)
        time.method = KJ_MEASURED;
    return time;
}

static void add_variance(struct kj_work_class *class, double variance)
{
    class->time_var_ns2 = class->time_var_ns2 < 0 || variance < 0 ? -1 : class->time_var_ns2 + variance;
}

/* launches and their time ns, known of or not, to the phases by their shares; negative ones are taken back.
 */
static void add_phases(struct kj_work_class *class, const struct kj_work_phase *phase, double launches,
                       double untimed, double ns)
{
    for (int p = 0; p < KJ_PHASE_COUNT; p++) {
        class->phase_launches[p] += launches * phase->share[p];
        class->phase_untimed[p] += untimed * phase->share[p];
        class->phase_ns[p] += ns * phase->share[p];
    }
}

/* Time of launches of one activity, and how far off it may be: as a class's. */
struct span {
    double ns, off_ns2, below_ns, above_ns;
};

/* Of all launches of an activity that was timed, with what its brackets leave open. Those of first launches
 * are the only ones that may hold the loading of the kernel. */
static struct span span_of(const struct kj_ledger_activity *activity, uint64_t launches)
{
    double all = (double)launches, rest = all - 1, first_ns = (double)activity->first_ns;
    double share = activity->timed ? all / (double)activity->timed : 0;
    double most_ns = first_ns + (double)activity->first_under_ns;
    if (activity->timed)
        return (struct span){.ns = (double)activity->sum_ns * share,
                             .off_ns2 = learned_off2(activity, all - (double)activity->timed),
                             .below_ns = (double)activity->over_ns * share,
                             .above_ns = (double)activity->under_ns * share};
    return (struct span){.ns = first_ns * all,
                         .below_ns = (double)activity->first_over_ns + rest * first_ns,
                         .above_ns = most_ns - first_ns + rest * (most_ns * (1 + one_more(1, 0)) - first_ns)};
}

/* A part of it; negative: taken back. */
static void add_span(struct kj_work_class *class, const struct span *span, double part)
{
    class->time_ns += part * span->ns;
    class->time_off_ns2 = fmax(class->time_off_ns2 + part * fabs(part) * span->off_ns2, 0);
    class->time_below_ns = fmax(class->time_below_ns + part * span->below_ns, 0);
    class->time_above_ns = fmax(class->time_above_ns + part * span->above_ns, 0);
}

static void add_activity(struct kj_work_class *class, const struct kj_ledger_activity *activity,
                         const struct kj_work_phase *phase, uint64_t launches)
{
    double before_ns = class->time_ns;
    uint64_t before = class->untimed, timed = activity->timed < launches ? activity->timed : launches;
    class->launches += launches;
    class->timed += timed;
    class->unmeasured += launches - timed;
    class->bytes += activity->bytes;
    if (timed || (activity->first_ns && launches)) {
        const struct span span = span_of(activity, launches);
        add_span(class, &span, 1);
        add_variance(class, timed ? learned_variance(activity, (double)(launches - timed)) : -1);
        class->first_only += activity->first_ns && launches > timed;
    } else {
        class->untimed += launches;
    }
    add_phases(class, phase, (double)launches, (double)(class->untimed - before), class->time_ns - before_ns);
}

#define OTHER_SHAPES 3 /* times the mean, at most, that launches of a shape take of which none was timed */

/* Launches without a duration take the mean of their class, where it has one. */
static void spread_means(struct kj_work_class *class)
{
    double mean_ns = kj_work_mean_ns(class);
    if (class->untimed && mean_ns > 0) {
        add_span(class,
                 &(struct span){.ns = mean_ns, .below_ns = mean_ns, .above_ns = OTHER_SHAPES * mean_ns},
                 (double)class->untimed);
        add_variance(class, -1);
        class->untimed = 0;
        for (int p = 0; p < KJ_PHASE_COUNT; p++) {
            class->phase_ns[p] += mean_ns * class->phase_untimed[p];
            class->phase_untimed[p] = 0;
        }
    }
}

struct node {
    uint32_t class;
    uint32_t nodes;
    double eager_mean_ns; /* 0 unknown */
    uint64_t timed;       /* by itself, in the graph */
    uint64_t sum_ns;      /* of those */
    const struct kj_work_phase *phase;
};

static double eager_mean_ns(const struct kj_work *work, size_t v, uint32_t activity_index, uint32_t class)
{
    struct kj_ledger_activity activity;
    if (kj_ledger_view_row(work->views[v], KJ_SECTION_ACTIVITIES, activity_index, &activity) &&
        activity.timed)
        return (double)activity.sum_ns / (double)activity.timed;
    return kj_work_mean_ns(&work->classes[class]);
}

/* What was timed by itself takes its time from there. */
static void add_timed_node(struct kj_work_class *class, const struct node *node, uint64_t launches)
{
    uint64_t node_launches = launches * node->nodes;
    uint64_t timed = node->timed < node_launches ? node->timed : node_launches;
    class->launches += node_launches;
    class->timed += timed;
    class->unmeasured += node_launches - timed;
    double ns = (double)node->sum_ns / (double)node->timed * (double)node_launches;
    class->time_ns += ns;
    add_phases(class, node->phase, (double)node_launches, 0, ns);
}

/* CUPTI tells nodes by name and shape, not by who captured them: those of one class have their times
 * together.
 */
static void share_durations(struct node *nodes, size_t count)
{
    bool any = false;
    for (size_t i = 0; i < count; i++)
        any = any || nodes[i].timed;
    for (size_t i = 0; any && i < count; i++)
        for (size_t k = 0; k < count && !nodes[i].timed; k++)
            if (nodes[k].class == nodes[i].class && nodes[k].timed > nodes[k].nodes) {
                nodes[i].timed = nodes[k].timed;
                nodes[i].sum_ns = nodes[k].sum_ns;
                nodes[i].eager_mean_ns = nodes[k].eager_mean_ns;
            }
}

/* whole: of all launches of the graph; ns 0: it is not known. */
static void add_graph(struct kj_work *work, struct node *nodes, size_t count, uint64_t launches,
                      const struct span *whole)
{
    double known_ns = 0, known = 0, sum_ns = 0;
    for (size_t i = 0; i < count; i++)
        if (nodes[i].eager_mean_ns > 0) {
            known_ns += nodes[i].eager_mean_ns * nodes[i].nodes;
            known += nodes[i].nodes;
        }
    /* Nodes never seen outside of a graph weigh as much as the others on average. */
    double usual_ns = known > 0 ? known_ns / known : 1;
    for (size_t i = 0; i < count; i++) {
        nodes[i].eager_mean_ns = nodes[i].eager_mean_ns > 0 ? nodes[i].eager_mean_ns : usual_ns;
        sum_ns += nodes[i].eager_mean_ns * nodes[i].nodes;
    }
    for (size_t i = 0; i < count; i++) {
        struct kj_work_class *class = &work->classes[nodes[i].class];
        if (nodes[i].timed) {
            add_timed_node(class, &nodes[i], launches);
            continue;
        }
        uint64_t node_launches = launches * nodes[i].nodes;
        double before_ns = class->time_ns;
        uint64_t before = class->untimed;
        class->launches += node_launches;
        class->unmeasured += node_launches;
        add_variance(class, -1);
        if (whole->ns > 0)
            add_span(class, whole, nodes[i].eager_mean_ns * nodes[i].nodes / sum_ns);
        else if (known > 0)
            class->time_ns += nodes[i].eager_mean_ns * (double)node_launches;
        else
            class->untimed += node_launches;
        add_phases(class, nodes[i].phase, (double)node_launches, (double)(class->untimed - before),
                   class->time_ns - before_ns);
    }
}

/* Graph activities of one ledger; what their nodes take over is taken off the graphs' own class. */
static void add_graphs(struct kj_work *work, size_t v)
{
    enum { NODES_CAP = 4096 };
    static const struct node none;
    struct kj_ledger_view *view = work->views[v];
    struct kj_ledger_activity activity;
    struct kj_ledger_graph_node row;
    uint32_t activities = kj_ledger_view_rows(view, KJ_SECTION_ACTIVITIES);
    uint32_t rows = kj_ledger_view_rows(view, KJ_SECTION_GRAPH_NODES);
    for (uint32_t g = 0; g < activities && rows; g++) {
        uint64_t launches = kj_ledger_view_launches(view, g);
        if (!kj_ledger_view_row(view, KJ_SECTION_ACTIVITIES, g, &activity) ||
            activity.kind != KJ_ACTIVITY_GRAPH || !launches || work->class_of[v][g] == KJ_NO_CLASS)
            continue;
        struct node nodes[NODES_CAP];
        size_t count = 0;
        nodes[0] = none;
        for (uint32_t i = 0; i < rows && count < NODES_CAP; i++) {
            if (!kj_ledger_view_row(view, KJ_SECTION_GRAPH_NODES, i, &row) || row.graph != g ||
                row.activity >= activities)
                continue;
            uint32_t class = work->class_of[v][row.activity];
            const struct kj_work_phase *own = &work->phase_of[v][row.activity];
            if (class != KJ_NO_CLASS && work->classes[class].kind != KJ_ACTIVITY_GRAPH)
                nodes[count++] =
                    (struct node){class,
                                  row.nodes,
                                  row.timed ? (double)row.sum_ns / (double)row.timed
                                            : eager_mean_ns(work, v, row.activity, class),
                                  row.timed,
                                  row.sum_ns,
                                  own->direct >= 0 || own->in_graphs ? own : &work->phase_of[v][g]};
        }
        if (!count)
            continue;
        share_durations(nodes, count);
        const struct span span = span_of(&activity, launches);
        struct kj_work_class *whole = &work->classes[work->class_of[v][g]];
        uint64_t untimed = span.ns > 0 ? 0 : launches < whole->untimed ? launches : whole->untimed;
        whole->launches -= launches;
        whole->untimed -= untimed;
        add_span(whole, &span, -1);
        add_phases(whole, &work->phase_of[v][g], -(double)launches, -(double)untimed, -span.ns);
        add_graph(work, nodes, count, launches, &span);
    }
}

void kj_work_add_times(struct kj_work *work)
{
    struct kj_ledger_activity activity;
    for (size_t v = 0; v < work->view_count; v++)
        for (uint32_t a = 0; kj_ledger_view_row(work->views[v], KJ_SECTION_ACTIVITIES, a, &activity); a++)
            if (work->class_of[v][a] != KJ_NO_CLASS)
                add_activity(&work->classes[work->class_of[v][a]], &activity, &work->phase_of[v][a],
                             kj_ledger_view_launches(work->views[v], a));
    for (size_t c = 0; c < work->class_count; c++)
        if (work->classes[c].kind != KJ_ACTIVITY_GRAPH)
            spread_means(&work->classes[c]);
    for (size_t v = 0; v < work->view_count; v++)
        add_graphs(work, v);
    for (size_t c = 0; c < work->class_count; c++) {
        spread_means(&work->classes[c]);
        if (work->classes[c].time_ns < 0) /* rounding of what the graphs gave away */
            work->classes[c].time_ns = 0;
    }
}
