/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
 *
 * phases.bpf.c - phases of a training on the CPU, from functions that PyTorch exports: the run of its
 * autograd engine is backward; what its own optimizers and data loaders announce to its profiler by name is
 * the rest. Attached to single processes, so that nobody else who maps the same library pays for it.
 */
#include "kernel.h"

#include <asm/ptrace.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum { DEPTH = 8, NEAR_BYTES = 128 };

/* What one thread is inside of. Engines nest (checkpointing runs one within another): the outermost counts.
 */
struct open_phases {
    __u64 backward_ns;
    __u32 backward_depth;
    __u32 count;
    __u32 entering; /* slot + 1 that waits for the function's return */
    __u32 reserved;
    struct {
        __u64 start_ns;
        __u64 object; /* where PyTorch keeps this announcement */
        __u32 mark, used;
        char label[KJ_LABEL_BYTES];
    } open[DEPTH];
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

static __always_inline void emit(__u32 mark, __u64 start_ns, const char *label)
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
    if (label)
        __builtin_memcpy(event->label, label, KJ_LABEL_BYTES);
    else
        __builtin_memset(event->label, 0, KJ_LABEL_BYTES);
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
        emit(KJ_MARK_BACKWARD, phases->backward_ns, 0);
    return 0;
}

/* Eight characters as a little-endian word: both BPF machines that we know are. */
#define WORD(a, b, c, d, e, f, g, h)                                                                         \
    ((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 |                 \
     (__u64)(f) << 40 | (__u64)(g) << 48 | (__u64)(h) << 56)

static __always_inline __u32 mark_of(const char *label)
{
    const __u64 *words = (const __u64 *)label;
    if (words[0] == WORD('O', 'p', 't', 'i', 'm', 'i', 'z', 'e') && label[8] == 'r' && label[9] == '.')
        return KJ_MARK_OPTIMIZER; /* Optimizer.step#Adam.step, Optimizer.zero_grad#Adam.zero_grad */
    if (words[0] == WORD('e', 'n', 'u', 'm', 'e', 'r', 'a', 't') &&
        words[1] == WORD('e', '(', 'D', 'a', 't', 'a', 'L', 'o'))
        return KJ_MARK_DATA; /* enumerate(DataLoader)#... */
    return KJ_MARKS;
}

/* record_function_enter_new(name, args) returns an object, so its caller hands it a place to put that. */
SEC("uprobe")
int announce_enter(struct pt_regs *context)
{
#if defined(__TARGET_ARCH_x86)
    const void *name = (const void *)PT_REGS_PARM2(context);
#else
    const void *name = (const void *)PT_REGS_PARM1(context);
#endif
    const void *characters = 0;
    char label[KJ_LABEL_BYTES] __attribute__((aligned(8))) = {};
    /* Both layouts of std::string begin with the pointer to its characters. */
    if (bpf_probe_read_user(&characters, sizeof(characters), name) ||
        bpf_probe_read_user_str(label, sizeof(label), characters) < 0)
        return 0;
    __u32 mark = mark_of(label);
    if (mark == KJ_MARKS)
        return 0;
    struct open_phases *phases = phases_of((__u32)bpf_get_current_pid_tgid(), true);
    if (!phases)
        return 0;
    for (int i = 0; i < DEPTH; i++) {
        if (phases->open[i].used)
            continue;
        phases->open[i].used = 1;
        phases->open[i].mark = mark;
        phases->open[i].object = 0;
        phases->open[i].start_ns = bpf_ktime_get_ns();
        __builtin_memcpy(phases->open[i].label, label, KJ_LABEL_BYTES);
        phases->entering = i + 1;
        break;
    }
    return 0;
}

SEC("uretprobe")
int announce_entered(struct pt_regs *context)
{
    struct open_phases *phases = phases_of((__u32)bpf_get_current_pid_tgid(), false);
    if (!phases || !phases->entering)
        return 0;
    __u32 slot = phases->entering - 1;
    phases->entering = 0;
    __u64 object = 0;
    bpf_probe_read_user(&object, sizeof(object), (const void *)PT_REGS_RC(context));
    if (slot < DEPTH) {
        phases->open[slot].object = object;
        phases->open[slot].used = object != 0;
    }
    return 0;
}

/* RecordFunction::end() of the announcement, which lies inside the object; called again when it is destroyed.
 */
SEC("uprobe")
int announce_leave(struct pt_regs *context)
{
    struct open_phases *phases = phases_of((__u32)bpf_get_current_pid_tgid(), false);
    __u64 self = PT_REGS_PARM1(context);
    if (!phases)
        return 0;
    for (int i = 0; i < DEPTH; i++) {
        __u64 object = phases->open[i].object;
        if (!phases->open[i].used || !object || self < object || self >= object + NEAR_BYTES)
            continue;
        phases->open[i].used = 0;
        emit(phases->open[i].mark, phases->open[i].start_ns, phases->open[i].label);
        break;
    }
    return 0;
}
