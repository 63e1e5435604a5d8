/* SPDX-License-Identifier: Apache-2.0
 *
 * ties.c - where GPU event time lies on the host's clock, and how well that is known. timing.h has the idea.
 * Everything here is called under the context's lock.
 *
 * Clocks drift against each other, so what is known of a base loosens with time, by KJ_DRIFT_PPM, and is
 * tightened again by each event seen. Bounds so kept contain the truth while the clocks drift by no more. A
 * renewed base begins with what was known of the one before it.
 */
#include "timing.h"

/* An event's time is good to 0.5 us, and what is read is a difference of two, as a float of milliseconds. */
#define RESOLUTION_NS 1000
#define FLOAT_PART    1.2e-7
#define NEVER_NS      (INT64_MAX / 4)

static int64_t drift_over(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (int64_t)((double)(to_ns - from_ns) * KJ_DRIFT_PPM * 1e-6) : 0;
}

static int64_t reading_error(int64_t elapsed_ns)
{
    return RESOLUTION_NS + (int64_t)(FLOAT_PART * (double)(elapsed_ns < 0 ? -elapsed_ns : elapsed_ns));
}

void kj_tie_begin(struct kj_tie *tie, uint64_t now_ns)
{
    tie->recorded = true;
    tie->continued = tie->tied = false;
    tie->recorded_ns = tie->at_ns = now_ns;
    tie->lo_ns = (int64_t)now_ns;
    tie->hi_ns = NEVER_NS;
}

static void narrow(struct kj_tie *tie, int64_t lo_ns, int64_t hi_ns, uint64_t now_ns, uint32_t *conflicts)
{
    int64_t drift_ns = drift_over(tie->at_ns, now_ns);
    tie->lo_ns -= drift_ns;
    tie->hi_ns += tie->hi_ns < NEVER_NS ? drift_ns : 0;
    tie->at_ns = now_ns;
    tie->lo_ns = lo_ns > tie->lo_ns ? lo_ns : tie->lo_ns;
    tie->hi_ns = hi_ns < tie->hi_ns ? hi_ns : tie->hi_ns;
    if (tie->lo_ns > tie->hi_ns) { /* more than drift: believe the newest */
        tie->lo_ns = lo_ns;
        tie->hi_ns = hi_ns;
        ++*conflicts;
    }
    tie->tied = tie->hi_ns < NEVER_NS;
}

void kj_tie_continue(struct kj_tie *tie, const struct kj_tie *before, uint64_t now_ns, uint32_t *conflicts)
{
    float ms;
    tie->continued = true;
    if (!before->recorded || !before->tied || kj_driver.cuEventElapsedTime(&ms, before->event, tie->event))
        return;
    int64_t elapsed_ns = (int64_t)((double)ms * 1e6);
    tie->axis_ns = before->axis_ns + elapsed_ns;
    int64_t slack_ns = reading_error(elapsed_ns) + drift_over(before->at_ns, now_ns);
    narrow(tie, before->lo_ns + elapsed_ns - slack_ns, before->hi_ns + elapsed_ns + slack_ns, now_ns,
           conflicts);
}

void kj_tie_narrow(struct kj_tie *tie, const struct kj_pair *pair, uint64_t seen_ns, uint32_t *conflicts)
{
    /* The pair's own moment may be that far back. */
    int64_t slack_ns = reading_error(pair->start_ns + pair->length_ns) + drift_over(pair->launch_ns, seen_ns);
    narrow(tie, (int64_t)pair->launch_ns - pair->start_ns - slack_ns,
           (int64_t)seen_ns - pair->start_ns - pair->length_ns + slack_ns, seen_ns, conflicts);
}

int64_t kj_tie_host_ns(const struct kj_tie *tie, const struct kj_pair *pair, uint64_t *ret_error_ns)
{
    int64_t half_ns = (tie->hi_ns - tie->lo_ns) / 2;
    *ret_error_ns = (uint64_t)(half_ns + drift_over(pair->launch_ns, tie->at_ns) +
                               reading_error(pair->start_ns + pair->length_ns));
    return tie->lo_ns + half_ns + pair->start_ns;
}
