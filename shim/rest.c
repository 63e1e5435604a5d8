/* SPDX-License-Identifier: Apache-2.0
 *
 * rest.c - which calls a wait has covered, so that a reader of the ledger can tell that nothing is left
 * to run: the recorder does, now and then, and so no launch has to say when it ends a rest.
 *
 * A call that gives a device work, or may end a context, is counted in CALLS when it returns. A wait covers
 * those that were counted before it began. Rest is where no more were counted since, and no copy is under
 * way, which may work for long before it is counted; a kernel's launch on a device at rest does not wait.
 * What a wait may leave running is not covered: another context's work, another stream's where streams were
 * made and used, another thread's default stream.
 */
#include "shim.h"

#include <string.h>

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
enum { WORK_HOOKS = sizeof(work_hooks) / sizeof(*work_hooks), RUNS_CAP = 8 };

/* Cells of COUNTS that lie together: summed at each wait, on the host's time. */
static struct run {
    uint16_t first, count;
} runs[RUNS_CAP];

void kj_rest_mark_calls(struct kj_ledger_call *calls)
{
    unsigned run = 0;
    memset(runs, 0, sizeof(runs));
    for (unsigned i = 0; i < WORK_HOOKS; i++)
        calls[work_hooks[i].hook].flags = KJ_CALL_WORKS;
    for (unsigned hook = 0; hook < KJ_HOOK_COUNT && run < RUNS_CAP; hook++) {
        if (calls[hook].flags && !runs[run].count++)
            runs[run].first = (uint16_t)hook;
        else if (!calls[hook].flags && runs[run].count)
            run++;
    }
}

static inline uint64_t cell(const uint64_t *cells, unsigned hook)
{
    return __atomic_load_n(&cells[KJ_LEDGER_CALLS_BASE + hook], __ATOMIC_RELAXED);
}

static uint64_t shard_sum(const uint64_t *cells)
{
    uint64_t a = 0, b = 0, c = 0, d = 0; /* do not wait for each other */
    for (const struct run *run = runs; run < runs + RUNS_CAP && run->count; run++) {
        unsigned hook = run->first, end = hook + run->count;
        for (; hook + 4 <= end; hook += 4) {
            a += cell(cells, hook);
            b += cell(cells, hook + 1);
            c += cell(cells, hook + 2);
            d += cell(cells, hook + 3);
        }
        for (; hook < end; hook++)
            a += cell(cells, hook);
    }
    return a + b + c + d;
}

static unsigned shards_used(const struct kj_ledger_header *ledger)
{
    uint64_t threads = __atomic_load_n(&ledger->sections[KJ_SECTION_THREADS].used, __ATOMIC_RELAXED);
    return threads < KJ_LEDGER_SHARDS ? (unsigned)threads : KJ_LEDGER_SHARDS;
}

struct counted {
    uint64_t calls; /* by all threads */
    bool own_alone; /* this thread made all of them */
};

static struct counted counted_now(struct kj_ledger_header *ledger)
{
    const uint64_t *cells = kj_section(ledger, KJ_SECTION_COUNTS);
    struct counted counted = {.own_alone = kj_self.exclusive};
    for (unsigned s = shards_used(ledger); s; s--, cells += KJ_LEDGER_COUNTS_CAP) {
        uint64_t sum = shard_sum(cells);
        counted.calls += sum;
        counted.own_alone = counted.own_alone && (!sum || cells == kj_self.counts);
    }
    return counted;
}

/* Work may have been launched on this default stream (CU_STREAM_LEGACY or CU_STREAM_PER_THREAD): by its own
 * handle, or by stream 0 through an entry point of this lane, for which that means the same. */
static bool may_be_used(struct kj_ledger_header *ledger, CUstream handle, int lane)
{
    const uint64_t *cells = kj_section(ledger, KJ_SECTION_COUNTS);
    uint64_t sum = 0;
    if (kj_stream_default_met(handle))
        return true;
    for (unsigned s = shards_used(ledger); s; s--, cells += KJ_LEDGER_COUNTS_CAP)
        for (unsigned i = 0; i < WORK_HOOKS; i++)
            sum += work_hooks[i].lane == lane ? cell(cells, work_hooks[i].hook) : 0;
    return sum && kj_stream_default_met(NULL);
}

uint64_t kj_rest_covered(struct kj_ledger_header *ledger, enum kj_hook hook, int lane, const void *named)
{
    bool context = hook == KJ_HOOK_cuCtxSynchronize || hook == KJ_HOOK_cuCtxSynchronize_v2;
    bool stream = hook == KJ_HOOK_cuStreamSynchronize || hook == KJ_HOOK_cuStreamSynchronize_ptsz;
    if (!context && (!stream || !CU_STREAM_IS_DEFAULT(named) || kj_streams_met()))
        return 0;
    if (!kj_context_is_only(ledger, context ? (CUcontext)named : NULL))
        return 0;
    const struct counted counted = counted_now(ledger);
    bool own = named ? named == CU_STREAM_PER_THREAD : lane;
    bool all = context || (own ? counted.own_alone && !may_be_used(ledger, CU_STREAM_LEGACY, 0)
                               : !may_be_used(ledger, CU_STREAM_PER_THREAD, 1));
    return all ? counted.calls + 1 : 0;
}

void kj_rest_copied(struct kj_ledger_header *ledger)
{
    if (kj_streams_met() || !kj_context_is_only(ledger, NULL))
        return;
    const struct counted counted = counted_now(ledger);
    if (counted.own_alone)
        kj_rest_settled(ledger, counted.calls + 1);
}

void kj_rest_context_made(struct kj_ledger_header *ledger)
{
    if (__atomic_load_n(&ledger->settled_calls, __ATOMIC_RELAXED))
        return;
    const struct counted counted = counted_now(ledger);
    if (!counted.calls)
        kj_rest_settled(ledger, 1);
}
