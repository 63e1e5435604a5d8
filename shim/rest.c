/* SPDX-License-Identifier: Apache-2.0
 *
 * rest.c - which calls a wait has covered, so that whoever looks at the ledger can tell that nothing is left
 * to run: the recorder does, now and then, and so no launch has to say when it ends a rest.
 *
 * A call that gives a device work, or may end a context, is counted in CALLS when it returns. A wait covers
 * those that were counted before it began. Rest is where no more were counted since, and no copy is under
 * way, which may work for long before it is counted; a kernel's launch on a device at rest does not wait.
 * What a wait may leave running is not covered: another context's work, another stream's where streams were
 * made and used, another thread's default stream.
 */
#include "shim.h"

struct work_hook {
    uint16_t hook, lane;
};
static const struct work_hook work_hooks[] = {
#define WORK(symbol, name, version, lane, ...) {KJ_HOOK_##symbol, lane},
#define LAUNCH                                 WORK
#define LAUNCH_CONFIG                          WORK
#define COPY                                   WORK
#define COPY_ASYNC                             WORK
#define HOST                                   WORK
#define GRAPH_LAUNCH                           WORK
#define RELEASE                                WORK
#include "hooks_none.h"

#include "hooks.def"
#include "hooks_undef.h"
    {KJ_HOOK_cuLaunchCooperativeKernelMultiDevice, 0}};
#undef WORK
enum { WORK_HOOKS = sizeof(work_hooks) / sizeof(*work_hooks) };

void kj_rest_mark_calls(struct kj_ledger_call *calls)
{
    for (unsigned i = 0; i < WORK_HOOKS; i++)
        calls[work_hooks[i].hook].flags = KJ_CALL_WORKS;
}

struct counted {
    uint64_t of_lane[2]; /* by all threads */
    bool own_alone;      /* this thread made all of them */
};

static struct counted counted_now(struct kj_ledger_header *ledger)
{
    uint64_t threads = __atomic_load_n(&ledger->sections[KJ_SECTION_THREADS].used, __ATOMIC_RELAXED);
    uint64_t shards = threads < KJ_LEDGER_SHARDS ? threads : KJ_LEDGER_SHARDS;
    const uint64_t *cells = (const uint64_t *)kj_section(ledger, KJ_SECTION_COUNTS);
    struct counted counted = {.own_alone = kj_self.exclusive};
    for (uint64_t s = 0; s < shards; s++, cells += KJ_LEDGER_COUNTS_CAP) {
        uint64_t before = counted.of_lane[0] + counted.of_lane[1];
        for (unsigned i = 0; i < WORK_HOOKS; i++)
            counted.of_lane[work_hooks[i].lane] +=
                __atomic_load_n(&cells[KJ_LEDGER_CALLS_BASE + work_hooks[i].hook], __ATOMIC_RELAXED);
        if (counted.of_lane[0] + counted.of_lane[1] != before && cells != kj_self.counts)
            counted.own_alone = false;
    }
    return counted;
}

static uint64_t settled_of(const struct counted *counted)
{
    return 1 + counted->of_lane[0] + counted->of_lane[1];
}

uint64_t kj_rest_covered(struct kj_ledger_header *ledger, enum kj_hook hook, int lane, const void *named)
{
    bool context = hook == KJ_HOOK_cuCtxSynchronize || hook == KJ_HOOK_cuCtxSynchronize_v2;
    bool stream = hook == KJ_HOOK_cuStreamSynchronize || hook == KJ_HOOK_cuStreamSynchronize_ptsz;
    if (!context && (!stream || (uintptr_t)named > (uintptr_t)CU_STREAM_PER_THREAD || kj_streams_met()))
        return 0;
    if (!kj_context_is_only(ledger, context ? (CUcontext)named : NULL))
        return 0;
    const struct counted counted = counted_now(ledger);
    bool legacy = !lane && named != CU_STREAM_PER_THREAD && !counted.of_lane[1];
    return context || legacy || counted.own_alone ? settled_of(&counted) : 0;
}

void kj_rest_copied(struct kj_ledger_header *ledger)
{
    if (kj_streams_met() || !kj_context_is_only(ledger, NULL))
        return;
    const struct counted counted = counted_now(ledger);
    if (counted.own_alone)
        kj_rest_settled(ledger, settled_of(&counted));
}

void kj_rest_context_made(struct kj_ledger_header *ledger)
{
    if (__atomic_load_n(&ledger->settled_calls, __ATOMIC_RELAXED))
        return;
    const struct counted counted = counted_now(ledger);
    if (settled_of(&counted) == 1)
        kj_rest_settled(ledger, 1);
}
