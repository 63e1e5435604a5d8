/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_stream.c - streams, events, waiting, host functions. A stream is its tail: the time at which what it
 * holds will be done.
 */
#include "cuda_sim.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static CUstream streams; /* all alive, under sim_lock */
static _Atomic uint64_t next_id = 16;
static __thread struct {
    CUstream stream;
    uint32_t serial;
} own[SIM_DEVICES]; /* per-thread default streams */

static struct sim_owner owned_by(CUcontext context)
{
    return (struct sim_owner){context, context->head.serial};
}

static CUstream stream_make(CUcontext context, unsigned flags, int priority)
{
    CUstream stream = sim_handle_make(SIM_STREAM, sizeof(*stream));
    if (!stream)
        return NULL;
    stream->owner = owned_by(context);
    stream->green = context->green;
    stream->flags = flags;
    stream->priority = priority;
    stream->id = next_id++;
    pthread_mutex_lock(&sim_lock);
    stream->next = streams;
    streams = stream;
    pthread_mutex_unlock(&sim_lock);
    return stream;
}

CUresult sim_stream_make(CUstream *ret, CUcontext context, unsigned flags, int priority)
{
    *ret = stream_make(context, flags, priority);
    return *ret ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUstream sim_legacy_make(CUcontext context)
{
    CUstream stream = sim_handle_make(SIM_STREAM, sizeof(*stream));
    stream->owner = owned_by(context);
    return stream;
}

/* What its context's end took with it is destroyed too; streams of green contexts are left, and refused. */
static CUresult check_stream(CUstream stream)
{
    if (!sim_valid(stream, SIM_STREAM))
        return CUDA_ERROR_INVALID_HANDLE;
    if (sim_owner_alive(&stream->owner))
        return CUDA_SUCCESS;
    if (!stream->green)
        sim_destroyed(stream, "a stream of a destroyed context");
    return CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

static CUresult check_event(CUevent event)
{
    if (!sim_valid(event, SIM_EVENT))
        return CUDA_ERROR_INVALID_HANDLE;
    if (sim_owner_alive(&event->owner))
        return CUDA_SUCCESS;
    sim_destroyed(event, "an event of a destroyed context");
    return CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

CUstream sim_stream(CUstream handle, int lane, CUresult *ret_rc)
{
    bool fixed = (uintptr_t)handle <= 2;
    CUcontext context = fixed ? sim_current() : NULL;
    *ret_rc = sim_ready();
    if (!*ret_rc)
        *ret_rc = fixed ? sim_current_rc() : check_stream(handle);
    if (*ret_rc)
        return NULL;
    if (handle == CU_STREAM_PER_THREAD || (!handle && lane)) {
        __typeof__(&own[0]) mine = &own[context->device];
        if (!mine->stream || mine->stream->head.serial != mine->serial || mine->stream->context != context) {
            mine->stream = stream_make(context, 0, 0);
            mine->serial = mine->stream->head.serial;
        }
        return mine->stream;
    }
    return fixed ? context->legacy : handle;
}

static bool is_legacy(CUstream stream)
{
    return stream->context->legacy == stream;
}

uint64_t sim_stream_start(CUstream stream)
{
    uint64_t start_ns = atomic_load(&stream->tail_ns);
    uint64_t other_ns = 0;
    if (is_legacy(stream))
        other_ns = atomic_load(&stream->context->blocking_tail);
    else if (!(stream->flags & 1)) /* blocking: behind the legacy stream */
        other_ns = atomic_load(&stream->context->legacy->tail_ns);
    return other_ns > start_ns ? other_ns : start_ns;
}

static void raise_to(_Atomic uint64_t *cell, uint64_t value)
{
    uint64_t seen = atomic_load(cell);
    while (seen < value && !atomic_compare_exchange_weak(cell, &seen, value))
        ;
}

void sim_stream_end(CUstream stream, uint64_t end_ns)
{
    raise_to(&stream->tail_ns, end_ns);
    if (!is_legacy(stream) && !(stream->flags & 1))
        raise_to(&stream->context->blocking_tail, end_ns);
}

CUresult sim_stream_wait(CUstream stream)
{
    /* What is ahead of a blocking stream's next work, on the legacy one, is not its own. */
    sim_sleep_until(is_legacy(stream) ? sim_stream_start(stream) : atomic_load(&stream->tail_ns));
    while (atomic_load(&stream->callbacks))
        usleep(20);
    return CUDA_SUCCESS;
}

uint64_t sim_context_tail(CUcontext context)
{
    uint64_t until_ns = atomic_load(&context->legacy->tail_ns), gone_ns = atomic_load(&context->gone_tail);
    pthread_mutex_lock(&sim_lock);
    for (CUstream s = streams; s; s = s->next)
        if (s->context == context && atomic_load(&s->tail_ns) > until_ns)
            until_ns = atomic_load(&s->tail_ns);
    pthread_mutex_unlock(&sim_lock);
    return until_ns > gone_ns ? until_ns : gone_ns;
}

void sim_context_delay(CUcontext context, uint64_t until_ns)
{
    raise_to(&context->legacy->tail_ns, until_ns);
    pthread_mutex_lock(&sim_lock);
    for (CUstream s = streams; s; s = s->next)
        if (s->context == context)
            raise_to(&s->tail_ns, until_ns);
    pthread_mutex_unlock(&sim_lock);
}

CUresult sim_context_wait(CUcontext context)
{
    sim_sleep_until(sim_context_tail(context));
    for (bool busy = true; busy;) {
        busy = atomic_load(&context->legacy->callbacks) != 0;
        pthread_mutex_lock(&sim_lock);
        for (CUstream s = streams; s && !busy; s = s->next)
            busy = s->context == context && atomic_load(&s->callbacks);
        pthread_mutex_unlock(&sim_lock);
        if (busy)
            usleep(20);
    }
    return CUDA_SUCCESS;
}

/* ---- streams
 * ---------------------------------------------------------------------------------------------------- */

API CUresult cuStreamCreateWithPriority(CUstream *ret_stream, unsigned flags, int priority)
{
    CALLED(cuStreamCreateWithPriority);
    CUresult rc = sim_ready();
    rc = rc ? rc : sim_current_rc();
    return rc ? rc : sim_stream_make(ret_stream, sim_current(), flags, priority);
}

API CUresult cuStreamCreate(CUstream *ret_stream, unsigned flags)
{
    return cuStreamCreateWithPriority(ret_stream, flags, 0);
}

/* A host function that is still to come finds its stream: that one's memory is not used again. */
static void stream_end(CUstream stream)
{
    if (atomic_load(&stream->callbacks))
        sim_handle_end(stream);
    else
        sim_handle_destroy(stream);
}

void sim_streams_end(CUcontext context)
{
    for (CUstream *p = &streams; *p;) {
        CUstream stream = *p;
        if (stream->context != context) {
            p = &stream->next;
            continue;
        }
        *p = stream->next;
        /* A green context leaves its streams behind: each call with one is an error. */
        if (!context->green)
            stream_end(stream);
    }
    stream_end(context->legacy);
}

/* Returns at once: what it holds will be done all the same. */
API CUresult cuStreamDestroy_v2(CUstream stream)
{
    CALLED(cuStreamDestroy_v2);
    CUresult rc = sim_ready();
    rc = rc ? rc : check_stream(stream);
    if (rc)
        return rc;
    raise_to(&stream->context->gone_tail, atomic_load(&stream->tail_ns));
    pthread_mutex_lock(&sim_lock);
    for (CUstream *p = &streams; *p; p = &(*p)->next)
        if (*p == stream) {
            *p = stream->next;
            break;
        }
    pthread_mutex_unlock(&sim_lock);
    stream_end(stream);
    return CUDA_SUCCESS;
}
API CUresult cuStreamDestroy(CUstream stream)
{
    return cuStreamDestroy_v2(stream);
}

#define STREAM(handle, lane)                                                                                 \
    CUresult rc;                                                                                             \
    CUstream stream = sim_stream(handle, lane, &rc);                                                         \
    if (!stream)                                                                                             \
    return rc

static CUresult stream_get(CUstream handle, int lane, unsigned *flags, int *priority, CUcontext *context,
                           unsigned long long *id)
{
    STREAM(handle, lane);
    if (flags)
        *flags = stream->flags;
    if (priority)
        *priority = stream->priority;
    if (context)
        *context = stream->context;
    if (id)
        *id = stream->id;
    return CUDA_SUCCESS;
}

static CUresult stream_sync(CUstream handle, int lane)
{
    STREAM(handle, lane);
    if (sim_capturing(stream, &rc)) {
        rc = sim_unsafe();
        return rc ? rc : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    rc = sim_unsafe();
    return rc ? rc : sim_stream_wait(stream);
}

static CUresult stream_query(CUstream handle, int lane)
{
    STREAM(handle, lane);
    rc = sim_unsafe();
    if (rc)
        return rc;
    return sim_now_ns() >= sim_stream_start(stream) && !atomic_load(&stream->callbacks)
               ? CUDA_SUCCESS
               : CUDA_ERROR_NOT_READY;
}

/* ---- events
 * ---------------------------------------------------------------------------------------------------------
 */

API CUresult cuEventCreate(CUevent *ret_event, unsigned flags)
{
    CALLED(cuEventCreate);
    NEED_READY();
    CUresult rc = sim_current_rc();
    if (rc)
        return rc;
    CUevent event = sim_handle_make(SIM_EVENT, sizeof(*event));
    if (!event)
        return CUDA_ERROR_OUT_OF_MEMORY;
    event->owner = owned_by(sim_current());
    event->flags = flags;
    *ret_event = event;
    return CUDA_SUCCESS;
}

API CUresult cuEventDestroy_v2(CUevent event)
{
    CALLED(cuEventDestroy_v2);
    NEED_READY();
    CUresult rc = check_event(event);
    if (!rc)
        sim_handle_destroy(event);
    return rc;
}
API CUresult cuEventDestroy(CUevent event)
{
    return cuEventDestroy_v2(event);
}

static CUresult event_record(CUevent event, CUstream handle, int lane)
{
    STREAM(handle, lane);
    rc = check_event(event);
    if (rc)
        return rc;
    if (event->context != stream->context)
        return CUDA_ERROR_INVALID_HANDLE;
    if (sim_capturing(stream, &rc)) {
        if (rc)
            return rc;
        event->capture = stream->capture;
        event->node = stream->last;
        event->stream = stream;
        return CUDA_SUCCESS;
    }
    const double device_ns = sim_machine()->script.cost[SIM_COST_cuEventRecord].device_ns;
    uint64_t now_ns = sim_now_ns(), tail_ns = sim_stream_start(stream);
    event->time_ns = (tail_ns > now_ns ? tail_ns : now_ns) + (uint64_t)device_ns;
    if (device_ns > 0) /* what follows on the stream waits for the time stamp */
        sim_stream_end(stream, event->time_ns);
    stream->kernel_end_ns = 0;
    event->recorded = true;
    event->capture = NULL;
    return CUDA_SUCCESS;
}

API CUresult cuEventQuery(CUevent event)
{
    CALLED(cuEventQuery);
    NEED_READY();
    CUresult rc = check_event(event);
    rc = rc ? rc : sim_unsafe();
    if (rc)
        return rc;
    if (event->capture)
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return !event->recorded || sim_now_ns() >= event->time_ns ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

API CUresult cuEventSynchronize(CUevent event)
{
    CALLED(cuEventSynchronize);
    NEED_READY();
    CUresult rc = check_event(event);
    rc = rc ? rc : sim_unsafe();
    if (!rc && event->recorded)
        sim_sleep_until(event->time_ns);
    return rc;
}

API CUresult cuEventElapsedTime(float *ret_ms, CUevent start, CUevent end)
{
    CALLED(cuEventElapsedTime);
    NEED_READY();
    CUresult rc = check_event(start);
    rc = rc ? rc : check_event(end);
    if (rc)
        return rc;
    if (start->context != end->context || ((start->flags | end->flags) & 2) || !start->recorded ||
        !end->recorded)
        return CUDA_ERROR_INVALID_HANDLE;
    uint64_t now_ns = sim_now_ns();
    if (now_ns < start->time_ns || now_ns < end->time_ns)
        return CUDA_ERROR_NOT_READY;
    double ns = (double)(int64_t)(end->time_ns - start->time_ns);
    ns += ns * sim_machine()->script.drift_ppm * 1e-6;
    *ret_ms = (float)((double)((int64_t)ns / 500 * 500) * 1e-6); /* 0.5 us resolution */
    return CUDA_SUCCESS;
}

API CUresult cuEventElapsedTime_v2(float *ret_ms, CUevent start, CUevent end)
{
    return cuEventElapsedTime(ret_ms, start, end);
}

static CUresult stream_wait_event(CUstream handle, CUevent event, int lane)
{
    STREAM(handle, lane);
    stream->kernel_end_ns = 0;
    rc = check_event(event);
    if (rc)
        return rc;
    if (event->capture && !event->capture->ended) { /* the stream joins the capture, or is in it already */
        if (!sim_capture_of(stream)) {
            stream->capture = event->capture;
            stream->last = event->node;
        }
        return stream->capture == event->capture ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (sim_capturing(stream, &rc))
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    if (event->recorded)
        raise_to(&stream->tail_ns, event->time_ns);
    return CUDA_SUCCESS;
}

/* ---- host functions
 * ---------------------------------------------------------------------------------------------------- */

struct callback {
    uint64_t due_ns;
    CUhostFn fn;
    CUstreamCallback callback;
    CUstream stream;
    void *user_data;
    struct callback *next;
};
static struct callback *callbacks, **callbacks_end = &callbacks;
static pthread_mutex_t callbacks_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t callbacks_more = PTHREAD_COND_INITIALIZER;

static void *run_callbacks(void *unused)
{
    (void)unused;
    for (;;) {
        pthread_mutex_lock(&callbacks_lock);
        while (!callbacks)
            pthread_cond_wait(&callbacks_more, &callbacks_lock);
        struct callback *c = callbacks;
        callbacks = c->next;
        if (!callbacks)
            callbacks_end = &callbacks;
        pthread_mutex_unlock(&callbacks_lock);
        sim_sleep_until(c->due_ns);
        if (c->fn)
            c->fn(c->user_data);
        else
            c->callback(c->stream, CUDA_SUCCESS, c->user_data);
        atomic_fetch_sub(&c->stream->callbacks, 1);
        free(c);
    }
    return NULL;
}

static void start_callbacks(void)
{
    pthread_t thread;
    if (!pthread_create(&thread, NULL, run_callbacks, NULL))
        pthread_detach(thread);
}

static CUresult enqueue_callback(CUstream stream, CUhostFn fn, CUstreamCallback callback, void *user_data)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start_callbacks);
    struct callback *c = malloc(sizeof(*c));
    if (!c)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *c = (struct callback){sim_stream_start(stream), fn, callback, stream, user_data, NULL};
    atomic_fetch_add(&stream->callbacks, 1);
    pthread_mutex_lock(&callbacks_lock);
    *callbacks_end = c;
    callbacks_end = &c->next;
    pthread_cond_signal(&callbacks_more);
    pthread_mutex_unlock(&callbacks_lock);
    return CUDA_SUCCESS;
}

CUresult sim_host_call(CUstream stream, CUhostFn fn, void *user_data)
{
    return enqueue_callback(stream, fn, NULL, user_data);
}

static CUresult launch_host(CUstream handle, CUhostFn fn, void *user_data, int lane)
{
    STREAM(handle, lane);
    if (sim_capturing(stream, &rc)) {
        CUgraphNode node = rc ? NULL : sim_capture_add(stream, NODE_HOST);
        if (node)
            node->host = fn, node->user_data = user_data;
        return rc;
    }
    return enqueue_callback(stream, fn, NULL, user_data);
}

static CUresult add_callback(CUstream handle, CUstreamCallback callback, void *user_data, unsigned flags,
                             int lane)
{
    (void)flags;
    STREAM(handle, lane);
    if (sim_capturing(stream, &rc))
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return enqueue_callback(stream, NULL, callback, user_data);
}

LANES(cuStreamSynchronize, _ptsz, (CUstream s), stream_sync(s, 0), stream_sync(s, 1))
LANES(cuStreamQuery, _ptsz, (CUstream s), stream_query(s, 0), stream_query(s, 1))
LANES(cuEventRecord, _ptsz, (CUevent e, CUstream s), event_record(e, s, 0), event_record(e, s, 1))
LANES(cuEventRecordWithFlags, _ptsz, (CUevent e, CUstream s, unsigned f), ((void)f, event_record(e, s, 0)),
      ((void)f, event_record(e, s, 1)))
LANES(cuStreamWaitEvent, _ptsz, (CUstream s, CUevent e, unsigned f), ((void)f, stream_wait_event(s, e, 0)),
      ((void)f, stream_wait_event(s, e, 1)))
LANES(cuStreamGetFlags, _ptsz, (CUstream s, unsigned *f), stream_get(s, 0, f, NULL, NULL, NULL),
      stream_get(s, 1, f, NULL, NULL, NULL))
LANES(cuStreamGetPriority, _ptsz, (CUstream s, int *p), stream_get(s, 0, NULL, p, NULL, NULL),
      stream_get(s, 1, NULL, p, NULL, NULL))
LANES(cuStreamGetCtx, _ptsz, (CUstream s, CUcontext *c), stream_get(s, 0, NULL, NULL, c, NULL),
      stream_get(s, 1, NULL, NULL, c, NULL))
LANES(cuStreamGetId, _ptsz, (CUstream s, unsigned long long *id), stream_get(s, 0, NULL, NULL, NULL, id),
      stream_get(s, 1, NULL, NULL, NULL, id))
LANES(cuLaunchHostFunc, _ptsz, (CUstream s, CUhostFn fn, void *u), launch_host(s, fn, u, 0),
      launch_host(s, fn, u, 1))
LANES(cuLaunchHostFunc_v2, _ptsz, (CUstream s, CUhostFn fn, void *u, unsigned mode),
      ((void)mode, launch_host(s, fn, u, 0)), ((void)mode, launch_host(s, fn, u, 1)))
LANES(cuStreamAddCallback, _ptsz, (CUstream s, CUstreamCallback c, void *u, unsigned f),
      add_callback(s, c, u, f, 0), add_callback(s, c, u, f, 1))
