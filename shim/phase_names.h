/* SPDX-License-Identifier: Apache-2.0
 *
 * phase_names.h - the phases of a training, and the names by which NVTX ranges tell them. The shim marks
 * launches that a range encloses; all other rules are the tools' (tools/model/phases.h).
 */
#ifndef KJ_PHASE_NAMES_H
#define KJ_PHASE_NAMES_H

#include <stdbool.h>
#include <stdint.h>

/* id, name in the report, what it is */
#define KJ_PHASES(X)                                                                                         \
    X(DATA, "data", "data loading: batches on their way to the device")                                      \
    X(FORWARD, "forward", "forward pass and loss")                                                           \
    X(BACKWARD, "backward", "backward pass; with activation checkpointing, what is computed anew in it")     \
    X(OPTIMIZER, "optimizer", "update of the weights; clipping and unscaling before it")                     \
    X(EVALUATION, "evaluation", "forward passes that no backward pass follows")                              \
    X(COMMUNICATION, "communication", "collectives between devices")                                         \
    X(UNATTRIBUTED, "unattributed", "what no rule claims")

enum kj_phase {
#define X(id, name, doc) KJ_PHASE_##id,
    KJ_PHASES(X)
#undef X
        KJ_PHASE_COUNT
};

/* How a range's name must begin, in any case of letters, to be of a phase; no letter may follow. The first
 * that fits counts. UNATTRIBUTED: it names more than one phase, and tells nothing. */
#define KJ_PHASE_RANGES(X)                                                                                   \
    X("forward-backward", UNATTRIBUTED)                                                                      \
    X("forward_backward", UNATTRIBUTED)                                                                      \
    X("forward", FORWARD)                                                                                    \
    X("forward pass", FORWARD)                                                                               \
    X("fwd", FORWARD)                                                                                        \
    X("backward", BACKWARD)                                                                                  \
    X("loss.backward", BACKWARD)                                                                             \
    X("bwd", BACKWARD)                                                                                       \
    X("optimizer", OPTIMIZER)                                                                                \
    X("optim", OPTIMIZER)                                                                                    \
    X("opt", OPTIMIZER)                                                                                      \
    X("evaluation", EVALUATION)                                                                              \
    X("evaluate", EVALUATION)                                                                                \
    X("eval", EVALUATION)                                                                                    \
    X("validation", EVALUATION)                                                                              \
    X("validate", EVALUATION)                                                                                \
    X("val", EVALUATION)                                                                                     \
    X("data", DATA)                                                                                          \
    X("dataloader", DATA)                                                                                    \
    X("dataloading", DATA)                                                                                   \
    X("load_batch", DATA)                                                                                    \
    X("communication", COMMUNICATION)                                                                        \
    X("comm", COMMUNICATION)                                                                                 \
    X("allreduce", COMMUNICATION)                                                                            \
    X("all_reduce", COMMUNICATION)

static inline char kj_phase_lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + 'a' - 'A') : c;
}

/* Phase of a range by its name; -1: it has none. Reads no further than what decides. */
static inline int kj_phase_of_range(const char *name)
{
    static const struct {
        const char *start;
        int8_t phase;
    } table[] = {
#define X(start, phase) {start, KJ_PHASE_##phase},
        KJ_PHASE_RANGES(X)
#undef X
    };
    for (unsigned i = 0; name && i < sizeof(table) / sizeof(*table); i++) {
        unsigned n = 0;
        while (table[i].start[n] && kj_phase_lower(name[n]) == table[i].start[n])
            n++;
        char next = table[i].start[n] ? 'a' : kj_phase_lower(name[n]);
        if (next < 'a' || next > 'z')
            return table[i].phase == KJ_PHASE_UNATTRIBUTED ? -1 : table[i].phase;
    }
    return -1;
}

/* A role byte (ledger.h): who launched in the low half, phase + 1 of the range around it in the high half. */
#define KJ_ROLE_WHO(role)      ((role)&15)
#define KJ_ROLE_RANGE(role)    ((int)((role) >> 4) - 1)
#define KJ_ROLE_IN(who, phase) ((uint8_t)((who) | ((phase) + 1) << 4))

#endif
