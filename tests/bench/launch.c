/* SPDX-License-Identifier: Apache-2.0
 *
 * launch - what one kernel launch costs the caller, in nanoseconds. Knows nothing of kjoule; run.py runs it
 * bare and wrapped, in turn, and subtracts. Launches go in batches with a synchronise after each: the batch's
 * launches and its synchronise are timed apart, because event pairs are collected at synchronise calls.
 * Prints one line of name=value.
 *
 *     launch [--threads N] [--one-stream | --streams N] [--kernels N] [--shapes N] [--ordered] [--reload]
 *            [--batches N] [--batch N] [--slices]
 *
 * slices: for each line of stdin, the batches twice, the first time untimed; one line of output for each
 * shapes: how many grid sizes, in no order; reload: each launch has a module of its own, loaded before it and
 * unloaded after it, and its time holds both
 */
#include "../programs/driver.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

enum { THREADS_CAP = 64, STREAMS_CAP = 64 };
static int threads = 1, one_stream, streams = 1, kernels = 20, shapes = 1, ordered, reload, batches = 200,
           batch = 256, slices;
static handle context, shared_stream, *functions;
static double *launch_ns, *sync_ns; /* of each batch of each thread, per launch */
static pthread_barrier_t barrier;

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static long resident_kib(void)
{
    long kib = -1;
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof(line), status))
        if (sscanf(line, "VmRSS: %ld", &kib) == 1)
            break;
    if (status)
        fclose(status);
    return kib;
}

/* PTX with every kernel's entry, and the handles in functions. */
static void load(void)
{
    size_t size = 64 + (size_t)kernels * 64, at;
    char *image = malloc(size), name[32];
    handle module;
    at = (size_t)snprintf(image, size, ".version 8.0\n.target sm_80\n.address_size 64\n");
    for (int k = 0; k < kernels; k++)
        at += (size_t)snprintf(image + at, size - at, ".visible .entry bench_%06d() { ret; }\n", k);
    MUST(cuModuleLoadData(&module, image));
    functions = malloc(sizeof(*functions) * (size_t)kernels);
    for (int k = 0; k < kernels; k++) {
        snprintf(name, sizeof(name), "bench_%06d", k);
        MUST(cuModuleGetFunction(&functions[k], module, name));
    }
    free(image);
}

static void launch_reloaded(unsigned number, handle stream)
{
    char name[32];
    handle module, function;
    snprintf(name, sizeof(name), "bench_%06u", number % (unsigned)kernels);
    MUST(cuModuleLoadData(&module, ".version 8.0\n"));
    MUST(cuModuleGetFunction(&function, module, name));
    cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, NULL, NULL);
    MUST(cuModuleUnload(module));
}

static void run_batches(long worker, handle *stream, unsigned *next)
{
    for (int b = 0; b < batches; b++) {
        double start = now_ns();
        for (int i = 0; i < batch; i++) {
            *next = ordered ? *next + 1 : *next * 1103515245u + 12345u;
            unsigned number = ordered ? *next : *next >> 8;
            if (reload) {
                launch_reloaded(number, stream[i % streams]);
                continue;
            }
            handle function = functions[number % (unsigned)kernels];
            cuLaunchKernel(function, 1 + *next / 7 % (unsigned)shapes, 1, 1, 32, 1, 1, 0, stream[i % streams],
                           NULL, NULL);
        }
        double launched = now_ns();
        for (int s = 0; s < streams; s++)
            MUST(cuStreamSynchronize(stream[s]));
        launch_ns[worker * batches + b] = (launched - start) / batch;
        sync_ns[worker * batches + b] = (now_ns() - launched) / batch;
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_medians(int of_threads, double loops_ns, long grown_kib)
{
    size_t count = (size_t)of_threads * (size_t)batches;
    qsort(launch_ns, count, sizeof(double), by_value);
    qsort(sync_ns, count, sizeof(double), by_value);
    printf("launch_ns=%.1f launch_p90_ns=%.1f sync_ns=%.1f launches=%lld loops_s=%.6f grown_kib=%ld\n",
           launch_ns[count / 2], launch_ns[count * 9 / 10], sync_ns[count / 2], (long long)count * batch,
           loops_ns * 1e-9, grown_kib);
    fflush(stdout);
}

static void *work(void *argument)
{
    long worker = (long)argument;
    handle stream[STREAMS_CAP] = {shared_stream};
    unsigned next = (unsigned)worker * 7919u;
    MUST(cuCtxSetCurrent(context));
    for (int s = 0; s < streams && !one_stream; s++)
        MUST(cuStreamCreate(&stream[s], 1));
    for (int k = 0; k < kernels; k++) { /* every kernel's first launch, and a warm pool of events */
        cuLaunchKernel(functions[k], 1, 1, 1, 32, 1, 1, 0, stream[0], NULL, NULL);
        if (k % batch == 0)
            cuStreamSynchronize(stream[0]);
    }
    cuStreamSynchronize(stream[0]);
    pthread_barrier_wait(&barrier);
    for (char line[16]; slices && fgets(line, sizeof(line), stdin);) {
        run_batches(worker, stream, &next);
        double start_ns = now_ns();
        run_batches(worker, stream, &next);
        print_medians(1, now_ns() - start_ns, 0);
    }
    if (!slices)
        run_batches(worker, stream, &next);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t handles[THREADS_CAP];
    int device;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "0";
        if (!strcmp(argv[i], "--one-stream"))
            one_stream = 1;
        else if (!strcmp(argv[i], "--ordered"))
            ordered = 1;
        else if (!strcmp(argv[i], "--reload"))
            reload = 1;
        else if (!strcmp(argv[i], "--slices"))
            slices = 1;
        else if (!strcmp(argv[i], "--shapes"))
            shapes = atoi(value), i++;
        else if (!strcmp(argv[i], "--streams"))
            streams = atoi(value), i++;
        else if (!strcmp(argv[i], "--threads"))
            threads = atoi(value), i++;
        else if (!strcmp(argv[i], "--kernels"))
            kernels = atoi(value), i++;
        else if (!strcmp(argv[i], "--batches"))
            batches = atoi(value), i++;
        else if (!strcmp(argv[i], "--batch"))
            batch = atoi(value), i++;
    }
    if (threads < 1 || threads > (slices ? 1 : THREADS_CAP) || streams < 1 ||
        streams > (one_stream ? 1 : STREAMS_CAP) || kernels < 1 || shapes < 1 || batches < 1 || batch < 1)
        return 2;
    driver_find();
    MUST(cuInit(0));
    MUST(cuDeviceGet(&device, 0));
    MUST(cuDevicePrimaryCtxRetain(&context, device));
    MUST(cuCtxSetCurrent(context));
    MUST(cuStreamCreate(&shared_stream, 1));
    load();
    size_t count = (size_t)threads * (size_t)batches;
    launch_ns = calloc(count, sizeof(double)); /* touched below, before memory is measured */
    sync_ns = calloc(count, sizeof(double));
    memset(launch_ns, 1, count * sizeof(double));
    memset(sync_ns, 1, count * sizeof(double));
    pthread_barrier_init(&barrier, NULL, (unsigned)threads + 1);
    for (long t = 0; t < threads; t++)
        pthread_create(&handles[t], NULL, work, (void *)t);
    pthread_barrier_wait(&barrier);
    long before = resident_kib();
    double loops = now_ns();
    for (int t = 0; t < threads; t++)
        pthread_join(handles[t], NULL);
    loops = now_ns() - loops;
    long after = resident_kib();
    if (!slices)
        print_medians(threads, loops, after - before);
    return 0;
}
