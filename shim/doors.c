/* SPDX-License-Identifier: Apache-2.0
 *
 * doors.c - the ways a program gets hold of a driver entry point: linked symbols (the exported wrappers),
 * dlsym, and cuGetProcAddress. Real first, substitute afterwards, and only the wrapper of the ABI that was
 * asked for.
 *
 * dlopen and cuGetExportTable are left alone: the first would lose the caller's search path, the addresses of
 * the second's tables are checked by NVIDIA's runtime.
 */
#include "shim.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

_Atomic(void *) kj_real[KJ_HOOK_COUNT];
struct kj_driver kj_driver;

static const struct door {
    const char *symbol; /* what dlsym is asked for */
    const char *name;   /* what cuGetProcAddress is asked for */
    int version, lane;
    void *wrapper;
} doors[KJ_HOOK_COUNT] = {
#define HOOK(symbol, name, version, lane, params, args)                                                      \
    [KJ_HOOK_##symbol] = {#symbol, name, version, lane, symbol},
#include "hooks_each.h"
};

/* The newest cudaVersion that hooks.def was written from. A caller that asks for a newer one may get an ABI
 * we do not know. */
#define KNOWN_VERSION 13030
/* The newest whose cuda.h the list was compared with (abi_check.c). */
#define CHECKED_VERSION 13000

/* ---- the real dlsym
 * -------------------------------------------------------------------------------------------------- */

#pragma weak dlvsym                                     /* glibc's alone */
void *(*kj_real_dlsym)(void *handle, const char *name); /* read by arch/<isa>.S */

__attribute__((visibility("hidden"))) void kj_find_real_dlsym(void);
void kj_find_real_dlsym(void)
{
    static const char *const versions[] = {"GLIBC_2.34", "GLIBC_2.17", "GLIBC_2.2.5"};
    void *found = NULL;
    for (int i = 0; i < 3 && !found && dlvsym; i++)
        found = dlvsym(RTLD_NEXT, "dlsym", versions[i]);
    if (!found)
        found = kj_symbol_behind("dlsym", (void *)&dlsym);
    __atomic_store_n(&kj_real_dlsym, (void *(*)(void *, const char *))found, __ATOMIC_RELEASE);
}

static void *real_dlsym(void *handle, const char *name)
{
    if (!kj_real_dlsym)
        kj_find_real_dlsym();
    return kj_real_dlsym ? kj_real_dlsym(handle, name) : NULL;
}

void *kj_dlsym_behind(void *handle, const char *name)
{
    return real_dlsym(handle, name);
}

/* ---- the table
 * ----------------------------------------------------------------------------------------------------------
 */

/* A hash over the names, built once: a look-up walks the few rows of its bucket. */
static int16_t by_symbol[1024], next_symbol[KJ_HOOK_COUNT];
static atomic_int indexed;

static unsigned hash(const char *text)
{
    unsigned h = 2166136261u;
    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 16777619u;
    return h & 1023;
}

static void build_index(void)
{
    kj_lock_cold();
    if (!atomic_load(&indexed)) {
        memset(by_symbol, -1, sizeof(by_symbol));
        for (int i = 0; i < KJ_HOOK_COUNT; i++) {
            unsigned bucket = hash(doors[i].symbol);
            next_symbol[i] = by_symbol[bucket];
            by_symbol[bucket] = (int16_t)i;
        }
        atomic_store(&indexed, 1);
    }
    kj_unlock_cold();
}

static int door_by_symbol(const char *symbol)
{
    if (!atomic_load(&indexed))
        build_index();
    for (int i = by_symbol[hash(symbol)]; i >= 0; i = next_symbol[i])
        if (!strcmp(doors[i].symbol, symbol))
            return i;
    return -1;
}

/* The ABI that a driver hands out for (name, version, lane): the newest that is not newer; a name without a
 * per-thread form answers with its only one. */
static int door_by_name(const char *name, int version, int lane)
{
    int best = -1;
    for (int i = 0; i < KJ_HOOK_COUNT; i++) {
        const struct door *door = &doors[i];
        if (door->version > version || strcmp(door->name, name) || door->lane > lane)
            continue;
        if (best < 0 || door->lane > doors[best].lane ||
            (door->lane == doors[best].lane && door->version > doors[best].version))
            best = i;
    }
    return best;
}

static bool ours(const void *pointer)
{
    for (int i = 0; i < KJ_HOOK_COUNT; i++)
        if (doors[i].wrapper == pointer)
            return true;
    return false;
}

static void keep_real(int hook, void *real)
{
    void *expected = NULL;
    atomic_compare_exchange_strong(&kj_real[hook], &expected, real);
}

/* ---- the driver's other functions
 * ------------------------------------------------------------------------------------------ */

static void *driver_handle(void)
{
    return dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_LAZY);
}

/* Whoever comes while another thread is at it fills in the same, and so goes on with a whole table. */
static void fill_driver(void *handle)
{
    static atomic_bool filled;
    if (atomic_load(&filled) || !handle)
        return;
#define DRIVER(symbol, params) kj_driver.symbol = (__typeof__(kj_driver.symbol))real_dlsym(handle, #symbol);
#include "driver.def"
    atomic_store(&filled, true);
}

void *kj_resolve(enum kj_hook hook)
{
    void *handle = driver_handle();
    fill_driver(handle);
    /* An exported wrapper was called by a program linked with the driver. Before the real function is kept: a
     * thread that finds it there goes on at once, and is to be recorded. */
    kj_session_touch();
    /* Whoever comes after us in the order of the libraries, as the linker would have had it: it may be
     * another wrapper. */
    void *real = real_dlsym(RTLD_NEXT, doors[hook].symbol);
    if ((!real || ours(real)) && handle)
        real = real_dlsym(handle, doors[hook].symbol);
    if (real && !ours(real))
        keep_real(hook, real);
    if (handle)
        dlclose(handle);
    if (unlikely(kj_config.cupti))
        kj_cupti_load();
    return atomic_load(&kj_real[hook]);
}

/* At a look-up: the session begins, and what we need of the driver is found while its caller is in no driver
 * call. */
static void met_driver(void)
{
    static atomic_int met;
    kj_session_touch();
    if (likely(atomic_load_explicit(&met, memory_order_relaxed)))
        return;
    void *handle = driver_handle();
    fill_driver(handle);
    if (handle) {
        atomic_store(&met, 1);
        dlclose(handle);
        if (unlikely(kj_config.cupti))
            kj_cupti_load();
    }
}

/* A wrapper that we call next asks for what it wraps: that is the driver's own, or the two would go in
 * circles. */
static bool comes_after_us(int hook, const void *real, const void *caller)
{
    void *next = atomic_load(&kj_real[hook]);
    Dl_info of_next, of_caller;
    return next && next != real && dladdr(next, &of_next) && dladdr(caller, &of_caller) &&
           of_next.dli_fbase == of_caller.dli_fbase;
}

static bool is_driver(const void *pointer)
{
    Dl_info of;
    const char *base = dladdr(pointer, &of) && of.dli_fname ? strrchr(of.dli_fname, '/') : NULL;
    return base && !strncmp(base, "/libcuda.so", 11);
}

/* ---- door: dlsym
 * ---------------------------------------------------------------------------------------------------------------
 */

/* Jumped to from arch/<isa>.S for names cu[A-Z]*, never with RTLD_NEXT. */
__attribute__((visibility("hidden"))) void *kj_dlsym_cuda(void *handle, const char *name);
void *kj_dlsym_cuda(void *handle, const char *name)
{
    void *real = real_dlsym(handle, name);
    if (!real)
        return NULL;
    int hook = door_by_symbol(name);
    if (hook < 0) {
        if (unlikely(kj_unhooked_is_work(name)) && is_driver(real)) {
            met_driver();
            kj_unhooked_note(name, 0, 0);
        }
        return real;
    }
    if (ours(real)) { /* the global scope found our own export: is there a driver behind it? */
        void *next = real_dlsym(RTLD_NEXT, name);
        if (!next || ours(next))
            return kj_real_of((enum kj_hook)hook) ? real : NULL;
        real = next;
    }
    if (comes_after_us(hook, real, __builtin_return_address(0)))
        return real;
    met_driver();
    keep_real(hook, real);
    return kj_config.off ? real : doors[hook].wrapper;
}

/* ---- door: cuGetProcAddress
 * -------------------------------------------------------------------------------------------------------- */

/* Asks the driver itself whether `pfn` is what it hands out at that version, too. */
static bool same_abi(const char *name, int version, uint64_t flags, const void *pfn)
{
    void *known = NULL;
    void *real = atomic_load(&kj_real[KJ_HOOK_cuGetProcAddress_v2]);
    if (real)
        return !((__typeof__(&cuGetProcAddress_v2))real)(name, &known, version, flags, NULL) && known == pfn;
    real = atomic_load(&kj_real[KJ_HOOK_cuGetProcAddress]);
    return real && !((__typeof__(&cuGetProcAddress))real)(name, &known, version, flags) && known == pfn;
}

/* A driver may answer to the name of an ABI, too: cuda-python asks for cuCtxSynchronize_v2. */
static int door_by_abi(const char *name, int version, int lane)
{
    static const char *const suffixes[] = {"_ptsz", "_ptds", ""};
    char symbol[128];
    for (size_t i = lane ? 0 : 2; i < 3; i++) {
        int size = snprintf(symbol, sizeof(symbol), "%s%s", name, suffixes[i]);
        int hook = size < (int)sizeof(symbol) ? door_by_symbol(symbol) : -1;
        if (hook >= 0 && doors[hook].version <= version)
            return hook;
    }
    return -1;
}

static bool is_hooked(const char *name)
{
    return door_by_name(name, INT_MAX, 1) >= 0;
}

/* The hook for what the driver has answered, or -1: it is none of ours, or its ABI is not known. */
static int door_for(const char *name, int version, uint64_t flags, const void *pfn)
{
    int lane = (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0;
    int hook = door_by_name(name, version, lane);
    if (hook < 0) {
        hook = door_by_abi(name, version, lane);
        if (hook < 0 && !is_hooked(name) && kj_unhooked_is_work(name))
            kj_unhooked_note(name, version, flags);
        return hook;
    }
    if (version > KNOWN_VERSION && !same_abi(name, KNOWN_VERSION, flags, pfn)) {
        kj_unhooked_note(name, version, flags);
        return -1;
    }
    /* No header said that the newer ABI goes by this name: the older one is known by its pointer. */
    int older = doors[hook].version > CHECKED_VERSION ? door_by_name(name, CHECKED_VERSION, lane) : -1;
    return older >= 0 && same_abi(name, CHECKED_VERSION, flags, pfn) ? older : hook;
}

static void substitute(const char *name, void **pfn, int version, uint64_t flags, const void *caller)
{
    met_driver();
    struct kj_ledger_header *ledger = kj_ledger_now();
    if (ledger)
        __atomic_fetch_add(&ledger->gpa_requests, 1, __ATOMIC_RELAXED);
    int hook = door_for(name, version, flags, *pfn);
    if (hook < 0)
        return;
    if (ours(*pfn)) /* a driver that answers with the global scope's symbol: ours already */
        return;
    if (comes_after_us(hook, *pfn, caller))
        return;
    keep_real(hook, *pfn);
    if (!kj_config.off)
        *pfn = doors[hook].wrapper;
}

CUresult cuGetProcAddress(const char *symbol, void **pfn, int driver_version, uint64_t flags)
{
    __typeof__(&cuGetProcAddress) real = REAL(cuGetProcAddress);
    if (!real)
        return CUDA_ERROR_NOT_FOUND;
    CUresult rc = real(symbol, pfn, driver_version, flags);
    if (!rc && symbol && pfn && *pfn)
        substitute(symbol, pfn, driver_version, flags, __builtin_return_address(0));
    return rc;
}

CUresult cuGetProcAddress_v2(const char *symbol, void **pfn, int driver_version, uint64_t flags,
                             CUdriverProcAddressQueryResult *symbol_found)
{
    __typeof__(&cuGetProcAddress_v2) real = REAL(cuGetProcAddress_v2);
    if (!real)
        return CUDA_ERROR_NOT_FOUND;
    CUresult rc = real(symbol, pfn, driver_version, flags, symbol_found);
    if (!rc && symbol && pfn && *pfn)
        substitute(symbol, pfn, driver_version, flags, __builtin_return_address(0));
    return rc;
}
