/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_dependent - rounds of three kernels on one stream: `ahead`, `follower`, a programmatic dependent
 * launch that may begin before `ahead` has ended, and `apart`, which waits for both. Knows nothing of kjoule.
 *
 *     cuda_dependent [--rounds N] [--sync N]     a wait after so many rounds
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct handle *handle;

struct attribute {
    int id, pad;
    union {
        char bytes[64];
        int allowed;
    } value;
};
struct config {
    unsigned grid[3], block[3], shared;
    handle stream;
    struct attribute *attributes;
    unsigned count;
};
enum { PROGRAMMATIC_STREAM_SERIALIZATION = 6 };

#define FUNCTIONS(X)                                                                                         \
    X(cuInit, (unsigned flags))                                                                              \
    X(cuDevicePrimaryCtxRetain, (handle * context, int device))                                              \
    X(cuCtxSetCurrent, (handle context))                                                                     \
    X(cuModuleLoadData, (handle * module, const void *image))                                                \
    X(cuModuleGetFunction, (handle * function, handle module, const char *name))                             \
    X(cuStreamCreate, (handle * stream, unsigned flags))                                                     \
    X(cuStreamSynchronize, (handle stream))                                                                  \
    X(cuLaunchKernelEx, (const struct config *config, handle function, void **arguments, void **extra))      \
    X(cuLaunchKernel, (handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,     \
                       unsigned bz, unsigned shared, handle stream, void **arguments, void **extra))

#define X(symbol, parameters) static int(*symbol) parameters;
FUNCTIONS(X)
#undef X

#define MUST(call)                                                                                           \
    do {                                                                                                     \
        int rc_ = (call);                                                                                    \
        if (rc_) {                                                                                           \
            fprintf(stderr, "cuda_dependent: %s returned %d\n", #call, rc_);                                 \
            exit(3);                                                                                         \
        }                                                                                                    \
    } while (0)

int main(int argc, char **argv)
{
    int rounds = 50, sync = 1 << 30;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--rounds"))
            rounds = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--sync"))
            sync = atoi(argv[i + 1]);
    }
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library)
        return 4;
#define X(symbol, parameters) *(void **)&symbol = dlsym(library, #symbol);
    FUNCTIONS(X)
#undef X
    static const char *const names[] = {"ahead", "follower", "apart"};
    handle context, module, kernels[3];
    struct attribute attribute = {.id = PROGRAMMATIC_STREAM_SERIALIZATION, .value = {.allowed = 1}};
    struct config config = {.grid = {64, 1, 1}, .block = {128, 1, 1}, .attributes = &attribute, .count = 1};
    MUST(cuInit(0));
    MUST(cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cuCtxSetCurrent(context));
    MUST(cuModuleLoadData(&module, ".version 8.0\n"));
    for (int k = 0; k < 3; k++)
        MUST(cuModuleGetFunction(&kernels[k], module, names[k]));
    MUST(cuStreamCreate(&config.stream, 1));
    for (int i = 1; i <= rounds; i++) {
        MUST(cuLaunchKernel(kernels[0], 64, 1, 1, 128, 1, 1, 0, config.stream, NULL, NULL));
        MUST(cuLaunchKernelEx(&config, kernels[1], NULL, NULL));
        MUST(cuLaunchKernel(kernels[2], 64, 1, 1, 128, 1, 1, 0, config.stream, NULL, NULL));
        if (i % sync == 0)
            MUST(cuStreamSynchronize(config.stream));
    }
    MUST(cuStreamSynchronize(config.stream));
    return 0;
}
