/* SPDX-License-Identifier: Apache-2.0
 *
 * activities.c - from a launch to its row in the ledger, without a lock: open addressing, four slots to a
 * cache line. A slot is written under the cold lock and published by its tag; it is never moved.
 *
 * The tag is a 64-bit hash of the whole key, and stands for it: among as many keys as the table holds, that
 * two share one has a chance of one in 10^10. So a launch reads one line of a table that stays in the caches.
 *
 * A kernel with many shapes is folded: from then on its launches share one row, and one slot, whose key has
 * no shape and whose place follows from the function alone. Once there is such a kernel, a launch looks there
 * first, so a shape that was never seen before costs neither a lock nor a slot nor a line of cache. Slots of
 * functions that went away are used again.
 *
 * Floor of a counted launch: one hash probe and one add. What it costs on top is measured by `make bench`.
 */
#include "launch_path.h"

#include <string.h>
#include <sys/mman.h>

enum {
    SLOTS = KJ_SLOTS,
    PROBES = KJ_SLOT_PROBES,
    SLOTS_PLENTY = SLOTS / 4,                   /* from here on a function has one shape of its own */
    SLOTS_FULL = SLOTS / 2,                     /* from here on no new functions: row 0 takes them */
    ROWS_PLENTY = KJ_LEDGER_ACTIVITIES_CAP / 4, /* from here on a kernel has one row */
    SHAPES_PER_KERNEL = 256,                    /* more than that share one row, grid 0 */
    TRIES = 8,                                  /* timings before a kernel is no longer timed alone */
    BUCKETS = 16384,
    CHAINS = 65536,
};

/* The slots of a function, found when it goes away. Under the cold lock. */
struct link {
    const void *function;
    uint32_t next; /* slot + 1, or 0 */
};
#define HUGE_PAGE ((size_t)2 << 20)
_Static_assert(SLOTS * sizeof(struct kj_slot) <= HUGE_PAGE, "one huge page");
#define TABLE_BYTES (HUGE_PAGE + SLOTS * sizeof(struct link) + CHAINS * sizeof(uint32_t))
#define DEAD        KJ_SLOT_DEAD

KJ_EACH_LAUNCH struct kj_slot *kj_slots;
KJ_EACH_LAUNCH _Atomic uint32_t kj_folded;
static struct link *links;    /* of each slot */
static uint32_t *chain_first; /* by function: slot + 1, or 0 */
static _Atomic uint32_t slots_used;

/* Rows by (name, kind, device, role), for the first launch of each of thousands: row + 1, or 0. */
static uint32_t bucket_first[BUCKETS], bucket_next[KJ_LEDGER_ACTIVITIES_CAP];
static uint32_t kind_names[KJ_ACTIVITY_BODY + 1]; /* offsets in NAMES; 0: not stored yet */

void kj_activities_reset(void)
{
    /* Anonymous and private: after a fork the child's reset does not touch the parent's. */
    if (kj_slots)
        munmap(kj_slots, TABLE_BYTES);
    kj_slots = NULL;
    atomic_store(&slots_used, 0);
    atomic_store(&kj_folded, 0);
    memset(bucket_first, 0, sizeof(bucket_first));
    memset(kind_names, 0, sizeof(kind_names));
    char *map = mmap(NULL, TABLE_BYTES + HUGE_PAGE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        atomic_store(&kj_folded, 1); /* there is no table: every launch takes the slow path */
        return;
    }
    size_t before = -(uintptr_t)map % HUGE_PAGE;
    if (before)
        munmap(map, before);
    if (before < HUGE_PAGE)
        munmap(map + before + TABLE_BYTES, HUGE_PAGE - before);
    links = (struct link *)(map + before + HUGE_PAGE);
    chain_first = (uint32_t *)(links + SLOTS);
    kj_slots = (struct kj_slot *)(map + before);
    /* Thousands of kernels are touched in no order: in small pages each probe would miss the TLB too. */
    madvise(kj_slots, HUGE_PAGE, MADV_HUGEPAGE);
}

static inline union kj_place place_of(uint8_t kind, uint16_t device, uint8_t role)
{
    return (union kj_place){.device = device, .role = role, .kind = kind};
}

/* The key of all shapes of a function that have none of their own. */
static inline uint64_t folded_hash_of(uint8_t kind, uint16_t device, uint8_t role,
                                      const struct kj_shape *shape)
{
    const struct kj_shape any = {.function = shape->function};
    return kj_activity_hash_at(place_of(kind, device, role), &any);
}

static inline size_t folded_place_of(const void *function)
{
    return ((uintptr_t)function * 0x9e3779b97f4a7c15ULL) >> 40 & (SLOTS - 1);
}

static inline struct kj_slot *probe(uint64_t hash, size_t place)
{
    for (unsigned i = 0; i < PROBES; i++) {
        struct kj_slot *slot = &kj_slots[(place + i) & (SLOTS - 1)];
        uint64_t tag = atomic_load_explicit(&slot->tag, memory_order_acquire);
        if (tag == hash)
            return slot;
        if (!tag)
            return NULL;
    }
    return NULL;
}

static inline struct kj_slot *find_folded(uint64_t hash, uint8_t kind, uint16_t device,
                                          const struct kj_shape *shape)
{
    size_t place = folded_place_of(shape->function);
    if (hash == kj_self.folded.hash)
        return probe(hash, place);
    hash = folded_hash_of(kind, device, kj_self.place.role, shape);
    struct kj_slot *slot = probe(hash, place);
    if (slot) {
        kj_self.folded.function = shape->function;
        kj_self.folded.hash = hash;
        kj_self.folded.place = place_of(kind, device, kj_self.place.role);
    }
    return slot;
}

static inline struct kj_slot *find(uint64_t hash, uint8_t kind, uint16_t device, const struct kj_shape *shape)
{
    struct kj_slot *slot = NULL;
    if (unlikely(atomic_load_explicit(&kj_folded, memory_order_relaxed)) && shape->grid[0])
        slot = find_folded(hash, kind, device, shape);
    return slot ? slot : probe(hash, kj_slot_place(hash));
}

static uint32_t *chain_of(const void *function)
{
    return &chain_first[((uintptr_t)function * 0x9e3779b97f4a7c15ULL) >> 48];
}

static bool has_slot(const void *function)
{
    for (uint32_t i = *chain_of(function); i; i = links[i - 1].next)
        if (links[i - 1].function == function)
            return true;
    return false;
}

/* The caller has seen that the key is in no slot. */
static void publish_slot(uint64_t hash, size_t place, const void *function, uint32_t row)
{
    for (unsigned i = 0; i < PROBES; i++) {
        size_t at = (place + i) & (SLOTS - 1);
        struct kj_slot *slot = &kj_slots[at];
        uint64_t tag = atomic_load_explicit(&slot->tag, memory_order_relaxed);
        if (tag && tag != DEAD)
            continue;
        uint32_t *first = chain_of(function);
        links[at] = (struct link){function, *first};
        *first = (uint32_t)at + 1;
        slot->row = row;
        slot->tries = 0;
        atomic_store_explicit(&slot->tag, hash, memory_order_release);
        atomic_fetch_add_explicit(&slots_used, 1, memory_order_relaxed);
        return;
    }
}

/* Nobody looks beyond a free slot: what is dead before one is free as well. */
static void free_slot(size_t at)
{
    atomic_store_explicit(&kj_slots[at].tag, DEAD, memory_order_release);
    atomic_fetch_sub_explicit(&slots_used, 1, memory_order_relaxed);
    while (atomic_load_explicit(&kj_slots[at].tag, memory_order_relaxed) == DEAD &&
           !atomic_load_explicit(&kj_slots[(at + 1) & (SLOTS - 1)].tag, memory_order_relaxed)) {
        atomic_store_explicit(&kj_slots[at].tag, 0, memory_order_release);
        at = (at - 1) & (SLOTS - 1);
    }
}

/* Frees the function's slots; `like` and `kept`: those of rows of that kind, device and role, but for one. */
static void free_slots(const void *function, const struct kj_ledger_activity *rows,
                       const struct kj_ledger_activity *like, uint64_t kept)
{
    for (uint32_t *at = chain_of(function); *at;) {
        struct link *link = &links[*at - 1];
        const struct kj_slot *slot = &kj_slots[*at - 1];
        const struct kj_ledger_activity *a = like ? &rows[slot->row] : NULL;
        if (link->function != function || (a && (slot->tag == kept || a->kind != like->kind ||
                                                 a->device != like->device || a->role != like->role))) {
            at = &link->next;
            continue;
        }
        free_slot(*at - 1);
        *at = link->next;
    }
}

static const char *kind_name(uint8_t kind)
{
    static const char *const names[] = {
        [KJ_ACTIVITY_MEMCPY_HTOD] = "[memcpy HtoD]", [KJ_ACTIVITY_MEMCPY_DTOH] = "[memcpy DtoH]",
        [KJ_ACTIVITY_MEMCPY_DTOD] = "[memcpy DtoD]", [KJ_ACTIVITY_MEMCPY_OTHER] = "[memcpy]",
        [KJ_ACTIVITY_MEMSET] = "[memset]",           [KJ_ACTIVITY_GRAPH] = "[graph]",
        [KJ_ACTIVITY_HOST] = "[host function]",      [KJ_ACTIVITY_WALK] = "[phase walk]",
        [KJ_ACTIVITY_BODY] = "[conditional nodes]",
    };
    return names[kind];
}

static uint32_t *bucket_of(const struct kj_ledger_activity *a)
{
    uint64_t place = (uint64_t)a->kind << 32 | (uint64_t)a->device << 8 | a->role;
    return &bucket_first[kj_fold(a->name + 1, place ^ 0x9e3779b97f4a7c15ULL) % BUCKETS];
}

/* What the rows of one (name, kind, device, role) are. */
struct rows_found {
    uint32_t exact, any, newest; /* row + 1, or 0; newest: of those that have a shape */
    unsigned shapes;
};

static struct rows_found rows_find(const struct kj_ledger_activity *rows,
                                   const struct kj_ledger_activity *wanted)
{
    struct rows_found found = {0};
    for (uint32_t i = *bucket_of(wanted); i && !found.exact; i = bucket_next[i - 1]) {
        const struct kj_ledger_activity *a = &rows[i - 1];
        if (a->name != wanted->name || a->kind != wanted->kind || a->device != wanted->device ||
            a->role != wanted->role)
            continue;
        if (!memcmp(a->grid, wanted->grid, sizeof(a->grid)) &&
            !memcmp(a->block, wanted->block, sizeof(a->block)) && a->shared_bytes == wanted->shared_bytes)
            found.exact = i;
        if (!a->grid[0] && a->kind == KJ_ACTIVITY_KERNEL)
            found.any = i;
        else if (!found.newest)
            found.newest = i;
        found.shapes += a->grid[0] != 0;
    }
    return found;
}

static void take_shape_away(struct kj_ledger_activity *row)
{
    memset(row->grid, 0, sizeof(row->grid)); /* the first of them says so: a reader may come in between */
    memset(row->block, 0, sizeof(row->block));
    row->shared_bytes = 0;
}

/* A row for (name, kind, device, role, shape), the same one for the same key; under the cold lock. Where rows
 * are scarce, a kernel's row becomes that of all its shapes. */
static uint32_t row_for(struct kj_ledger_header *ledger, struct kj_ledger_activity *wanted, bool *ret_first)
{
    struct kj_ledger_activity *rows = kj_section(ledger, KJ_SECTION_ACTIVITIES);
    bool scarce = ledger->sections[KJ_SECTION_ACTIVITIES].used >= ROWS_PLENTY;
    struct rows_found found = rows_find(rows, wanted);
    if (found.exact)
        return found.exact - 1;
    if (wanted->grid[0] && found.shapes >= (scarce ? 1 : SHAPES_PER_KERNEL))
        take_shape_away(wanted);
    if (!wanted->grid[0] && found.any)
        return found.any - 1;
    if (!wanted->grid[0] && scarce && found.newest && wanted->kind == KJ_ACTIVITY_KERNEL) {
        take_shape_away(&rows[found.newest - 1]);
        return found.newest - 1;
    }
    int64_t index = kj_row_reserve(ledger, KJ_SECTION_ACTIVITIES);
    if (index < 0)
        return 0;
    rows[index] = *wanted;
    kj_row_publish(ledger, KJ_SECTION_ACTIVITIES);
    uint32_t *bucket = bucket_of(wanted);
    bucket_next[index] = *bucket;
    *bucket = (uint32_t)index + 1;
    *ret_first = true;
    return (uint32_t)index;
}

/* The row of a key that no slot has, and a slot for it. Under the cold lock. */
static uint32_t add_key(struct kj_ledger_header *ledger, uint32_t name, uint8_t kind, uint16_t device,
                        uint8_t role, const struct kj_shape *shape, uint64_t hash, bool *ret_first)
{
    struct kj_ledger_activity wanted = {
        .name = name, .device = device, .kind = kind, .role = role, .shared_bytes = shape->shared_bytes};
    memcpy(wanted.grid, shape->grid, sizeof(wanted.grid));
    memcpy(wanted.block, shape->block, sizeof(wanted.block));
    if (kind != KJ_ACTIVITY_KERNEL) {
        if (!kind_names[kind])
            kind_names[kind] = kj_name_store(ledger, kind_name(kind));
        wanted.name = kind_names[kind];
    }
    uint32_t used = atomic_load_explicit(&slots_used, memory_order_relaxed);
    if (shape->grid[0] && used >= SLOTS_PLENTY && has_slot(shape->function))
        take_shape_away(&wanted);
    uint32_t row = wanted.name ? row_for(ledger, &wanted, ret_first) : 0; /* no room for its name */
    const struct kj_ledger_activity *rows = kj_section(ledger, KJ_SECTION_ACTIVITIES);
    if (shape->grid[0] && (!row || !rows[row].grid[0])) {
        hash = folded_hash_of(kind, device, role, shape);
        publish_slot(hash, folded_place_of(shape->function), shape->function, row);
        atomic_fetch_add_explicit(&kj_folded, 1, memory_order_relaxed);
        if (row) /* it answers for them */
            free_slots(shape->function, rows, &rows[row], hash);
    } else {
        publish_slot(hash, kj_slot_place(hash), shape->function, row);
    }
    if (used + 1 >= SLOTS_FULL)
        __atomic_fetch_or(&ledger->flags, KJ_LEDGER_PARTIAL, __ATOMIC_RELAXED);
    return row;
}

static uint32_t find_slowly(struct kj_ledger_header *ledger, uint8_t kind, uint16_t device,
                            const struct kj_shape *shape, uint64_t hash, bool *ret_first)
{
    uint32_t name = kind == KJ_ACTIVITY_KERNEL ? kj_function_name(ledger, shape->function) : 0;
    kj_lock_cold();
    struct kj_slot *slot = find(hash, kind, device, shape);
    uint32_t row =
        slot ? slot->row : add_key(ledger, name, kind, device, kj_self.place.role, shape, hash, ret_first);
    kj_unlock_cold();
    return row;
}

static inline bool is_full(void)
{
    return atomic_load_explicit(&slots_used, memory_order_relaxed) >= SLOTS_FULL;
}

uint64_t kj_activity_hash(uint8_t kind, uint16_t device, const struct kj_shape *shape)
{
    /* Thousands of kernels do not fit the nearest cache: the line is on its way while the driver is at work.
     * It is not read before: to wait for it would hold up the driver's call. */
    if (unlikely(atomic_load_explicit(&kj_folded, memory_order_relaxed)) && shape->grid[0]) {
        __builtin_prefetch(&kj_slots[folded_place_of(shape->function)]);
        if (shape->function == kj_self.folded.function &&
            place_of(kind, device, kj_self.place.role).word == kj_self.folded.place.word)
            return kj_self.folded.hash;
    }
    uint64_t hash = kj_activity_hash_at(place_of(kind, device, kj_self.place.role), shape);
    if (likely(kj_slots))
        __builtin_prefetch(&kj_slots[kj_slot_place(hash)]);
    return hash;
}

bool kj_activity_is_new(uint64_t hash, uint8_t kind, uint16_t device, const struct kj_shape *shape)
{
    const struct kj_slot *slot = likely(kj_slots) ? find(hash, kind, device, shape) : NULL;
    return slot ? slot->tries < TRIES : !is_full();
}

uint32_t kj_activity_known(uint64_t hash, uint8_t kind, uint16_t device, const struct kj_shape *shape,
                           bool timed)
{
    struct kj_slot *slot = likely(kj_slots) ? find(hash, kind, device, shape) : NULL;
    if (unlikely(!slot))
        return is_full() ? 0 : KJ_ROW_UNKNOWN;
    if (unlikely(timed) && slot->tries < TRIES)
        slot->tries++; /* threads may race here: one try more or less */
    return slot->row;
}

uint32_t kj_activity_make(struct kj_ledger_header *ledger, uint8_t kind, uint16_t device,
                          const struct kj_shape *shape, uint64_t hash, bool *ret_first)
{
    *ret_first = false;
    if (unlikely(!kj_slots))
        return 0;
    uint64_t begun_ns = kj_now_ns();
    __atomic_fetch_add(&ledger->slow_finds, 1, __ATOMIC_RELAXED);
    kj_self.folded.function = NULL; /* it may have gone, and what was asked for be its key */
    kj_self.folded.hash = 0;
    hash = kj_activity_hash_at(place_of(kind, device, kj_self.place.role), shape);
    uint32_t row = find_slowly(ledger, kind, device, shape, hash, ret_first);
    kj_governor_made(ledger, kj_now_ns() - begun_ns);
    return row;
}

uint32_t kj_activity_find(struct kj_ledger_header *ledger, uint8_t kind, uint16_t device,
                          const struct kj_shape *shape, bool *ret_first)
{
    uint64_t hash = kj_activity_hash(kind, device, shape);
    uint32_t row = kj_activity_known(hash, kind, device, shape, false);
    *ret_first = false;
    return row != KJ_ROW_UNKNOWN ? row : kj_activity_make(ledger, kind, device, shape, hash, ret_first);
}

uint32_t kj_activity_find_as(struct kj_ledger_header *ledger, uint8_t kind, uint16_t device, uint8_t role,
                             const struct kj_shape *shape, bool *ret_first)
{
    uint8_t own = kj_self.place.role;
    kj_self.place.role = role;
    uint32_t row = kj_activity_find(ledger, kind, device, shape, ret_first);
    kj_self.place.role = own;
    return row;
}

uint32_t kj_activity_in_role(struct kj_ledger_header *ledger, uint32_t activity, uint8_t role)
{
    const struct kj_ledger_activity *rows = kj_section(ledger, KJ_SECTION_ACTIVITIES);
    const struct kj_ledger_activity *a = &rows[activity];
    struct kj_ledger_activity wanted = {
        .name = a->name, .device = a->device, .kind = a->kind, .role = role, .shared_bytes = a->shared_bytes};
    bool unused;
    if (!activity || a->role == role)
        return activity;
    memcpy(wanted.grid, a->grid, sizeof(wanted.grid));
    memcpy(wanted.block, a->block, sizeof(wanted.block));
    kj_lock_cold();
    uint32_t row = row_for(ledger, &wanted, &unused);
    kj_unlock_cold();
    return row;
}

void kj_activities_forget(const void *function)
{
    kj_lock_cold();
    if (kj_slots)
        free_slots(function, NULL, NULL, 0);
    kj_unlock_cold();
}
