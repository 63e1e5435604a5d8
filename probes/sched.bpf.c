/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
 *
 * sched.bpf.c - on-CPU time of one process tree, thread by thread, and of everybody else in one sum. Reads
 * tasks through the kernel's BTF and takes a task's time from the scheduler's own sum, so that it agrees with
 * rusage.
 */
#include "tree.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static __always_inline bool is_dead(struct task_struct *task)
{
    if (bpf_core_field_exists(task->__state))
        return task->__state & TASK_DEAD;
    struct task_struct___before_5_14 *old = (void *)task;
    return BPF_CORE_READ(old, state) & TASK_DEAD;
}

static __always_inline __u64 account_thread(struct task_struct *task, struct kj_cpu_slot *slot,
                                            const struct kj_tree_process *process, __u64 slice_ns)
{
    __u32 tid = task->pid, tgid = task->tgid;
    bool dead = is_dead(task);
    struct kj_tree_thread *thread = bpf_map_lookup_elem(&threads, &tid);
    if (!thread && !dead) {
        char comm[KJ_COMM_BYTES];
        bpf_probe_read_kernel(comm, sizeof(comm), task->comm);
        thread = add_thread(tid, tgid, comm, process); /* it ran before we looked: its past counts */
    }
    if (count_cycles)
        add_cycles(slot, thread);
    if (!thread) {
        slot->unlisted++;
        return slice_ns;
    }
    __u64 runtime_ns = task->se.sum_exec_runtime;
    __u64 more_ns = runtime_ns > thread->runtime_ns ? runtime_ns - thread->runtime_ns : 0;
    thread->runtime_ns = runtime_ns;
    thread->ns += more_ns;
    thread->state = dead ? KJ_THREAD_DEAD : KJ_THREAD_LIVE;
    return more_ns;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(on_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
    struct kj_cpu_slot *slot = this_cpu();
    if (!slot)
        return 0;
    __u32 tgid = prev->tgid;
    __u64 slice_ns = begin_switch(slot, bpf_ktime_get_ns());
    if (!prev->pid) {
        slot->idle_ns += slice_ns;
    } else {
        struct kj_tree_process *process = bpf_map_lookup_elem(&processes, &tgid);
        if (!process) {
            slot->others_ns += slice_ns;
        } else {
            slot->tree_ns += account_thread(prev, slot, process, slice_ns);
            if (is_dead(prev))
                leave_tree(tgid, process);
        }
    }
    end_switch(slot, next->pid, next->tgid);
    return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
    char comm[KJ_COMM_BYTES];
    bpf_probe_read_kernel(comm, sizeof(comm), child->comm);
    follow_fork(parent->tgid, child->pid, child->tgid, comm);
    return 0;
}

/* A thread that is not the first takes the first one's number when it execs. */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_tid)
{
    __u32 tid = task->pid, tgid = task->tgid, before = old_tid;
    struct kj_tree_process *process = bpf_map_lookup_elem(&processes, &tgid);
    if (!process)
        return 0;
    bpf_probe_read_kernel(process->name, KJ_COMM_BYTES, task->comm);
    struct kj_tree_thread *thread = bpf_map_lookup_elem(&threads, &before);
    if (!thread)
        return 0;
    bpf_probe_read_kernel(thread->comm, KJ_COMM_BYTES, task->comm);
    __builtin_memcpy(thread->process, process->name, KJ_COMM_BYTES);
    if (before == tid)
        return 0;
    /* Its row ends under the old number, and the first thread's goes on from here with its clock. */
    struct kj_tree_thread *first = bpf_map_lookup_elem(&threads, &tid), moved = *thread;
    thread->state = KJ_THREAD_DEAD;
    moved.state = KJ_THREAD_LIVE;
    moved.ns = first ? first->ns : 0;
    moved.cycles = first ? first->cycles : 0;
    moved.instructions = first ? first->instructions : 0;
    bpf_map_update_elem(&threads, &tid, &moved, BPF_ANY);
    return 0;
}

SEC("tp_btf/task_rename")
int BPF_PROG(on_rename, struct task_struct *task, const char *comm)
{
    __u32 tid = task->pid;
    struct kj_tree_thread *thread = bpf_map_lookup_elem(&threads, &tid);
    if (thread)
        bpf_probe_read_kernel_str(thread->comm, KJ_COMM_BYTES, comm);
    return 0;
}
