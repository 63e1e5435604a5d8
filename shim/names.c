/* SPDX-License-Identifier: Apache-2.0
 *
 * names.c - which kernel a function handle is. Learned where handles are given out, forgotten where their
 * module goes; the driver is asked only for a handle that was never seen. Layouts of handles are never looked
 * into.
 */
#include "shim.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { HANDLES = 262144, HANDLE_PROBES = 256, TEXTS_BYTES = 64 << 20 };

struct handle {
    const void *function; /* NULL free */
    const void *owner;    /* module or library; NULL: forgotten */
    uint32_t text;        /* offset in `texts` */
    uint32_t
        name; /* offset in the ledger's NAMES; 0 until first launched: a library may hold tens of thousands */
};
/* Both mapped at first use, under the cold lock; pages that are not used cost nothing. */
static struct handle *handles;
static char *texts;
static size_t texts_used;

static struct handle *handle_place(const void *function)
{
    if (!handles) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        size_t size = HANDLES * sizeof(*handles);
        char *map = mmap(NULL, size + TEXTS_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (map == MAP_FAILED)
            return NULL;
        handles = (struct handle *)map;
        texts = map + size;
        texts_used = 1;
    }
    size_t at = ((uintptr_t)function * 0x9e3779b97f4a7c15ULL) >> 40;
    for (int i = 0; i < HANDLE_PROBES; i++) {
        struct handle *handle = &handles[(at + (size_t)i) % HANDLES];
        if (!handle->function || handle->function == function)
            return handle;
    }
    return NULL;
}

static uint32_t text_store(const char *text)
{
    size_t size = strnlen(text, 8191) + 1;
    if (texts_used + size > TEXTS_BYTES)
        return 0;
    uint32_t offset = (uint32_t)texts_used;
    memcpy(texts + offset, text, size - 1);
    texts_used += size;
    return offset;
}

static void learn(const void *function, const void *owner, const char *name)
{
    if (!kj_ledger_now() || !function || !name)
        return;
    kj_lock_cold();
    struct handle *handle = handle_place(function);
    if (handle && !(handle->function == function && handle->owner == owner))
        *handle = (struct handle){.function = function, .owner = owner, .text = text_store(name)};
    kj_unlock_cold();
}

/* A function handle made from a kernel handle is the same kernel. */
static void learn_alias(const void *function, const void *kernel)
{
    kj_lock_cold();
    struct handle *from = handle_place(kernel);
    struct handle *to = handle_place(function);
    if (from && from->function && from->owner && to && !(to->function && to->owner))
        *to = (struct handle){
            .function = function, .owner = from->owner, .text = from->text, .name = from->name};
    kj_unlock_cold();
}

/* The ledger's offset of a known function's name; 0 when it is not known. */
static uint32_t known_name(struct kj_ledger_header *ledger, const void *function)
{
    kj_lock_cold();
    struct handle *handle = handle_place(function);
    uint32_t name = 0;
    if (handle && handle->function && handle->owner && handle->text) {
        if (!handle->name)
            handle->name = kj_name_store(ledger, texts + handle->text);
        name = handle->name;
    }
    kj_unlock_cold();
    return name;
}

uint32_t kj_function_name(struct kj_ledger_header *ledger, void *function)
{
    uint32_t name = known_name(ledger, function);
    if (name)
        return name;
    const char *text = NULL;
    char unnamed[48];
    if (kj_driver.cuFuncGetName && !atomic_load(&kj_captures))
        kj_driver.cuFuncGetName(&text, (CUfunction)function);
    if (!text) {
        snprintf(unnamed, sizeof(unnamed), "(unnamed kernel %p)", function);
        text = unnamed;
    }
    learn(function, &handles, text); /* owner: nobody whose unload we would see */
    return known_name(ledger, function);
}

static void forget_owner(const void *owner)
{
    if (!handles)
        return;
    for (size_t i = 0; i < HANDLES; i++) {
        struct handle *handle = &handles[i];
        if (!handle->function || handle->owner != owner)
            continue;
        if (handle->name)
            kj_activities_forget(handle->function);
        kj_lock_cold();
        handle->owner = NULL; /* the place stays taken, so that probes pass over it */
        kj_unlock_cold();
    }
}

void kj_names_forget(void)
{
    if (handles)
        munmap(handles, HANDLES * sizeof(*handles) + TEXTS_BYTES);
    handles = NULL;
}

CUresult cuModuleGetFunction(CUfunction *ret_function, CUmodule module, const char *name)
{
    CUresult rc = REAL(cuModuleGetFunction)(ret_function, module, name);
    if (!rc)
        learn(*ret_function, module, name);
    return kj_counted(KJ_HOOK_cuModuleGetFunction, rc);
}

CUresult cuLibraryGetKernel(CUkernel *ret_kernel, CUlibrary library, const char *name)
{
    CUresult rc = REAL(cuLibraryGetKernel)(ret_kernel, library, name);
    if (!rc)
        learn(*ret_kernel, library, name);
    return kj_counted(KJ_HOOK_cuLibraryGetKernel, rc);
}

CUresult cuKernelGetFunction(CUfunction *ret_function, CUkernel kernel)
{
    CUresult rc = REAL(cuKernelGetFunction)(ret_function, kernel);
    if (!rc)
        learn_alias(*ret_function, kernel);
    return kj_counted(KJ_HOOK_cuKernelGetFunction, rc);
}

CUresult cuModuleEnumerateFunctions(CUfunction *functions, unsigned num_functions, CUmodule mod)
{
    CUresult rc = REAL(cuModuleEnumerateFunctions)(functions, num_functions, mod);
    for (unsigned i = 0; !rc && i < num_functions && kj_driver.cuFuncGetName; i++) {
        const char *name = NULL;
        if (functions[i] && !kj_driver.cuFuncGetName(&name, functions[i]))
            learn(functions[i], mod, name);
    }
    return kj_counted(KJ_HOOK_cuModuleEnumerateFunctions, rc);
}

CUresult cuLibraryEnumerateKernels(CUkernel *kernels, unsigned num_kernels, CUlibrary lib)
{
    CUresult rc = REAL(cuLibraryEnumerateKernels)(kernels, num_kernels, lib);
    for (unsigned i = 0; !rc && i < num_kernels && kj_driver.cuKernelGetName; i++) {
        const char *name = NULL;
        if (kernels[i] && !kj_driver.cuKernelGetName(&name, kernels[i]))
            learn(kernels[i], lib, name);
    }
    return kj_counted(KJ_HOOK_cuLibraryEnumerateKernels, rc);
}

CUresult cuModuleUnload(CUmodule module)
{
    CUresult rc = REAL(cuModuleUnload)(module);
    if (!rc)
        forget_owner(module);
    return kj_counted(KJ_HOOK_cuModuleUnload, rc);
}

CUresult cuLibraryUnload(CUlibrary library)
{
    CUresult rc = REAL(cuLibraryUnload)(library);
    if (!rc)
        forget_owner(library);
    return kj_counted(KJ_HOOK_cuLibraryUnload, rc);
}
