/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
 *
 * kernel.h - the few fields of kernel structures that the programs read. Offsets come from the running
 * kernel's BTF at load time (CO-RE); nothing of a vmlinux.h is needed to build.
 */
#ifndef KJ_PROBE_KERNEL_H
#define KJ_PROBE_KERNEL_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "maps.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sched_entity {
    __u64 sum_exec_runtime;
};

struct task_struct {
    unsigned int __state;
    int pid, tgid;
    struct sched_entity se;
    char comm[KJ_COMM_BYTES];
};

/* Its name until Linux 5.14. */
struct task_struct___before_5_14 {
    volatile long state;
};

#pragma clang attribute pop

#define TASK_DEAD 0x80 /* since Linux 4.14 */

#endif
