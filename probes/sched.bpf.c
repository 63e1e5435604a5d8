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

static __always_inline struct task_ids ids_of(struct task_struct *task)
{
    return (struct task_ids){.tid = task->pid, .tgid = task->tgid};
}

static __always_inline __u64 account_task(struct kj_cpu_slot *slot, struct task_struct *task,
                                          struct task_ids ids, struct kj_tree_process *process,
                                          __u64 slice_ns)
{
    bool dead = is_dead(task);
    __u32 number = number_of(ids, task, process);
    if (!number) {
        leave_out(slot);
        return 0;
    }
    __u64 runtime_ns = task->se.sum_exec_runtime;
    if (process->left == (__u64)task)
        return account_left(slot, ids, process, runtime_ns);
    struct kj_tree_thread *thread = bpf_map_lookup_elem(&threads, &number);
    if (!thread)
        thread = meet_thread((struct task_ids){number, ids.tgid}, task->comm, process);
    __u64 more_ns = account_thread(slot, thread, runtime_ns, slice_ns);
    if (thread && number == ids.tid) /* or the row goes on, as the thread's that execs */
        thread->state = dead && !may_be_taken(ids, process) ? KJ_THREAD_DEAD : KJ_THREAD_LIVE;
    return more_ns;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(on_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
    struct kj_cpu_slot *slot = this_cpu();
    if (!slot)
        return 0;
    struct task_ids ids = ids_of(prev);
    __u64 slice_ns = begin_switch(slot, bpf_ktime_get_ns());
    if (!ids.tid) {
        slot->idle_ns += slice_ns;
    } else {
        struct kj_tree_process *process = bpf_map_lookup_elem(&processes, &ids.tgid);
        if (!process) {
            slot->others_ns += slice_ns;
        } else {
            slot->tree_ns += account_task(slot, prev, ids, process, slice_ns);
            if (is_dead(prev)) {
                task_gone(prev, process);
                leave_tree(ids.tgid, process);
            }
        }
    }
    end_switch(slot, ids_of(next));
    return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
    follow_fork(parent->tgid, ids_of(child), child, child->comm);
    return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_tid)
{
    follow_exec(ids_of(task), old_tid, task, task->comm);
    return 0;
}

SEC("tp_btf/task_rename")
int BPF_PROG(on_rename, struct task_struct *task, const char *comm)
{
    follow_rename(task->pid, comm);
    return 0;
}
