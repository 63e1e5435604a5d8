/* SPDX-License-Identifier: Apache-2.0
 *
 * activities.c - from a launch to its row in the ledger, without a lock: open addressing, four slots to a
 * cache line. A slot is written once, under the cold lock, and published by its tag; it is never moved.
 *
 * The tag is a 64-bit hash of the whole key, and stands for it: among as many keys as the table holds, that
 * two share one has a chance of one in 10^10. So a launch reads one line of a table that stays in the caches.
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
    BUCKETS = 16384,
};

struct slot {
    _Atomic uint64_t tag; /* 0 free; else the hash with its lowest bit set; DEAD after an unload */
    uint32_t row;
    uint32_t tries; /* timings begun, in bursts and outside of them, up to TRIES */
};
#define HUGE_PAGE  ((size_t)2 << 20)
#define TABLE_SIZE (SLOTS * (sizeof(struct slot) + sizeof(void *)))
_Static_assert(TABLE_SIZE <= HUGE_PAGE, "one huge page");
#define DEAD 2u

static struct slot *slots;
static const void **functions; /* of each slot: found by an unload alone */
static unsigned slots_used;

/* Rows by (name, kind, device, role), for the first launch of each of thousands: row + 1, or 0. */
static uint32_t bucket_first[BUCKETS], bucket_next[KJ_LEDGER_ACTIVITIES_CAP];

void kj_activities_reset(void)
{
    /* Anonymous and private: after a fork the child's reset does not touch the parent's. */
    if (slots)
        munmap(slots, HUGE_PAGE);
    slots = NULL;
    slots_used = 0;
    memset(bucket_first, 0, sizeof(bucket_first));
    char *map =
        mmap(NULL, 2 * HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return;
    size_t before = -(uintptr_t)map % HUGE_PAGE;
    if (before)
        munmap(map, before);
    munmap(map + before + HUGE_PAGE, HUGE_PAGE - before);
    slots = (struct slot *)(map + before);
    functions = (const void **)(slots + SLOTS);
    /* Thousands of kernels are touched in no order: in small pages each probe would miss the TLB too. */
    madvise(slots, HUGE_PAGE, MADV_HUGEPAGE);
}

/* Both halves of a 128-bit product: each bit of it depends on all bits of both. */
static inline uint64_t fold(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* The first two products do not wait for each other: this is the longest stretch of a counted launch. The
 * constants are arbitrary bits: where a product has a factor of 0, it says nothing of the other one. */
static inline uint64_t hash_of(uint8_t kind, uint16_t device, uint8_t role, const struct kj_shape *s)
{
    uint64_t what = (uintptr_t)s->function ^ 0x9e3779b97f4a7c15ULL;
    uint64_t xy = ((uint64_t)s->grid[0] << 32 | s->grid[1]) ^ 0xd1342543de82ef95ULL;
    uint64_t zx = ((uint64_t)s->grid[2] << 32 | s->block[0]) ^ 0xaf251af3b0f025b5ULL;
    uint64_t yz =
        ((uint64_t)s->block[1] << 48 ^ (uint64_t)s->block[2] << 32 ^ s->shared_bytes) ^ 0xc6a4a7935bd1e995ULL;
    uint64_t where = (uint64_t)kind << 32 | (uint64_t)device << 8 | role;
    return fold(fold(what, xy) ^ fold(zx, yz) ^ where, 0xe7037ed1a0b428dbULL) | 1;
}

static inline size_t place_of(uint64_t hash, unsigned probe)
{
    return ((hash >> 16) + probe) & (SLOTS - 1);
}

static inline struct slot *probe(uint64_t hash)
{
    for (unsigned i = 0; i < PROBES; i++) {
        struct slot *slot = &slots[place_of(hash, i)];
        uint64_t tag = atomic_load_explicit(&slot->tag, memory_order_acquire);
        if (tag == hash)
            return slot;
        if (!tag)
            return NULL;
    }
    return NULL;
}

static void publish_slot(uint64_t hash, const void *function, uint32_t row)
{
    for (unsigned i = 0; i < PROBES; i++) {
        struct slot *slot = &slots[place_of(hash, i)];
        if (atomic_load_explicit(&slot->tag, memory_order_relaxed))
            continue;
        functions[place_of(hash, i)] = function;
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
        [KJ_ACTIVITY_HOST] = "[host function]",      [KJ_ACTIVITY_WALK] = "[phase walk]",
    };
    return names[kind];
}

static uint32_t *bucket_of(const struct kj_ledger_activity *a)
{
    uint64_t place = (uint64_t)a->kind << 32 | (uint64_t)a->device << 8 | a->role;
    return &bucket_first[fold(a->name + 1, place ^ 0x9e3779b97f4a7c15ULL) % BUCKETS];
}

/* A row for (name, kind, device, role, shape), the same one for the same key; under the cold lock. */
static uint32_t row_for(struct kj_ledger_header *ledger, const struct kj_ledger_activity *wanted,
                        bool *ret_first)
{
    struct kj_ledger_activity *rows = kj_section(ledger, KJ_SECTION_ACTIVITIES);
    uint32_t *bucket = bucket_of(wanted);
    unsigned shapes = 0;
    for (uint32_t i = *bucket; i; i = bucket_next[i - 1]) {
        const struct kj_ledger_activity *a = &rows[i - 1];
        if (a->name != wanted->name || a->kind != wanted->kind || a->device != wanted->device ||
            a->role != wanted->role)
            continue;
        if (!memcmp(a->grid, wanted->grid, sizeof(a->grid)) &&
            !memcmp(a->block, wanted->block, sizeof(a->block)) && a->shared_bytes == wanted->shared_bytes)
            return i - 1;
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
    bucket_next[index] = *bucket;
    *bucket = (uint32_t)index + 1;
    *ret_first = true;
    return (uint32_t)index;
}

static uint32_t find_slowly(struct kj_ledger_header *ledger, uint8_t kind, uint16_t device, uint8_t role,
                            const struct kj_shape *shape, uint64_t hash, bool *ret_first)
{
    uint32_t name = kind == KJ_ACTIVITY_KERNEL ? kj_function_name(ledger, shape->function) : 0;
    kj_lock_cold();
    struct slot *slot = probe(hash);
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
            publish_slot(hash, shape->function, row);
    }
    kj_unlock_cold();
    return row;
}

uint64_t kj_activity_hash(uint8_t kind, uint16_t device, const struct kj_shape *shape)
{
    uint64_t hash = hash_of(kind, device, kj_self.role, shape);
    /* Thousands of kernels do not fit the nearest cache: the line is on its way while the driver is at work.
     * It is not read before: to wait for it would hold up the driver's call. */
    if (likely(slots))
        __builtin_prefetch(&slots[place_of(hash, 0)]);
    return hash;
}

bool kj_activity_is_new(uint64_t hash)
{
    const struct slot *slot = likely(slots) ? probe(hash) : NULL;
    return !slot || slot->tries < TRIES;
}

uint32_t kj_activity_known(uint64_t hash, bool timed)
{
    struct slot *slot = likely(slots) ? probe(hash) : NULL;
    if (unlikely(!slot))
        return KJ_ROW_UNKNOWN;
    if (unlikely(timed) && slot->tries < TRIES)
        slot->tries++; /* threads may race here: one try more or less */
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
    kj_governor_made(ledger, kj_now_ns() - begun_ns);
    return row;
}

uint32_t kj_activity_find(struct kj_ledger_header *ledger, uint8_t kind, uint16_t device,
                          const struct kj_shape *shape, bool *ret_first)
{
    uint64_t hash = kj_activity_hash(kind, device, shape);
    uint32_t row = kj_activity_known(hash, false);
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
        if (atomic_load_explicit(&slots[i].tag, memory_order_relaxed) && functions[i] == function)
            atomic_store_explicit(&slots[i].tag, DEAD, memory_order_release);
    kj_unlock_cold();
}
