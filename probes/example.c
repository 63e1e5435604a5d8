/* SPDX-License-Identifier: Apache-2.0
 *
 * example.c - a field is where every copy holds what it must.
 */
#include "example.h"

#include <string.h>

static bool all_hold_bytes(const struct kj_example *examples, size_t count, uint32_t at, const void *bytes,
                           size_t size)
{
    for (size_t i = 0; i < count; i++)
        if (memcmp(examples[i].task + at, bytes, size))
            return false;
    return true;
}

static bool all_hold_names(const struct kj_example *examples, size_t count, uint32_t at)
{
    for (size_t i = 0; i < count; i++)
        if (strncmp(examples[i].task + at, examples[i].name, KJ_COMM_BYTES))
            return false;
    return true;
}

static bool all_hold_runtime(const struct kj_example *examples, size_t count, uint32_t at)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t value;
        memcpy(&value, examples[i].task + at, sizeof(value));
        if (value < examples[i].before_ns || value > examples[i].after_ns)
            return false;
    }
    return true;
}

bool kj_example_search(const struct kj_example *examples, size_t count, uint32_t tid, uint32_t tgid,
                       struct kj_task_offsets *ret_offsets)
{
    const uint32_t ids[2] = {tid, tgid};
    unsigned runtimes = 0;
    memset(ret_offsets, 0, sizeof(*ret_offsets));
    for (uint32_t at = 8; count && at + KJ_COMM_BYTES <= KJ_TASK_COPY_BYTES; at += 4) {
        if (!ret_offsets->pid && all_hold_bytes(examples, count, at, ids, sizeof(ids)))
            ret_offsets->pid = at;
        if (all_hold_names(examples, count, at))
            ret_offsets->comm = at;
        if (at % sizeof(uint64_t) == 0 && all_hold_runtime(examples, count, at)) {
            ret_offsets->runtime = at;
            runtimes++;
        }
    }
    if (runtimes != 1)
        ret_offsets->runtime = 0;
    return ret_offsets->pid && ret_offsets->comm;
}
