/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_capture.c - stream capture, as strict as a driver: what a capture forbids fails, and spoils the
 * capture. Rules: CUDA Driver API, "cuStreamBeginCapture", "cuThreadExchangeStreamCaptureMode"; CUDA C++
 * Programming Guide, "Stream Capture".
 */
#include "cuda_graph.h"

#include <stdio.h>
#include <stdlib.h>

enum { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };
enum { ILLEGAL_STATE = 401, WRONG_THREAD = 908, CAPTURED_LEGACY = 906, GRAPH_RECAPTURE_FAILURE = 918 };

atomic_int sim_captures;
static pthread_mutex_t captures_lock = PTHREAD_MUTEX_INITIALIZER;
static struct active {
    struct capture capture;
    struct active *next;
} * captures;
static __thread int thread_mode = GLOBAL;
static _Atomic uint64_t next_id = 1;

struct capture *sim_capture_of(CUstream stream)
{
    if (stream->capture && stream->capture->ended)
        stream->capture = NULL;
    return stream->capture;
}

/* The legacy stream waits for all blocking ones, which a captured one cannot allow. */
static struct capture *legacy_conflict(CUstream stream)
{
    struct capture *found = NULL;
    if (stream != stream->context->legacy || !atomic_load(&sim_captures))
        return NULL;
    pthread_mutex_lock(&captures_lock);
    for (struct active *a = captures; a && !found; a = a->next)
        if (!a->capture.ended && a->capture.context == stream->context && !(a->capture.origin->flags & 1))
            found = &a->capture;
    pthread_mutex_unlock(&captures_lock);
    return found;
}

bool sim_capturing(CUstream stream, CUresult *ret_rc)
{
    struct capture *conflict = legacy_conflict(stream);
    *ret_rc = CUDA_SUCCESS;
    if (conflict) {
        conflict->invalidated = true;
        *ret_rc = CAPTURED_LEGACY;
        return true;
    }
    struct capture *capture = sim_capture_of(stream);
    if (capture && capture->invalidated)
        *ret_rc = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    return capture != NULL;
}

CUresult sim_unsafe(void)
{
    CUresult rc = CUDA_SUCCESS;
    if (!atomic_load(&sim_captures) || thread_mode == RELAXED)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&captures_lock);
    for (struct active *a = captures; a; a = a->next) {
        bool mine = pthread_equal(a->capture.thread, pthread_self());
        if (a->capture.ended || a->capture.mode == RELAXED)
            continue;
        if (mine || (thread_mode == GLOBAL && a->capture.mode == GLOBAL)) {
            a->capture.invalidated = true;
            rc = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    pthread_mutex_unlock(&captures_lock);
    return rc;
}

CUgraphNode sim_capture_add(CUstream stream, int type)
{
    CUgraph graph = stream->capture->graph;
    if (graph->recapturing) {
        stream->last = graph->recaptured && graph->recaptured->type == type ? graph->recaptured : NULL;
        graph->recaptured = stream->last ? stream->last->next : NULL;
        stream->capture->invalidated = !stream->last;
        return stream->last;
    }
    CUgraphNode before = stream->last;
    stream->last = sim_node_add(graph, type);
    if (stream->last && before && before->graph == graph)
        sim_edge_add(graph, before, stream->last);
    if (stream->last)
        snprintf(stream->last->mark, sizeof(stream->last->mark), "%s", sim_mark_now());
    return stream->last;
}

static CUresult begin(CUstream handle, CUgraph graph, int mode, int lane)
{
    CUresult rc;
    CUstream stream = sim_stream(handle, lane, &rc);
    if (!stream)
        return rc;
    if (stream == stream->context->legacy)
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (sim_capture_of(stream))
        return ILLEGAL_STATE;
    struct active *a = calloc(1, sizeof(*a));
    if (!a)
        return CUDA_ERROR_OUT_OF_MEMORY;
    a->capture = (struct capture){.graph = graph ? graph : sim_graph_new(),
                                  .origin = stream,
                                  .mode = mode,
                                  .context = stream->context,
                                  .thread = pthread_self(),
                                  .id = next_id++};
    pthread_mutex_lock(&captures_lock);
    a->next = captures;
    captures = a;
    pthread_mutex_unlock(&captures_lock);
    atomic_fetch_add(&sim_captures, 1);
    stream->capture = &a->capture;
    stream->last = NULL;
    return CUDA_SUCCESS;
}

static CUresult end(CUstream handle, CUgraph *ret, int lane)
{
    CUresult rc;
    CUstream stream = sim_stream(handle, lane, &rc);
    if (!stream)
        return rc;
    struct capture *capture = sim_capture_of(stream);
    *ret = NULL;
    if (!capture)
        return ILLEGAL_STATE;
    if (capture->origin != stream)
        return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    if (capture->mode != RELAXED && !pthread_equal(capture->thread, pthread_self()))
        return WRONG_THREAD;
    capture->ended = true;
    atomic_fetch_sub(&sim_captures, 1);
    stream->capture = NULL;
    bool whole = !capture->graph->recapturing || !capture->graph->recaptured;
    capture->graph->recapturing = false;
    if (capture->invalidated)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (!whole)
        return GRAPH_RECAPTURE_FAILURE;
    *ret = capture->graph;
    return CUDA_SUCCESS;
}

static CUresult recapture(CUstream stream, CUgraph graph, int mode, int lane)
{
    if (!sim_valid(graph, SIM_GRAPH))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult rc = begin(stream, graph, mode, lane);
    graph->recapturing = !rc;
    graph->recaptured = graph->first;
    return rc;
}

enum { STATUS_NONE = 0, STATUS_ACTIVE = 1, STATUS_INVALIDATED = 2 };

struct info {
    int *status;
    unsigned long long *id;
    CUgraph *graph;
    const CUgraphNode **dependencies;
    const void **edges;
    size_t *count;
};

static CUresult info(CUstream handle, const struct info *to, int lane)
{
    CUresult rc;
    CUstream stream = sim_stream(handle, lane, &rc);
    if (!stream)
        return rc;
    if (legacy_conflict(stream))
        return CAPTURED_LEGACY;
    struct capture *capture = sim_capture_of(stream);
    *to->status = !capture ? STATUS_NONE : capture->invalidated ? STATUS_INVALIDATED : STATUS_ACTIVE;
    if (!capture)
        return CUDA_SUCCESS;
    if (to->id)
        *to->id = capture->id;
    if (to->graph)
        *to->graph = capture->graph;
    if (to->dependencies)
        *to->dependencies = &stream->last;
    if (to->edges)
        *to->edges = NULL;
    if (to->count)
        *to->count = stream->last ? 1 : 0;
    return CUDA_SUCCESS;
}

API CUresult cuThreadExchangeStreamCaptureMode(int *mode)
{
    CALLED(cuThreadExchangeStreamCaptureMode);
    int before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

LANES(cuStreamBeginCapture, _ptsz, (CUstream s), begin(s, NULL, GLOBAL, 0), begin(s, NULL, GLOBAL, 1))
LANES(cuStreamBeginCapture_v2, _ptsz, (CUstream s, int mode), begin(s, NULL, mode, 0),
      begin(s, NULL, mode, 1))
LANES(cuStreamBeginCaptureToGraph, _ptsz,
      (CUstream s, CUgraph g, const CUgraphNode *d, const void *e, size_t n, int mode),
      ((void)d, (void)e, (void)n, begin(s, g, mode, 0)), ((void)d, (void)e, (void)n, begin(s, g, mode, 1)))
/* Into a graph that is there: its nodes are taken anew, in the order in which they were made. */
LANES(cuStreamBeginRecaptureToGraph, _ptsz, (CUstream s, int mode, CUgraph g, void *callback, void *u),
      ((void)callback, (void)u, recapture(s, g, mode, 0)),
      ((void)callback, (void)u, recapture(s, g, mode, 1)))
/* Into the command list of a graphics API: what is captured is that API's to run. */
LANES(cuStreamBeginCaptureToCig, _ptsz, (CUstream s, CUstreamCigCaptureParams *p),
      p ? begin(s, NULL, RELAXED, 0) : CUDA_ERROR_INVALID_VALUE,
      p ? begin(s, NULL, RELAXED, 1) : CUDA_ERROR_INVALID_VALUE)
LANES(cuStreamEndCaptureToCig, _ptsz, (CUstream s), end(s, &(CUgraph){NULL}, 0), end(s, &(CUgraph){NULL}, 1))
LANES(cuStreamEndCapture, _ptsz, (CUstream s, CUgraph *ret), end(s, ret, 0), end(s, ret, 1))
LANES(cuStreamIsCapturing, _ptsz, (CUstream s, int *status), info(s, &(struct info){.status = status}, 0),
      info(s, &(struct info){.status = status}, 1))
LANES(cuStreamGetCaptureInfo, _ptsz, (CUstream s, int *status, unsigned long long *id),
      info(s, &(struct info){.status = status, .id = id}, 0),
      info(s, &(struct info){.status = status, .id = id}, 1))
#define INFO_V2 (&(struct info){.status = status, .id = id, .graph = g, .dependencies = d, .count = n})
LANES(cuStreamGetCaptureInfo_v2, _ptsz,
      (CUstream s, int *status, unsigned long long *id, CUgraph *g, const CUgraphNode **d, size_t *n),
      info(s, INFO_V2, 0), info(s, INFO_V2, 1))
#define INFO_V3                                                                                              \
    (&(struct info){.status = status, .id = id, .graph = g, .dependencies = d, .edges = e, .count = n})
LANES(cuStreamGetCaptureInfo_v3, _ptsz,
      (CUstream s, int *status, unsigned long long *id, CUgraph *g, const CUgraphNode **d, const void **e,
       size_t *n),
      info(s, INFO_V3, 0), info(s, INFO_V3, 1))
LANES(cuStreamUpdateCaptureDependencies, _ptsz, (CUstream s, CUgraphNode *d, size_t n, unsigned f),
      ((void)s, (void)d, (void)n, (void)f, CUDA_SUCCESS), ((void)s, (void)d, (void)n, (void)f, CUDA_SUCCESS))
LANES(cuStreamUpdateCaptureDependencies_v2, _ptsz,
      (CUstream s, CUgraphNode *d, const void *e, size_t n, unsigned f),
      ((void)s, (void)d, (void)e, (void)n, (void)f, CUDA_SUCCESS),
      ((void)s, (void)d, (void)e, (void)n, (void)f, CUDA_SUCCESS))
