/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_context.c - contexts: who has which one current, and how long each lives. Primary contexts, and those
 * of cuCtxAttach, are counted; the end of one takes its streams and events with it.
 */
#include "cuda_sim.h"

#include <stdlib.h>
#include <string.h>

enum { STACK = 64 };

static struct {
    struct CUctx_st context; /* the same handle each time */
    bool active;
} primaries[SIM_DEVICES];
/* A context may be destroyed while it is current: then its place here is no other context's. */
static __thread struct sim_owner stack[STACK];
static __thread int depth;

/* ---- the current one
 * ------------------------------------------------------------------------------------------------ */

CUcontext sim_current(void)
{
    return depth && sim_owner_alive(&stack[depth - 1]) ? stack[depth - 1].context : NULL;
}

CUresult sim_current_rc(void)
{
    if (!depth)
        return CUDA_ERROR_INVALID_CONTEXT;
    return sim_owner_alive(&stack[depth - 1]) ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

CUresult sim_current_get(void **ret_context)
{
    *ret_context = sim_current();
    return CUDA_SUCCESS;
}

static void push(CUcontext context)
{
    stack[depth++] = (struct sim_owner){context, context->head.serial};
}

static void set_current(CUcontext context)
{
    depth -= depth > 0;
    if (context)
        push(context);
}

/* As libcudart's private tables do it: no call that anybody could see. */
API void simgpu_context_switch(CUcontext context);
API void simgpu_context_switch(CUcontext context)
{
    set_current(context);
}

API CUresult cuCtxSetCurrent(CUcontext context)
{
    CALLED(cuCtxSetCurrent);
    NEED_READY();
    if (context && !sim_valid(context, SIM_CONTEXT))
        return CUDA_ERROR_INVALID_CONTEXT;
    set_current(context);
    return CUDA_SUCCESS;
}

API CUresult cuCtxGetCurrent(CUcontext *ret_context)
{
    CALLED(cuCtxGetCurrent);
    NEED_READY();
    *ret_context = depth ? stack[depth - 1].context : NULL; /* a destroyed one too */
    return CUDA_SUCCESS;
}

API CUresult cuCtxPushCurrent_v2(CUcontext context)
{
    CALLED(cuCtxPushCurrent_v2);
    NEED_READY();
    if (!sim_valid(context, SIM_CONTEXT) || depth == STACK)
        return CUDA_ERROR_INVALID_CONTEXT;
    push(context);
    return CUDA_SUCCESS;
}
API CUresult cuCtxPushCurrent(CUcontext context)
{
    return cuCtxPushCurrent_v2(context);
}

API CUresult cuCtxPopCurrent_v2(CUcontext *ret_context)
{
    CALLED(cuCtxPopCurrent_v2);
    NEED_READY();
    if (!depth)
        return CUDA_ERROR_INVALID_CONTEXT;
    depth--;
    if (ret_context)
        *ret_context = stack[depth].context;
    return CUDA_SUCCESS;
}
API CUresult cuCtxPopCurrent(CUcontext *ret_context)
{
    return cuCtxPopCurrent_v2(ret_context);
}

/* ---- begin and end
 * -------------------------------------------------------------------------------------------------- */

void sim_context_begin(CUcontext context, int device)
{
    context->device = device;
    context->legacy = sim_legacy_make(context);
    sim_context_made(device);
}

void sim_context_end(CUcontext context)
{
    int device = context->device;
    sim_streams_end(context);
    sim_modules_end(context);
    if (context->primary)
        sim_handle_end(context);
    else
        sim_handle_destroy(context);
    sim_context_gone(device);
}

CUresult sim_primary(CUcontext *ret_context, int device, bool retain)
{
    pthread_mutex_lock(&sim_lock);
    CUcontext context = &primaries[device].context;
    if (!primaries[device].active) {
        int references = context->references;
        unsigned flags = context->flags;
        memset(context, 0, sizeof(*context));
        sim_handle_begin(context, SIM_CONTEXT);
        context->primary = true;
        context->references = references;
        context->flags = flags;
        sim_context_begin(context, device);
        primaries[device].active = true;
    }
    context->references += retain;
    *ret_context = context;
    pthread_mutex_unlock(&sim_lock);
    return CUDA_SUCCESS;
}

API CUresult cuDevicePrimaryCtxRetain(CUcontext *ret_context, CUdevice device)
{
    CALLED(cuDevicePrimaryCtxRetain);
    NEED_DEVICE(device);
    return sim_primary(ret_context, sim_ordinal_to_device(device), true);
}

/* The end waits for what runs. `count`: that of references goes down by it. */
CUresult sim_primary_end(int device, int count, bool reset)
{
    CUcontext context = &primaries[device].context;
    pthread_mutex_lock(&sim_lock);
    CUresult rc = count > context->references ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
    context->references -= rc ? 0 : count;
    bool ends = !rc && primaries[device].active && (reset || !context->references);
    pthread_mutex_unlock(&sim_lock);
    if (!ends)
        return rc;
    sim_context_wait(context);
    pthread_mutex_lock(&sim_lock);
    if (primaries[device].active && (reset || !context->references)) {
        primaries[device].active = false;
        sim_context_end(context);
    }
    pthread_mutex_unlock(&sim_lock);
    return rc;
}

API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
    CALLED(cuDevicePrimaryCtxRelease_v2);
    NEED_DEVICE(device);
    return sim_primary_end(sim_ordinal_to_device(device), 1, false);
}
API CUresult cuDevicePrimaryCtxRelease(CUdevice device)
{
    CALLED(cuDevicePrimaryCtxRelease);
    NEED_DEVICE(device);
    return sim_primary_end(sim_ordinal_to_device(device), 1, false);
}
API CUresult cuDevicePrimaryCtxReset_v2(CUdevice device)
{
    CALLED(cuDevicePrimaryCtxReset_v2);
    NEED_DEVICE(device);
    return sim_primary_end(sim_ordinal_to_device(device), 0, true);
}
API CUresult cuDevicePrimaryCtxReset(CUdevice device)
{
    CALLED(cuDevicePrimaryCtxReset);
    NEED_DEVICE(device);
    return sim_primary_end(sim_ordinal_to_device(device), 0, true);
}

API CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active)
{
    CALLED(cuDevicePrimaryCtxGetState);
    NEED_DEVICE(device);
    int index = sim_ordinal_to_device(device);
    pthread_mutex_lock(&sim_lock);
    *flags = primaries[index].context.flags;
    *active = primaries[index].active;
    pthread_mutex_unlock(&sim_lock);
    return CUDA_SUCCESS;
}

API CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned flags)
{
    NEED_DEVICE(device);
    primaries[sim_ordinal_to_device(device)].context.flags = flags;
    return CUDA_SUCCESS;
}

API CUresult cuCtxCreate_v2(CUcontext *ret_context, unsigned flags, CUdevice device)
{
    CALLED(cuCtxCreate_v2);
    NEED_DEVICE(device);
    CUcontext context = depth < STACK ? sim_handle_make(SIM_CONTEXT, sizeof(*context)) : NULL;
    if (!context)
        return CUDA_ERROR_OUT_OF_MEMORY;
    context->flags = flags;
    context->references = 1;
    pthread_mutex_lock(&sim_lock);
    sim_context_begin(context, sim_ordinal_to_device(device));
    pthread_mutex_unlock(&sim_lock);
    push(context);
    *ret_context = context;
    return CUDA_SUCCESS;
}

API CUresult cuCtxCreate_v3(CUcontext *ret_context, void *params, int count, unsigned flags, CUdevice device)
{
    (void)params, (void)count;
    return cuCtxCreate_v2(ret_context, flags, device);
}
API CUresult cuCtxCreate_v4(CUcontext *ret_context, void *params, unsigned flags, CUdevice device)
{
    (void)params;
    return cuCtxCreate_v2(ret_context, flags, device);
}

static CUresult destroy(CUcontext context)
{
    bool current = depth && stack[depth - 1].context == context;
    sim_context_wait(context);
    pthread_mutex_lock(&sim_lock);
    sim_context_end(context);
    pthread_mutex_unlock(&sim_lock);
    depth -= current;
    return CUDA_SUCCESS;
}

API CUresult cuCtxDestroy_v2(CUcontext context)
{
    CALLED(cuCtxDestroy_v2);
    NEED_READY();
    if (!sim_valid(context, SIM_CONTEXT) || context->primary || context->green)
        return CUDA_ERROR_INVALID_CONTEXT;
    return destroy(context);
}
API CUresult cuCtxDestroy(CUcontext context)
{
    return cuCtxDestroy_v2(context);
}

API CUresult cuCtxAttach(CUcontext *ret_context, unsigned flags)
{
    CALLED(cuCtxAttach);
    NEED_READY();
    CUcontext context = sim_current();
    if (flags || !ret_context)
        return CUDA_ERROR_INVALID_VALUE;
    if (!context || context->primary || context->green)
        return CUDA_ERROR_INVALID_CONTEXT;
    pthread_mutex_lock(&sim_lock);
    context->references++;
    pthread_mutex_unlock(&sim_lock);
    *ret_context = context;
    return CUDA_SUCCESS;
}

API CUresult cuCtxDetach(CUcontext context)
{
    CALLED(cuCtxDetach);
    NEED_READY();
    if (!sim_valid(context, SIM_CONTEXT) || context->primary || context->green || sim_current() != context)
        return CUDA_ERROR_INVALID_CONTEXT;
    pthread_mutex_lock(&sim_lock);
    int left = --context->references;
    pthread_mutex_unlock(&sim_lock);
    return left > 0 ? CUDA_SUCCESS : destroy(context);
}

/* ---- what they are
 * -------------------------------------------------------------------------------------------------- */

static CUresult device_of(CUdevice *ret_device, CUcontext context)
{
    NEED_READY();
    if (!context)
        return sim_current_rc();
    if (!sim_valid(context, SIM_CONTEXT))
        return CUDA_ERROR_INVALID_CONTEXT;
    *ret_device = sim_device_to_ordinal(context->device);
    return CUDA_SUCCESS;
}

API CUresult cuCtxGetDevice(CUdevice *ret_device)
{
    CALLED(cuCtxGetDevice);
    return device_of(ret_device, sim_current());
}
API CUresult cuCtxGetDevice_v2(CUdevice *ret_device, CUcontext context)
{
    CALLED(cuCtxGetDevice_v2);
    return device_of(ret_device, context ? context : sim_current());
}

API CUresult cuCtxGetFlags(unsigned *flags)
{
    CUcontext context = sim_current();
    *flags = context ? context->flags : 0;
    return sim_current_rc();
}

API CUresult cuCtxGetApiVersion(CUcontext context, unsigned *version)
{
    if (context && !sim_valid(context, SIM_CONTEXT))
        return CUDA_ERROR_INVALID_CONTEXT;
    *version = 3020;
    return CUDA_SUCCESS;
}

API CUresult cuCtxGetId(CUcontext context, unsigned long long *id)
{
    CALLED(cuCtxGetId);
    context = context ? context : sim_current();
    if (!sim_valid(context, SIM_CONTEXT))
        return CUDA_ERROR_INVALID_CONTEXT;
    *id = context->head.serial;
    return CUDA_SUCCESS;
}

API CUresult cuCtxGetLimit(size_t *value, int limit)
{
    static const size_t limits[] = {1024, 8388608, 8388608, 2, 2048, 128, 0};
    *value = limit >= 0 && limit < 7 ? limits[limit] : 0;
    return CUDA_SUCCESS;
}

API CUresult cuCtxSetLimit(int limit, size_t value)
{
    (void)limit, (void)value;
    return CUDA_SUCCESS;
}

API CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    if (least)
        *least = 0;
    if (greatest)
        *greatest = -5;
    return CUDA_SUCCESS;
}

API CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned flags)
{
    (void)flags;
    return sim_valid(peer, SIM_CONTEXT) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}
API CUresult cuCtxGetCacheConfig(int *config)
{
    *config = 0;
    return CUDA_SUCCESS;
}
API CUresult cuCtxSetCacheConfig(int config)
{
    (void)config;
    return CUDA_SUCCESS;
}

static CUresult context_sync(CUcontext context)
{
    NEED_READY();
    CUresult rc = sim_unsafe();
    if (rc)
        return rc;
    if (!context)
        return sim_current_rc();
    return sim_valid(context, SIM_CONTEXT) ? sim_context_wait(context) : CUDA_ERROR_INVALID_CONTEXT;
}

API CUresult cuCtxSynchronize(void)
{
    CALLED(cuCtxSynchronize);
    return context_sync(sim_current());
}

API CUresult cuCtxSynchronize_v2(CUcontext context)
{
    CALLED(cuCtxSynchronize_v2);
    return context_sync(context ? context : sim_current());
}
