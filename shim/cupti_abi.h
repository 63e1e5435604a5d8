/* SPDX-License-Identifier: Apache-2.0
 *
 * cupti_abi.h - what the shim needs of CUPTI's ABI, declared by the project so that it builds without a
 * toolkit, and compared with a real cupti.h in abi_check.c where one is installed.
 *
 * Records differ in their length between releases, not in the fields read here: from API version 17
 * (CUDA 11.7) to 28 (12.9) and from 130000 (13.0) to 130500 (13.5) all of these lie at the same places, in
 * CUpti_ActivityKernel7 to 13, CUpti_ActivityMemcpy5 to 7, CUpti_ActivityMemset4 and 5,
 * CUpti_ActivityMemcpyPtoP4. (Read from the public headers of 11.7, 11.8, 12.1, 12.4, 12.6, 12.8, 12.9
 * and 13.0 to 13.5.) Of another version nothing is known, and the shim steps aside.
 */
#ifndef KJ_CUPTI_ABI_H
#define KJ_CUPTI_ABI_H

#include "cuda_abi.h"
#include "cupti_versions.h"

#include <stddef.h>
#include <stdint.h>

typedef int CUptiResult;
typedef struct CUpti_Subscriber_st *CUpti_SubscriberHandle;
typedef void (*CUpti_CallbackFunc)(void *user_data, int domain, uint32_t cbid, const void *data);
typedef void (*CUpti_BuffersCallbackRequestFunc)(uint8_t **ret_buffer, size_t *ret_size, size_t *ret_most);
typedef void (*CUpti_BuffersCallbackCompleteFunc)(CUcontext context, uint32_t stream, uint8_t *buffer,
                                                  size_t size, size_t valid_size);

enum {
    CUPTI_SUCCESS = 0,
    CUPTI_ERROR_INVALID_PARAMETER = 1,
    CUPTI_ERROR_MAX_LIMIT_REACHED = 12, /* a second subscriber, before CUDA 11 */
    CUPTI_ERROR_NOT_INITIALIZED = 15,
    CUPTI_ERROR_INSUFFICIENT_PRIVILEGES = 35,
    CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED = 39,

    CUPTI_API_ENTER = 0,
    CUPTI_API_EXIT = 1,
    CUPTI_CB_DOMAIN_DRIVER_API = 1,
    CUPTI_CB_DOMAIN_RUNTIME_API = 2,

    CUPTI_ACTIVITY_KIND_MEMCPY = 1,
    CUPTI_ACTIVITY_KIND_MEMSET = 2,
    CUPTI_ACTIVITY_KIND_KERNEL = 3,
    CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL = 10,
    CUPTI_ACTIVITY_KIND_MEMCPY2 = 22, /* from one device to another */
    CUPTI_ACTIVITY_FLAG_FLUSH_FORCED = 1,

    CUPTI_ACTIVITY_MEMCPY_KIND_HTOD = 1,
    CUPTI_ACTIVITY_MEMCPY_KIND_DTOH = 2,
    CUPTI_ACTIVITY_MEMCPY_KIND_DTOD = 8,
};

#define KJ_PACKED __attribute__((packed, aligned(8)))

/* The beginnings of the records, by CUPTI's names of the fields. */
struct kj_cupti_kernel {
    uint32_t kind;
    uint8_t before_start[12];
    uint64_t start, end, completed; /* 0: not collected */
    uint32_t deviceId, contextId, streamId;
    int32_t gridX, gridY, gridZ;
    int32_t blockX, blockY, blockZ;
    int32_t staticSharedMemory, dynamicSharedMemory;
    uint32_t localMemoryPerThread, localMemoryTotal;
    uint32_t correlationId;
    int64_t gridId;
    const char *name; /* mangled */
    uint8_t before_graph_node[32];
    uint64_t graphNodeId;
    uint32_t shmemLimitConfig;
    uint32_t graphId; /* 0: launched by itself */
} KJ_PACKED;

struct kj_cupti_memcpy {
    uint32_t kind;
    uint8_t copyKind, srcKind, dstKind, flags;
    uint64_t bytes, start, end;
    uint32_t deviceId, contextId, streamId;
    uint32_t correlationId, runtimeCorrelationId, pad;
    void *reserved0;
    uint64_t graphNodeId;
    uint32_t graphId;
} KJ_PACKED;

struct kj_cupti_memset {
    uint32_t kind, value;
    uint64_t bytes, start, end;
    uint32_t deviceId, contextId, streamId;
    uint32_t correlationId;
    uint16_t flags, memoryKind;
    uint32_t pad;
    void *reserved0;
    uint64_t graphNodeId;
    uint32_t graphId;
} KJ_PACKED;

struct kj_cupti_peer {
    uint32_t kind;
    uint8_t copyKind, srcKind, dstKind, flags;
    uint64_t bytes, start, end;
    uint32_t deviceId, contextId, streamId;
    uint32_t srcDeviceId, srcContextId, dstDeviceId, dstContextId;
    uint32_t correlationId;
    void *reserved0;
    uint64_t graphNodeId;
    uint32_t graphId;
} KJ_PACKED;

/* What a callback of the driver's or the runtime's functions is given. */
struct kj_cupti_call {
    uint32_t callbackSite;
    const char *functionName;
    const void *functionParams;
    void *functionReturnValue;
    const char *symbolName;
    CUcontext context;
    uint32_t contextUid;
    uint64_t *correlationData;
    uint32_t correlationId;
};

struct kj_cupti_subscriber_params {
    size_t structSize;
    const char *subscriberName;
    char *oldSubscriberName; /* told with CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED */
    size_t oldSubscriberSize;
};

#define VALUE(name, value) _Static_assert((name) == (value), "value of " #name);
#define RECORD_FIELD(type, field, offset)                                                                    \
    _Static_assert(offsetof(struct kj_cupti_##type, field) == (offset), #type "." #field);
#include "cupti_layout.def"

#endif
