/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
 *
 * phases.bpf.c - phases of a training on the CPU, from functions that PyTorch exports: the run of its
 * autograd engine is backward; what its own optimizers and data loaders announce to its profiler by name is
 * the rest. Attached to single processes, so that nobody else who maps the same library pays for it.
 */
#include "kernel.h"

#include <asm/ptrace.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum { DEPTH = 8, USER_SCOPE = 7 }; /* at::RecordScope::USER_SCOPE, since PyTorch 1.8 */

/* What one thread is inside of. Engines nest (checkpointing runs one within another): the outermost counts.
 */
struct open_phases {
    __u64 backward_ns;
    __u32 backward_depth;
    __u32 open; /* records */
    struct {
        __u64 start_ns;
        __u64 object; /* the record's address; 0: free */
        __u64 updates;
    } records[DEPTH];
};

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 8192);
    __type(key, __u32); /* tid */
    __type(value, struct open_phases);
} open_by_thread SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 1 << 20);
} events SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct open_phases);
} blank SEC(".maps");

__u64 lost; /* events for which the ring had no room */

static __always_inline struct open_phases *phases_of(__u32 tid, bool make)
{
    struct open_phases *phases = bpf_map_lookup_elem(&open_by_thread, &tid);
    if (phases || !make)
        return phases;
    __u32 zero = 0;
    struct open_phases *empty = bpf_map_lookup_elem(&blank, &zero);
    if (!empty)
        return 0;
    bpf_map_update_elem(&open_by_thread, &tid, empty, BPF_NOEXIST);
    return bpf_map_lookup_elem(&open_by_thread, &tid);
}

static __always_inline void emit(__u32 mark, __u64 start_ns)
{
    __u64 id = bpf_get_current_pid_tgid();
    struct kj_phase_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
    if (!event) {
        __sync_fetch_and_add(&lost, 1);
        return;
    }
    event->tgid = id >> 32;
    event->tid = (__u32)id;
    event->mark = mark;
    event->reserved = 0;
    event->start_ns = start_ns;
    event->end_ns = bpf_ktime_get_ns();
    bpf_ringbuf_submit(event, 0);
}

SEC("uprobe")
int engine_enter(struct pt_regs *context)
{
    struct open_phases *phases = phases_of((__u32)bpf_get_current_pid_tgid(), true);
    if (phases && phases->backward_depth++ == 0)
        phases->backward_ns = bpf_ktime_get_ns();
    return 0;
}

SEC("uretprobe")
int engine_leave(struct pt_regs *context)
{
    struct open_phases *phases = phases_of((__u32)bpf_get_current_pid_tgid(), false);
    if (!phases || !phases->backward_depth)
        return 0;
    if (--phases->backward_depth == 0)
        emit(KJ_MARK_BACKWARD, phases->backward_ns);
    return 0;
}

/* RecordFunction::RecordFunction(RecordScope) */
SEC("uprobe")
int record_enter(struct pt_regs *context)
{
    if ((__u8)PT_REGS_PARM2(context) != USER_SCOPE)
        return 0;
    struct open_phases *phases = phases_of((__u32)bpf_get_current_pid_tgid(), true);
    if (!phases)
        return 0;
    for (int i = 0; i < DEPTH; i++) {
        if (phases->records[i].object)
            continue;
        phases->records[i].object = PT_REGS_PARM1(context);
        phases->records[i].start_ns = bpf_ktime_get_ns();
        phases->records[i].updates = 0;
        phases->open++;
        break;
    }
    return 0;
}

/* An update in place: of parameters, or of gradients to zero. Counts for every record that it happens in. */
SEC("uprobe")
int update(struct pt_regs *context)
{
    struct open_phases *phases = phases_of((__u32)bpf_get_current_pid_tgid(), false);
    if (!phases || phases->backward_depth || !phases->open)
        return 0;
    for (int i = 0; i < DEPTH; i++)
        if (phases->records[i].object)
            phases->records[i].updates++;
    return 0;
}

/* RecordFunction::end(), called again when the record is destroyed. */
SEC("uprobe")
int record_leave(struct pt_regs *context)
{
    struct open_phases *phases = phases_of((__u32)bpf_get_current_pid_tgid(), false);
    __u64 self = PT_REGS_PARM1(context);
    if (!phases || !phases->open || !self)
        return 0;
    for (int i = 0; i < DEPTH; i++) {
        if (phases->records[i].object != self)
            continue;
        phases->records[i].object = 0;
        phases->open--;
        if (phases->records[i].updates)
            emit(KJ_MARK_OPTIMIZER, phases->records[i].start_ns);
        break;
    }
    return 0;
}
