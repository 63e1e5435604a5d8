/* SPDX-License-Identifier: Apache-2.0
 *
 * driver.h - the functions of the CUDA driver that programs here call, one list for all, and how they are
 * found. Knows nothing of kjoule.
 *
 * A program calls cuInit(0) and others after driver_find(). With -DLINKED it is linked to the driver, and
 * finds nothing. Who defines DRIVER_LIST_ONLY declares the functions in a way of its own.
 */
#ifndef DRIVER_H
#define DRIVER_H

#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct handle *handle;
typedef unsigned long long address;

/* CUDA_KERNEL_NODE_PARAMS_v2, CUlaunchAttribute and CUlaunchConfig of cuda.h */
struct kernel_node {
    handle function;
    unsigned grid[3], block[3], shared;
    void **arguments, **extra;
    handle kernel, context;
};
struct launch_attribute {
    int id, pad;
    union {
        int number;
        char room[64];
    };
};
struct launch_config {
    unsigned grid[3], block[3], shared;
    handle stream;
    struct launch_attribute *attributes;
    unsigned attribute_count;
};
/* CUDA_MEMCPY2D, CUDA_MEMCPY3D, CUDA_MEMSET_NODE_PARAMS, CUgraphNodeParams: of the programs that use them */
struct copy_2d;
struct copy_node;
struct memset_node;
struct any_node;

/* X(name, parameters) of cu<name> */
#define DRIVER_FUNCTIONS(X)                                                                                  \
    X(Init, (unsigned flags))                                                                                \
    X(DriverGetVersion, (int *version))                                                                      \
    X(GetProcAddress_v2, (const char *name, void **ret, int version, address flags, int *status))            \
    X(DeviceGetCount, (int *count))                                                                          \
    X(DeviceGetName, (char *name, int size, int device))                                                     \
    X(DeviceGetAttribute, (int *value, int attribute, int device))                                           \
    X(DeviceGetUuid, (void *uuid, int device))                                                               \
    X(DeviceGetUuid_v2, (void *uuid, int device))                                                            \
    X(DeviceGetPCIBusId, (char *text, int size, int device))                                                 \
    X(DevicePrimaryCtxRetain, (handle * context, int device))                                                \
    X(DevicePrimaryCtxRelease_v2, (int device))                                                              \
    X(DevicePrimaryCtxReset_v2, (int device))                                                                \
    X(DevicePrimaryCtxGetState, (int device, unsigned *flags, int *active))                                  \
    X(DeviceGet, (int *device, int index))                                                                   \
    X(DeviceGetDevResource, (int device, void *resource, int type))                                          \
    X(DevResourceGenerateDesc, (handle * description, void *resources, unsigned count))                      \
    X(CtxCreate_v2, (handle * context, unsigned flags, int device))                                          \
    X(CtxDestroy_v2, (handle context))                                                                       \
    X(CtxGetCurrent, (handle * context))                                                                     \
    X(CtxSetCurrent, (handle context))                                                                       \
    X(CtxGetDevice, (int *device))                                                                           \
    X(CtxGetId, (handle context, address * id))                                                              \
    X(CtxSynchronize, (void))                                                                                \
    X(CtxAttach, (handle * context, unsigned flags))                                                         \
    X(CtxDetach, (handle context))                                                                           \
    X(CtxPushCurrent_v2, (handle context))                                                                   \
    X(CtxPopCurrent_v2, (handle * context))                                                                  \
    X(CtxFromGreenCtx, (handle * context, handle green))                                                     \
    X(GreenCtxCreate, (handle * green, handle description, int device, unsigned flags))                      \
    X(GreenCtxDestroy, (handle green))                                                                       \
    X(GreenCtxStreamCreate, (handle * stream, handle green, unsigned flags, int priority))                   \
    X(ThreadExchangeStreamCaptureMode, (int *mode))                                                          \
    X(ModuleLoadData, (handle * module, const void *image))                                                  \
    X(ModuleUnload, (handle module))                                                                         \
    X(ModuleGetFunction, (handle * function, handle module, const char *name))                               \
    X(FuncGetName, (const char **name, handle function))                                                     \
    X(LibraryLoadData,                                                                                       \
      (handle * library, const void *image, void *a, void *b, unsigned c, void *d, void *e, unsigned f))     \
    X(LibraryGetKernel, (handle * kernel, handle library, const char *name))                                 \
    X(KernelGetName, (const char **name, handle kernel))                                                     \
    X(KernelGetFunction, (handle * function, handle kernel))                                                 \
    X(StreamCreate, (handle * stream, unsigned flags))                                                       \
    X(StreamDestroy_v2, (handle stream))                                                                     \
    X(StreamQuery, (handle stream))                                                                          \
    X(StreamSynchronize, (handle stream))                                                                    \
    X(StreamWaitEvent, (handle stream, handle event, unsigned flags))                                        \
    X(StreamGetCtx, (handle stream, handle * context))                                                       \
    X(StreamGetId, (handle stream, address * id))                                                            \
    X(StreamIsCapturing, (handle stream, int *status))                                                       \
    X(StreamGetCaptureInfo_v2,                                                                               \
      (handle stream, int *status, address *id, handle *graph, const handle **nodes, size_t *count))         \
    X(StreamBeginCapture_v2, (handle stream, int mode))                                                      \
    X(StreamEndCapture, (handle stream, handle * graph))                                                     \
    X(StreamCreateWithPriority, (handle * stream, unsigned flags, int priority))                             \
    X(EventCreate, (handle * event, unsigned flags))                                                         \
    X(EventDestroy_v2, (handle event))                                                                       \
    X(EventRecord, (handle event, handle stream))                                                            \
    X(EventRecordWithFlags, (handle event, handle stream, unsigned flags))                                   \
    X(EventQuery, (handle event))                                                                            \
    X(EventSynchronize, (handle event))                                                                      \
    X(EventElapsedTime, (float *ms, handle start, handle end))                                               \
    X(MemAlloc_v2, (address * at, size_t bytes))                                                             \
    X(MemFree_v2, (address at))                                                                              \
    X(MemAllocHost_v2, (void **at, size_t bytes))                                                            \
    X(MemcpyHtoD_v2, (address to, const void *from, size_t bytes))                                           \
    X(MemcpyDtoH_v2, (void *to, address from, size_t bytes))                                                 \
    X(MemcpyDtoD_v2, (address to, address from, size_t bytes))                                               \
    X(MemcpyHtoDAsync_v2, (address to, const void *from, size_t bytes, handle stream))                       \
    X(MemcpyDtoHAsync_v2, (void *to, address from, size_t bytes, handle stream))                             \
    X(MemcpyDtoDAsync_v2, (address to, address from, size_t bytes, handle stream))                           \
    X(MemsetD8_v2, (address at, unsigned char value, size_t bytes))                                          \
    X(MemsetD8Async, (address at, unsigned char value, size_t bytes, handle stream))                         \
    X(MemcpyDtoH_v2_ptds, (void *to, address from, size_t bytes))                                            \
    X(Memcpy2D_v2, (const struct copy_2d *copy))                                                             \
    X(GraphCreate, (handle * graph, unsigned flags))                                                         \
    X(GraphDestroy, (handle graph))                                                                          \
    X(GraphGetNodes, (handle graph, handle * nodes, size_t * count))                                         \
    X(GraphNodeGetType, (handle node, int *type))                                                            \
    X(GraphKernelNodeGetParams_v2, (handle node, struct kernel_node * params))                               \
    X(GraphAddKernelNode_v2,                                                                                 \
      (handle * node, handle graph, const handle *after, size_t count, const struct kernel_node *params))    \
    X(GraphInstantiateWithFlags, (handle * exec, handle graph, address flags))                               \
    X(GraphExecUpdate_v2, (handle exec, handle graph, void *info))                                           \
    X(GraphExecDestroy, (handle exec))                                                                       \
    X(GraphLaunch, (handle exec, handle stream))                                                             \
    X(GraphAddMemsetNode, (handle * node, handle graph, const handle *after, size_t count,                   \
                           const struct memset_node *fill, handle context))                                  \
    X(GraphAddChildGraphNode,                                                                                \
      (handle * node, handle graph, const handle *after, size_t count, handle child))                        \
    X(GraphAddMemcpyNode, (handle * node, handle graph, const handle *after, size_t count,                   \
                           const struct copy_node *copy, handle context))                                    \
    X(GraphAddNode,                                                                                          \
      (handle * node, handle graph, const handle *after, size_t count, struct any_node *params))             \
    X(GraphConditionalHandleCreate,                                                                          \
      (address * condition, handle graph, handle context, unsigned value, unsigned flags))                   \
    X(GraphKernelNodeSetParams_v2, (handle node, const struct kernel_node *kernel))                          \
    X(GraphChildGraphNodeGetGraph, (handle node, handle * child))                                            \
    X(GraphExecMemcpyNodeSetParams,                                                                          \
      (handle exec, handle node, const struct copy_node *copy, handle context))                              \
    X(GraphExecMemsetNodeSetParams,                                                                          \
      (handle exec, handle node, const struct memset_node *fill, handle context))                            \
    X(GraphExecChildGraphNodeSetParams, (handle exec, handle node, handle child))                            \
    X(GraphExecKernelNodeSetParams_v2, (handle exec, handle node, const struct kernel_node *kernel))         \
    X(GraphExecNodeSetParams, (handle exec, handle node, struct any_node * params))                          \
    X(GraphNodeSetEnabled, (handle exec, handle node, unsigned enabled))                                     \
    X(LaunchHostFunc, (handle stream, void (*function)(void *), void *data))                                 \
    X(LaunchKernelEx, (const struct launch_config *config, handle function, void **arguments, void **extra)) \
    X(LaunchKernel, (handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,       \
                     unsigned bz, unsigned shared, handle stream, void **arguments, void **extra))           \
    X(LaunchKernel_ptsz, (handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,  \
                          unsigned bz, unsigned shared, handle stream, void **arguments, void **extra))

/* Ends the program with status 3 and the call's name where the driver does not answer 0. */
#define MUST(call)                                                                                           \
    do {                                                                                                     \
        int rc_ = (call);                                                                                    \
        if (rc_) {                                                                                           \
            fprintf(stderr, "%s: %s returned %d\n", program_invocation_short_name, #call, rc_);              \
            exit(3);                                                                                         \
        }                                                                                                    \
    } while (0)

/* Status 4 and the reason where there is no driver. */
static inline void *driver_open(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) {
        fprintf(stderr, "%s: %s\n", program_invocation_short_name, dlerror());
        exit(4);
    }
    return library;
}

#if defined(LINKED)
#define X(name, parameters) extern int cu##name parameters;
DRIVER_FUNCTIONS(X)
#undef X
#elif !defined(DRIVER_LIST_ONLY)
#define X(name, parameters) static __attribute__((unused)) int(*cu##name) parameters;
DRIVER_FUNCTIONS(X)
#undef X

/* Called in place of a function that this driver does not have. */
static inline int driver_lacks_it(void)
{
    fprintf(stderr, "%s: the driver lacks a function that is called\n", program_invocation_short_name);
    exit(4);
}

static inline void driver_find_in(void *library)
{
    void *found;
#define X(name, parameters)                                                                                  \
    found = dlsym(library, "cu" #name);                                                                      \
    cu##name = (int(*) parameters)(found ? found : (void *)driver_lacks_it);
    DRIVER_FUNCTIONS(X)
#undef X
}

/* Returns the driver's library. */
static inline void *driver_find(void)
{
    void *library = driver_open();
    driver_find_in(library);
    return library;
}
#endif

#endif
