/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_green.c - green contexts: a part of a device's multiprocessors, reached through a context of its own
 * that keeps the primary one alive. Events of one context are not for the streams of another (cuda.h,
 * cuEventRecord). Multiprocessors are counted, and change nothing of how long kernels take.
 */
#include "cuda_sim.h"

#include <stdlib.h>

typedef struct CUgreenCtx_st *CUgreenCtx;
struct CUgreenCtx_st {
    struct sim_head head;
    CUcontext context;
    unsigned multiprocessors;
    CUgreenCtx next;
};
static CUgreenCtx greens; /* alive, under sim_lock */

/* CUdevResource: a type, then a union at byte 96 that begins with CUdevSmResource. */
struct resource {
    int type;
    unsigned char unused[92];
    struct {
        unsigned count, least, together;
        unsigned char unused[36];
    } multiprocessors;
};
_Static_assert(sizeof(struct resource) == 144, "CUdevResource");
struct description {
    unsigned multiprocessors;
};
enum { RESOURCE_MULTIPROCESSORS = 1, RESOURCE_LEAST = 8, BOARD = 132, DEFAULT_STREAM = 1, NON_BLOCKING = 1 };

static CUresult resource_fill(struct resource *ret, int type, unsigned count)
{
    if (type != RESOURCE_MULTIPROCESSORS || !ret)
        return CUDA_ERROR_INVALID_VALUE;
    *ret = (struct resource){
        .type = type,
        .multiprocessors = {.count = count, .least = RESOURCE_LEAST, .together = RESOURCE_LEAST}};
    return CUDA_SUCCESS;
}

static CUgreenCtx green_of(CUcontext context)
{
    pthread_mutex_lock(&sim_lock);
    CUgreenCtx green = greens;
    while (green && green->context != context)
        green = green->next;
    pthread_mutex_unlock(&sim_lock);
    return green;
}

API CUresult cuDeviceGetDevResource(CUdevice device, struct resource *ret, int type)
{
    return sim_ordinal_to_device(device) < 0 ? CUDA_ERROR_INVALID_DEVICE : resource_fill(ret, type, BOARD);
}
API CUresult cuCtxGetDevResource(CUcontext context, struct resource *ret, int type)
{
    if (!sim_valid(context, SIM_CONTEXT))
        return CUDA_ERROR_INVALID_CONTEXT;
    CUgreenCtx green = green_of(context);
    return resource_fill(ret, type, green ? green->multiprocessors : BOARD);
}
API CUresult cuGreenCtxGetDevResource(CUgreenCtx green, struct resource *ret, int type)
{
    return sim_valid(green, SIM_GREEN) ? resource_fill(ret, type, green->multiprocessors)
                                       : CUDA_ERROR_INVALID_CONTEXT;
}

API CUresult cuDevSmResourceSplitByCount(struct resource *ret, unsigned *groups, const struct resource *from,
                                         struct resource *ret_rest, unsigned flags, unsigned least)
{
    (void)flags;
    unsigned each = (least + RESOURCE_LEAST - 1) / RESOURCE_LEAST * RESOURCE_LEAST;
    each = each ? each : RESOURCE_LEAST;
    unsigned most = from->multiprocessors.count / each, count = ret && *groups < most ? *groups : most;
    for (unsigned i = 0; ret && i < count; i++)
        resource_fill(&ret[i], RESOURCE_MULTIPROCESSORS, each);
    if (ret_rest)
        resource_fill(ret_rest, RESOURCE_MULTIPROCESSORS, from->multiprocessors.count - count * each);
    *groups = count;
    return CUDA_SUCCESS;
}

API CUresult cuDevResourceGenerateDesc(struct description **ret, struct resource *resources, unsigned count)
{
    struct description *made = count && resources ? calloc(1, sizeof(*made)) : NULL;
    for (unsigned i = 0; made && i < count; i++)
        made->multiprocessors += resources[i].multiprocessors.count;
    *ret = made;
    return made ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API CUresult cuGreenCtxCreate(CUgreenCtx *ret, struct description *description, CUdevice ordinal,
                              unsigned flags)
{
    CALLED(cuGreenCtxCreate);
    CUresult rc = sim_ready();
    int device = sim_ordinal_to_device(ordinal);
    CUcontext primary;
    if (rc || device < 0)
        return rc ? rc : CUDA_ERROR_INVALID_DEVICE;
    if (!description || flags != DEFAULT_STREAM)
        return CUDA_ERROR_INVALID_VALUE;
    sim_primary(&primary, device, true);
    CUgreenCtx green = sim_handle_make(SIM_GREEN, sizeof(*green));
    CUcontext context = sim_handle_make(SIM_CONTEXT, sizeof(*context));
    if (!green || !context)
        return CUDA_ERROR_OUT_OF_MEMORY;
    context->green = true;
    green->context = context;
    green->multiprocessors = description->multiprocessors;
    pthread_mutex_lock(&sim_lock);
    sim_context_begin(context, device);
    green->next = greens;
    greens = green;
    pthread_mutex_unlock(&sim_lock);
    *ret = green;
    return CUDA_SUCCESS;
}

API CUresult cuGreenCtxDestroy(CUgreenCtx green)
{
    CALLED(cuGreenCtxDestroy);
    NEED_READY();
    if (!sim_valid(green, SIM_GREEN))
        return CUDA_ERROR_INVALID_CONTEXT;
    int device = green->context->device;
    sim_context_wait(green->context);
    pthread_mutex_lock(&sim_lock);
    for (CUgreenCtx *p = &greens; *p; p = &(*p)->next)
        if (*p == green) {
            *p = green->next;
            break;
        }
    sim_context_end(green->context);
    sim_handle_destroy(green);
    pthread_mutex_unlock(&sim_lock);
    return sim_primary_end(device, 1, false);
}

API CUresult cuCtxFromGreenCtx(CUcontext *ret, CUgreenCtx green)
{
    CALLED(cuCtxFromGreenCtx);
    if (!sim_valid(green, SIM_GREEN))
        return CUDA_ERROR_INVALID_CONTEXT;
    *ret = green->context;
    return CUDA_SUCCESS;
}

API CUresult cuGreenCtxGetId(CUgreenCtx green, unsigned long long *ret)
{
    if (!sim_valid(green, SIM_GREEN))
        return CUDA_ERROR_INVALID_CONTEXT;
    *ret = green->head.serial;
    return CUDA_SUCCESS;
}

API CUresult cuGreenCtxStreamCreate(CUstream *ret, CUgreenCtx green, unsigned flags, int priority)
{
    CALLED(cuGreenCtxStreamCreate);
    NEED_READY();
    if (!sim_valid(green, SIM_GREEN))
        return CUDA_ERROR_INVALID_CONTEXT;
    return flags == NON_BLOCKING ? sim_stream_make(ret, green->context, flags, priority)
                                 : CUDA_ERROR_INVALID_VALUE;
}

/* ---- streams, as they see them
 * ------------------------------------------------------------------------------------------ */

static CUresult green_of_stream(CUstream handle, CUcontext *ret_context, CUgreenCtx *ret_green, int lane)
{
    CUresult rc;
    CUstream stream = sim_stream(handle, lane, &rc);
    if (!stream)
        return rc;
    *ret_green = green_of(stream->context);
    if (!ret_context)
        return CUDA_SUCCESS;
    *ret_context = stream->context;
    return *ret_green ? sim_primary(ret_context, stream->context->device, false) : CUDA_SUCCESS;
}
API CUresult cuStreamGetGreenCtx(CUstream stream, CUgreenCtx *ret)
{
    return green_of_stream(stream, NULL, ret, 0);
}
API CUresult cuStreamGetCtx_v2(CUstream stream, CUcontext *ret, CUgreenCtx *ret_green)
{
    return green_of_stream(stream, ret, ret_green, 0);
}
API CUresult cuStreamGetCtx_v2_ptsz(CUstream stream, CUcontext *ret, CUgreenCtx *ret_green)
{
    return green_of_stream(stream, ret, ret_green, 1);
}

/* ---- events of a whole context
 * ------------------------------------------------------------------------------------------ */

/* Of the same primary context: of the same device, and neither of cuCtxCreate's but the same. */
static CUresult record_all(CUcontext context, CUevent event)
{
    if (!sim_valid(event, SIM_EVENT) || event->context->device != context->device)
        return CUDA_ERROR_INVALID_HANDLE;
    CUresult rc = sim_unsafe();
    if (rc)
        return rc;
    uint64_t now_ns = sim_now_ns(), tail_ns = sim_context_tail(context);
    event->time_ns = tail_ns > now_ns ? tail_ns : now_ns;
    event->recorded = true;
    event->capture = NULL;
    return CUDA_SUCCESS;
}
static CUresult wait_all(CUcontext context, CUevent event)
{
    if (!sim_valid(event, SIM_EVENT))
        return CUDA_ERROR_INVALID_HANDLE;
    if (event->recorded)
        sim_context_delay(context, event->time_ns);
    return CUDA_SUCCESS;
}
API CUresult cuGreenCtxRecordEvent(CUgreenCtx green, CUevent event)
{
    CALLED(cuGreenCtxRecordEvent);
    return sim_valid(green, SIM_GREEN) ? record_all(green->context, event) : CUDA_ERROR_INVALID_CONTEXT;
}
API CUresult cuGreenCtxWaitEvent(CUgreenCtx green, CUevent event)
{
    CALLED(cuGreenCtxWaitEvent);
    return sim_valid(green, SIM_GREEN) ? wait_all(green->context, event) : CUDA_ERROR_INVALID_CONTEXT;
}
API CUresult cuCtxRecordEvent(CUcontext context, CUevent event)
{
    CALLED(cuCtxRecordEvent);
    return sim_valid(context, SIM_CONTEXT) ? record_all(context, event) : CUDA_ERROR_INVALID_CONTEXT;
}
API CUresult cuCtxWaitEvent(CUcontext context, CUevent event)
{
    CALLED(cuCtxWaitEvent);
    return sim_valid(context, SIM_CONTEXT) ? wait_all(context, event) : CUDA_ERROR_INVALID_CONTEXT;
}
