/* SPDX-License-Identifier: Apache-2.0
 *
 * governor.c - holds the shim's own time under its budget by timing launches in bursts. Counting never stops.
 *
 * A credit account in nanoseconds: it earns budget x elapsed time, starts with a small advance so that
 * warm-up is seen, and pays what the shim's calls are measured to cost (every 64th is measured and stands for
 * 64). Out of credit ends a burst; a burst begins when enough is saved for a stretch that is long beside a
 * power sensor's window.
 */
#include "shim.h"

#define ADVANCE_NS 20000000 /* 20 ms */
#define BURST_MIN_NS                                                                                         \
    2000000 /* credit that begins a burst: 2 ms of the shim's time, some thousand launches                   \
             */

atomic_int kj_timing_on;
_Atomic uint32_t kj_timing_epoch;
static uint64_t start_ns;

void kj_governor_start(uint64_t now_ns)
{
    start_ns = now_ns;
    atomic_store(&kj_timing_on, kj_config.events);
    atomic_fetch_add(&kj_timing_epoch, 1);
}

void kj_governor_resume(void)
{
    atomic_fetch_add(&kj_timing_epoch, 1);
    atomic_store(&kj_timing_on, kj_config.events);
}

void kj_governor_tick(struct kj_ledger_header *ledger, uint64_t now_ns)
{
    if (!kj_config.events || atomic_load_explicit(&kj_cupti_on, memory_order_relaxed))
        return;
    double earned = ADVANCE_NS + kj_config.budget * (double)(now_ns - start_ns);
    double credit = earned - (double)__atomic_load_n(&ledger->self_ns, __ATOMIC_RELAXED);
    if (credit < 0) {
        atomic_store_explicit(&kj_timing_on, 0, memory_order_relaxed);
    } else if (credit > BURST_MIN_NS && !atomic_load_explicit(&kj_timing_on, memory_order_relaxed)) {
        atomic_fetch_add(&kj_timing_epoch, 1);
        atomic_store_explicit(&kj_timing_on, 1, memory_order_relaxed);
    }
}
