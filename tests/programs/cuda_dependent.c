/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_dependent - rounds of three kernels on one stream: `ahead`, `follower`, a programmatic dependent
 * launch that may begin before `ahead` has ended, and `apart`, which waits for both. Knows nothing of kjoule.
 *
 *     cuda_dependent [--rounds N] [--sync N]     a wait after so many rounds
 */
#include "driver.h"

#include <string.h>

enum { PROGRAMMATIC_STREAM_SERIALIZATION = 6 };

int main(int argc, char **argv)
{
    int rounds = 50, sync = 1 << 30;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--rounds"))
            rounds = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--sync"))
            sync = atoi(argv[i + 1]);
    }
    driver_find();
    static const char *const names[] = {"ahead", "follower", "apart"};
    handle context, module, kernels[3];
    struct launch_attribute attribute = {.id = PROGRAMMATIC_STREAM_SERIALIZATION, .number = 1};
    struct launch_config config = {
        .grid = {64, 1, 1}, .block = {128, 1, 1}, .attributes = &attribute, .attribute_count = 1};
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
