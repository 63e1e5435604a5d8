/* SPDX-License-Identifier: Apache-2.0
 *
 * report.c - the finished answer as an object: its lists, its warnings, its end.
 */
#include "report/report.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

struct kj_report *kj_report_new(void)
{
    return calloc(1, sizeof(struct kj_report));
}

static void *grow(void **rows, size_t *count, size_t row_size)
{
    char *larger = realloc(*rows, (*count + 1) * row_size);
    if (!larger)
        return NULL;
    *rows = larger;
    return memset(larger + (*count)++ * row_size, 0, row_size);
}

#define X(one, many)                                                                                         \
    struct kj_report_##one *kj_report_add_##one(struct kj_report *report)                                    \
    {                                                                                                        \
        return grow((void **)&report->many, &report->many##_count, sizeof(*report->many));                   \
    }
KJ_REPORT_LISTS(X)
#undef X

void kj_report_warn(struct kj_report *report, const char *format, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, format);
    int size = vasprintf(&text, format, args);
    va_end(args);
    for (size_t i = 0; size >= 0 && i < report->warnings_count; i++)
        if (!strcmp(report->warnings[i], text)) {
            free(text);
            return;
        }
    char **row = size < 0 ? NULL : grow((void **)&report->warnings, &report->warnings_count, sizeof(char *));
    if (row)
        *row = text;
    else if (size >= 0)
        free(text);
}

bool kj_kernels_known(const struct kj_report_device *device)
{
    return device->energy.known && (device->kernels_known || !device->kernels_unknown);
}

bool kj_phase_sum(const struct kj_report *report, size_t index, struct kj_report_phase *ret_sum)
{
    *ret_sum = report->phases[index];
    for (size_t i = 0; i < index; i++)
        if (!strcmp(report->phases[i].name, ret_sum->name))
            return false;
    for (size_t i = index + 1; i < report->phases_count; i++) {
        const struct kj_report_phase *more = &report->phases[i];
        if (strcmp(more->name, ret_sum->name))
            continue;
        ret_sum->launches += more->launches;
        ret_sum->copies += more->copies;
        ret_sum->time.known = ret_sum->time.known && more->time.known;
        ret_sum->time.ns += more->time.ns;
        ret_sum->time.low_ns += more->time.low_ns;
        ret_sum->time.high_ns += more->time.high_ns;
        ret_sum->energy.bounded = (ret_sum->energy.known || ret_sum->energy.bounded) &&
                                  (more->energy.known || more->energy.bounded) &&
                                  !(ret_sum->energy.known && more->energy.known);
        ret_sum->energy.known = ret_sum->energy.known && more->energy.known;
        ret_sum->energy.uj += more->energy.uj;
        ret_sum->energy.low_uj += more->energy.low_uj;
        ret_sum->energy.high_uj += more->energy.high_uj;
        if (more->energy.method > ret_sum->energy.method)
            ret_sum->energy.method = more->energy.method;
        if (more->launches_method > ret_sum->launches_method)
            ret_sum->launches_method = more->launches_method;
    }
    return true;
}

static void free_component(struct kj_report_component *row)
{
    free(row->kind);
    free(row->device);
    free(row->model);
    free(row->source);
    free(row->channel);
    free(row->basis);
    free(row->share_basis);
    free(row->check_source);
}
static void free_device(struct kj_report_device *row)
{
    free(row->device);
    free(row->model);
    free(row->instances);
}
static void free_kernel(struct kj_report_kernel *row)
{
    free(row->name);
    free(row->device);
}
static void free_group(struct kj_report_group *row)
{
    free(row->device);
}
static void free_copy(struct kj_report_copy *row)
{
    free(row->kind);
    free(row->device);
}
static void free_process(struct kj_report_process *row)
{
    free(row->exe);
    free(row->state);
    free(row->reason);
    free(row->timing.backend);
    free(row->timing.asked);
    free(row->timing.reason);
}
static void free_source(struct kj_report_source *row)
{
    free(row->name);
    free(row->reason);
    free(row->remedy);
}
static void free_unhooked(struct kj_report_unhooked *row)
{
    free(row->name);
}
static void free_call(struct kj_report_call *row)
{
    free(row->name);
}
static void free_beside(struct kj_report_beside *row)
{
    free(row->device);
    free(row->source);
    free(row->channel);
    free(row->basis);
}
static void free_sensor(struct kj_report_sensor *row)
{
    free(row->device);
    free(row->source);
    free(row->channel);
    free(row->basis);
    free(row->shape);
    free(row->kernel);
}
static void free_thread(struct kj_report_thread *row)
{
    free(row->process);
    free(row->name);
}
static void free_cpu_process(struct kj_report_cpu_process *row)
{
    free(row->process);
}
static void free_cpu_phase(struct kj_report_cpu_phase *row)
{
    free(row->name);
}
static void free_phase(struct kj_report_phase *row)
{
    free(row->name);
    free(row->device);
}
static void free_per(struct kj_report_per *row)
{
    free(row->name);
}
static void free_factor(struct kj_report_factor *factor)
{
    free(factor->zone);
    free(factor->name);
    free(factor->source);
    free(factor->licence);
    free(factor->basis);
    free(factor->boundary);
    free(factor->interval_basis);
}

struct kj_report *kj_report_free(struct kj_report *report)
{
    if (!report)
        return NULL;
#define X(one, many)                                                                                         \
    for (size_t i = 0; i < report->many##_count; i++)                                                        \
        free_##one(&report->many[i]);                                                                        \
    free(report->many);
    KJ_REPORT_LISTS(X)
#undef X
    for (size_t i = 0; i < report->warnings_count; i++)
        free(report->warnings[i]);
    free(report->warnings);
    char *texts[] = {report->run_id,
                     report->folder,
                     report->command,
                     report->host,
                     report->os,
                     report->container,
                     report->virtual_machine,
                     report->version,
                     report->cwd,
                     report->walk.reason,
                     report->cpu.time_source,
                     report->cpu.threads_source,
                     report->cpu.idle_rule,
                     report->location_method,
                     report->location_evidence,
                     report->location_confidence,
                     report->table_sha256};
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
        free(texts[i]);
    free_factor(&report->factor);
    free_factor(&report->alternative);
    free(report);
    return NULL;
}
