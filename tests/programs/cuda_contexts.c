/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_contexts - contexts and streams that come and go, on the CUDA driver API alone. Knows nothing of
 * kjoule. It prints how many kernels it launched.
 *
 *     cuda_contexts CASE [COUNT]     the cases are listed at the end
 */
#include "driver.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

static void (*switch_unseen)(handle context); /* of the simulated driver */

static atomic_long launched;
static const int devices = 2;

/* A kernel of the current context: one name for each device, so that a launch in the wrong place shows. */
static handle kernel(int device)
{
    handle module, function;
    MUST(cuModuleLoadData(&module, "image"));
    MUST(cuModuleGetFunction(&function, module, device ? "on_second" : "on_first"));
    return function;
}

static void launch(handle function, handle stream, int count)
{
    for (int i = 0; i < count; i++)
        MUST(cuLaunchKernel(function, 8, 1, 1, 128, 1, 1, 0, stream, NULL, NULL));
    atomic_fetch_add(&launched, count);
}

static handle primary(int device)
{
    handle context;
    MUST(cuDevicePrimaryCtxRetain(&context, device));
    MUST(cuCtxSetCurrent(context));
    return context;
}

static handle created(int device)
{
    handle context;
    MUST(cuCtxCreate_v2(&context, 0, device));
    return context;
}

/* ---- primary contexts are counted
 * ------------------------------------------------------------------------------------------ */

static void retained(long rounds)
{
    handle context = primary(0), function = kernel(0), again;
    for (long i = 0; i < rounds; i++) {
        MUST(cuDevicePrimaryCtxRetain(&again, 0));
        if (again != context)
            _exit(5);
        if (i < 2000)
            launch(function, NULL, 1);
        MUST(cuDevicePrimaryCtxRelease_v2(0));
    }
    launch(function, NULL, 500);
    MUST(cuCtxSynchronize());
    MUST(cuDevicePrimaryCtxRelease_v2(0));
}

/* Ended and begun again by one thread, while others use another device. */
static atomic_bool done;
static void *use_second(void *unused)
{
    (void)unused;
    primary(1);
    handle function = kernel(1);
    while (!atomic_load(&done)) {
        launch(function, NULL, 20);
        MUST(cuCtxSynchronize());
    }
    return NULL;
}
static void renewed(long rounds)
{
    pthread_t other;
    pthread_create(&other, NULL, use_second, NULL);
    for (long i = 0; i < rounds; i++) {
        primary(0);
        handle function = kernel(0);
        launch(function, NULL, 10);
        MUST(cuCtxSynchronize());
        if (i % 2)
            MUST(cuDevicePrimaryCtxReset_v2(0)); /* ends it, and keeps the reference */
        MUST(cuDevicePrimaryCtxRelease_v2(0));
    }
    atomic_store(&done, true);
    pthread_join(other, NULL);
}

/* References come and go in one thread while another one launches all the time. */
static void *use_first(void *context)
{
    MUST(cuCtxSetCurrent(context));
    handle function = kernel(0);
    for (int i = 0; !atomic_load(&done); i++) {
        launch(function, NULL, 1);
        if (i % 100 == 99)
            MUST(cuCtxSynchronize());
    }
    return NULL;
}
static void referenced(long rounds)
{
    pthread_t users[2];
    handle context, again;
    MUST(cuDevicePrimaryCtxRetain(&context, 0));
    for (int t = 0; t < 2; t++)
        pthread_create(&users[t], NULL, use_first, context);
    for (long i = 0; i < rounds; i++) {
        MUST(cuDevicePrimaryCtxRetain(&again, 0));
        MUST(cuDevicePrimaryCtxRelease_v2(0));
    }
    atomic_store(&done, true);
    for (int t = 0; t < 2; t++)
        pthread_join(users[t], NULL);
}

/* ---- others
 * ------------------------------------------------------------------------------------------------------------------
 */

static void attached(long rounds)
{
    handle context = created(0), function = kernel(0), same;
    for (long i = 0; i < rounds; i++) {
        MUST(cuCtxAttach(&same, 0));
        launch(function, NULL, 1);
        MUST(cuCtxDetach(context));
    }
    launch(function, NULL, 500);
    MUST(cuCtxSynchronize());
    MUST(cuCtxDetach(context));
}

/* Another one than the current is destroyed. */
static void destroyed(long rounds)
{
    primary(0);
    handle function = kernel(0);
    for (long i = 0; i < rounds; i++) {
        handle other = created(1), there = kernel(1);
        launch(there, NULL, 1);
        MUST(cuCtxSynchronize());
        MUST(cuCtxPopCurrent_v2(&other));
        launch(function, NULL, 1);
        MUST(cuCtxDestroy_v2(other));
        launch(function, NULL, 1);
    }
    MUST(cuCtxSynchronize());
}

/* One after the other: what a context took is another one's. */
static void one_by_one(long rounds)
{
    for (long i = 0; i < rounds; i++) {
        int device = (int)(i % devices);
        handle context = created(device), function = kernel(device), stream;
        MUST(cuStreamCreate(&stream, 1));
        launch(function, stream, 2);
        launch(function, NULL, 1);
        if (i % 3)
            MUST(cuStreamDestroy_v2(stream));
        MUST(cuCtxSynchronize());
        MUST(cuCtxDestroy_v2(context));
    }
}

/* All at the same time. */
static void at_once(long count)
{
    handle contexts[200], functions[200];
    for (long i = 0; i < count; i++) {
        contexts[i] = created((int)(i % devices));
        functions[i] = kernel((int)(i % devices));
        MUST(cuCtxPopCurrent_v2(&contexts[i]));
    }
    for (int round = 0; round < 10; round++)
        for (long i = 0; i < count; i++) {
            MUST(cuCtxPushCurrent_v2(contexts[i]));
            launch(functions[i], NULL, 1);
            MUST(cuCtxSynchronize());
            MUST(cuCtxPopCurrent_v2(&contexts[i]));
        }
    for (long i = 0; i < count; i++)
        MUST(cuCtxDestroy_v2(contexts[i]));
}

/* Current in several threads when one destroys it; all go on in the next one. */
static handle shared;
static long shared_rounds;
static pthread_barrier_t barrier;
static void *share(void *number)
{
    for (long i = 0; i < shared_rounds; i++) {
        int device = (int)(i % devices);
        if (!number) {
            shared = created(device);
        }
        pthread_barrier_wait(&barrier);
        MUST(cuCtxSetCurrent(shared));
        handle function = kernel(device);
        launch(function, NULL, 5);
        MUST(cuCtxSynchronize());
        pthread_barrier_wait(&barrier);
        if (!number)
            MUST(cuCtxDestroy_v2(shared));
        pthread_barrier_wait(&barrier);
        if (number && cuLaunchKernel(function, 8, 1, 1, 128, 1, 1, 0, NULL, NULL, NULL) == 0)
            _exit(6); /* the current context is gone */
        if (number)
            MUST(cuCtxSetCurrent(NULL));
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}
static void in_threads(long rounds)
{
    pthread_t threads[3];
    shared_rounds = rounds;
    pthread_barrier_init(&barrier, NULL, 4);
    for (long t = 0; t < 3; t++)
        pthread_create(&threads[t], NULL, share, (void *)(t + 1));
    share(NULL);
    for (int t = 0; t < 3; t++)
        pthread_join(threads[t], NULL);
}

/* Threads that push and pop, each its own way. */
static handle pushed_contexts[2];
static long push_rounds;
static void *push_and_pop(void *unused)
{
    handle functions[2], top;
    (void)unused;
    for (int d = 0; d < devices; d++) {
        MUST(cuCtxPushCurrent_v2(pushed_contexts[d]));
        functions[d] = kernel(d);
        MUST(cuCtxPopCurrent_v2(&top));
    }
    for (long i = 0; i < push_rounds; i++) {
        MUST(cuCtxPushCurrent_v2(pushed_contexts[0]));
        launch(functions[0], NULL, 1);
        MUST(cuCtxPushCurrent_v2(pushed_contexts[1]));
        launch(functions[1], NULL, 2);
        MUST(cuCtxPopCurrent_v2(&top));
        launch(functions[0], NULL, 1);
        if (i % 50 == 0)
            MUST(cuCtxSynchronize());
        MUST(cuCtxPopCurrent_v2(&top));
    }
    return NULL;
}
static void pushed(long rounds)
{
    pthread_t threads[3];
    push_rounds = rounds;
    for (int d = 0; d < devices; d++)
        pushed_contexts[d] = primary(d);
    for (int t = 0; t < 3; t++)
        pthread_create(&threads[t], NULL, push_and_pop, NULL);
    for (int t = 0; t < 3; t++)
        pthread_join(threads[t], NULL);
    for (int d = 0; d < devices; d++) {
        MUST(cuCtxSetCurrent(pushed_contexts[d]));
        MUST(cuCtxSynchronize());
    }
}

/* ---- streams
 * -----------------------------------------------------------------------------------------------------------------
 */

/* Made and destroyed, with work still to do; a handle's next stream is of another device. */
static void streams(long count)
{
    handle contexts[2], functions[2];
    for (int d = 0; d < devices; d++) {
        contexts[d] = primary(d);
        functions[d] = kernel(d);
    }
    for (long i = 0; i < count; i++) {
        int device = (int)(i / 3 % devices);
        handle stream;
        MUST(cuCtxSetCurrent(contexts[device]));
        MUST(i % 2 ? cuStreamCreate(&stream, 1) : cuStreamCreateWithPriority(&stream, 1, -1));
        launch(functions[device], stream, 1);
        if (i % 64 == 0)
            MUST(cuStreamSynchronize(stream));
        MUST(cuStreamDestroy_v2(stream));
    }
    for (int d = 0; d < devices; d++) {
        MUST(cuCtxSetCurrent(contexts[d]));
        MUST(cuCtxSynchronize());
    }
}

/* Many alive, each used now and then, and the default streams between them. */
static void many_streams(long count)
{
    primary(0);
    handle function = kernel(0), *all = calloc((size_t)count, sizeof(*all));
    for (long i = 0; i < count; i++)
        MUST(cuStreamCreate(&all[i], 1));
    for (int round = 0; round < 3; round++)
        for (long i = 0; i < count; i++) {
            launch(function, all[i], 1);
            if (i % 100 == 0) {
                MUST(cuLaunchKernel_ptsz(function, 8, 1, 1, 128, 1, 1, 0, NULL, NULL, NULL));
                atomic_fetch_add(&launched, 1);
                MUST(cuCtxSynchronize());
            }
        }
    MUST(cuCtxSynchronize());
    for (long i = 0; i < count; i++)
        MUST(cuStreamDestroy_v2(all[i]));
}

/* Launched to while another device's context is current. */
static void away(long count)
{
    handle contexts[2], functions[2], on[2];
    for (int d = 0; d < devices; d++) {
        contexts[d] = primary(d);
        functions[d] = kernel(d);
        MUST(cuStreamCreate(&on[d], 1));
    }
    for (long i = 0; i < count; i++) {
        MUST(cuCtxSetCurrent(contexts[i % devices]));
        launch(functions[1], on[1], 1);
        launch(functions[0], on[0], 2);
        if (i % 20 == 19)
            for (int d = 0; d < devices; d++)
                MUST(cuStreamSynchronize(on[d]));
    }
    for (int d = 0; d < devices; d++)
        MUST(cuStreamSynchronize(on[d]));
}

/* Streams of green contexts, with the primary one current, as a framework uses them. */
static void green(long rounds)
{
    unsigned char resource[144];
    handle description, context = primary(0), function = kernel(0);
    MUST(cuDeviceGetDevResource(0, resource, 1));
    MUST(cuDevResourceGenerateDesc(&description, resource, 1));
    for (long i = 0; i < rounds; i++) {
        handle part, on, converted;
        MUST(cuGreenCtxCreate(&part, description, 0, 1));
        MUST(cuGreenCtxStreamCreate(&on, part, 1, 0));
        launch(function, on, 20);
        MUST(cuStreamSynchronize(on));
        launch(function, NULL, 1);
        MUST(cuCtxFromGreenCtx(&converted, part));
        MUST(cuCtxSetCurrent(converted));
        launch(function, NULL, 3);
        MUST(cuCtxSynchronize());
        MUST(cuCtxSetCurrent(context));
        MUST(cuStreamDestroy_v2(on));
        MUST(cuGreenCtxDestroy(part));
    }
    launch(function, NULL, 100);
    MUST(cuCtxSynchronize());
}

/* A green context holds the last reference to the primary one, which ends with it. */
static void green_last(long rounds)
{
    unsigned char resource[144];
    handle description;
    MUST(cuDeviceGetDevResource(0, resource, 1));
    MUST(cuDevResourceGenerateDesc(&description, resource, 1));
    for (long i = 0; i < rounds; i++) {
        handle part, on;
        primary(0);
        handle function = kernel(0);
        launch(function, NULL, 5);
        MUST(cuGreenCtxCreate(&part, description, 0, 1));
        MUST(cuGreenCtxStreamCreate(&on, part, 1, 0));
        MUST(cuDevicePrimaryCtxRelease_v2(0));
        launch(function, NULL, 5);
        if (i % 2) {
            launch(function, on, 5);
            MUST(cuStreamSynchronize(on));
        }
        MUST(cuCtxSynchronize());
        MUST(cuStreamDestroy_v2(on));
        MUST(cuGreenCtxDestroy(part));
    }
}

/* The current context changes by no call that anybody sees. */
static void unseen(long rounds)
{
    handle contexts[2], functions[2];
    for (int d = 0; d < devices; d++) {
        contexts[d] = primary(d);
        functions[d] = kernel(d);
    }
    for (long i = 0; i < rounds; i++) {
        switch_unseen(contexts[i % devices]);
        launch(functions[i % devices], NULL, 1000);
        MUST(cuCtxSynchronize());
    }
}

/* Another stream is being captured when one is met for the first time. */
static void captured(long rounds)
{
    handle contexts[2], function[2], on[2], graph;
    for (int d = 0; d < devices; d++) {
        contexts[d] = primary(d);
        function[d] = kernel(d);
    }
    for (long i = 0; i < rounds; i++) {
        for (int d = 0; d < devices; d++) {
            MUST(cuCtxSetCurrent(contexts[d]));
            MUST(cuStreamCreate(&on[d], 1));
        }
        MUST(cuStreamBeginCapture_v2(on[0], 0));
        MUST(cuLaunchKernel(function[0], 8, 1, 1, 128, 1, 1, 0, on[0], NULL, NULL));
        launch(function[1], on[1], 3);
        MUST(cuStreamEndCapture(on[0], &graph));
        for (int d = 0; d < devices; d++)
            MUST(cuStreamDestroy_v2(on[d]));
    }
    for (int d = 0; d < devices; d++) {
        MUST(cuCtxSetCurrent(contexts[d]));
        MUST(cuCtxSynchronize());
    }
}

static void *default_stream(void *context)
{
    MUST(cuCtxSetCurrent(context));
    handle function = kernel(0);
    MUST(cuLaunchKernel_ptsz(function, 8, 1, 1, 128, 1, 1, 0, NULL, NULL, NULL));
    atomic_fetch_add(&launched, 1);
    MUST(cuCtxSynchronize());
    return NULL;
}
/* Threads one after the other, each on the default stream of its own. */
static void threads(long count)
{
    handle context = primary(0);
    for (long i = 0; i < count; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, default_stream, context);
        pthread_join(thread, NULL);
    }
}

static void misuse(long which)
{
    handle event, stream;
    primary(0);
    MUST(cuEventCreate(&event, 0));
    MUST(cuStreamCreate(&stream, 1));
    if (which == 0)
        MUST(cuEventDestroy_v2(event));
    if (which == 1)
        MUST(cuStreamDestroy_v2(stream));
    if (which == 2)
        MUST(cuDevicePrimaryCtxRelease_v2(0));
    printf("returned %d\n", cuEventRecord(event, stream));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(long count);
        long count;
    } cases[] = {{"retained", retained, 2000},
                 {"renewed", renewed, 40},
                 {"referenced", referenced, 20000},
                 {"attached", attached, 200},
                 {"destroyed", destroyed, 200},
                 {"one_by_one", one_by_one, 300},
                 {"at_once", at_once, 70},
                 {"in_threads", in_threads, 40},
                 {"pushed", pushed, 300},
                 {"streams", streams, 5000},
                 {"many_streams", many_streams, 3000},
                 {"away", away, 300},
                 {"green", green, 20},
                 {"green_last", green_last, 100},
                 {"unseen", unseen, 10},
                 {"captured", captured, 100},
                 {"threads", threads, 200},
                 {"misuse", misuse, 0}};
    switch_unseen = (void (*)(handle))dlsym(driver_find(), "simgpu_context_switch");
    MUST(cuInit(0));
    for (size_t i = 0; argc > 1 && i < sizeof(cases) / sizeof(cases[0]); i++)
        if (!strcmp(argv[1], cases[i].name)) {
            cases[i].run(argc > 2 ? atol(argv[2]) : cases[i].count);
            printf("launches %ld\n", (long)launched);
            return 0;
        }
    return 2;
}
