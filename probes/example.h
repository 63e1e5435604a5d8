/* SPDX-License-Identifier: Apache-2.0
 *
 * example.h - where fields stand in a task structure of unknown layout, found by example: in copies of a
 * known task, looked for by what must be in them. No system call, no BPF.
 */
#ifndef KJ_PROBE_EXAMPLE_H
#define KJ_PROBE_EXAMPLE_H

#include "maps.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KJ_EXAMPLES = 4 };

/* One copy, made while the task was switched out. */
struct kj_example {
    char name[KJ_COMM_BYTES];     /* its name then */
    uint64_t before_ns, after_ns; /* the scheduler's sum for it before it was switched out, and afterwards */
    char task[KJ_TASK_COPY_BYTES];
};

struct kj_task_offsets {
    uint32_t pid; /* tgid follows */
    uint32_t comm;
    uint32_t runtime; /* of the scheduler's sum; 0: not found, or found more than once */
};

/* False: pid or comm is not found. Names and times are to differ from copy to copy. */
bool kj_example_search(const struct kj_example *examples, size_t count, uint32_t tid, uint32_t tgid,
                       struct kj_task_offsets *ret_offsets);

#endif
