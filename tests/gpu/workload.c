/* SPDX-License-Identifier: Apache-2.0
 *
 * workload - work of known shape for a real card, on the driver API alone: its kernel is PTX that the driver
 * compiles. Knows nothing of kjoule. Prints one JSON object: what it launched, how long it took, and the
 * durations by events of its own.
 *
 *     workload launches COUNT             empty kernels, as fast as they can be launched
 *     workload compute COUNT MS           kernels of about MS milliseconds that fill the card
 *     workload square SECONDS ON_MS OFF_MS   such kernels for ON_MS, then nothing for OFF_MS, again and again
 *     workload end HOW                    a few launches, then an end: return _exit abort reset destroy
 * thread segv
 */
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct handle *handle;

#define FUNCTIONS(X)                                                                                         \
    X(cuInit, (unsigned flags))                                                                              \
    X(cuDevicePrimaryCtxRetain, (handle * context, int device))                                              \
    X(cuDevicePrimaryCtxRelease_v2, (int device))                                                            \
    X(cuDevicePrimaryCtxReset_v2, (int device))                                                              \
    X(cuDeviceGetAttribute, (int *value, int attribute, int device))                                         \
    X(cuCtxSetCurrent, (handle context))                                                                     \
    X(cuCtxSynchronize, (void))                                                                              \
    X(cuModuleLoadData, (handle * module, const void *image))                                                \
    X(cuModuleGetFunction, (handle * function, handle module, const char *name))                             \
    X(cuStreamCreate, (handle * stream, unsigned flags))                                                     \
    X(cuStreamSynchronize, (handle stream))                                                                  \
    X(cuEventCreate, (handle * event, unsigned flags))                                                       \
    X(cuEventRecord, (handle event, handle stream))                                                          \
    X(cuEventElapsedTime, (float *ms, handle start, handle end))                                             \
    X(cuLaunchKernel, (handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,     \
                       unsigned bz, unsigned shared, handle stream, void **arguments, void **extra))
#define X(symbol, parameters) static int(*symbol) parameters;
FUNCTIONS(X)
#undef X

/* `burn` multiplies and adds its argument many times; the branch on the sum keeps the compiler from dropping
 * it. */
static const char image[] = ".version 7.0\n.target sm_70\n.address_size 64\n"
                            ".visible .entry nothing()\n{\n ret;\n}\n"
                            ".visible .entry burn(.param .u32 rounds)\n{\n"
                            " .reg .u32 %n;\n .reg .f32 %a, %b, %c;\n .reg .pred %p;\n"
                            " ld.param.u32 %n, [rounds];\n"
                            " mov.f32 %a, 0f3F800001;\n mov.f32 %b, 0f3F7FFFFF;\n mov.f32 %c, 0f00000000;\n"
                            "again:\n"
                            " fma.rn.f32 %a, %a, %b, %c;\n fma.rn.f32 %b, %b, %a, %c;\n"
                            " fma.rn.f32 %a, %a, %b, %c;\n fma.rn.f32 %b, %b, %a, %c;\n"
                            " sub.u32 %n, %n, 1;\n setp.ne.u32 %p, %n, 0;\n @%p bra again;\n"
                            " setp.eq.f32 %p, %a, 0f7F800000;\n @%p trap;\n ret;\n}\n";
static handle context, stream, nothing, burn, begin, end;
static unsigned blocks;

#define MUST(call)                                                                                           \
    do {                                                                                                     \
        int rc_ = (call);                                                                                    \
        if (rc_) {                                                                                           \
            fprintf(stderr, "workload: %s returned %d\n", #call, rc_);                                       \
            exit(3);                                                                                         \
        }                                                                                                    \
    } while (0)

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void launch_burn(unsigned rounds)
{
    void *arguments[] = {&rounds};
    MUST(cuLaunchKernel(burn, blocks, 1, 1, 256, 1, 1, 0, stream, arguments, NULL));
}

static double timed_burn_ms(unsigned rounds)
{
    float ms;
    MUST(cuEventRecord(begin, stream));
    launch_burn(rounds);
    MUST(cuEventRecord(end, stream));
    MUST(cuStreamSynchronize(stream));
    MUST(cuEventElapsedTime(&ms, begin, end));
    return (double)ms;
}

/* Rounds for a kernel of `ms`; the card warms up meanwhile. */
static unsigned rounds_for(double ms, int *ret_launches)
{
    unsigned rounds = 1000;
    for (*ret_launches = 0; *ret_launches < 30; ++*ret_launches) {
        double took_ms = timed_burn_ms(rounds);
        if (took_ms > ms / 2 && *ret_launches > 10) {
            ++*ret_launches;
            return (unsigned)(rounds * ms / took_ms) + 1;
        }
        double factor = took_ms > 0.001 ? ms / took_ms : 100;
        double next = rounds * (factor > 10 ? 10 : factor < 0.1 ? 0.1 : factor);
        rounds = next < 1 ? 1 : next > 4e9 ? 4000000000u : (unsigned)next;
    }
    return rounds;
}

static void run_launches(int count)
{
    for (int i = 0; i < 1000; i++)
        MUST(cuLaunchKernel(nothing, 1, 1, 1, 32, 1, 1, 0, stream, NULL, NULL));
    MUST(cuStreamSynchronize(stream));
    double start_s = now_s();
    for (int i = 0; i < count; i++)
        MUST(cuLaunchKernel(nothing, 1, 1, 1, 32, 1, 1, 0, stream, NULL, NULL));
    MUST(cuStreamSynchronize(stream));
    printf("{\"seconds\": %.6f, \"launches\": {\"nothing\": %d}}\n", now_s() - start_s, count + 1000);
}

static void run_compute(int count, double ms)
{
    int first;
    unsigned rounds = rounds_for(ms, &first);
    double start_s = now_s(), own_ms = 0;
    for (int i = 0; i < count; i++)
        own_ms += timed_burn_ms(rounds);
    printf("{\"seconds\": %.6f, \"launches\": {\"burn\": %d}, \"events_ms\": %.6f}\n", now_s() - start_s,
           count + first, own_ms);
}

static void run_square(double seconds, double on_ms, double off_ms)
{
    int first, count = 0;
    unsigned rounds = rounds_for(on_ms, &first);
    double start_s = now_s();
    struct timespec off = {(time_t)(off_ms / 1000), (long)((off_ms - 1000 * (int)(off_ms / 1000)) * 1e6)};
    fprintf(stderr, "begin %.6f\n", start_s);
    for (; now_s() - start_s < seconds; count++) {
        double on_s = now_s();
        launch_burn(rounds);
        MUST(cuStreamSynchronize(stream));
        fprintf(stderr, "%.6f,%.6f\n", on_s, now_s());
        nanosleep(&off, NULL);
    }
    printf("{\"seconds\": %.6f, \"launches\": {\"burn\": %d}}\n", now_s() - start_s, count + first);
}

static void *end_in_thread(void *unused)
{
    (void)unused;
    MUST(cuCtxSetCurrent(context));
    launch_burn(10);
    exit(5);
}

static int run_end(const char *how)
{
    for (int i = 0; i < 100; i++)
        launch_burn(100);
    printf("{\"launches\": {\"burn\": 100}}\n");
    fflush(stdout);
    pthread_t thread;
    if (!strcmp(how, "_exit"))
        _exit(4);
    if (!strcmp(how, "abort"))
        abort();
    if (!strcmp(how, "segv"))
        raise(11);
    if (!strcmp(how, "reset"))
        MUST(cuDevicePrimaryCtxReset_v2(0));
    if (!strcmp(how, "destroy"))
        MUST(cuDevicePrimaryCtxRelease_v2(0));
    if (!strcmp(how, "thread") && !pthread_create(&thread, NULL, end_in_thread, NULL))
        pthread_join(thread, NULL);
    return 6;
}

int main(int argc, char **argv)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (argc < 3 || !library) {
        fprintf(stderr, "workload: %s\n", library ? "launches|compute|square|end?" : dlerror());
        return 2;
    }
#define X(symbol, parameters) *(void **)&symbol = dlsym(library, #symbol);
    FUNCTIONS(X)
#undef X
    handle module;
    int multiprocessors;
    MUST(cuInit(0));
    MUST(cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cuCtxSetCurrent(context));
    MUST(cuDeviceGetAttribute(&multiprocessors, 16, 0));
    blocks = (unsigned)multiprocessors * 8;
    MUST(cuModuleLoadData(&module, image));
    MUST(cuModuleGetFunction(&nothing, module, "nothing"));
    MUST(cuModuleGetFunction(&burn, module, "burn"));
    MUST(cuStreamCreate(&stream, 1));
    MUST(cuEventCreate(&begin, 0));
    MUST(cuEventCreate(&end, 0));
    double a = atof(argv[2]), b = argc > 3 ? atof(argv[3]) : 1, c = argc > 4 ? atof(argv[4]) : 1;
    if (!strcmp(argv[1], "launches"))
        run_launches((int)a);
    else if (!strcmp(argv[1], "compute"))
        run_compute((int)a, b);
    else if (!strcmp(argv[1], "square"))
        run_square(a, b, c);
    else
        return run_end(argv[2]);
    return 0;
}
