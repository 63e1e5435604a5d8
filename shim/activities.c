/* SPDX-License-Identifier: Apache-2.0
 *
 * activities.c - from a launch to its row in the ledger, without a lock: open addressing over the full key,
 * one cache line a slot. A slot is written once, under the cold lock, and published by its tag; it is never
 * moved.
 *
 * Floor of a counted launch: one hash probe and one add. What it costs on top is measured by `make bench`.
 */
#include "shim.h"

#include <string.h>
#include <sys/mman.h>

enum {
    SLOTS = 65536,
    PROBES = 64,
    SLOTS_FULL = SLOTS / 4 * 3, /* from here on no new shapes */
    SHAPES_PER_KERNEL = 256,    /* more than that share one row, grid 0 */
    TRIES = 8,                  /* timings before a kernel is no longer timed alone */
};

struct slot {
    _Atomic uint64_t tag; /* 0 free; else the hash with its lowest bit set; DEAD after an unload */
    const void *function;
    uint32_t grid[3], block[3];
    uint32_t shared_bytes;
    uint16_t device;
    uint8_t kind, role;
    uint32_t row;
    uint32_t tries; /* timings begun outside of bursts or in them, up to TRIES */
    uint32_t padding[2];
};
#define HUGE_PAGE ((size_t)2 << 20)
_Static_assert(SLOTS * sizeof(struct slot) % HUGE_PAGE == 0, "whole huge pages");
_Static_assert(sizeof(struct slot) == 64, "one cache line");
#define DEAD 2u

static struct slot *slots;
static unsigned slots_used;

void kj_activities_reset(void)
{
    /* Anonymous and private: after a fork the child's reset does not touch the parent's. */
    if (slots)
        munmap(slots, SLOTS * sizeof(*slots));
    slots = NULL;
    slots_used = 0;
    char *map = mmap(NULL, SLOTS * sizeof(*slots) + HUGE_PAGE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return;
    size_t before = -(uintptr_t)map % HUGE_PAGE;
    if (before)
        munmap(map, before);
    munmap(map + before + SLOTS * sizeof(*slots), HUGE_PAGE - before);
    slots = (struct slot *)(map + before);
    /* Thousands of kernels are touched in no order: in small pages each probe would miss the TLB too. */
    madvise(slots, SLOTS * sizeof(*slots), MADV_HUGEPAGE);
}

static inline uint64_t mix(uint64_t h, uint64_t value)
{
    h = (h ^ value) * 0x9e3779b97f4a7c15ULL;
    return h ^ h >> 29;
}

static inline uint64_t hash_of(uint8_t kind, uint16_t device, uint8_t role, const struct kj_shape *s)
{
    uint64_t h = mix((uintptr_t)s->function, (uint64_t)kind << 32 | (uint64_t)device << 8 | role);
    h = mix(h, (uint64_t)s->grid[0] << 32 | s->grid[1]);
    h = mix(h, (uint64_t)s->grid[2] << 32 | s->block[0]);
    h = mix(h, (uint64_t)s->block[1] << 48 | (uint64_t)s->block[2] << 32 | s->shared_bytes);
    return h | 1;
}

static inline bool same(const struct slot *slot, uint8_t kind, uint16_t device, uint8_t role,
                        const struct kj_shape *s)
{
    return slot->function == s->function && slot->device == device && slot->kind == kind &&
           slot->role == role && slot->grid[0] == s->grid[0] && slot->grid[1] == s->grid[1] &&
           slot->grid[2] == s->grid[2] && slot->block[0] == s->block[0] && slot->block[1] == s->block[1] &&
           slot->block[2] == s->block[2] && slot->shared_bytes == s->shared_bytes;
}

static inline struct slot *probe(uint64_t hash, uint8_t kind, uint16_t device, uint8_t role,
                                 const struct kj_shape *s)
{
    for (unsigned i = 0; i < PROBES; i++) {
        struct slot *slot = &slots[((hash >> 16) + i) & (SLOTS - 1)];
        uint64_t tag = atomic_load_explicit(&slot->tag, memory_order_acquire);
        if (tag == hash && same(slot, kind, device, role, s))
            return slot;
        if (!tag)
            return NULL;
    }
    return NULL;
}

static void publish_slot(uint64_t hash, uint8_t kind, uint16_t device, uint8_t role, const struct kj_shape *s,
                         uint32_t row)
{
    for (unsigned i = 0; i < PROBES; i++) {
        struct slot *slot = &slots[((hash >> 16) + i) & (SLOTS - 1)];
        if (atomic_load_explicit(&slot->tag, memory_order_relaxed))
            continue;
        slot->function = s->function;
        memcpy(slot->grid, s->grid, sizeof(slot->grid));
        memcpy(slot->block, s->block, sizeof(slot->block));
        slot->shared_bytes = s->shared_bytes;
        slot->device = device;
        slot->kind = kind;
        slot->role = role;
        slot->row = row;
        atomic_store_explicit(&slot->tag, hash, memory_order_release);
        slots_used++;
        return;
    }
}

static const char *kind_name(uint8_t kind)
{
    static const char *const names[] = {
        [KJ_ACTIVITY_MEMCPY_HTOD] = "[memcpy HtoD]", [KJ_ACTIVITY_MEMCPY_DTOH] = "[memcpy DtoH]",
        [KJ_ACTIVITY_MEMCPY_DTOD] = "[memcpy DtoD]", [KJ_ACTIVITY_MEMCPY_OTHER] = "[memcpy]",
        [KJ_ACTIVITY_MEMSET] = "[memset]",           [KJ_ACTIVITY_GRAPH] = "[graph]",
        [KJ_ACTIVITY_HOST] = "[host function]",
    };
    return names[kind];
}

/* A row for (name, kind, device, role, shape), the same one for the same key; under the cold lock. */
static uint32_t row_for(struct kj_ledger_header *ledger, const struct kj_ledger_activity *wanted,
                        bool *ret_first)
{
    struct kj_ledger_activity *rows = kj_section(ledger, KJ_SECTION_ACTIVITIES);
    uint64_t used = ledger->sections[KJ_SECTION_ACTIVITIES].used;
    unsigned shapes = 0;
    for (uint64_t i = 1; i < used; i++) {
        const struct kj_ledger_activity *a = &rows[i];
        if (a->name != wanted->name || a->kind != wanted->kind || a->device != wanted->device ||
            a->role != wanted->role)
            continue;
        if (!memcmp(a->grid, wanted->grid, sizeof(a->grid)) &&
            !memcmp(a->block, wanted->block, sizeof(a->block)) && a->shared_bytes == wanted->shared_bytes)
            return (uint32_t)i;
        shapes++;
    }
    struct kj_ledger_activity row = *wanted;
    if (shapes >= SHAPES_PER_KERNEL && wanted->grid[0]) {
        memset(row.grid, 0, sizeof(row.grid));
        memset(row.block, 0, sizeof(row.block));
        row.shared_bytes = 0;
        return row_for(ledger, &row, ret_first);
    }
    int64_t index = kj_row_reserve(ledger, KJ_SECTION_ACTIVITIES);
    if (index < 0)
        return 0;
    rows[index] = row;
    kj_row_publish(ledger, KJ_SECTION_ACTIVITIES);
    *ret_first = true;
    return (uint32_t)index;
}

static uint32_t find_slowly(struct kj_ledger_header *ledger, uint8_t kind, uint16_t device, uint8_t role,
                            const struct kj_shape *shape, uint64_t hash, bool *ret_first)
{
    uint32_t name = kind == KJ_ACTIVITY_KERNEL ? kj_function_name(ledger, shape->function) : 0;
    kj_lock_cold();
    struct slot *slot = probe(hash, kind, device, role, shape);
    uint32_t row = slot ? slot->row : 0;
    if (!slot) {
        struct kj_ledger_activity wanted = {
            .name = name, .device = device, .kind = kind, .role = role, .shared_bytes = shape->shared_bytes};
        memcpy(wanted.grid, shape->grid, sizeof(wanted.grid));
        memcpy(wanted.block, shape->block, sizeof(wanted.block));
        if (kind != KJ_ACTIVITY_KERNEL) {
            /* One name string each: found again among the rows of this kind, else stored. */
            struct kj_ledger_activity *rows = kj_section(ledger, KJ_SECTION_ACTIVITIES);
            for (uint64_t i = 1; i < ledger->sections[KJ_SECTION_ACTIVITIES].used && !wanted.name; i++)
                if (rows[i].kind == kind)
                    wanted.name = rows[i].name;
            if (!wanted.name)
                wanted.name = kj_name_store(ledger, kind_name(kind));
        }
        row = row_for(ledger, &wanted, ret_first);
        if (slots_used < SLOTS_FULL)
            publish_slot(hash, kind, device, role, shape, row);
    }
    kj_unlock_cold();
    return row;
}

uint32_t kj_activity_seek(uint8_t kind, uint16_t device, const struct kj_shape *shape, int mode,
                          uint64_t *ret_hash, bool *ret_timed)
{
    uint8_t role = kj_self.role;
    *ret_hash = hash_of(kind, device, role, shape);
    *ret_timed = mode != KJ_TIME_NONE;
    struct slot *slot = likely(slots) ? probe(*ret_hash, kind, device, role, shape) : NULL;
    if (unlikely(!slot))
        return KJ_ROW_UNKNOWN;
    /* Thousands of kernels do not fit the caches: the count is on its way while the driver is at work. */
    __builtin_prefetch(&kj_self.counts[slot->row], 1);
    if (unlikely(mode != KJ_TIME_NONE)) {
        bool learned = slot->tries >= TRIES; /* threads may race here: one try more or less */
        slot->tries += !learned;
        *ret_timed = mode == KJ_TIME_ALL || !learned;
    }
    return slot->row;
}

uint32_t kj_activity_make(struct kj_ledger_header *ledger, uint8_t kind, uint16_t device,
                          const struct kj_shape *shape, uint64_t hash, bool *ret_first)
{
    *ret_first = false;
    if (unlikely(!slots))
        return 0;
    uint64_t begun_ns = kj_now_ns();
    uint32_t row = find_slowly(ledger, kind, device, kj_self.role, shape, hash, ret_first);
    kj_self_time_add(ledger, kj_now_ns() - begun_ns); /* too rare, and too long, for the samples */
    return row;
}

uint32_t kj_activity_find(struct kj_ledger_header *ledger, uint8_t kind, uint16_t device,
                          const struct kj_shape *shape, bool *ret_first)
{
    uint64_t hash;
    bool timed;
    uint32_t row = kj_activity_seek(kind, device, shape, KJ_TIME_NONE, &hash, &timed);
    *ret_first = false;
    return row != KJ_ROW_UNKNOWN ? row : kj_activity_make(ledger, kind, device, shape, hash, ret_first);
}

uint32_t kj_activity_find_as(struct kj_ledger_header *ledger, uint8_t kind, uint16_t device, uint8_t role,
                             const struct kj_shape *shape, bool *ret_first)
{
    uint8_t own = kj_self.role;
    kj_self.role = role;
    uint32_t row = kj_activity_find(ledger, kind, device, shape, ret_first);
    kj_self.role = own;
    return row;
}

void kj_activities_forget(const void *function)
{
    if (!slots)
        return;
    kj_lock_cold();
    for (unsigned i = 0; i < SLOTS; i++)
        if (atomic_load_explicit(&slots[i].tag, memory_order_relaxed) && slots[i].function == function)
            atomic_store_explicit(&slots[i].tag, DEAD, memory_order_release);
    kj_unlock_cold();
}
