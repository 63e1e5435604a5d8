/* SPDX-License-Identifier: Apache-2.0
 *
 * work_phases.c - which phase the launches of each activity are of. What the launch itself tells (its thread,
 * its name, a range around it) is in the activity, and so exact for all of the run. What only its order tells
 * is seen where the timeline is; elsewhere the activity's launches are taken to be of the phases in the same
 * parts, step by step where whole steps were seen.
 */
#include "account/work.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS_LEAST = 2 };
#define NO_STEP      UINT32_MAX
#define FORWARD_PART 8 /* a graph's forward pass has at least this part of its backward pass's kernels */

/* One process. */
struct process {
    struct kj_work *work;
    struct kj_ledger_view *view;
    const uint32_t *class_of;
    struct kj_work_phase *phase_of;
    uint32_t v, activities;
    struct kj_phase_launch *plain; /* [activity] what a launch of it tells */
    uint64_t *launches;            /* [activity] exact */
    uint32_t *backward_nodes;      /* [activity] of a graph */
    bool *after_backward;          /* [activity] captured after the backward passes of its graph */
    struct kj_phase_facts facts;

    const struct kj_ledger_interval **order; /* in the order of the calls */
    size_t count;
    int8_t *phases;              /* of each */
    bool *in_graph;              /* of each: a node that was timed by itself */
    struct kj_phase_mark *marks; /* launch: place in `order` */
    size_t mark_count;
    uint64_t all; /* launches that would be in `order` if all were timed */

    size_t head;       /* the first of them: all up to the second update, with whatever comes once */
    uint32_t *step_of; /* of each after it: which of the steps that were seen whole; NO_STEP */
    uint32_t steps;    /* those; 0: too few to tell from, or all was seen */
    double step_times; /* how many of them the run after its head is, by the launches of backward passes */
};

static bool is_backward(const struct kj_phase_launch *l, int phase)
{
    return phase == KJ_PHASE_BACKWARD || (l->range < 0 && l->holds >> KJ_PHASE_BACKWARD & 1);
}

static bool is_optimizer(const struct kj_phase_launch *l, int phase)
{
    return phase == KJ_PHASE_OPTIMIZER || (l->range < 0 && l->holds >> KJ_PHASE_OPTIMIZER & 1);
}

/* What the nodes of each graph tell of it. */
static void read_graphs(struct process *p)
{
    struct kj_ledger_graph_node node;
    for (uint32_t a = 0; a < p->activities; a++)
        p->plain[a].holds = 0, p->plain[a].forward_nodes = p->backward_nodes[a] = 0;
    for (uint32_t i = 0; kj_ledger_view_row(p->view, KJ_SECTION_GRAPH_NODES, i, &node); i++) {
        if (node.graph >= p->activities || node.activity >= p->activities)
            continue;
        int phase = kj_phase_of_launch(&p->plain[node.activity]);
        if (phase == KJ_PHASE_BACKWARD || phase == KJ_PHASE_OPTIMIZER)
            p->plain[node.graph].holds |= (uint8_t)(1 << phase);
        if (phase < 0 && p->plain[node.activity].kernel)
            p->plain[node.graph].forward_nodes += node.nodes;
        if (phase == KJ_PHASE_BACKWARD)
            p->backward_nodes[node.graph] += node.nodes;
    }
}

/* The nodes that were captured after the last backward pass of their graph are of the update, if there is one
 * in the graph by name, or by name none in all of the process, and so it must be them. Returns whether any
 * are. */
static bool mark_updates(struct process *p)
{
    struct kj_ledger_graph_node node;
    bool named = false, any = false;
    for (uint32_t a = 0; a < p->activities && !named; a++)
        named = (p->launches[a] || p->plain[a].holds) &&
                is_optimizer(&p->plain[a], kj_phase_of_launch(&p->plain[a]));
    for (uint32_t i = 0; kj_ledger_view_row(p->view, KJ_SECTION_GRAPH_NODES, i, &node); i++) {
        if (node.graph >= p->activities || node.activity >= p->activities ||
            !p->after_backward[node.activity])
            continue;
        bool here = p->plain[node.graph].holds >> KJ_PHASE_OPTIMIZER & 1;
        p->plain[node.activity].update = p->plain[node.activity].update || here || !named;
        any = any || p->plain[node.activity].update;
    }
    p->facts.optimizer = named;
    return any;
}

static void read_activities(struct process *p)
{
    struct kj_ledger_activity activity;
    for (uint32_t a = 0; a < p->activities; a++) {
        struct kj_phase_launch *l = &p->plain[a];
        *l = (struct kj_phase_launch)KJ_PHASE_LAUNCH_PLAIN;
        if (!kj_ledger_view_row(p->view, KJ_SECTION_ACTIVITIES, a, &activity))
            continue;
        int range = KJ_ROLE_RANGE(activity.role);
        l->range = (int8_t)(range < KJ_PHASE_COUNT ? range : -1);
        l->kernel = activity.kind == KJ_ACTIVITY_KERNEL || activity.kind == KJ_ACTIVITY_GRAPH;
        l->autograd = KJ_ROLE_WHO(activity.role) == KJ_ROLE_AUTOGRAD;
        p->after_backward[a] = KJ_ROLE_WHO(activity.role) == KJ_ROLE_AFTER_BACKWARD;
        l->to_device = activity.kind == KJ_ACTIVITY_MEMCPY_HTOD;
        if (activity.kind == KJ_ACTIVITY_KERNEL)
            l->named = (int8_t)kj_phase_of_kernel(kj_ledger_view_name(p->view, activity.name));
        p->launches[a] = p->class_of[a] == KJ_NO_CLASS ? 0 : kj_ledger_view_launches(p->view, a);
        p->all += p->launches[a];
    }
    read_graphs(p);
    if (mark_updates(p))
        read_graphs(p);
    for (uint32_t a = 0; a < p->activities; a++) {
        /* A few kernels of the main thread do not make a forward pass beside a backward pass. */
        if ((uint64_t)p->plain[a].forward_nodes * FORWARD_PART < p->backward_nodes[a])
            p->plain[a].forward_nodes = 0;
        int phase = kj_phase_of_launch(&p->plain[a]);
        p->phase_of[a].direct = (int8_t)phase;
        p->facts.backward = p->facts.backward || (p->launches[a] && is_backward(&p->plain[a], phase));
    }
}

static int by_call(const void *a, const void *b)
{
    const struct kj_ledger_interval *x = *(const struct kj_ledger_interval *const *)a,
                                    *y = *(const struct kj_ledger_interval *const *)b;
    if (x->launch_ns != y->launch_ns)
        return x->launch_ns < y->launch_ns ? -1 : 1;
    return (x->start_ns > y->start_ns) - (x->start_ns < y->start_ns);
}

/* Where CUPTI times, the nodes of a graph have intervals of their own and the launch has none: what has the
 * same moment of call is one launch. Returns the end of that which begins at `from`. */
static size_t launch_end(const struct process *p, size_t from)
{
    size_t to = from + 1;
    while (kj_ledger_view_header(p->view)->cupti_records && to < p->count &&
           p->order[to]->launch_ns == p->order[from]->launch_ns)
        to++;
    return to;
}

/* What the launch of [from, to) tells. */
static struct kj_phase_launch launch_of(struct process *p, size_t from, size_t to)
{
    if (to == from + 1)
        return p->plain[p->order[from]->activity];
    struct kj_phase_launch graph = KJ_PHASE_LAUNCH_PLAIN;
    uint32_t backward = 0;
    for (size_t i = from; i < to; i++) {
        uint32_t a = p->order[i]->activity;
        int phase = p->phase_of[a].direct;
        if (phase == KJ_PHASE_BACKWARD || phase == KJ_PHASE_OPTIMIZER)
            graph.holds |= (uint8_t)(1 << phase);
        backward += phase == KJ_PHASE_BACKWARD;
        graph.forward_nodes += phase < 0 && p->plain[a].kernel;
        p->in_graph[i] = true;
    }
    if ((uint64_t)graph.forward_nodes * FORWARD_PART < backward)
        graph.forward_nodes = 0;
    return graph;
}

/* The launches, and where in `order` each begins. The first in a context begins a burst by its flag, and
 * misses none before it. */
static size_t read_sequence(struct process *p, struct kj_phase_launch *ret_launches, size_t *ret_first)
{
    bool met[64] = {false};
    size_t count = 0;
    for (size_t from = 0, to; from < p->count; from = to) {
        const struct kj_ledger_interval *row = p->order[from];
        uint32_t context = row->context < 64 ? row->context : 0;
        to = launch_end(p, from);
        ret_launches[count] = launch_of(p, from, to);
        ret_launches[count].gap_before = (row->flags & KJ_INTERVAL_GAP_BEFORE) != 0 && met[context];
        ret_first[count++] = from;
        met[context] = true;
    }
    ret_first[count] = p->count;
    return count;
}

static int find_in_sequence(struct process *p)
{
    struct kj_phase_launch *launches = malloc((p->count + 1) * sizeof(*launches));
    size_t *first = malloc((p->count + 1) * sizeof(*first));
    int8_t *phases = malloc(p->count + 1);
    int status = launches && first && phases ? 0 : -1;
    if (!status) {
        size_t count = read_sequence(p, launches, first);
        status = kj_phases_find(launches, count, &p->facts, phases, &p->marks, &p->mark_count) ? -1 : 0;
        for (size_t l = 0; !status && l < count; l++)
            for (size_t i = first[l]; i < first[l + 1]; i++)
                p->phases[i] = phases[l];
        for (size_t m = 0; !status && m < p->mark_count; m++)
            p->marks[m].launch = first[p->marks[m].launch];
    }
    free(launches);
    free(first);
    free(phases);
    return status;
}

static int find_phases(struct process *p, const struct kj_ledger_interval *rows, size_t count)
{
    p->order = malloc((count + 1) * sizeof(*p->order));
    p->phases = malloc(count + 1);
    p->in_graph = calloc(count + 1, sizeof(*p->in_graph));
    if (!p->order || !p->phases || !p->in_graph)
        return -1;
    for (size_t i = 0; i < count; i++)
        if (rows[i].activity < p->activities && p->class_of[rows[i].activity] != KJ_NO_CLASS &&
            rows[i].end_ns >= rows[i].start_ns && !(rows[i].flags & KJ_INTERVAL_ALONE))
            p->order[p->count++] = &rows[i];
    qsort(p->order, p->count, sizeof(*p->order), by_call);
    p->facts.cut = p->count < p->all;
    return find_in_sequence(p);
}

static struct kj_work_device *device_of(const struct process *p, uint32_t activity)
{
    return &p->work->devices[p->work->classes[p->class_of[activity]].device];
}

/* Where the first step ends, or what was seen of it without a gap. */
static size_t head_of(const struct process *p)
{
    size_t end = p->mark_count > 1 ? p->marks[1].launch : 0, i = 0;
    while (i < end && (!i || !(p->order[i]->flags & KJ_INTERVAL_GAP_BEFORE)))
        i++;
    return i;
}

static bool is_pass(const struct process *p, uint32_t a)
{
    return is_backward(&p->plain[a], p->phase_of[a].direct);
}

/* Launches of backward passes in all of the run. */
static uint64_t all_passes(const struct process *p)
{
    uint64_t all = 0;
    for (uint32_t a = 0; a < p->activities; a++)
        all += is_pass(p, a) ? p->launches[a] : 0;
    return all;
}

/* The steps that were seen whole, where bursts end others midway: a burst that ends before the update says
 * that there is none. The first one has a part that comes once, such as an optimizer's state. */
static int find_steps(struct process *p)
{
    uint64_t left = all_passes(p), passes = 0;
    p->step_of = malloc((p->count + 1) * sizeof(*p->step_of));
    if (!p->step_of)
        return -1;
    memset(p->step_of, 0xff, (p->count + 1) * sizeof(*p->step_of));
    p->head = head_of(p);
    for (size_t m = 1; m < p->mark_count && p->facts.cut; m++) {
        if (!p->marks[m].whole || p->marks[m - 1].launch < p->head)
            continue;
        for (size_t i = p->marks[m - 1].launch; i < p->marks[m].launch; i++) {
            p->step_of[i] = p->steps;
            passes += is_pass(p, p->order[i]->activity);
        }
        p->steps++;
    }
    for (size_t i = 0; i < p->head; i++)
        left -= is_pass(p, p->order[i]->activity) && left ? 1 : 0;
    if (p->steps < STEPS_LEAST || !passes) {
        p->steps = 0;
        p->head = 0;
    }
    p->step_times = p->steps ? (double)left / (double)passes : 0;
    return 0;
}

/* Whether launch i tells how often its activity is of which phase, by its order. */
static bool tells(const struct process *p, size_t i)
{
    return p->phases[i] >= 0 && p->phase_of[p->order[i]->activity].direct < 0;
}

/* What the order told, in blocks: how much of it would another part of the run have told otherwise? */
static void add_blocks(struct process *p)
{
    size_t told = 0, place = 0;
    for (size_t i = 0; i < p->count; i++)
        told += tells(p, i);
    for (size_t i = 0; i < p->count; i++) {
        const struct kj_ledger_interval *row = p->order[i];
        if (!tells(p, i) || (p->steps && p->step_of[i] == NO_STEP))
            continue;
        size_t block =
            p->steps ? (size_t)p->step_of[i] * KJ_PHASE_BLOCKS / p->steps : place++ * KJ_PHASE_BLOCKS / told;
        device_of(p, row->activity)->block_ns[block][p->phases[i]] += (double)(row->end_ns - row->start_ns);
    }
}

static bool of_every_step(int phase)
{
    return phase != KJ_PHASE_EVALUATION && phase != KJ_PHASE_UNATTRIBUTED;
}

/* Of one activity, by phase: launches that were seen in the head of the run, in whole steps after it, and in
 * all. */
struct seen_launches {
    double head[KJ_PHASE_COUNT], steps[KJ_PHASE_COUNT], all[KJ_PHASE_COUNT];
};

/* All of its launches by phase: those of the head; as many of the phases that every step has as in steps that
 * were seen whole, so many times; what is left is of the phases that come now and then. */
static void count_by_steps(const struct seen_launches *seen, double times, double launches,
                           double *ret_launches)
{
    double now_and_then = 0, in_steps = 0;
    for (int k = 0; k < KJ_PHASE_COUNT; k++) {
        launches -= seen->head[k] + (of_every_step(k) ? times * seen->steps[k] : 0);
        in_steps += of_every_step(k) ? seen->steps[k] : 0;
        now_and_then += of_every_step(k) ? 0 : seen->all[k] - seen->head[k];
    }
    if (in_steps <= 0) /* what was seen is all that tells */
        return;
    double left = now_and_then > 0 && launches > 0 ? launches / now_and_then : 0;
    for (int k = 0; k < KJ_PHASE_COUNT; k++)
        ret_launches[k] = seen->head[k] +
                          (of_every_step(k) ? times * seen->steps[k] : left * (seen->all[k] - seen->head[k]));
}

static double sum_of(const double *by_phase)
{
    double sum = 0;
    for (int k = 0; k < KJ_PHASE_COUNT; k++)
        sum += by_phase[k];
    return sum;
}

/* Shares by what was seen of the activity; else of its class; else of nothing. */
static int share_phases(struct process *p)
{
    double(*of_class)[KJ_PHASE_COUNT] = calloc(p->work->class_count + 1, sizeof(*of_class));
    struct seen_launches *seen_of = calloc(p->activities + 1, sizeof(*seen_of));
    if (!of_class || !seen_of) {
        free(of_class);
        free(seen_of);
        return -1;
    }
    for (size_t i = 0; i < p->count; i++) {
        uint32_t a = p->order[i]->activity;
        if (!tells(p, i))
            continue;
        p->phase_of[a].share[p->phases[i]]++;
        p->phase_of[a].in_graphs = p->phase_of[a].in_graphs || p->in_graph[i];
        of_class[p->class_of[a]][p->phases[i]]++;
        seen_of[a].all[p->phases[i]]++;
        seen_of[a].head[p->phases[i]] += i < p->head;
        seen_of[a].steps[p->phases[i]] += p->step_of[i] != NO_STEP;
    }
    for (uint32_t a = 0; a < p->activities; a++) {
        struct kj_work_phase *phase = &p->phase_of[a];
        double seen = sum_of(phase->share);
        if (p->class_of[a] == KJ_NO_CLASS)
            continue;
        bool all_told = phase->direct >= 0 || !p->facts.backward || seen >= (double)p->launches[a];
        if (!all_told)
            device_of(p, a)->phases_sampled = true;
        if (phase->direct < 0 && seen <= 0) {
            memcpy(phase->share, of_class[p->class_of[a]], sizeof(phase->share));
            seen = sum_of(phase->share);
        }
        if (p->steps && !all_told && phase->direct < 0) {
            count_by_steps(&seen_of[a], p->step_times, (double)p->launches[a], phase->share);
            seen = sum_of(phase->share);
        }
        int only = phase->direct >= 0 ? phase->direct : KJ_PHASE_UNATTRIBUTED;
        bool one = phase->direct >= 0 || !p->facts.backward || seen <= 0;
        for (int k = 0; k < KJ_PHASE_COUNT; k++)
            phase->share[k] = one ? (double)(k == only) : phase->share[k] / seen;
    }
    free(of_class);
    free(seen_of);
    return 0;
}

/* Steps of one device that were seen, their periods, and how many there were in all of the run: updates that
 * begin on it. passes_before: launches of backward passes before each. all_passes: in all of the run. */
static void add_device_steps(struct process *p, uint32_t d, const uint64_t *passes_before,
                             uint64_t all_passes)
{
    struct kj_work_steps *steps = &p->work->devices[d].steps;
    uint64_t seen = 0, in_steps = 0, whole_steps = 0;
    size_t from = SIZE_MAX;
    for (size_t i = 0; i < p->mark_count; i++) {
        size_t to = p->marks[i].launch;
        if (!p->marks[i].whole)
            from = SIZE_MAX;
        if (device_of(p, p->order[to]->activity) != &p->work->devices[d])
            continue;
        seen++;
        double ns = from == SIZE_MAX ? 0 : (double)p->order[to]->start_ns - (double)p->order[from]->start_ns;
        if (ns > 0) {
            in_steps += passes_before[to] - passes_before[from];
            whole_steps++;
            steps->min_ns = steps->timed && steps->min_ns < ns ? steps->min_ns : ns;
            steps->max_ns = steps->max_ns > ns ? steps->max_ns : ns;
            steps->sum_ns += ns;
            steps->sum_ns2 += ns * ns;
            steps->timed++;
        }
        from = to;
    }
    if (!seen)
        return;
    bool counted = !p->facts.cut;
    steps->counted = steps->count > 0 ? steps->counted && counted : counted;
    steps->count += counted || !in_steps ? (double)seen
                                         : round((double)all_passes * (double)whole_steps / (double)in_steps);
}

static int add_steps(struct process *p)
{
    uint64_t passes = 0, all = all_passes(p),
             *passes_before = malloc((p->count + 1) * sizeof(*passes_before));
    if (!passes_before)
        return -1;
    for (size_t i = 0; i < p->count; i++) {
        passes_before[i] = passes;
        passes += is_pass(p, p->order[i]->activity);
    }
    for (uint32_t d = 0; p->mark_count && d < p->work->device_count; d++)
        add_device_steps(p, d, passes_before, all);
    free(passes_before);
    return 0;
}

int kj_work_add_phases(struct kj_work *work, uint32_t view, const struct kj_ledger_interval *rows,
                       size_t count)
{
    struct process p = {.work = work,
                        .view = work->views[view],
                        .v = view,
                        .class_of = work->class_of[view],
                        .phase_of = work->phase_of[view],
                        .activities = kj_ledger_view_rows(work->views[view], KJ_SECTION_ACTIVITIES)};
    p.plain = malloc((p.activities + 1) * sizeof(*p.plain));
    p.launches = calloc(p.activities + 1, sizeof(*p.launches));
    p.backward_nodes = calloc(p.activities + 1, sizeof(*p.backward_nodes));
    p.after_backward = calloc(p.activities + 1, sizeof(*p.after_backward));
    int status = p.plain && p.launches && p.backward_nodes && p.after_backward ? 0 : -1;
    if (!status) {
        read_activities(&p);
        status = find_phases(&p, rows, count);
    }
    if (!status)
        status = find_steps(&p);
    if (!status) {
        add_blocks(&p);
        status = share_phases(&p);
    }
    if (!status)
        status = add_steps(&p);
    free(p.plain);
    free(p.launches);
    free(p.backward_nodes);
    free(p.after_backward);
    free(p.order);
    free(p.phases);
    free(p.in_graph);
    free(p.step_of);
    free(p.marks);
    return status;
}
