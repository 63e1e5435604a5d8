/* SPDX-License-Identifier: Apache-2.0
 *
 * shim.h - what the files of libkjoule.so share. Nothing here is exported.
 *
 * Rules of the launch path (from a launch hook's entry to its return): no malloc, no lock that
 * another thread may hold for long, no getenv, no system call. Cold paths may take `kj_lock_cold`. No driver
 * call is made under it.
 */
#ifndef KJ_SHIM_H
#define KJ_SHIM_H

#include "cuda_abi.h"
#include "ledger.h"

#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#define KJ_EXPORT   __attribute__((visibility("default")))
#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
/* Of the whole process, read by each launch and hardly ever written: side by side in few cache lines, for the
 * driver's own work has taken ours out of the nearest cache by the next launch. */
#define KJ_EACH_LAUNCH __attribute__((section(".data.each_launch")))

enum kj_hook {
#define HOOK(symbol, name, version, lane, params, args) KJ_HOOK_##symbol,
#include "hooks_each.h"
    KJ_HOOK_COUNT
};

/* Prototypes of the wrappers: their types are the types of the real functions. */
#define HOOK(symbol, name, version, lane, params, args) KJ_EXPORT CUresult symbol params;
#include "hooks_each.h"

/* Driver functions that the shim itself calls and does not hook. A missing one is NULL. */
struct kj_driver {
#define DRIVER(name, params) CUresult(*name) params;
#include "driver.def"
};
extern struct kj_driver kj_driver;

/* The real function behind a hook, filled by whichever door resolved it first; same-ABI pointers are
 * interchangeable. */
extern _Atomic(void *) kj_real[KJ_HOOK_COUNT];
void *kj_resolve(enum kj_hook hook);
static inline void *kj_real_of(enum kj_hook hook)
{
    void *real = atomic_load_explicit(&kj_real[hook], memory_order_relaxed);
    return likely(real) ? real : kj_resolve(hook);
}
#define REAL(symbol) ((__typeof__(&symbol))kj_real_of(KJ_HOOK_##symbol))

/* ---- the ledger's writer (ledger.c)
 * ------------------------------------------------------------------------------ */

/* NULL while nothing is recorded: before the first look-up, after a refusal, in a fork's child. */
extern _Atomic(struct kj_ledger_header *) kj_ledger;
static inline struct kj_ledger_header *kj_ledger_now(void)
{
    return atomic_load_explicit(&kj_ledger, memory_order_acquire);
}
static inline void *kj_section(struct kj_ledger_header *ledger, enum kj_ledger_section section)
{
    return (char *)ledger + ledger->sections[section].offset;
}
/* Creates and publishes the ledger in folder `dir`. False: *ret_reason says why. */
bool kj_ledger_create(const char *dir, const char **ret_reason);
void kj_ledger_end(void);
/* Takes the next row of an append-only section; the caller fills it, then publishes. -1 when full (counted).
 * Under kj_lock_cold. */
int64_t kj_row_reserve(struct kj_ledger_header *ledger, enum kj_ledger_section section);
void kj_row_publish(struct kj_ledger_header *ledger, enum kj_ledger_section section);
/* Copies a string to the arena; 0 ("") when there is no room. Under kj_lock_cold. */
uint32_t kj_name_store(struct kj_ledger_header *ledger, const char *name);
void kj_interval_publish(struct kj_ledger_header *ledger, const struct kj_ledger_interval *interval);
void kj_self_time_add(struct kj_ledger_header *ledger, uint64_t ns);

extern atomic_flag kj_cold_lock;
void kj_lock_cold(void);
void kj_unlock_cold(void);

/* ---- threads, contexts, streams (threads.c, contexts.c, streams.c)
 * ----------------------------------------------------------- */

struct kj_context; /* one per CUDA context; timing state inside */

/* A stream that was found to capture, which it does until the capture ends. */
struct kj_captured_stream {
    CUstream stream;
    const struct kj_context *context;
    uint32_t epoch;
    uint64_t id; /* the driver's, of the capture; 0: none */
};
#define KJ_CAPTURED_STREAMS 4

/* What an activity's key holds apart from the launch itself. */
union kj_place {
    struct {
        uint16_t device;
        uint8_t role, kind; /* as an activity's */
    };
    uint32_t word;
};

struct kj_thread {
    /* What each launch reads is in one cache line. */
    struct kj_ledger_header *ledger; /* the ledger this state belongs to; another one: start anew */
    uint64_t *counts;                /* this thread's shard of COUNTS */
    struct kj_context *context;      /* current context, NULL: ask the driver */
    CUstream last_stream;            /* of the newest launch or copy, and its row: see dependent.c */
    uint32_t last_row;               /* 0: no kernel */
    uint32_t until_sample;           /* launches until the context is checked, and a sample taken */
    CUcontext context_handle;        /* as the driver told it */
    uint32_t context_serial;         /* it is still that one while the context has this serial */
    union kj_place place;            /* of a kernel that it launches, while `context` is not NULL */
    uint16_t row;                    /* of THREADS */
    bool rehearsed;                  /* the next sample is the one that counts */
    bool exclusive;                  /* nobody else writes that shard */
    bool inside;                     /* the shim's own driver calls must not be recorded */
    struct {                         /* the newest folded kernel that it launched: see activities.c */
        const void *function;
        uint64_t hash;
        union kj_place place;
    } folded;
    uint32_t correlation[2];  /* CUPTI's ids of the driver's and the runtime's call under way; 0 none */
    uint32_t sample_distance; /* launches from the last sample to the next, as far as they are drawn */
    uint32_t skips;           /* times that until_sample runs out without a sample, from now on */
    uint32_t skips_drawn;     /* of the distance under way */
    int32_t sample_took_ns;   /* the shim's own time in the last sample */
    uint32_t random;          /* draws the distances */
    uint64_t sampled_ns;      /* when that was */
    int64_t owed_ns;          /* own time not yet in the ledger */
    struct kj_captured_stream captured[KJ_CAPTURED_STREAMS];
    uint32_t next_captured;
} __attribute__((aligned(64)));
extern __thread struct kj_thread kj_self;
void kj_thread_start(struct kj_ledger_header *ledger);
void kj_threads_forget(void); /* after fork */

/* The thread's current context, asked of the driver when the cache is empty; NULL when there is none. */
struct kj_context *kj_context_current(struct kj_ledger_header *ledger);
/* Where the program has switched it by what is no call that we see, the cache is emptied, and that is
 * counted. */
void kj_context_check(struct kj_ledger_header *ledger);
/* That of a stream: it need not be current. Of a default stream, the current one. Asked once a stream. */
struct kj_context *kj_context_of_stream(struct kj_ledger_header *ledger, CUstream stream);
/* By its handle, which is alive. NULL: nothing is known of it. */
struct kj_context *kj_context_meet(struct kj_ledger_header *ledger, CUcontext handle);
uint16_t kj_context_device(const struct kj_context *context);
/* An event of this context, whichever one is current. */
CUresult kj_context_event(const struct kj_context *context, CUevent *ret_event);
/* The current one has just been made by the program; one more reference to it was taken. */
void kj_context_created(struct kj_ledger_header *ledger);
void kj_context_attached(struct kj_ledger_header *ledger);
/* It is launched to; where another one is current, its own waits may never come. */
void kj_context_visit(struct kj_ledger_header *ledger, struct kj_context *context);
void kj_contexts_harvest_visited(struct kj_ledger_header *ledger);
/* No other context that was launched to is alive, and it is the current one, or the one named (not NULL). */
bool kj_context_is_only(struct kj_ledger_header *ledger, CUcontext named);
void kj_contexts_forget(void); /* after fork */

/* A call that ends a context, or takes a reference to one away: which, and what became of it. What has not
 * ended loses nothing. */
struct kj_ending {
    struct kj_context *context; /* named by the call; NULL: none, or not known */
    bool ends;                  /* this call ends it, if it succeeds */
    CUdevice ordinal; /* the call takes a reference from this device's primary context; -1: from none */
    struct kj_context *primary; /* closed to timing meanwhile, as it may end */
    bool may_end, unsure;
    uint32_t retained;
};
struct kj_ending kj_ending_of_context(CUcontext handle);
struct kj_ending kj_ending_of_primary(CUdevice ordinal);
struct kj_ending kj_ending_of_green(CUgreenCtx green);
void kj_ending_begin(struct kj_ledger_header *ledger, struct kj_ending *ending, enum kj_hook hook);
void kj_ending_end(struct kj_ledger_header *ledger, struct kj_ending *ending, enum kj_hook hook, CUresult rc);

/* Row of STREAMS for a handle as given to a call of this lane. */
uint16_t kj_stream_row(struct kj_ledger_header *ledger, struct kj_context *context, CUstream stream,
                       int lane);
/* Streams that the program made have been launched to. */
bool kj_streams_met(void);
/* A default stream has been launched to by this handle: 0, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD. */
bool kj_stream_default_met(CUstream handle);
/* Its handle is another stream's from now on. */
void kj_stream_forget(CUstream stream);
/* The context's streams have gone with it. NULL: all, after fork. */
void kj_streams_forget(const struct kj_context *context);

/* ---- activities: what is counted (activities.c)
 * -------------------------------------------------------------------- */

struct kj_shape {
    void *function; /* CUfunction, or CUkernel cast to it, or CUgraphExec */
    uint32_t grid[3], block[3];
    uint32_t shared_bytes;
};
/* Row of ACTIVITIES for a launch; always answers (row 0 takes what does not fit). ret_first: it was made by
 * this call. */
uint32_t kj_activity_find(struct kj_ledger_header *ledger, uint8_t kind, uint16_t device,
                          const struct kj_shape *shape, bool *ret_first);
/* The same for what another role than this thread's launched. */
uint32_t kj_activity_find_as(struct kj_ledger_header *ledger, uint8_t kind, uint16_t device, uint8_t role,
                             const struct kj_shape *shape, bool *ret_first);
/* The row of another role for what an activity does. */
uint32_t kj_activity_in_role(struct kj_ledger_header *ledger, uint32_t activity, uint8_t role);
/* In steps. Before the driver's call: the hash, which also fetches what the next one reads. After it: the
 * row, KJ_ROW_UNKNOWN at the first launch, which then makes one. */
#define KJ_ROW_UNKNOWN UINT32_MAX
uint64_t kj_activity_hash(uint8_t kind, uint16_t device, const struct kj_shape *shape);
bool kj_activity_is_new(uint64_t hash, uint8_t kind, uint16_t device,
                        const struct kj_shape *shape); /* hardly timed before */
uint32_t kj_activity_known(uint64_t hash, uint8_t kind, uint16_t device, const struct kj_shape *shape,
                           bool timed);
uint32_t kj_activity_make(struct kj_ledger_header *ledger, uint8_t kind, uint16_t device,
                          const struct kj_shape *shape, uint64_t hash, bool *ret_first);
/* A function handle went away: a later use of the same handle is another kernel. Costs what the function's
 * own shapes cost, not what the table holds. */
void kj_activities_forget(const void *function);
void kj_activities_reset(void); /* a new ledger */
static inline void kj_count(uint64_t *cell, uint64_t add)
{
    if (likely(kj_self.exclusive))
        __atomic_store_n(cell, *cell + add, __ATOMIC_RELAXED);
    else
        __atomic_fetch_add(cell, add, __ATOMIC_RELAXED);
}

/* ---- programmatic dependent launches (dependent.c)
 * ----------------------------------------------------------------- */

extern atomic_bool kj_dependent_seen; /* one was made: from here on threads remember their newest launch */
bool kj_launch_is_dependent(const CUlaunchConfig *config);
/* One was made: the kernel that this thread launched before it on the stream is not timed from here on. */
void kj_dependent_launched(struct kj_ledger_header *ledger, CUstream stream);
bool kj_dependent_follows(uint32_t row); /* launches of this row of ACTIVITIES */
void kj_dependent_forget(void);          /* after fork */

/* ---- names of functions (names.c)
 * ----------------------------------------------------------------------------------- */

/* Offset in NAMES of a function's mangled name, as far as it can be known. Takes kj_lock_cold. */
uint32_t kj_function_name(struct kj_ledger_header *ledger, void *function);
void kj_names_forget(void);

/* ---- captures and graphs (graphs.c)
 * --------------------------------------------------------------------------------- */

extern atomic_int kj_captures; /* active captures in this process: while it is not 0 the shim makes no event,
                                  query or record call */
bool kj_stream_captures(CUstream stream, int lane);
void kj_capture_begun(CUresult rc);
/* id: of the capture, asked before it ended. */
void kj_capture_ended(struct kj_ledger_header *ledger, CUresult rc, uint64_t id, CUgraph graph);
struct kj_shape kj_graph_shape(CUgraphExec exec);
/* A row of kind GRAPH was made by a launch: what it runs, the content in its shape, is written under it. */
void kj_graph_row_added(struct kj_ledger_header *ledger, uint32_t content, uint32_t row);
void kj_graph_instantiated(CUgraphExec exec, CUgraph graph, bool update);
extern _Atomic uint32_t kj_graph_edits; /* changes of graphs that are not executable, of any */
void kj_graphs_forget(void);

/* ---- what a capture holds (captured.c)
 * ------------------------------------------------------------------------------- */

/* The driver's number of the capture that a stream is in, 0: none. */
uint64_t kj_capture_id(CUstream stream, int lane);
/* Whether the stream captures, and into which capture (0: unknown). While kj_captures is not 0. */
bool kj_capture_holds(const struct kj_context *context, CUstream stream, int lane, uint64_t *ret_id);
/* A launch of an activity, or (activity 0) of a graph with this content (0: unknown), was captured. overlaps:
 * it may begin before what is ahead of it has ended. */
void kj_capture_add(const struct kj_context *context, CUstream stream, int lane, uint64_t id,
                    uint32_t activity, uint32_t content, uint64_t bytes, bool overlaps);
/* The capture has ended, with this graph, or NULL. */
void kj_capture_whole(struct kj_ledger_header *ledger, uint64_t id, CUgraph graph);
/* What streams capture may have changed. */
void kj_captures_changed(void);
void kj_captured_forget(void); /* in a child of the program */

/* ---- NVTX ranges (ranges.c)
 * ---------------------------------------------------------------------------------------- */

/* The role of a thread inside the ranges that it has open. */
uint8_t kj_role_in_range(uint8_t who);
/* Has the program's NVTX load us, unless it is to load somebody else; `kjoule run` does the same. */
void kj_ranges_ask(void);

/* ---- timing (timing.c)
 * ------------------------------------------------------------------------------------------------ */

/* What kind of call enqueues it. */
enum kj_call {
    KJ_CALL_KERNEL,
    KJ_CALL_DEPENDENT, /* a kernel that is not timed by events: see dependent.c */
    KJ_CALL_GRAPH,
    KJ_CALL_COPY_ASYNC,
    KJ_CALL_COPY, /* may wait for the device; without a stream of its own */
    KJ_CALL_HOST, /* not timed */
};
struct kj_pair; /* start and end event of one launch */
/* An event pair with its start recorded on the stream, or NULL: not timed. `burst`: one of all launches, not
 * one of a kernel that is timed alone. */
struct kj_pair *kj_timing_start(struct kj_ledger_header *ledger, struct kj_context *context, CUstream stream,
                                int lane, bool burst);
/* A launch goes untimed inside a burst: the timeline is not complete across it. */
void kj_timing_gap(struct kj_context *context);
/* Records the end event on the stream; false when the driver refused. */
bool kj_timing_mark(struct kj_pair *pair, CUstream stream, int lane);
/* bytes: of a copy or fill. first: of its activity. */
void kj_timing_end(struct kj_context *context, struct kj_pair *pair, enum kj_call call, uint32_t activity,
                   uint64_t bytes, bool first);
void kj_timing_cancel(struct kj_context *context, struct kj_pair *pair);
/* Collects finished pairs of the context, at most `most` (0: all). Never waits. */
void kj_timing_harvest(struct kj_ledger_header *ledger, struct kj_context *context, unsigned most);
/* Nothing that was timed is under way, as far as the last harvest saw. */
bool kj_timing_is_idle(const struct kj_context *context);
/* One launch of the activity took so long; what events tell has more to it (ledger.h). */
struct kj_duration {
    uint64_t ns, taken_ns, over_ns, under_ns;
};
void kj_activity_timed(struct kj_ledger_header *ledger, uint32_t activity, const struct kj_duration *duration,
                       bool first);
/* NULL: there are more contexts than places, and this one's launches are not timed. */
struct kj_timing *kj_context_timing(struct kj_context *context);
uint32_t kj_context_row(const struct kj_context *context);

/* CUPTI in the place of event pairs (cupti.c). */
extern atomic_int kj_cupti_on; /* its records time every launch */
void kj_cupti_load(
    void); /* finds the library: at a look-up of the application's, as dlopen is called there */
void kj_cupti_attach(struct kj_ledger_header *ledger); /* at the end of a cuInit */
void kj_cupti_yield(const char *reason);               /* steps aside for good; event pairs take over */
/* A launch or copy has been counted: what CUPTI's record of it will belong to. On the launch path. */
void kj_cupti_launched(struct kj_ledger_header *ledger, const struct kj_context *context, uint32_t activity,
                       uint16_t stream_row, uint64_t launch_ns);
/* At the application's waits: collects what is complete, now and then. */
void kj_cupti_harvest(struct kj_ledger_header *ledger, uint64_t now_ns, bool at_once);
void kj_cupti_forget(void); /* after fork */

/* Samples of the shim's own time in a launch (samples.c). */
struct kj_sample {
    uint64_t asked_ns, begun_ns;     /* before and after the context was checked */
    uint64_t called_ns, returned_ns; /* the caller's to fill: the real call lies between */
    uint32_t stands_for;             /* launches; 0: no sample is taken */
    uint32_t checks;                 /* of the context, since the sample before, without one */
    bool rehearsal;                  /* it only brings the sample's code into the caches */
};
/* A launch is due. stands_for is 0 before, and stays so where this one is not to be sampled. */
void kj_sample_begin(struct kj_sample *sample, struct kj_ledger_header *ledger);
/* The launch has been recorded: adds the sample to the shim's own time, and has the governor decide again
 * which launches are timed. */
void kj_sample_end(const struct kj_sample *sample, struct kj_ledger_header *ledger);
/* The launch cannot be measured: the next sample stands for its launches as well. */
void kj_sample_drop(struct kj_sample *sample);
/* A burst has begun since the last sample: what was launched before it cost as that sample did, and the next
 * one is due soon. */
void kj_sample_sooner(struct kj_ledger_header *ledger);

/* The governor: which launches are timed just now, by budget. */
enum kj_timing_mode {
    KJ_TIME_NONE,
    KJ_TIME_NEW, /* those of kernels that were hardly timed before */
    KJ_TIME_ALL, /* a burst */
};
extern atomic_int kj_timing_on;          /* enum kj_timing_mode */
extern _Atomic uint32_t kj_timing_epoch; /* raised when a burst begins */
extern _Atomic uint32_t kj_event_ns;     /* device time of one event record, as far as it is known */
#define KJ_SAMPLE_EVERY   64             /* launches on average, in a burst */
#define KJ_EVENT_GUESS_NS 1000           /* before it was seen */
void kj_governor_start(uint64_t now_ns);
void kj_governor_resume(void); /* CUPTI has left: event pairs again, from a burst on */
/* The shim's time in one launch, for as many launches as it stands for. */
void kj_governor_sample(struct kj_ledger_header *ledger, int64_t took_ns, uint32_t stands_for);
/* Its time in what comes too seldom for samples: asking about pairs, making a row for a new kernel. */
void kj_governor_harvested(struct kj_ledger_header *ledger, uint64_t took_ns, unsigned looked);
void kj_governor_made(struct kj_ledger_header *ledger, uint64_t took_ns);
/* The same in finding out what a graph runs, after asking about so many nodes. */
void kj_governor_read(struct kj_ledger_header *ledger, uint64_t took_ns, size_t nodes);
void kj_governor_tick(struct kj_ledger_header *ledger, uint64_t now_ns);

/* ---- rest: nothing is left to run (rest.c)
 * ------------------------------------------------------------------------ */

/* Marks the rows of calls that give a device work. */
void kj_rest_mark_calls(struct kj_ledger_call *calls);
/* Before a wait for what is named (NULL: the current context, or stream 0): what kj_rest_settled is to be
 * given once it has succeeded. 0: it may leave something running. */
uint64_t kj_rest_covered(struct kj_ledger_header *ledger, enum kj_hook hook, int lane, const void *named);
static inline void kj_rest_settled(struct kj_ledger_header *ledger, uint64_t covered)
{
    if (covered)
        __atomic_store_n(&ledger->settled_calls, covered, __ATOMIC_RELEASE);
}
/* A synchronous copy to the host has been counted: it waited for its stream. */
void kj_rest_copied(struct kj_ledger_header *ledger);
/* Before anything was launched, the device rests from here on. */
void kj_rest_context_made(struct kj_ledger_header *ledger);
static inline void kj_rest_copy_begins(struct kj_ledger_header *ledger)
{
    __atomic_fetch_add(&ledger->copies_under_way, 1, __ATOMIC_RELAXED);
}
static inline void kj_rest_copy_ended(struct kj_ledger_header *ledger)
{
    __atomic_fetch_sub(&ledger->copies_under_way, 1, __ATOMIC_RELEASE);
}

/* ---- delays that the user asked for (walk.c)
 * ------------------------------------------------------------------------ */

/* A new ledger. */
void kj_walk_start(struct kj_ledger_header *ledger);
/* The application's wait for the device has returned after so long, and all of it has been recorded: a delay,
 * if one is due here. `whole`: it was for all of a stream or context, not for an event in it. */
void kj_walk(struct kj_ledger_header *ledger, bool whole, uint64_t waited_ns);

/* ---- session (preload.c, start.c)
 * -------------------------------------------------------------------------------------- */

struct kj_config {
    char dir[4096];     /* the run folder; empty: there is none, for the reason in no_dir */
    const char *no_dir; /* said when CUDA is first touched, so that other processes stay silent */
    bool off;           /* KJOULE_DISABLE, set-uid, or a refusal */
    bool events;        /* KJOULE_TIMING is not "count" */
    bool cupti;         /* it is "cupti" */
    double budget;      /* fraction of wall time */
    double walk;        /* the same, of the delays of walk.c; 0: none */
};
extern struct kj_config kj_config;

/* unhooked.c: whether a name that is in no row of hooks.def sounds like work on a device; and that it was
 * asked for, at that version (0: by dlsym). Takes kj_lock_cold. */
bool kj_unhooked_is_work(const char *name);
void kj_unhooked_note(const char *name, int version, uint64_t flags);

/* doors.c: the dlsym behind our own. */
void *kj_dlsym_behind(void *handle, const char *name);

/* musl.c: another libc than glibc; a definition of `name` other than `own`, there. */
bool kj_libc_is_foreign(void);
void *kj_symbol_behind(const char *name, const void *own);

/* Reads the configuration, once: the first of all entries of this library that needs it calls, for others may
 * come before our constructor. Returns when it has been read, whoever does it. */
void kj_session_configure(void);
/* Called at the first look-up of a CUDA entry point, again and again: opens the ledger once, and returns when
 * it is open. */
void kj_session_touch(void);
void kj_session_disable(const char *reason);
/* Bare LD_PRELOAD: start.c. */
bool kj_own_library(char ret_path[PATH_MAX]); /* the file that this library was loaded from */
void kj_recorder_start(void);
void kj_recorder_wait(void);

static inline uint64_t kj_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* True when this call is to be recorded: there is a ledger, and the call is not the shim's own. */
static inline struct kj_ledger_header *kj_enter(void)
{
    struct kj_ledger_header *ledger = kj_ledger_now();
    if (unlikely(!ledger || kj_self.inside))
        return NULL;
    if (unlikely(kj_self.ledger != ledger))
        kj_thread_start(ledger);
    return ledger;
}

static inline void kj_call_count(struct kj_ledger_header *ledger, enum kj_hook hook, CUresult rc,
                                 uint64_t host_ns)
{
    struct kj_ledger_call *call = (struct kj_ledger_call *)kj_section(ledger, KJ_SECTION_CALLS) + hook;
    if (likely(rc == CUDA_SUCCESS || rc == CUDA_ERROR_NOT_READY))
        kj_count(&kj_self.counts[KJ_LEDGER_CALLS_BASE + hook], 1);
    else
        __atomic_fetch_add(&call->failed, 1, __ATOMIC_RELAXED);
    if (host_ns)
        __atomic_fetch_add(&call->host_ns, host_ns, __ATOMIC_RELAXED);
}

/* The same for a hook whose body has no use for the ledger. */
static inline CUresult kj_counted(enum kj_hook hook, CUresult rc)
{
    struct kj_ledger_header *ledger = kj_enter();
    if (ledger)
        kj_call_count(ledger, hook, rc, 0);
    return rc;
}

#endif
