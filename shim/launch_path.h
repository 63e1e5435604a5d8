/* SPDX-License-Identifier: Apache-2.0
 *
 * launch_path.h - what a launch needs to be counted, inline: the stream's context, the key's hash, the row.
 * The tables are written by streams.c and activities.c, under the cold lock, and read here without one.
 *
 * Between two launches the driver does its own work and waits for what is under way in the processor, so what
 * a launch waits for adds up: no load here depends on another one that could be avoided.
 */
#ifndef KJ_LAUNCH_PATH_H
#define KJ_LAUNCH_PATH_H

#include "shim.h"

/* ---- streams (streams.c)
 * ---------------------------------------------------------------------------------------- */

enum { KJ_STREAM_BUCKETS = 1024, KJ_STREAM_WAYS = 8 };
struct kj_stream_value {
    _Atomic(struct kj_context *) context;
    _Atomic uint16_t row; /* of STREAMS; 0: none yet */
};
/* A bucket is a cache line of keys, and a stream has two of them. A reader takes what stands at its key, then
 * compares the key again: another stream may have taken the place meanwhile. */
extern _Atomic(uintptr_t) kj_stream_keys[KJ_STREAM_BUCKETS][KJ_STREAM_WAYS]; /* 0: free */
extern struct kj_stream_value kj_stream_values[KJ_STREAM_BUCKETS][KJ_STREAM_WAYS];

static inline unsigned kj_stream_bucket(uintptr_t key, int choice)
{
    uint64_t hash = (uint64_t)key * 0x9e3779b97f4a7c15ULL;
    return (unsigned)(choice ? hash >> 44 : hash >> 54) & (KJ_STREAM_BUCKETS - 1);
}

/* A context's place begins with it (contexts.c). Another one: what is remembered is of a context that was
 * there before. */
static inline const _Atomic uint32_t *kj_context_serial(const struct kj_context *context)
{
    return (const _Atomic uint32_t *)(const void *)context;
}

/* The stream, which is not a default one, is known to be of the thread's current context. False: it may be
 * all the same. */
static inline bool kj_stream_is_in_current(CUstream stream)
{
    unsigned bucket = kj_stream_bucket((uintptr_t)stream, 0);
    const _Atomic(uintptr_t) *key = &kj_stream_keys[bucket][0];
    if (unlikely(atomic_load_explicit(key, memory_order_acquire) != (uintptr_t)stream))
        return false;
    const struct kj_context *context =
        atomic_load_explicit(&kj_stream_values[bucket][0].context, memory_order_relaxed);
    atomic_thread_fence(memory_order_acquire);
    return likely(context == kj_self.context && context &&
                  atomic_load_explicit(kj_context_serial(context), memory_order_relaxed) ==
                      kj_self.context_serial &&
                  atomic_load_explicit(key, memory_order_relaxed) == (uintptr_t)stream);
}

/* ---- activities (activities.c)
 * ---------------------------------------------------------------------------------- */

enum { KJ_SLOTS = 131072, KJ_SLOT_PROBES = 128 };
struct kj_slot {
    _Atomic uint64_t
        tag; /* 0 free; else the hash with its lowest bit set; KJ_SLOT_DEAD: free, not the last */
    uint32_t row;
    uint32_t tries; /* timings begun, in bursts and outside of them, up to a limit */
};
#define KJ_SLOT_DEAD 2u
extern struct kj_slot *kj_slots;
extern _Atomic uint32_t
    kj_folded; /* slots of folded kernels that were ever made; not 0 either where there is no table */

/* Both halves of a 128-bit product: each bit of it depends on all bits of both. */
static inline uint64_t kj_fold(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* The first two products do not wait for each other. The constants are arbitrary bits: where a product has a
 * factor of 0, it says nothing of the other one. */
static inline uint64_t kj_activity_hash_at(union kj_place place, const struct kj_shape *s)
{
    uint64_t what = (uintptr_t)s->function ^ 0x9e3779b97f4a7c15ULL;
    uint64_t xy = ((uint64_t)s->grid[0] << 32 | s->grid[1]) ^ 0xd1342543de82ef95ULL;
    uint64_t zx = ((uint64_t)s->grid[2] << 32 | s->block[0]) ^ 0xaf251af3b0f025b5ULL;
    uint64_t yz =
        ((uint64_t)s->block[1] << 48 ^ (uint64_t)s->block[2] << 32 ^ s->shared_bytes) ^ 0xc6a4a7935bd1e995ULL;
    return kj_fold(kj_fold(what, xy) ^ kj_fold(zx, yz) ^ place.word, 0xe7037ed1a0b428dbULL) | 1;
}

/* Where the search for a key begins. */
static inline size_t kj_slot_place(uint64_t hash)
{
    return (hash >> 16) & (KJ_SLOTS - 1);
}

/* The slot that should hold a kernel's row, and the hash to search with where it does not. */
struct kj_kernel_key {
    const struct kj_slot *slot;
    uint64_t hash;
};

/* Before the driver's call: thousands of kernels do not fit the nearest cache, so the line is on its way
 * while the driver is at work. It is not read before: to wait for it would hold up the driver's call. */
static inline struct kj_kernel_key kj_kernel_find(const struct kj_shape *shape)
{
    struct kj_kernel_key key = {.slot = NULL};
    if (unlikely(atomic_load_explicit(&kj_folded, memory_order_relaxed))) {
        key.hash = kj_activity_hash(KJ_ACTIVITY_KERNEL, kj_self.place.device, shape);
        return key;
    }
    key.hash = kj_activity_hash_at(kj_self.place, shape);
    key.slot = &kj_slots[kj_slot_place(key.hash)];
    __builtin_prefetch(key.slot);
    return key;
}

/* After it: the row; KJ_ROW_UNKNOWN at the first launch. */
static inline uint32_t kj_kernel_row(struct kj_kernel_key key, const struct kj_shape *shape)
{
    if (unlikely(!key.slot || atomic_load_explicit(&kj_folded, memory_order_relaxed) ||
                 atomic_load_explicit(&key.slot->tag, memory_order_acquire) != key.hash))
        return kj_activity_known(key.hash, KJ_ACTIVITY_KERNEL, kj_self.place.device, shape, false);
    return key.slot->row;
}

#endif
