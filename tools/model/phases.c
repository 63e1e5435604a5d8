/* SPDX-License-Identifier: Apache-2.0
 *
 * phases.c - the rules of phases.h applied to a sequence of launches.
 */
#include "model/phases.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LONGER_BY 1.5 /* launches over those of a usual forward pass: more than one of them */
#define SNAP_PART                                                                                            \
    0.25 /* of a forward pass: how far from its end a copy of a batch is taken for its start                 \
          */

/* Parts of kernel names in lower case: phase, part, what must not follow it. */
#define KERNEL_NAMES(X)                                                                                      \
    X(COMMUNICATION, "nccldevkernel", "")                                                                    \
    X(COMMUNICATION, "ncclkernel", "")                                                                       \
    X(OPTIMIZER, "multi_tensor_apply", "")                                                                   \
    X(OPTIMIZER, "multitensorapply", "")                                                                     \
    X(OPTIMIZER, "adam", "")                                                                                 \
    X(OPTIMIZER, "sgd", "")                                                                                  \
    X(OPTIMIZER, "lamb", "da")                                                                               \
    X(OPTIMIZER, "adagrad", "")                                                                              \
    X(OPTIMIZER, "adadelta", "")                                                                             \
    X(OPTIMIZER, "rmsprop", "")                                                                              \
    X(OPTIMIZER, "novograd", "")                                                                             \
    X(OPTIMIZER, "adafactor", "")                                                                            \
    X(OPTIMIZER, "kpreconditionoptimizer", "")                                                               \
    X(OPTIMIZER, "koptimizer32bit", "")                                                                      \
    X(OPTIMIZER, "koptimizerstatic8bit", "")

static const struct {
    int8_t phase;
    const char *part, *not_before;
} kernel_names[] = {
#define X(phase, part, not_before) {KJ_PHASE_##phase, part, not_before},
    KERNEL_NAMES(X)
#undef X
};

static bool starts(const char *text, const char *lower)
{
    while (*lower && kj_phase_lower(*text) == *lower)
        text++, lower++;
    return !*lower;
}

int kj_phase_of_kernel(const char *name)
{
    for (const char *p = name; p && *p; p++)
        for (size_t i = 0; i < sizeof(kernel_names) / sizeof(*kernel_names); i++)
            if (starts(p, kernel_names[i].part) &&
                !(*kernel_names[i].not_before &&
                  starts(p + strlen(kernel_names[i].part), kernel_names[i].not_before)))
                return kernel_names[i].phase;
    return -1;
}

const char *kj_phase_name(enum kj_phase phase)
{
    static const char *const names[] = {
#define X(id, name, doc) name,
        KJ_PHASES(X)
#undef X
    };
    return names[phase];
}

int kj_phase_of_launch(const struct kj_phase_launch *l)
{
#define X(id, condition, phase, why)                                                                         \
    if (condition)                                                                                           \
        return phase;
    KJ_PHASE_RULES(X)
#undef X
    return -1;
}

/* ---- stretches
 * --------------------------------------------------------------------------------------------- */

/* Launches [begin, end) that lie between two edges; of them `count` are undecided. */
struct stretch {
    size_t begin, end, count;
    size_t after_copy; /* of the undecided, those from the first copy to the device on */
    bool copy;
    uint8_t before, after;
};

struct sequence {
    const struct kj_phase_launch *launches;
    size_t count;
    const struct kj_phase_facts *facts;
    int8_t *phases;
    struct stretch *stretches;
    size_t stretch_count;
    struct kj_phase_mark *marks;
    size_t mark_count;
    size_t usual; /* undecided launches of a forward pass; 0 unknown */
};

static void close_stretch(struct sequence *q, struct stretch *open, size_t at, uint8_t edge)
{
    open->end = at;
    open->after = edge;
    if (open->count)
        q->stretches[q->stretch_count++] = *open;
    *open = (struct stretch){.begin = at, .before = edge};
}

/* The edges that a launch is. An optimizer inside the backward pass is none, nor is a collective anywhere. */
static uint8_t edges_of(const struct kj_phase_launch *l, int phase)
{
    if (l->range < 0 && l->holds)
        return (l->holds >> KJ_PHASE_BACKWARD & 1 ? KJ_EDGE_BACKWARD : 0) |
               (l->holds >> KJ_PHASE_OPTIMIZER & 1 ? KJ_EDGE_OPTIMIZER : 0);
    if (phase == KJ_PHASE_BACKWARD)
        return KJ_EDGE_BACKWARD;
    return phase == KJ_PHASE_OPTIMIZER && (!l->autograd || l->range >= 0) ? KJ_EDGE_OPTIMIZER : 0;
}

/* Cuts the sequence at the edges, and notes the single launches' phases and the steps that named updates end.
 */
static void find_stretches(struct sequence *q)
{
    struct stretch open = {.before = KJ_EDGE_START};
    bool backward = false, whole = false;
    for (size_t i = 0; i < q->count; i++) {
        const struct kj_phase_launch *l = &q->launches[i];
        int phase = kj_phase_of_launch(l);
        if (l->gap_before) {
            close_stretch(q, &open, i, KJ_EDGE_CUT);
            backward = whole = false;
        }
        q->phases[i] = (int8_t)phase;
        uint8_t edges = edges_of(l, phase);
        if (edges & KJ_EDGE_BACKWARD) {
            close_stretch(q, &open, i, l->holds && l->forward_nodes ? KJ_EDGE_STEP : KJ_EDGE_BACKWARD);
            open.before = KJ_EDGE_BACKWARD;
            backward = true;
        }
        if (edges & KJ_EDGE_OPTIMIZER) {
            close_stretch(q, &open, i, KJ_EDGE_OPTIMIZER);
            if (backward) {
                q->marks[q->mark_count++] = (struct kj_phase_mark){i, whole};
                whole = true;
            }
            backward = false;
        }
        open.copy = open.copy || l->to_device;
        open.count += phase < 0;
        open.after_copy += phase < 0 && open.copy;
    }
    close_stretch(q, &open, q->count, q->facts->cut ? KJ_EDGE_CUT : KJ_EDGE_END);
}

static bool is_loop(const struct sequence *q, const struct stretch *s)
{
    return s->before == KJ_EDGE_BACKWARD && !q->facts->optimizer;
}

static int by_size(const void *a, const void *b)
{
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return (x > y) - (x < y);
}

/* The median of the stretches that are a forward pass and at most an evaluation before it. */
static int find_usual(struct sequence *q)
{
    size_t count = 0, *sizes = malloc((q->stretch_count + 1) * sizeof(*sizes));
    if (!sizes)
        return -ENOMEM;
    for (size_t i = 0; i < q->stretch_count; i++) {
        const struct stretch *s = &q->stretches[i];
        if (s->after != KJ_EDGE_BACKWARD || !(s->before & (KJ_EDGE_OPTIMIZER | KJ_EDGE_BACKWARD)))
            continue;
        size_t size = is_loop(q, s) ? s->after_copy : s->count;
        if (size)
            sizes[count++] = size;
    }
    qsort(sizes, count, sizeof(*sizes), by_size);
    q->usual = count ? sizes[(count - 1) / 2] : 0;
    free(sizes);
    return 0;
}

enum split { SPLIT_NONE, SPLIT_FORWARD, SPLIT_COPY };

struct verdict {
    enum split split;
    int8_t first, second;
};

/* What the rules' conditions see. */
struct seen {
    bool backward, optimizer, copy, longer, half;
};

static bool is_longer(const struct sequence *q, size_t count)
{
    return q->usual && (double)count > LONGER_BY * (double)q->usual;
}

static struct verdict judge(const struct sequence *q, const struct stretch *stretch)
{
    size_t usual = stretch->after == KJ_EDGE_STEP ? q->launches[stretch->end].forward_nodes : q->usual;
    const struct seen s = {.backward = q->facts->backward,
                           .optimizer = q->facts->optimizer,
                           .copy = stretch->copy,
                           .longer = is_longer(q, stretch->count),
                           .half = usual && stretch->count * 2 > usual};
#define X(id, before_edge, after_edge, condition, split, first, second, why)                                 \
    if (stretch->before & (before_edge) && stretch->after & (after_edge) && (condition))                     \
        return (struct verdict){SPLIT_##split, KJ_PHASE_##first, KJ_PHASE_##second};
    KJ_PHASE_STRETCHES(X)
#undef X
    return (struct verdict){SPLIT_NONE, KJ_PHASE_UNKNOWN, KJ_PHASE_UNKNOWN};
}

/* How many of the undecided launches from `begin` on, `count` of them, come before the forward pass at their
 * end: all but the usual number; or, where a batch is copied near that place, those before the copy. */
static size_t before_forward(const struct sequence *q, size_t begin, size_t end, size_t count)
{
    if (!is_longer(q, count))
        return 0;
    size_t cut = count - q->usual, best = cut, passed = 0;
    double nearest = SNAP_PART * (double)q->usual;
    for (size_t i = begin; i < end; i++) {
        double off = passed > cut ? (double)(passed - cut) : (double)(cut - passed);
        if (q->launches[i].to_device && off <= nearest) {
            nearest = off;
            best = passed;
        }
        passed += q->phases[i] < 0;
    }
    return best;
}

/* Gives the undecided launches of [begin, end) their phase: the first `cut` of them one, the rest the other.
 */
static void give(struct sequence *q, size_t begin, size_t end, size_t cut, int8_t first, int8_t second)
{
    size_t passed = 0;
    for (size_t i = begin; i < end; i++)
        if (q->phases[i] == KJ_PHASE_UNKNOWN)
            q->phases[i] = passed++ < cut ? first : second;
}

static size_t place_of_copy(const struct sequence *q, const struct stretch *s)
{
    size_t i = s->begin;
    while (i < s->end && !q->launches[i].to_device)
        i++;
    return i;
}

static bool has_kernel(const struct sequence *q, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i++)
        if (q->launches[i].kernel && q->phases[i] < 0)
            return true;
    return false;
}

static void apply(struct sequence *q, const struct stretch *s, struct verdict v)
{
    if (v.split == SPLIT_NONE) {
        give(q, s->begin, s->end, 0, v.first, v.first);
    } else if (v.split == SPLIT_FORWARD) {
        give(q, s->begin, s->end, before_forward(q, s->begin, s->end, s->count), v.first, v.second);
    } else {
        /* What follows the copy is as after an update: an evaluation may come before the forward pass. */
        size_t copy = place_of_copy(q, s);
        size_t cut = before_forward(q, copy, s->end, s->after_copy);
        give(q, copy, s->end, cut, KJ_PHASE_EVALUATION, v.second);
        give(q, s->begin, copy, 0, v.first, v.first);
    }
}

/* Steps where no update has a name: it ends a step that something ran after the backward pass before the next
 * batch, or, with the updates inside the backward pass, that another one begins. */
static void mark_loops(struct sequence *q)
{
    size_t reached = 0;
    bool whole = false;
    for (size_t i = 0; i < q->stretch_count; i++) {
        const struct stretch *s = &q->stretches[i];
        for (; reached < s->begin; reached++)
            whole = whole && !q->launches[reached].gap_before;
        if (!is_loop(q, s) || s->after == KJ_EDGE_CUT)
            continue;
        size_t copy = place_of_copy(q, s);
        if (!s->copy || !has_kernel(q, s->begin, copy))
            continue;
        q->marks[q->mark_count++] = (struct kj_phase_mark){s->begin, whole};
        whole = true;
    }
}

int kj_phases_find(const struct kj_phase_launch *launches, size_t count, const struct kj_phase_facts *facts,
                   int8_t *ret_phases, struct kj_phase_mark **ret_marks, size_t *ret_mark_count)
{
    struct sequence q = {.launches = launches, .count = count, .facts = facts, .phases = ret_phases};
    q.stretches = malloc((count + 2) * sizeof(*q.stretches));
    q.marks = malloc((count + 1) * sizeof(*q.marks));
    int status = q.stretches && q.marks ? 0 : -ENOMEM;
    if (!status) {
        find_stretches(&q);
        status = find_usual(&q);
    }
    if (!status && facts->backward && !facts->optimizer)
        mark_loops(&q);
    for (size_t i = 0; !status && i < q.stretch_count; i++)
        apply(&q, &q.stretches[i], judge(&q, &q.stretches[i]));
    free(q.stretches);
    if (status) {
        free(q.marks);
        return status;
    }
    *ret_marks = q.marks;
    *ret_mark_count = q.mark_count;
    return 0;
}
