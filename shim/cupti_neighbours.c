/* SPDX-License-Identifier: Apache-2.0
 *
 * cupti_neighbours.c - CUPTI serves one tool at a time, and the application's own profiler comes first. A
 * profiler that is linked with libcupti (PyTorch's is) calls through these: we leave, and then its call goes
 * on to CUPTI as if we had never been there. Where we cannot leave, for graphs exist, it gets our subscriber.
 * One that looks its functions up finds CUPTI's own, and CUPTI answers it that kjoule has subscribed.
 */
#include "cupti.h"

#include <dlfcn.h>

static atomic_bool neighbour;
static _Atomic(CUpti_BuffersCallbackCompleteFunc) their_complete;

bool kj_cupti_has_neighbour(void)
{
    return atomic_load(&neighbour);
}

/* Whoever comes after us in the order of the libraries; a library that was opened for its user alone is found
 * by its handle. */
static void *next(const char *name, void *own)
{
    void *real = kj_dlsym_behind(RTLD_NEXT, name);
    void *handle = real && real != own ? NULL : kj_cupti_library();
    if (handle)
        real = kj_dlsym_behind(handle, name);
    return real == own ? NULL : real;
}

/* False: CUPTI itself calls, on our behalf. */
static bool leave(const char *reason)
{
    if (kj_self.inside)
        return false;
    atomic_store(&neighbour, true);
    kj_cupti_yield(reason);
    return true;
}

KJ_EXPORT CUptiResult cuptiSubscribe(CUpti_SubscriberHandle *ret_subscriber, CUpti_CallbackFunc callback,
                                     void *user_data);
CUptiResult cuptiSubscribe(CUpti_SubscriberHandle *ret_subscriber, CUpti_CallbackFunc callback,
                           void *user_data)
{
    __typeof__(&cuptiSubscribe) real = next("cuptiSubscribe", (void *)cuptiSubscribe);
    if (!real)
        return CUPTI_ERROR_NOT_INITIALIZED;
    if (leave("another tool subscribed to CUPTI in this process") &&
        kj_cupti_lend(ret_subscriber, callback, user_data))
        return CUPTI_SUCCESS;
    return real(ret_subscriber, callback, user_data);
}

KJ_EXPORT CUptiResult cuptiSubscribe_v2(CUpti_SubscriberHandle *ret_subscriber, CUpti_CallbackFunc callback,
                                        void *user_data, void *params);
CUptiResult cuptiSubscribe_v2(CUpti_SubscriberHandle *ret_subscriber, CUpti_CallbackFunc callback,
                              void *user_data, void *params)
{
    __typeof__(&cuptiSubscribe_v2) real = next("cuptiSubscribe_v2", (void *)cuptiSubscribe_v2);
    if (!real)
        return CUPTI_ERROR_NOT_INITIALIZED;
    if (leave("another tool subscribed to CUPTI in this process") &&
        kj_cupti_lend(ret_subscriber, callback, user_data))
        return CUPTI_SUCCESS;
    return real(ret_subscriber, callback, user_data, params);
}

/* A buffer of ours that CUPTI had kept must not get into their hands. */
static void complete(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid_size)
{
    CUpti_BuffersCallbackCompleteFunc theirs = atomic_load(&their_complete);
    if (kj_cupti_buffer_is_ours(buffer))
        kj_cupti_buffer_complete(context, stream, buffer, size, valid_size);
    else if (theirs)
        theirs(context, stream, buffer, size, valid_size);
}

KJ_EXPORT CUptiResult cuptiActivityRegisterCallbacks(CUpti_BuffersCallbackRequestFunc request,
                                                     CUpti_BuffersCallbackCompleteFunc complete_theirs);
CUptiResult cuptiActivityRegisterCallbacks(CUpti_BuffersCallbackRequestFunc request,
                                           CUpti_BuffersCallbackCompleteFunc complete_theirs)
{
    __typeof__(&cuptiActivityRegisterCallbacks) real =
        next("cuptiActivityRegisterCallbacks", (void *)cuptiActivityRegisterCallbacks);
    if (!real)
        return CUPTI_ERROR_NOT_INITIALIZED;
    leave("another tool registered for CUPTI's records in this process");
    if (!complete_theirs || !kj_cupti_buffers_out())
        return real(request, complete_theirs);
    atomic_store(&their_complete, complete_theirs);
    return real(request, complete);
}
