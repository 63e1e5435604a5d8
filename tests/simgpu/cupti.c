/* SPDX-License-Identifier: Apache-2.0
 *
 * cupti.c - a simulated libcupti over the simulated driver: callbacks of the driver's functions, activity
 * records in buffers of the client's, one subscriber at a time. Public API only; what a record says is the
 * truth to the nanosecond, on a clock of its own. Its oddities are asked for by KJ_SIM_CUPTI (README.md).
 */
#include "cupti_abi.h"
#include "trace.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
enum { PENDING = 1 << 20, KINDS = 64, CBIDS = 1024, EAGER = 2048 };

/* Lengths of the records, from a version on. */
static const struct {
    uint32_t version;
    size_t kernel, copy, fill;
} lengths[] = {{17, 176, 88, 88},     {20, 208, 88, 88},     {26, 208, 96, 88},      {130000, 216, 96, 88},
               {130101, 224, 96, 88}, {130301, 232, 96, 88}, {130401, 248, 112, 104}};
static size_t kernel_size = 216, copy_size = 96, fill_size = 88;

struct CUpti_Subscriber_st {
    CUpti_CallbackFunc callback;
    void *user_data;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the records */
static struct sim_trace_work *pending;
static size_t pending_count;
static uint8_t *buffer;
static size_t buffer_size, buffer_used;
static struct {
    uint8_t *at;
    size_t size, used;
} hoard[64]; /* full ones, where the library is lazy */
static size_t hoarded;
static CUpti_BuffersCallbackRequestFunc on_request;
static CUpti_BuffersCallbackCompleteFunc on_complete;
static atomic_size_t dropped;
static atomic_bool enabled[KINDS], called_for[CBIDS];
static _Atomic(CUpti_SubscriberHandle) holder;
static struct CUpti_Subscriber_st the_subscriber;
static atomic_int flush_period_ms;

static bool is_odd(const char *word)
{
    const char *words = getenv("KJ_SIM_CUPTI");
    return words && strstr(words, word);
}

/* ---- clock: the wall's, a little fast where asked */

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t theirs_ns(uint64_t monotonic_ns)
{
    static uint64_t zero_ns, wall_ns;
    static double ppm;
    if (!zero_ns) {
        const char *drift = getenv("KJ_SIM_CUPTI_DRIFT_PPM");
        ppm = drift ? atof(drift) : 0;
        wall_ns = clock_ns(CLOCK_REALTIME);
        zero_ns = clock_ns(CLOCK_MONOTONIC);
    }
    double since_ns = (double)monotonic_ns - (double)zero_ns;
    return wall_ns + (uint64_t)(int64_t)(monotonic_ns - zero_ns) + (uint64_t)(int64_t)(since_ns * ppm * 1e-6);
}

API CUptiResult cuptiGetTimestamp(uint64_t *ret_ns)
{
    *ret_ns = theirs_ns(clock_ns(CLOCK_MONOTONIC));
    return CUPTI_SUCCESS;
}

API CUptiResult cuptiGetVersion(uint32_t *ret_version)
{
    const char *text = getenv("KJ_SIM_CUPTI_VERSION");
    *ret_version = text ? (uint32_t)atoi(text) : 130001;
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
        if (*ret_version >= lengths[i].version)
            kernel_size = lengths[i].kernel, copy_size = lengths[i].copy, fill_size = lengths[i].fill;
    return CUPTI_SUCCESS;
}

/* ---- records into buffers, under the lock */

static size_t size_of(const void *record)
{
    uint32_t kind = *(const uint32_t *)record;
    return kind == CUPTI_ACTIVITY_KIND_MEMSET   ? fill_size
           : kind == CUPTI_ACTIVITY_KIND_MEMCPY ? copy_size
                                                : kernel_size;
}

static void give_back(void)
{
    if (!buffer)
        return;
    if (is_odd("lazy") && buffer_used && hoarded < 64) {
        hoard[hoarded].at = buffer;
        hoard[hoarded].size = buffer_size;
        hoard[hoarded++].used = buffer_used;
    } else {
        on_complete(NULL, 0, buffer, buffer_size, buffer_used);
    }
    buffer = NULL;
}

static void *room_for(size_t size)
{
    size_t most;
    if (buffer && buffer_used + size > buffer_size)
        give_back();
    if (!buffer) {
        on_request(&buffer, &buffer_size, &most);
        buffer_used = 0;
    }
    if (!buffer || buffer_size < size) {
        atomic_fetch_add(&dropped, 1);
        return NULL;
    }
    void *at = buffer + buffer_used;
    buffer_used += size;
    return memset(at, 0, size);
}

static void write_kernel(const struct sim_trace_work *w, uint64_t start_ns, uint64_t end_ns,
                         uint32_t correlation)
{
    struct kj_cupti_kernel *k = room_for(kernel_size);
    if (!k)
        return;
    k->kind = CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL;
    k->start = start_ns, k->end = end_ns;
    k->deviceId = (uint32_t)w->ordinal, k->contextId = 1, k->streamId = w->stream;
    k->gridX = (int)w->grid[0], k->gridY = (int)w->grid[1], k->gridZ = (int)w->grid[2];
    k->blockX = (int)w->block[0], k->blockY = (int)w->block[1], k->blockZ = (int)w->block[2];
    k->dynamicSharedMemory = (int)w->shared;
    k->correlationId = correlation;
    k->name = w->name;
    k->graphId = w->graph, k->graphNodeId = w->node;
}

static void write_copy(const struct sim_trace_work *w, uint64_t start_ns, uint64_t end_ns,
                       uint32_t correlation)
{
    if (strstr(w->name, "memset")) {
        struct kj_cupti_memset *s = room_for(fill_size);
        if (!s)
            return;
        s->kind = CUPTI_ACTIVITY_KIND_MEMSET;
        s->bytes = w->bytes, s->start = start_ns, s->end = end_ns;
        s->deviceId = (uint32_t)w->ordinal, s->correlationId = correlation;
        s->graphId = w->graph, s->graphNodeId = w->node;
        return;
    }
    struct kj_cupti_memcpy *c = room_for(copy_size);
    if (!c)
        return;
    c->kind = CUPTI_ACTIVITY_KIND_MEMCPY;
    c->copyKind = strstr(w->name, "HtoD")   ? CUPTI_ACTIVITY_MEMCPY_KIND_HTOD
                  : strstr(w->name, "DtoH") ? CUPTI_ACTIVITY_MEMCPY_KIND_DTOH
                                            : CUPTI_ACTIVITY_MEMCPY_KIND_DTOD;
    c->bytes = w->bytes, c->start = start_ns, c->end = end_ns;
    c->deviceId = (uint32_t)w->ordinal, c->correlationId = correlation;
    c->graphId = w->graph, c->graphNodeId = w->node;
}

/* One record in five has times of no use. */
static void spoil(uint64_t *start_ns, uint64_t *end_ns)
{
    static unsigned number;
    if (++number % 5)
        return;
    if (is_odd("zero"))
        *start_ns = *end_ns = 0;
    if (is_odd("backwards"))
        *end_ns = *start_ns - 1;
    if (is_odd("instant"))
        *end_ns = *start_ns;
    if (is_odd("wild"))
        *end_ns += 3600000000000;
    if (is_odd("ancient"))
        *start_ns = 1, *end_ns = 100000;
}

/* What is complete goes into buffers; forced, the rest too, without an end. */
static void deliver(bool forced, bool hand_over)
{
    uint64_t now_ns = clock_ns(CLOCK_MONOTONIC);
    size_t kept = 0;
    for (size_t i = 0; i < pending_count && on_request; i++) {
        struct sim_trace_work *w = &pending[i];
        bool over = w->end_ns <= now_ns;
        if (!over && !forced) {
            pending[kept++] = *w;
            continue;
        }
        uint64_t start_ns = over ? theirs_ns(w->start_ns) : 0, end_ns = over ? theirs_ns(w->end_ns) : 0;
        spoil(&start_ns, &end_ns);
        (w->copy ? write_copy : write_kernel)(w, start_ns, end_ns,
                                              is_odd("nocorrelation") ? 0 : w->correlation);
    }
    pending_count = kept;
    for (size_t i = 0; hand_over && i < hoarded; i++)
        on_complete(NULL, 0, hoard[i].at, hoard[i].size, hoard[i].used);
    if (hand_over) {
        hoarded = 0;
        if (buffer)
            on_complete(NULL, 0, buffer, buffer_size, buffer_used);
        buffer = NULL;
    }
}

/* ---- what the driver tells */

/* A name outlives its module. */
static const char *keep(const char *name)
{
    static char *names[1 << 14];
    uint32_t at = 2166136261u;
    for (const char *p = name; *p; p++)
        at = (at ^ (unsigned char)*p) * 16777619u;
    for (;; at++) {
        char **place = &names[at & ((1 << 14) - 1)];
        if (!*place)
            *place = strdup(name);
        if (!strcmp(*place, name))
            return *place;
    }
}

static void on_work(const struct sim_trace_work *work)
{
    int kind = !work->copy                    ? CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL
               : strstr(work->name, "memset") ? CUPTI_ACTIVITY_KIND_MEMSET
                                              : CUPTI_ACTIVITY_KIND_MEMCPY;
    if (!atomic_load(&enabled[kind]))
        return;
    pthread_mutex_lock(&lock);
    if (pending_count < PENDING) {
        pending[pending_count] = *work;
        pending[pending_count++].name = keep(work->name);
    } else
        atomic_fetch_add(&dropped, 1);
    if (pending_count % EAGER == 0)
        deliver(false, false);
    pthread_mutex_unlock(&lock);
}

static int cbid_of(const char *symbol)
{
    static const struct {
        const char *symbol;
        int cbid;
    } calls[] = {
#define CALL(domain, name, number)                                                                           \
    {CUPTI_CB_DOMAIN_##domain##_API == CUPTI_CB_DOMAIN_DRIVER_API ? #name : "", number},
#include "cupti_calls.def"
    };
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
        if (!strcmp(calls[i].symbol, symbol))
            return calls[i].cbid;
    return 0;
}

static void on_call(const char *symbol, uint32_t correlation, bool begins)
{
    CUpti_SubscriberHandle s = atomic_load(&holder);
    int cbid = s ? cbid_of(symbol) : 0;
    if (!cbid || !atomic_load(&called_for[cbid]))
        return;
    const struct kj_cupti_call call = {.callbackSite = begins ? CUPTI_API_ENTER : CUPTI_API_EXIT,
                                       .functionName = symbol,
                                       .correlationId = correlation};
    s->callback(s->user_data, CUPTI_CB_DOMAIN_DRIVER_API, (uint32_t)cbid, &call);
}

static CUptiResult listen(void)
{
    static const struct sim_tracer tracer = {on_call, on_work};
    void *cuda = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_LAZY);
    void (*set)(const struct sim_tracer *) =
        cuda ? (void (*)(const struct sim_tracer *))dlsym(cuda, "sim_trace_set") : NULL;
    if (!set)
        return CUPTI_ERROR_NOT_INITIALIZED;
    pthread_mutex_lock(&lock);
    pending = pending ? pending : malloc(PENDING * sizeof(*pending));
    pthread_mutex_unlock(&lock);
    set(&tracer);
    return CUPTI_SUCCESS;
}

/* Leaving while a process has executable graphs: libraries before 12.6 crash sooner or later. This one does
 * so at once, and says why. */
static void must_not_leave(const char *call)
{
    void *cuda = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_LAZY);
    int (*executables)(void) = cuda ? (int (*)(void))dlsym(cuda, "sim_executables") : NULL;
    if (!executables || !executables() || is_odd("sturdy"))
        return;
    fprintf(stderr, "simgpu: %s while %d executable graphs exist\n", call, executables());
    abort();
}

/* ---- the public API */

API CUptiResult cuptiSubscribe_v2(CUpti_SubscriberHandle *ret, CUpti_CallbackFunc callback, void *user_data,
                                  struct kj_cupti_subscriber_params *params)
{
    static char name[64];
    bool taken = is_odd("other");
    if (listen())
        return CUPTI_ERROR_NOT_INITIALIZED;
    if (taken)
        strcpy(name, "CUPTI for somebody");
    if (taken || atomic_load(&holder)) {
        if (params && params->oldSubscriberName)
            snprintf(params->oldSubscriberName, params->oldSubscriberSize, "%s", name);
        return CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED;
    }
    snprintf(name, sizeof(name), "CUPTI for %s",
             params && params->subscriberName ? params->subscriberName : "");
    the_subscriber = (struct CUpti_Subscriber_st){callback, user_data};
    atomic_store(&holder, &the_subscriber);
    *ret = &the_subscriber;
    return CUPTI_SUCCESS;
}

API CUptiResult cuptiSubscribe(CUpti_SubscriberHandle *ret, CUpti_CallbackFunc callback, void *user_data)
{
    return cuptiSubscribe_v2(ret, callback, user_data, NULL);
}

API CUptiResult cuptiUnsubscribe(CUpti_SubscriberHandle subscriber)
{
    if (subscriber != atomic_load(&holder))
        return CUPTI_ERROR_INVALID_PARAMETER;
    must_not_leave("cuptiUnsubscribe");
    atomic_store(&holder, NULL);
    memset((void *)called_for, 0, sizeof(called_for));
    return CUPTI_SUCCESS;
}

API CUptiResult cuptiEnableCallback(uint32_t enable, CUpti_SubscriberHandle subscriber, int domain,
                                    uint32_t cbid)
{
    if (subscriber != atomic_load(&holder) || cbid >= CBIDS)
        return CUPTI_ERROR_INVALID_PARAMETER;
    if (domain == CUPTI_CB_DOMAIN_DRIVER_API)
        atomic_store(&called_for[cbid], enable != 0);
    return CUPTI_SUCCESS;
}

API CUptiResult cuptiActivityRegisterCallbacks(CUpti_BuffersCallbackRequestFunc request,
                                               CUpti_BuffersCallbackCompleteFunc complete)
{
    CUptiResult rc = listen();
    pthread_mutex_lock(&lock);
    on_request = request;
    on_complete = complete;
    pthread_mutex_unlock(&lock);
    return rc;
}

API CUptiResult cuptiActivityEnable(int kind)
{
    if (is_odd("refuse"))
        return CUPTI_ERROR_INSUFFICIENT_PRIVILEGES;
    if (kind < 0 || kind >= KINDS || !on_request)
        return CUPTI_ERROR_INVALID_PARAMETER;
    atomic_store(&enabled[kind], true);
    return CUPTI_SUCCESS;
}

API CUptiResult cuptiActivityDisable(int kind)
{
    if (atomic_load(&enabled[kind & (KINDS - 1)]))
        must_not_leave("cuptiActivityDisable");
    atomic_store(&enabled[kind & (KINDS - 1)], false);
    return CUPTI_SUCCESS;
}

API CUptiResult cuptiActivityFlushAll(uint32_t flag)
{
    if (is_odd("hang") && gettid() != getpid())
        for (;;)
            pause();
    if (is_odd("never"))
        return CUPTI_SUCCESS;
    if (flag & CUPTI_ACTIVITY_FLAG_FLUSH_FORCED)
        must_not_leave("a forced cuptiActivityFlushAll");
    pthread_mutex_lock(&lock);
    deliver(flag & CUPTI_ACTIVITY_FLAG_FLUSH_FORCED, true);
    pthread_mutex_unlock(&lock);
    return CUPTI_SUCCESS;
}

static void *flush_forever(void *unused)
{
    for (int ms; (ms = atomic_load(&flush_period_ms));) {
        usleep((useconds_t)ms * 1000);
        pthread_mutex_lock(&lock);
        deliver(false, false); /* as CUPTI's: full ones alone */
        pthread_mutex_unlock(&lock);
    }
    return unused;
}

API CUptiResult cuptiActivityFlushPeriod(uint32_t period_ms)
{
    pthread_t thread;
    int before = atomic_exchange(&flush_period_ms, is_odd("lazy") ? 0 : (int)period_ms);
    if (!before && period_ms && !is_odd("lazy") && !pthread_create(&thread, NULL, flush_forever, NULL))
        pthread_detach(thread);
    return CUPTI_SUCCESS;
}

API CUptiResult cuptiActivityGetNextRecord(uint8_t *from, size_t valid_size, void **record)
{
    uint8_t *next = *record ? (uint8_t *)*record + size_of(*record) : from;
    if (next >= from + valid_size)
        return CUPTI_ERROR_MAX_LIMIT_REACHED;
    *record = next;
    return CUPTI_SUCCESS;
}

API CUptiResult cuptiActivityGetNumDroppedRecords(CUcontext context, uint32_t stream, size_t *ret_dropped)
{
    (void)context, (void)stream;
    *ret_dropped = atomic_exchange(&dropped, 0);
    return CUPTI_SUCCESS;
}
