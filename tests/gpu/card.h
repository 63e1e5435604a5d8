/* SPDX-License-Identifier: Apache-2.0
 *
 * card.h - what the programs that measure a card share: the driver by dlopen, one context and stream, kernels
 * of a chosen length. They are PTX, which the driver compiles, so no compiler is needed. Knows nothing of
 * kjoule.
 */
#ifndef CARD_H
#define CARD_H

#include <stdbool.h>
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

/* CU(name, parameters): cu<name>, NULL where the driver does not have it */
#define CARD_DRIVER(CU)                                                                                      \
    CU(Init, (unsigned flags))                                                                               \
    CU(DriverGetVersion, (int *version))                                                                     \
    CU(GetProcAddress_v2, (const char *name, void **ret, int version, address flags, int *status))           \
    CU(DeviceGetCount, (int *count))                                                                         \
    CU(DeviceGetName, (char *name, int size, int device))                                                    \
    CU(DeviceGetAttribute, (int *value, int attribute, int device))                                          \
    CU(DeviceGetUuid, (void *uuid, int device))                                                              \
    CU(DeviceGetUuid_v2, (void *uuid, int device))                                                           \
    CU(DeviceGetPCIBusId, (char *text, int size, int device))                                                \
    CU(DevicePrimaryCtxRetain, (handle * context, int device))                                               \
    CU(DevicePrimaryCtxRelease_v2, (int device))                                                             \
    CU(DevicePrimaryCtxReset_v2, (int device))                                                               \
    CU(DevicePrimaryCtxGetState, (int device, unsigned *flags, int *active))                                 \
    CU(CtxCreate_v2, (handle * context, unsigned flags, int device))                                         \
    CU(CtxDestroy_v2, (handle context))                                                                      \
    CU(CtxGetCurrent, (handle * context))                                                                    \
    CU(CtxSetCurrent, (handle context))                                                                      \
    CU(CtxGetDevice, (int *device))                                                                          \
    CU(CtxGetId, (handle context, address * id))                                                             \
    CU(ThreadExchangeStreamCaptureMode, (int *mode))                                                         \
    CU(CtxSynchronize, (void))                                                                               \
    CU(ModuleLoadData, (handle * module, const void *image))                                                 \
    CU(ModuleUnload, (handle module))                                                                        \
    CU(ModuleGetFunction, (handle * function, handle module, const char *name))                              \
    CU(FuncGetName, (const char **name, handle function))                                                    \
    CU(LibraryLoadData,                                                                                      \
       (handle * library, const void *image, void *a, void *b, unsigned c, void *d, void *e, unsigned f))    \
    CU(LibraryGetKernel, (handle * kernel, handle library, const char *name))                                \
    CU(KernelGetName, (const char **name, handle kernel))                                                    \
    CU(KernelGetFunction, (handle * function, handle kernel))                                                \
    CU(StreamCreate, (handle * stream, unsigned flags))                                                      \
    CU(StreamDestroy_v2, (handle stream))                                                                    \
    CU(StreamQuery, (handle stream))                                                                         \
    CU(StreamSynchronize, (handle stream))                                                                   \
    CU(StreamWaitEvent, (handle stream, handle event, unsigned flags))                                       \
    CU(StreamGetCtx, (handle stream, handle * context))                                                      \
    CU(StreamGetId, (handle stream, address * id))                                                           \
    CU(StreamIsCapturing, (handle stream, int *status))                                                      \
    CU(StreamGetCaptureInfo_v2,                                                                              \
       (handle stream, int *status, address *id, handle *graph, const handle **nodes, size_t *count))        \
    CU(StreamBeginCapture_v2, (handle stream, int mode))                                                     \
    CU(StreamEndCapture, (handle stream, handle * graph))                                                    \
    CU(LaunchHostFunc, (handle stream, void (*function)(void *), void *data))                                \
    CU(EventCreate, (handle * event, unsigned flags))                                                        \
    CU(EventDestroy_v2, (handle event))                                                                      \
    CU(EventRecord, (handle event, handle stream))                                                           \
    CU(EventRecordWithFlags, (handle event, handle stream, unsigned flags))                                  \
    CU(EventQuery, (handle event))                                                                           \
    CU(EventSynchronize, (handle event))                                                                     \
    CU(EventElapsedTime, (float *ms, handle start, handle end))                                              \
    CU(MemAlloc_v2, (address * at, size_t bytes))                                                            \
    CU(MemFree_v2, (address at))                                                                             \
    CU(MemAllocHost_v2, (void **at, size_t bytes))                                                           \
    CU(MemcpyHtoD_v2, (address to, const void *from, size_t bytes))                                          \
    CU(MemcpyDtoH_v2, (void *to, address from, size_t bytes))                                                \
    CU(MemcpyDtoD_v2, (address to, address from, size_t bytes))                                              \
    CU(MemcpyHtoDAsync_v2, (address to, const void *from, size_t bytes, handle stream))                      \
    CU(MemcpyDtoHAsync_v2, (void *to, address from, size_t bytes, handle stream))                            \
    CU(MemcpyDtoDAsync_v2, (address to, address from, size_t bytes, handle stream))                          \
    CU(MemsetD8_v2, (address at, unsigned char value, size_t bytes))                                         \
    CU(MemsetD8Async, (address at, unsigned char value, size_t bytes, handle stream))                        \
    CU(GraphCreate, (handle * graph, unsigned flags))                                                        \
    CU(GraphDestroy, (handle graph))                                                                         \
    CU(GraphGetNodes, (handle graph, handle * nodes, size_t * count))                                        \
    CU(GraphNodeGetType, (handle node, int *type))                                                           \
    CU(GraphKernelNodeGetParams_v2, (handle node, struct kernel_node * params))                              \
    CU(GraphAddKernelNode_v2,                                                                                \
       (handle * node, handle graph, const handle *after, size_t count, const struct kernel_node *params))   \
    CU(GraphInstantiateWithFlags, (handle * exec, handle graph, address flags))                              \
    CU(GraphExecUpdate_v2, (handle exec, handle graph, void *info))                                          \
    CU(GraphExecDestroy, (handle exec))                                                                      \
    CU(GraphLaunch, (handle exec, handle stream))                                                            \
    CU(LaunchKernelEx,                                                                                       \
       (const struct launch_config *config, handle function, void **arguments, void **extra))                \
    CU(LaunchKernel, (handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,      \
                      unsigned bz, unsigned shared, handle stream, void **arguments, void **extra))

struct driver {
#define CU(name, parameters) int(*name) parameters;
    CARD_DRIVER(CU)
#undef CU
};
extern struct driver cu;

/* The kernels. `nothing` returns at once; all others multiply for as many rounds as they are told, and only
 * their names differ. */
#define CARD_KERNELS(K)                                                                                      \
    K(burn)                                                                                                  \
    K(burn_2us)                                                                                              \
    K(burn_5us)                                                                                              \
    K(burn_10us)                                                                                             \
    K(burn_50us)                                                                                             \
    K(queued_2us)                                                                                            \
    K(queued_5us) K(queued_10us) K(queued_50us) K(once) K(square) K(in_graph_5us) K(in_graph_50us)
enum kernel {
#define K(name) KERNEL_##name,
    CARD_KERNELS(K)
#undef K
        KERNEL_COUNT
};

/* All kernels as PTX. */
extern const char card_image[];

struct card {
    handle library, context, stream, module, nothing, kernels[KERNEL_COUNT], begin, end;
    unsigned multiprocessors;
};
extern struct card card;

/* Ends the program with status 3 and the call's name where the driver does not answer 0. */
#define MUST(call)                                                                                           \
    do {                                                                                                     \
        int rc_ = (call);                                                                                    \
        if (rc_) {                                                                                           \
            fprintf(stderr, "%s returned %d\n", #call, rc_);                                                 \
            exit(3);                                                                                         \
        }                                                                                                    \
    } while (0)

/* Finds the driver's functions; status 4 and the reason where there is no driver. */
void card_find_driver(void);

/* Another function of the driver, NULL where it has none. */
void *card_symbol(const char *name);

/* Also the primary context of device 0, and in it what card_load makes. */
void card_open(void);

/* The kernels, a stream and two events in the current context. */
void card_load(void);

double card_now_s(void);

/* One kernel of that many rounds on the card's stream: `blocks_each` blocks of 256 threads a multiprocessor.
 */
void card_launch(enum kernel kernel, unsigned blocks_each, unsigned rounds);

/* Rounds for a kernel of `us`, from batches of `batch` of them. The card warms up meanwhile. ret_launches:
 * how many it took. */
unsigned card_rounds(enum kernel kernel, unsigned blocks_each, double us, int batch, int *ret_launches);

/* Milliseconds of the stream between two events of our own around `count` such kernels, and waits for them.
 */
double card_timed_ms(enum kernel kernel, unsigned blocks_each, unsigned rounds, int count);

#endif
