/* SPDX-License-Identifier: Apache-2.0
 *
 * sampler.c - reads sensors and CPU time and writes them as series. GPU counters are read several times an
 * interval, to see when they are updated, and only changes are written: first and last of each run of equal
 * readings.
 */
#include "folder/series.h"
#include "record/parts.h"
#include "record/probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Sensors are renewed every 10, 20 or 100 ms. Looks that keep step with that would see each renewal equally
 * late, and leave its moment open by as much as they lie apart; these, by the golden ratio, come at all of
 * its phases, so that all together tell the moment to a small part of that (model/updates.c), at no greater
 * cost. */
#define GPU_READ_SHARE    0.1618034 /* of the interval */
#define GPU_PERIOD_MIN_NS 9708204
#define KEEP_NS           (KJ_NS_PER_S / 2) /* an unchanged reading is written at least this often */
#define SAMPLES_CAP       4096

enum own_channel { TREE, NODE, CORES, OWN_CHANNELS };

struct state {
    uint64_t written_ns, value;
    bool any, has_pending;
    struct kj_sample pending;
};

struct kj_sampler {
    struct kj_sampler_config config;
    struct kj_series_writer *writer;
    struct kj_channel *channels;
    size_t power_channels, probe_channels, count; /* the sensors', the probe's, all with our own */
    struct state *states;
    bool has_gpu;
    uint64_t others_next_ns;
    struct kj_sample samples[SAMPLES_CAP];
};

static void own_channel(struct kj_channel *channel, size_t id, const char *name, const char *device,
                        const char *basis)
{
    *channel = (struct kj_channel){.id = (uint32_t)id,
                                   .component = KJ_COMPONENT_CPU,
                                   .kind = KJ_CPU_BUSY_NS,
                                   .method = KJ_MEASURED,
                                   .low_factor = 1,
                                   .high_factor = 1};
    snprintf(channel->source, sizeof(channel->source), "proc");
    snprintf(channel->name, sizeof(channel->name), "%s", name);
    snprintf(channel->device, sizeof(channel->device), "%s", device);
    snprintf(channel->basis, sizeof(channel->basis), "%s", basis);
}

int kj_sampler_new(const struct kj_sampler_config *config, struct kj_sampler **ret_sampler)
{
    const struct kj_channel *power = NULL;
    size_t count = config->power ? kj_power_channels(config->power, &power) : 0;
    struct kj_sampler *sampler = calloc(1, sizeof(*sampler));
    if (!sampler)
        return -1;
    const struct kj_channel *probe = NULL;
    size_t probed = config->probe ? kj_probe_channels(config->probe, &probe) : 0;
    sampler->config = *config;
    sampler->power_channels = count;
    sampler->probe_channels = probed;
    sampler->count = count + probed + OWN_CHANNELS;
    sampler->channels = calloc(sampler->count, sizeof(*sampler->channels));
    sampler->states = calloc(sampler->count, sizeof(*sampler->states));
    int status = sampler->channels && sampler->states ? 0 : -1;
    for (size_t i = 0; !status && i < count; i++) {
        sampler->channels[i] = power[i];
        sampler->has_gpu = sampler->has_gpu || power[i].component == KJ_COMPONENT_GPU;
    }
    for (size_t i = 0; !status && i < probed; i++) {
        sampler->channels[count + i] = probe[i];
        sampler->channels[count + i].id = (uint32_t)(count + i);
    }
    count += probed;
    if (!status) {
        own_channel(&sampler->channels[count + TREE], count + TREE, "tree", "tree",
                    "clocks of the processes, and getrusage of those that ended");
        own_channel(&sampler->channels[count + NODE], count + NODE, "node", "node", "/proc/stat");
        own_channel(&sampler->channels[count + CORES], count + CORES, "cores", "node",
                    "elapsed time x cores allowed");
        status = kj_series_create(config->dir_fd, sampler->channels, sampler->count, &sampler->writer);
    }
    if (status) {
        kj_sampler_close(sampler);
        return status;
    }
    *ret_sampler = sampler;
    return 0;
}

uint64_t kj_sampler_period_ns(const struct kj_sampler *sampler)
{
    uint64_t interval_ns = sampler->config.interval_ns;
    if (!sampler->has_gpu || interval_ns <= GPU_PERIOD_MIN_NS)
        return interval_ns;
    uint64_t period_ns = (uint64_t)((double)interval_ns * GPU_READ_SHARE);
    return period_ns > GPU_PERIOD_MIN_NS ? period_ns : GPU_PERIOD_MIN_NS;
}

static void write_changes(struct kj_sampler *sampler, const struct kj_sample *sample)
{
    struct state *state = &sampler->states[sample->channel];
    if (state->any && sample->value == state->value && sample->t_ns - state->written_ns < KEEP_NS) {
        state->pending = *sample;
        state->has_pending = true;
        return;
    }
    if (state->has_pending)
        kj_series_append(sampler->writer, &state->pending, 1);
    kj_series_append(sampler->writer, sample, 1);
    *state = (struct state){.written_ns = sample->t_ns, .value = sample->value, .any = true};
}

static void sample_cpu_time(struct kj_sampler *sampler)
{
    uint64_t t_ns = kj_mono_ns();
    uint64_t elapsed_ns = t_ns > sampler->config.start_ns ? t_ns - sampler->config.start_ns : 0;
    uint32_t first = (uint32_t)(sampler->power_channels + sampler->probe_channels);
    const struct kj_sample own[OWN_CHANNELS] = {
        [TREE] = {first + TREE, t_ns, kj_tree_cpu_ns(sampler->config.tree)},
        [NODE] = {first + NODE, t_ns, kj_node_busy_ns()},
        [CORES] = {first + CORES, t_ns, (uint64_t)((double)elapsed_ns * sampler->config.cores)},
    };
    kj_series_append(sampler->writer, own, OWN_CHANNELS);
}

static void read_power(struct kj_sampler *sampler, bool others_due)
{
    size_t n =
        sampler->config.power ? kj_power_read(sampler->config.power, sampler->samples, SAMPLES_CAP) : 0;
    for (size_t i = 0; i < n; i++) {
        const struct kj_sample *sample = &sampler->samples[i];
        if (sampler->channels[sample->channel].component == KJ_COMPONENT_GPU)
            write_changes(sampler, sample);
        else if (others_due)
            kj_series_append(sampler->writer, sample, 1);
    }
    uint32_t channel;
    char reason[160];
    while (sampler->config.power && kj_power_lost(sampler->config.power, &channel, reason, sizeof(reason)))
        kj_series_lost(sampler->writer, channel, kj_mono_ns(), reason);
}

static void read_probe(struct kj_sampler *sampler)
{
    uint32_t first = (uint32_t)sampler->power_channels, channel;
    char reason[160];
    size_t n;
    if (!sampler->config.probe)
        return;
    while ((n = kj_probe_samples(sampler->config.probe, sampler->samples, SAMPLES_CAP))) {
        for (size_t i = 0; i < n; i++)
            sampler->samples[i].channel += first;
        kj_series_append(sampler->writer, sampler->samples, n);
    }
    while (kj_probe_lost(sampler->config.probe, &channel, reason, sizeof(reason)))
        kj_series_lost(sampler->writer, first + channel, kj_mono_ns(), reason);
}

void kj_sampler_tick(struct kj_sampler *sampler)
{
    uint64_t now_ns = kj_mono_ns();
    /* a tick that comes a little early still counts */
    bool due = now_ns + GPU_PERIOD_MIN_NS / 2 >= sampler->others_next_ns;
    if (due)
        sampler->others_next_ns = now_ns + sampler->config.interval_ns;
    read_power(sampler, due);
    read_probe(sampler);
    if (due)
        sample_cpu_time(sampler);
}

void kj_sampler_flush(struct kj_sampler *sampler)
{
    kj_series_flush(sampler->writer);
}

struct kj_sampler *kj_sampler_close(struct kj_sampler *sampler)
{
    if (!sampler)
        return NULL;
    if (sampler->writer) {
        read_power(sampler, true);
        read_probe(sampler);
        sample_cpu_time(sampler);
        for (size_t i = 0; i < sampler->power_channels; i++)
            if (sampler->states[i].has_pending)
                kj_series_append(sampler->writer, &sampler->states[i].pending, 1);
        kj_series_close(sampler->writer);
    }
    free(sampler->channels);
    free(sampler->states);
    free(sampler);
    return NULL;
}
