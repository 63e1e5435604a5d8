/* SPDX-License-Identifier: Apache-2.0
 *
 * cupti_records.c - CUPTI's records become the ledger's times. A record belongs to the launch whose
 * correlation id it carries; where that is not known, to the activity of its name and shape. A record never
 * counts a launch: counts come from the hooks alone.
 *
 * Records arrive on a thread of CUPTI's or on one that asked for them. A launch leaves its id in a table, a
 * few stores and no lock; new ids take the places of the oldest.
 */
#include "cupti.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum {
    USELESS_LEAST = 50, /* records, before a share of them is one */
    USELESS_PART = 20,  /* one in so many is too many */
    FAR_OFF_NS = 1000000000,
    BUFFERS = 16,
    BUFFER_BYTES = 2 << 20,
    LAUNCHES = 1 << 17,
    MEMOS = 1 << 14,
    NONE = -1,
    ANY_GRAPH = INT32_MAX,
};

/* ---- buffers
 * ------------------------------------------------------------------------------------------------------ */

static uint8_t *buffers;
static _Atomic uint32_t buffers_free;

/* What a launch left for its record. */
static struct launch {
    _Atomic uint32_t id; /* 0: free, or being written */
    uint32_t activity;
    uint64_t launch_ns;
    uint32_t context;
    uint16_t stream, thread;
    atomic_bool taken; /* a copy may have several records, and is one */
} * launches;
_Static_assert(sizeof(struct launch) <= 32, "two to a cache line");

static void *map(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

bool kj_cupti_records_start(void)
{
    buffers = buffers ? buffers : map((size_t)BUFFERS * BUFFER_BYTES);
    launches = launches ? launches : map(LAUNCHES * sizeof(*launches));
    atomic_store(&buffers_free, (1u << BUFFERS) - 1);
    return buffers && launches;
}

void kj_cupti_buffer_request(uint8_t **ret_buffer, size_t *ret_size, size_t *ret_most)
{
    uint32_t free = atomic_load(&buffers_free);
    *ret_buffer = NULL; /* CUPTI drops and counts */
    *ret_size = 0;
    *ret_most = 0; /* as many as fit */
    while (free) {
        uint32_t bit = free & -free;
        if (!atomic_compare_exchange_weak(&buffers_free, &free, free & ~bit))
            continue;
        *ret_buffer = buffers + (size_t)__builtin_ctz(bit) * BUFFER_BYTES;
        *ret_size = BUFFER_BYTES;
        return;
    }
}

bool kj_cupti_buffer_is_ours(const uint8_t *buffer)
{
    return buffers && buffer >= buffers && buffer < buffers + (size_t)BUFFERS * BUFFER_BYTES;
}

unsigned kj_cupti_buffers_out(void)
{
    return buffers ? BUFFERS - (unsigned)__builtin_popcount(atomic_load(&buffers_free)) : 0;
}

/* ---- clocks
 * ------------------------------------------------------------------------------------------------------- */

static struct tie {
    uint64_t at_ns;    /* CUPTI's clock */
    int64_t offset_ns; /* CLOCK_MONOTONIC minus that */
} ties[2];             /* the one before, the newest */
static atomic_flag ties_lock = ATOMIC_FLAG_INIT;

static void lock(atomic_flag *flag)
{
    while (atomic_flag_test_and_set_explicit(flag, memory_order_acquire))
        ;
}

static void unlock(atomic_flag *flag)
{
    atomic_flag_clear_explicit(flag, memory_order_release);
}

void kj_cupti_tie(struct kj_ledger_header *ledger)
{
    struct tie tie = {0};
    int64_t lo_ns = 0, hi_ns = INT64_MAX;
    for (int i = 0; i < 5; i++) { /* the quickest of a few */
        uint64_t theirs_ns = 0, before_ns = kj_now_ns();
        if (kj_cupti.cuptiGetTimestamp(&theirs_ns))
            return;
        uint64_t after_ns = kj_now_ns();
        if (hi_ns != INT64_MAX && (int64_t)(after_ns - before_ns) >= hi_ns - lo_ns)
            continue;
        lo_ns = (int64_t)(before_ns - theirs_ns);
        hi_ns = (int64_t)(after_ns - theirs_ns);
        tie = (struct tie){theirs_ns, lo_ns + (hi_ns - lo_ns) / 2};
    }
    lock(&ties_lock);
    ties[0] = ledger->cupti_ties ? ties[1] : tie;
    ties[1] = tie;
    int64_t moved_ns = ties[1].offset_ns - ties[0].offset_ns;
    uint64_t drift_ns = (uint64_t)(moved_ns < 0 ? -moved_ns : moved_ns);
    ledger->cupti_drift_ns = drift_ns > ledger->cupti_drift_ns ? drift_ns : ledger->cupti_drift_ns;
    ledger->cupti_tie_lo_ns = lo_ns;
    ledger->cupti_tie_hi_ns = hi_ns;
    ledger->cupti_ties++;
    unlock(&ties_lock);
}

/* CUPTI's time on our clock: what lies between two comparisons has drifted in proportion. */
static uint64_t ours_ns(const struct tie pair[2], uint64_t theirs_ns)
{
    int64_t offset_ns = pair[1].offset_ns;
    if (theirs_ns <= pair[0].at_ns)
        offset_ns = pair[0].offset_ns;
    else if (theirs_ns < pair[1].at_ns)
        offset_ns =
            pair[0].offset_ns +
            (int64_t)((double)(pair[1].offset_ns - pair[0].offset_ns) *
                      ((double)(theirs_ns - pair[0].at_ns) / (double)(pair[1].at_ns - pair[0].at_ns)));
    return theirs_ns + (uint64_t)offset_ns;
}

static atomic_bool launched;

bool kj_cupti_has_launched(void)
{
    return atomic_load(&launched);
}

/* ---- launches
 * ----------------------------------------------------------------------------------------------------- */

void kj_cupti_launched(struct kj_ledger_header *ledger, const struct kj_context *context, uint32_t activity,
                       uint16_t stream_row, uint64_t launch_ns)
{
    (void)ledger;
    if (unlikely(!atomic_load_explicit(&launched, memory_order_relaxed)))
        atomic_store(&launched, true);
    /* A record carries the id of the driver's call, or of the runtime's call around it. */
    for (int domain = 0; domain < 2; domain++) {
        uint32_t id = kj_self.correlation[domain];
        struct launch *l = &launches[id & (LAUNCHES - 1)];
        if (!id || (domain && id == kj_self.correlation[0]))
            continue;
        atomic_store_explicit(&l->id, 0, memory_order_relaxed);
        atomic_thread_fence(memory_order_release);
        l->activity = activity;
        l->launch_ns = launch_ns;
        l->context = kj_context_row(context);
        l->stream = stream_row;
        l->thread = kj_self.row;
        atomic_store_explicit(&l->taken, false, memory_order_relaxed);
        atomic_store_explicit(&l->id, id, memory_order_release);
    }
}

static struct launch *launch_of(uint32_t id, struct launch *ret_copy)
{
    struct launch *l = &launches[id & (LAUNCHES - 1)];
    if (!id || atomic_load_explicit(&l->id, memory_order_acquire) != id)
        return NULL;
    ret_copy->activity = l->activity;
    ret_copy->launch_ns = l->launch_ns;
    ret_copy->context = l->context;
    ret_copy->stream = l->stream;
    ret_copy->thread = l->thread;
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(&l->id, memory_order_relaxed) == id ? l : NULL;
}

/* ---- what a record is of
 * ------------------------------------------------------------------------------------------ */

struct record {
    const char *name; /* kernels alone */
    uint64_t start_ns, end_ns;
    uint32_t ids[2]; /* correlation */
    uint32_t graph;  /* CUPTI's id, 0 none */
    uint16_t device; /* row */
    uint8_t kind;    /* enum kj_activity_kind */
    uint32_t grid[3], block[3], shared_bytes;
};

static uint16_t device_row(const struct kj_ledger_header *ledger, uint32_t ordinal)
{
    const struct kj_ledger_device *rows = kj_section((void *)ledger, KJ_SECTION_DEVICES);
    for (uint64_t i = 0; i < ledger->sections[KJ_SECTION_DEVICES].used; i++)
        if (rows[i].ordinal == (int32_t)ordinal)
            return (uint16_t)i;
    return UINT16_MAX;
}

static uint8_t copy_kind(uint8_t kind)
{
    return kind == CUPTI_ACTIVITY_MEMCPY_KIND_HTOD   ? KJ_ACTIVITY_MEMCPY_HTOD
           : kind == CUPTI_ACTIVITY_MEMCPY_KIND_DTOH ? KJ_ACTIVITY_MEMCPY_DTOH
           : kind == CUPTI_ACTIVITY_MEMCPY_KIND_DTOD ? KJ_ACTIVITY_MEMCPY_DTOD
                                                     : KJ_ACTIVITY_MEMCPY_OTHER;
}

#define TIMES(r) .start_ns = (r)->start, .end_ns = (r)->end, .graph = (r)->graphId
static bool read_record(const struct kj_ledger_header *ledger, const void *raw, struct record *ret)
{
    const struct kj_cupti_kernel *k = raw;
    const struct kj_cupti_memcpy *c = raw;
    const struct kj_cupti_memset *s = raw;
    const struct kj_cupti_peer *p = raw;
    uint32_t ordinal = 0;
    switch (k->kind) {
    case CUPTI_ACTIVITY_KIND_KERNEL:
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL:
        *ret = (struct record){TIMES(k),
                               .name = k->name ? k->name : "",
                               .ids = {k->correlationId, 0},
                               .kind = KJ_ACTIVITY_KERNEL,
                               .grid = {(uint32_t)k->gridX, (uint32_t)k->gridY, (uint32_t)k->gridZ},
                               .block = {(uint32_t)k->blockX, (uint32_t)k->blockY, (uint32_t)k->blockZ},
                               .shared_bytes = (uint32_t)k->dynamicSharedMemory};
        ordinal = k->deviceId;
        break;
    case CUPTI_ACTIVITY_KIND_MEMCPY:
        *ret = (struct record){TIMES(c), .ids = {c->correlationId, c->runtimeCorrelationId},
                               .kind = copy_kind(c->copyKind)};
        ordinal = c->deviceId;
        break;
    case CUPTI_ACTIVITY_KIND_MEMSET:
        *ret = (struct record){TIMES(s), .ids = {s->correlationId, 0}, .kind = KJ_ACTIVITY_MEMSET};
        ordinal = s->deviceId;
        break;
    case CUPTI_ACTIVITY_KIND_MEMCPY2:
        *ret = (struct record){TIMES(p), .ids = {p->correlationId, 0}, .kind = KJ_ACTIVITY_MEMCPY_OTHER};
        ordinal = p->deviceId;
        break;
    default:
        return false;
    }
    ret->device = device_row(ledger, ordinal);
    return true;
}

/* Whether a row is of the record's kind: exactly, or (loose) by name whatever the shape, a copy whatever its
 * direction. */
static bool matches(const struct kj_ledger_header *ledger, const struct kj_ledger_activity *a,
                    const struct record *r, bool loose)
{
    if (a->device != r->device)
        return false;
    if (r->kind != KJ_ACTIVITY_KERNEL)
        return a->kind == r->kind ||
               (loose && r->kind != KJ_ACTIVITY_MEMSET && a->kind == KJ_ACTIVITY_MEMCPY_OTHER);
    if (a->kind != KJ_ACTIVITY_KERNEL)
        return false;
    if (!loose && (memcmp(a->grid, r->grid, sizeof(a->grid)) ||
                   memcmp(a->block, r->block, sizeof(a->block)) || a->shared_bytes != r->shared_bytes))
        return false;
    const char *names = kj_section((void *)ledger, KJ_SECTION_NAMES);
    return !strcmp(names + a->name, r->name);
}

/* The row of ACTIVITIES, or of GRAPH_NODES where graph is the row of one (ANY_GRAPH: whichever); NONE. */
static int32_t scan(const struct kj_ledger_header *ledger, const struct record *r, uint32_t graph, bool loose)
{
    const struct kj_ledger_activity *rows = kj_section((void *)ledger, KJ_SECTION_ACTIVITIES);
    const struct kj_ledger_graph_node *nodes = kj_section((void *)ledger, KJ_SECTION_GRAPH_NODES);
    enum kj_ledger_section section = graph ? KJ_SECTION_GRAPH_NODES : KJ_SECTION_ACTIVITIES;
    uint64_t used = __atomic_load_n(&ledger->sections[section].used, __ATOMIC_ACQUIRE);
    for (uint64_t i = graph ? 0 : 1; i < used; i++)
        if (graph ? (graph == ANY_GRAPH || nodes[i].graph == graph) &&
                        matches(ledger, &rows[nodes[i].activity], r, loose)
                  : matches(ledger, &rows[i], r, loose))
            return (int32_t)i;
    return NONE;
}

/* Answers of scan; those that were none, or not exact, as long as the table has not grown. */
static struct memo {
    uint64_t key; /* 64 bits of hash are taken for the record's own */
    uint64_t used;
    int32_t row;
    bool exact;
} memos[MEMOS];
static atomic_flag memos_lock = ATOMIC_FLAG_INIT;

static uint64_t key_of(const struct record *r, uint32_t graph)
{
    uint64_t h = 1469598103934665603ULL ^ (uint64_t)graph << 32 ^ (uint64_t)r->device << 8 ^ r->kind;
    for (const char *p = r->name; p && *p; p++)
        h = (h ^ (unsigned char)*p) * 1099511628211ULL;
    for (int i = 0; i < 3; i++)
        h = (h ^ r->grid[i] ^ (uint64_t)r->block[i] << 32) * 0x9e3779b97f4a7c15ULL, h ^= h >> 29;
    h = (h ^ r->shared_bytes) * 0x9e3779b97f4a7c15ULL;
    return (h ^ h >> 31) | 1;
}

static int32_t find_by_name(const struct kj_ledger_header *ledger, const struct record *r, uint32_t graph)
{
    uint64_t key = key_of(r, graph);
    uint64_t used = ledger->sections[graph ? KJ_SECTION_GRAPH_NODES : KJ_SECTION_ACTIVITIES].used;
    struct memo *memo = &memos[key >> 20 & (MEMOS - 1)];
    lock(&memos_lock);
    if (memo->key != key || (!memo->exact && memo->used != used)) {
        int32_t row = scan(ledger, r, graph, false);
        *memo = (struct memo){key, used, row != NONE ? row : scan(ledger, r, graph, true), row != NONE};
    }
    int32_t row = memo->row;
    unlock(&memos_lock);
    return row;
}

/* The id may be a stranger's: one that an other tool's record or an old place in the table has. */
static bool plausible(const struct kj_ledger_header *ledger, uint32_t activity, const struct record *r)
{
    const struct kj_ledger_activity *a =
        (const struct kj_ledger_activity *)kj_section((void *)ledger, KJ_SECTION_ACTIVITIES) + activity;
    const char *name = (const char *)kj_section((void *)ledger, KJ_SECTION_NAMES) + a->name;
    if (a->kind == KJ_ACTIVITY_GRAPH || activity == 0)
        return a->kind == KJ_ACTIVITY_GRAPH || r->kind == KJ_ACTIVITY_KERNEL;
    if (r->kind == KJ_ACTIVITY_KERNEL) /* a fill or a copy may run as a kernel of the driver's */
        return a->kind != KJ_ACTIVITY_KERNEL || *name == '(' || !strcmp(name, r->name);
    return a->kind != KJ_ACTIVITY_KERNEL;
}

/* ---- into the ledger
 * ---------------------------------------------------------------------------------------------- */

static void publish(struct kj_ledger_header *ledger, const struct record *r, const struct launch *launch,
                    uint32_t activity, const struct tie pair[2])
{
    static _Atomic uint32_t epoch;
    uint32_t now = atomic_load_explicit(&kj_timing_epoch, memory_order_relaxed);
    struct kj_ledger_interval interval = {
        .start_ns = ours_ns(pair, r->start_ns),
        .activity = activity,
        .flags =
            atomic_exchange_explicit(&epoch, now, memory_order_relaxed) == now ? 0 : KJ_INTERVAL_GAP_BEFORE,
    };
    interval.end_ns = interval.start_ns + (r->end_ns - r->start_ns);
    interval.launch_ns = interval.start_ns;
    if (launch) {
        interval.launch_ns = launch->launch_ns;
        interval.stream = launch->stream;
        interval.thread = launch->thread;
        interval.context = launch->context;
        if (interval.start_ns < launch->launch_ns &&
            launch->launch_ns - interval.start_ns > ledger->cupti_early_ns)
            ledger->cupti_early_ns = launch->launch_ns - interval.start_ns;
    }
    kj_interval_publish(ledger, &interval);
}

/* No work takes no time, ran before the process began, or has ended later than now. */
static bool has_time(const struct kj_ledger_header *ledger, const struct record *r, const struct tie pair[2])
{
    if (!r->start_ns || r->end_ns <= r->start_ns)
        return false;
    uint64_t start_ns = ours_ns(pair, r->start_ns), end_ns = start_ns + (r->end_ns - r->start_ns);
    return end_ns > start_ns && start_ns + FAR_OFF_NS > ledger->start_mono_ns &&
           end_ns < kj_now_ns() + FAR_OFF_NS;
}

static atomic_bool ignored;

void kj_cupti_records_ignore(void)
{
    atomic_store(&ignored, true);
}

bool kj_cupti_is_useless(const struct kj_ledger_header *ledger, char *text, size_t size)
{
    uint64_t useless = ledger->cupti_incomplete, all = ledger->cupti_records + useless;
    if (useless < USELESS_LEAST / USELESS_PART || all < USELESS_LEAST || useless * USELESS_PART <= all)
        return false;
    snprintf(text, size, "%llu of %llu of CUPTI's records had no time, or one that cannot be",
             (unsigned long long)useless, (unsigned long long)all);
    return true;
}

static void take(struct kj_ledger_header *ledger, const struct record *r, const struct tie pair[2])
{
    struct kj_ledger_activity *rows = kj_section(ledger, KJ_SECTION_ACTIVITIES);
    struct kj_ledger_graph_node *nodes = kj_section(ledger, KJ_SECTION_GRAPH_NODES);
    struct launch copy, *launch = launch_of(r->ids[0], &copy);
    launch = launch ? launch : launch_of(r->ids[1], &copy);
    if (launch && !plausible(ledger, copy.activity, r))
        launch = NULL;
    bool of_graph = launch ? rows[copy.activity].kind == KJ_ACTIVITY_GRAPH : r->graph != 0;
    int32_t row = of_graph ? find_by_name(ledger, r, launch ? copy.activity : ANY_GRAPH)
                  : launch ? (int32_t)copy.activity
                           : find_by_name(ledger, r, 0);
    uint64_t ns = r->end_ns - r->start_ns;
    __atomic_fetch_add(&ledger->cupti_records, 1, __ATOMIC_RELAXED);
    if (!launch && row != NONE)
        __atomic_fetch_add(&ledger->cupti_by_name, 1, __ATOMIC_RELAXED);
    if (row == NONE) {
        __atomic_fetch_add(&ledger->cupti_unmatched, 1, __ATOMIC_RELAXED);
        return;
    }
    if (of_graph) {
        __atomic_fetch_add(&nodes[row].sum_ns, ns, __ATOMIC_RELAXED);
        __atomic_fetch_add(&nodes[row].timed, 1, __ATOMIC_RELEASE);
    } else if (launch && rows[row].kind != KJ_ACTIVITY_KERNEL && atomic_exchange(&launch->taken, true)) {
        __atomic_fetch_add(&rows[row].sum_ns, ns, __ATOMIC_RELAXED);
    } else {
        kj_activity_timed(ledger, (uint32_t)row, &(struct kj_duration){.ns = ns}, false);
    }
    publish(ledger, r, launch ? &copy : NULL, of_graph ? nodes[row].activity : (uint32_t)row, pair);
}

void kj_cupti_count_dropped(struct kj_ledger_header *ledger, CUcontext context, uint32_t stream)
{
    size_t dropped = 0;
    if (kj_cupti.cuptiActivityGetNumDroppedRecords(context, stream, &dropped) || !dropped)
        return;
    __atomic_fetch_add(&ledger->cupti_dropped, dropped, __ATOMIC_RELAXED);
    /* Launches without a time, nobody knows where: no timeline of this process is whole. */
    __atomic_fetch_add(&ledger->untimed_no_event, dropped, __ATOMIC_RELAXED);
}

void kj_cupti_buffer_complete(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size,
                              size_t valid_size)
{
    struct kj_ledger_header *ledger = kj_ledger_now();
    uint64_t begun_ns = kj_now_ns();
    void *raw = NULL;
    struct record record;
    struct tie pair[2];
    if (!kj_cupti_buffer_is_ours(buffer))
        return;
    lock(&ties_lock);
    memcpy(pair, ties, sizeof(pair));
    unlock(&ties_lock);
    while (ledger && !atomic_load(&ignored) && valid_size && valid_size <= size &&
           !kj_cupti.cuptiActivityGetNextRecord(buffer, valid_size, &raw)) {
        if (!read_record(ledger, raw, &record))
            continue;
        if (has_time(ledger, &record, pair)) {
            take(ledger, &record, pair);
        } else {
            __atomic_fetch_add(&ledger->cupti_incomplete, 1, __ATOMIC_RELAXED);
            __atomic_fetch_add(&ledger->untimed_no_event, 1,
                               __ATOMIC_RELAXED); /* the timeline is not whole */
        }
    }
    atomic_fetch_or(&buffers_free, 1u << ((size_t)(buffer - buffers) / BUFFER_BYTES));
    if (!ledger)
        return;
    kj_cupti_count_dropped(ledger, context, stream);
    kj_self_time_add(ledger, kj_now_ns() - begun_ns);
}

void kj_cupti_records_forget(void)
{
    atomic_flag_clear(&ties_lock);
    atomic_flag_clear(&memos_lock);
    atomic_store(&launched, false);
    atomic_store(&ignored, false);
    memset(memos, 0, sizeof(memos));
}
