/* SPDX-License-Identifier: Apache-2.0
 *
 * samples.c - what a launch costs in the shim, measured at one of many, which stands for them. Each distance
 * between samples also ends with a check of the context.
 */
#include "shim.h"

#define SAMPLES_NS    1000000 /* apart, where launches come fast */
#define SKIPS_MOST    7       /* distances without a sample */
#define CLOCK_MOST_NS 200     /* one reading, where the thread is not interrupted */

/* Distances are drawn, 64 on average: programs have periods of their own. */
static uint32_t draw_distance(void)
{
    uint32_t r = kj_self.random;
    r ^= r << 13;
    r ^= r >> 17;
    r ^= r << 5;
    kj_self.random = r;
    return KJ_SAMPLE_EVERY / 2 + r % (KJ_SAMPLE_EVERY + 1);
}

/* A program that launches fast is sampled less often, as a sample costs what tens of counted launches do;
 * never so in a burst, whose end and whose pairs must not wait. Returns how many distances pass without one.
 */
static uint32_t draw_skips(uint64_t now_ns)
{
    bool burst = atomic_load_explicit(&kj_timing_on, memory_order_relaxed) == KJ_TIME_ALL;
    uint64_t passed_ns = now_ns - kj_self.sampled_ns;
    uint32_t skips = kj_self.skips_drawn;
    if (burst || passed_ns > 2 * SAMPLES_NS)
        skips = burst ? 0 : skips / 2;
    else if (passed_ns < SAMPLES_NS && skips < SKIPS_MOST)
        skips = 2 * skips + 1;
    kj_self.sampled_ns = now_ns;
    return kj_self.skips_drawn = skips;
}

void kj_sample_sooner(struct kj_ledger_header *ledger)
{
    uint32_t passed = kj_self.sample_distance - kj_self.until_sample;
    kj_governor_sample(ledger, kj_self.sample_took_ns, passed);
    kj_self.skips = kj_self.skips_drawn = 0;
    kj_self.sample_distance = kj_self.until_sample = KJ_SAMPLE_EVERY / 2;
}

/* The code of a sample has left the caches by the time when one is due, which would count as the cost of all
 * the launches that it stands for. So the launch before it runs the same code, and only its own cost counts.
 */
void kj_sample_begin(struct kj_sample *sample, struct kj_ledger_header *ledger)
{
    uint32_t distance = draw_distance();
    kj_self.until_sample = distance;
    if (kj_self.skips) {
        kj_self.skips--;
        kj_self.sample_distance += distance;
        kj_context_check(ledger);
        return;
    }
    sample->asked_ns = kj_now_ns();
    sample->rehearsal = kj_self.rehearsed = !kj_self.rehearsed;
    sample->stands_for = kj_self.sample_distance;
    if (sample->rehearsal) {
        kj_self.until_sample = 1;
        kj_self.sample_distance++;
    } else {
        kj_self.sample_distance = distance;
        sample->checks = kj_self.skips_drawn;
        kj_self.skips = draw_skips(sample->asked_ns);
    }
    kj_context_check(ledger);
    sample->begun_ns = kj_now_ns();
}

void kj_sample_drop(struct kj_sample *sample)
{
    if (sample->stands_for && !sample->rehearsal)
        kj_self.sample_distance += sample->stands_for;
    sample->stands_for = 0;
}

void kj_sample_end(const struct kj_sample *sample, struct kj_ledger_header *ledger)
{
    uint64_t done_ns = kj_now_ns(), now_ns = kj_now_ns();
    int64_t clock_ns = now_ns - done_ns < CLOCK_MOST_NS ? (int64_t)(now_ns - done_ns) : CLOCK_MOST_NS;
    uint64_t before_ns = sample->called_ns - sample->begun_ns, after_ns = done_ns - sample->returned_ns;
    int64_t took_ns = (int64_t)(before_ns + after_ns) - 2 * clock_ns;
    int64_t own_ns = (int64_t)(sample->called_ns - sample->asked_ns + now_ns - sample->returned_ns);
    kj_governor_sample(ledger, own_ns, 1);
    if (sample->rehearsal)
        return;
    /* Each of its two stretches holds one reading of the clock, which takes as long as this one. */
    kj_self.sample_took_ns = (int32_t)(took_ns < INT32_MAX ? took_ns : INT32_MAX);
    kj_governor_sample(ledger, took_ns, sample->stands_for - 1);
    /* The context is checked more often than a sample is taken. */
    kj_governor_sample(ledger, (int64_t)(sample->begun_ns - sample->asked_ns) - clock_ns, sample->checks);
    kj_governor_tick(ledger, now_ns);
}
