/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
 *
 * tree.bpf.h - the tables of the scheduler programs, and what both sets of them do with a tree.
 *
 * Tree first: most switches on a busy node are of others, and cost one lookup. A thread runs on one CPU at a
 * time, so its row needs no lock.
 */
#ifndef KJ_PROBE_TREE_H
#define KJ_PROBE_TREE_H

#include "kernel.h"

#define ANY_CPU 0xffffffffULL /* BPF_F_CURRENT_CPU */

const volatile bool count_cycles;
__u64 begin_ns; /* from when on CPUs are accounted */

struct task_ids {
    __u32 tid, tgid;
};

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

static __always_inline void end_switch(struct kj_cpu_slot *slot, struct task_ids next)
{
    slot->tid = next.tid;
    slot->tgid = next.tgid;
    if (count_cycles && next.tgid && bpf_map_lookup_elem(&processes, &next.tgid)) {
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

/* A thread that execs changes numbers with the first one, which may have its last switch yet to make, and may
 * itself wait for the new program to be read before the tracepoint of its exec tells of it. Neither's sum may
 * go to the other's row. Returns the number of the row that a task's time belongs to; 0: of the one that
 * execs, whose time is all accounted at its next switch after that. */
static __always_inline __u32 number_of(struct task_ids ids, const void *task, struct kj_tree_process *process)
{
    __u64 own = (__u64)task;
    if (ids.tid == ids.tgid) {
        if (!process->first)
            process->first = own;
        return process->first == own ? ids.tid : 0;
    }
    return process->first == own || process->left == own ? ids.tgid : ids.tid;
}

/* A row without a past. The name lies in the kernel. */
static __always_inline struct kj_tree_thread *add_thread(struct task_ids ids, const char *comm,
                                                         const struct kj_tree_process *process)
{
    struct kj_tree_thread row = {.tgid = ids.tgid};
    bpf_probe_read_kernel(row.comm, KJ_COMM_BYTES, comm);
    __builtin_memcpy(row.process, process->name, KJ_COMM_BYTES);
    bpf_map_update_elem(&threads, &ids.tid, &row, BPF_ANY);
    return bpf_map_lookup_elem(&threads, &ids.tid);
}

/* A row for a task that no fork told of: it ran before we looked, or the kernel made it (io_uring's threads).
 */
static __always_inline struct kj_tree_thread *meet_thread(struct task_ids ids, const char *comm,
                                                          struct kj_tree_process *process)
{
    struct kj_tree_thread *thread = add_thread(ids, comm, process);
    if (thread)
        __sync_fetch_and_add(&process->threads, 1);
    return thread;
}

/* Of a switch whose time comes later: what the counters counted is the tree's already, and no thread's. */
static __always_inline void leave_out(struct kj_cpu_slot *slot)
{
    if (count_cycles)
        add_cycles(slot, NULL);
}

/* Brings the row up to the scheduler's sum for the task; of a row that is new the past counts. Returns what
 * the task has been charged since the row was last brought up, without a row the slice by the clock. */
static __always_inline __u64 account_thread(struct kj_cpu_slot *slot, struct kj_tree_thread *thread,
                                            __u64 runtime_ns, __u64 slice_ns)
{
    if (count_cycles)
        add_cycles(slot, thread);
    if (!thread) {
        slot->unlisted++;
        return slice_ns;
    }
    __u64 more_ns = runtime_ns > thread->runtime_ns ? runtime_ns - thread->runtime_ns : 0;
    thread->runtime_ns = runtime_ns;
    thread->ns += more_ns;
    return more_ns;
}

/* The last of a first thread whose number another one's exec has taken: its row goes on as that one's, which
 * has another sum. */
static __always_inline __u64 account_left(struct kj_cpu_slot *slot, struct task_ids ids,
                                          struct kj_tree_process *process, __u64 runtime_ns)
{
    struct kj_tree_thread *thread = bpf_map_lookup_elem(&threads, &ids.tgid);
    __u64 more_ns = runtime_ns > process->left_ns ? runtime_ns - process->left_ns : 0;
    if (count_cycles)
        add_cycles(slot, thread);
    process->left_ns = runtime_ns;
    if (thread)
        __sync_fetch_and_add(&thread->ns, more_ns);
    return more_ns;
}

/* Nothing of this task comes any more: another that is given its memory is not it. */
static __always_inline void task_gone(const void *task, struct kj_tree_process *process)
{
    if (process->left == (__u64)task)
        process->left = 0;
    if (process->first == (__u64)task)
        process->first_gone = 1;
}

/* The number of a first thread that ends before the others: one of those may exec yet, and its row goes on.
 * Were it told as dead meanwhile, its sum would count twice. */
static __always_inline bool may_be_taken(struct task_ids ids, const struct kj_tree_process *process)
{
    return ids.tid == ids.tgid && process->threads > !process->seeded;
}

static __always_inline void leave_tree(__u32 tgid, struct kj_tree_process *process)
{
    __sync_fetch_and_add(&process->threads, -1);
    if (process->threads > 0)
        return;
    struct kj_tree_thread *first = bpf_map_lookup_elem(&threads, &tgid);
    if (first && process->first_gone)
        first->state = KJ_THREAD_DEAD;
    if (!process->seeded)
        bpf_map_delete_elem(&processes, &tgid);
}

/* A new task: of a tree process it is ours; of any other it may carry the number of one of ours that died. */
static __always_inline void follow_fork(__u32 parent, struct task_ids ids, const void *task, const char *comm)
{
    struct kj_tree_process *process = bpf_map_lookup_elem(&processes, &parent);
    if (!process) {
        if (ids.tid == ids.tgid)
            bpf_map_delete_elem(&processes, &ids.tgid);
        return;
    }
    if (ids.tid != ids.tgid) {
        __sync_fetch_and_add(&process->threads, 1);
        add_thread(ids, comm, process);
        return;
    }
    struct kj_tree_process child = {.parent = parent, .threads = 1, .first = (__u64)task};
    __builtin_memcpy(child.name, process->name, KJ_COMM_BYTES);
    bpf_map_update_elem(&processes, &ids.tgid, &child, BPF_ANY);
    add_thread(ids, comm, &child);
}

/* A thread that is not the first takes the first one's number when it execs. */
static __always_inline void follow_exec(struct task_ids ids, __u32 before, const void *task, const char *comm)
{
    struct kj_tree_process *process = bpf_map_lookup_elem(&processes, &ids.tgid);
    if (!process)
        return;
    struct kj_tree_thread *first = bpf_map_lookup_elem(&threads, &ids.tid);
    if (before != ids.tid) {
        process->left_ns = first ? first->runtime_ns : 0;
        process->left = process->first_gone || process->first == (__u64)task ? 0 : process->first;
        process->first_gone = 0;
    }
    process->first = (__u64)task;
    bpf_probe_read_kernel(process->name, KJ_COMM_BYTES, comm);
    struct kj_tree_thread *thread = bpf_map_lookup_elem(&threads, &before);
    if (!thread)
        return;
    bpf_probe_read_kernel(thread->comm, KJ_COMM_BYTES, comm);
    __builtin_memcpy(thread->process, process->name, KJ_COMM_BYTES);
    if (before == ids.tid)
        return;
    /* Its row ends under the old number, and the first thread's goes on from here with its sum. */
    struct kj_tree_thread moved = *thread;
    thread->state = KJ_THREAD_DEAD;
    moved.state = KJ_THREAD_LIVE;
    moved.ns = first ? first->ns : 0;
    moved.cycles = first ? first->cycles : 0;
    moved.instructions = first ? first->instructions : 0;
    bpf_map_update_elem(&threads, &ids.tid, &moved, BPF_ANY);
}

static __always_inline void follow_rename(__u32 tid, const char *comm)
{
    struct kj_tree_thread *thread = bpf_map_lookup_elem(&threads, &tid);
    if (thread)
        bpf_probe_read_kernel_str(thread->comm, KJ_COMM_BYTES, comm);
}

#endif
