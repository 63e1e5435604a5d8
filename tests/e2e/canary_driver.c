/* SPDX-License-Identifier: Apache-2.0
 *
 * canary_driver.c - a driver whose every entry point writes down what it was called with: register by
 * register, whatever its signature. It answers cuGetProcAddress from the simulated GPU's list of exports,
 * which is kept apart from the shim's.
 */
#include <stdint.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))
enum { WORDS = 12, NEWEST = 13030, ABI_OF_TOMORROW = 99000 };

struct record {
    const char *symbol;
    uint64_t calls;
    uint64_t words[WORDS];
};

#define EXPORT(symbol, name, version, lane) INDEX_##symbol,
enum {
#include "cuda_exports.def"
    INDEX_tomorrow,
    COUNT
};
#undef EXPORT

static struct record records[COUNT] = {
#define EXPORT(symbol, name, version, lane) [INDEX_##symbol] = {#symbol, 0, {0}},
#include "cuda_exports.def"
#undef EXPORT
    [INDEX_tomorrow] = {"tomorrow", 0, {0}},
};

/* Twelve words: six or eight in registers, the others where the caller put them on the stack, or what happens
 * to be there. */
#define DEFINE(symbol)                                                                                       \
    EXPORTED int symbol(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g,  \
                        uint64_t h, uint64_t i, uint64_t j, uint64_t k, uint64_t l)                          \
    {                                                                                                        \
        const uint64_t words[WORDS] = {a, b, c, d, e, f, g, h, i, j, k, l};                                  \
        records[INDEX_##symbol].calls++;                                                                     \
        memcpy(records[INDEX_##symbol].words, words, sizeof(words));                                         \
        return 0;                                                                                            \
    }
#define cuGetProcAddress                    canary_unused
#define cuGetProcAddress_v2                 canary_unused_v2
#define INDEX_canary_unused                 INDEX_tomorrow
#define INDEX_canary_unused_v2              INDEX_tomorrow
#define EXPORT(symbol, name, version, lane) DEFINE(symbol)
#include "cuda_exports.def"
#undef EXPORT
DEFINE(tomorrow)
EXPORTED int cuLaunchTomorrow(void);
int cuLaunchTomorrow(void)
{
    return 0;
}
#undef cuGetProcAddress
#undef cuGetProcAddress_v2

EXPORTED int cuGetProcAddress(const char *name, void **pfn, int version, uint64_t flags);
EXPORTED int cuGetProcAddress_v2(const char *name, void **pfn, int version, uint64_t flags, int *status);

static const struct {
    const char *symbol, *name;
    int version, lane;
    void *function;
} exports[] = {
#define EXPORT(symbol, name, version, lane) {#symbol, name, version, lane, (void *)symbol},
#include "cuda_exports.def"
#undef EXPORT
};
enum { EXPORTS = sizeof(exports) / sizeof(*exports) };

static int find(const char *name, int version, int lane)
{
    int best = -1;
    for (int i = 0; i < EXPORTS; i++) {
        if (strcmp(exports[i].name, name) || !exports[i].version || exports[i].version > version ||
            exports[i].lane > lane)
            continue;
        if (best < 0 || exports[i].lane > exports[best].lane ||
            (exports[i].lane == exports[best].lane && exports[i].version > exports[best].version))
            best = i;
    }
    return best;
}

static int answer(const char *name, void **pfn, int version, uint64_t flags)
{
    int found = find(name, version, (flags & 2) != 0);
    *pfn = found < 0 ? 0 : exports[found].function;
    if (version >= ABI_OF_TOMORROW && found >= 0 && !strcmp(name, "cuLaunchKernel"))
        *pfn = (void *)tomorrow; /* an ABI that did not exist when the shim was written */
    /* Names that nobody knows yet; one that ends in Never is not there either. */
    if (version > NEWEST && found < 0 && strstr(name, "Tomorrow"))
        *pfn = (void *)tomorrow;
    /* A driver that knows a newer ABI by a name of its own, and keeps the old one by the old name. */
    if (!strcmp(name, "cuLaunchHostFunc"))
        *pfn = (flags & 2) ? (void *)cuLaunchHostFunc_ptsz : (void *)cuLaunchHostFunc;
    if (!strcmp(name, "cuLaunchHostFunc_v2") && version >= 13020)
        *pfn = (flags & 2) ? (void *)cuLaunchHostFunc_v2_ptsz : (void *)cuLaunchHostFunc_v2;
    return *pfn ? 0 : 500;
}

int cuGetProcAddress(const char *name, void **pfn, int version, uint64_t flags)
{
    const struct record seen = {"cuGetProcAddress",
                                records[INDEX_cuGetProcAddress].calls + 1,
                                {(uintptr_t)name, (uintptr_t)pfn, (uint64_t)version, flags}};
    records[INDEX_cuGetProcAddress] = seen;
    return answer(name, pfn, version, flags);
}

int cuGetProcAddress_v2(const char *name, void **pfn, int version, uint64_t flags, int *status)
{
    const struct record seen = {
        "cuGetProcAddress_v2",
        records[INDEX_cuGetProcAddress_v2].calls + 1,
        {(uintptr_t)name, (uintptr_t)pfn, (uint64_t)version, flags, (uintptr_t)status}};
    records[INDEX_cuGetProcAddress_v2] = seen;
    int rc = answer(name, pfn, version, flags);
    if (status)
        *status = rc ? 1 : 0;
    return rc == 500 && status ? 0 : rc; /* SUCCESS with a NULL pointer, as the real one does */
}

/* For the test: what was seen, and which pointer is whose. */
EXPORTED const struct record *canary_record(const char *symbol);
EXPORTED const char *canary_owner(const void *function);
EXPORTED const char *canary_expected(const char *name, int version, uint64_t flags);

const struct record *canary_record(const char *symbol)
{
    for (int i = 0; i < COUNT; i++)
        if (!strcmp(records[i].symbol, symbol))
            return &records[i];
    return 0;
}

const char *canary_owner(const void *function)
{
    for (int i = 0; i < EXPORTS; i++)
        if (exports[i].function == function)
            return exports[i].symbol;
    return function == (void *)tomorrow ? "tomorrow" : 0;
}

const char *canary_expected(const char *name, int version, uint64_t flags)
{
    int found = find(name, version, (flags & 2) != 0);
    return found < 0 ? 0 : exports[found].symbol;
}
