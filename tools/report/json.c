/* SPDX-License-Identifier: Apache-2.0
 *
 * json.c - report.json; schema/kjoule.report.1.json describes it. jansson escapes what names may hold.
 */
#include "report/sensors.h"
#include "report/writers.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Any bytes in, UTF-8 out: what is none becomes '?'. NULL is null. */
static json_t *text(const char *value)
{
    if (!value)
        return json_null();
    json_t *json = json_string(value);
    if (json)
        return json;
    char *copy = strdup(value);
    for (char *p = copy; p && *p; p++)
        if (*p & 0x80)
            *p = '?';
    json = copy ? json_string(copy) : NULL;
    free(copy);
    return json ? json : json_null();
}

static json_t *real(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *whole_or_null(double value)
{
    return value < 0 || !isfinite(value) ? json_null() : json_integer((json_int_t)llround(value));
}

static void set(json_t *object, const char *key, json_t *value)
{
    json_object_set_new(object, key, value);
}

static void set_energy(json_t *object, const char *prefix, const struct kj_energy *energy)
{
    static const char *const suffixes[] = {"energy_uj", "low_uj", "high_uj"};
    const int64_t values[] = {energy->uj, energy->low_uj, energy->high_uj};
    char key[64];
    for (int i = 0; i < 3; i++) {
        snprintf(key, sizeof(key), "%s%s", prefix, suffixes[i]);
        bool known = energy->known || (i && energy->bounded);
        set(object, key, known ? json_integer(values[i]) : json_null());
    }
}

static json_t *method(const struct kj_energy *energy)
{
    return json_string(energy->known || energy->bounded ? kj_method_name(energy->method) : "unknown");
}

static void set_time(json_t *object, const struct kj_time *time)
{
    set(object, "time_ns", time->known ? whole_or_null(time->ns) : json_null());
    set(object, "time_low_ns", time->known ? whole_or_null(floor(time->low_ns)) : json_null());
    set(object, "time_high_ns", time->known ? whole_or_null(ceil(time->high_ns)) : json_null());
    set(object, "time_method", json_string(time->known ? kj_method_name(time->method) : "unknown"));
}

static json_t *run_json(const struct kj_report *r)
{
    char stamp[32];
    struct tm utc;
    time_t seconds = (time_t)(r->start_wall_ns / KJ_NS_PER_S);
    strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&seconds, &utc));
    json_t *run = json_object();
    set(run, "id", text(r->run_id));
    set(run, "command", text(r->command));
    set(run, "cwd", text(r->cwd));
    set(run, "host", text(r->host));
    set(run, "os", text(r->os));
    set(run, "container", text(r->container));
    set(run, "virtual_machine", text(r->virtual_machine));
    set(run, "wrapped", json_boolean(r->wrapped));
    set(run, "complete", json_boolean(r->complete));
    set(run, "started", json_string(stamp));
    set(run, "duration_ns", json_integer((json_int_t)r->duration_ns));
    set(run, "exit_status", r->exit_known ? json_integer(r->exit_status) : json_null());
    set(run, "exit_signal", r->exit_known && r->exit_signal ? json_integer(r->exit_signal) : json_null());
    set(run, "rank", r->rank < 0 ? json_null() : json_integer(r->rank));
    set(run, "world_size", r->world_size < 0 ? json_null() : json_integer(r->world_size));
    set(run, "cpu_time_ns", json_integer((json_int_t)r->tree_cpu_ns));
    set(run, "processes_seen", json_integer(r->processes_seen));
    set(run, "cores_online", json_integer(r->cores_online));
    set(run, "cores_allowed", json_integer(r->cores_allowed));
    set(run, "cores_quota", r->cores_quota > 0 ? json_real(r->cores_quota) : json_null());
    set(run, "memory_bytes", json_integer((json_int_t)r->memory_bytes));
    return run;
}

static json_t *cpu_lines_json(const struct kj_report *r, json_t *cpu)
{
    json_t *threads = json_array(), *processes = json_array(), *phases = json_array();
    for (size_t i = 0; i < r->threads_count; i++) {
        const struct kj_report_thread *t = &r->threads[i];
        json_t *row =
            json_pack("{s:o,s:o,s:b,s:I,s:I,s:o,s:o}", "process", text(t->process), "thread", text(t->name),
                      "main", t->main, "threads", (json_int_t)t->threads, "cpu_ns", (json_int_t)t->cpu_ns,
                      "cycles", t->cycles ? json_integer((json_int_t)t->cycles) : json_null(), "instructions",
                      t->instructions ? json_integer((json_int_t)t->instructions) : json_null());
        set_energy(row, "", &t->energy);
        set(row, "method", method(&t->energy));
        json_array_append_new(threads, row);
    }
    for (size_t i = 0; i < r->cpu_processes_count; i++) {
        const struct kj_report_cpu_process *p = &r->cpu_processes[i];
        json_t *row = json_pack("{s:o,s:o,s:I}", "pid", p->pid ? json_integer(p->pid) : json_null(),
                                "process", text(p->process), "cpu_ns", (json_int_t)p->cpu_ns);
        set_energy(row, "", &p->energy);
        set(row, "method", method(&p->energy));
        json_array_append_new(processes, row);
    }
    for (size_t i = 0; i < r->cpu_phases_count; i++) {
        const struct kj_report_cpu_phase *p = &r->cpu_phases[i];
        json_t *row = json_pack("{s:o,s:I,s:o,s:s}", "phase", text(p->name), "count", (json_int_t)p->count,
                                "time_ns", whole_or_null(p->time_ns), "time_method", "measured");
        set_energy(row, "", &p->energy);
        set(row, "method", method(&p->energy));
        json_array_append_new(phases, row);
    }
    set(cpu, "threads", threads);
    set(cpu, "processes", processes);
    set(cpu, "phases", phases);
    return cpu;
}

/* This run's part of the packages, which the components hold in sum. */
static json_t *cpu_json(const struct kj_report *r)
{
    const struct kj_report_cpu *c = &r->cpu;
    json_t *wait = json_null();
    if (!c->time_source)
        return json_null();
    if (c->wait_known) {
        wait = json_pack("{s:I,s:I,s:I,s:I,s:s}", "inside_calls_ns", (json_int_t)c->wait_inside_ns, "cpu_ns",
                         (json_int_t)c->wait_cpu_ns, "low_cpu_ns", (json_int_t)c->wait_low_ns, "high_cpu_ns",
                         (json_int_t)c->wait_high_ns, "cpu_method", "estimated");
        set_energy(wait, "", &c->wait);
        set(wait, "method", method(&c->wait));
    }
    json_t *cpu = json_pack("{s:o,s:o,s:s,s:o,s:o,s:o,s:I,s:o,s:o,s:o}", "cpu_time_source",
                            text(c->time_source), "threads_source", text(c->threads_source), "method",
                            c->known ? kj_method_name(c->method) : "unknown", "others_cpu_ns",
                            whole_or_null(c->others_ns), "dynamic_uj",
                            c->known ? json_integer(c->dynamic_uj) : json_null(), "idle_uj",
                            c->known ? json_integer(c->idle_uj) : json_null(), "packages_unknown",
                            (json_int_t)c->packages_unknown, "idle_rule", text(c->idle_rule),
                            "reserved_share", real(c->reserved), "gpu_wait", wait);
    return cpu_lines_json(r, cpu);
}

static json_t *besides_json(const struct kj_report *r)
{
    json_t *list = json_array();
    for (size_t i = 0; i < r->besides_count; i++) {
        const struct kj_report_beside *b = &r->besides[i];
        json_t *row = json_pack("{s:o,s:o,s:o,s:o,s:o,s:s}", "device", text(b->device), "source",
                                text(b->source), "channel", text(b->channel), "basis", text(b->basis),
                                "coverage", real(b->coverage), "method", kj_method_name(b->energy.method));
        set_energy(row, "", &b->energy);
        json_array_append_new(list, row);
    }
    return list;
}

static json_t *energy_json(const struct kj_report *r)
{
    json_t *energy = json_object(), *components = json_array();
    set_energy(energy, "total_", &r->total);
    /* the contract's names: total_uj, total_low_uj, total_high_uj */
    set(energy, "total_uj", json_incref(json_object_get(energy, "total_energy_uj")));
    json_object_del(energy, "total_energy_uj");
    set(energy, "components_unknown", json_integer((json_int_t)r->components_unknown));
    for (size_t i = 0; i < r->components_count; i++) {
        const struct kj_report_component *c = &r->components[i];
        json_t *row = json_object();
        set(row, "kind", text(c->kind));
        set(row, "device", text(c->device));
        set(row, "model", text(c->model));
        set_energy(row, "", &c->energy);
        set(row, "method",
            json_string(
                kj_method_name(c->energy.method))); /* of the sensor, though it may have kept silent */
        set(row, "source", text(c->source));
        set(row, "channel", text(c->channel));
        set(row, "basis", text(c->basis));
        set(row, "device_energy_uj", c->energy.known ? json_integer(c->device_uj) : json_null());
        set(row, "share", real(c->share));
        set(row, "share_basis", text(c->share_basis));
        set(row, "coverage", real(c->coverage));
        set(row, "check",
            c->check_source ? json_pack("{s:o,s:I}", "source", text(c->check_source), "energy_uj",
                                        (json_int_t)c->check_uj)
                            : json_null());
        json_array_append_new(components, row);
    }
    set(energy, "components", components);
    set(energy, "cpu", cpu_json(r));
    set(energy, "beside", besides_json(r));
    set(energy, "sensors", kj_report_sensors_json(r));
    set(energy, "interval_coverage", json_real(KJ_INTERVAL_COVERAGE));
    return energy;
}

/* Of "MIG-..., MIG-...". */
static json_t *instances_json(const char *instances)
{
    json_t *list = json_array();
    for (const char *at = instances ? instances : ""; *at;) {
        size_t length = strcspn(at, ",");
        json_array_append_new(list, json_stringn(at, length));
        at += length + strspn(at + length, ", ");
    }
    return list;
}

static json_t *devices_json(const struct kj_report *r)
{
    json_t *list = json_array();
    for (size_t i = 0; i < r->devices_count; i++) {
        const struct kj_report_device *d = &r->devices[i];
        json_t *row = json_object();
        set(row, "device", text(d->device));
        set(row, "model", text(d->model));
        set(row, "instances", instances_json(d->instances));
        set_energy(row, "", &d->energy);
        set(row, "method", method(&d->energy));
        set(row, "kernels_uj", kj_kernels_known(d) ? json_integer(d->kernels_uj) : json_null());
        set(row, "kernels_unknown",
            d->energy.known ? json_integer((json_int_t)d->kernels_unknown) : json_null());
        set(row, "idle_uj", d->energy.known ? json_integer(d->idle_uj) : json_null());
        set(row, "unattributed_uj", d->energy.known ? json_integer(d->unattributed_uj) : json_null());
        set(row, "launches", json_integer((json_int_t)d->launches));
        set(row, "busy_ns", whole_or_null(d->busy_ns));
        set(row, "idle_mw", d->energy.known ? whole_or_null(d->idle_mw) : json_null());
        set(row, "phase_walk_ns", json_integer((json_int_t)d->walk_ns));
        set(row, "phase_walk_uj", d->energy.known ? json_integer(d->walk_uj) : json_null());
        json_array_append_new(list, row);
    }
    return list;
}

static json_t *kernels_json(const struct kj_report *r)
{
    json_t *list = json_array();
    for (size_t i = 0; i < r->kernels_count; i++) {
        const struct kj_report_kernel *k = &r->kernels[i];
        char *readable = kj_demangle(k->name);
        json_t *row = json_object();
        set(row, "name", text(k->name));
        set(row, "demangled", text(readable));
        set(row, "device", text(k->device));
        set(row, "launches", json_integer((json_int_t)k->launches));
        set(row, "timed_launches", json_integer((json_int_t)k->timed));
        set_time(row, &k->time);
        set(row, "time_sd_ns", k->time.known ? whole_or_null(k->time_sd_ns) : json_null());
        set_energy(row, "", &k->energy);
        set(row, "energy_sd_uj", k->energy.known ? whole_or_null(k->energy_sd_uj) : json_null());
        set(row, "identifiability", k->energy.known ? real(k->identifiability) : json_null());
        set(row, "group", k->group >= 0 ? json_integer(k->group) : json_null());
        set(row, "energy_method", method(&k->energy));
        json_array_append_new(list, row);
        free(readable);
    }
    return list;
}

static json_t *groups_json(const struct kj_report *r)
{
    json_t *list = json_array();
    for (size_t i = 0; i < r->groups_count; i++) {
        const struct kj_report_group *g = &r->groups[i];
        json_t *row = json_object();
        set(row, "device", text(g->device));
        set(row, "group", json_integer(g->group));
        set(row, "unknown", json_string(g->times ? "times" : "powers"));
        set(row, "kernels", json_integer((json_int_t)g->kernels));
        set(row, "copies", json_integer((json_int_t)g->copies));
        set_energy(row, "", &g->energy);
        set(row, "energy_method", method(&g->energy));
        json_array_append_new(list, row);
    }
    return list;
}

static double each_step(const struct kj_report *r, const struct kj_energy *energy)
{
    return energy->known && r->steps.count ? (double)energy->uj / (double)r->steps.count : NAN;
}

static json_t *phases_json(const struct kj_report *r)
{
    json_t *list = json_array();
    for (size_t i = 0; i < r->phases_count; i++) {
        const struct kj_report_phase *p = &r->phases[i];
        json_t *row = json_object();
        set(row, "name", text(p->name));
        set(row, "device", text(p->device));
        set(row, "launches", json_integer((json_int_t)p->launches));
        set(row, "copies", json_integer((json_int_t)p->copies));
        set(row, "launches_method", json_string(kj_method_name(p->launches_method)));
        set_time(row, &p->time);
        set_energy(row, "", &p->energy);
        set(row, "energy_method", method(&p->energy));
        set(row, "share", real(p->share));
        set(row, "identifiability", p->energy.known ? real(p->identifiability) : json_null());
        set(row, "energy_per_step_uj", real(each_step(r, &p->energy)));
        json_array_append_new(list, row);
    }
    return list;
}

static json_t *steps_json(const struct kj_report *r)
{
    const struct kj_report_steps *s = &r->steps;
    if (!s->count)
        return json_null();
    json_t *steps = json_object(), *period = json_null();
    set(steps, "count", json_integer((json_int_t)s->count));
    set(steps, "count_method", json_string(kj_method_name(s->count_method)));
    if (s->timed)
        period = json_pack("{s:I,s:o,s:o,s:o,s:o}", "steps", (json_int_t)s->timed, "mean_ns",
                           whole_or_null(s->mean_ns), "sd_ns", whole_or_null(s->sd_ns), "min_ns",
                           whole_or_null(s->min_ns), "max_ns", whole_or_null(s->max_ns));
    set(steps, "period", period);
    set_energy(steps, "", &s->energy);
    set(steps, "energy_method", method(&s->energy));
    set(steps, "energy_per_step_uj", real(each_step(r, &s->energy)));
    return steps;
}

static json_t *copies_json(const struct kj_report *r)
{
    json_t *list = json_array();
    for (size_t i = 0; i < r->copies_count; i++) {
        const struct kj_report_copy *c = &r->copies[i];
        json_t *row = json_pack("{s:o,s:o,s:I,s:I}", "kind", text(c->kind), "device", text(c->device),
                                "count", (json_int_t)c->count, "bytes", (json_int_t)c->bytes);
        set_time(row, &c->time);
        json_array_append_new(list, row);
    }
    return list;
}

static json_t *timing_json(const struct kj_report_timing *t)
{
    return json_pack("{s:o,s:o,s:o,s:o,s:I,s:I,s:I,s:I,s:I,s:o}", "backend", text(t->backend), "asked",
                     text(t->asked), "reason", text(t->reason), "cupti_version",
                     t->cupti_version ? json_integer(t->cupti_version) : json_null(), "records",
                     (json_int_t)t->records, "matched_by_name", (json_int_t)t->by_name, "unmatched",
                     (json_int_t)t->unmatched, "dropped", (json_int_t)t->dropped, "incomplete",
                     (json_int_t)t->incomplete, "clock_error_ns", whole_or_null(t->clock_error_ns));
}

static json_t *processes_json(const struct kj_report *r)
{
    json_t *list = json_array();
    for (size_t i = 0; i < r->processes_count; i++) {
        const struct kj_report_process *p = &r->processes[i];
        json_array_append_new(
            list,
            json_pack("{s:i,s:o,s:o,s:I,s:I,s:o,s:o,s:o,s:o}", "pid", p->pid, "rank",
                      p->rank < 0 ? json_null() : json_integer(p->rank), "exe", text(p->exe), "launches",
                      (json_int_t)p->launches, "failed_launches", (json_int_t)p->failed_launches,
                      "cuda_driver_version",
                      p->cuda_driver_version ? json_integer(p->cuda_driver_version) : json_null(), "state",
                      text(p->state), "reason", text(p->reason), "timing", timing_json(&p->timing)));
    }
    return list;
}

static json_t *calls_json(const struct kj_report *r)
{
    json_t *list = json_array();
    for (size_t i = 0; i < r->calls_count; i++)
        json_array_append_new(list, json_pack("{s:o,s:I,s:I,s:I}", "name", text(r->calls[i].name), "count",
                                              (json_int_t)r->calls[i].count, "failed",
                                              (json_int_t)r->calls[i].failed, "host_ns",
                                              (json_int_t)r->calls[i].host_ns));
    return list;
}

static json_t *factor_json(const struct kj_report_factor *f)
{
    if (!f->zone)
        return json_null();
    return json_pack("{s:o,s:o,s:f,s:f,s:f,s:o,s:o,s:o,s:o,s:o,s:o}", "zone", text(f->zone), "name",
                     text(f->name), "g_per_kwh", f->g_per_kwh, "low_g_per_kwh", f->low_g_per_kwh,
                     "high_g_per_kwh", f->high_g_per_kwh, "year",
                     f->year ? json_integer(f->year) : json_null(), "source", text(f->source), "licence",
                     text(f->licence), "basis", text(f->basis), "boundary", text(f->boundary),
                     "interval_basis", text(f->interval_basis));
}

static json_t *carbon_json(const struct kj_report *r)
{
    json_t *carbon = json_object();
    set(carbon, "total_g", r->carbon_known ? real(r->total_g) : json_null());
    set(carbon, "low_g", r->carbon_known ? real(r->low_g) : json_null());
    set(carbon, "high_g", r->carbon_known ? real(r->high_g) : json_null());
    set(carbon, "energy_kwh", r->total.known ? real((double)r->total.uj / KJ_UJ_PER_KWH) : json_null());
    set(carbon, "formula", json_string("total_g = energy_kwh x pue x factor.g_per_kwh"));
    set(carbon, "pue", real(r->pue));
    set(carbon, "factor", factor_json(&r->factor));
    set(carbon, "alternative", factor_json(&r->alternative));
    set(carbon, "location",
        json_pack("{s:o,s:o,s:o}", "method", text(r->location_method), "evidence", text(r->location_evidence),
                  "confidence", text(r->location_confidence)));
    set(carbon, "table_sha256", text(r->table_sha256));
    set(carbon, "embodied_g", json_null());
    return carbon;
}

static json_t *quality_json(const struct kj_report *r)
{
    json_t *quality = json_object(), *warnings = json_array(), *unhooked = json_array();
    for (size_t i = 0; i < r->warnings_count; i++)
        json_array_append_new(warnings, text(r->warnings[i]));
    for (size_t i = 0; i < r->unhooked_count; i++)
        json_array_append_new(unhooked, json_pack("{s:o,s:i,s:I}", "name", text(r->unhooked[i].name),
                                                  "version", r->unhooked[i].version, "requests",
                                                  (json_int_t)r->unhooked[i].requests));
    set(quality, "residual", real(r->residual_relative));
    set(quality, "warnings", warnings);
    set(quality, "unhooked", unhooked);
    set(quality, "clock",
        json_pack("{s:I,s:o,s:o,s:I,s:I}", "placed", (json_int_t)r->clock.placed, "error_bound_ns",
                  r->clock.placed ? json_integer((json_int_t)r->clock.error_most_ns) : json_null(),
                  "error_mean_ns",
                  r->clock.placed ? json_integer((json_int_t)(r->clock.error_sum_ns / r->clock.placed))
                                  : json_null(),
                  "retied", (json_int_t)r->clock.retied, "conflicts", (json_int_t)r->clock.conflicts));
    set(quality, "untimed_launches", json_integer((json_int_t)r->untimed_launches));
    set(quality, "harvest_errors", json_integer((json_int_t)r->harvest_errors));
    set(quality, "dropped_intervals", json_integer((json_int_t)r->dropped_intervals));
    set(quality, "context_repairs", json_integer((json_int_t)r->context_repairs));
    set(quality, "contextless_launches", json_integer((json_int_t)r->contextless_launches));
    return quality;
}

static json_t *provenance_json(const struct kj_report *r)
{
    json_t *sources = json_array();
    for (size_t i = 0; i < r->sources_count; i++)
        json_array_append_new(sources,
                              json_pack("{s:o,s:b,s:o,s:o}", "name", text(r->sources[i].name), "accepted",
                                        r->sources[i].accepted, "reason", text(r->sources[i].reason),
                                        "remedy", text(r->sources[i].remedy)));
    return json_pack("{s:s,s:o,s:o}", "kjoule", KJ_VERSION, "recorded_by", text(r->version), "sources",
                     sources);
}

/* Of each phase, all devices together. */
static json_t *per_phases_json(const struct kj_report *r, double count)
{
    json_t *list = json_array();
    for (size_t i = 0; i < r->phases_count; i++) {
        struct kj_report_phase sum;
        if (kj_phase_sum(r, i, &sum) && sum.energy.known && count > 0)
            json_array_append_new(list, json_pack("{s:o,s:o}", "name", text(sum.name), "joules_each",
                                                  real((double)sum.energy.uj / 1e6 / count)));
    }
    return list;
}

static json_t *per_json(const struct kj_report *r)
{
    json_t *list = json_array();
    for (size_t i = 0; i < r->per_count; i++) {
        double count = r->per[i].count;
        json_array_append_new(
            list,
            json_pack("{s:o,s:f,s:o,s:o,s:o}", "name", text(r->per[i].name), "count", count, "joules_each",
                      r->total.known && count > 0 ? real((double)r->total.uj / 1e6 / count) : json_null(),
                      "phases", per_phases_json(r, count), "per_step",
                      r->steps.count ? real(count / (double)r->steps.count) : json_null()));
    }
    return list;
}

static json_t *overhead_json(const struct kj_report *r)
{
    const struct kj_report_walk *w = &r->walk;
    double duration_ns = (double)r->duration_ns;
    double share = r->duration_ns ? (double)(r->shim_ns + r->shim_device_ns) / duration_ns : 0;
    json_t *walk = json_null();
    if (w->asked_share > 0)
        walk =
            json_pack("{s:f,s:o,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:s,s:o}", "asked_share", w->asked_share,
                      "share_of_duration", real(r->duration_ns ? (double)w->delay_ns / duration_ns : 0),
                      "delays", (json_int_t)w->delays, "delay_ns", (json_int_t)w->delay_ns, "longest_ns",
                      (json_int_t)w->longest_ns, "seed", (json_int_t)w->seed, "hosts", (json_int_t)w->hosts,
                      "device_idle_ns", (json_int_t)w->idle_ns, "device_idle_uj", (json_int_t)w->idle_uj,
                      "device_idle_method", "estimated", "reason", text(w->reason));
    return json_pack("{s:I,s:I,s:o,s:s,s:o}", "shim_ns", (json_int_t)r->shim_ns, "device_ns",
                     (json_int_t)r->shim_device_ns, "share_of_duration", real(share), "method", "estimated",
                     "phase_walk", walk);
}

int kj_write_json(const struct kj_report *r, FILE *out)
{
    json_t *root = json_object();
    set(root, "schema", json_string(KJ_REPORT_SCHEMA));
    set(root, "run", run_json(r));
    set(root, "energy", energy_json(r));
    set(root, "devices", devices_json(r));
    set(root, "kernels", kernels_json(r));
    set(root, "groups", groups_json(r));
    set(root, "phases", phases_json(r));
    set(root, "steps", steps_json(r));
    set(root, "copies", copies_json(r));
    set(root, "processes", processes_json(r));
    set(root, "calls", calls_json(r));
    set(root, "carbon", carbon_json(r));
    set(root, "per", per_json(r));
    set(root, "overhead", overhead_json(r));
    set(root, "quality", quality_json(r));
    set(root, "provenance", provenance_json(r));
    int status = json_dumpf(root, out, JSON_INDENT(1) | JSON_REAL_PRECISION(12)) ? -EIO : 0;
    json_decref(root);
    fputc('\n', out);
    return ferror(out) ? -EIO : status;
}
