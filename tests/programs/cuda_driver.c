/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_driver - a training-shaped program on the CUDA driver API alone: module, streams, events, copies,
 * three kernels a step, or the same as a graph. Knows nothing of kjoule. It counts its own
 * launches, checks every result, and checks that copies come back as they were sent. Built twice: cuda_driver
 * looks libcuda up at run time, cuda_linked (-DLINKED) is linked to it.
 *
 *     cuda_driver [--steps N] [--threads N] [--processes N] [--devices N] [--gap-us N] [--exit STATUS]
 * [--progress]
 *                 [--door dlsym|versioned] [--stream own|legacy|per-thread] [--graph] [--library] [--unload]
 * [--async]
 */
#include "driver.h"

#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct {
    int steps, threads, processes, devices, gap_us, exit_status, progress, graph, library, unload, async;
    const char *door, *stream;
} want = {.steps = 100, .threads = 1, .processes = 1, .devices = 1, .door = "dlsym", .stream = "own"};

static const char *const kernel_names[] = {"train_gemm", "train_softmax", "train_update"};
enum { KERNELS = 3, COPY_BYTES = 1 << 16 };

static const char image[] = ".version 8.0\n.target sm_80\n.address_size 64\n"
                            ".visible .entry train_gemm()\n{\n ret;\n}\n"
                            ".visible .entry train_softmax()\n{\n ret;\n}\n"
                            ".visible .entry train_update()\n{\n ret;\n}\n";

static handle contexts[8];

/* By cuGetProcAddress. Of all that is called here, CUDA 12.0 hands out the ABI that driver.h declares. */
#ifndef LINKED
static void *versioned(const char *symbol, int lane)
{
    char name[64];
    void *found = NULL;
    snprintf(name, sizeof(name), "%s", symbol);
    name[strcspn(name, "_")] = 0;
    cuGetProcAddress_v2(name, &found, 12000, lane ? 2 : 1, NULL);
    return found ? found : (void *)driver_lacks_it;
}
#endif

static void find_driver(void)
{
#ifndef LINKED
    int lane = !strcmp(want.stream, "per-thread");
    driver_find();
    if (!strcmp(want.door, "versioned")) {
#define X(name, parameters) cu##name = (int(*) parameters)versioned("cu" #name, lane);
        DRIVER_FUNCTIONS(X)
#undef X
    } else if (lane) {
        cuLaunchKernel = cuLaunchKernel_ptsz;
    }
#endif
}

static void launch_step(handle *functions, handle stream)
{
    for (int k = 0; k < KERNELS; k++)
        MUST(cuLaunchKernel(functions[k], 64u << k, 1, 1, 256, 1, 1, 0, stream, NULL, NULL));
}

static void load(handle *functions, handle *ret_module)
{
    if (want.library) {
        handle library;
        MUST(cuLibraryLoadData(&library, image, NULL, NULL, 0, NULL, NULL, 0));
        for (int k = 0; k < KERNELS; k++)
            MUST(cuLibraryGetKernel(&functions[k], library, kernel_names[k]));
        return;
    }
    MUST(cuModuleLoadData(ret_module, image));
    for (int k = 0; k < KERNELS; k++)
        MUST(cuModuleGetFunction(&functions[k], *ret_module, kernel_names[k]));
}

static handle capture(handle *functions, handle stream)
{
    handle graph, exec;
    MUST(cuStreamBeginCapture_v2(stream, 2));
    launch_step(functions, stream);
    MUST(cuStreamEndCapture(stream, &graph));
    MUST(cuGraphInstantiateWithFlags(&exec, graph, 0));
    MUST(cuGraphDestroy(graph));
    return exec;
}

static void *train(void *argument)
{
    long worker = (long)argument, launches = 0;
    handle functions[KERNELS], module = NULL, stream = NULL, start, end, exec = NULL;
    unsigned char *sent = malloc(COPY_BYTES), *back = malloc(COPY_BYTES);
    address memory;
    MUST(cuCtxSetCurrent(contexts[worker % want.devices]));
    load(functions, &module);
    if (!strcmp(want.stream, "own"))
        MUST(cuStreamCreate(&stream, 1));
    MUST(cuEventCreate(&start, 0));
    MUST(cuEventCreate(&end, 0));
    MUST(cuMemAlloc_v2(&memory, COPY_BYTES));
    if (want.graph)
        exec = capture(functions, stream);
    MUST(cuEventRecord(start, stream));
    for (int step = 0; step < want.steps; step++) {
        for (int i = 0; i < COPY_BYTES; i++)
            sent[i] = (unsigned char)(i * 7 + step + worker);
        MUST(cuMemcpyHtoDAsync_v2(memory, sent, COPY_BYTES, stream));
        if (want.graph)
            MUST(cuGraphLaunch(exec, stream));
        else
            launch_step(functions, stream);
        launches += KERNELS;
        if (!want.async)
            MUST(cuStreamSynchronize(stream));
        if (want.gap_us)
            usleep((unsigned)want.gap_us);
        if (want.progress && !worker) {
            printf("step %d\n", step);
            fflush(stdout);
        }
    }
    MUST(cuEventRecord(end, stream));
    MUST(cuEventSynchronize(end));
    float ms = -1;
    MUST(cuEventElapsedTime(&ms, start, end));
    MUST(cuMemcpyDtoH_v2(back, memory, COPY_BYTES));
    if (want.steps && memcmp(sent, back, COPY_BYTES)) {
        fprintf(stderr, "cuda_driver: a copy came back changed\n");
        _exit(5);
    }
    if (exec)
        MUST(cuGraphExecDestroy(exec));
    MUST(cuMemFree_v2(memory));
    MUST(cuEventDestroy_v2(start));
    MUST(cuEventDestroy_v2(end));
    if (stream)
        MUST(cuStreamDestroy_v2(stream));
    if (want.unload && module)
        MUST(cuModuleUnload(module));
    free(sent);
    free(back);
    return (void *)(ms >= 0 ? launches : -1);
}

static int run(void)
{
    pthread_t threads[64];
    long launches = 0;
    int count;
    MUST(cuInit(0));
    MUST(cuDeviceGetCount(&count));
    for (int d = 0; d < want.devices; d++) {
        int device;
        MUST(cuDeviceGet(&device, d));
        MUST(cuDevicePrimaryCtxRetain(&contexts[d], device));
    }
    for (long t = 1; t < want.threads; t++)
        pthread_create(&threads[t], NULL, train, (void *)t);
    launches = (long)train((void *)0);
    for (int t = 1; t < want.threads; t++) {
        void *done;
        pthread_join(threads[t], &done);
        launches += (long)done;
    }
    MUST(cuCtxSynchronize());
    for (int d = 0; d < want.devices; d++)
        MUST(cuDevicePrimaryCtxRelease_v2(d));
    printf("devices %d launches %ld\n", count, launches);
    fflush(stdout);
    return want.exit_status;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *value = i + 1 < argc ? argv[i + 1] : "0";
        struct {
            const char *flag;
            int *at, is_number;
        } numbers[] = {{"--steps", &want.steps, 1},         {"--threads", &want.threads, 1},
                       {"--processes", &want.processes, 1}, {"--devices", &want.devices, 1},
                       {"--gap-us", &want.gap_us, 1},       {"--exit", &want.exit_status, 1},
                       {"--progress", &want.progress, 0},   {"--graph", &want.graph, 0},
                       {"--library", &want.library, 0},     {"--unload", &want.unload, 0},
                       {"--async", &want.async, 0}};
        for (size_t k = 0; k < sizeof(numbers) / sizeof(numbers[0]); k++)
            if (!strcmp(a, numbers[k].flag))
                *numbers[k].at = numbers[k].is_number ? atoi(argv[++i]) : 1;
        if (!strcmp(a, "--door"))
            want.door = value, i++;
        else if (!strcmp(a, "--stream"))
            want.stream = value, i++;
    }
    find_driver();
    for (int p = 1; p < want.processes; p++) {
        pid_t child = fork();
        if (child == 0)
            exit(run());
    }
    int status = run(), child_status;
    while (wait(&child_status) > 0)
        if (child_status)
            status = 9;
    return status;
}
