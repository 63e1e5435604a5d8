/* SPDX-License-Identifier: Apache-2.0
 *
 * work_spans.c - where the timeline of a process is complete: its bursts, which begin at intervals that the
 * shim flagged. So it flags what follows a launch that it could not time. What it timed outside of bursts
 * belongs to none.
 */
#include "account/work.h"

#include <stdlib.h>

struct launch {
    uint64_t launch_ns, start_ns, end_ns;
    uint32_t device;
    bool gap;
};

static int by_launch(const void *a, const void *b)
{
    uint64_t x = ((const struct launch *)a)->launch_ns, y = ((const struct launch *)b)->launch_ns;
    return (x > y) - (x < y);
}

static int add_span(struct kj_work *work, uint32_t view, uint32_t device, const struct launch *first,
                    const struct launch *last)
{
    if (!first || last->end_ns <= first->start_ns)
        return 0;
    void *spans = realloc(work->spans, (work->span_count + 1) * sizeof(*work->spans));
    if (!spans)
        return -1;
    work->spans = spans;
    work->spans[work->span_count++] = (struct kj_work_span){device, view, first->start_ns, last->end_ns};
    return 0;
}

int kj_work_add_spans(struct kj_work *work, uint32_t view, const struct kj_ledger_interval *rows,
                      size_t count)
{
    uint32_t activities = kj_ledger_view_rows(work->views[view], KJ_SECTION_ACTIVITIES);
    struct launch *launches = malloc((count + 1) * sizeof(*launches));
    size_t n = 0;
    int status = launches ? 0 : -1;
    for (size_t i = 0; !status && i < count; i++) {
        uint32_t class = rows[i].activity < activities ? work->class_of[view][rows[i].activity] : KJ_NO_CLASS;
        if (class != KJ_NO_CLASS && rows[i].end_ns >= rows[i].start_ns &&
            !(rows[i].flags & KJ_INTERVAL_ALONE))
            launches[n++] =
                (struct launch){rows[i].launch_ns, rows[i].start_ns, rows[i].end_ns,
                                work->classes[class].device, (rows[i].flags & KJ_INTERVAL_GAP_BEFORE) != 0};
    }
    if (!status)
        qsort(launches, n, sizeof(*launches), by_launch);
    for (uint32_t device = 0; !status && device < work->device_count; device++) {
        const struct launch *first = NULL, *last = NULL;
        for (size_t i = 0; !status && i < n; i++) {
            if (launches[i].device != device)
                continue;
            if (launches[i].gap) {
                status = add_span(work, view, device, first, last);
                first = NULL;
            }
            first = first ? first : &launches[i];
            last = &launches[i];
        }
        status = status ? status : add_span(work, view, device, first, last);
    }
    free(launches);
    return status;
}
