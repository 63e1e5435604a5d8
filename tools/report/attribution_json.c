/* SPDX-License-Identifier: Apache-2.0
 *
 * attribution_json.c - the answer of `kjoule attribute` for machines: kernels[] as in report.json, and how
 * the sensors were read.
 */
#include "report/attribution.h"
#include "report/writers.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *kj_trace_gain_source_name(enum kj_trace_gain_source source)
{
    static const char *const names[] = {"unknown", "given", "meter"};
    return names[source];
}

/* Any bytes in, UTF-8 out: what is none becomes '?'. */
static json_t *text(const char *value)
{
    json_t *json = json_string(value ? value : "");
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

static json_t *whole(double value)
{
    return isfinite(value) && fabs(value) < 9e18 ? json_integer((json_int_t)llround(value)) : json_null();
}

static void set(json_t *object, const char *key, json_t *value)
{
    json_object_set_new(object, key, value);
}

static void set_estimate(json_t *object, const struct kj_model_estimate *estimate)
{
    set(object, "energy_uj", json_integer(estimate->energy_uj));
    set(object, "low_uj", json_integer(estimate->low_uj));
    set(object, "high_uj", json_integer(estimate->high_uj));
    set(object, "energy_sd_uj", whole(estimate->sd_uj));
}

/* Mean board power while it ran; null where it never did. */
static json_t *power(double uj, double time_ns)
{
    return time_ns > 0 ? real(uj * 1e6 / time_ns) : json_null();
}

static json_t *kernels_json(const struct kj_trace_answer *answer)
{
    json_t *list = json_array();
    for (size_t i = 0; i < answer->kernel_count; i++) {
        const struct kj_trace_kernel *kernel = &answer->kernels[i];
        const struct kj_model_class_result *class = &kernel->result;
        char *readable = kj_demangle(kernel->name);
        json_t *row = json_object();
        set(row, "name", text(kernel->name));
        set(row, "demangled", text(readable));
        set(row, "device", text(answer->device));
        set(row, "launches", json_integer((json_int_t)kernel->launches));
        set(row, "time_ns", whole(class->time_ns));
        set(row, "time_method", json_string(kj_method_name(KJ_MEASURED)));
        set_estimate(row, &class->energy);
        set(row, "power_mw", power((double)class->energy.energy_uj, class->time_ns));
        set(row, "identifiability", real(class->identifiability));
        set(row, "group", class->group >= 0 ? json_integer(class->group) : json_null());
        set(row, "energy_method", json_string(kj_method_name(class->method)));
        json_array_append_new(list, row);
        free(readable);
    }
    return list;
}

static json_t *idle_json(const struct kj_model_result *result)
{
    json_t *idle = json_object();
    set_estimate(idle, &result->idle);
    set(idle, "energy_uj", json_integer(result->idle_uj));
    set(idle, "time_ns", whole(result->idle_ns));
    set(idle, "power_mw", power((double)result->idle_uj, result->idle_ns));
    set(idle, "static_mw", real(result->idle_mw)); /* what runs has its share of this in its own energy */
    return idle;
}

static json_t *groups_json(const struct kj_model_result *result)
{
    json_t *list = json_array();
    for (size_t i = 0; i < result->group_count; i++) {
        json_t *row = json_object();
        set_estimate(row, &result->groups[i].energy);
        set(row, "members", json_integer((json_int_t)result->groups[i].members));
        set(row, "identifiability", real(result->groups[i].identifiability));
        json_array_append_new(list, row);
    }
    return list;
}

static json_t *sensors_json(const struct kj_trace_answer *answer)
{
    json_t *list = json_array();
    for (size_t i = 0; i < answer->sensor_count; i++) {
        const struct kj_trace_sensor *sensor = &answer->sensors[i];
        const struct kj_sensor_shape *shape = &sensor->shape;
        const struct kj_sensor *used = &shape->sensor;
        json_t *row = json_object();
        set(row, "file", text(sensor->file));
        set(row, "channel", text(sensor->channel));
        set(row, "kind", json_string(sensor->counter ? "counter" : "power"));
        set(row, "window_ns", sensor->counter ? json_null() : json_integer((json_int_t)used->window_ns));
        set(row, "window_source",
            sensor->counter ? json_null() : json_string(kj_shape_source_name(shape->window_source)));
        set(row, "window_low_ns", sensor->counter ? json_null() : whole(shape->window_low_ns));
        set(row, "window_high_ns", sensor->counter ? json_null() : whole(shape->window_high_ns));
        set(row, "period_ns", used->period_ns ? json_integer((json_int_t)used->period_ns) : json_null());
        set(row, "delay_ns", sensor->counter ? whole((double)used->delay_ns) : whole(shape->delay_ns));
        set(row, "delay_sd_ns", whole(shape->delay_sd_ns));
        set(row, "delay_source",
            sensor->counter ? json_null() : json_string(kj_shape_source_name(shape->delay_source)));
        set(row, "gain", real(used->gain > 0 ? used->gain : 1));
        set(row, "offset_mw", real(used->offset_mw));
        set(row, "gain_source", json_string(kj_trace_gain_source_name(sensor->gain_source)));
        set(row, "residual_gain", real(used->residual_gain));
        set(row, "gain_sd", real(used->gain_sd));
        set(row, "misfit", json_boolean(shape->misfit));
        set(row, "updates", sensor->counter ? json_null() : json_integer((json_int_t)shape->rows));
        json_array_append_new(list, row);
    }
    return list;
}

static json_t *residual_json(const struct kj_model_result *result)
{
    json_t *residual = json_object();
    set(residual, "rows", json_integer((json_int_t)result->rows));
    set(residual, "rms_mw", real(result->residual_rms_mw));
    set(residual, "relative", real(result->residual_relative));
    set(residual, "autocorrelation", real(result->residual_autocorrelation));
    set(residual, "raking_factor", real(result->raking_factor));
    return residual;
}

static json_t *meter_json(const struct kj_trace_meter *meter)
{
    if (!meter->known)
        return json_null();
    json_t *row = json_object();
    set(row, "start_ns", json_integer(meter->start_ns));
    set(row, "end_ns", json_integer(meter->end_ns));
    set(row, "meter_uj", whole(meter->meter_uj));
    set(row, "as_read_uj", whole(meter->as_read_uj));
    set(row, "corrected_uj", whole(meter->corrected_uj));
    set(row, "corrected_low_uj", whole(meter->corrected_low_uj));
    set(row, "corrected_high_uj", whole(meter->corrected_high_uj));
    return row;
}

static json_t *run_json(const struct kj_trace_answer *answer)
{
    json_t *run = json_object();
    set(run, "start_ns", json_integer(answer->start_ns));
    set(run, "end_ns", json_integer(answer->end_ns));
    set(run, "duration_ns", json_integer(answer->end_ns - answer->start_ns));
    set(run, "offset_ns", json_integer(answer->offset_ns));
    set(run, "offset_source", json_string(answer->offset_source));
    set(run, "launches", json_integer((json_int_t)answer->launches));
    set(run, "launches_outside", json_integer((json_int_t)answer->launches_outside));
    set(run, "busy_ns", whole(answer->result->busy_ns));
    return run;
}

int kj_write_attribution_json(const struct kj_trace_answer *answer, FILE *out)
{
    const struct kj_model_result *result = answer->result;
    json_t *root = json_object(), *warnings = json_array();
    set(root, "schema", json_string(KJ_ATTRIBUTION_SCHEMA));
    set(root, "device", text(answer->device));
    set(root, "run", run_json(answer));
    set(root, "total_uj", json_integer(result->total_uj));
    set(root, "total_low_uj", json_integer(result->total_low_uj));
    set(root, "total_high_uj", json_integer(result->total_high_uj));
    set(root, "total_method",
        json_string(kj_method_name(answer->total.counter ? KJ_MEASURED : KJ_ESTIMATED)));
    set(root, "seen_share", real(answer->total.seen));
    set(root, "unseen_sd_uj", whole(answer->total.unseen_sd_uj));
    set(root, "plain_integral_uj", whole(answer->total.naive_uj));
    set(root, "kernels", kernels_json(answer));
    set(root, "idle", idle_json(result));
    set(root, "unattributed_uj", json_integer(result->unattributed_uj));
    set(root, "groups", groups_json(result));
    set(root, "residual", residual_json(result));
    set(root, "sensors", sensors_json(answer));
    set(root, "meter", meter_json(&answer->meter));
    set(root, "interval_coverage", json_real(KJ_INTERVAL_COVERAGE));
    for (size_t i = 0; i < answer->warning_count; i++)
        json_array_append_new(warnings, text(answer->warnings[i]));
    set(root, "warnings", warnings);
    int status = json_dumpf(root, out, JSON_INDENT(2) | JSON_REAL_PRECISION(12)) ? -EIO : 0;
    json_decref(root);
    return fputc('\n', out) == EOF ? -EIO : status;
}

int kj_write_attribution_windows(const struct kj_trace_answer *answer, FILE *out)
{
    fputs("start_ns,end_ns,sensor,measured_uj,modelled_uj\n", out);
    for (size_t i = 0; i < answer->total.window_count; i++) {
        const struct kj_model_window *window = &answer->total.windows[i];
        fprintf(out, "%lld,%lld,%u,%.0f,%.0f\n", (long long)(answer->start_ns + (int64_t)window->start_ns),
                (long long)(answer->start_ns + (int64_t)window->end_ns), window->series, window->measured_uj,
                window->modelled_uj);
    }
    return ferror(out) ? -EIO : 0;
}
