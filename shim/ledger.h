/* SPDX-License-Identifier: Apache-2.0
 *
 * ledger.h - the record format: one memory-mapped file per process.
 *
 * The shim is the only writer, but for `ring_tail`, which the recorder advances. The tools are readers and
 * trust nothing in the file: every offset, count and string is checked (tools/folder/ledgers.h).
 *
 * Publication: a row is complete before the count that covers it is raised (release store; readers load
 * acquire). So a crash, or a reader at any moment, sees whole rows only. Counters are single 64-bit words and
 * may be read any time. Byte order and alignment are the machine's own; `magic` tells a foreign one.
 *
 * Time is CLOCK_MONOTONIC in nanoseconds; the header ties it to the wall clock once.
 * Sizes are compile-time caps; the file is sparse, so that an unused cap costs nothing. What does not fit is
 * counted
 * (`*_dropped`), never silently lost.
 */
#ifndef KJ_LEDGER_H
#define KJ_LEDGER_H

#include <stdint.h>

#define KJ_LEDGER_MAGIC     0x3172656764656c6bULL /* "kledger1" as little-endian bytes */
#define KJ_LEDGER_VERSION   5u
#define KJ_LEDGER_MAX_BYTES (64u << 20)
#define KJ_LEDGER_UNNAMED   "(unnamed kernel" /* begins the name of a kernel whose own nobody could tell */
#define KJ_LEDGER_PREFIX    "ledger."         /* file name in the run folder: ledger.<pid>.<start_ticks> */

/* section, row type, cap in rows, what it holds */
#define KJ_LEDGER_SECTIONS(X)                                                                                \
    X(DEVICES, struct kj_ledger_device, 32, "CUDA devices as this process sees them")                        \
    X(CONTEXTS, struct kj_ledger_context, 64,                                                                \
      "contexts and how GPU event time is tied to host time; a row is used again when its context has "      \
      "ended")                                                                                               \
    X(ACTIVITIES, struct kj_ledger_activity, KJ_LEDGER_ACTIVITIES_CAP,                                       \
      "what ran: kernel x device x role x launch shape; copies; graphs")                                     \
    X(COUNTS, uint64_t, KJ_LEDGER_COUNTS_CAP *KJ_LEDGER_SHARDS,                                              \
      "launches of activity a in shard s: [s * COUNTS_CAP + a]; calls of hook h: [.. + CALLS_BASE + h]")     \
    X(CALLS, struct kj_ledger_call, 512, "one row per hooked driver function, in the order of hooks.def")    \
    X(THREADS, struct kj_ledger_thread, 4096, "threads that made a hooked call")                             \
    X(STREAMS, struct kj_ledger_stream, 4096, "streams that were timed; row 0 is nobody's")                  \
    X(GRAPH_NODES, struct kj_ledger_graph_node, 131072,                                                      \
      "nodes of instantiated graphs: kernels, copies, fills")                                                \
    X(UNHOOKED, struct kj_ledger_unhooked, 256,                                                              \
      "entry points handed out without a hook: an ABI newer than ours")                                      \
    X(NAMES, char, 4 << 20, "NUL-terminated mangled names; offset 0 is the empty string")                    \
    X(RING, struct kj_ledger_interval, 262144,                                                               \
      "timed intervals, drained by the recorder; index modulo the cap")

#define KJ_LEDGER_SHARDS         16
#define KJ_LEDGER_ACTIVITIES_CAP 32256
#define KJ_LEDGER_COUNTS_CAP     32768 /* cells a shard: first one per activity, then one per hooked function */
#define KJ_LEDGER_CALLS_BASE     KJ_LEDGER_ACTIVITIES_CAP

enum kj_ledger_section {
#define X(name, type, cap, doc) KJ_SECTION_##name,
    KJ_LEDGER_SECTIONS(X)
#undef X
        KJ_SECTION_COUNT
};

struct kj_ledger_section_entry {
    uint64_t offset;   /* bytes from the start of the file, multiple of 64 */
    uint32_t row_size; /* bytes */
    uint32_t cap;      /* rows */
    uint64_t used;     /* rows complete; for RING the number ever published (may exceed cap) */
    uint64_t dropped;  /* rows that did not fit */
};

enum kj_ledger_state {
    KJ_LEDGER_OPEN = 1,     /* the process runs, or died without a word */
    KJ_LEDGER_CLOSED = 2,   /* the shim's destructor ran */
    KJ_LEDGER_DISABLED = 3, /* the shim stepped aside; see disabled_reason */
};

enum kj_ledger_flag {
    KJ_LEDGER_CUDA_LOADED = 1 << 0, /* a cu* entry point was looked up or called */
    KJ_LEDGER_CUDA_INIT = 1 << 1,   /* cuInit succeeded */
    KJ_LEDGER_PARTIAL = 1 << 2,     /* kernels, or nodes of graphs, found no row of their own */
};

/* How launches are timed. */
enum kj_ledger_timing {
    KJ_TIMING_COUNT = 1, /* not at all */
    KJ_TIMING_EVENTS,    /* event pairs, in bursts */
    KJ_TIMING_CUPTI,     /* CUPTI's activity records: every launch, and the nodes of graphs */
};

struct kj_ledger_header {
    uint64_t magic;
    uint32_t version;
    uint32_t header_size; /* sizeof(struct kj_ledger_header) of the writer */
    uint64_t file_size;
    struct kj_ledger_section_entry sections[16]; /* [enum kj_ledger_section]; the rest is zero */

    int32_t pid, ppid;
    uint64_t start_ticks; /* field 22 of /proc/self/stat: tells a reused pid */
    uint64_t start_mono_ns, start_wall_ns;
    uint64_t end_mono_ns;        /* 0 until closed */
    uint32_t state;              /* enum kj_ledger_state */
    uint32_t flags;              /* enum kj_ledger_flag */
    int32_t cuda_driver_version; /* as cuDriverGetVersion, 0 unknown */
    int32_t rank, local_rank;    /* RANK, LOCAL_RANK (or SLURM_PROCID, SLURM_LOCALID); -1 unknown */
    int32_t world_size;
    char exe[128];             /* tail of /proc/self/exe */
    char disabled_reason[128]; /* one line, no newline */

    uint64_t ring_tail;          /* advanced by the recorder alone */
    uint64_t self_ns;            /* the shim's own time in this process, estimated from its own sampling */
    uint64_t timed_pairs;        /* event pairs recorded */
    uint64_t untimed_no_event;   /* launches that wanted timing while the event pool was empty */
    uint64_t untimed_capture;    /* launches made while capturing */
    uint64_t harvest_errors;     /* event queries that failed */
    uint64_t failed_launches;    /* launches that the driver refused: not counted as launches */
    uint64_t gpa_requests;       /* cuGetProcAddress calls seen */
    uint64_t slow_finds;         /* launches whose row was not known and was looked for under a lock */
    uint64_t dependent_launches; /* that may begin before the kernel ahead of them ends: see dependent.c */
    /* Times that a thread's current context was not the one that the calls seen had left. */
    uint64_t context_repairs;
    uint64_t contextless_launches; /* launches whose context, and so device, the driver would not tell */

    uint32_t timing_asked;   /* enum kj_ledger_timing, as KJOULE_TIMING says */
    uint32_t timing_backend; /* the same, as it is now: CUPTI may step aside */
    char timing_reason[192]; /* why the two differ; "" where they do not */
    uint32_t cupti_version;  /* as cuptiGetVersion; 0: none was asked */
    uint32_t cupti_ties;     /* times that CUPTI's clock was compared with CLOCK_MONOTONIC */
    /* Ours minus CUPTI's clock lies in [lo, hi] at the newest comparison. */
    int64_t cupti_tie_lo_ns, cupti_tie_hi_ns;
    uint64_t cupti_drift_ns; /* the most that it moved from one comparison to the next */
    uint64_t cupti_early_ns; /* the most that a record claims to have begun before its launch was asked for */
    uint64_t cupti_records;  /* kernels, copies and fills that CUPTI timed */
    uint64_t cupti_by_name;  /* of these: found by name and shape, for want of a correlation id */
    uint64_t cupti_unmatched;  /* of these: belong to nothing that was counted */
    uint64_t cupti_dropped;    /* records that CUPTI had no room for */
    uint64_t cupti_incomplete; /* records without a time */
    uint64_t events_device_ns; /* GPU time that the event pairs took, estimated; 0 not known */

    uint32_t walk_ppm;     /* --phase-walk: of the run's time, in millionths; 0: not asked for */
    uint32_t walk_seed;    /* of the lengths of the delays */
    uint32_t walk_hosts;   /* that share the former */
    char walk_reason[92];  /* why it stands still; "" where it may walk */
    uint64_t walk_delays;  /* of this process; each is an interval too, of kind WALK */
    uint64_t walk_ns;      /* they took */
    uint64_t walk_most_ns; /* the longest */

    /* Nothing of this process is left to run while no copy is under way and this is 1 + the calls counted in
     * COUNTS of the functions that are KJ_CALL_WORKS. 0: no wait has covered them, nor was a context made. */
    uint64_t settled_calls;
    uint64_t copies_under_way; /* calls of copies and fills that have not been counted yet */
};

struct kj_ledger_device {
    uint8_t uuid[16]; /* as cuDeviceGetUuid; NVML's "GPU-..." text is the same bytes, where it is a board's */
    int32_t ordinal;  /* in this process, after CUDA_VISIBLE_DEVICES */
    uint32_t uuid_known;
    char name[64];
    int32_t multiprocessors; /* 0 unknown */
    int32_t pci_domain, pci_bus, pci_device;
    /* As cuDeviceGetUuid_v2, where that is another one: of the MIG instance. NVML writes "MIG-...". */
    uint8_t instance_uuid[16];
    uint32_t instance_known;
    uint64_t context_ns; /* when its first context had been made; where that was not seen, was first used */
    uint64_t context_end_ns; /* when its last one ended; 0: it has not */
};

struct kj_ledger_context {
    uint32_t device;   /* row of DEVICES */
    uint32_t retied;   /* times the base event was renewed */
    int64_t tie_lo_ns; /* host time of the newest base event lies in [tie_lo_ns, tie_hi_ns] */
    int64_t tie_hi_ns;
    /* How far off an interval of this context may lie on the host's clock, either way. */
    uint64_t placed;       /* intervals */
    uint64_t error_sum_ns; /* over them */
    uint64_t error_most_ns;
    uint32_t conflicts; /* times the clocks were found further apart than they are taken to drift */
    uint32_t event_ns;  /* of the device, that one event takes; UINT32_MAX not seen */
};

enum kj_activity_kind {
    KJ_ACTIVITY_KERNEL = 1,
    KJ_ACTIVITY_MEMCPY_HTOD,
    KJ_ACTIVITY_MEMCPY_DTOH,
    KJ_ACTIVITY_MEMCPY_DTOD,
    KJ_ACTIVITY_MEMCPY_OTHER,
    KJ_ACTIVITY_MEMSET,
    KJ_ACTIVITY_GRAPH, /* one launch of an instantiated graph; its nodes are in GRAPH_NODES */
    KJ_ACTIVITY_HOST,  /* a host function in stream order: no GPU work */
    KJ_ACTIVITY_WALK,  /* a delay of --phase-walk: the host's, no GPU work */
    KJ_ACTIVITY_BODY,  /* a conditional node of a graph: its bodies run as often as the device decides */
};

/* Who launched it, as far as the thread tells (phase rules build on it). */
enum kj_activity_role {
    KJ_ROLE_MAIN = 0,
    KJ_ROLE_AUTOGRAD = 1, /* thread name pt_autograd_* */
    KJ_ROLE_OTHER = 2,    /* any other thread than the process's first */
    /* A node of a graph that another thread than autograd's captured, after the graph's last backward pass.
     */
    KJ_ROLE_AFTER_BACKWARD = 3,
};
/* In the low half of an activity's role. The high half is 0, or 1 + the phase (phase_names.h) of the
 * innermost NVTX range that was open on the launching thread and is named like one. */

enum kj_graph_flag {
    KJ_GRAPH_KNOWN = 1 << 0,  /* what it runs is in GRAPH_NODES, all of it */
    KJ_GRAPH_SERIAL = 1 << 1, /* its nodes run one after the other */
};

/* The key is (name, kind, device, role, grid, block, shared_bytes). grid[0] == 0: "any shape", where one
 * kernel had too many. */
struct kj_ledger_activity {
    uint32_t name; /* offset in NAMES */
    uint16_t device;
    uint8_t kind; /* enum kj_activity_kind */
    uint8_t role; /* enum kj_activity_role, and a range's phase */
    uint32_t grid[3], block[3];
    uint32_t shared_bytes; /* dynamic */
    uint32_t flags;        /* of a graph: enum kj_graph_flag */
    uint64_t bytes;        /* copies and memsets: total moved */
    /* Durations of the timed launches. One writer (the harvester); each word is read alone. */
    uint64_t timed; /* launches in the sums below; the first launch is not among them */
    uint64_t sum_ns;
    double sum_ns2; /* sum of squares, for the spread */
    uint64_t min_ns, max_ns;
    uint64_t first_ns; /* the first launch's: may hold lazy loading or JIT; 0 not timed */
    /* Of event pairs, over the timed launches: what the brackets had beside the launches, so that sum_ns +
     * taken_ns is what the events showed; and by how much sum_ns may be too long, or too short, for all that
     * the brackets tell. */
    uint64_t taken_ns, over_ns, under_ns;
    uint64_t first_taken_ns, first_over_ns, first_under_ns; /* the same of the first launch */
};

enum kj_call_flag {
    KJ_CALL_WORKS = 1 << 0, /* gives a device work, or may end a context */
};

struct kj_ledger_call {
    uint32_t name;    /* offset in NAMES */
    uint32_t flags;   /* enum kj_call_flag */
    uint64_t failed;  /* the successful ones (NOT_READY of a query is one) are in COUNTS */
    uint64_t host_ns; /* time inside the driver, kept for synchronising calls only */
};

struct kj_ledger_thread {
    int32_t tid;
    uint32_t role; /* enum kj_activity_role */
    char name[16]; /* as PR_GET_NAME at its first hooked call */
};

struct kj_ledger_stream {
    uint64_t id;      /* counts the streams of the process; the row is used again once the stream is gone */
    uint32_t context; /* row of CONTEXTS */
    uint32_t flags;   /* 1: a default stream */
};

struct kj_ledger_graph_node {
    uint32_t graph;    /* row of ACTIVITIES of kind GRAPH */
    uint32_t activity; /* row of ACTIVITIES of the node */
    uint32_t nodes;    /* how many nodes of that activity one graph launch runs */
    uint32_t reserved;
    uint64_t bytes; /* copies and fills: that one graph launch moves, 0 unknown */
    /* Durations of single nodes, where the back end tells them; each word is read alone. */
    uint64_t timed;
    uint64_t sum_ns;
};

struct kj_ledger_unhooked {
    uint32_t name;
    int32_t version; /* as asked of cuGetProcAddress; 0 for dlsym */
    uint32_t flags;
    uint32_t requests;
};

enum kj_interval_flag {
    KJ_INTERVAL_FIRST = 1 << 0,      /* first launch of its activity: the bracket may hold lazy loading */
    KJ_INTERVAL_GAP_BEFORE = 1 << 1, /* launches before it went untimed: a burst begins */
    KJ_INTERVAL_ALONE = 1 << 2,      /* of no burst: launches before and after it may be untimed */
    KJ_INTERVAL_MIXED = 1 << 3,      /* another thread launched on the stream meanwhile: it holds that too */
};

/* One launch, as its event pair or CUPTI tells it. Host clock, by the context's tie. */
struct kj_ledger_interval {
    uint64_t start_ns, end_ns;
    uint64_t launch_ns; /* when the call was made */
    uint32_t activity;
    uint16_t stream; /* row of STREAMS */
    uint16_t thread; /* row of THREADS */
    uint32_t flags;
    uint32_t context;   /* row of CONTEXTS */
    uint32_t taken_ns;  /* so much longer was the bracket of its events */
    uint32_t unsure_ns; /* how much is open between the least and the most that it may have taken */
};

_Static_assert(sizeof(struct kj_ledger_section_entry) == 32, "section entry layout");
_Static_assert(sizeof(struct kj_ledger_activity) == 144, "activity layout");
_Static_assert(sizeof(struct kj_ledger_context) == 56, "context layout");
_Static_assert(sizeof(struct kj_ledger_interval) == 48, "interval layout");
_Static_assert(sizeof(struct kj_ledger_header) <= 4096, "header fits a page");

#endif
