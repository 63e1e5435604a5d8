/* SPDX-License-Identifier: Apache-2.0
 *
 * walk_lines.c - what --phase-walk did: its delays, and what devices that stood still in them took meanwhile.
 */
#include "account/work.h"

#include <stdlib.h>
#include <string.h>

#define FEW_PART  0.15 /* of the time that was asked for */
#define FEW_OF_NS 100e6

void kj_walk_process(struct kj_report *report, const struct kj_ledger_header *h)
{
    struct kj_report_walk *walk = &report->walk;
    if (!h->walk_ppm)
        return;
    walk->asked_share = (double)h->walk_ppm / 1e6;
    walk->seed = h->walk_seed;
    walk->hosts = h->walk_hosts;
    walk->delays += h->walk_delays;
    walk->delay_ns += h->walk_ns;
    walk->longest_ns = h->walk_most_ns > walk->longest_ns ? h->walk_most_ns : walk->longest_ns;
    if (!walk->reason && *h->walk_reason)
        walk->reason = strndup(h->walk_reason, sizeof(h->walk_reason));
}

static int by_start(const void *a, const void *b)
{
    uint64_t x = ((const struct kj_work_delay *)a)->start_ns, y = ((const struct kj_work_delay *)b)->start_ns;
    return (x > y) - (x < y);
}

int kj_work_add_delays(struct kj_work *work, uint32_t view, const struct kj_ledger_interval *rows,
                       size_t count)
{
    struct kj_ledger_activity activity;
    if (!kj_ledger_view_header(work->views[view])->walk_delays)
        return 0;
    for (size_t i = 0; i < count; i++) {
        if (rows[i].end_ns < rows[i].start_ns ||
            !kj_ledger_view_row(work->views[view], KJ_SECTION_ACTIVITIES, rows[i].activity, &activity) ||
            activity.kind != KJ_ACTIVITY_WALK)
            continue;
        if (!(work->delay_count & (work->delay_count - 1))) { /* room is a power of two */
            size_t room = work->delay_count ? 2 * work->delay_count : 1;
            void *grown = realloc(work->delays, room * sizeof(*work->delays));
            if (!grown)
                return -1;
            work->delays = grown;
        }
        work->delays[work->delay_count++] = (struct kj_work_delay){rows[i].start_ns, rows[i].end_ns, view};
    }
    return 0;
}

static bool uses(const struct kj_work *work, uint32_t view, uint32_t device)
{
    uint32_t activities = kj_ledger_view_rows(work->views[view], KJ_SECTION_ACTIVITIES);
    for (uint32_t a = 0; a < activities; a++) {
        uint32_t class = work->class_of[view][a];
        if (class != KJ_NO_CLASS && work->classes[class].device == device &&
            kj_ledger_view_launches(work->views[view], a))
            return true;
    }
    return false;
}

/* The delays of the processes that use the device, in order. */
static struct kj_work_delay *delays_of(const struct kj_work *work, uint32_t device, size_t *ret_count)
{
    struct kj_work_delay *own = malloc((work->delay_count + 1) * sizeof(*own));
    bool *used = calloc(work->view_count + 1, sizeof(*used));
    *ret_count = 0;
    for (uint32_t v = 0; used && v < work->view_count; v++)
        used[v] = uses(work, v, device);
    for (size_t i = 0; own && used && i < work->delay_count; i++)
        if (used[work->delays[i].view])
            own[(*ret_count)++] = work->delays[i];
    free(used);
    if (*ret_count)
        qsort(own, *ret_count, sizeof(*own), by_start);
    return own;
}

/* Takes the time that something ran from each delay that it ran in. */
static void subtract(const struct kj_work_delay *delays, size_t count, double *still_ns,
                     const struct kj_model_interval *ran)
{
    size_t low = 0, high = count; /* the first delay that ends after it began: delays do not overlap */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (delays[middle].end_ns <= ran->start_ns)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < count && delays[low].start_ns < ran->end_ns; low++) {
        uint64_t from_ns = delays[low].start_ns > ran->start_ns ? delays[low].start_ns : ran->start_ns;
        uint64_t to_ns = delays[low].end_ns < ran->end_ns ? delays[low].end_ns : ran->end_ns;
        still_ns[low] -= (double)(to_ns - from_ns);
    }
}

double kj_walk_idle_ns(const struct kj_work *work, uint32_t device)
{
    size_t count;
    if (!work->delay_count)
        return 0;
    struct kj_work_delay *delays = delays_of(work, device, &count);
    double *still_ns = calloc(count + 1, sizeof(*still_ns)), sum_ns = 0;
    for (size_t i = 0; still_ns && i < count; i++)
        still_ns[i] = (double)(delays[i].end_ns - delays[i].start_ns);
    for (size_t i = 0; still_ns && count && i < work->interval_count; i++)
        if (work->classes[work->intervals[i].class_index].device == device)
            subtract(delays, count, still_ns, &work->intervals[i]);
    for (size_t i = 0; still_ns && i < count; i++)
        sum_ns += still_ns[i] > 0 ? still_ns[i] : 0;
    free(delays);
    free(still_ns);
    return sum_ns;
}

void kj_walk_fell_short(struct kj_report *report)
{
    char moved[24];
    if (report->walk.asked_share > 0 && report->walk.delays)
        kj_report_warn(report,
                       "--phase-walk has moved the steps by %s in all, less than one of those periods; a "
                       "longer run or a larger share of its time would be enough",
                       kj_format_time(moved, sizeof(moved), (double)report->walk.delay_ns));
}

void kj_walk_finish(struct kj_report *report)
{
    struct kj_report_walk *walk = &report->walk;
    for (size_t i = 0; i < report->devices_count; i++) {
        walk->idle_ns += report->devices[i].walk_ns;
        walk->idle_uj += report->devices[i].walk_uj;
    }
    double asked_ns = walk->asked_share / (walk->hosts ? walk->hosts : 1) * (double)report->duration_ns;
    bool few = !walk->delays || (asked_ns > FEW_OF_NS && (double)walk->delay_ns < FEW_PART * asked_ns);
    if (walk->asked_share > 0 && few && report->kernels_count)
        kj_report_warn(report, "--phase-walk made %s: %s", walk->delays ? "hardly any delay" : "no delay",
                       walk->reason
                           ? walk->reason
                           : "next to never did a process wait on its first thread for a GPU to have done "
                             "all its work while launches were timed and a delay was due; a wait each so "
                             "many steps (loss.item(), torch.cuda.synchronize()) or a longer run would do");
}
