/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_rhythm - launches kernels at a rhythm of its own, so that a stream is idle at each launch, or never,
 * and copies behind them. Knows nothing of kjoule.
 *
 *     cuda_rhythm [--launches N] [--batch N] [--gap-us US] [--threads N] [--hiccups] [--held-us US]
 *                 [--graph N] [--rest-ms MS] [--stream own|legacy|per-thread] [--copy KIND]
 *
 * Kernels are called rhythm_0, rhythm_1, ... one a thread; all threads use one stream. After --batch launches
 * a thread makes its copy and waits for the stream, but behind a copy that waits by itself.
 * --gap-us   spins so long after each launch
 * --hiccups  every 1.7 ms a signal holds up the main thread, wherever it is
 * --held-us  for so long: 400 without it
 * --copy     dtoh, htod, big, pinned, dtod, memset, 2d, dtoh-lane, async; without it there is none
 * --rest-ms  does nothing for so long before the first launch and after the last one
 * --graph    each launch is of a graph of so many kernels
 */
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

typedef struct handle *handle;
typedef unsigned long long address;

struct copy_2d {
    size_t from_x, from_y;
    unsigned from_type;
    const void *from_host;
    address from_device;
    handle from_array;
    size_t from_pitch, to_x, to_y;
    unsigned to_type;
    void *to_host;
    address to_device;
    handle to_array;
    size_t to_pitch, width, height;
};

#define FUNCTIONS(X)                                                                                         \
    X(cuInit, (unsigned flags))                                                                              \
    X(cuDevicePrimaryCtxRetain, (handle * context, int device))                                              \
    X(cuCtxSetCurrent, (handle context))                                                                     \
    X(cuCtxSynchronize, (void))                                                                              \
    X(cuModuleLoadData, (handle * module, const void *image))                                                \
    X(cuModuleGetFunction, (handle * function, handle module, const char *name))                             \
    X(cuStreamCreate, (handle * stream, unsigned flags))                                                     \
    X(cuStreamSynchronize, (handle stream))                                                                  \
    X(cuStreamBeginCapture_v2, (handle stream, int mode))                                                    \
    X(cuStreamEndCapture, (handle stream, handle * graph))                                                   \
    X(cuGraphInstantiateWithFlags, (handle * exec, handle graph, address flags))                             \
    X(cuGraphLaunch, (handle exec, handle stream))                                                           \
    X(cuMemAlloc_v2, (address * at, size_t bytes))                                                           \
    X(cuMemAllocHost_v2, (void **at, size_t bytes))                                                          \
    X(cuMemcpyDtoH_v2, (void *to, address from, size_t bytes))                                               \
    X(cuMemcpyDtoH_v2_ptds, (void *to, address from, size_t bytes))                                          \
    X(cuMemcpyHtoD_v2, (address to, const void *from, size_t bytes))                                         \
    X(cuMemcpyDtoD_v2, (address to, address from, size_t bytes))                                             \
    X(cuMemcpyDtoHAsync_v2, (void *to, address from, size_t bytes, handle stream))                           \
    X(cuMemsetD8_v2, (address to, unsigned char value, size_t bytes))                                        \
    X(cuMemcpy2D_v2, (const struct copy_2d *copy))                                                           \
    X(cuLaunchKernel, (handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,     \
                       unsigned bz, unsigned shared, handle stream, void **arguments, void **extra))
#define X(symbol, parameters) static int(*symbol) parameters;
FUNCTIONS(X)
#undef X

enum { THREADS_CAP = 16, BYTES = 1 << 20 };
static struct {
    int launches, batch, gap_us, threads, hiccups, held_us, graph, rest_ms;
    const char *stream, *copy;
} want = {.launches = 1000, .batch = 100, .threads = 1, .held_us = 400, .stream = "own", .copy = "none"};
static handle context, stream, functions[THREADS_CAP], exec;
static address device[2];
static char pageable[BYTES], *pinned;

static void must(int rc, const char *what)
{
    if (rc) {
        fprintf(stderr, "cuda_rhythm: %s returned %d\n", what, rc);
        exit(3);
    }
}

static void spin(int us)
{
    struct timespec now, end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_nsec += us * 1000L;
    end.tv_sec += end.tv_nsec / 1000000000, end.tv_nsec %= 1000000000;
    do
        clock_gettime(CLOCK_MONOTONIC, &now);
    while (now.tv_sec < end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec));
}

static void hold_up(int signal_)
{
    (void)signal_;
    spin(want.held_us);
}

/* Returns whether it has waited for all before it. */
static int copy(void)
{
    const char *kind = want.copy;
    struct copy_2d two = {.from_type = 2,
                          .from_device = device[0],
                          .from_pitch = 64,
                          .to_type = 1,
                          .to_host = pageable,
                          .to_pitch = 64,
                          .width = 64,
                          .height = 64};
    if (!strcmp(kind, "dtoh"))
        return must(cuMemcpyDtoH_v2(pageable, device[0], 4), kind), 1;
    if (!strcmp(kind, "dtoh-lane"))
        return must(cuMemcpyDtoH_v2_ptds(pageable, device[0], 4), kind), 0;
    if (!strcmp(kind, "2d"))
        return must(cuMemcpy2D_v2(&two), kind), 1;
    if (!strcmp(kind, "htod"))
        must(cuMemcpyHtoD_v2(device[0], pageable, 4096), kind);
    else if (!strcmp(kind, "big"))
        must(cuMemcpyHtoD_v2(device[0], pageable, BYTES), kind);
    else if (!strcmp(kind, "pinned"))
        must(cuMemcpyHtoD_v2(device[0], pinned, 4096), kind);
    else if (!strcmp(kind, "dtod"))
        must(cuMemcpyDtoD_v2(device[0], device[1], BYTES), kind);
    else if (!strcmp(kind, "memset"))
        must(cuMemsetD8_v2(device[0], 1, BYTES), kind);
    else if (!strcmp(kind, "async"))
        must(cuMemcpyDtoHAsync_v2(pinned, device[0], BYTES, stream), kind);
    return 0;
}

static void launch(long worker)
{
    if (exec)
        must(cuGraphLaunch(exec, stream), "cuGraphLaunch");
    else
        must(cuLaunchKernel(functions[worker], 1, 1, 1, 32, 1, 1, 0, stream, NULL, NULL), "cuLaunchKernel");
}

static void *work(void *argument)
{
    long worker = (long)argument;
    must(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    for (int i = 1; i <= want.launches; i++) {
        launch(worker);
        if (want.gap_us)
            spin(want.gap_us);
        if (i % want.batch == 0 && !copy())
            must(cuStreamSynchronize(stream), "cuStreamSynchronize");
    }
    return NULL;
}

static void load(void)
{
    char image[4096], name[32];
    int at = snprintf(image, sizeof(image), ".version 8.0\n.target sm_80\n.address_size 64\n");
    handle module;
    for (int i = 0; i < want.threads; i++)
        at += snprintf(image + at, sizeof(image) - (size_t)at, ".visible .entry rhythm_%d() { ret; }\n", i);
    must(cuModuleLoadData(&module, image), "cuModuleLoadData");
    for (int i = 0; i < want.threads; i++) {
        snprintf(name, sizeof(name), "rhythm_%d", i);
        must(cuModuleGetFunction(&functions[i], module, name), "cuModuleGetFunction");
    }
}

static void capture(void)
{
    handle graph;
    must(cuStreamBeginCapture_v2(stream, 0), "cuStreamBeginCapture_v2");
    for (int i = 0; i < want.graph; i++)
        launch(0);
    must(cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
    must(cuGraphInstantiateWithFlags(&exec, graph, 0), "cuGraphInstantiateWithFlags");
}

static void read_arguments(int argc, char **argv)
{
    struct {
        const char *name;
        int *to;
    } numbers[] = {{"--launches", &want.launches}, {"--batch", &want.batch},     {"--gap-us", &want.gap_us},
                   {"--threads", &want.threads},   {"--hiccups", &want.hiccups}, {"--graph", &want.graph},
                   {"--rest-ms", &want.rest_ms},   {"--held-us", &want.held_us}};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "0";
        for (size_t k = 0; k < sizeof(numbers) / sizeof(*numbers); k++)
            if (!strcmp(argv[i], numbers[k].name))
                *numbers[k].to = numbers[k].to == &want.hiccups ? 1 : atoi(value);
        if (!strcmp(argv[i], "--stream"))
            want.stream = value;
        else if (!strcmp(argv[i], "--copy"))
            want.copy = value;
    }
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS_CAP];
    read_arguments(argc, argv);
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library || want.threads < 1 || want.threads > THREADS_CAP || want.batch < 1)
        return library ? 2 : 4;
#define X(symbol, parameters) *(void **)&symbol = dlsym(library, #symbol);
    FUNCTIONS(X)
#undef X
    must(cuInit(0), "cuInit");
    must(cuDevicePrimaryCtxRetain(&context, 0), "cuDevicePrimaryCtxRetain");
    must(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    if (!strcmp(want.stream, "own"))
        must(cuStreamCreate(&stream, 0), "cuStreamCreate");
    else
        stream = (handle)(uintptr_t)(!strcmp(want.stream, "legacy") ? 1 : 2);
    load();
    for (int i = 0; i < 2; i++)
        must(cuMemAlloc_v2(&device[i], BYTES), "cuMemAlloc_v2");
    must(cuMemAllocHost_v2((void **)&pinned, BYTES), "cuMemAllocHost_v2");
    if (want.graph)
        capture();
    usleep((unsigned)want.rest_ms * 1000);
    if (want.hiccups) {
        const struct itimerval every = {{0, 1700}, {0, 1700}};
        signal(SIGALRM, hold_up);
        setitimer(ITIMER_REAL, &every, NULL);
    }
    for (long t = 1; t < want.threads; t++)
        pthread_create(&threads[t], NULL, work, (void *)t);
    work(NULL);
    for (int t = 1; t < want.threads; t++)
        pthread_join(threads[t], NULL);
    must(cuCtxSynchronize(), "cuCtxSynchronize");
    usleep((unsigned)want.rest_ms * 1000);
    return 0;
}
