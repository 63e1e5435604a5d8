/* SPDX-License-Identifier: Apache-2.0
 *
 * wave.c - kernels that fill the GPU with multiplications, about a millisecond each. All of a pulse are
 * launched at once, so that the host cannot tear holes into it, between two events that tell how long it
 * took.
 */
#include "wave.h"

#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct handle *handle;
struct uuid {
    unsigned char bytes[16];
};

#define FUNCTIONS(X)                                                                                         \
    X(cuInit, "cuInit", (unsigned flags))                                                                    \
    X(cuDeviceGetCount, "cuDeviceGetCount", (int *count))                                                    \
    X(cuDeviceGet, "cuDeviceGet", (int *device, int ordinal))                                                \
    X(cuDeviceGetUuid, "cuDeviceGetUuid", (struct uuid * uuid, int device))                                  \
    X(cuDeviceGetAttribute, "cuDeviceGetAttribute", (int *value, int attribute, int device))                 \
    X(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", (handle * context, int device))                  \
    X(cuDevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease_v2", (int device))                               \
    X(cuCtxSetCurrent, "cuCtxSetCurrent", (handle context))                                                  \
    X(cuModuleLoadData, "cuModuleLoadData", (handle * module, const void *image))                            \
    X(cuModuleGetFunction, "cuModuleGetFunction", (handle * function, handle module, const char *name))      \
    X(cuStreamCreate, "cuStreamCreate", (handle * stream, unsigned flags))                                   \
    X(cuStreamSynchronize, "cuStreamSynchronize", (handle stream))                                           \
    X(cuEventCreate, "cuEventCreate", (handle * event, unsigned flags))                                      \
    X(cuEventRecord, "cuEventRecord", (handle event, handle stream))                                         \
    X(cuEventElapsedTime, "cuEventElapsedTime", (float *ms, handle start, handle end))                       \
    X(cuGetErrorString, "cuGetErrorString", (int code, const char **text))                                   \
    X(cuLaunchKernel, "cuLaunchKernel",                                                                      \
      (handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,        \
       unsigned shared, handle stream, void **arguments, void **extra))

struct kj_load {
    void *library;
#define X(name, symbol, parameters) int(*name) parameters;
    FUNCTIONS(X)
#undef X
    bool retained;
    int device;
    handle context, stream, kernel, begin, end;
    unsigned blocks, rounds;
    double kernel_ms;
};

enum {
    ATTRIBUTE_MULTIPROCESSORS = 16,
    ATTRIBUTE_MAJOR = 75,
    ATTRIBUTE_MINOR = 76,
    BLOCKS_EACH = 8,
    THREADS = 256
};
enum { STREAM_NON_BLOCKING = 1, TUNING_ROUNDS = 14, TIMED_KERNELS = 20, LAUNCHES_MOST = 200000 };
#define KERNEL_MS 1.0

/* Multiplies and adds many times; the branch on the sum keeps the compiler from dropping it. Its version and
 * target are printed in, the rest is for every GPU. */
static const char image[] =
    ".version %s\n.target sm_%d\n.address_size 64\n"
    ".visible .entry kjoule_calibrate(.param .u32 rounds)\n{\n"
    " .reg .u32 %%n;\n .reg .f32 %%a, %%b, %%c;\n .reg .pred %%p;\n"
    " ld.param.u32 %%n, [rounds];\n"
    " mov.f32 %%a, 0f3F800001;\n mov.f32 %%b, 0f3F7FFFFF;\n mov.f32 %%c, 0f00000000;\n"
    "again:\n"
    " fma.rn.f32 %%a, %%a, %%b, %%c;\n fma.rn.f32 %%b, %%b, %%a, %%c;\n"
    " fma.rn.f32 %%a, %%a, %%b, %%c;\n fma.rn.f32 %%b, %%b, %%a, %%c;\n"
    " sub.u32 %%n, %%n, 1;\n setp.ne.u32 %%p, %%n, 0;\n @%%p bra again;\n"
    " setp.eq.f32 %%p, %%a, 0f7F800000;\n @%%p trap;\n ret;\n}\n";

static int fail(const struct kj_load *load, const char *what, int code, struct kj_error *error)
{
    const char *text = NULL;
    if (!load->cuGetErrorString || load->cuGetErrorString(code, &text) || !text)
        text = "unknown error";
    kj_error_set(error, "%s: %s (CUDA error %d)", what, text, code);
    return -EIO;
}

static int find_functions(struct kj_load *load, struct kj_error *error)
{
    load->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!load->library) {
        kj_error_set(error, "libcuda.so.1 is not found: this needs NVIDIA's driver (in a container: -e "
                            "NVIDIA_DRIVER_CAPABILITIES=compute,utility)");
        return -ENOENT;
    }
    const char *missing = NULL;
#define X(name, symbol, parameters)                                                                          \
    *(void **)&load->name = dlsym(load->library, symbol);                                                    \
    missing = load->name ? missing : symbol;
    FUNCTIONS(X)
#undef X
    if (missing)
        kj_error_set(error, "libcuda.so.1 has no %s: the driver is too old", missing);
    return missing ? -ENOSYS : 0;
}

static int find_device(struct kj_load *load, const char *uuid, struct kj_error *error)
{
    int count = 0, rc = load->cuInit(0);
    if (rc)
        return fail(load, "the CUDA driver does not start", rc, error);
    if (load->cuDeviceGetCount(&count))
        count = 0;
    for (int i = 0; i < count; i++) {
        struct uuid u;
        char text[64] = "GPU";
        if (load->cuDeviceGet(&load->device, i) || load->cuDeviceGetUuid(&u, load->device))
            continue;
        for (int b = 0, at = 3; b < 16; b++)
            at += snprintf(text + at, sizeof(text) - (size_t)at, "%s%02x",
                           b == 0 || b == 4 || b == 6 || b == 8 || b == 10 ? "-" : "", u.bytes[b]);
        if (!strcasecmp(text, uuid))
            return 0;
    }
    kj_error_set(error, "CUDA shows %d GPUs, and %s is none of them; does CUDA_VISIBLE_DEVICES hide it?",
                 count, uuid);
    return -ENODEV;
}

/* PTX for the oldest GPU of its kind first: the driver compiles it for newer ones. What it no longer takes,
 * it takes for the very GPU that is there. */
static int load_kernel(struct kj_load *load, handle *ret_module)
{
    int major = 0, minor = 0, rc = -1;
    char text[sizeof(image) + 32];
    load->cuDeviceGetAttribute(&major, ATTRIBUTE_MAJOR, load->device);
    load->cuDeviceGetAttribute(&minor, ATTRIBUTE_MINOR, load->device);
    const struct {
        const char *version;
        int target;
    } tries[] = {{"6.0", major >= 7   ? 70
                         : major >= 5 ? 50
                                      : 30},
                 {"7.0", major >= 8 ? 80 : 75},
                 {"7.8", 10 * major + minor},
                 {"8.7", 10 * major + minor}};
    for (size_t i = 0; rc && i < sizeof(tries) / sizeof(tries[0]); i++) {
        snprintf(text, sizeof(text), image, tries[i].version, tries[i].target);
        rc = load->cuModuleLoadData(ret_module, text);
    }
    return rc;
}

static int launch(struct kj_load *load, int count)
{
    void *arguments[] = {&load->rounds};
    int rc = 0;
    for (int i = 0; !rc && i < count; i++)
        rc = load->cuLaunchKernel(load->kernel, load->blocks, 1, 1, THREADS, 1, 1, 0, load->stream, arguments,
                                  NULL);
    return rc;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * KJ_NS_PER_S + (uint64_t)t.tv_nsec;
}

/* Between two events. ret_start_ns: when the first began, as near as the host can tell of an idle GPU. */
static int timed(struct kj_load *load, int count, uint64_t *ret_start_ns, double *ret_ms)
{
    float ms = 0;
    uint64_t before_ns = now_ns();
    int rc = load->cuEventRecord(load->begin, load->stream);
    if (!rc)
        rc = launch(load, 1);
    *ret_start_ns = before_ns + (now_ns() - before_ns) / 2;
    if (!rc)
        rc = launch(load, count - 1);
    if (!rc)
        rc = load->cuEventRecord(load->end, load->stream);
    if (!rc)
        rc = load->cuStreamSynchronize(load->stream);
    if (!rc)
        rc = load->cuEventElapsedTime(&ms, load->begin, load->end);
    *ret_ms = (double)ms;
    return rc;
}

/* Rounds for a kernel of about a millisecond; the clocks go up meanwhile. */
static int tune(struct kj_load *load)
{
    double ms = 0;
    uint64_t start_ns;
    load->rounds = 1000;
    int rc = timed(load, 1, &start_ns, &ms); /* the first is slow */
    for (int i = 0; !rc && i < TUNING_ROUNDS; i++) {
        rc = timed(load, 1, &start_ns, &ms);
        double factor = fmin(fmax(KERNEL_MS / fmax(ms, 1e-3), 0.1), 10);
        if (i > 4 && factor > 0.8 && factor < 1.25)
            break;
        load->rounds = (unsigned)fmin(fmax(load->rounds * factor, 1), 1e9);
    }
    if (!rc)
        rc = timed(load, TIMED_KERNELS, &start_ns, &ms);
    load->kernel_ms = fmax(ms / TIMED_KERNELS, 1e-3);
    return rc;
}

static int start(struct kj_load *load)
{
    handle module;
    int multiprocessors = 1, rc = load->cuDevicePrimaryCtxRetain(&load->context, load->device);
    load->retained = !rc;
    if (!rc)
        rc = load->cuCtxSetCurrent(load->context);
    if (!rc)
        rc = load->cuDeviceGetAttribute(&multiprocessors, ATTRIBUTE_MULTIPROCESSORS, load->device);
    load->blocks = (unsigned)multiprocessors * BLOCKS_EACH;
    if (!rc)
        rc = load_kernel(load, &module);
    if (!rc)
        rc = load->cuModuleGetFunction(&load->kernel, module, "kjoule_calibrate");
    if (!rc)
        rc = load->cuStreamCreate(&load->stream, STREAM_NON_BLOCKING);
    if (!rc)
        rc = load->cuEventCreate(&load->begin, 0);
    if (!rc)
        rc = load->cuEventCreate(&load->end, 0);
    return rc ? rc : tune(load);
}

int kj_load_open(const char *uuid, struct kj_load **ret_load, struct kj_error *error)
{
    struct kj_load *load = calloc(1, sizeof(*load));
    if (!load) {
        kj_error_set(error, "out of memory");
        return -ENOMEM;
    }
    int status = find_functions(load, error);
    if (!status)
        status = find_device(load, uuid, error);
    int rc = status ? 0 : start(load);
    if (rc)
        status = fail(load, "the GPU takes no load", rc, error);
    if (status) {
        kj_load_close(load);
        return status;
    }
    *ret_load = load;
    return 0;
}

struct kj_load *kj_load_close(struct kj_load *load)
{
    if (load && load->retained) /* takes module, stream and events along */
        load->cuDevicePrimaryCtxRelease(load->device);
    free(load); /* the driver stays loaded: it does not like to go */
    return NULL;
}

int kj_load_pulse(struct kj_load *load, double on_ms, struct kj_model_span *ret_span, struct kj_error *error)
{
    double count = fmin(fmax(round(on_ms / load->kernel_ms), 1), LAUNCHES_MOST), ms = 0;
    int rc = timed(load, (int)count, &ret_span->start_ns, &ms);
    ret_span->end_ns = ret_span->start_ns + (uint64_t)(ms * KJ_NS_PER_MS);
    return rc ? fail(load, "the load broke off", rc, error) : 0;
}
