/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_sim.h - what the files of the simulated driver share. Handles are pointers to these structs; each
 * begins with a magic word, so that a foreign handle is an error, and a destroyed one ends the program by
 * name.
 */
#ifndef SIM_CUDA_H
#define SIM_CUDA_H

#include "cuda_abi.h"
#include "device.h"
#include "trace.h"

#include <pthread.h>
#include <stdatomic.h>

#define API __attribute__((visibility("default")))

enum sim_export {
#define EXPORT(symbol, name, version, lane) SIM_##symbol,
#include "cuda_exports.def"
#undef EXPORT
    SIM_EXPORTS
};
_Static_assert((int)SIM_EXPORTS <= (int)SIM_CALLS, "a counter for every export");
struct sim_entry {
    const char *name; /* as cuGetProcAddress knows it */
    void *address;
    int version, lane;
};
extern const struct sim_entry sim_entries[SIM_EXPORTS];
#define CALLED(symbol)                                                                                       \
    __atomic_fetch_add(&sim_machine()->calls[SIM_##symbol], 1, __ATOMIC_RELAXED);                            \
    __attribute__((cleanup(sim_call_end), unused)) struct sim_call call_ = sim_call_begin(SIM_##symbol)

/* A call under way, for a listener (trace.h). */
struct sim_call {
    const char *symbol;     /* NULL: nobody listens */
    const char *outer_name; /* of the call that this one is made in */
    uint32_t outer;
    double hold_us; /* before it returns */
};
struct sim_call sim_call_begin(int export);
void sim_call_end(struct sim_call *call);
const char *sim_call_name(void); /* of the call under way */

enum {
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903,
    CUDA_ERROR_STREAM_CAPTURE_ISOLATION = 905,
};

enum sim_magic {
    SIM_CONTEXT = 0x43545830,
    SIM_STREAM,
    SIM_EVENT,
    SIM_MODULE,
    SIM_LIBRARY,
    SIM_FUNCTION,
    SIM_GRAPH,
    SIM_NODE,
    SIM_EXEC,
    SIM_POOL,
    SIM_GREEN,
    SIM_KINDS_END
};

/* Every handle's struct begins with it. */
struct sim_head {
    uint32_t magic;  /* enum sim_magic; its complement: destroyed */
    uint32_t serial; /* no two handles of a process have the same; 0: destroyed */
};

/* The context that an object belongs to, and dies with. */
struct sim_owner {
    CUcontext context;
    uint32_t serial; /* of the context, when the object was made */
};

struct CUctx_st {
    struct sim_head head;
    int device, references;
    bool primary, green;
    unsigned flags;
    CUstream legacy;                /* its default stream */
    _Atomic uint64_t gone_tail;     /* latest end on a stream that was destroyed */
    _Atomic uint64_t blocking_tail; /* latest end on any blocking stream: the legacy stream waits for it */
    struct CUctx_st *next;
};

struct capture {
    CUgraph graph;
    CUstream origin;
    int mode;
    bool invalidated, ended; /* never freed: streams and events find out late */
    CUcontext context;
    pthread_t thread;
    uint64_t id;
};

struct CUstream_st {
    struct sim_head head;
    union {
        struct sim_owner owner;
        CUcontext context;
    };
    bool green; /* of a green context */
    unsigned flags;
    int priority;
    uint64_t id;
    _Atomic uint64_t tail_ns;
    uint64_t kernel_ns, kernel_end_ns; /* of the newest kernel; end 0: an event came after it */
    struct capture *capture;           /* under sim_capture_lock */
    CUgraphNode last;                  /* newest node of the capture on this stream */
    atomic_int callbacks;              /* host functions not run yet */
    struct CUstream_st *next;
};

struct CUevent_st {
    struct sim_head head;
    union {
        struct sim_owner owner;
        CUcontext context;
    };
    unsigned flags;
    bool recorded;
    uint64_t time_ns;
    struct capture *capture;
    CUgraphNode node;
    CUstream stream;
};

struct CUmod_st {
    struct sim_head head;
    CUlibrary library;
    CUcontext context; /* NULL: of a library */
    CUmodule next;
};

struct CUlib_st {
    struct sim_head head;
    CUmodule module;
};

/* A function or a kernel: a launch takes either, as a driver's does. */
struct CUfunc_st {
    struct sim_head head;
    void *owner;
    char *name;
    bool is_kernel;  /* a CUkernel; else a CUfunction */
    CUfunction twin; /* the CUfunction of a CUkernel, where it was asked for */
    bool is_twin;
    _Atomic uint32_t kernel[SIM_DEVICES]; /* index + 1 */
    struct CUfunc_st *next, *same;
};

enum { SIM_BODIES = 8 };
struct CUgraphNode_st {
    struct sim_head head;
    int type;
    CUDA_KERNEL_NODE_PARAMS_v2 kernel;
    uint64_t bytes;       /* copies, fills */
    const char *activity; /* "[memcpy HtoD]" ... */
    CUhostFn host;
    void *user_data;
    CUgraph child;
    int conditional; /* enum sim_conditional */
    unsigned body_count;
    CUgraph bodies[SIM_BODIES];
    CUgraph graph;
    void *copy[2]; /* destination, source */
    uint32_t value, element;
    CUgraphNode origin;        /* what this one was copied from */
    CUgraphNode twin;          /* its newest copy */
    bool off;                  /* of an executable: switched off */
    bool dependent;            /* a programmatic dependent launch */
    char mark[SIM_MARK_BYTES]; /* of who captured it; empty: built by hand */
    struct CUgraphNode_st *next;
};

struct CUgraph_st {
    struct sim_head head;
    uint32_t id;
    CUgraphNode first, last_added;
    bool recapturing;       /* its nodes are taken anew, in their order */
    CUgraphNode recaptured; /* the next of them */
    size_t nodes, edge_count;
    struct sim_edge {
        CUgraphNode from, to;
    } * edges; /* of graphs built by hand; they change no order of execution here */
};

struct CUgraphExec_st {
    struct sim_head head;
    CUgraph graph; /* a copy of its own */
};

/* State */
extern atomic_bool sim_initialised, sim_torn_down;
extern pthread_mutex_t sim_lock;
CUresult sim_ready(void);      /* NOT_INITIALIZED, DEINITIALIZED or 0 */
CUcontext sim_current(void);   /* NULL when there is none, or it has been destroyed */
CUresult sim_current_rc(void); /* why there is none */
CUresult sim_primary(CUcontext *ret_context, int device, bool retain);
/* Takes `count` references away; it ends without any, or at once by a reset. */
CUresult sim_primary_end(int device, int count, bool reset);
int sim_ordinal_to_device(int ordinal); /* by CUDA_VISIBLE_DEVICES */
int sim_device_to_ordinal(int device);
int sim_visible_devices(void);
CUresult sim_current_get(void **ret_context);

/* Streams: resolves 0, 1, 2 and checks; NULL with the error in *ret_rc. */
CUstream sim_stream(CUstream handle, int lane, CUresult *ret_rc);
/* Earliest start of work on the stream, and its end put back. */
uint64_t sim_stream_start(CUstream stream);
void sim_stream_end(CUstream stream, uint64_t end_ns);
void sim_burn(uint64_t cost_ns); /* host time */
/* What the call takes of the host (costs.def); CALLED does the former. */
void sim_charge_call(int export);
void sim_charge_items(int export, uint64_t items);
/* Holds the call up before it does anything, where the script says so. Returns for how long at its end. */
double sim_hold_begin(int export);
void sim_hold_end(double us);
CUresult sim_stream_wait(CUstream stream);
CUresult sim_context_wait(CUcontext context);
CUresult sim_stream_make(CUstream *ret, CUcontext context, unsigned flags, int priority);
CUstream sim_legacy_make(CUcontext context);
/* The latest end of what runs on a context's streams; all of them begin no sooner than a time. */
uint64_t sim_context_tail(CUcontext context);
void sim_context_delay(CUcontext context, uint64_t until_ns);
/* With the context all its streams and modules go. Under sim_lock. */
void sim_streams_end(CUcontext context);
void sim_modules_end(CUcontext context);

/* Contexts, under sim_lock. */
void sim_context_begin(CUcontext context, int device);
void sim_context_end(CUcontext context);

/* Handles (cuda_handles.c). The one destroyed last is the next one made. */
void *sim_handle_make(enum sim_magic kind, size_t size);
void sim_handle_destroy(void *handle);
void sim_handle_begin(void *handle, enum sim_magic kind); /* memory of one's own */
void sim_handle_end(void *handle);
/* False for what is no such handle. Does not return for a destroyed one. */
bool sim_valid(const void *handle, enum sim_magic kind);
/* A use of what is gone: ends the program with a line, unless the script says otherwise. */
void sim_destroyed(const void *handle, const char *what);
bool sim_owner_alive(const struct sim_owner *owner);

/* Captures */
extern atomic_int sim_captures;
struct capture *sim_capture_of(CUstream stream);       /* the active one, or NULL */
bool sim_capturing(CUstream stream, CUresult *ret_rc); /* true: add a node instead */
CUresult
sim_unsafe(void); /* a call that a capture forbids: 0 or the error, after invalidating what it must */
CUgraphNode sim_capture_add(CUstream stream, int type);
/* node: of the graph that runs it, or NULL. */
CUresult sim_run_kernel(CUstream stream, const CUDA_KERNEL_NODE_PARAMS_v2 *kernel, CUgraphNode node);
CUresult sim_run_copy(CUstream stream, const char *activity, uint64_t bytes, CUgraphNode node);
/* Tells the listener, if there is one; ordinal, stream and correlation are filled in. */
void sim_trace(CUstream stream, struct sim_trace_work work);
CUresult sim_host_call(CUstream stream, CUhostFn fn, void *user_data);
void sim_copy_bytes(void *to, const void *from, size_t bytes);

/* Of an entry point: its answer where the driver is not ready, or has no such device. */
#define NEED_READY()                                                                                         \
    do {                                                                                                     \
        CUresult ready_ = sim_ready();                                                                       \
        if (ready_)                                                                                          \
            return ready_;                                                                                   \
    } while (0)
#define NEED_DEVICE(device)                                                                                  \
    do {                                                                                                     \
        NEED_READY();                                                                                        \
        if (sim_ordinal_to_device(device) < 0)                                                               \
            return CUDA_ERROR_INVALID_DEVICE;                                                                \
    } while (0)

/* An entry point in both lanes. */
#define LANES(symbol, suffix, params, call0, call1)                                                          \
    API CUresult symbol params                                                                               \
    {                                                                                                        \
        CALLED(symbol);                                                                                      \
        return call0;                                                                                        \
    }                                                                                                        \
    API CUresult symbol##suffix params                                                                       \
    {                                                                                                        \
        CALLED(symbol##suffix);                                                                              \
        return call1;                                                                                        \
    }

enum {
    NODE_KERNEL = 0,
    NODE_MEMCPY = 1,
    NODE_MEMSET = 2,
    NODE_HOST = 3,
    NODE_GRAPH = 4,
    NODE_EMPTY = 5,
    NODE_WAIT = 6,
    NODE_RECORD = 7,
    NODE_ALLOC = 10,
    NODE_FREE = 11,
    NODE_CONDITIONAL = 13,
};

#endif
