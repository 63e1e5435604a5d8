/* SPDX-License-Identifier: Apache-2.0
 *
 * components.c - the parts of the total: each device's energy over the run, and this run's share of it.
 *
 * CPU, and memory that a sensor tells of: cpu_share.c. Memory by capacity: the cores that the run may use.
 * GPU: whole boards, of those that the run opened.
 */
#include "account/cpu_lines.h"
#include "account/parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CHANNELS_CAP 1024
#define UNCOVERED_SD 0.3 /* how far off the nearest power may be where no reading covers the time */

/* This run's part of a device. */
struct share {
    double part, low, high;
    double own_idle_uj; /* of it; packages only */
    char basis[200];
};

static const char *owner_elsewhere(const struct kj_account *a, const char *device)
{
    for (size_t i = 0; i < a->run.devices_count; i++)
        if (a->run.devices[i].device && !strcmp(a->run.devices[i].device, device) && !a->run.devices[i].owned)
            return a->run.devices[i].owner ? a->run.devices[i].owner : "?";
    return NULL;
}

static bool is_owned(const struct kj_account *a, const char *device)
{
    const char *owner = owner_elsewhere(a, device);
    if (owner)
        kj_report_warn(a->report,
                       "%s is counted by run %s of the same job, not here; add up the job's reports", device,
                       owner);
    return !owner;
}

/* A counter that adds up samples misses what happens between them: as wrong as a third for one window
 * (energy seen by 25 of 100 ms beside a meter, SC'24 artifact), and less the more of them there are. */
static double sampling_sd(const struct kj_channel *c, const struct kj_account *a)
{
    if (c->kind != KJ_ENERGY_UJ || !c->window_ns || c->period_ns <= c->window_ns)
        return 0;
    return 0.3 / sqrt(fmax(1, (double)(a->end_ns - a->start_ns) / (double)c->period_ns));
}

static double corrected_uj(const struct kj_channel *c, const struct kj_span_energy *span)
{
    return c->gain > 0 ? span->uj / c->gain : span->uj;
}

/* The 90 % interval of what one device took: the sensor's gain or the model's factors, and the time it did
 * not see. The mean of gains is not taken off the value, which is what the sensor said; it moves the
 * interval. */
static struct kj_energy with_interval(const struct kj_account *a, const struct kj_channel *c,
                                      const struct kj_span_energy *span, const struct share *share)
{
    double whole_uj = corrected_uj(c, span), uj = whole_uj * share->part;
    double mean = c->gain_mean > 0 ? c->gain_mean : 1, sd = hypot(c->gain_sd, sampling_sd(c, a));
    double unseen = KJ_Z90 * UNCOVERED_SD * (1 - fmin(1, span->coverage));
    double least = 1 / (mean + KJ_Z90 * sd), most = 1 / fmax(mean - KJ_Z90 * sd, 0.2);
    least = least < 1 ? fmax(0, 1 - hypot(1 - least, unseen)) : fmax(0, least - unseen);
    most = most > 1 ? 1 + hypot(most - 1, unseen) : most + unseen;
    double low = whole_uj * share->low * fmin(c->low_factor, 1) * least;
    double high = whole_uj * share->high * fmax(c->high_factor, 1) * most;
    return (struct kj_energy){
        true, false, c->method, llround(uj), (int64_t)floor(fmin(low, uj)), (int64_t)ceil(fmax(high, uj))};
}

/* The other measuring channels of the device: what they disagree on is not known, and is in the interval. The
 * one that disagrees most is named. */
static void check_against(struct kj_account *a, struct kj_report_component *row, uint32_t used)
{
    for (size_t i = 0; i < a->series->count; i++) {
        const struct kj_series_channel *other = &a->series->channels[i];
        if (i == used || strcmp(other->channel.device, row->device) || other->channel.method != KJ_MEASURED ||
            other->channel.kind >= KJ_CPU_BUSY_NS)
            continue;
        struct kj_span_energy span = kj_channel_energy(other, NULL, a->start_ns, a->end_ns);
        if (!span.known)
            continue;
        int64_t other_uj = llround(corrected_uj(&other->channel, &span));
        if (row->energy.known && row->share > 0.999 && span.coverage > 0.9) {
            row->energy.low_uj = other_uj < row->energy.low_uj ? other_uj : row->energy.low_uj;
            row->energy.high_uj = other_uj > row->energy.high_uj ? other_uj : row->energy.high_uj;
        }
        if (row->check_source && (span.coverage <= 0.9 ||
                                  llabs(other_uj - row->energy.uj) <= llabs(row->check_uj - row->energy.uj)))
            continue;
        char text[80];
        snprintf(text, sizeof(text), "%s %s", other->channel.source, other->channel.name);
        free(row->check_source);
        row->check_source = strdup(text);
        row->check_uj = other_uj;
    }
}

static const struct kj_series_channel *power_of(const struct kj_series *series, const char *device)
{
    for (size_t i = 0; i < series->count; i++) {
        const struct kj_channel *c = &series->channels[i].channel;
        if (c->kind == KJ_POWER_MW && c->method == KJ_MEASURED && !strcmp(c->device, device))
            return &series->channels[i];
    }
    return NULL;
}

/* Finds the part once the energy is known. */
struct sharing {
    const struct kj_cpu_use *use;
    struct kj_cpu_sums *sums; /* of the packages */
};

static struct share find_share(const struct kj_account *a, const struct kj_series_channel *channel, double uj,
                               const struct sharing *sharing)
{
    const struct kj_channel *c = &channel->channel;
    struct share share = {.part = 1, .low = 1, .high = 1};
    if (c->component == KJ_COMPONENT_GPU) {
        snprintf(share.basis, sizeof(share.basis), "the whole board: this run opened it");
    } else if (c->component == KJ_COMPONENT_DRAM && c->method == KJ_MODELLED) {
        share.part = share.low = share.high = sharing->use->reserved;
        snprintf(share.basis, sizeof(share.basis), "cores that the run may use, of all");
    } else {
        struct kj_cpu_split split;
        kj_cpu_split(a, sharing->use, channel, uj, !owner_elsewhere(a, c->device), &split);
        share.part = uj > 0 ? (split.own_idle_uj + split.own_dynamic_uj) / uj : 0;
        share.low = fmin(split.low, share.part);
        share.high = fmax(split.high, share.part);
        share.own_idle_uj = split.own_idle_uj;
        snprintf(share.basis, sizeof(share.basis), "%s", split.basis);
    }
    return share;
}

/* Idle and dynamic energy in whole microjoules that add up to what the component says. */
static void add_to_sums(struct kj_cpu_sums *sums, const struct kj_energy *energy, double own_idle_uj,
                        const struct kj_series_channel *channel)
{
    int64_t idle_uj = llround(own_idle_uj);
    idle_uj = idle_uj < energy->uj ? idle_uj : energy->uj;
    sums->own_idle_uj += idle_uj;
    sums->own_dynamic_uj += energy->uj - idle_uj;
    sums->channel = sums->channel ? sums->channel : channel;
    sums->method = !sums->known || energy->method > sums->method ? energy->method : sums->method;
    if (energy->uj > 0) {
        double low = (double)energy->low_uj / (double)energy->uj,
               high = (double)energy->high_uj / (double)energy->uj;
        sums->low = sums->known ? fmin(sums->low, low) : low;
        sums->high = sums->known ? fmax(sums->high, high) : high;
    }
    sums->known = true;
}

static int add_component(struct kj_account *a, const char *kind, uint32_t id, const struct sharing *sharing)
{
    /* The best channel may have fallen silent: then the next of the same device. */
    uint32_t used = id;
    const struct kj_series_channel *power = power_of(a->series, a->series->channels[id].channel.device);
    struct kj_span_energy span = kj_channel_energy(&a->series->channels[id], power, a->start_ns, a->end_ns);
    for (size_t i = 0; !span.known && i < a->series->count; i++) {
        const struct kj_channel *other = &a->series->channels[i].channel;
        if (strcmp(other->device, a->series->channels[id].channel.device) || other->kind >= KJ_CPU_BUSY_NS)
            continue;
        span = kj_channel_energy(&a->series->channels[i], power, a->start_ns, a->end_ns);
        used = (uint32_t)i;
    }
    const struct kj_series_channel *from = &a->series->channels[span.known ? used : id];
    const struct kj_channel *c = &from->channel;
    struct kj_report_component *row = kj_report_add_component(a->report);
    if (!row)
        return -1;
    struct share share = find_share(a, from, span.known ? span.uj : 0, sharing);
    row->kind = strdup(kind);
    row->device = strdup(c->device);
    row->model = strdup(c->model);
    row->source = strdup(c->source);
    row->channel = strdup(c->name);
    row->basis = strdup(c->basis);
    row->share = share.part;
    row->share_basis = strdup(share.basis);
    row->coverage = span.coverage;
    row->energy.method = c->method;
    if (span.known) {
        row->energy = with_interval(a, c, &span, &share);
        row->device_uj = llround(corrected_uj(c, &span));
        check_against(a, row, used);
        if (c->component == KJ_COMPONENT_CPU)
            add_to_sums(sharing->sums, &row->energy, share.own_idle_uj, from);
    } else {
        sharing->sums->packages_unknown += c->component == KJ_COMPONENT_CPU;
        kj_report_warn(a->report, "%s: %s gave no usable reading in %.2f s; see `kjoule doctor`", c->device,
                       c->source, (double)(a->end_ns - a->start_ns) / 1e9);
    }
    if (a->series->channels[id].lost_ns)
        kj_report_warn(a->report, "%s %s of %s stopped answering: %s; see `kjoule doctor`",
                       a->series->channels[id].channel.source, a->series->channels[id].channel.name,
                       c->device, a->series->channels[id].lost_reason);
    return 0;
}

/* Two readers of one counter: only one of them was asked. */
static bool is_told_by_another(const struct kj_series *series, size_t index)
{
    const struct kj_channel *c = &series->channels[index].channel;
    for (size_t i = 0; i < series->count && !series->channels[index].count; i++)
        if (series->channels[i].count && series->channels[i].channel.component == c->component &&
            !strcmp(series->channels[i].channel.device, c->device))
            return true;
    return false;
}

/* Meters of the whole machine: beside the parts. */
static int add_besides(struct kj_account *a)
{
    for (size_t i = 0; i < a->series->count; i++) {
        const struct kj_channel *c = &a->series->channels[i].channel;
        if (c->component != KJ_COMPONENT_NODE || c->kind >= KJ_CPU_BUSY_NS ||
            is_told_by_another(a->series, i))
            continue;
        struct kj_span_energy span = kj_channel_energy(&a->series->channels[i], NULL, a->start_ns, a->end_ns);
        const struct share whole = {.part = 1, .low = 1, .high = 1};
        struct kj_report_beside *row = kj_report_add_beside(a->report);
        if (!row)
            return -1;
        *row = (struct kj_report_beside){.device = strdup(c->device),
                                         .source = strdup(c->source),
                                         .channel = strdup(c->name),
                                         .basis = strdup(c->basis),
                                         .coverage = span.coverage};
        row->energy.method = c->method;
        if (span.known)
            row->energy = with_interval(a, c, &span, &whole);
    }
    return 0;
}

static bool is_used(const char *device, char *const *gpus, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!strcmp(device, gpus[i]))
            return true;
    return false;
}

static int list_sensors(struct kj_account *a, char *const *gpus, size_t gpu_count)
{
    for (size_t i = 0; i < a->series->count; i++) {
        const struct kj_channel *c = &a->series->channels[i].channel;
        if (!c->shape || !is_used(c->device, gpus, gpu_count))
            continue;
        struct kj_report_sensor *row = kj_report_add_sensor(a->report);
        if (!row)
            return -1;
        *row = (struct kj_report_sensor){.device = strdup(c->device),
                                         .source = strdup(c->source),
                                         .channel = strdup(c->name),
                                         .basis = strdup(c->basis),
                                         .shape = strdup(kj_shape_origin_name(c->shape)),
                                         .kernel = strdup(kj_sensor_kernel_name(c->kernel)),
                                         .counter = c->kind == KJ_ENERGY_UJ,
                                         .window_ns = c->window_ns,
                                         .period_ns = c->period_ns,
                                         .delay_ns = c->delay_ns,
                                         .gain = c->gain,
                                         .gain_mean = c->gain_mean > 0 ? c->gain_mean : 1,
                                         .gain_sd = c->gain_sd,
                                         .delay_sd_ns =
                                             c->delay_sd_ns > 0 ? c->delay_sd_ns : KJ_DELAY_UNKNOWN_SD_NS,
                                         .noise_mw = c->noise_mw,
                                         .limit_mw = c->limit_mw};
    }
    return 0;
}

/* A GPU that was used and has no sensor is no component, and yet a part of what the run took. */
static void count_unknown(struct kj_account *a, char *const *gpus, size_t gpu_count)
{
    struct kj_report *report = a->report;
    for (size_t i = 0; i < report->components_count; i++)
        report->components_unknown += !report->components[i].energy.known;
    for (size_t g = 0; g < gpu_count; g++) {
        bool listed = !is_owned(a, gpus[g]);
        for (size_t i = 0; i < report->components_count && !listed; i++)
            listed = !strcmp(report->components[i].device, gpus[g]);
        report->components_unknown += !listed;
    }
}

static void sum_up(struct kj_report *report)
{
    double low2 = 0, high2 = 0;
    report->total = (struct kj_energy){.known = report->components_count > 0, .method = KJ_MEASURED};
    for (size_t i = 0; i < report->components_count; i++) {
        const struct kj_energy *e = &report->components[i].energy;
        if (!e->known)
            continue;
        report->total.uj += e->uj;
        low2 += pow((double)(e->uj - e->low_uj), 2);
        high2 += pow((double)(e->high_uj - e->uj), 2);
        if (e->method > report->total.method)
            report->total.method = e->method;
    }
    report->total.low_uj = report->total.uj - llround(sqrt(low2)); /* parts err independently */
    report->total.high_uj = report->total.uj + llround(sqrt(high2));
    if (report->total.uj == 0)
        report->total.known = false; /* nothing answered */
}

int kj_account_components(struct kj_account *a, char *const *gpus, size_t gpu_count)
{
    if (!a->series) {
        kj_report_warn(a->report, "no power was sampled, so the energy is unknown; see `kjoule doctor`");
        count_unknown(a, gpus, gpu_count);
        return 0;
    }
    static const struct {
        enum kj_component component;
        const char *kind;
    } kinds[] = {{KJ_COMPONENT_GPU, "gpu"}, {KJ_COMPONENT_CPU, "cpu"}, {KJ_COMPONENT_DRAM, "dram"}};
    struct kj_channel *channels = calloc(a->series->count + 1, sizeof(*channels));
    uint32_t ids[CHANNELS_CAP];
    if (!channels)
        return -1;
    for (size_t i = 0; i < a->series->count; i++)
        channels[i] = a->series->channels[i].channel;
    size_t power_channels = a->series->count;
    while (power_channels && channels[power_channels - 1].kind >= KJ_CPU_BUSY_NS)
        power_channels--; /* the recorder's own stand last */
    struct kj_cpu_use use;
    struct kj_cpu_sums sums = {.low = 1, .high = 1};
    kj_cpu_use_find(a, &use);
    a->report->tree_cpu_ns = (uint64_t)use.tree_ns;
    const struct sharing sharing = {.use = &use, .sums = &sums};
    int status = 0;
    for (size_t k = 0; k < sizeof(kinds) / sizeof(*kinds); k++) {
        size_t count = kj_channels_choose(channels, power_channels, kinds[k].component, ids, CHANNELS_CAP);
        for (size_t i = 0; i < count && !status; i++) {
            const struct kj_channel *c = &channels[ids[i]];
            bool gpu = c->component == KJ_COMPONENT_GPU;
            /* A package is everybody's, and each counts what is its own of it. */
            bool by_share =
                c->component == KJ_COMPONENT_CPU || c->method == KJ_MEASURED || use.reserved < 0.999;
            if ((gpu || !by_share) && !is_owned(a, c->device))
                continue;
            if (!gpu || is_used(c->device, gpus, gpu_count))
                status = add_component(a, kinds[k].kind, ids[i], &sharing);
        }
    }
    free(channels);
    sum_up(a->report);
    count_unknown(a, gpus, gpu_count);
    if (!status)
        status = add_besides(a) || list_sensors(a, gpus, gpu_count) || kj_cpu_lines(a, &use, &sums) ? -1 : 0;
    return status;
}
