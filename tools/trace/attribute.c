/* SPDX-License-Identifier: Apache-2.0
 *
 * attribute.c - from files read to the finished answer: device, clocks, run, sensors, model, total.
 */
#include "trace/attribute.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GAIN_GIVEN_SD    0.01 /* of a gain that somebody measured */
#define ALIGNED_LEAST    0.3  /* correlation below which power does not follow the timeline */
#define ALIGNED_APART    0.02
#define RESIDUAL_MOST    0.15 /* of the mean reading: more is a model that does not describe the trace */
#define EARLY_DELAY_NS   -15e6
#define STAMP_NS         5e6 /* of a reading in somebody's file: nvidia-smi stamps before it asks */
#define DRAWS_TO_COMPARE 60  /* the first attribution only says how powers differ */

/* Everything on the run's own clock, from 0. */
struct work {
    const struct kj_trace_question *question;
    struct kj_trace_answer *answer;
    struct kj_error *error;
    struct kj_trace_launch *launches; /* of the device, power log's clock */
    size_t launch_count;
    struct kj_model_input input;
    struct kj_model_interval *intervals;
    struct kj_model_class *classes;
    uint32_t *class_of; /* [name] + 1; 0: not of this device */
    const char **names; /* [class] */
    struct kj_sensor_series series[KJ_TRACE_SERIES_CAP];
    struct kj_sensor_series meter;
    bool misfit;
};

static void __attribute__((format(printf, 2, 3)))
warn(struct kj_trace_answer *answer, const char *format, ...)
{
    va_list args;
    char *text;
    va_start(args, format);
    if (vasprintf(&text, format, args) < 0)
        text = NULL;
    va_end(args);
    if (text && answer->warning_count < KJ_TRACE_WARNINGS_CAP)
        answer->warnings[answer->warning_count++] = text;
    else
        free(text);
}

static int refuse(struct work *work, const char *text)
{
    kj_error_set(work->error, "%s", text);
    return -EINVAL;
}

/* The launches of the one device that is asked for. */
static int choose_device(struct work *work)
{
    const struct kj_trace_timeline *timeline = work->question->timeline;
    const char *device = work->question->device;
    uint32_t wanted = UINT32_MAX;
    for (size_t d = 0; d < timeline->device_count; d++)
        if (device ? !strcmp(timeline->devices[d], device) : true)
            wanted = (uint32_t)d;
    if (!device && timeline->device_count > 1) {
        kj_error_set(work->error,
                     "the timeline is of %zu devices ('%.40s', '%.40s', ...); say which with --device",
                     timeline->device_count, timeline->devices[0], timeline->devices[1]);
        return -EINVAL;
    }
    if (wanted == UINT32_MAX && timeline->device_count == 1 && !*timeline->devices[0])
        wanted = 0; /* a timeline that does not say */
    if (wanted == UINT32_MAX) {
        kj_error_set(work->error, "the timeline has no device '%.60s'; it has '%.60s'%s", device,
                     timeline->devices[0], timeline->device_count > 1 ? " and others" : "");
        return -EINVAL;
    }
    work->answer->device = device ? device : timeline->devices[wanted];
    work->launches = malloc((timeline->launch_count + 1) * sizeof(*work->launches));
    if (!work->launches)
        return -ENOMEM;
    for (size_t i = 0; i < timeline->launch_count; i++)
        if (timeline->launches[i].device == wanted)
            work->launches[work->launch_count++] = timeline->launches[i];
    work->answer->launches = work->launch_count;
    return 0;
}

static int lay_clocks(struct work *work)
{
    struct kj_trace_answer *answer = work->answer;
    answer->offset_ns = work->question->offset_ns;
    answer->offset_source = answer->offset_ns ? "given" : "none";
    if (work->question->align) {
        double second;
        int status = kj_trace_align(work->launches, work->launch_count, work->question->timeline->name_count,
                                    work->question->sources[0].series, &answer->offset_ns,
                                    &answer->align_correlation, &second);
        if (status)
            return status;
        answer->offset_source = "aligned";
        if (answer->align_correlation < ALIGNED_LEAST) {
            kj_error_set(work->error,
                         "--align: power follows the timeline at no offset (correlation %.2f at most); is it "
                         "the same device and run? --offset says an offset that is known",
                         answer->align_correlation);
            return -EINVAL;
        }
        if (second > answer->align_correlation - ALIGNED_APART)
            warn(answer,
                 "--align: other offsets fit as well (correlation %.3f and %.3f); the load repeats itself. "
                 "Give --offset",
                 answer->align_correlation, second);
    }
    for (size_t i = 0; i < work->launch_count; i++) {
        int64_t *t[] = {&work->launches[i].start_ns, &work->launches[i].end_ns};
        for (int k = 0; k < 2; k++)
            if (__builtin_add_overflow(*t[k], answer->offset_ns, t[k]))
                return refuse(work, "--offset is out of range for the timeline's times");
    }
    return 0;
}

static int choose_run(struct work *work)
{
    const struct kj_trace_question *question = work->question;
    int64_t start_ns = INT64_MIN, end_ns = INT64_MAX;
    for (size_t s = 0; s < question->source_count; s++) {
        const struct kj_trace_series *series = question->sources[s].series;
        if (series->count < 2)
            continue;
        if (series->readings[0].t_ns > start_ns)
            start_ns = series->readings[0].t_ns;
        if (series->readings[series->count - 1].t_ns < end_ns)
            end_ns = series->readings[series->count - 1].t_ns;
    }
    if (start_ns == INT64_MIN || start_ns >= end_ns)
        return refuse(work, "the power logs have no stretch of time in common with two readings; are they of "
                            "one run and one clock?");
    if (question->from_given && question->from_ns > start_ns)
        start_ns = question->from_ns;
    if (question->to_given && question->to_ns < end_ns)
        end_ns = question->to_ns;
    if (start_ns >= end_ns)
        return refuse(work, "--from and --to leave nothing of the power log");
    work->answer->start_ns = start_ns;
    work->answer->end_ns = end_ns;
    work->input.start_ns = 0;
    work->input.end_ns = (uint64_t)(end_ns - start_ns);
    return 0;
}

/* Classes are names; launches are cut at the ends of the run. */
static int take_launches(struct work *work)
{
    struct kj_trace_answer *answer = work->answer;
    size_t names = work->question->timeline->name_count, inside = 0;
    work->class_of = calloc(names + 1, sizeof(*work->class_of));
    work->classes = calloc(names + 1, sizeof(*work->classes));
    work->names = calloc(names + 1, sizeof(*work->names));
    work->intervals = malloc((work->launch_count + 1) * sizeof(*work->intervals));
    if (!work->class_of || !work->classes || !work->names || !work->intervals)
        return -ENOMEM;
    for (size_t i = 0; i < work->launch_count; i++) {
        const struct kj_trace_launch *launch = &work->launches[i];
        int64_t start_ns = launch->start_ns > answer->start_ns ? launch->start_ns : answer->start_ns;
        int64_t end_ns = launch->end_ns < answer->end_ns ? launch->end_ns : answer->end_ns;
        if (launch->start_ns < answer->start_ns || launch->end_ns > answer->end_ns)
            answer->launches_outside++;
        if (start_ns > end_ns)
            continue;
        if (!work->class_of[launch->name]) {
            work->names[work->input.class_count] = work->question->timeline->names[launch->name];
            work->class_of[launch->name] = (uint32_t)++work->input.class_count;
        }
        uint32_t class = work->class_of[launch->name] - 1;
        work->classes[class].launches++;
        work->intervals[inside++] =
            (struct kj_model_interval){(uint64_t)(start_ns - answer->start_ns),
                                       (uint64_t)(end_ns - answer->start_ns), class, launch->stream};
    }
    if (!inside)
        return refuse(work, "no launch of the timeline falls into the power log's time; if their clocks "
                            "differ, give --offset, or --align to find it");
    if (answer->launches_outside)
        warn(answer,
             "%llu of %llu launches lie outside the power log or reach over its ends, and are not or only in "
             "part in the figures; log power from before the first launch until after the last one",
             (unsigned long long)answer->launches_outside, (unsigned long long)answer->launches);
    work->input.intervals = work->intervals;
    work->input.interval_count = inside;
    work->input.classes = work->classes;
    work->input.timeline_complete = true;
    work->input.limit_mw = work->question->limit_mw;
    for (size_t s = 0; s < work->question->source_count && work->input.limit_mw <= 0; s++)
        work->input.limit_mw = work->question->sources[s].series->limit_mw;
    return 0;
}

/* The readings of a series that lie in the run, and the one before it, whose value still stood. */
static int take_readings(const struct work *work, const struct kj_trace_series *from, bool to_ends,
                         struct kj_sensor_series *ret_series)
{
    int64_t start_ns = work->answer->start_ns, end_ns = work->answer->end_ns;
    struct kj_reading *readings = malloc((from->count + 1) * sizeof(*readings));
    size_t n = 0;
    if (!readings)
        return -ENOMEM;
    for (size_t i = 0; i < from->count; i++) {
        int64_t t_ns = from->readings[i].t_ns;
        if (t_ns < start_ns || t_ns > end_ns)
            continue;
        if (to_ends && !n && i && t_ns > start_ns)
            readings[n++] = (struct kj_reading){0, from->readings[i - 1].value};
        readings[n++] = (struct kj_reading){(uint64_t)(t_ns - start_ns), from->readings[i].value};
    }
    ret_series->counter = from->counter;
    ret_series->stamp_ns = STAMP_NS;
    ret_series->readings = readings;
    ret_series->count = n;
    return 0;
}

static void say_shape(struct work *work, const struct kj_trace_sensor *sensor)
{
    const struct kj_sensor_shape *shape = &sensor->shape;
    struct kj_trace_answer *answer = work->answer;
    if (shape->misfit) {
        work->misfit = true;
        warn(answer,
             "residual: readings of %s do not fit a sensor window of %.4g ms; one of %.4g ms is e^%.0f times "
             "likelier. Energy is shared by time, with bounds; leave window out of --sensor to have it "
             "inferred",
             sensor->channel, (double)shape->sensor.window_ns / 1e6, shape->best_window_ns / 1e6,
             shape->evidence);
    }
    if (shape->window_source == KJ_SHAPE_ASSUMED)
        warn(answer,
             "the readings of %s do not tell the sensor's window; %.4g ms is assumed. --sensor window=... "
             "says it",
             sensor->channel, (double)shape->sensor.window_ns / 1e6);
    if (shape->other_window_ns > 0)
        warn(answer,
             "the readings of %s do not tell a sensor window of %.4g ms from one of %.4g ms; the former is "
             "used. "
             "--sensor window=... or --meter says it",
             sensor->channel, (double)shape->sensor.window_ns / 1e6, shape->other_window_ns / 1e6);
    if (shape->delay_source == KJ_SHAPE_TRACE && shape->delay_ns + 2 * shape->delay_sd_ns < EARLY_DELAY_NS)
        warn(answer,
             "power changes %.0f ms before the timeline says: the clocks differ, or the timeline is late. "
             "Give --offset",
             -shape->delay_ns / 1e6);
}

/* Shape and gain of each series: given, inferred, or of any card. */
static int know_sensor(struct work *work, size_t s)
{
    const struct kj_trace_source *source = &work->question->sources[s];
    struct kj_trace_sensor *sensor = &work->answer->sensors[s];
    struct kj_sensor_series *series = &work->series[s];
    int status = take_readings(work, source->series, true, series);
    if (status)
        return status;
    series->sensor = source->sensor;
    *sensor = (struct kj_trace_sensor){.file = source->file,
                                       .channel = source->series->channel,
                                       .counter = series->counter,
                                       .gain_source =
                                           source->gain_given ? KJ_TRACE_GAIN_GIVEN : KJ_TRACE_GAIN_UNKNOWN};
    const struct kj_shape_question ask = {.series = series, .delay_given = source->delay_given};
    sensor->shape.sensor = series->sensor;
    if (!series->counter) {
        status =
            work->meter.count > 1 ? kj_sensor_shape_by_meter(&ask, &work->meter, &sensor->shape) : -ENODATA;
        if (!status && !source->gain_given && sensor->shape.gain > 0) {
            sensor->gain_source = KJ_TRACE_GAIN_METER;
            sensor->shape.sensor.gain = sensor->shape.gain;
            sensor->shape.sensor.offset_mw = sensor->shape.offset_mw;
        } else if (status == -ENODATA) {
            status = kj_sensor_shape_infer(&work->input, &ask, &sensor->shape);
        }
        if (status == -ENOMEM)
            return status;
        say_shape(work, sensor);
    }
    struct kj_sensor *used = &sensor->shape.sensor;
    used->delay_sd_ns = sensor->shape.delay_sd_ns;
    bool unknown = sensor->gain_source == KJ_TRACE_GAIN_UNKNOWN;
    used->residual_gain = unknown ? KJ_GAIN_UNKNOWN_MEAN : 1;
    if (!source->gain_sd_given)
        used->gain_sd = unknown ? KJ_GAIN_UNKNOWN_SD : hypot(GAIN_GIVEN_SD, sensor->shape.gain_sd);
    series->sensor = *used;
    return 0;
}

static int know_sensors(struct work *work)
{
    int status = 0;
    work->answer->sensor_count = work->question->source_count;
    if (work->question->meter)
        status = take_readings(work, work->question->meter, false, &work->meter);
    for (size_t s = 0; s < work->question->source_count && !status; s++)
        status = know_sensor(work, s);
    work->input.series = work->series;
    work->input.series_count = work->question->source_count;
    if (!status && work->question->meter && work->meter.count < 2)
        warn(work->answer, "the meter has no readings in the run; is it on the power log's clock?");
    return status;
}

/* A first total, for the first round: mean of the readings, or the counter's difference. */
static double plain_total_uj(const struct work *work)
{
    const struct kj_sensor_series *reference = &work->series[0];
    for (size_t s = work->input.series_count; s-- > 0;)
        if (work->series[s].counter && work->series[s].count > 1)
            reference = &work->series[s];
    const struct kj_reading *r = reference->readings;
    double uj = 0, gain = reference->sensor.gain > 0 ? reference->sensor.gain : 1;
    size_t n = reference->count;
    if (reference->counter)
        return n ? (double)(r[n - 1].value - r[0].value) / gain : 0;
    for (size_t i = 0; i + 1 < n; i++)
        uj += ((double)r[i + 1].value - reference->sensor.offset_mw) / gain *
              (double)(r[i + 1].t_ns - r[i].t_ns) * 1e-6;
    return fmax(uj, 0);
}

/* Shared by time, the model says how classes may differ from each other; here also the split between them and
 * idle is a guess, and the total has an interval of its own. What runs draws no less than the mean, idle no
 * more. */
static void widen_bounds(const struct work *work, struct kj_model_result *result)
{
    double run_ns = (double)(work->input.end_ns - work->input.start_ns), total_uj = (double)result->total_uj;
    double low = (double)result->total_low_uj / fmax(total_uj, 1);
    double high = (double)result->total_high_uj / fmax(total_uj, 1);
    for (size_t c = 0; c < result->class_count; c++) {
        struct kj_model_estimate *e = &result->classes[c].energy;
        double least_uj = result->class_count == 1 ? total_uj * result->busy_ns / run_ns : (double)e->low_uj;
        e->low_uj = (int64_t)floor(low * fmin(least_uj, (double)e->low_uj));
        e->high_uj = (int64_t)ceil(high * fmin((double)e->high_uj + (double)result->idle_uj, total_uj));
        e->sd_uj = (double)(e->high_uj - e->low_uj) / (2 * KJ_Z90);
        result->classes[c].identifiability = 0;
        result->classes[c].method = KJ_MODELLED;
    }
    result->idle.low_uj = 0;
    result->idle.high_uj =
        (int64_t)ceil(high * fmax(total_uj * result->idle_ns / run_ns, (double)result->idle_uj));
    result->idle.sd_uj = (double)result->idle.high_uj / (2 * KJ_Z90);
}

static int attribute(struct work *work)
{
    struct kj_trace_answer *answer = work->answer;
    struct kj_model_options options = {.method =
                                           work->misfit ? KJ_MODEL_TIME_PROPORTIONAL : work->question->method,
                                       .draws = DRAWS_TO_COMPARE,
                                       .skip_shape_check = true}; /* done, by likelihood */
    struct kj_model_result *first;
    work->input.total_known = true;
    work->input.total_uj = llround(plain_total_uj(work));
    int status = kj_model_attribute(&work->input, &options, &first, work->error);
    if (status)
        return status;
    status = kj_model_total(&work->input, first, &answer->total);
    kj_model_result_free(first);
    if (status == -ENODATA)
        return refuse(work, "the power log is renewed less than twice within the run; log for longer");
    if (status)
        return status;
    work->input.total_uj = answer->total.total_uj;
    options.draws = 0;
    status = kj_model_attribute(&work->input, &options, &answer->result, work->error);
    if (status)
        return status;
    answer->result->total_low_uj = answer->total.low_uj;
    answer->result->total_high_uj = answer->total.high_uj;
    if (!answer->result->rows) /* no regression */
        widen_bounds(work, answer->result);
    for (size_t i = 0; i < answer->result->warning_count; i++)
        warn(answer, "%s", answer->result->warnings[i].text);
    if (answer->result->residual_relative > RESIDUAL_MOST)
        warn(answer,
             "residual: readings differ from the model by %.0f %% (rms); the timeline or the sensor's shape "
             "does not describe this trace",
             100 * answer->result->residual_relative);
    return 0;
}

static double meter_uj(const struct kj_sensor_series *meter)
{
    const struct kj_reading *r = meter->readings;
    double uj = 0;
    if (meter->counter)
        return (double)(r[meter->count - 1].value - r[0].value);
    for (size_t i = 0; i + 1 < meter->count; i++)
        uj += ((double)r[i].value + (double)r[i + 1].value) / 2 * (double)(r[i + 1].t_ns - r[i].t_ns) * 1e-6;
    return uj;
}

/* The same totals over the stretch that the meter saw. */
static int compare_with_meter(struct work *work)
{
    struct kj_trace_answer *answer = work->answer;
    struct kj_model_input input = work->input;
    struct kj_model_total total;
    if (work->meter.count < 2)
        return 0;
    input.start_ns = work->meter.readings[0].t_ns;
    input.end_ns = work->meter.readings[work->meter.count - 1].t_ns;
    int status = kj_model_total(&input, answer->result, &total);
    if (status)
        return status == -ENODATA ? 0 : status;
    answer->meter = (struct kj_trace_meter){.known = true,
                                            .start_ns = answer->start_ns + (int64_t)input.start_ns,
                                            .end_ns = answer->start_ns + (int64_t)input.end_ns,
                                            .meter_uj = meter_uj(&work->meter),
                                            .corrected_uj = (double)total.total_uj,
                                            .corrected_low_uj = (double)total.low_uj,
                                            .corrected_high_uj = (double)total.high_uj};
    free(total.windows);
    struct kj_sensor_series raw[KJ_TRACE_SERIES_CAP];
    for (size_t s = 0; s < input.series_count; s++) {
        raw[s] = work->series[s];
        raw[s].sensor.gain = 1;
        raw[s].sensor.offset_mw = 0;
    }
    input.series = raw;
    status = kj_model_total(&input, answer->result, &total);
    if (!status) {
        answer->meter.as_read_uj = (double)total.total_uj;
        free(total.windows);
    }
    return status;
}

static int by_energy(const void *a, const void *b)
{
    const struct kj_trace_kernel *x = a, *y = b;
    int64_t more = y->result.energy.energy_uj - x->result.energy.energy_uj;
    return more ? (more > 0) - (more < 0) : strcmp(x->name, y->name);
}

static int publish(struct work *work)
{
    struct kj_trace_answer *answer = work->answer;
    const struct kj_model_result *result = answer->result;
    int64_t sum_uj = result->idle_uj + result->unattributed_uj;
    answer->kernels = calloc(result->class_count + 1, sizeof(*answer->kernels));
    if (!answer->kernels)
        return -ENOMEM;
    for (size_t c = 0; c < result->class_count; c++) {
        answer->kernels[c] = (struct kj_trace_kernel){
            .name = work->names[c], .launches = work->classes[c].launches, .result = result->classes[c]};
        sum_uj += result->classes[c].energy.energy_uj;
    }
    answer->kernel_count = result->class_count;
    qsort(answer->kernels, answer->kernel_count, sizeof(*answer->kernels), by_energy);
    if (sum_uj == result->total_uj)
        return 0;
    kj_error_set(work->error, "the parts do not add up to the total (%lld of %lld uJ): a defect of kjoule",
                 (long long)sum_uj, (long long)result->total_uj);
    return -EPROTO;
}

int kj_trace_attribute(const struct kj_trace_question *question, struct kj_trace_answer **ret_answer,
                       struct kj_error *error)
{
    static int (*const steps[])(struct work *) = {choose_device,      lay_clocks,   choose_run,
                                                  take_launches,      know_sensors, attribute,
                                                  compare_with_meter, publish};
    struct work work = {.question = question, .answer = calloc(1, sizeof(*work.answer)), .error = error};
    int status = work.answer ? 0 : -ENOMEM;
    for (size_t i = 0; i < sizeof(steps) / sizeof(*steps) && !status; i++)
        status = steps[i](&work);
    for (size_t s = 0; s < KJ_TRACE_SERIES_CAP; s++)
        free((void *)work.series[s].readings);
    free((void *)work.meter.readings);
    free(work.launches);
    free(work.intervals);
    free(work.classes);
    free(work.class_of);
    free(work.names);
    *ret_answer = status ? kj_trace_answer_free(work.answer) : work.answer;
    return status;
}

struct kj_trace_answer *kj_trace_answer_free(struct kj_trace_answer *answer)
{
    if (!answer)
        return NULL;
    for (size_t i = 0; i < answer->warning_count; i++)
        free(answer->warnings[i]);
    free(answer->kernels);
    free(answer->total.windows);
    kj_model_result_free(answer->result);
    free(answer);
    return NULL;
}
