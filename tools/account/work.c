/* SPDX-License-Identifier: Apache-2.0
 *
 * work.c - the ledgers of a run, joined. A ledger that cannot be read is a warning beside the rest.
 */
#include "account/work.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void warn_of_process(struct kj_report *report, const struct kj_ledger_header *h)
{
    if (h->state == KJ_LEDGER_DISABLED)
        kj_report_warn(report, "the shim stepped aside in process %d (%s): %s", h->pid, h->exe,
                       *h->disabled_reason ? h->disabled_reason : "no reason given");
    if (h->flags & KJ_LEDGER_PARTIAL)
        kj_report_warn(report,
                       "process %d (%s) ran more kinds of kernels than its ledger holds; what did not fit is "
                       "not in kernels[]",
                       h->pid, h->exe);
    if (h->sections[KJ_SECTION_CONTEXTS].dropped)
        kj_report_warn(report,
                       "process %d (%s) had more than %u CUDA contexts at once; launches in those beyond are "
                       "counted, and their time is that of the same kernels elsewhere",
                       h->pid, h->exe, h->sections[KJ_SECTION_CONTEXTS].cap);
    if (h->contextless_launches)
        kj_report_warn(
            report,
            "process %d (%s): the driver would not tell on which device %llu launches ran; they are "
            "not in kernels[]",
            h->pid, h->exe, (unsigned long long)h->contextless_launches);
}

static const char *state_name(uint32_t state)
{
    return state == KJ_LEDGER_CLOSED ? "closed" : state == KJ_LEDGER_DISABLED ? "disabled" : "open";
}

static uint64_t kernel_launches(const struct kj_ledger_view *view)
{
    uint64_t sum = 0;
    struct kj_ledger_activity activity;
    for (uint32_t i = 0; kj_ledger_view_row(view, KJ_SECTION_ACTIVITIES, i, &activity); i++)
        if (activity.kind == KJ_ACTIVITY_KERNEL || activity.kind == KJ_ACTIVITY_GRAPH)
            sum += kj_ledger_view_launches(view, i);
    return sum;
}

static char *timing_name(uint32_t timing)
{
    static const char *const names[] = {
        [KJ_TIMING_COUNT] = "count", [KJ_TIMING_EVENTS] = "events", [KJ_TIMING_CUPTI] = "cupti"};
    return strdup(timing && timing < sizeof(names) / sizeof(names[0]) ? names[timing] : "unknown");
}

static struct kj_report_timing timing_of(const struct kj_ledger_header *h)
{
    /* Half of what the comparison left open, and what the clocks were seen to move, or to be wrong. */
    double error_ns = (double)(h->cupti_tie_hi_ns - h->cupti_tie_lo_ns) / 2 +
                      (double)(h->cupti_drift_ns > h->cupti_early_ns ? h->cupti_drift_ns : h->cupti_early_ns);
    return (struct kj_report_timing){.backend = timing_name(h->timing_backend),
                                     .asked = timing_name(h->timing_asked),
                                     .reason = *h->timing_reason ? strdup(h->timing_reason) : NULL,
                                     .cupti_version = h->cupti_version,
                                     .records = h->cupti_records,
                                     .by_name = h->cupti_by_name,
                                     .unmatched = h->cupti_unmatched,
                                     .dropped = h->cupti_dropped,
                                     .incomplete = h->cupti_incomplete,
                                     .clock_error_ns = h->cupti_ties ? error_ns : -1};
}

/* Of every process that launched something; the same words from many ranks are one warning. */
static void warn_of_timing(struct kj_report *report, const struct kj_report_process *row)
{
    if (!strcmp(row->timing.backend, "cupti") && row->launches && !row->timing.records && !row->timing.reason)
        kj_report_warn(
            report,
            "process %d (%s) ended before it had CUPTI's records of its launches (killed, or without "
            "exit handlers, and without a wait for the GPU): they have no time of their own",
            row->pid, row->exe);
    if (!row->timing.reason || !row->launches)
        return;
    for (size_t i = 0; i + 1 < report->processes_count; i++)
        if (report->processes[i].timing.reason && report->processes[i].launches &&
            !strcmp(report->processes[i].timing.reason, row->timing.reason))
            return;
    if (!strcmp(row->timing.asked, row->timing.backend))
        kj_report_warn(report, "--timing %s: %s", row->timing.asked, row->timing.reason);
    else
        kj_report_warn(report, "--timing %s: %s; launches are timed by %s instead%s", row->timing.asked,
                       row->timing.reason, row->timing.backend, row->timing.records ? " from there on" : "");
}

/* Handles that came by private ways are asked about, which drivers can answer since CUDA 12.3. */
static void warn_of_unnamed(struct kj_report *report, const struct kj_ledger_view *view)
{
    const struct kj_ledger_header *h = kj_ledger_view_header(view);
    struct kj_ledger_activity activity;
    uint64_t launches = 0;
    for (uint32_t i = 0; kj_ledger_view_row(view, KJ_SECTION_ACTIVITIES, i, &activity); i++)
        if (!strncmp(kj_ledger_view_name(view, activity.name), KJ_LEDGER_UNNAMED, strlen(KJ_LEDGER_UNNAMED)))
            launches += kj_ledger_view_launches(view, i);
    if (launches)
        kj_report_warn(
            report,
            "process %d (%s): %llu launches are of kernels that have no name here: the program was given "
            "their handles in a way that is not seen, and the driver (CUDA %d.%d) did not tell%s",
            h->pid, h->exe, (unsigned long long)launches, h->cuda_driver_version / 1000,
            h->cuda_driver_version % 1000 / 10,
            h->cuda_driver_version < 12030 ? "; one of CUDA 12.3 or newer does" : "");
}

/* Events would keep apart what overlaps, so the shim times neither. */
static void warn_of_dependent(struct kj_report *report, const struct kj_ledger_header *h)
{
    if (h->dependent_launches && h->timing_backend == KJ_TIMING_EVENTS)
        kj_report_warn(
            report,
            "process %d (%s) made %llu programmatic dependent launches, which may begin before the "
            "kernel ahead of them has ended: they and the kernels that they follow are not timed, as an "
            "event between the two would hold them up; what they used is shared out by the model or "
            "stays unattributed. --timing cupti times them",
            h->pid, h->exe, (unsigned long long)h->dependent_launches);
}

/* How event time was tied to the host's, over all contexts. */
static void add_clocks(struct kj_report *report, const struct kj_ledger_view *view)
{
    struct kj_ledger_context context;
    uint64_t conflicts = report->clock.conflicts;
    for (uint32_t i = 0; kj_ledger_view_row(view, KJ_SECTION_CONTEXTS, i, &context); i++) {
        report->clock.placed += context.placed;
        report->clock.error_sum_ns += context.error_sum_ns;
        if (context.error_most_ns > report->clock.error_most_ns)
            report->clock.error_most_ns = context.error_most_ns;
        report->clock.retied += context.retied;
        report->clock.conflicts += context.conflicts;
    }
    if (report->clock.conflicts > conflicts)
        kj_report_warn(
            report,
            "process %d: the GPU's clock and the host's ran apart by more than 100 ppm %llu times; "
            "timed launches may lie further off than quality.clock says; is the host's clock being "
            "corrected (chronyc tracking, ntpq -p)?",
            kj_ledger_view_header(view)->pid, (unsigned long long)(report->clock.conflicts - conflicts));
}

static int add_process(struct kj_report *report, const struct kj_ledger_view *view)
{
    const struct kj_ledger_header *h = kj_ledger_view_header(view);
    struct kj_report_process *row = kj_report_add_process(report);
    if (!row)
        return -1;
    *row = (struct kj_report_process){.pid = h->pid,
                                      .rank = h->rank,
                                      .exe = strdup(h->exe),
                                      .launches = kernel_launches(view),
                                      .failed_launches = h->failed_launches,
                                      .cuda_driver_version = h->cuda_driver_version,
                                      .state = strdup(state_name(h->state)),
                                      .reason = *h->disabled_reason ? strdup(h->disabled_reason) : NULL,
                                      .timing = timing_of(h)};
    warn_of_process(report, h);
    warn_of_timing(report, row);
    warn_of_dependent(report, h);
    warn_of_unnamed(report, view);
    report->shim_ns += h->self_ns;
    report->shim_device_ns += h->events_device_ns;
    kj_walk_process(report, h);
    add_clocks(report, view);
    report->untimed_launches += h->untimed_no_event + h->untimed_capture;
    report->harvest_errors += h->harvest_errors;
    report->context_repairs += h->context_repairs;
    report->contextless_launches += h->contextless_launches;
    struct kj_ledger_unhooked unhooked;
    for (uint32_t i = 0; kj_ledger_view_row(view, KJ_SECTION_UNHOOKED, i, &unhooked); i++) {
        struct kj_report_unhooked *entry = kj_report_add_unhooked(report);
        if (entry)
            *entry = (struct kj_report_unhooked){strdup(kj_ledger_view_name(view, unhooked.name)),
                                                 unhooked.version, unhooked.requests};
    }
    return 0;
}

/* The rows are those of hooks.def, in the same order in each ledger of this version. */
static int add_calls(struct kj_report *report, const struct kj_ledger_view *view)
{
    struct kj_ledger_call call;
    for (uint32_t i = 0; kj_ledger_view_row(view, KJ_SECTION_CALLS, i, &call); i++) {
        uint64_t count = kj_ledger_view_calls(view, i);
        const char *name = kj_ledger_view_name(view, call.name);
        struct kj_report_call *row = NULL;
        if (!count && !call.failed)
            continue;
        for (size_t k = 0; k < report->calls_count && !row; k++)
            if (!strcmp(report->calls[k].name, name))
                row = &report->calls[k];
        if (!row) {
            row = kj_report_add_call(report);
            if (!row || !(row->name = strdup(name)))
                return -1;
        }
        row->count += count;
        row->failed += call.failed;
        row->host_ns += call.host_ns;
    }
    return 0;
}

/* One activity of one ledger on its way to its class. */
struct row {
    const char *name;
    uint32_t device, view, activity;
    uint8_t kind;
};

static int by_class(const void *a, const void *b)
{
    const struct row *x = a, *y = b;
    if (x->device != y->device)
        return x->device < y->device ? -1 : 1;
    if (x->kind != y->kind)
        return x->kind < y->kind ? -1 : 1;
    /* Copies and fills are one class a kind; names only tell kernels apart. */
    return x->kind == KJ_ACTIVITY_KERNEL ? strcmp(x->name, y->name) : 0;
}

static size_t collect_rows(struct kj_work *work, uint32_t view_index, struct row *rows)
{
    struct kj_ledger_view *view = work->views[view_index];
    struct kj_ledger_activity activity;
    struct kj_ledger_device device;
    uint32_t devices[32];
    size_t count = 0;
    uint32_t device_rows = kj_ledger_view_rows(view, KJ_SECTION_DEVICES);
    for (uint32_t d = 0; d < device_rows && d < 32; d++) {
        devices[d] = kj_ledger_view_row(view, KJ_SECTION_DEVICES, d, &device)
                         ? kj_work_find_device(work, &device)
                         : KJ_NO_CLASS;
        if (devices[d] != KJ_NO_CLASS)
            kj_work_add_context(work, devices[d], view_index, &device);
    }
    for (uint32_t a = 0; kj_ledger_view_row(view, KJ_SECTION_ACTIVITIES, a, &activity); a++) {
        work->class_of[view_index][a] = KJ_NO_CLASS;
        uint32_t on =
            activity.device < device_rows && activity.device < 32 ? devices[activity.device] : KJ_NO_CLASS;
        bool works = (activity.kind >= KJ_ACTIVITY_KERNEL && activity.kind < KJ_ACTIVITY_HOST) ||
                     activity.kind == KJ_ACTIVITY_BODY;
        if (on != KJ_NO_CLASS && works)
            rows[count++] =
                (struct row){kj_ledger_view_name(view, activity.name), on, view_index, a, activity.kind};
    }
    return count;
}

static int join_classes(struct kj_work *work)
{
    size_t total = 0, count = 0;
    work->class_of = calloc(work->view_count + 1, sizeof(*work->class_of));
    work->phase_of = calloc(work->view_count + 1, sizeof(*work->phase_of));
    for (size_t v = 0; work->class_of && work->phase_of && v < work->view_count; v++) {
        uint32_t rows = kj_ledger_view_rows(work->views[v], KJ_SECTION_ACTIVITIES);
        work->class_of[v] = malloc((rows + 1) * sizeof(**work->class_of));
        work->phase_of[v] = calloc(rows + 1, sizeof(**work->phase_of));
        if (!work->class_of[v] || !work->phase_of[v])
            return -1;
        total += rows;
    }
    struct row *rows = malloc((total + 1) * sizeof(*rows));
    work->classes = calloc(2 * total + 1, sizeof(*work->classes)); /* and as many groups at most */
    if (!work->class_of || !work->phase_of || !rows || !work->classes) {
        free(rows);
        return -1;
    }
    for (size_t v = 0; v < work->view_count; v++)
        count += collect_rows(work, (uint32_t)v, rows + count);
    qsort(rows, count, sizeof(*rows), by_class);
    for (size_t i = 0; i < count; i++) {
        if (!i || by_class(&rows[i - 1], &rows[i]))
            work->classes[work->class_count++] =
                (struct kj_work_class){.name = rows[i].name, .device = rows[i].device, .kind = rows[i].kind};
        work->class_of[rows[i].view][rows[i].activity] = (uint32_t)work->class_count - 1;
    }
    free(rows);
    return 0;
}

int kj_work_reserve(struct kj_work *work, size_t more)
{
    size_t wanted = work->interval_count + more;
    if (wanted <= work->interval_cap)
        return 0;
    wanted += wanted / 2;
    void *grown = realloc(work->intervals, wanted * sizeof(*work->intervals));
    if (!grown)
        return -1;
    work->intervals = grown;
    work->interval_cap = wanted;
    return 0;
}

/* One process's intervals, those of graphs as their nodes. */
static int add_intervals(struct kj_work *work, uint32_t v, const struct kj_ledger_interval *rows,
                         size_t count)
{
    uint32_t activities = kj_ledger_view_rows(work->views[v], KJ_SECTION_ACTIVITIES);
    int status = 0;
    for (size_t i = 0; !status && i < count; i++) {
        uint32_t class = rows[i].activity < activities ? work->class_of[v][rows[i].activity] : KJ_NO_CLASS;
        if (class == KJ_NO_CLASS || rows[i].end_ns < rows[i].start_ns)
            continue;
        if (work->classes[class].kind == KJ_ACTIVITY_GRAPH)
            status = kj_work_add_graph_intervals(work, v, &rows[i]);
        else if (!(status = kj_work_reserve(work, 1)))
            work->intervals[work->interval_count++] =
                (struct kj_model_interval){rows[i].start_ns, rows[i].end_ns, class, rows[i].stream};
    }
    return status;
}

static int join_intervals(struct kj_account *account, struct kj_work *work)
{
    for (size_t v = 0; v < work->view_count; v++) {
        struct kj_ledger_interval *rows;
        size_t count;
        uint64_t dropped;
        if (kj_ledger_view_intervals(account->dir_fd, work->views[v], &rows, &count, &dropped))
            return -1;
        account->report->dropped_intervals += dropped;
        int status = add_intervals(work, (uint32_t)v, rows, count);
        status = status ? status : kj_work_add_delays(work, (uint32_t)v, rows, count);
        status = status ? status : kj_work_add_spans(work, (uint32_t)v, rows, count);
        status = status ? status : kj_work_add_rests(work, (uint32_t)v, account->dir_fd);
        status = status ? status : kj_work_add_phases(work, (uint32_t)v, rows, count);
        free(rows);
        if (status)
            return -1;
    }
    return 0;
}

/* An entry point that was asked for may never have been called: what is known is said. */
static void warn_of_unhooked(struct kj_report *report)
{
    char names[512] = "";
    size_t used = 0, told = 0, all = 0;
    for (size_t i = 0; i < report->unhooked_count; i++) {
        const struct kj_report_unhooked *u = &report->unhooked[i];
        size_t before = 0; /* the same name of another process, or at another version */
        while (before < i && strcmp(report->unhooked[before].name, u->name))
            before++;
        all += before == i;
        if (before < i || told == 6)
            continue;
        char version[32] = "by its symbol";
        if (u->version)
            snprintf(version, sizeof(version), "at CUDA %d.%d", u->version / 1000, u->version % 1000 / 10);
        int size =
            snprintf(names + used, sizeof(names) - used, "%s%s (%s)", told ? ", " : "", u->name, version);
        if (size < 0 || used + (size_t)size >= sizeof(names)) {
            names[used] = 0;
            break;
        }
        used += (size_t)size;
        told++;
    }
    if (!told)
        return;
    char more[32] = "";
    if (all > told)
        snprintf(more, sizeof(more), " and %zu more", all - told);
    kj_report_warn(
        report,
        "asked of the driver, and newer than this kjoule: %s%s. Launches and copies through these are not "
        "seen: they would be missing here, and their energy be told as other kernels' or unattributed. "
        "Whether they were called is not known; a newer kjoule may know them (quality.unhooked)",
        names, more);
}

static int open_views(struct kj_account *account, struct kj_work *work)
{
    char **names;
    size_t count;
    if (kj_folder_list_ledgers(account->dir_fd, &names, &count))
        return 0;
    work->views = calloc(count + 1, sizeof(*work->views));
    bool initialised = false;
    uint64_t launches = 0;
    int status = work->views ? 0 : -1;
    for (size_t i = 0; !status && i < count; i++) {
        struct kj_error error = {0};
        if (kj_ledger_view_open(account->dir_fd, names[i], &work->views[work->view_count], &error)) {
            kj_report_warn(account->report, "%s",
                           *error.text ? error.text : "a ledger could not be read: out of memory");
            continue;
        }
        struct kj_ledger_view *view = work->views[work->view_count++];
        status = add_process(account->report, view) || add_calls(account->report, view) ? -1 : 0;
        initialised = initialised || kj_ledger_view_header(view)->flags & KJ_LEDGER_CUDA_INIT;
        launches += kernel_launches(view);
    }
    kj_strings_free(names);
    warn_of_unhooked(account->report);
    if (!status && initialised && !launches)
        kj_report_warn(
            account->report,
            "CUDA was initialised but no kernel launch was seen: either the program launched none, or it "
            "reaches the driver past the shim (linked statically into a library with its own loader?); "
            "quality.unhooked names what it asked for");
    return status;
}

struct kj_work *kj_work_read(struct kj_account *account)
{
    struct kj_work *work = calloc(1, sizeof(*work));
    if (work)
        work->series = account->series;
    if (!work || open_views(account, work) || join_classes(work) || kj_work_read_graphs(work) ||
        join_intervals(account, work) || !(work->gpus = calloc(work->device_count + 1, sizeof(*work->gpus))))
        return kj_work_free(work);
    for (size_t i = 0; i < work->device_count; i++)
        work->gpus[i] = work->devices[i].key;
    kj_work_add_times(work);
    return work;
}

struct kj_work *kj_work_free(struct kj_work *work)
{
    if (!work)
        return NULL;
    for (size_t v = 0; v < work->view_count; v++) {
        kj_ledger_view_close(work->views[v]);
        if (work->class_of)
            free(work->class_of[v]);
        if (work->phase_of)
            free(work->phase_of[v]);
    }
    free(work->views);
    free(work->class_of);
    free(work->phase_of);
    free(work->devices);
    free(work->gpus);
    free(work->classes);
    free(work->intervals);
    free(work->spans);
    free(work->delays);
    free(work->graphs);
    free(work->nodes);
    free(work->parts);
    free(work);
    return NULL;
}

size_t kj_work_gpus(const struct kj_work *work, char *const **ret_gpus)
{
    *ret_gpus = work->gpus;
    return work->device_count;
}
