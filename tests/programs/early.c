/* SPDX-License-Identifier: Apache-2.0
 *
 * early - a library that uses the driver before main: its constructor runs before a preloaded library's own,
 * as libcublasLt's does. Built twice: early.so looks libcuda up, early_linked.so (-DLINKED) is linked to it.
 *
 * EARLY_DOES, words of: ask (dlsym of cuInit and nothing else), launch (20 kernels), thread (a thread that
 * launches 2,000 and goes on while main begins), object (C++ static objects: the same as launch, from another
 * constructor) EARLY_FLAGS, of its dlopen: lazy, now, global
 */
#include "driver.h"

#include <pthread.h>
#include <string.h>

static pthread_t thread;
static int has_thread;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static handle context, function;

static int does(const char *word)
{
    const char *words = getenv("EARLY_DOES");
    return words && strstr(words, word);
}

static void *driver(void)
{
    const char *flags = getenv("EARLY_FLAGS");
    int lazy = flags && strstr(flags, "lazy"), global = flags && strstr(flags, "global");
    return dlopen("libcuda.so.1", (lazy ? RTLD_LAZY : RTLD_NOW) | (global ? RTLD_GLOBAL : 0));
}

static void need(int rc, const char *what)
{
    if (rc)
        fprintf(stderr, "early: %s: %d\n", what, rc), exit(70);
}

static void begin(void)
{
    handle module;
#ifndef LINKED
    void *libcuda = driver();
    need(!libcuda, "libcuda");
    driver_find_in(libcuda);
#endif
    need(cuInit(0), "cuInit");
    need(cuDevicePrimaryCtxRetain(&context, 0), "cuDevicePrimaryCtxRetain");
    need(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    need(cuModuleLoadData(&module, "image"), "cuModuleLoadData");
    need(cuModuleGetFunction(&function, module, "early_kernel"), "cuModuleGetFunction");
}

void early_launch(int count);
void early_launch(int count)
{
    pthread_once(&once, begin);
    need(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    for (int i = 0; i < count; i++)
        need(cuLaunchKernel(function, 8, 1, 1, 128, 1, 1, 0, NULL, NULL, NULL), "cuLaunchKernel");
}

int early_finish(void);
int early_finish(void)
{
    if (has_thread)
        pthread_join(thread, NULL);
    return cuCtxSynchronize();
}

static void *launch_many(void *unused)
{
    early_launch(2000);
    return unused;
}

__attribute__((constructor(200))) static void as_an_object_does(void)
{
    if (does("object"))
        early_launch(20);
}

__attribute__((constructor)) static void start(void)
{
    if (does("ask")) {
        void *libcuda = driver();
        need(!libcuda || !dlsym(libcuda, "cuInit"), "cuInit");
    }
    if (does("thread"))
        has_thread = !pthread_create(&thread, NULL, launch_many, NULL);
    if (does("launch"))
        early_launch(20);
}
