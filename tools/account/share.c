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

static const struct kj_report_component *component_of(const struct kj_report *report, const char *device)
{
    for (size_t i = 0; i < report->components_count; i++)
        if (!strcmp(report->components[i].kind, "gpu") && !strcmp(report->components[i].device, device))
            return &report->components[i];
    return NULL;
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

static int select_classes(const struct kj_work *work, uint32_t device, struct kj_model_classes *m)
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
        uint64_t launches = class->launches - class->open; /* the others are in their groups */
        if (class->device != device || !launches)
            continue;
        m->place[c] = (uint32_t)m->count;
        m->index[m->count] = (uint32_t)c;
        const struct kj_time time = kj_work_time(class);
        m->classes[m->count++] = (struct kj_model_class){.launches = launches,
                                                         .mean_ns = class->time_ns / (double)launches,
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

static void free_classes(struct kj_model_classes *m)
{
    free(m->classes);
    free(m->intervals);
    free(m->index);
    free(m->place);
}

static int by_start(const void *a, const void *b)
{
    const struct kj_model_span *x = a, *y = b;
    return (x->start_ns > y->start_ns) - (x->start_ns < y->start_ns);
}

/* Where the timeline of a device is complete, in order and apart: where one process alone used it. What
 * another one ran, while this one had a burst or a rest, may have been seen nowhere. */
static size_t device_spans(const struct kj_work *work, uint32_t device, struct kj_model_span *ret_spans,
                           bool *ret_bursts)
{
    size_t count = 0, apart = 0;
    *ret_bursts = false;
    if (work->devices[device].processes != 1)
        return 0;
    for (size_t i = 0; i < work->span_count; i++) {
        const struct kj_work_span *span = &work->spans[i];
        if (span->device != device)
            continue;
        *ret_bursts = *ret_bursts || !span->rest;
        ret_spans[count++] = (struct kj_model_span){span->start_ns, span->end_ns};
    }
    qsort(ret_spans, count, sizeof(*ret_spans), by_start);
    for (size_t i = 0; i < count; i++) {
        struct kj_model_span *last = apart ? &ret_spans[apart - 1] : NULL;
        if (!last || ret_spans[i].start_ns > last->end_ns)
            ret_spans[apart++] = ret_spans[i];
        else if (ret_spans[i].end_ns > last->end_ns)
            last->end_ns = ret_spans[i].end_ns;
    }
    return apart;
}

static int run_model(struct kj_account *a, const struct kj_work *work, uint32_t d,
                     const struct kj_model_classes *m, const struct kj_energy *total,
                     struct kj_model_result **ret_result)
{
    struct kj_sensor_series series[16];
    struct kj_error error = {0};
    size_t count = device_series(a->series, work->devices[d].key, series, 16);
    struct kj_model_span *spans = calloc(work->span_count + 1, sizeof(*spans));
    bool bursts = false;
    size_t span_count = spans ? device_spans(work, d, spans, &bursts) : 0;
    const struct kj_phase_classes phase_classes = {m->index, m->count};
    double *phase_shares = kj_phase_shares(work, &phase_classes);
    bool *phase_guesses = kj_phase_guesses(work, &phase_classes);
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
                                         .label_open = phase_guesses,
                                         .label_count = KJ_PHASE_COUNT,
                                         .timeline_complete = whole,
                                         .complete = spans,
                                         .complete_count = span_count,
                                         .series = series,
                                         .series_count = count,
                                         .total_known = true,
                                         .total_uj = total->uj,
                                         .context_ns = work->devices[d].context_ns,
                                         .context_end_ns = work->devices[d].context_end_ns,
                                         .walked_ns = a->report->walk.delay_ns,
                                         .limit_mw = device_limit_mw(a->series, work->devices[d].key)};
    /* Regression needs to know what ran when: with next to no timed launches nothing is. */
    const struct kj_model_options options = {.method = whole || bursts ? KJ_MODEL_BAYES
                                                                       : KJ_MODEL_TIME_PROPORTIONAL};
    int status = kj_model_attribute(&input, &options, ret_result, &error);
    if (status)
        kj_report_warn(a->report, "%s: energy could not be shared out: %s", work->devices[d].key, error.text);
    for (size_t i = 0; i < count; i++)
        free((void *)series[i].readings);
    free(spans);
    free(phase_shares);
    free(phase_guesses);
    return status;
}

static int share_device(struct kj_account *a, const struct kj_work *work, uint32_t d)
{
    struct kj_model_classes m = {0};
    struct kj_model_result *result = NULL;
    struct kj_report_device *row = kj_report_add_device(a->report);
    const struct kj_report_component *component = component_of(a->report, work->devices[d].key);
    if (!row || select_classes(work, d, &m)) {
        free_classes(&m);
        return -1;
    }
    const struct kj_phase_classes classes = {m.index, m.count};
    row->device = strdup(work->devices[d].key);
    row->model = strdup(work->devices[d].model);
    if (kj_work_name_instances(a->report, row, &work->devices[d])) {
        free_classes(&m);
        return -1;
    }
    row->busy_ns = -1;
    row->walk_ns = (uint64_t)kj_walk_idle_ns(work, d);
    if (component && component->energy.known && !run_model(a, work, d, &m, &component->energy, &result)) {
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
    int status = kj_kernel_lines(a->report, work, d, &m, result, row);
    if (!status)
        status = kj_phase_lines(a->report, work, d, &classes, result, row);
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
