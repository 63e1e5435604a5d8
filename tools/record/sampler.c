/* SPDX-License-Identifier: Apache-2.0
 *
 * sampler.c - reads sensors and CPU time and writes them as series. GPU counters are read several times an
 * interval, to see when they are updated, and only changes are written: first and last of each run of equal
 * readings.
 */
#include "folder/series.h"
#include "record/looks.h"
#include "record/parts.h"
#include "record/probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEEP_NS     (KJ_NS_PER_S / 2) /* an unchanged reading is written at least this often */
#define SAMPLES_CAP 4096

enum own_channel { TREE, NODE, CORES, OWN_CHANNELS };

struct state {
    uint64_t written_ns, value;
    bool any, has_pending;
    struct kj_sample pending;
    uint32_t changes; /* among the looks that are judged next */
    bool follow;      /* its value is to be seen the moment that it changes */
    struct kj_renewals renewals;
};

struct kj_sampler {
    struct kj_sampler_config config;
    struct kj_series_writer *writer;
    struct kj_channel *channels;
    size_t power_channels, probe_channels, count; /* the sensors', the probe's, all with our own */
    struct state *states;
    bool has_gpu;
    uint64_t period_ns, even_next_ns, others_next_ns;
    uint32_t looks;
    uint64_t looks_cost_ns;
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
        bool of_gpu = power[i].component == KJ_COMPONENT_GPU;
        sampler->states[i].follow = of_gpu && !kj_channel_own_times(&power[i]);
        sampler->has_gpu = sampler->has_gpu || of_gpu;
    }
    for (size_t i = 0; !status && i < probed; i++) {
        sampler->channels[count + i] = probe[i];
        sampler->channels[count + i].id = (uint32_t)(count + i);
    }
    sampler->period_ns = sampler->has_gpu ? kj_looks_first_ns(config->interval_ns) : config->interval_ns;
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

uint64_t kj_sampler_next_ns(const struct kj_sampler *sampler)
{
    uint64_t next_ns = sampler->even_next_ns;
    for (size_t i = 0; sampler->has_gpu && i < sampler->power_channels; i++) {
        const struct state *state = &sampler->states[i];
        uint64_t own_ns = state->follow ? kj_renewals_next_ns(&state->renewals) : UINT64_MAX;
        next_ns = own_ns < next_ns ? own_ns : next_ns;
    }
    return next_ns;
}

/* Looks come closer where they cannot tell when a sensor was renewed, and are cheap. */
static void judge_looks(struct kj_sampler *sampler, uint64_t cost_ns)
{
    uint32_t most = 0;
    sampler->looks_cost_ns += cost_ns;
    if (!sampler->has_gpu || ++sampler->looks < KJ_LOOKS_JUDGED)
        return;
    for (size_t i = 0; i < sampler->power_channels; i++) {
        if (sampler->states[i].follow && sampler->states[i].changes > most)
            most = sampler->states[i].changes;
        sampler->states[i].changes = 0;
    }
    double looks = (double)sampler->looks;
    sampler->period_ns = kj_looks_next_ns(sampler->period_ns, sampler->config.interval_ns, most / looks,
                                          (double)sampler->looks_cost_ns / looks);
    sampler->looks = 0, sampler->looks_cost_ns = 0;
}

/* Writes it if it is news, and learns from it when the next may be. */
static void take_look(struct kj_sampler *sampler, const struct kj_sample *sample, double cost_ns)
{
    struct state *state = &sampler->states[sample->channel];
    bool is_new = state->any && sample->value != state->value;
    if (state->follow)
        kj_renewals_saw(&state->renewals, sample->t_ns, is_new, sampler->period_ns, cost_ns);
    if (state->any && !is_new && sample->t_ns - state->written_ns < KEEP_NS) {
        state->pending = *sample;
        state->has_pending = true;
        return;
    }
    if (state->has_pending)
        kj_series_append(sampler->writer, &state->pending, 1);
    kj_series_append(sampler->writer, sample, 1);
    state->written_ns = sample->t_ns;
    state->value = sample->value;
    state->any = true;
    state->has_pending = false;
    state->changes += is_new;
}

bool kj_sampler_look(struct kj_sampler *sampler)
{
    uint64_t now_ns = kj_mono_ns();
    if (now_ns >= sampler->even_next_ns)
        return false;
    for (size_t i = 0; i < sampler->power_channels; i++) {
        struct state *state = &sampler->states[i];
        struct kj_sample sample;
        if (!state->follow || kj_renewals_next_ns(&state->renewals) > now_ns)
            continue;
        uint64_t before_ns = kj_mono_ns();
        int got = kj_power_read_one(sampler->config.power, (uint32_t)i, &sample);
        if (got > 0)
            take_look(sampler, &sample, (double)(kj_mono_ns() - before_ns));
        else if (!got)
            kj_renewals_rest(&state->renewals, now_ns + KJ_NS_PER_MS);
        else
            state->follow = false;
    }
    return true;
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
    uint64_t before_ns = kj_mono_ns();
    size_t n =
        sampler->config.power ? kj_power_read(sampler->config.power, sampler->samples, SAMPLES_CAP) : 0;
    double cost_ns = n ? (double)(kj_mono_ns() - before_ns) / (double)n : 0;
    for (size_t i = 0; i < n; i++) {
        const struct kj_sample *sample = &sampler->samples[i];
        if (sampler->channels[sample->channel].component == KJ_COMPONENT_GPU)
            take_look(sampler, sample, cost_ns);
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
    bool due = now_ns + sampler->period_ns / 2 >= sampler->others_next_ns;
    sampler->even_next_ns += sampler->period_ns;
    if (sampler->even_next_ns <= now_ns) /* the first, or we were held up */
        sampler->even_next_ns = now_ns + sampler->period_ns;
    if (due)
        sampler->others_next_ns = now_ns + sampler->config.interval_ns;
    read_power(sampler, due);
    judge_looks(sampler, kj_mono_ns() - now_ns);
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
