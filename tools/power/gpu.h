/* SPDX-License-Identifier: Apache-2.0
 *
 * gpu.h - which board is meant, and who else is on it: for commands that work on one board.
 */
#ifndef KJ_GPU_H
#define KJ_GPU_H

#include "base/log.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kj_gpu {
    unsigned index; /* NVML's, as nvidia-smi shows it */
    char uuid[64], model[96], driver[80];
    bool mig;
    bool processes_known;
    size_t processes; /* that have a context on it */
    uint32_t pids[4]; /* the first of them, as the driver numbers them */
};

/* which: its number, or the beginning of its UUID; "" is 0. -ENOENT: no driver, or no such board; -EINVAL:
 * the beginning of several. The error says it in one line. */
int kj_gpu_find(const char *which, struct kj_gpu *ret_gpu, struct kj_error *error);

#endif
