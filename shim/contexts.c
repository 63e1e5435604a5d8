/* SPDX-License-Identifier: Apache-2.0
 *
 * contexts.c - in which context: a place at first sight, found again without a lock, free again when the
 * context has really ended. Primary contexts are counted by the driver, and end with the last reference.
 */
#include "shim.h"

#include "timing.h"

#include <stddef.h>
#include <string.h>

enum { CONTEXTS_CAP = 64, DEVICES_CAP = 32 };

struct kj_context {
    /* No two contexts of a process have the same; 0: the place is free. What a thread remembers of a place
     * holds while this is what it was. */
    _Atomic uint32_t serial;
    uint16_t device;           /* row of DEVICES */
    uint16_t row;              /* of CONTEXTS */
    struct kj_timing *timing;  /* NULL: the context found no place, its launches are counted alone */
    _Atomic(CUcontext) handle; /* NULL: the place is free */
    CUdevice ordinal;
    bool created;          /* by cuCtxCreate: no primary one */
    atomic_int references; /* of a created one */
    atomic_bool visited;   /* launched to from where another one is current */
};
static struct kj_timing timings[CONTEXTS_CAP];
static struct kj_context contexts[CONTEXTS_CAP];
_Static_assert(offsetof(struct kj_context, serial) == 0, "launch_path.h");
static atomic_uint contexts_used;
static _Atomic uint32_t last_serial;

/* Contexts beyond those are told by their device alone. They stay: which of them live is not known. */
static struct kj_context others[DEVICES_CAP];

/* What is seen of the references to a device's primary context, by the device's ordinal. Some may be taken or
 * given back unseen: it only says when the driver need not be asked. */
static struct {
    _Atomic(CUcontext) handle; /* NULL: not known, or not begun */
    atomic_int held;
    atomic_uint retaining;    /* calls under way */
    atomic_uint retained;     /* calls ever */
    _Atomic uint64_t made_ns; /* after the first of them; 0: none */
} primaries[DEVICES_CAP];

static bool is_ordinal(CUdevice ordinal)
{
    return ordinal >= 0 && ordinal < DEVICES_CAP;
}

static int attribute(CUdevice_attribute which, CUdevice device)
{
    int value = 0;
    if (!kj_driver.cuDeviceGetAttribute || kj_driver.cuDeviceGetAttribute(&value, which, device))
        return 0;
    return value;
}

static struct kj_ledger_device describe(CUdevice ordinal)
{
    struct kj_ledger_device device = {.ordinal = ordinal};
    if (is_ordinal(ordinal))
        device.context_ns = atomic_load(&primaries[ordinal].made_ns);
    if (!device.context_ns)
        device.context_ns = kj_now_ns();
    CUuuid board, instance;
    bool known = kj_driver.cuDeviceGetUuid && !kj_driver.cuDeviceGetUuid(&board, ordinal);
    bool newer = kj_driver.cuDeviceGetUuid_v2 && !kj_driver.cuDeviceGetUuid_v2(&instance, ordinal);
    if (known || newer) { /* the older of the two does not know MIG */
        memcpy(device.uuid, known ? board.bytes : instance.bytes, 16);
        device.uuid_known = 1;
    }
    if (known && newer && memcmp(board.bytes, instance.bytes, 16) != 0) {
        memcpy(device.instance_uuid, instance.bytes, 16);
        device.instance_known = 1;
    }
    if (kj_driver.cuDeviceGetName)
        kj_driver.cuDeviceGetName(device.name, sizeof(device.name) - 1, ordinal);
    device.multiprocessors = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, ordinal);
    device.pci_bus = attribute(CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, ordinal);
    device.pci_device = attribute(CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID, ordinal);
    device.pci_domain = attribute(CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, ordinal);
    return device;
}

static int device_find(struct kj_ledger_header *ledger, CUdevice ordinal)
{
    const struct kj_ledger_device *rows = kj_section(ledger, KJ_SECTION_DEVICES);
    uint64_t used = __atomic_load_n(&ledger->sections[KJ_SECTION_DEVICES].used, __ATOMIC_ACQUIRE);
    for (uint64_t i = 0; i < used; i++)
        if (rows[i].ordinal == ordinal)
            return (int)i;
    return -1;
}

static uint16_t device_row(struct kj_ledger_header *ledger, CUdevice ordinal)
{
    int row = device_find(ledger, ordinal);
    if (row >= 0)
        return (uint16_t)row;
    struct kj_ledger_device device = describe(ordinal);
    int version = 0;
    if (kj_driver.cuDriverGetVersion && !kj_driver.cuDriverGetVersion(&version))
        ledger->cuda_driver_version = version;
    kj_lock_cold();
    row = device_find(ledger, ordinal);
    if (row < 0 && (row = (int)kj_row_reserve(ledger, KJ_SECTION_DEVICES)) >= 0) {
        ((struct kj_ledger_device *)kj_section(ledger, KJ_SECTION_DEVICES))[row] = device;
        kj_row_publish(ledger, KJ_SECTION_DEVICES);
    }
    kj_unlock_cold();
    return row < 0 ? 0 : (uint16_t)row;
}

static struct kj_context *context_find(CUcontext handle)
{
    unsigned used = atomic_load_explicit(&contexts_used, memory_order_acquire);
    for (unsigned i = 0; i < used && i < CONTEXTS_CAP; i++)
        if (atomic_load_explicit(&contexts[i].handle, memory_order_relaxed) == handle)
            return &contexts[i];
    return NULL;
}

/* A place for a context: one whose context has ended, and of which no launch under way holds a pair, else a
 * new one. Under the cold lock. */
static struct kj_context *place_find(struct kj_ledger_header *ledger)
{
    unsigned used = atomic_load(&contexts_used);
    for (unsigned i = 0; i < used; i++)
        if (!atomic_load(&contexts[i].handle) && kj_timing_is_free(contexts[i].timing))
            return &contexts[i];
    int64_t row = kj_row_reserve(ledger, KJ_SECTION_CONTEXTS); /* counts what does not fit */
    if (row < 0 || used >= CONTEXTS_CAP)
        return NULL;
    contexts[used].row = (uint16_t)row;
    contexts[used].timing = &timings[used];
    atomic_store_explicit(&contexts_used, used + 1, memory_order_release);
    kj_row_publish(ledger, KJ_SECTION_CONTEXTS);
    return &contexts[used];
}

static struct kj_context *other_of(uint16_t device)
{
    struct kj_context *other = &others[device < DEVICES_CAP ? device : 0];
    other->device = device;
    atomic_store(&other->serial, UINT32_MAX);
    return other;
}

static struct kj_context *context_add(struct kj_ledger_header *ledger, CUcontext handle, CUdevice ordinal)
{
    uint16_t device = device_row(ledger, ordinal);
    kj_lock_cold();
    struct kj_context *context = context_find(handle), *place = context ? NULL : place_find(ledger);
    if (place) {
        struct kj_ledger_context *rows = kj_section(ledger, KJ_SECTION_CONTEXTS);
        rows[place->row].device = place->device = device;
        rows[place->row].event_ns = UINT32_MAX;
        place->ordinal = ordinal;
        place->created = false;
        atomic_store(&place->references, 0);
        atomic_store(&place->visited, false);
        kj_timing_init(place->timing);
        atomic_store(&place->serial, atomic_fetch_add(&last_serial, 1) % (UINT32_MAX - 1) + 1);
        atomic_store(&place->handle, handle);
        ((struct kj_ledger_device *)kj_section(ledger, KJ_SECTION_DEVICES))[device].context_end_ns = 0;
    } else if (!context) {
        place = other_of(device);
    }
    kj_unlock_cold();
    return context ? context : place;
}

/* ---- the current one
 * ----------------------------------------------------------------------------------------------------- */

static struct kj_context *current_ask(struct kj_ledger_header *ledger)
{
    CUcontext handle = NULL;
    CUdevice ordinal;
    kj_self.context = NULL;
    if (!kj_driver.cuCtxGetCurrent || kj_driver.cuCtxGetCurrent(&handle) || !handle)
        return NULL;
    struct kj_context *context = context_find(handle);
    if (!context) {
        /* An error for a context that has been destroyed while it was current. */
        if (!kj_driver.cuCtxGetDevice || kj_driver.cuCtxGetDevice(&ordinal))
            return NULL;
        context = context_add(ledger, handle, ordinal);
    }
    kj_self.context_handle = handle;
    kj_self.context_serial = atomic_load(&context->serial);
    kj_self.context = context;
    kj_self.place.device = context->device;
    return context;
}

struct kj_context *kj_context_current(struct kj_ledger_header *ledger)
{
    struct kj_context *cached = kj_self.context;
    if (likely(cached &&
               atomic_load_explicit(&cached->serial, memory_order_relaxed) == kj_self.context_serial))
        return cached;
    return current_ask(ledger);
}

void kj_context_check(struct kj_ledger_header *ledger)
{
    CUcontext handle = NULL;
    const struct kj_context *cached = kj_self.context;
    if (!cached || !kj_driver.cuCtxGetCurrent || kj_driver.cuCtxGetCurrent(&handle) ||
        handle == kj_self.context_handle)
        return;
    kj_self.context = NULL;
    if (atomic_load(&cached->serial) == kj_self.context_serial) /* else it has ended, and that was seen */
        __atomic_fetch_add(&ledger->context_repairs, 1, __ATOMIC_RELAXED);
}

/* Makes a context current for a moment. False: it cannot be. */
static bool enter(CUcontext handle, bool *ret_pushed)
{
    CUcontext current = NULL;
    __typeof__(&cuCtxPushCurrent_v2) push = REAL(cuCtxPushCurrent_v2);
    *ret_pushed = false;
    if (!handle || !kj_driver.cuCtxGetCurrent || kj_driver.cuCtxGetCurrent(&current))
        return false;
    if (current == handle)
        return true;
    *ret_pushed = push && REAL(cuCtxPopCurrent_v2) && !push(handle);
    return *ret_pushed;
}

static void leave(bool pushed)
{
    CUcontext ours;
    if (pushed)
        REAL(cuCtxPopCurrent_v2)(&ours);
}

CUresult kj_context_event(const struct kj_context *context, CUevent *ret_event)
{
    bool pushed;
    if (!enter(atomic_load(&context->handle), &pushed))
        return CUDA_ERROR_INVALID_CONTEXT;
    CUresult rc = kj_driver.cuEventCreate(ret_event, CU_EVENT_DEFAULT);
    leave(pushed);
    return rc;
}

struct kj_context *kj_context_meet(struct kj_ledger_header *ledger, CUcontext handle)
{
    struct kj_context *context = context_find(handle);
    CUdevice ordinal;
    bool pushed;
    if (context || !kj_driver.cuCtxGetDevice || !enter(handle, &pushed))
        return context;
    CUresult rc = kj_driver.cuCtxGetDevice(&ordinal);
    leave(pushed);
    return rc ? NULL : context_add(ledger, handle, ordinal);
}

/* ---- begin and end
 * -------------------------------------------------------------------------------------------------- */

void kj_context_created(struct kj_ledger_header *ledger)
{
    struct kj_context *context = current_ask(ledger);
    if (!context || !context->timing)
        return;
    context->created = true;
    atomic_store(&context->references, 1);
    kj_rest_context_made(ledger);
}

void kj_context_attached(struct kj_ledger_header *ledger)
{
    struct kj_context *context = current_ask(ledger);
    if (context)
        atomic_fetch_add(&context->references, 1);
}

static void primary_made(CUdevice device, CUcontext handle)
{
    struct kj_ledger_header *ledger = kj_enter();
    uint64_t none = 0;
    atomic_store(&primaries[device].handle, handle);
    if (!ledger)
        return;
    atomic_compare_exchange_strong(&primaries[device].made_ns, &none, kj_now_ns());
    kj_rest_context_made(ledger);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *ret_context, CUdevice device)
{
    __typeof__(&cuDevicePrimaryCtxRetain) real = REAL(cuDevicePrimaryCtxRetain);
    if (!real)
        return CUDA_ERROR_NOT_FOUND;
    if (!is_ordinal(device))
        return kj_counted(KJ_HOOK_cuDevicePrimaryCtxRetain, real(ret_context, device));
    atomic_fetch_add(&primaries[device].retaining, 1);
    CUresult rc = real(ret_context, device);
    if (!rc)
        primary_made(device, *ret_context);
    atomic_fetch_add(&primaries[device].held, !rc);
    atomic_fetch_add(&primaries[device].retained, 1);
    atomic_fetch_sub(&primaries[device].retaining, 1);
    return kj_counted(KJ_HOOK_cuDevicePrimaryCtxRetain, rc);
}

/* Where no reference was seen to be taken, it is one that was not made by cuCtxCreate. */
static struct kj_context *primary_find(CUdevice ordinal)
{
    CUcontext handle = atomic_load(&primaries[ordinal].handle);
    if (handle)
        return context_find(handle);
    unsigned used = atomic_load(&contexts_used);
    for (unsigned i = 0; i < used; i++)
        if (atomic_load(&contexts[i].handle) && !contexts[i].created && contexts[i].ordinal == ordinal)
            return &contexts[i];
    return NULL;
}

/* Nothing of it is asked or recorded until it has been found alive. */
static void close_to_timing(struct kj_ledger_header *ledger, struct kj_context *context)
{
    if (!context)
        return;
    kj_timing_harvest(ledger, context, 0);
    kj_timing_close(context->timing);
}

static void settle(struct kj_ledger_header *ledger, struct kj_context *context, bool ended)
{
    if (!context)
        return;
    if (!ended) {
        kj_timing_open(context->timing);
        return;
    }
    uint32_t lost = kj_timing_abandon(context->timing);
    __atomic_fetch_add(&ledger->untimed_no_event, lost, __ATOMIC_RELAXED);
    kj_streams_forget(context);
    kj_lock_cold(); /* its place may be another's from here on */
    uint16_t device = context->device;
    bool alive = false;
    atomic_store(&context->serial, 0);
    atomic_store(&context->handle, NULL);
    for (unsigned i = 0; i < atomic_load(&contexts_used); i++)
        alive = alive || (atomic_load(&contexts[i].handle) && contexts[i].device == device);
    if (!alive)
        ((struct kj_ledger_device *)kj_section(ledger, KJ_SECTION_DEVICES))[device].context_end_ns =
            kj_now_ns();
    kj_unlock_cold();
}

static void primary_begin(struct kj_ledger_header *ledger, struct kj_ending *e, bool reset)
{
    e->retained = atomic_load(&primaries[e->ordinal].retained);
    e->unsure = atomic_load(&primaries[e->ordinal].retaining) != 0;
    /* While the program is known to hold more references, this is not the end. */
    e->may_end = reset || atomic_load(&primaries[e->ordinal].held) <= 1;
    e->primary = e->may_end ? primary_find(e->ordinal) : NULL;
    close_to_timing(ledger, e->primary);
}

static void primary_end(struct kj_ledger_header *ledger, struct kj_ending *e, CUresult rc, bool release)
{
    unsigned flags;
    int active = 1;
    if (!rc && release && atomic_load(&primaries[e->ordinal].held) > 0)
        atomic_fetch_sub(&primaries[e->ordinal].held, 1);
    if (!rc && kj_driver.cuDevicePrimaryCtxGetState &&
        kj_driver.cuDevicePrimaryCtxGetState(e->ordinal, &flags, &active))
        active = 1;
    /* Retained by another thread meanwhile: whether it is the same one, or a new one of the same handle,
     * cannot be told. Taken for a new one it loses the times under way, and no more. */
    e->unsure = e->unsure || atomic_load(&primaries[e->ordinal].retaining) ||
                atomic_load(&primaries[e->ordinal].retained) != e->retained;
    bool ended = !rc && (!active || (e->may_end && e->unsure));
    settle(ledger, ended && !e->primary ? primary_find(e->ordinal) : e->primary, ended);
}

struct kj_ending kj_ending_of_context(CUcontext handle)
{
    return (struct kj_ending){.context = handle ? context_find(handle) : NULL, .ordinal = -1};
}

struct kj_ending kj_ending_of_primary(CUdevice ordinal)
{
    return (struct kj_ending){.ordinal = is_ordinal(ordinal) ? ordinal : -1};
}

/* It holds a reference to the primary one; of which device, is known of one that was launched to. */
struct kj_ending kj_ending_of_green(CUgreenCtx green)
{
    CUcontext handle = NULL;
    struct kj_ending e = {.ordinal = -1};
    if (kj_driver.cuCtxFromGreenCtx && !kj_driver.cuCtxFromGreenCtx(&handle, green) && handle)
        e.context = context_find(handle);
    e.ordinal = e.context ? e.context->ordinal : -1;
    return e;
}

/* Ends that could not be told from the call. */
static void primaries_check(struct kj_ledger_header *ledger)
{
    unsigned flags;
    int active;
    for (CUdevice ordinal = 0; ordinal < DEVICES_CAP; ordinal++) {
        struct kj_context *context = primary_find(ordinal);
        if (context && kj_driver.cuDevicePrimaryCtxGetState &&
            !kj_driver.cuDevicePrimaryCtxGetState(ordinal, &flags, &active) && !active)
            settle(ledger, context, true);
    }
}

void kj_ending_begin(struct kj_ledger_header *ledger, struct kj_ending *e, enum kj_hook hook)
{
    bool detach = hook == KJ_HOOK_cuCtxDetach;
    e->ends = e->context && (!detach || atomic_load(&e->context->references) <= 1);
    if (e->ends)
        close_to_timing(ledger, e->context);
    if (e->ordinal >= 0)
        primary_begin(ledger, e,
                      hook == KJ_HOOK_cuDevicePrimaryCtxReset || hook == KJ_HOOK_cuDevicePrimaryCtxReset_v2);
}

void kj_ending_end(struct kj_ledger_header *ledger, struct kj_ending *e, enum kj_hook hook, CUresult rc)
{
    if (hook == KJ_HOOK_cuCtxDetach && !rc && e->context)
        atomic_fetch_sub(&e->context->references, 1);
    if (e->ends)
        settle(ledger, e->context, !rc);
    if (e->ordinal >= 0)
        primary_end(ledger, e, rc,
                    hook == KJ_HOOK_cuDevicePrimaryCtxRelease ||
                        hook == KJ_HOOK_cuDevicePrimaryCtxRelease_v2);
    else if (hook == KJ_HOOK_cuGreenCtxDestroy)
        primaries_check(ledger);
    kj_self.context = NULL;
}

void kj_contexts_harvest_visited(struct kj_ledger_header *ledger)
{
    unsigned used = atomic_load_explicit(&contexts_used, memory_order_relaxed);
    for (unsigned i = 0; i < used; i++)
        if (&contexts[i] != kj_self.context &&
            atomic_load_explicit(&contexts[i].visited, memory_order_relaxed) &&
            atomic_load_explicit(&contexts[i].handle, memory_order_relaxed))
            kj_timing_harvest(ledger, &contexts[i], 0);
}

void kj_context_visit(struct kj_ledger_header *ledger, struct kj_context *context)
{
    if (kj_context_current(ledger) != context &&
        !atomic_load_explicit(&context->visited, memory_order_relaxed))
        atomic_store_explicit(&context->visited, true, memory_order_relaxed);
}

bool kj_context_is_only(struct kj_ledger_header *ledger, CUcontext named)
{
    const struct kj_context *context = named ? context_find(named) : kj_context_current(ledger);
    unsigned used = atomic_load_explicit(&contexts_used, memory_order_relaxed);
    if (!context || !context->timing || ledger->sections[KJ_SECTION_CONTEXTS].dropped)
        return false;
    for (unsigned i = 0; i < used; i++)
        if (&contexts[i] != context && atomic_load_explicit(&contexts[i].handle, memory_order_relaxed))
            return false;
    return true;
}

/* ---- what is known of one
 * --------------------------------------------------------------------------------------------- */

uint16_t kj_context_device(const struct kj_context *context)
{
    return context->device;
}

uint32_t kj_context_row(const struct kj_context *context)
{
    return context->row;
}

struct kj_timing *kj_context_timing(struct kj_context *context)
{
    return context->timing;
}

void kj_contexts_forget(void)
{
    unsigned used = atomic_exchange(&contexts_used, 0);
    for (unsigned i = 0; i < used; i++) {
        atomic_store(&contexts[i].serial, 0);
        atomic_store(&contexts[i].handle, NULL);
        kj_timing_init(contexts[i].timing);
    }
    memset(primaries, 0, sizeof(primaries));
    kj_streams_forget(NULL);
}
