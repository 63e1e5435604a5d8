/* SPDX-License-Identifier: Apache-2.0
 *
 * ranges.c - NVTX ranges of the program. The NVTX library or header inside the program loads the library that
 * NVTX_INJECTION64_PATH names, which is ours where nobody else asked for it, and calls
 * InitializeInjectionNvtx2. A launch inside a range named like a phase (phase_names.h) gets that phase into
 * its role, and so is counted apart, exactly and at no cost to the launch. No other range is kept.
 *
 * What the program sees is what it sees without a tool: pushes answer "not tracked", handles are opaque.
 * ABI: nvtx3/nvtxDetail/nvtxTypes.h and nvToolsExt.h of NVTX 3, as in CUDA 12 and 13.
 */
#include "shim.h"

#include "phase_names.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

enum { NOT_TRACKED = -2, DEPTH = 64, NAME_BYTES = 24 };

/* Numbers of NVTX's export tables, modules and functions. */
enum { EXPORT_CALLBACKS = 1, MODULE_CORE = 1, MODULE_CORE2 = 5 };
enum { PUSH_EX = 8, PUSH_A = 9, PUSH_W = 10, POP = 11 };
enum { DOMAIN_PUSH_EX = 4, DOMAIN_POP = 5, REGISTER_A = 10, REGISTER_W = 11, DOMAIN_A = 12, DOMAIN_W = 13 };
enum { MESSAGE_ASCII = 1, MESSAGE_UNICODE = 2, MESSAGE_REGISTERED = 3 };

typedef void (*function)(void);
typedef function **function_table; /* places of function pointers */
struct export_table {
    size_t struct_size;
    int (*get_module)(int module, function_table *ret_table, unsigned *ret_size);
};
struct attributes {
    uint16_t version, size;
    uint32_t category;
    int32_t color_type;
    uint32_t color;
    int32_t payload_type, reserved;
    uint64_t payload;
    int32_t message_type;
    const void *message;
};
_Static_assert(sizeof(struct attributes) == 48, "nvtxEventAttributes_t");

/* Ranges of one domain are nested; those of two need not be. */
static __thread struct {
    uint8_t depth, beyond; /* beyond: pushes that found no room */
    struct {
        uint8_t domain;
        int8_t phase;
    } open[DEPTH];
} ranges;
static atomic_uint domains;

uint8_t kj_role_in_range(uint8_t who)
{
    for (int i = ranges.depth - 1; i >= 0; i--)
        if (ranges.open[i].phase >= 0)
            return KJ_ROLE_IN(who, ranges.open[i].phase);
    return who;
}

static void push(uintptr_t domain, int phase)
{
    if (ranges.depth == DEPTH) {
        ranges.beyond += ranges.beyond < UINT8_MAX;
        return;
    }
    ranges.open[ranges.depth].domain = (uint8_t)domain;
    ranges.open[ranges.depth++].phase = (int8_t)phase;
    kj_self.place.role = kj_role_in_range(KJ_ROLE_WHO(kj_self.place.role));
}

static void pop(uintptr_t domain)
{
    if (ranges.beyond) {
        ranges.beyond--;
        return;
    }
    for (int i = ranges.depth - 1; i >= 0; i--)
        if (ranges.open[i].domain == (uint8_t)domain) {
            memmove(&ranges.open[i], &ranges.open[i + 1],
                    (size_t)(ranges.depth - 1 - i) * sizeof(ranges.open[0]));
            ranges.depth--;
            break;
        }
    kj_self.place.role = kj_role_in_range(KJ_ROLE_WHO(kj_self.place.role));
}

static int phase_of_wide(const wchar_t *name)
{
    char narrow[NAME_BYTES];
    size_t n = 0;
    for (; name && n < sizeof(narrow) - 1 && name[n]; n++)
        narrow[n] = name[n] > 0 && name[n] < 0x80 ? (char)name[n] : '?';
    narrow[n] = 0;
    return kj_phase_of_range(narrow);
}

/* A registered string is its phase + 1: one that has none is NULL, as without a tool. */
static void *string_handle(int phase)
{
    return (void *)(uintptr_t)(phase + 1);
}

static int phase_of_attributes(const struct attributes *a)
{
    if (!a || a->size < sizeof(*a) || !a->message)
        return -1;
    switch (a->message_type) {
    case MESSAGE_ASCII:
        return kj_phase_of_range(a->message);
    case MESSAGE_UNICODE:
        return phase_of_wide(a->message);
    case MESSAGE_REGISTERED:
        return (uintptr_t)a->message <= KJ_PHASE_COUNT ? (int)(uintptr_t)a->message - 1 : -1;
    default:
        return -1;
    }
}

static int push_ex(const struct attributes *a)
{
    push(0, phase_of_attributes(a));
    return NOT_TRACKED;
}
static int push_a(const char *name)
{
    push(0, kj_phase_of_range(name));
    return NOT_TRACKED;
}
static int push_w(const wchar_t *name)
{
    push(0, phase_of_wide(name));
    return NOT_TRACKED;
}
static int pop_default(void)
{
    pop(0);
    return NOT_TRACKED;
}
static int domain_push_ex(void *domain, const struct attributes *a)
{
    push((uintptr_t)domain, phase_of_attributes(a));
    return NOT_TRACKED;
}
static int domain_pop(void *domain)
{
    pop((uintptr_t)domain);
    return NOT_TRACKED;
}
static void *register_a(void *domain, const char *name)
{
    (void)domain;
    return string_handle(kj_phase_of_range(name));
}
static void *register_w(void *domain, const wchar_t *name)
{
    (void)domain;
    return string_handle(phase_of_wide(name));
}
/* A handle is a number: all beyond the 255th share one. */
static void *domain_handle(void)
{
    unsigned number = atomic_fetch_add(&domains, 1) + 1;
    return (void *)(uintptr_t)(number < UINT8_MAX ? number : UINT8_MAX);
}
static void *domain_a(const char *name)
{
    (void)name;
    return domain_handle();
}
static void *domain_w(const wchar_t *name)
{
    (void)name;
    return domain_handle();
}

/* module, number, function */
#define CALLBACKS(X)                                                                                         \
    X(MODULE_CORE, PUSH_EX, push_ex)                                                                         \
    X(MODULE_CORE, PUSH_A, push_a)                                                                           \
    X(MODULE_CORE, PUSH_W, push_w)                                                                           \
    X(MODULE_CORE, POP, pop_default)                                                                         \
    X(MODULE_CORE2, DOMAIN_PUSH_EX, domain_push_ex)                                                          \
    X(MODULE_CORE2, DOMAIN_POP, domain_pop)                                                                  \
    X(MODULE_CORE2, REGISTER_A, register_a)                                                                  \
    X(MODULE_CORE2, REGISTER_W, register_w)                                                                  \
    X(MODULE_CORE2, DOMAIN_A, domain_a)                                                                      \
    X(MODULE_CORE2, DOMAIN_W, domain_w)

static void install(const struct export_table *exports, int module, unsigned number, function ours)
{
    function_table table = NULL;
    unsigned size = 0;
    if (exports->get_module(module, &table, &size) && table && number < size && table[number])
        *table[number] = ours;
}

void kj_ranges_ask(void)
{
    char library[PATH_MAX];
    if (!getenv("NVTX_INJECTION64_PATH") && kj_own_library(library))
        setenv("NVTX_INJECTION64_PATH", library, 1);
}

/* Returns 1 when we listen; 0, and the program's NVTX calls stay as empty as without a tool. */
KJ_EXPORT int InitializeInjectionNvtx2(const void *(*get_export_table)(uint32_t));
int InitializeInjectionNvtx2(const void *(*get_export_table)(uint32_t))
{
    kj_session_configure();
    const struct export_table *exports =
        kj_config.off || !get_export_table ? NULL : get_export_table(EXPORT_CALLBACKS);
    if (!exports || exports->struct_size < sizeof(*exports) || !exports->get_module)
        return 0;
#define X(module, number, ours) install(exports, module, number, (function)ours);
    CALLBACKS(X)
#undef X
    return 1;
}
