/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
 *
 * sched.bpf.c - on-CPU time of one process tree, thread by thread, and of everybody else in one sum.
 *
 * Two sets of programs share the tables. The first (tp_btf) reads tasks through the kernel's BTF and takes a
 * task's time from the scheduler's own sum, so that it agrees with rusage. The second (raw_tp) is for kernels
 * without BTF: it knows three offsets, which the loader finds by example, and takes time by the clock.
 *
 * Tree first: most switches on a busy node are of others, and cost one lookup. A thread runs on one CPU at a
 * time, so its row needs no lock.
 */
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define ANY_CPU 0xffffffffULL /* BPF_F_CURRENT_CPU */

const volatile bool count_cycles;
const volatile __u32 offset_pid, offset_comm; /* tgid follows pid */
const volatile __u32 example_tid;             /* whose task structure is copied out */
__u64 begin_ns;                               /* from when on CPUs are accounted */

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, 1); /* CPUs; set at load */
    __type(key, __u32);
    __type(value, struct kj_cpu_slot);
} cpus SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 65536);
    __type(key, __u32); /* tgid */
    __type(value, struct kj_tree_process);
} processes SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 65536);
    __type(key, __u32); /* tid */
    __type(value, struct kj_tree_thread);
} threads SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u32);
} cycles SEC(".maps"), instructions SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, char[KJ_TASK_COPY_BYTES]);
} example SEC(".maps");

static __always_inline struct kj_cpu_slot *this_cpu(void)
{
    __u32 cpu = bpf_get_smp_processor_id();
    return bpf_map_lookup_elem(&cpus, &cpu);
}

static __always_inline __u64 read_counter(void *map)
{
    struct bpf_perf_event_value value = {};
    if (bpf_perf_event_read_value(map, ANY_CPU, &value, sizeof(value)))
        return 0;
    return value.counter;
}

/* The time since this CPU last switched, and the slot opened for writing. */
static __always_inline __u64 begin_switch(struct kj_cpu_slot *slot, __u64 now_ns)
{
    __u64 since_ns = slot->since_ns ? slot->since_ns : begin_ns;
    __sync_fetch_and_add(&slot->sequence,
                         1); /* BPF has no fence; this orders on x86 and is a hint elsewhere */
    slot->since_ns = now_ns;
    slot->switches++;
    return now_ns > since_ns ? now_ns - since_ns : 0;
}

static __always_inline void end_switch(struct kj_cpu_slot *slot, __u32 tid, __u32 tgid)
{
    slot->tid = tid;
    slot->tgid = tgid;
    if (count_cycles && tgid && bpf_map_lookup_elem(&processes, &tgid)) {
        slot->start_cycles = read_counter(&cycles);
        slot->start_instructions = read_counter(&instructions);
    }
    __sync_fetch_and_add(&slot->sequence, 1);
}

static __always_inline void add_cycles(struct kj_cpu_slot *slot, struct kj_tree_thread *thread)
{
    __u64 now = read_counter(&cycles), more = now - slot->start_cycles;
    if (!slot->start_cycles || now < slot->start_cycles) /* was not in the tree yet when switched in */
        return;
    __u64 instructions_now = read_counter(&instructions),
          more_instructions = instructions_now - slot->start_instructions;
    if (instructions_now < slot->start_instructions)
        more_instructions = 0;
    slot->start_cycles = 0;
    slot->tree_cycles += more;
    slot->tree_instructions += more_instructions;
    if (thread) {
        thread->cycles += more;
        thread->instructions += more_instructions;
    }
}

static __always_inline struct kj_tree_thread *add_thread(__u32 tid, __u32 tgid, const char *comm,
                                                         const struct kj_tree_process *process)
{
    struct kj_tree_thread row = {.tgid = tgid};
    __builtin_memcpy(row.comm, comm, KJ_COMM_BYTES);
    __builtin_memcpy(row.process, process->name, KJ_COMM_BYTES);
    bpf_map_update_elem(&threads, &tid, &row, BPF_ANY);
    return bpf_map_lookup_elem(&threads, &tid);
}

static __always_inline void leave_tree(__u32 tgid, struct kj_tree_process *process)
{
    __sync_fetch_and_add(&process->threads, -1);
    if (!process->seeded && process->threads <= 0)
        bpf_map_delete_elem(&processes, &tgid);
}

/* A new task: of a tree process it is ours; of any other it may carry the number of one of ours that died. */
static __always_inline void follow_fork(__u32 parent, __u32 tid, __u32 tgid, const char *comm)
{
    struct kj_tree_process *process = bpf_map_lookup_elem(&processes, &parent);
    if (!process) {
        if (tid == tgid)
            bpf_map_delete_elem(&processes, &tgid);
        return;
    }
    if (tid != tgid) {
        __sync_fetch_and_add(&process->threads, 1);
        add_thread(tid, tgid, comm, process);
        return;
    }
    struct kj_tree_process child = {.parent = parent, .threads = 1};
    __builtin_memcpy(child.name, process->name, KJ_COMM_BYTES);
    bpf_map_update_elem(&processes, &tgid, &child, BPF_ANY);
    add_thread(tid, tgid, comm, &child);
}

/* ------------------------------------------------------------------ with BTF */

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

/* ------------------------------------------------------------------ without BTF */

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
