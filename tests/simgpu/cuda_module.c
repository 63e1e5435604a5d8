/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_module.c - modules, libraries, functions. Images are not looked into: a name that is asked for is
 * there.
 */
#include "cuda_sim.h"

#include <stdlib.h>
#include <string.h>

API CUresult cuMemAlloc_v2(CUdeviceptr *ret, size_t size);

struct global {
    void *owner;
    char *name;
    CUdeviceptr at;
    struct global *next;
};
static CUfunction functions; /* all alive, under sim_lock */
enum { SAME = 1 << 16 };
static CUfunction same_hash[SAME]; /* the same ones, by owner and name */
static struct global *globals;
enum { GLOBAL_BYTES = 1 << 16 };

static CUfunction *same_as(const void *owner, const char *name)
{
    uint64_t h = (uintptr_t)owner;
    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 0x100000001b3ULL;
    return &same_hash[(h ^ h >> 32) % SAME];
}

/* Under sim_lock. */
static CUfunction function_make(void *owner, const char *name, bool is_kernel)
{
    CUfunction f = sim_handle_make(SIM_FUNCTION, sizeof(*f)), *first = same_as(owner, name);
    if (!f)
        return NULL;
    f->owner = owner;
    f->name = strdup(name);
    f->is_kernel = is_kernel;
    f->next = functions;
    functions = f;
    f->same = *first;
    *first = f;
    return f;
}

static CUresult function_get(CUfunction *ret, void *owner, const char *name, bool is_kernel)
{
    if (!name || !ret)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim_lock);
    CUfunction f = *same_as(owner, name);
    while (f && (f->owner != owner || f->is_twin || f->is_kernel != is_kernel || strcmp(f->name, name)))
        f = f->same;
    f = f ? f : function_make(owner, name, is_kernel);
    pthread_mutex_unlock(&sim_lock);
    *ret = f;
    return f ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* Not of CUDA: a handle that no public function hands out, as the private tables of a runtime do. */
API CUresult simgpu_unseen(CUfunction *ret, const char *name, int is_kernel);
API CUresult simgpu_unseen(CUfunction *ret, const char *name, int is_kernel)
{
    return function_get(ret, NULL, name, is_kernel);
}

/* Under sim_lock. */
static void forget(void *owner)
{
    for (CUfunction *p = &functions; *p;) {
        CUfunction f = *p;
        if (f->owner == owner) {
            CUfunction *same = same_as(owner, f->name);
            while (*same != f)
                same = &(*same)->same;
            *same = f->same;
            *p = f->next;
            sim_handle_destroy(f);
        } else {
            p = &f->next;
        }
    }
}

static CUmodule modules; /* of contexts, under sim_lock */

/* With the context all its modules go; those of libraries are of no context. */
void sim_modules_end(CUcontext context)
{
    for (CUmodule *p = &modules; *p;) {
        CUmodule module = *p;
        if (module->context != context) {
            p = &module->next;
            continue;
        }
        *p = module->next;
        forget(module);
        sim_handle_destroy(module);
    }
}

static CUresult enumerate(CUfunction *ret, unsigned count, void *owner, unsigned *ret_total)
{
    unsigned total = 0;
    pthread_mutex_lock(&sim_lock);
    for (CUfunction f = functions; f; f = f->next)
        if (f->owner == owner && !f->is_twin) {
            if (ret && total < count)
                ret[total] = f;
            total++;
        }
    pthread_mutex_unlock(&sim_lock);
    if (ret_total)
        *ret_total = total;
    return CUDA_SUCCESS;
}

static CUresult global_get(CUdeviceptr *ret_at, size_t *ret_bytes, void *owner, const char *name)
{
    pthread_mutex_lock(&sim_lock);
    struct global *g = globals;
    while (g && (g->owner != owner || strcmp(g->name, name)))
        g = g->next;
    pthread_mutex_unlock(&sim_lock);
    CUresult rc = CUDA_SUCCESS;
    if (!g && (g = calloc(1, sizeof(*g)))) {
        rc = cuMemAlloc_v2(&g->at, GLOBAL_BYTES);
        g->owner = owner;
        g->name = strdup(name);
        pthread_mutex_lock(&sim_lock);
        g->next = globals;
        globals = g;
        pthread_mutex_unlock(&sim_lock);
    }
    if (ret_at)
        *ret_at = g->at;
    if (ret_bytes)
        *ret_bytes = GLOBAL_BYTES;
    return rc;
}

/* ---- modules
 * ------------------------------------------------------------------------------------------------------ */

API CUresult cuModuleLoadData(CUmodule *ret_module, const void *image)
{
    CALLED(cuModuleLoadData);
    CUresult rc = sim_ready();
    if (rc)
        return rc;
    if (!image || !ret_module)
        return CUDA_ERROR_INVALID_VALUE;
    rc = sim_current_rc();
    if (rc)
        return rc;
    CUmodule module = *ret_module = sim_handle_make(SIM_MODULE, sizeof(*module));
    if (!module)
        return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&sim_lock);
    module->context = sim_current();
    module->next = modules;
    modules = module;
    pthread_mutex_unlock(&sim_lock);
    return CUDA_SUCCESS;
}

API CUresult cuModuleLoadDataEx(CUmodule *ret_module, const void *image, unsigned count, int *options,
                                void **values)
{
    (void)count, (void)options, (void)values;
    CALLED(cuModuleLoadDataEx);
    return cuModuleLoadData(ret_module, image);
}

API CUresult cuModuleLoadFatBinary(CUmodule *ret_module, const void *image)
{
    CALLED(cuModuleLoadFatBinary);
    return cuModuleLoadData(ret_module, image);
}

API CUresult cuModuleLoad(CUmodule *ret_module, const char *path)
{
    CALLED(cuModuleLoad);
    return cuModuleLoadData(ret_module, path);
}

API CUresult cuModuleUnload(CUmodule module)
{
    CALLED(cuModuleUnload);
    if (!sim_valid(module, SIM_MODULE))
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&sim_lock);
    for (CUmodule *p = &modules; *p; p = &(*p)->next)
        if (*p == module) {
            *p = module->next;
            break;
        }
    forget(module);
    sim_handle_destroy(module);
    pthread_mutex_unlock(&sim_lock);
    return CUDA_SUCCESS;
}

API CUresult cuModuleGetFunction(CUfunction *ret, CUmodule module, const char *name)
{
    CALLED(cuModuleGetFunction);
    return sim_valid(module, SIM_MODULE) ? function_get(ret, module, name, false) : CUDA_ERROR_INVALID_HANDLE;
}

API CUresult cuModuleGetFunctionCount(unsigned *ret_count, CUmodule module)
{
    return enumerate(NULL, 0, module, ret_count);
}

API CUresult cuModuleEnumerateFunctions(CUfunction *ret, unsigned count, CUmodule module)
{
    CALLED(cuModuleEnumerateFunctions);
    return enumerate(ret, count, module, NULL);
}

API CUresult cuModuleGetGlobal_v2(CUdeviceptr *ret_at, size_t *ret_bytes, CUmodule module, const char *name)
{
    return sim_valid(module, SIM_MODULE) ? global_get(ret_at, ret_bytes, module, name)
                                         : CUDA_ERROR_INVALID_HANDLE;
}

API CUresult cuModuleGetLoadingMode(int *ret_mode)
{
    *ret_mode = 2; /* lazy */
    return CUDA_SUCCESS;
}

/* ---- libraries and kernels
 * ------------------------------------------------------------------------------------------- */

API CUresult cuLibraryLoadData(CUlibrary *ret_library, const void *code, int *a, void **b, unsigned c, int *d,
                               void **e, unsigned f)
{
    (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
    CALLED(cuLibraryLoadData);
    NEED_READY();
    if (!code || !ret_library)
        return CUDA_ERROR_INVALID_VALUE;
    *ret_library = sim_handle_make(SIM_LIBRARY, sizeof(**ret_library));
    return *ret_library ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

API CUresult cuLibraryLoadFromFile(CUlibrary *ret_library, const char *path, int *a, void **b, unsigned c,
                                   int *d, void **e, unsigned f)
{
    CALLED(cuLibraryLoadFromFile);
    return cuLibraryLoadData(ret_library, path, a, b, c, d, e, f);
}

API CUresult cuLibraryUnload(CUlibrary library)
{
    CALLED(cuLibraryUnload);
    if (!sim_valid(library, SIM_LIBRARY))
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&sim_lock);
    forget(library);
    if (library->module)
        sim_handle_destroy(library->module);
    sim_handle_destroy(library);
    pthread_mutex_unlock(&sim_lock);
    return CUDA_SUCCESS;
}

API CUresult cuLibraryGetKernel(CUfunction *ret, CUlibrary library, const char *name)
{
    CALLED(cuLibraryGetKernel);
    return sim_valid(library, SIM_LIBRARY) ? function_get(ret, library, name, true)
                                           : CUDA_ERROR_INVALID_HANDLE;
}

API CUresult cuLibraryGetKernelCount(unsigned *ret_count, CUlibrary library)
{
    return enumerate(NULL, 0, library, ret_count);
}

API CUresult cuLibraryEnumerateKernels(CUfunction *ret, unsigned count, CUlibrary library)
{
    CALLED(cuLibraryEnumerateKernels);
    return enumerate(ret, count, library, NULL);
}

/* A library's functions are asked for by the module too. */
API CUresult cuLibraryGetModule(CUmodule *ret_module, CUlibrary library)
{
    CALLED(cuLibraryGetModule);
    if (!sim_valid(library, SIM_LIBRARY))
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&sim_lock);
    if (!library->module && (library->module = sim_handle_make(SIM_MODULE, sizeof(*library->module))))
        library->module->library = library;
    pthread_mutex_unlock(&sim_lock);
    *ret_module = library->module;
    return CUDA_SUCCESS;
}

API CUresult cuLibraryGetGlobal(CUdeviceptr *ret_at, size_t *ret_bytes, CUlibrary library, const char *name)
{
    return sim_valid(library, SIM_LIBRARY) ? global_get(ret_at, ret_bytes, library, name)
                                           : CUDA_ERROR_INVALID_HANDLE;
}
API CUresult cuLibraryGetManaged(CUdeviceptr *ret_at, size_t *ret_bytes, CUlibrary library, const char *name)
{
    return cuLibraryGetGlobal(ret_at, ret_bytes, library, name);
}

API CUresult cuKernelGetFunction(CUfunction *ret, CUfunction kernel)
{
    CALLED(cuKernelGetFunction);
    if (!sim_valid(kernel, SIM_FUNCTION) || !kernel->is_kernel)
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&sim_lock);
    if (!kernel->twin && (kernel->twin = function_make(kernel->owner, kernel->name, false)))
        kernel->twin->is_twin = true;
    pthread_mutex_unlock(&sim_lock);
    *ret = kernel->twin;
    return *ret ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

API CUresult cuKernelGetLibrary(CUlibrary *ret, CUfunction kernel)
{
    if (!sim_valid(kernel, SIM_FUNCTION))
        return CUDA_ERROR_INVALID_HANDLE;
    *ret = kernel->owner;
    return CUDA_SUCCESS;
}

/* Of handles of the right kind alone, and not before CUDA 12.3. */
static CUresult name_of(const char **ret, CUfunction function, bool is_kernel)
{
    if (sim_machine()->script.driver_version < 12030)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!sim_valid(function, SIM_FUNCTION) || function->is_kernel != is_kernel)
        return CUDA_ERROR_INVALID_HANDLE;
    *ret = function->name;
    return CUDA_SUCCESS;
}
API CUresult cuKernelGetName(const char **ret, CUfunction kernel)
{
    CALLED(cuKernelGetName);
    return name_of(ret, kernel, true);
}
API CUresult cuFuncGetName(const char **ret, CUfunction function)
{
    CALLED(cuFuncGetName);
    return name_of(ret, function, false);
}

API CUresult cuFuncGetModule(CUmodule *ret, CUfunction function)
{
    if (!sim_valid(function, SIM_FUNCTION))
        return CUDA_ERROR_INVALID_HANDLE;
    *ret = function->owner;
    return CUDA_SUCCESS;
}

/* CUfunction_attribute 0..: threads a block, shared, const, local, registers, PTX and binary version, cache
 * mode, dynamic shared */
static CUresult attribute(int *value, int attribute, CUfunction function)
{
    static const int values[] = {1024, 0, 0, 0, 32, 90, 90, 0, 232448, -1};
    if (!sim_valid(function, SIM_FUNCTION))
        return CUDA_ERROR_INVALID_HANDLE;
    *value = attribute >= 0 && attribute < 10 ? values[attribute] : 0;
    return CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int *value, int which, CUfunction function)
{
    return attribute(value, which, function);
}
API CUresult cuKernelGetAttribute(int *value, int which, CUfunction kernel, CUdevice device)
{
    (void)device;
    return attribute(value, which, kernel);
}

#define ACCEPT(symbol, ...)                                                                                  \
    API CUresult symbol(__VA_ARGS__)                                                                         \
    {                                                                                                        \
        CALLED(symbol);                                                                                      \
        return CUDA_SUCCESS;                                                                                 \
    }
ACCEPT(cuFuncSetAttribute, __attribute__((unused)) CUfunction f, __attribute__((unused)) int which,
       __attribute__((unused)) int value)
ACCEPT(cuKernelSetAttribute, __attribute__((unused)) int which, __attribute__((unused)) int value,
       __attribute__((unused)) CUfunction f)
ACCEPT(cuFuncSetCacheConfig, __attribute__((unused)) CUfunction f, __attribute__((unused)) int config)
ACCEPT(cuKernelSetCacheConfig, __attribute__((unused)) CUfunction f, __attribute__((unused)) int config)
ACCEPT(cuFuncSetSharedMemConfig, __attribute__((unused)) CUfunction f, __attribute__((unused)) int config)
ACCEPT(cuFuncLoad, __attribute__((unused)) CUfunction f)

API CUresult cuFuncIsLoaded(int *state, CUfunction function)
{
    *state = 1;
    return sim_valid(function, SIM_FUNCTION) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* ---- occupancy: as of a kernel that uses few registers
 * ----------------------------------------------------------------- */

static int blocks_per_multiprocessor(int block)
{
    return block > 0 ? (2048 / block > 32 ? 32 : 2048 / block) : 1;
}

API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *ret, CUfunction f, int block, size_t shared)
{
    (void)f, (void)shared;
    *ret = blocks_per_multiprocessor(block);
    return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *ret, CUfunction f, int block,
                                                                  size_t shared, unsigned flags)
{
    (void)flags;
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(ret, f, block, shared);
}
API CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t *ret, CUfunction f, int blocks, int block)
{
    (void)f, (void)block;
    *ret = (size_t)233472 / (size_t)(blocks > 0 ? blocks : 1);
    return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveClusters(int *ret, CUfunction f, const CUlaunchConfig *config)
{
    (void)f, (void)config;
    *ret = 132;
    return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxPotentialClusterSize(int *ret, CUfunction f, const CUlaunchConfig *config)
{
    (void)f, (void)config;
    *ret = 8;
    return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxPotentialBlockSize(int *ret_grid, int *ret_block, CUfunction f,
                                              size_t (*shared_of)(int), size_t shared, int limit)
{
    (void)f, (void)shared_of, (void)shared, (void)limit;
    *ret_grid = 264;
    *ret_block = 1024;
    return CUDA_SUCCESS;
}
