/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_training - a training as PyTorch's launches look to the driver: batches copied, forward passes by the
 * main thread, backward passes by a thread named pt_autograd_0, clipping, an optimizer, collectives,
 * evaluations now and then. Knows nothing of kjoule. To a simulated driver it tells what each launch is for
 * (simgpu_mark), so that a test knows the joules of each phase.
 *
 *     cuda_training [--steps N] [--every N] [--layers N] [--batches N] [--accumulate N] [--copy-kib N]
 *                   [--loop] [--plain] [--ranges] [--graph] [--no-copy] [--sync] [--devices N]
 *
 * --every     steps between two evaluations, of --batches forward passes each; one more at the end
 * --loop      the optimizer is small kernels whose names tell nothing, as PyTorch's with foreach=False
 * --plain     forward passes alone, and no training
 * --ranges    NVTX ranges "forward", "Optimizer.step" ... by a backward pass of the main thread, whose
 * kernels' names tell nothing: nothing but the ranges does
 * --graph     each step is one CUDA graph, captured once
 */
#include "driver.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#if defined(__has_include)
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define HAS_NVTX 1
#endif
#endif

static void (*mark)(const char *);

/* id, name as the driver hears it */
#define KERNELS(X)                                                                                           \
    X(LAYER, "layer_kernel")                                                                                 \
    X(POINTWISE, "vectorized_elementwise_kernel")                                                            \
    X(GRADIENT, "gradient_kernel")                                                                           \
    X(NORM, "clip_norm_kernel")                                                                              \
    X(UPDATE, "_ZN2at6native25multi_tensor_apply_kernel_AdamFunctor")                                        \
    X(SMALL_UPDATE, "addcdiv_kernel")                                                                        \
    X(REDUCE, "ncclDevKernel_AllReduce_Sum_f32_RING_LL")
enum kernel {
#define X(id, name) id,
    KERNELS(X)
#undef X
        KERNEL_COUNT
};
static const char *const names[] = {
#define X(id, name) name,
    KERNELS(X)
#undef X
};

static struct {
    int steps, every, layers, batches, accumulate, copy_kib, loop, plain, ranges, graph, no_copy, sync,
        devices;
} want = {
    .steps = 10, .every = 4, .layers = 6, .batches = 2, .accumulate = 1, .copy_kib = 4096, .devices = 1};

static int device_now;
static struct device {
    handle context, functions[KERNEL_COUNT], stream;
    address memory;
} devices[8];
static unsigned char *batch;
static bool captures;

static void is_for(const char *phase)
{
    if (mark)
        mark(phase);
}

static void range(const char *name)
{
#ifdef HAS_NVTX
    if (want.ranges && name)
        nvtxRangePushA(name);
    else if (want.ranges)
        nvtxRangePop();
#else
    (void)name;
#endif
}

/* As a program does that times its phases. */
static void wait_here(void)
{
    if (want.sync && !captures)
        MUST(cuStreamSynchronize(devices[device_now].stream));
}

static void run(enum kernel kernel, unsigned blocks)
{
    struct device *d = &devices[device_now];
    MUST(cuLaunchKernel(d->functions[kernel], blocks, 1, 1, 256, 1, 1, 0, d->stream, NULL, NULL));
}

static void copy_batch(void)
{
    struct device *d = &devices[device_now];
    is_for("data");
    if (want.no_copy)
        return;
    MUST(cuMemcpyHtoDAsync_v2(d->memory, batch, (size_t)want.copy_kib << 10, d->stream));
    MUST(cuStreamSynchronize(d->stream)); /* as a copy from pageable memory */
}

static void forward(const char *phase)
{
    is_for(phase);
    range(!strcmp(phase, "evaluation") ? "Validation #1" : "forward");
    for (int i = 0; i < want.layers; i++) {
        run(LAYER, 128);
        run(POINTWISE, 64);
    }
    range(NULL);
    wait_here();
}

static void backward_here(void)
{
    MUST(cuCtxSetCurrent(devices[device_now].context));
    is_for("backward");
    range("backward");
    for (int i = 0; i < want.layers; i++) {
        run(GRADIENT, 128);
        run(POINTWISE, 64);
    }
    range(NULL);
    is_for("communication");
    if (!want.ranges)
        run(REDUCE, 32);
    wait_here();
}

/* ---- the autograd engine's thread: waits for a backward pass, runs it, waits
 * --------------------------------------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool asked, ended;

static void *engine(void *unused)
{
    (void)unused;
    prctl(PR_SET_NAME, "pt_autograd_0");
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!asked && !ended)
            pthread_cond_wait(&changed, &lock);
        if (ended)
            break;
        backward_here();
        asked = false;
        pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void backward(void)
{
    if (want.ranges) {
        backward_here();
        return;
    }
    pthread_mutex_lock(&lock);
    asked = true;
    pthread_cond_broadcast(&changed);
    while (asked)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

static void optimizer(void)
{
    is_for("optimizer");
    range("Optimizer.step#AdamW.step");
    if (!want.loop && !want.graph)
        run(NORM, 32);
    for (int i = 0; i < 4; i++)
        run(want.loop || want.ranges ? SMALL_UPDATE : UPDATE, 256);
    range(NULL);
    wait_here();
}

static void step(void)
{
    for (int i = 0; i < want.accumulate; i++) {
        if (!captures)
            copy_batch();
        forward(want.plain ? "unattributed" : "forward");
        if (!want.plain)
            backward();
    }
    if (!want.plain)
        optimizer();
}

static void evaluate(void)
{
    for (int i = 0; i < want.batches; i++) {
        copy_batch();
        forward("evaluation");
    }
}

static handle capture_step(void)
{
    handle graph, exec, stream = devices[0].stream;
    MUST(cuStreamBeginCapture_v2(stream, 2));
    step();
    MUST(cuStreamEndCapture(stream, &graph));
    MUST(cuGraphInstantiateWithFlags(&exec, graph, 0));
    return exec;
}

static void train(void)
{
    handle exec = NULL;
    if (want.graph) { /* a capture wants a warm-up before it */
        for (int i = 0; i < 2; i++)
            step();
        MUST(cuStreamSynchronize(devices[0].stream));
        captures = true;
        exec = capture_step();
        captures = false;
    }
    for (int s = 0; s < want.steps; s++) {
        for (device_now = 0; device_now < want.devices; device_now++) {
            MUST(cuCtxSetCurrent(devices[device_now].context));
            if (exec) {
                copy_batch();
                MUST(cuGraphLaunch(exec, devices[0].stream));
            } else {
                step();
            }
        }
        device_now = 0;
        MUST(cuCtxSetCurrent(devices[0].context));
        if (want.every && (s + 1) % want.every == 0 && !want.plain)
            evaluate();
        for (int d = want.devices - 1; d >= 0; d--) {
            MUST(cuCtxSetCurrent(devices[d].context));
            MUST(cuStreamSynchronize(devices[d].stream));
        }
    }
}

static void load(int d)
{
    char image[4096] = ".version 8.0\n.target sm_80\n.address_size 64\n";
    handle module;
    for (int k = 0; k < KERNEL_COUNT; k++)
        snprintf(image + strlen(image), sizeof(image) - strlen(image), ".visible .entry %s()\n{\n ret;\n}\n",
                 names[k]);
    MUST(cuDevicePrimaryCtxRetain(&devices[d].context, d));
    MUST(cuCtxSetCurrent(devices[d].context));
    MUST(cuModuleLoadData(&module, image));
    for (int k = 0; k < KERNEL_COUNT; k++)
        MUST(cuModuleGetFunction(&devices[d].functions[k], module, names[k]));
    MUST(cuStreamCreate(&devices[d].stream, 1));
    MUST(cuMemAlloc_v2(&devices[d].memory, (size_t)want.copy_kib << 10));
}

static void read_options(int argc, char **argv)
{
    const struct {
        const char *flag;
        int *at, is_number;
    } flags[] = {{"--steps", &want.steps, 1},
                 {"--every", &want.every, 1},
                 {"--layers", &want.layers, 1},
                 {"--batches", &want.batches, 1},
                 {"--accumulate", &want.accumulate, 1},
                 {"--copy-kib", &want.copy_kib, 1},
                 {"--devices", &want.devices, 1},
                 {"--loop", &want.loop, 0},
                 {"--plain", &want.plain, 0},
                 {"--ranges", &want.ranges, 0},
                 {"--graph", &want.graph, 0},
                 {"--no-copy", &want.no_copy, 0},
                 {"--sync", &want.sync, 0}};
    for (int i = 1; i < argc; i++)
        for (size_t k = 0; k < sizeof(flags) / sizeof(flags[0]); k++)
            if (!strcmp(argv[i], flags[k].flag))
                *flags[k].at = flags[k].is_number && i + 1 < argc ? atoi(argv[++i]) : 1;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    read_options(argc, argv);
#ifndef HAS_NVTX
    if (want.ranges) {
        fprintf(stderr, "cuda_training: built without nvtx3/nvToolsExt.h\n");
        return 77;
    }
#endif
    mark = (void (*)(const char *))dlsym(driver_find(), "simgpu_mark");
    batch = calloc((size_t)want.copy_kib, 1024);
    MUST(cuInit(0));
    for (int d = 0; d < want.devices; d++)
        load(d);
    MUST(cuCtxSetCurrent(devices[0].context));
    pthread_create(&thread, NULL, engine, NULL);
    train();
    pthread_mutex_lock(&lock);
    ended = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    pthread_join(thread, NULL);
    MUST(cuCtxSynchronize());
    for (int d = 0; d < want.devices; d++)
        MUST(cuDevicePrimaryCtxRelease_v2(d));
    printf("steps %d\n", want.steps);
    free(batch);
    return 0;
}
