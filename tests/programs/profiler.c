/* SPDX-License-Identifier: Apache-2.0
 *
 * profiler - a program with a profiler of its own, as PyTorch has one: linked with libcupti, it launches
 * kernels, then profiles some, then launches more. Prints what its profiler saw. Knows nothing of kjoule.
 *
 *     profiler [never|early|late] [LAUNCHES] [graph]
 *                        when it profiles: not at all, before any launch, between launches
 *                        graph: it has an executable graph while its profiler comes
 */
#include "driver.h"

#include <stdint.h>
#include <string.h>

typedef void (*request_function)(uint8_t **buffer, size_t *size, size_t *most);
typedef void (*complete_function)(handle context, uint32_t stream, uint8_t *buffer, size_t size,
                                  size_t valid);
extern int cuptiSubscribe(handle *subscriber, void (*callback)(void *, int, uint32_t, const void *),
                          void *data);
extern int cuptiUnsubscribe(handle subscriber);
extern int cuptiActivityRegisterCallbacks(request_function request, complete_function complete);
extern int cuptiActivityEnable(int kind);
extern int cuptiActivityDisable(int kind);
extern int cuptiActivityFlushAll(uint32_t flag);
extern int cuptiActivityGetNextRecord(uint8_t *buffer, size_t valid, void **record);

enum { CONCURRENT_KERNEL = 10, BUFFER = 1 << 20 };
static unsigned long records, buffers_given, buffers_back, strangers;
static uint8_t *given[256];

static void on_request(uint8_t **buffer, size_t *size, size_t *most)
{
    *buffer = given[buffers_given++ % 256] = malloc(BUFFER);
    *size = BUFFER;
    *most = 0;
}

static void on_complete(handle context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid)
{
    void *record = NULL;
    int mine = 0;
    (void)context, (void)stream, (void)size;
    for (int i = 0; i < 256 && !mine; i++)
        mine = given[i] == buffer;
    if (!mine) {
        strangers++;
        return;
    }
    while (!cuptiActivityGetNextRecord(buffer, valid, &record))
        records++;
    buffers_back++;
    free(buffer);
}

static void on_call(void *data, int domain, uint32_t cbid, const void *call)
{
    (void)data, (void)domain, (void)cbid, (void)call;
}

static void launch(handle kernel, int launches)
{
    for (int i = 0; i < launches; i++)
        MUST(cuLaunchKernel(kernel, 64, 1, 1, 128, 1, 1, 0, NULL, NULL, NULL));
}

static handle executable;

static void make_graph(handle kernel)
{
    handle stream, graph;
    MUST(cuStreamCreate(&stream, 1));
    MUST(cuStreamBeginCapture_v2(stream, 0));
    MUST(cuLaunchKernel(kernel, 64, 1, 1, 128, 1, 1, 0, stream, NULL, NULL));
    MUST(cuStreamEndCapture(stream, &graph));
    MUST(cuGraphInstantiateWithFlags(&executable, graph, 0));
}

static void profile(handle kernel, int launches)
{
    handle subscriber;
    if (executable)
        MUST(cuCtxSynchronize());
    MUST(cuptiSubscribe(&subscriber, on_call, NULL));
    MUST(cuptiActivityRegisterCallbacks(on_request, on_complete));
    MUST(cuptiActivityEnable(CONCURRENT_KERNEL));
    launch(kernel, launches);
    MUST(cuCtxSynchronize());
    if (executable) /* a profiler must not leave before that */
        MUST(cuGraphExecDestroy(executable));
    MUST(cuptiActivityFlushAll(1));
    MUST(cuptiActivityDisable(CONCURRENT_KERNEL));
    MUST(cuptiUnsubscribe(subscriber));
    printf("profiler: %lu records, %lu buffers kept, %lu of somebody else's\n", records,
           buffers_given - buffers_back, strangers);
}

int main(int argc, char **argv)
{
    const char *when = argc > 1 ? argv[1] : "late";
    int launches = argc > 2 ? atoi(argv[2]) : 200;
    handle context, module, kernel;
    driver_find();
    MUST(cuInit(0));
    MUST(cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cuCtxSetCurrent(context));
    MUST(cuModuleLoadData(&module,
                          ".version 8.0\n.target sm_80\n.visible .entry train_gemm()\n{\n ret;\n}\n"));
    MUST(cuModuleGetFunction(&kernel, module, "train_gemm"));
    if (argc > 3)
        make_graph(kernel);
    if (!strcmp(when, "early"))
        profile(kernel, launches);
    launch(kernel, launches); /* and no wait: they still run when the profiler begins */
    if (!strcmp(when, "late"))
        profile(kernel, launches);
    launch(kernel, launches);
    MUST(cuCtxSynchronize());
    return 0;
}
