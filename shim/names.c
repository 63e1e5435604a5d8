/* SPDX-License-Identifier: Apache-2.0
 *
 * names.c - which kernel a function handle is. Learned where handles are given out, forgotten where their
 * module goes; the driver is asked only for a handle that was never seen. Layouts of handles are never looked
 * into.
 *
 * What is forgotten makes room: a program may load and unload modules for weeks. Forgetting a module costs
 * what that module held.
 */
#include "shim.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum {
    HANDLES = 262144,
    CHAINS = 65536,
    TEXTS_BYTES = 64 << 20,
    TEXT_LEAST = 4, /* bits: a text has room for 16 bytes, or the next power of two that holds it */
    TEXT_MOST = 13,
};

/* Each is in two lists: of those with the same hash of `function`, and of those with the same hash of
 * `owner`. Numbers of handles are theirs + 1; 0 is none. All under the cold lock. */
struct handle {
    const void *function;
    const void *owner; /* module or library */
    uint32_t text;     /* offset in `texts`; 0 none */
    uint32_t
        name; /* offset in the ledger's NAMES; 0 until first launched: a library may hold tens of thousands */
    uint32_t next, next_of_owner, before_of_owner;
};
/* Mapped at first use; pages that are not used cost nothing. */
static struct names {
    uint32_t by_function[CHAINS], by_owner[CHAINS];
    uint32_t used, free; /* handles: ever used, and the first of those given back */
    uint32_t texts_used;
    uint32_t free_text[TEXT_MOST + 1]; /* given back, by room: each holds the offset of the next */
    struct handle handles[HANDLES];
    char texts[TEXTS_BYTES];
} * names;

static bool names_ready(void)
{
    static bool refused;
    if (names || refused)
        return names != NULL;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *map = mmap(NULL, sizeof(*names), PROT_READ | PROT_WRITE, flags, -1, 0);
    refused = map == MAP_FAILED;
    if (refused)
        return false;
    names = map;
    names->texts_used = 1 << TEXT_LEAST; /* offset 0: none */
    return true;
}

static uint32_t *chain_of(uint32_t *chains, const void *key)
{
    return &chains[((uintptr_t)key * 0x9e3779b97f4a7c15ULL) >> 48];
}

static unsigned text_room(size_t size)
{
    unsigned bits = TEXT_LEAST;
    while ((size_t)1 << bits < size)
        bits++;
    return bits;
}

static uint32_t text_store(const char *text)
{
    size_t length = strnlen(text, (1 << TEXT_MOST) - 1);
    unsigned room = text_room(length + 1);
    uint32_t offset = names->free_text[room];
    if (offset)
        memcpy(&names->free_text[room], names->texts + offset, sizeof(offset));
    else if (names->texts_used + (1u << room) > TEXTS_BYTES)
        return 0;
    else
        offset = names->texts_used, names->texts_used += 1u << room;
    memcpy(names->texts + offset, text, length);
    names->texts[offset + length] = 0;
    return offset;
}

static void text_free(uint32_t offset)
{
    if (!offset)
        return;
    unsigned room = text_room(strlen(names->texts + offset) + 1);
    memcpy(names->texts + offset, &names->free_text[room], sizeof(offset));
    names->free_text[room] = offset;
}

static struct handle *handle_find(const void *function)
{
    for (uint32_t i = names ? *chain_of(names->by_function, function) : 0; i; i = names->handles[i - 1].next)
        if (names->handles[i - 1].function == function)
            return &names->handles[i - 1];
    return NULL;
}

static struct handle *handle_add(const void *function, const void *owner)
{
    uint32_t i = names->free ? names->free : names->used < HANDLES ? names->used + 1 : 0;
    if (!i)
        return NULL; /* the driver will be asked at its first launch */
    struct handle *handle = &names->handles[i - 1];
    if (i == names->free)
        names->free = handle->next;
    else
        names->used++;
    uint32_t *chain = chain_of(names->by_function, function), *owned = chain_of(names->by_owner, owner);
    *handle = (struct handle){.function = function, .owner = owner, .next = *chain, .next_of_owner = *owned};
    if (*owned)
        names->handles[*owned - 1].before_of_owner = i;
    *chain = *owned = i;
    return handle;
}

static void handle_free(struct handle *handle)
{
    uint32_t i = (uint32_t)(handle - names->handles) + 1;
    uint32_t *at = chain_of(names->by_function, handle->function);
    while (*at != i)
        at = &names->handles[*at - 1].next;
    *at = handle->next;
    if (handle->before_of_owner)
        names->handles[handle->before_of_owner - 1].next_of_owner = handle->next_of_owner;
    else
        *chain_of(names->by_owner, handle->owner) = handle->next_of_owner;
    if (handle->next_of_owner)
        names->handles[handle->next_of_owner - 1].before_of_owner = handle->before_of_owner;
    text_free(handle->text);
    *handle = (struct handle){.next = names->free};
    names->free = i;
}

/* A handle that was somebody else's is another kernel's from now on, also where no unload was seen: a context
 * that ends takes its modules with it. */
static void learn(const void *function, const void *owner, const char *name)
{
    if (!kj_ledger_now() || !function || !name)
        return;
    bool launched = false;
    kj_lock_cold();
    struct handle *handle = names_ready() ? handle_find(function) : NULL;
    if (handle && (handle->owner != owner || strcmp(names->texts + handle->text, name) != 0)) {
        launched = handle->name != 0;
        handle_free(handle);
        handle = NULL;
    }
    if (names && !handle && (handle = handle_add(function, owner)))
        handle->text = text_store(name);
    kj_unlock_cold();
    if (launched)
        kj_activities_forget(function);
}

/* A function handle made from a kernel handle is the same kernel. */
static void learn_alias(const void *function, const void *kernel)
{
    kj_lock_cold();
    const struct handle *from = handle_find(kernel);
    struct handle *to = from && !handle_find(function) ? handle_add(function, from->owner) : NULL;
    if (to && from->text)
        to->text = text_store(names->texts + from->text);
    if (to)
        to->name = from->name;
    kj_unlock_cold();
}

/* The ledger's offset of a known function's name; 0 when it is not known. */
static uint32_t known_name(struct kj_ledger_header *ledger, const void *function)
{
    kj_lock_cold();
    struct handle *handle = handle_find(function);
    if (handle && !handle->name && handle->text)
        handle->name = kj_name_store(ledger, names->texts + handle->text);
    uint32_t name = handle ? handle->name : 0;
    kj_unlock_cold();
    return name;
}

/* A launch takes a kernel or a function, and the driver refuses to tell the one's name as the other's. It is
 * asked during a capture, too: its answer touches no stream, and in relaxed mode no call ends a capture. */
static const char *ask_name(void *function)
{
    const char *kernel = NULL, *name = NULL;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    bool exchanged = atomic_load(&kj_captures) && kj_driver.cuThreadExchangeStreamCaptureMode &&
                     !kj_driver.cuThreadExchangeStreamCaptureMode(&mode);
    if (!kj_driver.cuKernelGetName || kj_driver.cuKernelGetName(&kernel, (CUkernel)function))
        kernel = NULL;
    if (!kernel && (!kj_driver.cuFuncGetName || kj_driver.cuFuncGetName(&name, (CUfunction)function)))
        name = NULL;
    if (exchanged)
        kj_driver.cuThreadExchangeStreamCaptureMode(&mode);
    return kernel ? kernel : name;
}

uint32_t kj_function_name(struct kj_ledger_header *ledger, void *function)
{
    uint32_t name = known_name(ledger, function);
    if (name)
        return name;
    char unnamed[48];
    const char *text = ask_name(function);
    if (!text) {
        snprintf(unnamed, sizeof(unnamed), KJ_LEDGER_UNNAMED " %p)", function);
        text = unnamed;
    }
    learn(function, &names, text); /* owner: nobody whose unload we would see */
    return known_name(ledger, function);
}

static void forget_owner(const void *owner)
{
    const void *function;
    do { /* one at a time: nobody waits long for the lock */
        kj_lock_cold();
        uint32_t i = names ? *chain_of(names->by_owner, owner) : 0;
        while (i && names->handles[i - 1].owner != owner)
            i = names->handles[i - 1].next_of_owner;
        struct handle *handle = i ? &names->handles[i - 1] : NULL;
        function = handle ? handle->function : NULL;
        bool launched = handle && handle->name;
        if (handle)
            handle_free(handle);
        kj_unlock_cold();
        if (launched)
            kj_activities_forget(function);
    } while (function);
}

void kj_names_forget(void)
{
    if (names)
        munmap(names, sizeof(*names));
    names = NULL;
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
