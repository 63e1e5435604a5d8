/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_beat - a training that keeps time like a clock: steps of the same length to some microseconds, so that
 * a sensor renewed at that pace sees the same part of each, all run long. Something that holds it up shifts
 * all that follows, as in a training whose next step needs the last one's result. Knows nothing of kjoule.
 *
 *     cuda_beat [--steps N] [--step-ms MS] [--work-ms MS] [--kernels N] [--wait stream|context|event|copy]
 *               [--every N] [--ahead] [--thread] [--processes N] [--graph]
 *
 * A step launches kernels beat_0 to beat_<N-1>, which take --work-ms together (the simulated driver's script
 * says how long each), waits for them and goes on with something else for the rest of --step-ms.
 * --every     waits at each so many steps alone; 0: never
 * --ahead     launches the next step before it waits for this one, so that the device never runs dry
 * --thread    trains in a thread of its own, not in the first one
 */
#include "driver.h"

#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { KERNELS_CAP = 64, SPIN_NS = 400000, HELD_UP_NS = 1500000 };

static struct {
    int steps, step_ms, work_ms, kernels, every, ahead, thread, processes, graph;
    const char *wait;
} want = {
    .steps = 100, .step_ms = 100, .work_ms = 90, .kernels = 2, .every = 1, .processes = 1, .wait = "stream"};

static struct {
    handle functions[KERNELS_CAP], stream, exec, events[2];
    address memory;
} at;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* To the microsecond: a sleep ends late. */
static void pass_until(uint64_t t_ns)
{
    uint64_t sleep_ns = t_ns - SPIN_NS;
    const struct timespec t = {(time_t)(sleep_ns / 1000000000u), (long)(sleep_ns % 1000000000u)};
    if (now_ns() < sleep_ns)
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
    while (now_ns() < t_ns)
        ;
}

static void launch_kernels(void)
{
    for (int k = 0; k < want.kernels; k++)
        MUST(cuLaunchKernel(at.functions[k], 64, 1, 1, 256, 1, 1, 0, at.stream, NULL, NULL));
}

static void launch_step(int step)
{
    if (at.exec)
        MUST(cuGraphLaunch(at.exec, at.stream));
    else
        launch_kernels();
    MUST(cuEventRecord(at.events[step % 2], at.stream));
}

static void wait_for(int step)
{
    unsigned char result[64];
    if (!strcmp(want.wait, "event"))
        MUST(cuEventSynchronize(at.events[step % 2]));
    else if (!strcmp(want.wait, "context"))
        MUST(cuCtxSynchronize());
    else if (!strcmp(want.wait, "copy"))
        MUST(cuMemcpyDtoH_v2(result, at.memory, sizeof(result)));
    else
        MUST(cuStreamSynchronize(at.stream));
}

/* A wait that ends when the kernels do leaves the beat as it is; one that ends later moves it for good. */
static uint64_t next_beat(uint64_t beat_ns)
{
    uint64_t step_ns = (uint64_t)want.step_ms * 1000000u, work_ns = (uint64_t)want.work_ms * 1000000u;
    uint64_t ended_ns = now_ns();
    return ended_ns > beat_ns + work_ns + HELD_UP_NS ? ended_ns + step_ns - work_ns : beat_ns + step_ns;
}

static void train(void)
{
    uint64_t beat_ns = now_ns() + 5000000;
    for (int step = 0; step < want.steps; step++) {
        if (want.ahead) {
            launch_step(step);
            if (step && want.every && step % want.every == 0)
                MUST(cuEventSynchronize(at.events[(step + 1) % 2]));
            continue;
        }
        pass_until(beat_ns);
        launch_step(step);
        if (want.every && (step + 1) % want.every == 0) {
            wait_for(step);
            beat_ns = next_beat(beat_ns);
        } else {
            beat_ns += (uint64_t)want.step_ms * 1000000u;
        }
    }
    MUST(cuStreamSynchronize(at.stream));
}

static void load(void)
{
    char image[8192] = ".version 8.0\n.target sm_80\n.address_size 64\n", name[16];
    handle module, graph;
    for (int k = 0; k < want.kernels; k++)
        snprintf(image + strlen(image), sizeof(image) - strlen(image),
                 ".visible .entry beat_%d()\n{\n ret;\n}\n", k);
    MUST(cuModuleLoadData(&module, image));
    for (int k = 0; k < want.kernels; k++) {
        snprintf(name, sizeof(name), "beat_%d", k);
        MUST(cuModuleGetFunction(&at.functions[k], module, name));
    }
    MUST(cuStreamCreate(&at.stream, !strcmp(want.wait, "copy") ? 0 : 1)); /* a plain copy waits for 0 */
    MUST(cuMemAlloc_v2(&at.memory, 4096));
    for (int e = 0; e < 2; e++)
        MUST(cuEventCreate(&at.events[e], 2));
    if (!want.graph)
        return;
    MUST(cuStreamBeginCapture_v2(at.stream, 2));
    launch_kernels();
    MUST(cuStreamEndCapture(at.stream, &graph));
    MUST(cuGraphInstantiateWithFlags(&at.exec, graph, 0));
}

static void *run(void *unused)
{
    handle context;
    (void)unused;
    MUST(cuInit(0));
    MUST(cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cuCtxSetCurrent(context));
    load();
    train();
    MUST(cuDevicePrimaryCtxRelease_v2(0));
    return NULL;
}

static void read_options(int argc, char **argv)
{
    const struct {
        const char *flag;
        int *at, is_number;
    } flags[] = {
        {"--steps", &want.steps, 1},     {"--step-ms", &want.step_ms, 1}, {"--work-ms", &want.work_ms, 1},
        {"--kernels", &want.kernels, 1}, {"--every", &want.every, 1},     {"--processes", &want.processes, 1},
        {"--ahead", &want.ahead, 0},     {"--thread", &want.thread, 0},   {"--graph", &want.graph, 0}};
    for (int i = 1; i < argc; i++) {
        for (size_t k = 0; k < sizeof(flags) / sizeof(flags[0]); k++)
            if (!strcmp(argv[i], flags[k].flag))
                *flags[k].at = flags[k].is_number && i + 1 < argc ? atoi(argv[++i]) : 1;
        if (!strcmp(argv[i], "--wait") && i + 1 < argc)
            want.wait = argv[++i];
    }
    want.kernels = want.kernels < 1 ? 1 : want.kernels > KERNELS_CAP ? KERNELS_CAP : want.kernels;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    int child_status, status = 0;
    read_options(argc, argv);
    driver_find();
    for (int p = 1; p < want.processes; p++)
        if (fork() == 0) {
            run(NULL);
            exit(0);
        }
    if (want.thread) {
        pthread_create(&thread, NULL, run, NULL);
        pthread_join(thread, NULL);
    } else {
        run(NULL);
    }
    while (wait(&child_status) > 0)
        status = child_status ? 9 : status;
    printf("steps %d\n", want.steps);
    return status;
}
