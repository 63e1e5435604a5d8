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
#include "driver.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

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

enum { THREADS_CAP = 16, BYTES = 1 << 20 };
static struct {
    int launches, batch, gap_us, threads, hiccups, held_us, graph, rest_ms;
    const char *stream, *copy;
} want = {.launches = 1000, .batch = 100, .threads = 1, .held_us = 400, .stream = "own", .copy = "none"};
static handle context, stream, functions[THREADS_CAP], exec;
static address device[2];
static char pageable[BYTES], *pinned;

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
    if (!strcmp(kind, "dtoh")) {
        MUST(cuMemcpyDtoH_v2(pageable, device[0], 4));
        return 1;
    }
    if (!strcmp(kind, "dtoh-lane")) {
        MUST(cuMemcpyDtoH_v2_ptds(pageable, device[0], 4));
        return 0;
    }
    if (!strcmp(kind, "2d")) {
        MUST(cuMemcpy2D_v2(&two));
        return 1;
    }
    if (!strcmp(kind, "htod"))
        MUST(cuMemcpyHtoD_v2(device[0], pageable, 4096));
    else if (!strcmp(kind, "big"))
        MUST(cuMemcpyHtoD_v2(device[0], pageable, BYTES));
    else if (!strcmp(kind, "pinned"))
        MUST(cuMemcpyHtoD_v2(device[0], pinned, 4096));
    else if (!strcmp(kind, "dtod"))
        MUST(cuMemcpyDtoD_v2(device[0], device[1], BYTES));
    else if (!strcmp(kind, "memset"))
        MUST(cuMemsetD8_v2(device[0], 1, BYTES));
    else if (!strcmp(kind, "async"))
        MUST(cuMemcpyDtoHAsync_v2(pinned, device[0], BYTES, stream));
    return 0;
}

static void launch(long worker)
{
    if (exec)
        MUST(cuGraphLaunch(exec, stream));
    else
        MUST(cuLaunchKernel(functions[worker], 1, 1, 1, 32, 1, 1, 0, stream, NULL, NULL));
}

static void *work(void *argument)
{
    long worker = (long)argument;
    MUST(cuCtxSetCurrent(context));
    for (int i = 1; i <= want.launches; i++) {
        launch(worker);
        if (want.gap_us)
            spin(want.gap_us);
        if (i % want.batch == 0 && !copy())
            MUST(cuStreamSynchronize(stream));
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
    MUST(cuModuleLoadData(&module, image));
    for (int i = 0; i < want.threads; i++) {
        snprintf(name, sizeof(name), "rhythm_%d", i);
        MUST(cuModuleGetFunction(&functions[i], module, name));
    }
}

static void capture(void)
{
    handle graph;
    MUST(cuStreamBeginCapture_v2(stream, 0));
    for (int i = 0; i < want.graph; i++)
        launch(0);
    MUST(cuStreamEndCapture(stream, &graph));
    MUST(cuGraphInstantiateWithFlags(&exec, graph, 0));
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
    if (want.threads < 1 || want.threads > THREADS_CAP || want.batch < 1)
        return 2;
    driver_find();
    MUST(cuInit(0));
    MUST(cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cuCtxSetCurrent(context));
    if (!strcmp(want.stream, "own"))
        MUST(cuStreamCreate(&stream, 0));
    else
        stream = (handle)(uintptr_t)(!strcmp(want.stream, "legacy") ? 1 : 2);
    load();
    for (int i = 0; i < 2; i++)
        MUST(cuMemAlloc_v2(&device[i], BYTES));
    MUST(cuMemAllocHost_v2((void **)&pinned, BYTES));
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
    MUST(cuCtxSynchronize());
    usleep((unsigned)want.rest_ms * 1000);
    return 0;
}
