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

#define SAMPLE_MOST_NS 20000   /* one call, or one pair that is asked about */
#define HICCUP_TIMES   8       /* what is usual of the latter, where that is more */
#define MAKE_MOST_NS   1000000 /* a row of its own for a new kernel */
/* What a burst may cost. The first is on credit, later ones are saved for: a second's worth of the budget, by
 * default 10 ms, and more where that would not last BURST_NS, for power sensors average over 25 to 100 ms and
 * only windows that lie within a burst tell of its kernels; yet never so much that bursts become rare. What
 * is on credit is half as much, for a run of a few seconds has no time to pay it back. */
#define SECOND_NS      1e9
#define CREDIT_NS      0.5e9
#define BURST_NS       400e6
#define BURST_MOST     15 /* seconds' worth */
#define BURST_LEAST_NS 2e5
#define SPENT_PART                                                                                           \
    0.8 /* of the budget; the rest is for what is not seen from inside: caches, the recorder                 \
         */

KJ_EACH_LAUNCH atomic_int kj_timing_on;
_Atomic uint32_t kj_timing_epoch;
_Atomic uint32_t kj_event_ns = KJ_EVENT_GUESS_NS;
static uint64_t start_ns;
static atomic_bool advance_spent;

/* What timing every launch takes of a second, by the last burst that was saved for: the first one's
 * holds the start of everything. */
static struct {
    _Atomic uint64_t begun_ns;
    _Atomic double begun_cost_ns, share;
} burst;

void kj_governor_start(uint64_t now_ns)
{
    start_ns = now_ns;
    atomic_store(&burst.begun_ns, 0);
    atomic_store(&advance_spent, false);
    atomic_store(&kj_event_ns, KJ_EVENT_GUESS_NS);
    atomic_fetch_add(&kj_timing_epoch, 1);
    atomic_store(&kj_timing_on, kj_config.events ? KJ_TIME_ALL : KJ_TIME_NONE);
}

/* What the scheduler gave to others meanwhile is not the shim's: one such hiccup would end a burst, and be
 * paid back for seconds. A driver that takes long each time is: what is usual follows it. */
void kj_governor_harvested(struct kj_ledger_header *ledger, uint64_t took_ns, unsigned looked)
{
    static _Atomic uint64_t usual_ns; /* of one pair */
    uint64_t usual = atomic_load_explicit(&usual_ns, memory_order_relaxed), pairs = (uint64_t)looked + 1;
    uint64_t most = usual * HICCUP_TIMES > SAMPLE_MOST_NS ? usual * HICCUP_TIMES : SAMPLE_MOST_NS;
    uint64_t counted_ns = took_ns < most * pairs ? took_ns : most * pairs;
    atomic_store_explicit(&usual_ns, (7 * usual + counted_ns / pairs) / 8, memory_order_relaxed);
    kj_self_time_add(ledger, counted_ns);
}

void kj_governor_made(struct kj_ledger_header *ledger, uint64_t took_ns)
{
    kj_self_time_add(ledger, took_ns < MAKE_MOST_NS ? took_ns : MAKE_MOST_NS);
}

void kj_governor_read(struct kj_ledger_header *ledger, uint64_t took_ns, size_t nodes)
{
    uint64_t most_ns = MAKE_MOST_NS + SAMPLE_MOST_NS * (uint64_t)nodes;
    kj_self_time_add(ledger, took_ns < most_ns ? took_ns : most_ns);
}

void kj_governor_sample(struct kj_ledger_header *ledger, int64_t took_ns, uint32_t stands_for)
{
    /* One sample stands for many: a call that the scheduler interrupted is not what the others cost. */
    int64_t most_ns = SAMPLE_MOST_NS;
    if (stands_for > KJ_SAMPLE_EVERY)
        most_ns = most_ns * KJ_SAMPLE_EVERY / stands_for;
    took_ns = took_ns < most_ns ? took_ns : most_ns;
    took_ns = took_ns > -most_ns ? took_ns : -most_ns;
    /* A single sample may come out below zero, for the clock is no steadier than what it measures. */
    kj_self.owed_ns += took_ns * (int64_t)stands_for;
    if (kj_self.owed_ns > 0) {
        kj_self_time_add(ledger, (uint64_t)kj_self.owed_ns);
        kj_self.owed_ns = 0;
    }
}

/* What is known of the device's share: pairs so far x two events each. */
static uint64_t device_cost_ns(struct kj_ledger_header *ledger)
{
    uint64_t cost_ns = 2 * (uint64_t)atomic_load_explicit(&kj_event_ns, memory_order_relaxed) *
                       __atomic_load_n(&ledger->timed_pairs, __ATOMIC_RELAXED);
    __atomic_store_n(&ledger->events_device_ns, cost_ns, __ATOMIC_RELAXED);
    return cost_ns;
}

void kj_governor_resume(void)
{
    atomic_fetch_add(&kj_timing_epoch, 1);
    atomic_store(&kj_timing_on, kj_config.events ? KJ_TIME_ALL : KJ_TIME_NONE);
}

static void burst_begin(uint64_t now_ns, double cost_ns)
{
    atomic_store_explicit(&burst.begun_cost_ns, cost_ns, memory_order_relaxed);
    atomic_store_explicit(&burst.begun_ns, now_ns, memory_order_relaxed);
}

static void burst_end(uint64_t now_ns, double cost_ns)
{
    uint64_t begun_ns = atomic_load_explicit(&burst.begun_ns, memory_order_relaxed);
    double spent_ns = cost_ns - atomic_load_explicit(&burst.begun_cost_ns, memory_order_relaxed);
    if (begun_ns && now_ns > begun_ns && spent_ns > 0)
        atomic_store_explicit(&burst.share, spent_ns / (double)(now_ns - begun_ns), memory_order_relaxed);
}

/* What is saved before a burst begins. */
static double burst_price_ns(void)
{
    double second_ns = kj_config.budget * SECOND_NS;
    double price_ns = BURST_NS * atomic_load_explicit(&burst.share, memory_order_relaxed);
    price_ns = price_ns < BURST_MOST * second_ns ? price_ns : BURST_MOST * second_ns;
    price_ns = price_ns > second_ns ? price_ns : second_ns;
    return price_ns > BURST_LEAST_NS ? price_ns : BURST_LEAST_NS;
}

void kj_governor_tick(struct kj_ledger_header *ledger, uint64_t now_ns)
{
    if (!kj_config.events || atomic_load_explicit(&kj_cupti_on, memory_order_relaxed))
        return;
    double cost_ns = (double)(__atomic_load_n(&ledger->self_ns, __ATOMIC_RELAXED) + device_cost_ns(ledger));
    if (kj_config.budget >= 1) /* all of the time: no limit */
        return;
    double credit_ns = kj_config.budget * CREDIT_NS;
    credit_ns = credit_ns > BURST_LEAST_NS ? credit_ns : BURST_LEAST_NS;
    double over_ns = cost_ns - SPENT_PART * kj_config.budget * (double)(now_ns - start_ns);
    int mode = atomic_load_explicit(&kj_timing_on, memory_order_relaxed), next = mode;
    bool advance = !atomic_load_explicit(&advance_spent, memory_order_relaxed);
    if (mode == KJ_TIME_ALL) {
        if (over_ns > (advance ? credit_ns : 0)) {
            atomic_store_explicit(&advance_spent, true, memory_order_relaxed);
            burst_end(now_ns, cost_ns);
            next = KJ_TIME_NONE;
        }
    } else {
        next = over_ns < -burst_price_ns() ? KJ_TIME_ALL : over_ns < 0 ? KJ_TIME_NEW : KJ_TIME_NONE;
    }
    if (next == mode)
        return;
    if (next == KJ_TIME_ALL) {
        burst_begin(now_ns, cost_ns);
        atomic_fetch_add(&kj_timing_epoch, 1);
    }
    atomic_store_explicit(&kj_timing_on, next, memory_order_relaxed);
}
