/* SPDX-License-Identifier: Apache-2.0
 *
 * governor.c - holds the shim's own time under its budget by timing launches in bursts. Counting never stops.
 *
 * The account, in nanoseconds: what the shim has cost, less budget x elapsed time. The cost is the shim's own
 * time on the host, sampled (wrappers.c), and what its events take of the device, two for each timed launch:
 * the one slows a program that waits for its launches, the other one that waits for its GPU, and which it is
 * the shim does not know, so it pays for both.
 *
 * The first burst may run up a debt, so that warm-up and the first seconds are seen; after it, nothing is
 * timed until that is paid back. Later bursts begin when enough is saved, and end when it is spent. Between
 * them, and never on credit, a kernel that has hardly been timed yet is timed alone: one that first runs
 * late, or whose turn always falls between bursts, is learned all the same.
 */
#include "shim.h"

#define ADVANCE_NS   20e6 /* of the first burst: 2 s of the default budget */
#define BURST_MIN_NS 10e6 /* saved before a burst: some thousand launches, tens of milliseconds of timeline */

atomic_int kj_timing_on;
_Atomic uint32_t kj_timing_epoch;
_Atomic uint32_t kj_event_ns = UINT32_MAX;
static uint64_t start_ns;
static atomic_bool advance_spent;
static uint64_t clock_ns; /* what reading the clock takes, which a sample must not count as the shim's */

static uint64_t measure_clock(void)
{
    uint64_t least_ns = UINT64_MAX;
    for (int i = 0; i < 32; i++) {
        uint64_t before_ns = kj_now_ns(), took_ns = kj_now_ns() - before_ns;
        least_ns = took_ns < least_ns ? took_ns : least_ns;
    }
    return least_ns;
}

void kj_governor_start(uint64_t now_ns)
{
    clock_ns = measure_clock();
    start_ns = now_ns;
    atomic_store(&advance_spent, false);
    atomic_store(&kj_event_ns, UINT32_MAX);
    atomic_fetch_add(&kj_timing_epoch, 1);
    atomic_store(&kj_timing_on, kj_config.events ? KJ_TIME_ALL : KJ_TIME_NONE);
}

void kj_governor_sample(struct kj_ledger_header *ledger, uint64_t took_ns, unsigned stretches,
                        unsigned stands_for)
{
    uint64_t clocks_ns = stretches * clock_ns;
    took_ns = took_ns > clocks_ns ? took_ns - clocks_ns : 0;
    /* One sample stands for many: a call that the scheduler interrupted is not what the others cost. */
    kj_self_time_add(ledger, (took_ns < KJ_SAMPLE_MOST_NS ? took_ns : KJ_SAMPLE_MOST_NS) * stands_for);
}

void kj_governor_event_seen(uint32_t event_ns)
{
    uint32_t least_ns = atomic_load_explicit(&kj_event_ns, memory_order_relaxed);
    while (event_ns < least_ns && !atomic_compare_exchange_weak(&kj_event_ns, &least_ns, event_ns))
        ;
}

/* What is known of the device's share: pairs so far x two events each. */
static uint64_t device_cost_ns(struct kj_ledger_header *ledger)
{
    uint32_t event_ns = atomic_load_explicit(&kj_event_ns, memory_order_relaxed);
    if (event_ns == UINT32_MAX)
        return 0;
    uint64_t cost_ns = 2 * (uint64_t)event_ns * __atomic_load_n(&ledger->timed_pairs, __ATOMIC_RELAXED);
    __atomic_store_n(&ledger->events_device_ns, cost_ns, __ATOMIC_RELAXED);
    return cost_ns;
}

void kj_governor_tick(struct kj_ledger_header *ledger, uint64_t now_ns)
{
    if (!kj_config.events || kj_config.budget >= 1) /* all of the time: no limit */
        return;
    double cost_ns =
        (double)(__atomic_load_n(&ledger->self_ns, __ATOMIC_RELAXED) + device_cost_ns(ledger));
    double over_ns = cost_ns - kj_config.budget * (double)(now_ns - start_ns);
    int mode = atomic_load_explicit(&kj_timing_on, memory_order_relaxed), next = mode;
    bool advance = !atomic_load_explicit(&advance_spent, memory_order_relaxed);
    if (mode == KJ_TIME_ALL) {
        if (over_ns > (advance ? ADVANCE_NS : 0)) {
            atomic_store_explicit(&advance_spent, true, memory_order_relaxed);
            next = KJ_TIME_NONE;
        }
    } else {
        next = over_ns < -BURST_MIN_NS ? KJ_TIME_ALL : over_ns < 0 ? KJ_TIME_NEW : KJ_TIME_NONE;
    }
    if (next == mode)
        return;
    if (next == KJ_TIME_ALL)
        atomic_fetch_add(&kj_timing_epoch, 1);
    atomic_store_explicit(&kj_timing_on, next, memory_order_relaxed);
}
