/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
 *
 * raw.bpf.c - the same as sched.bpf.c for kernels without BTF, by raw tracepoints: it knows three offsets,
 * which the loader finds by example. An object of its own, for nothing in it may ask for the kernel's types.
 */
#include "tree.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const volatile __u32 offset_pid, offset_comm; /* tgid follows pid */
const volatile __u32 offset_runtime;          /* of the scheduler's sum; 0: not found, time by the clock */
const volatile __u32 example_tid;             /* whose task structure is copied out */
__u32 examples;                               /* copies so far */

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, char[KJ_TASK_COPY_BYTES]);
} example SEC(".maps");

static __always_inline struct task_ids ids_of(const void *task)
{
    struct task_ids ids = {};
    bpf_probe_read_kernel(&ids, sizeof(ids), task + offset_pid);
    return ids;
}

/* The scheduler's sum for the task or, where it is not known, what the row has and the slice by the clock. */
static __always_inline __u64 runtime_of(const void *task, const struct kj_tree_thread *thread, __u64 slice_ns)
{
    __u64 runtime_ns = 0;
    if (!offset_runtime)
        return (thread ? thread->runtime_ns : 0) + slice_ns;
    bpf_probe_read_kernel(&runtime_ns, sizeof(runtime_ns), task + offset_runtime);
    return runtime_ns;
}

static __always_inline __u64 account_task(struct kj_cpu_slot *slot, const void *task, struct task_ids ids,
                                          struct kj_tree_process *process, __u64 slice_ns)
{
    __u32 number = offset_runtime ? number_of(ids, task, process) : ids.tid;
    if (!number) {
        leave_out(slot);
        return 0;
    }
    if (offset_runtime && process->left == (__u64)task)
        return account_left(slot, ids, process, runtime_of(task, NULL, 0));
    struct kj_tree_thread *thread = bpf_map_lookup_elem(&threads, &number);
    if (!thread)
        thread = meet_thread((struct task_ids){number, ids.tgid}, task + offset_comm, process);
    return account_thread(slot, thread, runtime_of(task, thread, slice_ns), slice_ns);
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
    examples++;
    return 0;
}

SEC("raw_tp/sched_switch")
int raw_on_switch(struct bpf_raw_tracepoint_args *context)
{
    struct kj_cpu_slot *slot = this_cpu();
    if (!slot)
        return 0;
    const void *task = (const void *)context->args[1];
    struct task_ids ids = ids_of(task);
    __u64 slice_ns = begin_switch(slot, bpf_ktime_get_ns());
    struct kj_tree_process *process = bpf_map_lookup_elem(&processes, &ids.tgid);
    if (!ids.tid) {
        slot->idle_ns += slice_ns;
    } else if (!process) {
        slot->others_ns += slice_ns;
    } else {
        slot->tree_ns += account_task(slot, task, ids, process, slice_ns);
    }
    end_switch(slot, ids_of((const void *)context->args[2]));
    return 0;
}

SEC("raw_tp/sched_process_fork")
int raw_on_fork(struct bpf_raw_tracepoint_args *context)
{
    const void *child = (const void *)context->args[1];
    follow_fork(ids_of((const void *)context->args[0]).tgid, ids_of(child), child, child + offset_comm);
    return 0;
}

/* It runs on for a while yet, be it that it is gone for everybody who looks: its last switch is not to find
 * its row forgotten, or its past would count anew. */
SEC("raw_tp/sched_process_exit")
int raw_on_exit(struct bpf_raw_tracepoint_args *context)
{
    const void *task = (const void *)context->args[0];
    struct task_ids ids = ids_of(task);
    struct kj_tree_process *process = bpf_map_lookup_elem(&processes, &ids.tgid);
    struct kj_tree_thread *thread = bpf_map_lookup_elem(&threads, &ids.tid);
    if (process && !thread) /* it has not switched since we look */
        thread = meet_thread(ids, task + offset_comm, process);
    if (thread)
        thread->state = KJ_THREAD_EXITING;
    return 0;
}

/* The kernel lets go of a task once it has been waited for and has made its last switch. By then its number
 * may be a new task's, whose row is live. */
SEC("raw_tp/sched_process_free")
int raw_on_free(struct bpf_raw_tracepoint_args *context)
{
    const void *task = (const void *)context->args[0];
    struct task_ids ids = ids_of(task);
    struct kj_tree_process *process = bpf_map_lookup_elem(&processes, &ids.tgid);
    struct kj_tree_thread *thread = bpf_map_lookup_elem(&threads, &ids.tid);
    if (!process)
        return 0;
    bool changed = number_of(ids, task, process) != ids.tid;
    task_gone(task, process);
    if (changed) { /* the row is that of the thread that execs */
        leave_tree(ids.tgid, process);
        return 0;
    }
    if (thread && thread->state == KJ_THREAD_LIVE)
        return 0;
    if (thread)
        thread->state = KJ_THREAD_DEAD;
    leave_tree(ids.tgid, process);
    return 0;
}

SEC("raw_tp/sched_process_exec")
int raw_on_exec(struct bpf_raw_tracepoint_args *context)
{
    const void *task = (const void *)context->args[0];
    follow_exec(ids_of(task), (__u32)context->args[1], task, task + offset_comm);
    return 0;
}

SEC("raw_tp/task_rename")
int raw_on_rename(struct bpf_raw_tracepoint_args *context)
{
    follow_rename(ids_of((const void *)context->args[0]).tid, (const char *)context->args[1]);
    return 0;
}
