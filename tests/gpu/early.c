/* SPDX-License-Identifier: Apache-2.0
 *
 * early - a library whose constructor asks for the driver, as cublasLt's does. Preloaded after another
 * library, its constructor runs before that one's.
 */
#include <dlfcn.h>

__attribute__((constructor)) static void start(void)
{
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY), *found = driver ? dlsym(driver, "cuInit") : 0;
    int (*initialize)(unsigned);
    *(void **)&initialize = found;
    if (initialize)
        initialize(0);
}
