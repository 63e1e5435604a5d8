/* SPDX-License-Identifier: Apache-2.0
 *
 * share.c - each device's energy, shared out among what ran on it; and the lists of the report that follow
 * from it.
 */
#include "account/work.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WHOLE_SHARE 0.995 /* of the kernels' time in the timeline: it is taken for complete */

static const char *copy_name(uint8_t kind)
{
    switch (kind) {
    case KJ_ACTIVITY_MEMCPY_HTOD:
        return "HtoD";
    case KJ_ACTIVITY_MEMCPY_DTOH:
        return "DtoH";
    case KJ_ACTIVITY_MEMCPY_DTOD:
        return "DtoD";
    case KJ_ACTIVITY_MEMSET:
        return "memset";
    case KJ_ACTIVITY_GRAPH:
        return "graph";
    default:
        return "other";
    }
}

static const struct kj_report_component *component_of(const struct kj_report *report, const char *device)
{
    for (size_t i = 0; i < report->components_count; i++)
        if (!strcmp(report->components[i].kind, "gpu") && !strcmp(report->components[i].device, device))
            return &report->components[i];
    return NULL;
}

static uint64_t context_start_ns(const struct kj_work *work, uint32_t device)
{
    uint64_t first_ns = 0;
    for (size_t i = 0; i < work->interval_count; i++)
        if (work->classes[work->intervals[i].class_index].device == device &&
            (!first_ns || work->intervals[i].start_ns < first_ns))
            first_ns = work->intervals[i].start_ns;
    return first_ns;
}

/* A ring of samples whose window nobody knows would only blur what the sensor beside it tells, and a lag of
 * unknown time constant is no window; they still are weighed for the total. */
static bool is_told_apart(const struct kj_channel *channel)
{
    return channel->window_ns || (!kj_channel_own_times(channel) && channel->kernel != KJ_SENSOR_LAG);
}

/* What is not known of the scale is in the device's interval, which each class's is laid upon: not here
 * again. */
static struct kj_sensor sensor_of(const struct kj_channel *channel)
{
    return (struct kj_sensor){.kernel = channel->kernel,
                              .window_ns = channel->window_ns,
                              .period_ns = channel->period_ns,
                              .delay_ns = channel->delay_ns,
                              .delay_sd_ns = channel->delay_sd_ns,
                              .gain = channel->gain,
                              .noise_mw = channel->noise_mw};
}

/* The readings of one device, copied into the model's form. */
static size_t device_series(const struct kj_series *series, const char *device, struct kj_sensor_series *to,
                            size_t cap)
{
    size_t count = 0;
    for (size_t i = 0; series && i < series->count && count < cap; i++) {
        const struct kj_series_channel *from = &series->channels[i];
        bool power = from->channel.kind == KJ_POWER_MW;
        if (strcmp(from->channel.device, device) || !from->count ||
            (!power && from->channel.kind != KJ_ENERGY_UJ) || !is_told_apart(&from->channel))
            continue;
        struct kj_reading *readings = malloc(from->count * sizeof(*readings));
        if (!readings)
            break;
        for (size_t p = 0; p < from->count; p++)
            readings[p] = (struct kj_reading){from->points[p].t_ns, from->points[p].value};
        to[count++] = (struct kj_sensor_series){.counter = !power,
                                                .own_times = kj_channel_own_times(&from->channel),
                                                .sensor = sensor_of(&from->channel),
                                                .readings = readings,
                                                .count = from->count};
    }
    return count;
}

/* No power above, on the scale of the readings as the model takes them. A sensor that read more than the
 * limit shows that the board does, for as long as its window: then that is the limit. 0: none is known. */
static double device_limit_mw(const struct kj_series *series, const char *device)
{
    double limit_mw = 0, most_mw = 0;
    for (size_t i = 0; series && i < series->count; i++) {
        const struct kj_series_channel *from = &series->channels[i];
        double gain = from->channel.gain > 0 ? from->channel.gain : 1;
        if (strcmp(from->channel.device, device))
            continue;
        limit_mw = fmax(limit_mw, from->channel.limit_mw / gain);
        for (size_t p = 0; from->channel.kind == KJ_POWER_MW && p < from->count; p++)
            most_mw = fmax(most_mw, (double)from->points[p].value / gain);
    }
    return limit_mw > 0 ? fmax(limit_mw, most_mw) : 0;
}

/* The run's classes on one device, in the model's form; index maps the model's to the run's. */
struct model_classes {
    struct kj_model_class *classes;
    struct kj_model_interval *intervals;
    uint32_t *index, *place;
    size_t count, interval_count;
};

static int select_classes(const struct kj_work *work, uint32_t device, struct model_classes *m)
{
    m->classes = calloc(work->class_count + 1, sizeof(*m->classes));
    m->index = calloc(work->class_count + 1, sizeof(*m->index));
    m->place = calloc(work->class_count + 1, sizeof(*m->place));
    m->intervals = calloc(work->interval_count + 1, sizeof(*m->intervals));
    if (!m->classes || !m->index || !m->place || !m->intervals)
        return -1;
    for (size_t c = 0; c < work->class_count; c++) {
        const struct kj_work_class *class = &work->classes[c];
        m->place[c] = KJ_NO_CLASS;
        if (class->device != device || !class->launches)
            continue;
        m->place[c] = (uint32_t)m->count;
        m->index[m->count] = (uint32_t)c;
        const struct kj_time time = kj_work_time(class);
        m->classes[m->count++] = (struct kj_model_class){.launches = class->launches,
                                                         .mean_ns = class->time_ns / (double)class->launches,
                                                         .timed = class->timed,
                                                         .time_low_ns = time.low_ns,
                                                         .time_high_ns = time.high_ns};
    }
    for (size_t i = 0; i < work->interval_count; i++) {
        struct kj_model_interval interval = work->intervals[i];
        interval.class_index = m->place[interval.class_index];
        if (interval.class_index != KJ_NO_CLASS)
            m->intervals[m->interval_count++] = interval;
    }
    return 0;
}

static void free_classes(struct model_classes *m)
{
    free(m->classes);
    free(m->intervals);
    free(m->index);
    free(m->place);
}

static struct kj_report_kernel *add_kernel(struct kj_report *report, const struct kj_work *work,
                                           const struct kj_work_class *class)
{
    struct kj_report_kernel *row = kj_report_add_kernel(report);
    if (row)
        *row =
            (struct kj_report_kernel){.name = strdup(class->name),
                                      .device = strdup(work->devices[class->device].key),
                                      .launches = class->launches,
                                      .timed = class->timed,
                                      .time = kj_work_time(class),
                                      .time_sd_ns = class->time_var_ns2 < 0 ? -1 : sqrt(class->time_var_ns2),
                                      .group = -1};
    return row;
}

static int add_copy(struct kj_report *report, const struct kj_work *work, const struct kj_work_class *class)
{
    struct kj_report_copy *row = kj_report_add_copy(report);
    if (row)
        *row =
            (struct kj_report_copy){strdup(copy_name(class->kind)), strdup(work->devices[class->device].key),
                                    class->launches, class->bytes, kj_work_time(class)};
    return row ? 0 : -1;
}

/* A class's interval on top of that of the whole device's energy. */
static struct kj_energy class_energy(const struct kj_model_class_result *result,
                                     const struct kj_energy *whole)
{
    double low = whole->uj > 0 ? (double)whole->low_uj / (double)whole->uj : 1;
    double high = whole->uj > 0 ? (double)whole->high_uj / (double)whole->uj : 1;
    return (struct kj_energy){.known = !result->untimed,
                              .bounded = result->untimed && result->energy.high_uj,
                              .method = result->method,
                              .uj = result->energy.energy_uj,
                              .low_uj = (int64_t)floor((double)result->energy.low_uj * low),
                              .high_uj = (int64_t)ceil((double)result->energy.high_uj * high)};
}

/* result NULL: the device's energy is not known. */
static int list_classes(struct kj_report *report, const struct kj_work *work, const struct model_classes *m,
                        const struct kj_model_result *result, struct kj_report_device *device)
{
    for (size_t i = 0; i < m->count; i++) {
        const struct kj_work_class *class = &work->classes[m->index[i]];
        if (class->kind != KJ_ACTIVITY_KERNEL) {
            if (result)
                device->unattributed_uj += result->classes[i].energy.energy_uj;
            if (add_copy(report, work, class))
                return -1;
            continue;
        }
        struct kj_report_kernel *row = add_kernel(report, work, class);
        if (!row)
            return -1;
        device->launches += class->launches;
        if (!result)
            continue;
        row->energy = class_energy(&result->classes[i], &device->energy);
        row->energy_sd_uj = result->classes[i].energy.sd_uj;
        row->identifiability = result->classes[i].identifiability;
        row->group = result->classes[i].group;
        device->kernels_uj += row->energy.uj;
        device->kernels_unknown += !row->energy.known;
    }
    return 0;
}

/* Where the timeline of a device is complete: of the one process that used it. Of several, each has bursts of
 * its own. */
static size_t device_spans(const struct kj_work *work, uint32_t device, struct kj_model_span *ret_spans)
{
    size_t count = 0;
    for (size_t i = 0; i < work->span_count; i++) {
        const struct kj_work_span *span = &work->spans[i];
        if (span->device != device)
            continue;
        if (count && span->view != work->spans[i - 1].view)
            return 0;
        ret_spans[count++] = (struct kj_model_span){span->start_ns, span->end_ns};
    }
    return count;
}

/* Regression needs to know what ran when. Of a graph it is known when all of it ran; and with next to no
 * timed launches nothing is. */
static enum kj_model_method method_for(const struct kj_work *work, const struct model_classes *m, bool whole,
                                       size_t spans)
{
    for (size_t i = 0; i < m->count; i++)
        if (work->classes[m->index[i]].kind == KJ_ACTIVITY_GRAPH && m->classes[i].launches)
            return KJ_MODEL_TIME_PROPORTIONAL;
    return whole || spans ? KJ_MODEL_BAYES : KJ_MODEL_TIME_PROPORTIONAL;
}

static int run_model(struct kj_account *a, const struct kj_work *work, uint32_t d,
                     const struct model_classes *m, const double *phase_shares, const struct kj_energy *total,
                     struct kj_model_result **ret_result)
{
    struct kj_sensor_series series[16];
    struct kj_error error = {0};
    size_t count = device_series(a->series, work->devices[d].key, series, 16);
    struct kj_model_span *spans = calloc(work->span_count + 1, sizeof(*spans));
    size_t span_count = spans ? device_spans(work, d, spans) : 0;
    double all_ns = 0, seen_ns = 0;
    for (size_t i = 0; i < m->count; i++)
        all_ns += m->classes[i].mean_ns * (double)m->classes[i].launches;
    for (size_t i = 0; i < m->interval_count; i++)
        seen_ns += (double)(m->intervals[i].end_ns - m->intervals[i].start_ns);
    bool whole = seen_ns > 0 && seen_ns >= WHOLE_SHARE * all_ns;
    const struct kj_model_input input = {.start_ns = a->start_ns,
                                         .end_ns = a->end_ns,
                                         .classes = m->classes,
                                         .class_count = m->count,
                                         .intervals = m->intervals,
                                         .interval_count = m->interval_count,
                                         .label_share = phase_shares,
                                         .label_count = KJ_PHASE_COUNT,
                                         .timeline_complete = whole,
                                         .complete = spans,
                                         .complete_count = span_count,
                                         .series = series,
                                         .series_count = count,
                                         .total_known = true,
                                         .total_uj = total->uj,
                                         .context_ns = context_start_ns(work, d),
                                         .walked_ns = a->report->walk.delay_ns,
                                         .limit_mw = device_limit_mw(a->series, work->devices[d].key)};
    const struct kj_model_options options = {.method = method_for(work, m, whole, span_count)};
    int status = kj_model_attribute(&input, &options, ret_result, &error);
    if (status)
        kj_report_warn(a->report, "%s: energy could not be shared out: %s", work->devices[d].key, error.text);
    for (size_t i = 0; i < count; i++)
        free((void *)series[i].readings);
    free(spans);
    return status;
}

static int share_device(struct kj_account *a, const struct kj_work *work, uint32_t d)
{
    struct model_classes m = {0};
    struct kj_model_result *result = NULL;
    struct kj_report_device *row = kj_report_add_device(a->report);
    const struct kj_report_component *component = component_of(a->report, work->devices[d].key);
    if (!row || select_classes(work, d, &m)) {
        free_classes(&m);
        return -1;
    }
    const struct kj_phase_classes classes = {m.index, m.count};
    double *phase_shares = kj_phase_shares(work, &classes);
    row->device = strdup(work->devices[d].key);
    row->model = strdup(work->devices[d].model);
    if (kj_work_name_instances(a->report, row, &work->devices[d])) {
        free_classes(&m);
        return -1;
    }
    row->busy_ns = -1;
    row->walk_ns = (uint64_t)kj_walk_idle_ns(work, d);
    if (component && component->energy.known &&
        !run_model(a, work, d, &m, phase_shares, &component->energy, &result)) {
        row->energy = component->energy;
        row->idle_uj = result->idle_uj;
        row->unattributed_uj = result->unattributed_uj;
        row->busy_ns = result->untimed ? -1 : result->busy_ns;
        row->idle_mw = result->idle_mw;
        double walk_uj = result->idle_mw * 1e-6 * (double)row->walk_ns;
        row->walk_uj = walk_uj < (double)row->idle_uj ? (int64_t)llround(walk_uj) : row->idle_uj;
        if (result->rows)
            a->report->residual_relative = result->residual_relative;
        for (size_t i = 0; i < result->warning_count; i++)
            kj_report_warn(a->report, "%s: %s", row->device, result->warnings[i].text);
        for (size_t i = 0; i < result->warning_count; i++)
            if (result->warnings[i].code == KJ_MODEL_WARN_RESONANCE)
                kj_walk_fell_short(a->report);
    } else if (!component) {
        kj_report_warn(a->report,
                       "%s did work for this run but no sensor of it was read, so its energy is unknown; see "
                       "`kjoule doctor`",
                       row->device);
    }
    int status = list_classes(a->report, work, &m, result, row);
    if (!status)
        status = kj_phase_lines(a->report, work, d, &classes, result, row);
    free(phase_shares);
    kj_model_result_free(result);
    free_classes(&m);
    return status;
}

static int by_energy(const void *a, const void *b)
{
    const struct kj_report_kernel *x = a, *y = b;
    if (x->energy.uj != y->energy.uj)
        return x->energy.uj > y->energy.uj ? -1 : 1;
    return x->time.ns != y->time.ns ? (x->time.ns > y->time.ns ? -1 : 1) : strcmp(x->name, y->name);
}

int kj_work_attribute(struct kj_account *a, struct kj_work *work)
{
    a->report->residual_relative = NAN; /* attribution by time adds up by construction: it has none */
    for (size_t d = 0; d < work->device_count; d++)
        if (share_device(a, work, (uint32_t)d))
            return -1;
    kj_phase_steps(a->report, work);
    kj_walk_finish(a->report);
    if (a->report->kernels_count)
        qsort(a->report->kernels, a->report->kernels_count, sizeof(*a->report->kernels), by_energy);
    return 0;
}
