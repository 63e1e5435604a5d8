/* SPDX-License-Identifier: Apache-2.0
 *
 * components.c - the parts of the total: each device's energy over the run, and this run's share of it.
 *
 * CPU: package energy x (CPU time of the run's processes / CPU time of all), after energy.md. What the idle
 * machine would have drawn anyway goes by the same rule, and the upper bound holds the other view: the idle
 * power of all cores that the run could use. DRAM: by the cores that the run may use. GPU: whole boards, of
 * those that the run opened.
 */
#include "account/parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CHANNELS_CAP 1024
#define UNCOVERED_SD 0.3 /* how far off the nearest power may be where no reading covers the time */

struct shares {
    double cpu, cores;
    char cpu_basis[160];
};

static const struct kj_series_channel *own_channel(const struct kj_series *series, const char *name)
{
    for (size_t i = 0; i < series->count; i++)
        if (!strcmp(series->channels[i].channel.source, "proc") &&
            !strcmp(series->channels[i].channel.name, name))
            return &series->channels[i];
    return NULL;
}

/* Growth of a cumulative channel over the run, scaled to its whole length. */
static double growth(const struct kj_series_channel *c, double run_ns)
{
    if (!c || c->count < 2)
        return 0;
    double span_ns = (double)(c->points[c->count - 1].t_ns - c->points[0].t_ns);
    double grown = (double)c->points[c->count - 1].value - (double)c->points[0].value;
    return span_ns > 0 ? grown * fmax(1, run_ns / span_ns) : grown;
}

static struct shares find_shares(struct kj_account *a)
{
    struct shares shares = {.cpu = 1, .cores = 1};
    double run_ns = (double)(a->end_ns - a->start_ns);
    const struct kj_series_channel *tree = own_channel(a->series, "tree");
    double tree_ns = (double)a->run.tree_cpu_ns;
    if (tree && tree->count && (double)tree->points[tree->count - 1].value > tree_ns)
        tree_ns = (double)tree->points[tree->count - 1].value;
    double node_ns = growth(own_channel(a->series, "node"), run_ns);
    a->report->tree_cpu_ns = (uint64_t)tree_ns;
    if (a->run.cores_online)
        shares.cores = fmin(1, (double)a->run.cores_allowed / a->run.cores_online);
    if (node_ns < tree_ns)
        node_ns = tree_ns; /* both count in ticks */
    if (node_ns > 0 && tree_ns > 0)
        shares.cpu = tree_ns / node_ns;
    snprintf(shares.cpu_basis, sizeof(shares.cpu_basis),
             "CPU time: %.2f s of this run's processes, %.2f s of all", tree_ns / 1e9, node_ns / 1e9);
    return shares;
}

static bool is_owned(const struct kj_account *a, const char *device)
{
    for (size_t i = 0; i < a->run.devices_count; i++)
        if (a->run.devices[i].device && !strcmp(a->run.devices[i].device, device) &&
            !a->run.devices[i].owned) {
            kj_report_warn(a->report,
                           "%s is counted by run %s of the same job, not here; add up the job's reports",
                           device, a->run.devices[i].owner ? a->run.devices[i].owner : "?");
            return false;
        }
    return true;
}

/* The 90 % interval of what one device took: the sensor's gain or the model's factors, and the time it did
 * not see. */
static struct kj_energy with_interval(const struct kj_channel *c, const struct kj_span_energy *span,
                                      double share)
{
    double uj = span->uj * share;
    double sd = hypot(c->gain_sd, UNCOVERED_SD * (1 - fmin(1, span->coverage)));
    double low = uj * fmin(c->low_factor, 1) * fmax(0, 1 - KJ_Z90 * sd);
    double high = uj * fmax(c->high_factor, 1) * (1 + KJ_Z90 * sd);
    return (struct kj_energy){true, c->method, llround(uj), (int64_t)floor(low), (int64_t)ceil(high)};
}

static void check_against(struct kj_account *a, struct kj_report_component *row, uint32_t used)
{
    for (size_t i = 0; i < a->series->count; i++) {
        const struct kj_series_channel *other = &a->series->channels[i];
        if (i == used || strcmp(other->channel.device, row->device) || other->channel.method != KJ_MEASURED)
            continue;
        struct kj_span_energy span = kj_channel_energy(other, NULL, a->start_ns, a->end_ns);
        if (!span.known)
            continue;
        char text[80];
        snprintf(text, sizeof(text), "%s %s", other->channel.source, other->channel.name);
        row->check_source = strdup(text);
        row->check_uj = llround(span.uj);
        /* What two sensors disagree on is not known. */
        int64_t *edge = row->check_uj < row->energy.uj ? &row->energy.low_uj : &row->energy.high_uj;
        if (row->energy.known && row->share > 0.999 &&
            ((edge == &row->energy.low_uj) == (row->check_uj < *edge)) && span.coverage > 0.9)
            *edge = row->check_uj;
        return;
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

static int add_component(struct kj_account *a, const char *kind, uint32_t id, double share,
                         const char *share_basis)
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
    const struct kj_channel *c = &a->series->channels[span.known ? used : id].channel;
    struct kj_report_component *row = kj_report_add_component(a->report);
    if (!row)
        return -1;
    row->kind = strdup(kind);
    row->device = strdup(c->device);
    row->model = strdup(c->model);
    row->source = strdup(c->source);
    row->channel = strdup(c->name);
    row->basis = strdup(c->basis);
    row->share = share;
    row->share_basis = strdup(share_basis);
    row->coverage = span.coverage;
    row->energy.method = c->method;
    if (span.known) {
        row->energy = with_interval(c, &span, share);
        row->device_uj = llround(span.uj);
        check_against(a, row, used);
    } else {
        kj_report_warn(a->report, "%s: %s gave no usable reading in %.2f s; see `kjoule doctor`", c->device,
                       c->source, (double)(a->end_ns - a->start_ns) / 1e9);
    }
    if (a->series->channels[id].lost_ns)
        kj_report_warn(a->report, "%s %s of %s stopped answering: %s; see `kjoule doctor`",
                       a->series->channels[id].channel.source, a->series->channels[id].channel.name,
                       c->device, a->series->channels[id].lost_reason);
    return 0;
}

static bool is_used(const char *device, char *const *gpus, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!strcmp(device, gpus[i]))
            return true;
    return false;
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
    struct shares shares = find_shares(a);
    int status = 0;
    for (size_t k = 0; k < sizeof(kinds) / sizeof(*kinds); k++) {
        size_t count = kj_channels_choose(channels, power_channels, kinds[k].component, ids, CHANNELS_CAP);
        for (size_t i = 0; i < count && !status; i++) {
            const char *device = channels[ids[i]].device;
            if (!is_owned(a, device) ||
                (kinds[k].component == KJ_COMPONENT_GPU && !is_used(device, gpus, gpu_count)))
                continue;
            double share = kinds[k].component == KJ_COMPONENT_GPU   ? 1
                           : kinds[k].component == KJ_COMPONENT_CPU ? shares.cpu
                                                                    : shares.cores;
            const char *basis = kinds[k].component == KJ_COMPONENT_GPU ? "the whole board: this run opened it"
                                : kinds[k].component == KJ_COMPONENT_CPU
                                    ? shares.cpu_basis
                                    : "cores that the run may use, of all";
            status = add_component(a, kinds[k].kind, ids[i], share, basis);
            struct kj_report_component *row = &a->report->components[a->report->components_count - 1];
            if (!status && row->energy.known && kinds[k].component == KJ_COMPONENT_CPU) {
                int64_t all = llround((double)row->device_uj * fmax(shares.cores, share) *
                                      fmax(channels[ids[i]].high_factor, 1));
                row->energy.high_uj = all > row->energy.high_uj ? all : row->energy.high_uj;
            }
        }
    }
    free(channels);
    sum_up(a->report);
    return status;
}
