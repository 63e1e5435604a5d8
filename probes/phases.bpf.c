/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
 *
 * phases.bpf.c - phases of a training on the CPU, from functions that PyTorch exports: the run of its
 * autograd engine is backward; what its optimizers announce to its profiler by name, step and zero_grad, is
 * the optimizer's, from that announcement to the end of what it announced. Python's way into the function
 * before it announces, and out after, some 50 us a call, is seen by nobody and counts as rest: a time between
 * two phases is never added to either. Attached to single processes, so that nobody else who maps the same
 * library pays for it.
 */
#include "kernel.h"

#include <asm/ptrace.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum { DEPTH = 8, ENGINES = 8, USER_SCOPE = 7 }; /* at::RecordScope::USER_SCOPE, since PyTorch 1.8 */
enum { EXECUTE_BYTES = 8192, NEXT_TO_NS = 1000000 };

enum record_name {
    NAME_UNKNOWN,   /* not announced from Python, or by one whose objects we cannot read */
    NAME_OPTIMIZER, /* Optimizer.step#... or Optimizer.zero_grad#... */
    NAME_OTHER
};

/* What one thread is inside of. Engines nest (checkpointing runs one within another): the outermost counts.
 * Which ones are open is known by where their frames lie: one that an exception has thrown away is above the
 * stack of whatever comes next. No probe is at a return: it would have to change the return address on the
 * stack, and an exception does not find its way through that. */
struct open_phases {
    __u64 backward_ns;
    __u64 execute;         /* where the engine's function is in this process */
    __u64 frames[ENGINES]; /* stack pointers at its start, outermost first */
    __u32 engines;
    __u32 open;       /* records */
    __u32 ended;      /* of them, those that wait for being destroyed */
    __u32 no_handles; /* of records: PyTorch 2 */
    __u32 called;     /* enum record_name: what the call that runs since called_ns will name its record */
    __u64 called_ns;
    __u64 handle_ns; /* when a tensor of zeros was last asked for */
    struct record {
        __u64 start_ns;
        __u64 end_ns; /* 0: has not ended */
        __u64 object; /* the record's address; 0: free */
        __u32 name, updates;
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

/* By process, what its first record showed: whether names can be read. */
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 1024);
    __type(key, __u32); /* tgid */
    __type(value, __u8);
} judged SEC(".maps");

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

static __always_inline void emit(__u32 mark, __u64 start_ns, __u64 end_ns)
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
    event->end_ns = end_ns;
    bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP); /* the loader looks by itself */
}

/* Something else goes on before a record that has ended is destroyed: somebody keeps it. */
static __always_inline void settle(struct open_phases *phases)
{
    if (!phases->ended)
        return;
    for (int i = 0; i < DEPTH; i++) {
        if (!phases->records[i].object || !phases->records[i].end_ns)
            continue;
        phases->records[i].object = 0;
        phases->open--;
        emit(KJ_MARK_OPTIMIZER, phases->records[i].start_ns, phases->records[i].end_ns);
    }
    phases->ended = 0;
}

/* Forgets engines that were left by an exception: their frames are no more. */
static __always_inline __u32 open_engines(struct open_phases *phases, __u64 stack)
{
    for (int i = 0; i < ENGINES; i++) {
        __u32 last = phases->engines - 1;
        if (last >= ENGINES || phases->frames[last] > stack)
            break;
        phases->engines = last;
    }
    return phases->engines;
}

static __always_inline void close_engine(struct open_phases *phases)
{
    if (phases->engines && --phases->engines == 0)
        emit(KJ_MARK_BACKWARD, phases->backward_ns, bpf_ktime_get_ns());
}

/* True the first time in a process. */
static __always_inline bool judge(void)
{
    __u32 tgid = bpf_get_current_pid_tgid() >> 32;
    __u8 done = 1;
    return !bpf_map_update_elem(&judged, &tgid, &done, BPF_NOEXIST);
}

/* ------------------------------------------------------------------ backward */

/* torch::autograd::Engine::execute */
SEC("uprobe")
int engine_enter(struct pt_regs *context)
{
    struct open_phases *phases = phases_of((__u32)bpf_get_current_pid_tgid(), true);
    if (!phases)
        return 0;
    settle(phases);
    __u64 stack = PT_REGS_SP(context);
    __u32 engines = open_engines(phases, stack);
    if (engines >= ENGINES)
        return 0;
    if (!engines) {
        phases->backward_ns = bpf_ktime_get_ns();
        phases->execute = PT_REGS_IP(context);
    }
    barrier_var(engines);
    phases->frames[engines & (ENGINES - 1)] = stack; /* the verifier wants to see that it is inside */
    phases->engines = engines + 1;
    return 0;
}

static __always_inline __u64 caller(struct pt_regs *context)
{
#ifdef __TARGET_ARCH_arm64
    return PT_REGS_RET(context);
#else
    __u64 address = 0;
    bpf_probe_read_user(&address, sizeof(address), (void *)PT_REGS_SP(context));
    return address;
#endif
}

/* c10::IValue::toTensorVector: the last that the engine calls before it returns, itself. */
SEC("uprobe")
int engine_leave(struct pt_regs *context)
{
    struct open_phases *phases = phases_of((__u32)bpf_get_current_pid_tgid(), false);
    if (!phases || !phases->engines || caller(context) - phases->execute >= EXECUTE_BYTES)
        return 0;
    if (open_engines(phases, PT_REGS_SP(context)))
        close_engine(phases);
    return 0;
}

/* torch::autograd::Engine::thread_on_exception: the engine is about to throw. */
SEC("uprobe")
int engine_fail(struct pt_regs *context)
{
    struct open_phases *phases = phases_of((__u32)bpf_get_current_pid_tgid(), false);
    if (phases && phases->engines && open_engines(phases, PT_REGS_SP(context)))
        close_engine(phases);
    return 0;
}

/* ------------------------------------------------------------------ optimizer */

/* The first 16 bytes of "Optimizer.step#..." and "Optimizer.zero_grad#...", little-endian as both machines.
 */
static __always_inline bool is_optimizer(__u64 first, __u64 second)
{
    return first == 0x657a696d6974704fULL &&                             /* "Optimize" */
           ((second & 0x00ffffffffffffffULL) == 0x0023706574732e72ULL || /* "r.step#" */
            second == 0x675f6f72657a2e72ULL);                            /* "r.zero_g" */
}

/* What a Python object says when it is a string: its ASCII text lies behind a header of 40 bytes, or 48
 * before Python 3.12. */
static __always_inline __u32 name_of(__u64 object)
{
    __u64 head[8], type_name = 0;
    char text[4] = "";
    if (bpf_probe_read_user(head, sizeof(head), (void *)object))
        return NAME_UNKNOWN;
    if (is_optimizer(head[5], head[6]) || is_optimizer(head[6], head[7]))
        return NAME_OPTIMIZER;
    bpf_probe_read_user(&type_name, sizeof(type_name), (void *)(head[1] + 24));
    bpf_probe_read_user(text, sizeof(text), (void *)type_name);
    return text[0] == 's' && text[1] == 't' && text[2] == 'r' && !text[3] ? NAME_OTHER : NAME_UNKNOWN;
}

/* torch::jit::_get_operation_for_overload_or_packet: Python calls an operator by its name, and a record is
 * one that is given its name as the first argument. The arguments are a tuple: its items lie behind a header
 * of 24 bytes, or 32 since Python 3.14. */
SEC("uprobe")
int call(struct pt_regs *context)
{
#ifdef __TARGET_ARCH_arm64
    __u64 place = PT_REGS_PARM3(context); /* the place of the result has a register of its own */
#else
    __u64 place = PT_REGS_PARM4(context);
#endif
    __u64 now_ns = bpf_ktime_get_ns(), tuple = 0, items[2] = {0};
    __u32 name = NAME_UNKNOWN;
    bpf_probe_read_user(&tuple, sizeof(tuple), (void *)place);
    if (!bpf_probe_read_user(items, sizeof(items), (void *)(tuple + 24))) {
        name = name_of(items[0]);
        if (name == NAME_UNKNOWN)
            name = name_of(items[1]);
    }
    struct open_phases *phases = phases_of((__u32)bpf_get_current_pid_tgid(), name != NAME_UNKNOWN);
    if (!phases)
        return 0;
    settle(phases);
    if (name != NAME_UNKNOWN)
        judge();
    phases->called = name;
    phases->called_ns = now_ns;
    return 0;
}

/* at::_ops::zeros::call. Before PyTorch 2 each record that Python makes begins by making such a tensor for a
 * handle; attached up to 2.2, whose functions tell themselves from later ones by their names. */
SEC("uprobe")
int handle(struct pt_regs *context)
{
    struct open_phases *phases = phases_of((__u32)bpf_get_current_pid_tgid(), true);
    if (phases && !phases->no_handles)
        phases->handle_ns = bpf_ktime_get_ns();
    return 0;
}

/* torch::autograd::profiler::record_function_enter_new: this is PyTorch 2, whose records have no handle. */
SEC("uprobe")
int record_new(struct pt_regs *context)
{
    struct open_phases *phases = phases_of((__u32)bpf_get_current_pid_tgid(), true);
    if (phases) {
        phases->no_handles = 1;
        phases->handle_ns = 0;
    }
    return 0;
}

static __always_inline __u64 start_of(const struct open_phases *phases, __u32 name)
{
    if (name != NAME_OPTIMIZER)
        return bpf_ktime_get_ns();
    __u64 called_ns = phases->called_ns, handle_ns = phases->handle_ns;
    return handle_ns && called_ns - handle_ns < NEXT_TO_NS ? handle_ns : called_ns;
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
    settle(phases);
    for (int i = 0; i < DEPTH; i++) {
        struct record *record = &phases->records[i];
        if (record->object)
            continue;
        record->object = PT_REGS_PARM1(context);
        record->name = phases->called;
        record->start_ns = start_of(phases, record->name);
        record->end_ns = 0;
        record->updates = 0;
        phases->open++;
        if (record->name == NAME_UNKNOWN && judge())
            emit(KJ_MARK_UNNAMED, record->start_ns, record->start_ns);
        break;
    }
    phases->called = NAME_UNKNOWN;
    phases->handle_ns = 0;
    return 0;
}

/* An update in place: of parameters, or of gradients to zero. Says of the innermost record what its name did
 * not. */
SEC("uprobe")
int update(struct pt_regs *context)
{
    struct open_phases *phases = phases_of((__u32)bpf_get_current_pid_tgid(), false);
    if (!phases || !phases->open || (phases->engines && open_engines(phases, PT_REGS_SP(context))))
        return 0;
    struct record *innermost = 0;
    for (int i = 0; i < DEPTH; i++)
        if (phases->records[i].object && (!innermost || phases->records[i].start_ns > innermost->start_ns))
            innermost = &phases->records[i];
    if (innermost)
        innermost->updates++;
    return 0;
}

/* RecordFunction::end(), and again when the record is destroyed: of an optimizer's, which nobody else holds,
 * that is the last thing that its function does. */
SEC("uprobe")
int record_leave(struct pt_regs *context)
{
    struct open_phases *phases = phases_of((__u32)bpf_get_current_pid_tgid(), false);
    __u64 self = PT_REGS_PARM1(context), now_ns = bpf_ktime_get_ns();
    if (!phases || !phases->open || !self)
        return 0;
    for (int i = 0; i < DEPTH; i++) {
        struct record *record = &phases->records[i];
        if (record->object != self)
            continue;
        if (record->name == NAME_OPTIMIZER && !record->end_ns) {
            record->end_ns = now_ns;
            phases->ended++;
            break;
        }
        record->object = 0;
        phases->open--;
        if (record->name == NAME_OPTIMIZER) {
            bool soon = now_ns - record->end_ns < NEXT_TO_NS;
            phases->ended--;
            emit(KJ_MARK_OPTIMIZER, record->start_ns, soon ? now_ns : record->end_ns);
        } else if (record->name == NAME_UNKNOWN && record->updates) {
            emit(KJ_MARK_OPTIMIZER, record->start_ns, now_ns);
        }
        break;
    }
    return 0;
}
