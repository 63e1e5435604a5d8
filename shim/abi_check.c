/* SPDX-License-Identifier: Apache-2.0
 *
 * abi_check.c - compares what the shim declares of CUDA's ABI with a real cuda.h, where one is installed: a
 * difference is a compile error. Holds no code. The signatures are those of CUDA 13; an older header lacks
 * some.
 */
#if __has_include(<cuda.h>)
/* Every ABI under its exported name, without the macros that turn cuMemcpyHtoD into cuMemcpyHtoD_v2. */
#define __CUDA_API_VERSION_INTERNAL 1
#include <cuda.h>

#include <stddef.h>

#define LAYOUT(type, size)         _Static_assert(sizeof(type) == (size), "size of " #type);
#define FIELD(type, field, offset) _Static_assert(offsetof(type, field) == (offset), #type "." #field);
#define VALUE(name, value)         _Static_assert((name) == (value), "value of " #name);
#include "cuda_layout.def"

#if CUDA_VERSION >= 13000
/* What came after the header, so that the rows that came with it can be declared. */
#if CUDA_VERSION < 13020
typedef struct kj_opaque_cig CUstreamCigCaptureParams;
#endif
#if CUDA_VERSION < 13030
typedef void (*CUgraphRecaptureCallback)(void);
#endif
/* Declared again, with the parameters of our lists: "conflicting types" names the row that is wrong. */
#define HOOK(symbol, name, version, lane, params, args) CUresult CUDAAPI symbol params;
#include "hooks_each.h"
#define DRIVER(symbol, params) CUresult CUDAAPI symbol params;
#include "driver.def"
#endif

/* The same of CUPTI; the types go by the names that they have in the release of the header. */
#if __has_include(<cupti_activity.h>) && CUDA_VERSION >= 13000
#include <cupti_activity.h>
#include <cupti_callbacks.h>
#include <cupti_driver_cbid.h>
#include <cupti_runtime_cbid.h>

typedef CUpti_ActivityKernel10 kj_their_kernel;
typedef CUpti_ActivityMemcpy6 kj_their_memcpy;
typedef CUpti_ActivityMemset4 kj_their_memset;
typedef CUpti_ActivityMemcpyPtoP4 kj_their_peer;
typedef CUpti_CallbackData kj_their_call;
typedef CUpti_SubscriberParams kj_their_subscriber_params;

#define VALUE(name, value) _Static_assert((name) == (value), "value of " #name);
#define RECORD_FIELD(type, field, offset)                                                                    \
    _Static_assert(offsetof(kj_their_##type, field) == (offset), #type "." #field);
#include "cupti_layout.def"
#define CALL(domain, name, number)                                                                           \
    _Static_assert(CUPTI_##domain##_TRACE_CBID_##name == (number), "number of " #name);
#include "cupti_calls.def"
#endif
#endif
