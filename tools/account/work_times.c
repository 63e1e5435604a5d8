/* SPDX-License-Identifier: Apache-2.0
 *
 * work_times.c - how long each class ran: exact counts x learned durations.
 *
 * A launch without a duration of its own takes the mean of its launch shape, else that of its class. The
 * first launch of a shape may have waited for lazy loading, so its bracket is used only where nothing else is
 * known, and then the launch took anything between nothing and that. Few brackets say little of the launches
 * that were not timed: the interval is Student's, and says as much. Nodes of graphs have the
 * times that work_nodes.c found. Each launch counts, with its time, for the phases that it is of.
 */
#include "account/work.h"

#include <math.h>

double kj_work_mean_ns(const struct kj_work_class *class)
{
    uint64_t known = class->launches - class->untimed - class->open;
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

double kj_work_launch_ns(const struct kj_ledger_activity *activity)
{
    return activity->timed || activity->first_ns ? span_of(activity, 1).ns : 0;
}

/* All launches of one kind of node of a graph. whole: of all launches of the graph. */
static void add_node(struct kj_work *work, const struct kj_work_graph *graph, const struct kj_work_node *node,
                     const struct span *whole)
{
    struct kj_work_class *own = &work->classes[node->own], *class = &work->classes[node->class];
    const struct kj_work_phase *phase = &work->phase_of[graph->view][node->activity];
    double launches = (double)graph->launches, ns = node->ns * launches;
    uint64_t node_launches = graph->launches * node->nodes,
             untimed = class == own && ns <= 0 ? node_launches : 0;
    uint64_t timed = node->timed < node_launches ? node->timed : node_launches;
    if (phase->direct < 0 && !phase->in_graphs)
        phase = &work->phase_of[graph->view][graph->activity];
    own->launches += node_launches;
    own->timed += timed;
    own->unmeasured += node_launches - timed;
    own->bytes += graph->launches * node->bytes;
    own->open += class == own ? 0 : node_launches;
    own->untimed += untimed;
    if (!node->timed) {
        add_variance(own, -1);
        if (whole->ns > 0) /* with the graph, it may be off */
            add_span(class,
                     &(struct span){
                         .off_ns2 = whole->off_ns2, .below_ns = whole->below_ns, .above_ns = whole->above_ns},
                     ns / whole->ns);
    }
    add_span(class,
             &(struct span){.ns = ns,
                            .below_ns = (node->ns - node->low_ns) * launches,
                            .above_ns = (node->high_ns - node->ns) * launches},
             1);
    add_phases(own, phase, (double)node_launches, (double)untimed, class == own ? ns : 0);
    if (class != own)
        add_phases(class, phase, 0, 0, ns);
}

/* Graphs whose nodes are known; what those take over is taken off the graphs' own class. */
static void add_graph(struct kj_work *work, const struct kj_work_graph *graph)
{
    struct kj_work_class *whole = &work->classes[work->class_of[graph->view][graph->activity]];
    double launches = (double)graph->launches;
    struct kj_ledger_activity activity;
    struct span span = {0};
    if (graph->mean_ns > 0 &&
        kj_ledger_view_row(work->views[graph->view], KJ_SECTION_ACTIVITIES, graph->activity, &activity))
        span = span_of(&activity, graph->launches);
    uint64_t untimed = span.ns > 0 ? 0 : graph->launches < whole->untimed ? graph->launches : whole->untimed;
    whole->launches -= graph->launches;
    whole->untimed -= untimed;
    add_span(whole, &span, -1);
    add_phases(whole, &work->phase_of[graph->view][graph->activity], -launches, -(double)untimed, -span.ns);
    for (size_t i = 0; i < graph->count; i++)
        if (work->nodes[graph->first + i].own != KJ_NO_CLASS)
            add_node(work, graph, &work->nodes[graph->first + i], &span);
    if (graph->group != KJ_NO_CLASS)
        work->classes[graph->group].launches += graph->launches;
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
    for (size_t i = 0; i < work->graph_count; i++)
        add_graph(work, &work->graphs[i]);
    for (size_t c = 0; c < work->class_count; c++) {
        spread_means(&work->classes[c]);
        if (work->classes[c].time_ns < 0) /* rounding of what the graphs gave away */
            work->classes[c].time_ns = 0;
    }
}
