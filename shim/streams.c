/* SPDX-License-Identifier: Apache-2.0
 *
 * streams.c - on which stream: its context, asked of the driver once, and its row. The table is a cache:
 * found without a lock, any entry can be made again, so that neither many streams at once nor many one after
 * the other fill it for good.
 */
#include "launch_path.h"

#include <string.h>

enum { BUCKETS = KJ_STREAM_BUCKETS, WAYS = KJ_STREAM_WAYS, ROWS = 4096, DEFAULT_STREAM = 4 };

_Alignas(64) _Atomic(uintptr_t) kj_stream_keys[BUCKETS][WAYS];
struct kj_stream_value kj_stream_values[BUCKETS][WAYS];
static uint32_t next_victim; /* under the cold lock, as all below */

/* Rows whose streams are gone, the one that has been free for longest first: what is still under way on a
 * destroyed stream has its row. */
static uint16_t free_rows[ROWS];
static uint32_t free_first, free_count;
static uint64_t streams_met;
static atomic_bool made_ones_met, default_met[3];

/* A copy of what is known of the stream. */
struct known {
    struct kj_context *context; /* NULL: nothing */
    uint16_t row;
};

static inline struct known known_at(uintptr_t key, unsigned bucket)
{
    for (unsigned w = 0; w < WAYS; w++) {
        if (atomic_load_explicit(&kj_stream_keys[bucket][w], memory_order_acquire) != key)
            continue;
        struct kj_stream_value *value = &kj_stream_values[bucket][w];
        struct known known = {atomic_load_explicit(&value->context, memory_order_relaxed),
                              atomic_load_explicit(&value->row, memory_order_relaxed)};
        atomic_thread_fence(memory_order_acquire);
        if (likely(atomic_load_explicit(&kj_stream_keys[bucket][w], memory_order_relaxed) == key))
            return known;
    }
    return (struct known){NULL, 0};
}

static inline struct known known_of(uintptr_t key)
{
    struct known known = known_at(key, kj_stream_bucket(key, 0));
    return likely(known.context) ? known : known_at(key, kj_stream_bucket(key, 1));
}

/* ---- places and rows, under the cold lock
 * ---------------------------------------------------------------------------------------- */

static void row_free(struct kj_stream_value *value)
{
    uint16_t row = atomic_exchange(&value->row, 0);
    if (row)
        free_rows[(free_first + free_count++) % ROWS] = row;
}

static void entry_drop(unsigned bucket, unsigned way)
{
    atomic_store_explicit(&kj_stream_keys[bucket][way], 0, memory_order_release);
    atomic_thread_fence(memory_order_release);
    row_free(&kj_stream_values[bucket][way]);
}

static struct kj_stream_value *entry_find(uintptr_t key)
{
    for (int choice = 0; choice < 2; choice++) {
        unsigned bucket = kj_stream_bucket(key, choice);
        for (unsigned w = 0; w < WAYS; w++)
            if (atomic_load(&kj_stream_keys[bucket][w]) == key)
                return &kj_stream_values[bucket][w];
    }
    return NULL;
}

static struct kj_stream_value *entry_add(uintptr_t key, struct kj_context *context)
{
    unsigned bucket = 0, way = WAYS;
    for (int choice = 0; choice < 2 && way == WAYS; choice++) {
        bucket = kj_stream_bucket(key, choice);
        for (way = 0; way < WAYS && atomic_load(&kj_stream_keys[bucket][way]); way++)
            ;
    }
    if (way == WAYS) { /* both are full: one that comes back is asked for again */
        way = next_victim++ % WAYS;
        entry_drop(bucket, way);
    }
    atomic_store_explicit(&kj_stream_values[bucket][way].context, context, memory_order_relaxed);
    atomic_store_explicit(&kj_stream_keys[bucket][way], key, memory_order_release);
    return &kj_stream_values[bucket][way];
}

/* Takes the row of the next stream in the table's order that has one. */
static void row_take_back(void)
{
    static uint32_t hand;
    for (unsigned i = 0; i < BUCKETS * WAYS; i++, hand++) {
        struct kj_stream_value *value = &kj_stream_values[hand / WAYS % BUCKETS][hand % WAYS];
        if (atomic_load(&value->row)) {
            row_free(value);
            return;
        }
    }
}

static uint16_t row_make(struct kj_ledger_header *ledger, const struct kj_context *context, uint32_t flags)
{
    struct kj_ledger_section_entry *section = &ledger->sections[KJ_SECTION_STREAMS];
    struct kj_ledger_stream *rows = kj_section(ledger, KJ_SECTION_STREAMS);
    if (!section->used) { /* row 0 is nobody's */
        kj_row_reserve(ledger, KJ_SECTION_STREAMS);
        kj_row_publish(ledger, KJ_SECTION_STREAMS);
    }
    bool fresh = section->used < section->cap && section->used < ROWS;
    if (!fresh && !free_count)
        row_take_back();
    if (!fresh && !free_count)
        return 0;
    uint16_t row = fresh ? (uint16_t)section->used : free_rows[free_first % ROWS];
    rows[row] =
        (struct kj_ledger_stream){.id = ++streams_met, .context = kj_context_row(context), .flags = flags};
    if (fresh)
        kj_row_publish(ledger, KJ_SECTION_STREAMS);
    else
        free_first++, free_count--;
    return row;
}

/* ---- for the launch path
 * ---------------------------------------------------------------------------------------------- */

static struct kj_context *stream_meet(struct kj_ledger_header *ledger, CUstream stream)
{
    CUcontext handle = NULL;
    bool inside = kj_self.inside;
    atomic_store(&made_ones_met, true);
    kj_self.inside = true;
    bool told = kj_driver.cuStreamGetCtx && !kj_driver.cuStreamGetCtx(stream, &handle) && handle;
    struct kj_context *context = told ? kj_context_meet(ledger, handle) : NULL;
    kj_self.inside = inside;
    if (!context)
        return kj_context_current(ledger);
    kj_lock_cold();
    if (!entry_find((uintptr_t)stream))
        entry_add((uintptr_t)stream, context);
    kj_unlock_cold();
    return context;
}

struct kj_context *kj_context_of_stream(struct kj_ledger_header *ledger, CUstream stream)
{
    if (CU_STREAM_IS_DEFAULT(stream)) {
        atomic_bool *met = &default_met[(uintptr_t)stream];
        if (unlikely(!atomic_load_explicit(met, memory_order_relaxed)))
            atomic_store_explicit(met, true, memory_order_relaxed);
        return kj_context_current(ledger);
    }
    struct kj_context *context = known_of((uintptr_t)stream).context;
    if (unlikely(!context))
        context = stream_meet(ledger, stream);
    if (unlikely(context != kj_self.context) && context)
        kj_context_visit(ledger, context);
    return context;
}

uint16_t kj_stream_row(struct kj_ledger_header *ledger, struct kj_context *context, CUstream stream, int lane)
{
    /* The two default streams exist once per context, and per thread for the second: by what is the thread's
     * own, and the next one's after its end. */
    uintptr_t key = (uintptr_t)stream;
    if (!stream)
        key = (uintptr_t)(lane ? CU_STREAM_PER_THREAD : CU_STREAM_LEGACY);
    if (key <= 2)
        key = ((uintptr_t)(kj_context_row(context) + 1) << 56 ^
               (key == 2 ? (uintptr_t)&kj_self & ~(uintptr_t)7 : 0)) |
              DEFAULT_STREAM;
    uint16_t row = known_of(key).row;
    if (likely(row))
        return row;
    kj_lock_cold();
    struct kj_stream_value *value = entry_find(key);
    value = value ? value : entry_add(key, context);
    row = atomic_load(&value->row);
    if (!row)
        atomic_store(&value->row, row = row_make(ledger, context, key & DEFAULT_STREAM ? 1 : 0));
    kj_unlock_cold();
    return row;
}

bool kj_streams_met(void)
{
    return atomic_load_explicit(&made_ones_met, memory_order_relaxed);
}

bool kj_stream_default_met(CUstream handle)
{
    return atomic_load_explicit(&default_met[(uintptr_t)handle], memory_order_relaxed);
}

void kj_stream_forget(CUstream stream)
{
    kj_captures_changed();
    if (CU_STREAM_IS_DEFAULT(stream))
        return;
    kj_lock_cold();
    for (int choice = 0; choice < 2; choice++) {
        unsigned bucket = kj_stream_bucket((uintptr_t)stream, choice);
        for (unsigned w = 0; w < WAYS; w++)
            if (atomic_load(&kj_stream_keys[bucket][w]) == (uintptr_t)stream)
                entry_drop(bucket, w);
    }
    kj_unlock_cold();
}

void kj_streams_forget(const struct kj_context *context)
{
    if (!context) { /* in a fork's child: the rows were of the parent's ledger */
        memset(kj_stream_keys, 0, sizeof(kj_stream_keys));
        memset(kj_stream_values, 0, sizeof(kj_stream_values));
        free_count = 0;
        atomic_store(&made_ones_met, false);
        memset(default_met, 0, sizeof(default_met));
        return;
    }
    kj_lock_cold();
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++)
        for (unsigned w = 0; w < WAYS; w++)
            if (atomic_load_explicit(&kj_stream_keys[bucket][w], memory_order_relaxed) &&
                atomic_load_explicit(&kj_stream_values[bucket][w].context, memory_order_relaxed) == context)
                entry_drop(bucket, w);
    kj_unlock_cold();
}
