/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
 *
 * raw.bpf.c - the same as sched.bpf.c for kernels without BTF, by raw tracepoints: it knows two offsets,
 * which the loader finds by example, and takes time by the clock. An object of its own, for nothing in it may
 * ask for the kernel's types.
 */
#include "tree.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const volatile __u32 offset_pid, offset_comm; /* tgid follows pid */
const volatile __u32 example_tid;             /* whose task structure is copied out */

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, char[KJ_TASK_COPY_BYTES]);
} example SEC(".maps");

struct ids {
    __u32 tid, tgid;
};

static __always_inline struct ids ids_of(const void *task)
{
    struct ids ids = {};
    bpf_probe_read_kernel(&ids, sizeof(ids), task + offset_pid);
    return ids;
}

/* Copies the structure of one known task, in which the loader looks for what it knows. */
SEC("raw_tp/sched_switch")
int copy_example(struct bpf_raw_tracepoint_args *context)
{
    __u32 zero = 0;
    char *copy = bpf_map_lookup_elem(&example, &zero);
    if (!copy || (__u32)bpf_get_current_pid_tgid() != example_tid)
        return 0;
    const char *task = (const char *)context->args[1];
    for (int at = 0; at < KJ_TASK_COPY_BYTES; at += 512) /* what lies past its end fails, and that is well */
        bpf_probe_read_kernel(copy + at, 512, task + at);
    return 0;
}

SEC("raw_tp/sched_switch")
int raw_on_switch(struct bpf_raw_tracepoint_args *context)
{
    struct kj_cpu_slot *slot = this_cpu();
    if (!slot)
        return 0;
    struct ids prev = ids_of((const void *)context->args[1]), next = ids_of((const void *)context->args[2]);
    __u64 slice_ns = begin_switch(slot, bpf_ktime_get_ns());
    struct kj_tree_process *process = bpf_map_lookup_elem(&processes, &prev.tgid);
    if (!prev.tid) {
        slot->idle_ns += slice_ns;
    } else if (!process) {
        slot->others_ns += slice_ns;
    } else {
        struct kj_tree_thread *thread = bpf_map_lookup_elem(&threads, &prev.tid);
        if (!thread) {
            char comm[KJ_COMM_BYTES] = {};
            bpf_probe_read_kernel(comm, sizeof(comm), (const char *)context->args[1] + offset_comm);
            thread = add_thread(prev.tid, prev.tgid, comm, process);
        }
        if (count_cycles)
            add_cycles(slot, thread);
        slot->tree_ns += slice_ns;
        if (thread)
            thread->ns += slice_ns;
        else
            slot->unlisted++;
    }
    end_switch(slot, next.tid, next.tgid);
    return 0;
}

SEC("raw_tp/sched_process_fork")
int raw_on_fork(struct bpf_raw_tracepoint_args *context)
{
    struct ids parent = ids_of((const void *)context->args[0]),
               child = ids_of((const void *)context->args[1]);
    char comm[KJ_COMM_BYTES] = {};
    bpf_probe_read_kernel(comm, sizeof(comm), (const char *)context->args[1] + offset_comm);
    follow_fork(parent.tgid, child.tid, child.tgid, comm);
    return 0;
}

/* It runs on for a moment: the loader counts it as dead once it has not moved for a while. */
SEC("raw_tp/sched_process_exit")
int raw_on_exit(struct bpf_raw_tracepoint_args *context)
{
    struct ids ids = ids_of((const void *)context->args[0]);
    struct kj_tree_thread *thread = bpf_map_lookup_elem(&threads, &ids.tid);
    if (thread)
        thread->state = KJ_THREAD_EXITING;
    return 0;
}

SEC("raw_tp/sched_process_exec")
int raw_on_exec(struct bpf_raw_tracepoint_args *context)
{
    struct ids ids = ids_of((const void *)context->args[0]);
    struct kj_tree_process *process = bpf_map_lookup_elem(&processes, &ids.tgid);
    struct kj_tree_thread *thread = bpf_map_lookup_elem(&threads, &ids.tid);
    char comm[KJ_COMM_BYTES] = {};
    bpf_probe_read_kernel(comm, sizeof(comm), (const char *)context->args[0] + offset_comm);
    if (process)
        __builtin_memcpy(process->name, comm, KJ_COMM_BYTES);
    if (thread) {
        __builtin_memcpy(thread->comm, comm, KJ_COMM_BYTES);
        __builtin_memcpy(thread->process, comm, KJ_COMM_BYTES);
        thread->state = KJ_THREAD_LIVE;
    }
    return 0;
}

SEC("raw_tp/task_rename")
int raw_on_rename(struct bpf_raw_tracepoint_args *context)
{
    struct ids ids = ids_of((const void *)context->args[0]);
    struct kj_tree_thread *thread = bpf_map_lookup_elem(&threads, &ids.tid);
    if (thread)
        bpf_probe_read_kernel_str(thread->comm, KJ_COMM_BYTES, (const void *)context->args[1]);
    return 0;
}
