/* SPDX-License-Identifier: Apache-2.0
 *
 * work_spans.c - where the timeline of a process is complete: its bursts, which begin at intervals that the
 * shim flagged. So it flags what follows a launch that it could not time. What it timed outside of bursts
 * belongs to none. And its rests, in which there was nothing to time.
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

static int add_span(struct kj_work *work, const struct kj_work_span *span)
{
    if (span->end_ns <= span->start_ns)
        return 0;
    void *spans = realloc(work->spans, (work->span_count + 1) * sizeof(*work->spans));
    if (!spans)
        return -1;
    work->spans = spans;
    work->spans[work->span_count++] = *span;
    return 0;
}

static int add_burst(struct kj_work *work, uint32_t device, const struct launch *first,
                     const struct launch *last)
{
    return !first
               ? 0
               : add_span(work, &(struct kj_work_span){
                                    .device = device, .start_ns = first->start_ns, .end_ns = last->end_ns});
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
                status = add_burst(work, device, first, last);
                first = NULL;
            }
            first = first ? first : &launches[i];
            last = &launches[i];
        }
        status = status ? status : add_burst(work, device, first, last);
    }
    free(launches);
    return status;
}

int kj_work_add_rests(struct kj_work *work, uint32_t view, int dir_fd)
{
    struct kj_ledger_device device;
    struct kj_ledger_rest *rests;
    size_t count;
    if (kj_ledger_view_rows(work->views[view], KJ_SECTION_DEVICES) != 1 ||
        !kj_ledger_view_row(work->views[view], KJ_SECTION_DEVICES, 0, &device))
        return 0;
    uint32_t index = kj_work_find_device(work, &device);
    if (index == KJ_NO_CLASS || kj_ledger_view_rests(dir_fd, work->views[view], &rests, &count))
        return -1;
    int status = 0;
    for (size_t i = 0; !status && i < count; i++)
        status = add_span(work, &(struct kj_work_span){.device = index,
                                                       .rest = true,
                                                       .start_ns = rests[i].start_ns,
                                                       .end_ns = rests[i].end_ns});
    free(rests);
    return status;
}
