/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_many - a program of many kernels, many launch shapes, many modules. Knows nothing of kjoule. First
 * every kernel is launched in every shape; then a module is loaded, its kernel launched and the module
 * unloaded, again and again; then kernel 0 is launched once more.
 *
 *     cuda_many [--kernels N] [--shapes N] [--reloads N] [--names N] [--name-bytes N]
 *
 * names: how many names the reloaded kernels have; name-bytes: the length of each, at least.
 */
#include "driver.h"

#include <string.h>

static long launches;

static void launch(handle function, unsigned shape)
{
    MUST(cuLaunchKernel(function, 1 + shape, 1, 1, 32, 1, 1, 0, NULL, NULL, NULL));
    if (++launches % 4096 == 0)
        MUST(cuCtxSynchronize());
}

int main(int argc, char **argv)
{
    int kernels = 1, shapes = 1, reloads = 0, names = 1, name_bytes = 0;
    const struct {
        const char *flag;
        int *at;
    } numbers[] = {{"--kernels", &kernels},
                   {"--shapes", &shapes},
                   {"--reloads", &reloads},
                   {"--names", &names},
                   {"--name-bytes", &name_bytes}};
    for (int i = 1; i + 1 < argc; i += 2)
        for (size_t k = 0; k < sizeof(numbers) / sizeof(numbers[0]); k++)
            if (!strcmp(argv[i], numbers[k].flag))
                *numbers[k].at = atoi(argv[i + 1]);
    if (name_bytes > 8000)
        return 2;
    driver_find();
    handle context, module, function, *functions = malloc(sizeof(*functions) * (size_t)kernels);
    char name[8192];
    MUST(cuInit(0));
    MUST(cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cuCtxSetCurrent(context));
    MUST(cuModuleLoadData(&module, ".version 8.0\n"));
    for (int k = 0; k < kernels; k++) {
        snprintf(name, sizeof(name), "many_%06d", k);
        MUST(cuModuleGetFunction(&functions[k], module, name));
    }
    for (int s = 0; s < shapes; s++)
        for (int k = 0; k < kernels; k++)
            launch(functions[k], (unsigned)s);
    for (int i = 0; i < reloads; i++) {
        handle reloaded;
        int length = snprintf(name, sizeof(name), "reloaded_%06d_", i % names);
        for (; length < name_bytes; length++)
            name[length] = 'x';
        name[length] = 0;
        MUST(cuModuleLoadData(&reloaded, ".version 8.0\n"));
        MUST(cuModuleGetFunction(&function, reloaded, name));
        launch(function, 0);
        MUST(cuModuleUnload(reloaded));
    }
    launch(functions[0], 0);
    MUST(cuCtxSynchronize());
    printf("launches %ld\n", launches);
    return 0;
}
