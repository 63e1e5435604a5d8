/* SPDX-License-Identifier: Apache-2.0
 *
 * account.c - the order of the accounting: open, join, attribute, price.
 */
#include "account/account.h"

#include "account/parts.h"
#include "carbon/carbon.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *copy(const char *text)
{
    return text ? strdup(text) : NULL;
}

static void find_span(struct kj_account *a)
{
    a->start_ns = a->run.start_mono_ns;
    a->end_ns = a->run.end_mono_ns;
    if (a->end_ns)
        return;
    a->end_ns = a->start_ns;
    for (size_t i = 0; a->series && i < a->series->count; i++) {
        const struct kj_series_channel *c = &a->series->channels[i];
        if (c->count && c->points[c->count - 1].t_ns > a->end_ns)
            a->end_ns = c->points[c->count - 1].t_ns;
    }
    kj_report_warn(
        a->report,
        "the recorder did not live to see the end of the run, or it still runs: what came after its last "
        "written second is missing; ask again later if it still runs");
}

static void fill_run(struct kj_account *a, const char *path)
{
    struct kj_report *r = a->report;
    const struct kj_run_info *run = &a->run;
    r->run_id = copy(run->run_id);
    r->folder = copy(path);
    r->command = copy(run->command_line);
    r->host = copy(run->host);
    r->os = copy(run->os);
    r->container = copy(run->container);
    r->virtual_machine = copy(run->virtual_machine);
    r->cores_quota = run->cgroup_cpu_quota;
    r->version = copy(run->version);
    r->cwd = copy(run->cwd);
    r->wrapped = run->wrapped;
    r->complete = run->end_mono_ns != 0;
    r->exit_known = run->exited;
    r->exit_status = run->exit_status;
    r->exit_signal = run->exit_signal;
    r->rank = run->rank;
    r->world_size = run->world_size;
    r->start_wall_ns = run->start_wall_ns;
    r->duration_ns = a->end_ns - a->start_ns;
    r->memory_bytes = run->memory_bytes;
    r->cores_online = run->cores_online;
    r->cores_allowed = run->cores_allowed;
    r->processes_seen = run->processes_seen;
    for (size_t i = 0; i < run->warnings_count; i++)
        kj_report_warn(r, "%s", run->warnings[i]);
    if (run->blind_reason)
        kj_report_warn(r,
                       "kjoule cannot see what this program calls: %s; its CPU energy counts, kernels and "
                       "GPUs that it uses do not",
                       run->blind_reason);
    for (size_t i = 0; i < run->sources_count; i++) {
        struct kj_report_source *source = kj_report_add_source(r);
        if (source)
            *source = (struct kj_report_source){copy(run->sources[i].name), copy(run->sources[i].reason),
                                                copy(run->sources[i].remedy), run->sources[i].accepted};
    }
    for (size_t i = 0; i < run->per_count; i++) {
        struct kj_report_per *per = kj_report_add_per(r);
        if (per)
            *per = (struct kj_report_per){copy(run->per[i].name), run->per[i].count};
    }
}

static void fill_factor(struct kj_report_factor *to, const struct kj_factor *from, const char *zone)
{
    *to = (struct kj_report_factor){.zone = copy(zone),
                                    .name = copy(from->name),
                                    .g_per_kwh = from->g_per_kwh,
                                    .low_g_per_kwh = from->low_g_per_kwh,
                                    .high_g_per_kwh = from->high_g_per_kwh,
                                    .year = from->year,
                                    .source = copy(from->source),
                                    .licence = copy(from->licence),
                                    .basis = copy(from->basis),
                                    .boundary = copy(from->boundary),
                                    .interval_basis = copy(from->interval_basis)};
}

/* The place was found when and where the run ran; only an explicit zone replaces it later. */
static int price(struct kj_account *a, const struct kj_account_options *options, struct kj_error *error)
{
    static const char *const confidence[] = {"unknown", "low", "medium", "high"};
    struct kj_report *r = a->report;
    struct kj_factor_choice choice;
    const bool as_recorded = !options->zone || !*options->zone;
    static const char *const no_environment[] = {NULL};
    const struct kj_zone_request request = {
        .zone = as_recorded ? a->run.place_zone : options->zone,
        .g_per_kwh = options->carbon_intensity_g_per_kwh >= 0 ? options->carbon_intensity_g_per_kwh
                     : as_recorded                            ? a->run.carbon_intensity_g_per_kwh
                                                              : -1,
        .root = "",
        .environment = no_environment,
    };
    int status = kj_carbon_choose(&request, &choice, error);
    if (status)
        return status;
    bool recorded = as_recorded && a->run.place_method;
    r->pue = options->pue > 0 ? options->pue : a->run.pue > 0 ? a->run.pue : 1.0;
    fill_factor(&r->factor, &choice.factor, choice.factor.code);
    if (choice.has_alternative)
        fill_factor(&r->alternative, &choice.alternative, choice.alternative.code);
    r->location_method = strdup(recorded ? a->run.place_method : choice.location.method);
    r->location_evidence =
        strdup(recorded && a->run.place_evidence ? a->run.place_evidence : choice.location.evidence);
    int level = recorded ? a->run.place_confidence : (int)choice.location.confidence;
    r->location_confidence = strdup(confidence[level >= 0 && level <= 3 ? level : 0]);
    r->table_sha256 = strdup(choice.table_sha256);
    if (recorded && a->run.place_is_default && strcmp(choice.factor.code, "user"))
        kj_report_warn(r, "where the electricity comes from is unknown, so the world average is used; say "
                          "--zone FR or the like "
                          "(`kjoule zones` lists them)");
    r->carbon_known = r->total.known;
    if (r->carbon_known) {
        r->total_g = kj_carbon_grams((double)r->total.uj, r->pue, choice.factor.g_per_kwh);
        kj_carbon_interval((double)r->total.uj, (double)r->total.low_uj, (double)r->total.high_uj, r->pue,
                           &choice.factor, &r->low_g, &r->high_g);
    }
    return 0;
}

int kj_account_folder(const char *path, const struct kj_account_options *options,
                      struct kj_report **ret_report, struct kj_error *error)
{
    struct kj_account a = {.dir_fd = kj_folder_open(path, error)};
    if (a.dir_fd < 0)
        return a.dir_fd;
    int status = kj_folder_read_run(a.dir_fd, &a.run, error);
    if (status) {
        struct kj_error inner = *error;
        kj_error_set(error, "%s: %s", path, inner.text);
        close(a.dir_fd);
        return status;
    }
    struct kj_error ignored;
    a.report = kj_report_new();
    status = a.report ? 0 : -ENOMEM;
    if (!status) {
        kj_series_read(a.dir_fd, &a.series, &ignored);
        find_span(&a);
        fill_run(&a, path);
        if (a.series && a.series->bad_lines)
            kj_report_warn(
                a.report,
                "%zu lines of the power series were not understood and left out, the first: %s; was the "
                "folder edited?",
                a.series->bad_lines, a.series->first_bad);
        struct kj_work *work = kj_work_read(&a);
        char *const *gpus = NULL;
        size_t gpu_count = work ? kj_work_gpus(work, &gpus) : 0;
        status =
            !work || kj_account_components(&a, gpus, gpu_count) || kj_work_attribute(&a, work) ? -ENOMEM : 0;
        kj_work_free(work);
    }
    if (!status)
        status = price(&a, options, error);
    kj_series_free(a.series);
    kj_run_info_clear(&a.run);
    close(a.dir_fd);
    if (status)
        kj_report_free(a.report);
    else
        *ret_report = a.report;
    return status;
}
