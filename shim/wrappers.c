/* SPDX-License-Identifier: Apache-2.0
 *
 * wrappers.c - the bodies of the hooks by class: call the real function, then record, then return its result
 * untouched. What needs a body of its own is in names.c, graphs.c, graph_changes.c and doors.c.
 */
#include "launch_path.h"

#define REFUSED                                                                                              \
    CUDA_ERROR_NOT_FOUND /* no driver behind this name; the dynamic linker would have said so earlier */

/* What one launch or copy carries from before the real call to after it. */
struct bracket {
    struct kj_ledger_header *ledger;
    struct kj_context *context;
    struct kj_pair *pair;
    uint64_t hash;           /* of the activity */
    struct kj_sample sample; /* of a COPY its moments of the real call alone */
    uint64_t launch_ns;      /* where CUPTI times it; else 0 */
    bool capturing;          /* it becomes a node of a graph: no launch */
    uint64_t capture_id;
};

/* ---- launches and copies
 * ------------------------------------------------------------------------------------------ */

static void place_again(struct bracket *b, CUstream stream, uint8_t kind, const struct kj_shape *shape)
{
    b->context = kj_context_of_stream(b->ledger, stream);
    if (b->context)
        b->hash = kj_activity_hash(kind, kj_context_device(b->context), shape);
}

/* Events around this launch would keep apart what overlaps. */
static bool overlaps(const struct bracket *b, enum kj_call call, uint8_t kind, const struct kj_shape *shape)
{
    if (call != KJ_CALL_DEPENDENT &&
        !kj_dependent_follows(kj_activity_known(b->hash, kind, kj_context_device(b->context), shape, false)))
        return false;
    kj_timing_gap(b->context);
    return true;
}

static inline void launch_begin(struct bracket *b, CUstream stream, int lane, enum kj_call call, uint8_t kind,
                                const struct kj_shape *shape)
{
    bool timed = call != KJ_CALL_HOST;
    b->ledger = kj_enter();
    if (!b->ledger)
        return;
    if (call == KJ_CALL_COPY || call == KJ_CALL_COPY_ASYNC)
        kj_rest_copy_begins(b->ledger);
    b->sample.stands_for = 0;
    if (unlikely(--kj_self.until_sample == 0))
        kj_sample_begin(&b->sample, b->ledger);
    b->pair = NULL;
    b->capturing = false;
    b->launch_ns = 0;
    if (unlikely(atomic_load_explicit(&kj_cupti_on, memory_order_relaxed))) {
        b->launch_ns = kj_now_ns();
        kj_self.correlation[0] = 0;
        timed = false; /* CUPTI's records do */
    }
    b->context = kj_context_of_stream(b->ledger, stream);
    b->sample.called_ns = call == KJ_CALL_COPY ? kj_now_ns() : 0;
    if (unlikely(!b->context))
        return;
    int mode = timed ? atomic_load_explicit(&kj_timing_on, memory_order_relaxed) : KJ_TIME_NONE;
    uint16_t device = kj_context_device(b->context);
    b->hash = kj_activity_hash(kind, device, shape);
    timed = mode == KJ_TIME_ALL ||
            (unlikely(mode == KJ_TIME_NEW) && kj_activity_is_new(b->hash, kind, device, shape));
    if (unlikely(timed && (call == KJ_CALL_DEPENDENT ||
                           atomic_load_explicit(&kj_dependent_seen, memory_order_relaxed))))
        timed = !overlaps(b, call, kind, shape);
    if (unlikely(atomic_load_explicit(&kj_captures, memory_order_relaxed))) {
        b->capturing = call != KJ_CALL_COPY && kj_capture_holds(b->context, stream, lane, &b->capture_id);
        if (!b->capturing && !b->launch_ns) { /* CUPTI does not mind */
            __atomic_fetch_add(&b->ledger->untimed_capture, 1, __ATOMIC_RELAXED);
            kj_timing_gap(b->context);
        }
    } else if (unlikely(timed)) {
        kj_self.inside = true;
        b->pair = kj_timing_start(b->ledger, b->context, stream, lane, mode == KJ_TIME_ALL);
        kj_self.inside = false;
        if (unlikely(kj_self.skips_drawn && mode == KJ_TIME_ALL))
            kj_sample_sooner(b->ledger);
        if (unlikely(!b->pair && !kj_self.context)) /* it was found to be another context */
            place_again(b, stream, kind, shape);
    }
    if (unlikely(b->sample.stands_for) || (call == KJ_CALL_COPY && b->pair))
        b->sample.called_ns = kj_now_ns();
}

/* Ends the bracket on the device, right after the real call, so that our own bookkeeping is not in it. */
static inline void bracket_close(struct bracket *b, CUresult rc, CUstream stream, int lane, enum kj_call call)
{
    if (unlikely(b->sample.stands_for) || call == KJ_CALL_COPY)
        b->sample.returned_ns = kj_now_ns();
    if (b->pair && !rc && !kj_timing_mark(b->pair, stream, lane)) {
        kj_timing_cancel(b->context, b->pair);
        b->pair = NULL;
    }
}

static void sample_end(struct bracket *b)
{
    kj_sample_end(&b->sample, b->ledger);
    if (b->pair && !b->sample.rehearsal)
        kj_timing_harvest(b->ledger, b->context, 2 * KJ_SAMPLE_EVERY); /* keeps its own time */
}

/* It became a node of a graph. */
static void capture_end(struct bracket *b, enum kj_call call, uint8_t kind, const struct kj_shape *shape,
                        uint64_t bytes, CUstream stream, int lane)
{
    bool graph = kind == KJ_ACTIVITY_GRAPH, first;
    uint16_t device = kj_context_device(b->context);
    uint32_t row = graph ? 0 : kj_activity_known(b->hash, kind, device, shape, false);
    if (unlikely(row == KJ_ROW_UNKNOWN)) {
        row = kj_activity_make(b->ledger, kind, device, shape, b->hash, &first);
        kj_sample_drop(&b->sample); /* it took its own time */
    }
    kj_capture_add(b->context, stream, lane, b->capture_id, row, graph ? shape->grid[1] : 0, bytes,
                   call == KJ_CALL_DEPENDENT);
    if (unlikely(b->sample.stands_for))
        sample_end(b);
}

static inline void launch_end(struct bracket *b, enum kj_hook hook, CUresult rc, enum kj_call call,
                              uint8_t kind, const struct kj_shape *shape, uint64_t bytes, CUstream stream,
                              int lane)
{
    kj_call_count(b->ledger, hook, rc,
                  call == KJ_CALL_COPY ? b->sample.returned_ns - b->sample.called_ns : 0);
    if (unlikely(rc || b->capturing || !b->context)) {
        if (rc)
            __atomic_fetch_add(&b->ledger->failed_launches, 1, __ATOMIC_RELAXED);
        else if (!b->context)
            __atomic_fetch_add(&b->ledger->contextless_launches, 1, __ATOMIC_RELAXED);
        if (b->pair)
            kj_timing_cancel(b->context, b->pair);
        if (!rc && b->capturing)
            capture_end(b, call, kind, shape, bytes, stream, lane);
        else
            kj_sample_drop(&b->sample);
        return;
    }
    bool first = false;
    uint16_t device = kj_context_device(b->context);
    uint32_t row = kj_activity_known(b->hash, kind, device, shape, b->pair != NULL);
    if (unlikely(row == KJ_ROW_UNKNOWN)) {
        row = kj_activity_make(b->ledger, kind, device, shape, b->hash, &first);
        kj_sample_drop(&b->sample); /* it took its own time */
    }
    kj_count(&kj_self.counts[row], 1);
    if (unlikely(call == KJ_CALL_DEPENDENT))
        kj_dependent_launched(b->ledger, stream);
    if (unlikely(atomic_load_explicit(&kj_dependent_seen, memory_order_relaxed))) {
        kj_self.last_stream = stream;
        kj_self.last_row = kind == KJ_ACTIVITY_KERNEL ? row : 0;
    }
    if (unlikely(first && kind == KJ_ACTIVITY_GRAPH))
        kj_graph_row_added(b->ledger, shape->grid[1], row);
    if (bytes) {
        struct kj_ledger_activity *rows = kj_section(b->ledger, KJ_SECTION_ACTIVITIES);
        __atomic_fetch_add(&rows[row].bytes, bytes, __ATOMIC_RELAXED);
    }
    if (unlikely(b->pair))
        kj_timing_end(b->context, b->pair, call, row, bytes, first);
    if (unlikely(b->launch_ns) && kind != KJ_ACTIVITY_HOST)
        kj_cupti_launched(b->ledger, b->context, row, kj_stream_row(b->ledger, b->context, stream, lane),
                          b->launch_ns);
    if (unlikely(b->sample.stands_for))
        sample_end(b);
}

static inline void copy_ended(const struct bracket *b, enum kj_call call)
{
    if (call == KJ_CALL_COPY || call == KJ_CALL_COPY_ASYNC)
        kj_rest_copy_ended(b->ledger);
}

#define SHAPE(f, gx, gy, gz, bx, by, bz, shared)                                                             \
    {                                                                                                        \
        (void *)(f), {(gx), (gy), (gz)}, {(bx), (by), (bz)}, (shared)                                        \
    }
/* A NULL configuration is the driver's to refuse. */
#define CONFIG_SHAPE(f, c)                                                                                   \
    {                                                                                                        \
        (void *)(f), {(c) ? (c)->gridDimX : 0, (c) ? (c)->gridDimY : 0, (c) ? (c)->gridDimZ : 0},            \
            {(c) ? (c)->blockDimX : 0, (c) ? (c)->blockDimY : 0, (c) ? (c)->blockDimZ : 0},                  \
            (c) ? (c)->sharedMemBytes : 0                                                                    \
    }
#define BRACKET(symbol, lane, stream, call, kind, bytes, args, ...)                                          \
    __typeof__(&symbol) real = REAL(symbol);                                                                 \
    if (unlikely(!real))                                                                                     \
        return REFUSED;                                                                                      \
    struct bracket b;                                                                                        \
    CUstream on = (stream);                                                                                  \
    const struct kj_shape shape = __VA_ARGS__;                                                               \
    launch_begin(&b, on, lane, call, kind, &shape);                                                          \
    CUresult rc = real args;                                                                                 \
    if (unlikely(!b.ledger))                                                                                 \
        return rc;                                                                                           \
    bracket_close(&b, rc, on, lane, call);                                                                   \
    launch_end(&b, KJ_HOOK_##symbol, rc, call, kind, &shape, rc ? 0 : (bytes), on, lane);                    \
    copy_ended(&b, call)

static bool is_of_current(struct kj_ledger_header *ledger, CUstream stream)
{
    const struct kj_context *context = kj_context_of_stream(ledger, stream);
    return context && context == kj_self.context;
}

/* A launch that is to be counted and nothing else, in the thread's current context, as most are: it goes the
 * short way, which takes a sample of itself now and then. */
static inline bool counts_alone(struct kj_ledger_header *ledger, CUstream stream)
{
    if (unlikely(!ledger || kj_self.ledger != ledger || kj_self.inside))
        return false;
    if (unlikely(atomic_load_explicit(&kj_timing_on, memory_order_relaxed) |
                 atomic_load_explicit(&kj_captures, memory_order_relaxed) |
                 atomic_load_explicit(&kj_cupti_on, memory_order_relaxed) |
                 atomic_load_explicit(&kj_dependent_seen, memory_order_relaxed)))
        return false;
    return likely(!CU_STREAM_IS_DEFAULT(stream) && kj_stream_is_in_current(stream)) ||
           is_of_current(ledger, stream);
}

/* Its context may turn out to be another one than it was held for, by what is no call that we see: false, and
 * the launch is due again. */
static __attribute__((noinline)) bool counted_sample(struct kj_sample *ret_sample,
                                                     struct kj_ledger_header *ledger, CUstream stream)
{
    *ret_sample = (struct kj_sample){0};
    kj_sample_begin(ret_sample, ledger);
    if (likely(is_of_current(ledger, stream)))
        return true;
    kj_sample_drop(ret_sample);
    kj_self.until_sample++;
    return false;
}

/* It failed, or is the first of its kind. */
static __attribute__((noinline)) void counted_otherwise(struct kj_ledger_header *ledger, uint64_t hash,
                                                        enum kj_hook hook, CUresult rc, struct kj_shape shape,
                                                        CUstream stream, int lane)
{
    struct bracket b = {.ledger = ledger, .context = kj_context_of_stream(ledger, stream), .hash = hash};
    launch_end(&b, hook, rc, KJ_CALL_KERNEL, KJ_ACTIVITY_KERNEL, &shape, 0, stream, lane);
}

#define COUNTED_LAUNCH(symbol, lane, stream, args, ...)                                                      \
    do {                                                                                                     \
        __typeof__(&symbol) real = REAL(symbol);                                                             \
        struct kj_ledger_header *ledger = kj_ledger_now();                                                   \
        struct kj_sample sample; /* of one that is due */                                                    \
        if (unlikely(!real || !counts_alone(ledger, stream)))                                                \
            break;                                                                                           \
        bool due = --kj_self.until_sample == 0;                                                              \
        if (unlikely(due && !counted_sample(&sample, ledger, stream)))                                       \
            break;                                                                                           \
        const struct kj_shape shape = __VA_ARGS__;                                                           \
        struct kj_kernel_key key = kj_kernel_find(&shape);                                                   \
        if (unlikely(due))                                                                                   \
            sample.called_ns = kj_now_ns();                                                                  \
        CUresult rc = real args;                                                                             \
        if (unlikely(due))                                                                                   \
            sample.returned_ns = kj_now_ns();                                                                \
        uint32_t row = likely(!rc) ? kj_kernel_row(key, &shape) : KJ_ROW_UNKNOWN;                            \
        if (unlikely(row == KJ_ROW_UNKNOWN)) {                                                               \
            if (due)                                                                                         \
                kj_sample_drop(&sample);                                                                     \
            counted_otherwise(ledger, key.hash, KJ_HOOK_##symbol, rc, shape, stream, lane);                  \
            return rc;                                                                                       \
        }                                                                                                    \
        kj_count(&kj_self.counts[KJ_LEDGER_CALLS_BASE + KJ_HOOK_##symbol], 1);                               \
        kj_count(&kj_self.counts[row], 1);                                                                   \
        if (unlikely(due && sample.stands_for))                                                              \
            kj_sample_end(&sample, ledger);                                                                  \
        return rc;                                                                                           \
    } while (0)

#define ENQUEUE(symbol, lane, stream, call, kind, bytes, args, ...)                                          \
    BRACKET(symbol, lane, stream, call, kind, bytes, args, __VA_ARGS__);                                     \
    return rc

static inline uint64_t kj_sum(const size_t *sizes, size_t count)
{
    uint64_t sum = 0;
    for (size_t i = 0; sizes && i < count; i++)
        sum += sizes[i];
    return sum;
}

/* A copy without a stream of its own is ordered on the legacy one, or on the thread's: so are its events.
 * What the host waited for, if it did, was over before the call returned, whatever ran before it on that
 * stream. */
static void copied(struct kj_ledger_header *ledger, CUresult rc, uint8_t kind, uint64_t took_ns)
{
    struct kj_context *context = kj_context_current(ledger);
    if (rc || !context)
        return;
    if (unlikely(atomic_load_explicit(&kj_cupti_on, memory_order_relaxed)))
        kj_cupti_harvest(ledger, kj_now_ns(), false);
    kj_timing_harvest(ledger, context, 2 * KJ_SAMPLE_EVERY);
    if (kind == KJ_ACTIVITY_MEMCPY_DTOH)
        kj_rest_copied(ledger);
    if (unlikely(kj_config.walk > 0) && kind == KJ_ACTIVITY_MEMCPY_DTOH)
        kj_walk(ledger, false, took_ns);
}

#define LAUNCH(symbol, name, version, lane, shape, stream, params, args)                                     \
    CUresult symbol params                                                                                   \
    {                                                                                                        \
        COUNTED_LAUNCH(symbol, lane, stream, args, shape);                                                   \
        ENQUEUE(symbol, lane, stream, KJ_CALL_KERNEL, KJ_ACTIVITY_KERNEL, 0, args, shape);                   \
    }
#define LAUNCH_CONFIG(symbol, name, version, lane, params, args)                                             \
    CUresult symbol params                                                                                   \
    {                                                                                                        \
        const enum kj_call kernel = kj_launch_is_dependent(config) ? KJ_CALL_DEPENDENT : KJ_CALL_KERNEL;     \
        if (likely(config && kernel == KJ_CALL_KERNEL))                                                      \
            COUNTED_LAUNCH(symbol, lane, config->hStream, args, CONFIG_SHAPE(f, config));                    \
        ENQUEUE(symbol, lane, config ? config->hStream : NULL, kernel, KJ_ACTIVITY_KERNEL, 0, args,          \
                CONFIG_SHAPE(f, config));                                                                    \
    }
#define COPY_ASYNC(symbol, name, version, lane, kind, bytes, params, args)                                   \
    CUresult symbol params                                                                                   \
    {                                                                                                        \
        ENQUEUE(symbol, lane, stream, KJ_CALL_COPY_ASYNC, KJ_ACTIVITY_##kind, bytes, args,                   \
                {.function = NULL});                                                                         \
    }
#define HOST(symbol, name, version, lane, params, args)                                                      \
    CUresult symbol params                                                                                   \
    {                                                                                                        \
        ENQUEUE(symbol, lane, stream, KJ_CALL_HOST, KJ_ACTIVITY_HOST, 0, args, {.function = NULL});          \
    }
#define GRAPH_LAUNCH(symbol, name, version, lane, params, args)                                              \
    CUresult symbol params                                                                                   \
    {                                                                                                        \
        ENQUEUE(symbol, lane, stream, KJ_CALL_GRAPH, KJ_ACTIVITY_GRAPH, 0, args, kj_graph_shape(exec));      \
    }
#define COPY(symbol, name, version, lane, kind, bytes, params, args)                                         \
    CUresult symbol params                                                                                   \
    {                                                                                                        \
        BRACKET(symbol, lane, NULL, KJ_CALL_COPY, KJ_ACTIVITY_##kind, bytes, args, {.function = NULL});      \
        copied(b.ledger, rc, KJ_ACTIVITY_##kind, b.sample.returned_ns - b.sample.called_ns);                 \
        return rc;                                                                                           \
    }

/* ---- waiting, contexts, captures
 * ------------------------------------------------------------------------------------ */

static void wait_end(struct kj_ledger_header *ledger, enum kj_hook hook, CUresult rc, uint64_t start_ns)
{
    uint64_t end_ns = kj_now_ns();
    kj_call_count(ledger, hook, rc, end_ns - start_ns);
    kj_context_check(ledger);
    struct kj_context *context = kj_context_current(ledger);
    if (!rc && context)
        kj_timing_harvest(ledger, context, 0);
    if (!rc)
        kj_contexts_harvest_visited(ledger);
    if (unlikely(atomic_load_explicit(&kj_cupti_on, memory_order_relaxed)))
        kj_cupti_harvest(ledger, end_ns, false);
    kj_governor_tick(ledger, end_ns);
    if (unlikely(kj_config.walk > 0) && !rc)
        kj_walk(ledger, hook != KJ_HOOK_cuEventSynchronize, end_ns - start_ns);
}

/* The handle that a call names, as its arguments stand in hooks.def; NULL: none. */
#define NAMED_BY(...) ((const void *[2]){NULL, ##__VA_ARGS__}[1])
#define SYNC(symbol, name, version, lane, params, args)                                                      \
    CUresult symbol params                                                                                   \
    {                                                                                                        \
        __typeof__(&symbol) real = REAL(symbol);                                                             \
        struct kj_ledger_header *ledger = kj_enter();                                                        \
        if (unlikely(!real || !ledger))                                                                      \
            return real ? real args : REFUSED;                                                               \
        uint64_t covered = kj_rest_covered(ledger, KJ_HOOK_##symbol, lane, NAMED_BY args);                   \
        uint64_t start_ns = kj_now_ns();                                                                     \
        CUresult rc = real args;                                                                             \
        kj_rest_settled(ledger, rc ? 0 : covered);                                                           \
        wait_end(ledger, KJ_HOOK_##symbol, rc, start_ns);                                                    \
        return rc;                                                                                           \
    }

/* Everything else: the real call between an action before and one after. */
#define BRACKETED(symbol, params, args, before, after)                                                       \
    CUresult symbol params                                                                                   \
    {                                                                                                        \
        __typeof__(&symbol) real = REAL(symbol);                                                             \
        struct kj_ledger_header *ledger = kj_enter();                                                        \
        if (unlikely(!real || !ledger))                                                                      \
            return real ? real args : REFUSED;                                                               \
        before;                                                                                              \
        CUresult rc = real args;                                                                             \
        kj_call_count(ledger, KJ_HOOK_##symbol, rc, 0);                                                      \
        after;                                                                                               \
        return rc;                                                                                           \
    }

static void context_changed(struct kj_ledger_header *ledger, enum kj_hook hook, CUresult rc)
{
    kj_self.context = NULL;
    switch (rc ? KJ_HOOK_COUNT : hook) {
    case KJ_HOOK_cuCtxCreate:
    case KJ_HOOK_cuCtxCreate_v2:
    case KJ_HOOK_cuCtxCreate_v3:
    case KJ_HOOK_cuCtxCreate_v4:
        kj_context_created(ledger);
        break;
    case KJ_HOOK_cuCtxAttach:
        kj_context_attached(ledger);
        break;
    default:
        break;
    }
}

/* The end of a context waits for what still runs in it. */
static void release_begin(struct kj_ledger_header *ledger, struct kj_ending *ending, enum kj_hook hook)
{
    kj_ending_begin(ledger, ending, hook);
    if (unlikely(atomic_load_explicit(&kj_cupti_on, memory_order_relaxed)))
        kj_cupti_harvest(ledger, kj_now_ns(), true);
}

static void release_end(struct kj_ledger_header *ledger, struct kj_ending *ending, enum kj_hook hook,
                        CUresult rc)
{
    kj_ending_end(ledger, ending, hook, rc);
    if (unlikely(atomic_load_explicit(&kj_cupti_on, memory_order_relaxed)))
        kj_cupti_harvest(ledger, kj_now_ns(), true);
}

/* By the type of what the call names: a context, a device, a green context. */
#define ENDING_OF(named)                                                                                     \
    _Generic((named), CUcontext                                                                              \
             : kj_ending_of_context, CUdevice                                                                \
             : kj_ending_of_primary, CUgreenCtx                                                              \
             : kj_ending_of_green)(named)

#define QUERY(symbol, name, version, lane, params, args) BRACKETED(symbol, params, args, , )
#define CONTEXT(symbol, name, version, lane, params, args)                                                   \
    BRACKETED(symbol, params, args, , context_changed(ledger, KJ_HOOK_##symbol, rc))
#define RELEASE(symbol, name, version, lane, params, args)                                                   \
    BRACKETED(symbol, params, args, struct kj_ending ending = ENDING_OF args;                                \
              release_begin(ledger, &ending, KJ_HOOK_##symbol),                                              \
              release_end(ledger, &ending, KJ_HOOK_##symbol, rc))
#define BEGIN_CAPTURE(symbol, name, version, lane, params, args)                                             \
    BRACKETED(symbol, params, args, atomic_fetch_add(&kj_captures, 1), kj_capture_begun(rc))
#define END_CAPTURE(symbol, name, version, lane, graph, params, args)                                        \
    BRACKETED(symbol, params, args, uint64_t id = kj_capture_id(stream, lane),                               \
              kj_capture_ended(ledger, rc, id, rc ? NULL : (graph)))
#define INSTANTIATE(symbol, name, version, lane, params, args)                                               \
    BRACKETED(symbol, params, args, , if (!rc) kj_graph_instantiated(*ret_exec, graph, false))
#define GRAPH_UPDATE(symbol, name, version, lane, params, args)                                              \
    BRACKETED(symbol, params, args, , if (!rc) kj_graph_instantiated(exec, graph, true))
#define GRAPH_EDIT(symbol, name, version, lane, params, args)                                                \
    BRACKETED(symbol, params, args, , atomic_fetch_add(&kj_graph_edits, 1))
#define CUSTOM(symbol, name, version, lane, params, args)
#define PASS(symbol, reason)

#include "hooks.def"

/* ---- bodies of their own
 * ----------------------------------------------------------------------------------------------- */

CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *list, unsigned num_devices, unsigned flags)
{
    __typeof__(&cuLaunchCooperativeKernelMultiDevice) real = REAL(cuLaunchCooperativeKernelMultiDevice);
    if (!real)
        return REFUSED;
    struct kj_ledger_header *ledger = kj_enter();
    CUresult rc = real(list, num_devices, flags);
    if (!ledger)
        return rc;
    kj_call_count(ledger, KJ_HOOK_cuLaunchCooperativeKernelMultiDevice, rc, 0);
    for (unsigned i = 0; !rc && i < num_devices; i++) {
        const CUDA_LAUNCH_PARAMS *p = &list[i];
        struct kj_context *context = kj_context_of_stream(ledger, p->hStream);
        if (!context)
            continue;
        kj_timing_gap(context); /* these are not timed */
        const struct kj_shape shape = SHAPE(p->function, p->gridDimX, p->gridDimY, p->gridDimZ, p->blockDimX,
                                            p->blockDimY, p->blockDimZ, p->sharedMemBytes);
        bool first;
        kj_count(&kj_self.counts[kj_activity_find(ledger, KJ_ACTIVITY_KERNEL, kj_context_device(context),
                                                  &shape, &first)],
                 1);
    }
    return rc;
}

/* Before the real call: after it the handle may be another stream's already. */
#define PLAIN(symbol, params, args, before) BRACKETED(symbol, params, args, before, )
PLAIN(cuStreamCreate, (CUstream * ret_stream, unsigned flags), (ret_stream, flags), )
PLAIN(cuStreamCreateWithPriority, (CUstream * ret_stream, unsigned flags, int priority),
      (ret_stream, flags, priority), )
PLAIN(cuStreamDestroy, (CUstream stream), (stream), kj_stream_forget(stream))
PLAIN(cuStreamDestroy_v2, (CUstream stream), (stream), kj_stream_forget(stream))

/* The child of a fork that took place after the look-ups, and before any cuInit, begins here. Nowhere else:
 * what a forked helper calls on its way out is no use of CUDA. */
CUresult cuInit(unsigned flags)
{
    __typeof__(&cuInit) real = REAL(cuInit);
    if (!real)
        return REFUSED;
    kj_session_touch();
    struct kj_ledger_header *ledger = kj_enter();
    CUresult rc = real(flags);
    if (ledger && !rc)
        ledger->flags |= KJ_LEDGER_CUDA_INIT;
    if (ledger && !rc && kj_config.cupti)
        kj_cupti_attach(ledger);
    return kj_counted(KJ_HOOK_cuInit, rc);
}
