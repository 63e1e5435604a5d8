/* SPDX-License-Identifier: Apache-2.0
 *
 * phases.h - which phase of a training each launch is of, told from the order of launches alone: who
 * launched, what the kernel is called, what came before and after. The phases are in shim/phase_names.h, the
 * rules in the two tables below; METHOD.md says what they cannot tell. Pure: no I/O, no globals.
 */
#ifndef KJ_MODEL_PHASES_H
#define KJ_MODEL_PHASES_H

#include "phase_names.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the launch itself tells. Zero is not "nothing": start from KJ_PHASE_LAUNCH_PLAIN. */
struct kj_phase_launch {
    int8_t range;    /* enum kj_phase of the NVTX range around it; -1 none */
    int8_t named;    /* kj_phase_of_kernel of its name; -1 none */
    bool autograd;   /* by a thread of PyTorch's autograd engine */
    bool update;     /* a node captured after the backward passes of a graph that updates parameters */
    bool kernel;     /* not a copy or fill */
    bool to_device;  /* a copy from host to device */
    uint8_t holds;   /* of a graph: bits 1 << KJ_PHASE_BACKWARD, 1 << KJ_PHASE_OPTIMIZER of its nodes */
    bool gap_before; /* launches before it are missing in the sequence */
    uint32_t forward_nodes; /* of a graph that holds a backward pass: kernels of the forward pass in it too */
};
#define KJ_PHASE_LAUNCH_PLAIN                                                                                \
    {                                                                                                        \
        .range = -1, .named = -1, .kernel = true                                                             \
    }

/* What a single launch tells: the first rule whose condition on `l` holds. id, condition, phase, why. */
#define KJ_PHASE_RULES(X)                                                                                    \
    X(RANGE, l->range >= 0, l->range, "inside an NVTX range named like a phase (shim/phase_names.h)")        \
    X(COLLECTIVE, l->named == KJ_PHASE_COMMUNICATION, KJ_PHASE_COMMUNICATION, "an NCCL kernel, by name")     \
    X(TO_DEVICE, l->to_device, KJ_PHASE_DATA, "a copy from host to device")                                  \
    X(UPDATE, l->named == KJ_PHASE_OPTIMIZER, KJ_PHASE_OPTIMIZER, "a multi-tensor or fused optimizer")       \
    X(GRAPH_END, l->update, KJ_PHASE_OPTIMIZER, "captured after the last backward pass of a whole step")     \
    X(AUTOGRAD, l->autograd, KJ_PHASE_BACKWARD, "launched by the autograd engine; recomputed forward too")   \
    X(GRAPH_STEP, l->holds >> KJ_PHASE_BACKWARD & 1, KJ_PHASE_FORWARD, "rest of a graph with a backward")    \
    X(GRAPH_UPDATE, l->holds >> KJ_PHASE_OPTIMIZER & 1, KJ_PHASE_OPTIMIZER, "rest of a graph of an update")

/* What encloses a stretch of launches that no rule above claims. */
enum kj_phase_edge {
    KJ_EDGE_START = 1 << 0,    /* the process begins */
    KJ_EDGE_CUT = 1 << 1,      /* launches are missing here */
    KJ_EDGE_BACKWARD = 1 << 2, /* a launch of the backward pass */
    KJ_EDGE_OPTIMIZER = 1 << 3,
    KJ_EDGE_END = 1 << 4,  /* the process ends */
    KJ_EDGE_STEP = 1 << 5, /* a graph with forward and backward pass in it */
};
#define KJ_EDGE_ANY 63

#define KJ_PHASE_UNKNOWN (-1) /* the sequence is cut off where it would have told */

/* What a stretch tells by its edges: the first rule that fits. `s.longer`: clearly more launches than forward
 * passes of this process have (of a graph's: that have its kernels); `s.half`: at least half as many. Then,
 * or where SPLIT is COPY, the stretch has two parts: FORWARD splits as many launches as a forward pass has
 * off its end, COPY splits at the first copy to the device. id, edge before, edge after, condition, split,
 * phase (of the first part), phase of the second part, why. */
#define KJ_PHASE_STRETCHES(X)                                                                                \
    X(NO_TRAINING, KJ_EDGE_ANY, KJ_EDGE_ANY, !s.backward, NONE, UNATTRIBUTED, UNATTRIBUTED,                  \
      "the process has no backward pass: whatever it does, it is no training that these rules know")         \
    X(CLIPPING, KJ_EDGE_BACKWARD, KJ_EDGE_OPTIMIZER, true, NONE, OPTIMIZER, OPTIMIZER,                       \
      "between backward and optimizer: clipping, unscaling, reading the loss")                               \
    X(CLIPPING_SEEN_LATE, KJ_EDGE_CUT, KJ_EDGE_OPTIMIZER, true, NONE, OPTIMIZER, OPTIMIZER,                  \
      "the same, of which the beginning is missing")                                                         \
    X(VALIDATION_ALONE, KJ_EDGE_OPTIMIZER, KJ_EDGE_OPTIMIZER, s.half, NONE, EVALUATION, EVALUATION,          \
      "no backward pass before the next update, and long")                                                   \
    X(UPDATE_PARTS, KJ_EDGE_OPTIMIZER, KJ_EDGE_OPTIMIZER, true, NONE, OPTIMIZER, OPTIMIZER,                  \
      "between kernels of one update")                                                                       \
    X(PREPARATION, KJ_EDGE_START, KJ_EDGE_OPTIMIZER, true, NONE, UNATTRIBUTED, UNATTRIBUTED,                 \
      "before the first update, with no backward pass: set-up")                                              \
    X(FIRST_FORWARD, KJ_EDGE_START, KJ_EDGE_BACKWARD, true, FORWARD, UNATTRIBUTED, FORWARD,                  \
      "before the first backward pass; what is too much for one forward pass is set-up")                     \
    X(FORWARD, KJ_EDGE_OPTIMIZER | KJ_EDGE_CUT, KJ_EDGE_BACKWARD, true, FORWARD, EVALUATION, FORWARD,        \
      "a forward pass; what is too much for one, before it, is evaluation")                                  \
    X(ACCUMULATION, KJ_EDGE_BACKWARD, KJ_EDGE_BACKWARD, s.optimizer, FORWARD, EVALUATION, FORWARD,           \
      "between two backward passes of one update")                                                           \
    X(LOOP_UPDATE, KJ_EDGE_BACKWARD, KJ_EDGE_BACKWARD | KJ_EDGE_STEP, s.copy && !s.optimizer, COPY,          \
      OPTIMIZER, FORWARD,                                                                                    \
      "no optimizer kernel has a name in this process: an update is what runs from the backward pass to "    \
      "the "                                                                                                 \
      "next batch")                                                                                          \
    X(LOOP_BLIND, KJ_EDGE_BACKWARD, KJ_EDGE_BACKWARD, true, NONE, UNATTRIBUTED, UNATTRIBUTED,                \
      "the same without a copy of a batch: update and forward pass cannot be told apart")                    \
    X(GRAPH_VALIDATION, KJ_EDGE_OPTIMIZER | KJ_EDGE_CUT, KJ_EDGE_STEP, s.half, NONE, EVALUATION, EVALUATION, \
      "the graph that follows has its forward pass inside: as much as that before it is another one")        \
    X(GRAPH_PREPARATION, KJ_EDGE_START, KJ_EDGE_STEP, true, NONE, UNATTRIBUTED, UNATTRIBUTED,                \
      "before the first step, which is a graph: set-up")                                                     \
    X(GRAPH_INPUT, KJ_EDGE_ANY, KJ_EDGE_STEP, true, NONE, FORWARD, FORWARD, "the inputs of a graph")         \
    X(LAST_VALIDATION, KJ_EDGE_OPTIMIZER, KJ_EDGE_END, true, NONE, EVALUATION, EVALUATION,                   \
      "no backward pass follows any more")                                                                   \
    X(LOOP_LAST, KJ_EDGE_BACKWARD, KJ_EDGE_END, s.copy && !s.optimizer, COPY, OPTIMIZER, EVALUATION,         \
      "the last update, and what follows")                                                                   \
    X(REST, KJ_EDGE_ANY, KJ_EDGE_END, true, NONE, UNATTRIBUTED, UNATTRIBUTED,                                \
      "after the last backward pass, with no update")                                                        \
    X(CUT_VALIDATION, KJ_EDGE_OPTIMIZER | KJ_EDGE_CUT, KJ_EDGE_CUT, s.longer, FORWARD, EVALUATION, UNKNOWN,  \
      "too much for one forward pass, cut off")                                                              \
    X(CUT_OFF, KJ_EDGE_ANY, KJ_EDGE_ANY, true, NONE, UNKNOWN, UNKNOWN, "cut off before it told")

/* Facts of the whole process, which the sequence may lack where it is cut. */
struct kj_phase_facts {
    bool backward;  /* something is of the backward pass */
    bool optimizer; /* something is of the optimizer, and not inside the backward pass */
    bool cut;       /* launches are missing at the end */
};

/* Where an optimizer update begins that ends a step: the first since a backward pass. */
struct kj_phase_mark {
    size_t launch;
    bool whole; /* the mark before it is of the step before: nothing is missing between them */
};

/* KJ_PHASE_OPTIMIZER or KJ_PHASE_COMMUNICATION by a kernel's (mangled) name; -1: it tells nothing. */
int kj_phase_of_kernel(const char *name);

/* What the launch itself tells; -1: nothing. */
int kj_phase_of_launch(const struct kj_phase_launch *l);

/* The phase of each launch (enum kj_phase, or KJ_PHASE_UNKNOWN) of one process, in the order of their calls.
 * ret_phases has room for `count`. The caller frees *ret_marks. 0 or -ENOMEM. */
int kj_phases_find(const struct kj_phase_launch *launches, size_t count, const struct kj_phase_facts *facts,
                   int8_t *ret_phases, struct kj_phase_mark **ret_marks, size_t *ret_mark_count);

const char *kj_phase_name(enum kj_phase phase);

#endif
