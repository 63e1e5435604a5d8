/* SPDX-License-Identifier: Apache-2.0
 *
 * contexts.c - who calls, in which context, on which stream: rows made at first sight, found again without a
 * lock.
 */
#include "shim.h"

#include "timing.h"

#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

__thread struct kj_thread kj_self;
static atomic_uint shards_taken;

struct kj_context {
    _Atomic(CUcontext) handle; /* NULL: free, or released */
    uint32_t row;              /* of CONTEXTS */
    uint16_t device;           /* row of DEVICES */
    struct kj_timing timing;
};
enum { CONTEXTS_CAP = 64, STREAMS_CAP = 2048 };
static struct kj_context contexts[CONTEXTS_CAP];
static atomic_uint contexts_used;

static struct {
    _Atomic(uintptr_t) key; /* handle, lane and context folded; 0 free, 1 forgotten */
    uint16_t row;
} streams[STREAMS_CAP];

void kj_thread_start(struct kj_ledger_header *ledger)
{
    memset(&kj_self, 0, sizeof(kj_self));
    struct kj_ledger_thread thread = {.tid = (int32_t)syscall(SYS_gettid)};
    prctl(PR_GET_NAME, thread.name);
    thread.name[15] = 0;
    thread.role = !strncmp(thread.name, "pt_autograd", 11) ? KJ_ROLE_AUTOGRAD
                  : thread.tid == ledger->pid              ? KJ_ROLE_MAIN
                                                           : KJ_ROLE_OTHER;
    kj_lock_cold();
    int64_t row = kj_row_reserve(ledger, KJ_SECTION_THREADS);
    if (row >= 0) {
        ((struct kj_ledger_thread *)kj_section(ledger, KJ_SECTION_THREADS))[row] = thread;
        kj_row_publish(ledger, KJ_SECTION_THREADS);
    }
    kj_unlock_cold();
    /* The last shard is for everybody who comes after the first fifteen, with atomic adds. */
    unsigned shard = atomic_fetch_add(&shards_taken, 1);
    kj_self.exclusive = shard < KJ_LEDGER_SHARDS - 1;
    shard = kj_self.exclusive ? shard : KJ_LEDGER_SHARDS - 1;
    kj_self.counts = (uint64_t *)kj_section(ledger, KJ_SECTION_COUNTS) + (size_t)shard * KJ_LEDGER_COUNTS_CAP;
    kj_self.row = row >= 0 ? (uint16_t)row : 0;
    kj_self.role = kj_role_in_range((uint8_t)thread.role);
    kj_self.random = (uint32_t)thread.tid * 2654435761u | 1;
    kj_self.sample_distance = kj_self.until_sample = KJ_SAMPLE_EVERY / 2;
    kj_self.ledger = ledger;
}

void kj_threads_forget(void)
{
    atomic_store(&shards_taken, 0);
    memset(&kj_self, 0, sizeof(kj_self));
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
    CUuuid uuid;
    __typeof__(kj_driver.cuDeviceGetUuid) get_uuid =
        kj_driver.cuDeviceGetUuid_v2 ? kj_driver.cuDeviceGetUuid_v2 : kj_driver.cuDeviceGetUuid;
    if (get_uuid && !get_uuid(&uuid, ordinal)) {
        memcpy(device.uuid, uuid.bytes, 16);
        device.uuid_known = 1;
    }
    if (kj_driver.cuDeviceGetName)
        kj_driver.cuDeviceGetName(device.name, sizeof(device.name) - 1, ordinal);
    device.multiprocessors = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, ordinal);
    device.pci_bus = attribute(CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, ordinal);
    device.pci_device = attribute(CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID, ordinal);
    device.pci_domain = attribute(CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, ordinal);
    return device;
}

/* Under the cold lock. */
static uint16_t device_row(struct kj_ledger_header *ledger, const struct kj_ledger_device *device)
{
    struct kj_ledger_device *rows = kj_section(ledger, KJ_SECTION_DEVICES);
    for (uint64_t i = 0; i < ledger->sections[KJ_SECTION_DEVICES].used; i++)
        if (rows[i].ordinal == device->ordinal)
            return (uint16_t)i;
    int64_t row = kj_row_reserve(ledger, KJ_SECTION_DEVICES);
    if (row < 0)
        return 0;
    rows[row] = *device;
    kj_row_publish(ledger, KJ_SECTION_DEVICES);
    return (uint16_t)row;
}

static struct kj_context *context_find(CUcontext handle)
{
    unsigned used = atomic_load_explicit(&contexts_used, memory_order_acquire);
    for (unsigned i = 0; i < used && i < CONTEXTS_CAP; i++)
        if (atomic_load_explicit(&contexts[i].handle, memory_order_relaxed) == handle)
            return &contexts[i];
    return NULL;
}

static struct kj_context *context_add(struct kj_ledger_header *ledger, CUcontext handle)
{
    CUdevice ordinal;
    if (!kj_driver.cuCtxGetDevice || kj_driver.cuCtxGetDevice(&ordinal))
        return NULL;
    struct kj_ledger_device device = describe(ordinal);
    int version = 0;
    if (kj_driver.cuDriverGetVersion && !kj_driver.cuDriverGetVersion(&version))
        ledger->cuda_driver_version = version;
    kj_lock_cold();
    struct kj_context *context = context_find(handle);
    struct kj_context *place =
        context ? NULL : context_find(NULL); /* one released before, else a fresh one */
    unsigned used = atomic_load(&contexts_used);
    if (!context && !place && used < CONTEXTS_CAP)
        place = &contexts[used++];
    int64_t row = place ? kj_row_reserve(ledger, KJ_SECTION_CONTEXTS) : -1;
    if (row >= 0) {
        context = place;
        context->device = device_row(ledger, &device);
        context->row = (uint32_t)row;
        struct kj_ledger_context *rows = kj_section(ledger, KJ_SECTION_CONTEXTS);
        rows[row] = (struct kj_ledger_context){.device = context->device, .event_ns = UINT32_MAX};
        kj_row_publish(ledger, KJ_SECTION_CONTEXTS);
        kj_timing_init(&context->timing);
        atomic_store(&context->handle, handle);
        atomic_store_explicit(&contexts_used, used, memory_order_release);
    }
    kj_unlock_cold();
    return context;
}

struct kj_context *kj_context_current(struct kj_ledger_header *ledger)
{
    struct kj_context *cached = kj_self.context;
    if (likely(cached && atomic_load_explicit(&cached->handle, memory_order_relaxed)))
        return cached;
    CUcontext handle = NULL;
    if (!kj_driver.cuCtxGetCurrent || kj_driver.cuCtxGetCurrent(&handle) || !handle)
        return NULL;
    struct kj_context *context = context_find(handle);
    kj_self.context = context ? context : context_add(ledger, handle);
    return kj_self.context;
}

struct kj_context *kj_context_of_stream(struct kj_ledger_header *ledger, CUstream stream)
{
    CUcontext handle = NULL;
    kj_self.inside = true;
    bool told = kj_driver.cuStreamGetCtx && !kj_driver.cuStreamGetCtx(stream, &handle) && handle;
    kj_self.inside = false;
    struct kj_context *context = told ? context_find(handle) : NULL;
    return context ? context : kj_context_current(ledger);
}

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
    return &context->timing;
}

uint16_t kj_stream_row(struct kj_ledger_header *ledger, struct kj_context *context, CUstream stream, int lane)
{
    /* The two default streams exist once per context, and per thread for the second. */
    uintptr_t key = (uintptr_t)stream;
    if (!stream)
        key = (uintptr_t)(lane ? CU_STREAM_PER_THREAD : CU_STREAM_LEGACY);
    if (key <= 2)
        key = (key << 8 | context->row << 16 | (key == 2 ? (uintptr_t)kj_self.row << 32 : 0)) | 4;
    size_t slot = (key * 0x9e3779b97f4a7c15ULL) >> 53 & (STREAMS_CAP - 1);
    for (int probe = 0; probe < 32; probe++, slot = (slot + 1) & (STREAMS_CAP - 1)) {
        uintptr_t seen = atomic_load_explicit(&streams[slot].key, memory_order_acquire);
        if (seen == key)
            return streams[slot].row;
        if (seen)
            continue;
        kj_lock_cold();
        int64_t row = -1;
        if (!atomic_load(&streams[slot].key) && (row = kj_row_reserve(ledger, KJ_SECTION_STREAMS)) >= 0) {
            ((struct kj_ledger_stream *)kj_section(ledger, KJ_SECTION_STREAMS))[row] =
                (struct kj_ledger_stream){
                    .id = (uint64_t)row, .context = context->row, .flags = key & 4 ? 1 : 0};
            kj_row_publish(ledger, KJ_SECTION_STREAMS);
            streams[slot].row = (uint16_t)row;
            atomic_store_explicit(&streams[slot].key, key, memory_order_release);
        }
        kj_unlock_cold();
        return row < 0 ? 0 : (uint16_t)row;
    }
    return 0;
}

void kj_stream_forget(CUstream stream)
{
    for (size_t slot = 0; slot < STREAMS_CAP; slot++)
        if (atomic_load(&streams[slot].key) == (uintptr_t)stream)
            atomic_store(&streams[slot].key, 1);
}

void kj_contexts_forget(void)
{
    atomic_store(&contexts_used, 0);
    for (int i = 0; i < CONTEXTS_CAP; i++) {
        atomic_store(&contexts[i].handle, NULL);
        kj_timing_init(&contexts[i].timing);
    }
    memset(streams, 0, sizeof(streams));
}

void kj_timing_release(struct kj_ledger_header *ledger, struct kj_context *context)
{
    kj_timing_harvest(ledger, context, 0);
    kj_timing_drop(&context->timing);
    /* If the context lives on, it is met again as a new one; the row keeps what was learned. */
    atomic_store(&context->handle, NULL);
    kj_self.context = NULL;
}
