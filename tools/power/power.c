/* SPDX-License-Identifier: Apache-2.0
 *
 * power.c - the table of sources, and the reading of their channels in turn.
 */
#include "power/source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* In order of preference: what stands earlier is counted, what stands later is kept beside it. */
static const struct kj_source_ops *const sources[] = {
    &kj_source_nvml, &kj_source_rapl_perf, &kj_source_rapl_powercap, &kj_source_hwmon,
    &kj_source_dcmi, &kj_source_cpu_model, &kj_source_dram_model,
};
static const struct kj_source_ops *const recordings[] = {&kj_source_replay};

enum {
    SOURCES_MAX = 8,
    CHANNELS_MAX = 1024,
    REST_FACTOR = 20,     /* after a read, a channel rests this many times what the read took */
    FAILURES_ALLOWED = 3, /* in a row; a driver may be busy for once */
};
#define REST_MAX_NS (1000 * KJ_NS_PER_MS) /* even the slowest sensor is asked once a second */

/* What the reader remembers of a channel, beside its public description. */
struct entry {
    uint32_t source, slot;
    uint64_t due_ns;
    int failures;
    bool ring;     /* brings its own times */
    bool dropped;  /* excluded, or lost for good */
    bool announce; /* lost, and kj_power_lost() has not said so yet */
    int error;
};

struct kj_power {
    const struct kj_source_ops *ops[SOURCES_MAX];
    void *states[SOURCES_MAX];
    struct kj_source_status statuses[SOURCES_MAX];
    size_t sources;
    struct kj_channel *channels;
    struct entry *entries;
    size_t count, room;
    bool eager;
};

int kj_power_add(struct kj_power *power, uint32_t slot, const struct kj_channel *channel)
{
    if (power->count == CHANNELS_MAX)
        return -E2BIG;
    if (power->count == power->room) {
        size_t room = power->room ? power->room * 2 : 16;
        struct kj_channel *channels = realloc(power->channels, room * sizeof(*channels));
        if (!channels)
            return -ENOMEM;
        power->channels = channels;
        struct entry *entries = realloc(power->entries, room * sizeof(*entries));
        if (!entries)
            return -ENOMEM;
        power->entries = entries;
        power->room = room;
    }
    struct kj_channel *added = &power->channels[power->count];
    *added = *channel;
    added->id = (uint32_t)power->count;
    if (!added->source[0]) /* a recording keeps the names of its sources */
        kj_text(added->source, sizeof(added->source), "%s", power->ops[power->sources]->name);
    if (added->method != KJ_MODELLED && added->low_factor == 0)
        added->low_factor = added->high_factor = 1;
    power->entries[power->count] = (struct entry){.source = (uint32_t)power->sources, .slot = slot};
    power->count++;
    return 0;
}

int kj_power_add_ring(struct kj_power *power, uint32_t slot, const struct kj_channel *channel)
{
    int error = kj_power_add(power, slot, channel);
    if (!error)
        power->entries[power->count - 1].ring = true;
    return error;
}

struct kj_channel *kj_power_slot(struct kj_power *power, uint32_t slot)
{
    for (size_t i = 0; i < power->count; i++)
        if (power->entries[i].source == power->sources && power->entries[i].slot == slot)
            return &power->channels[i];
    return NULL;
}

static bool allowed(const char *const *only, const char *name)
{
    if (!only)
        return true;
    for (; *only; only++)
        if (!strcmp(*only, name))
            return true;
    return false;
}

/* Opens one source, keeps its status. Only want of memory and an unreadable recording are errors of the
 * whole. */
static int open_source(struct kj_power *power, const struct kj_source_ops *ops,
                       const struct kj_source_env *env)
{
    struct kj_source_status *status = &power->statuses[power->sources];
    size_t count_before = power->count;
    void *state = NULL;
    status->name = ops->name;
    power->ops[power->sources] = ops;
    int error = ops->open(env, power, status, &state);
    if (!error && power->count == count_before) {
        error = -ENODEV;
        if (!status->reason[0])
            kj_text(status->reason, sizeof(status->reason), "no sensor found");
    }
    if (error) {
        if (state)
            ops->close(state);
        power->count = count_before; /* a source is taken whole or not at all */
        if (!status->reason[0])
            kj_text(status->reason, sizeof(status->reason), "%s", strerror(-error));
    } else {
        power->states[power->sources] = state;
        status->accepted = true;
    }
    power->sources++;
    return error;
}

int kj_power_open(const struct kj_power_config *config, struct kj_power **ret_power, struct kj_error *error)
{
    struct kj_power *power = calloc(1, sizeof(*power));
    struct kj_source_env *env = calloc(1, sizeof(*env));
    bool replay = config->replay_file && config->replay_file[0];
    const struct kj_source_ops *const *table = replay ? recordings : sources;
    size_t table_size =
        replay ? sizeof(recordings) / sizeof(recordings[0]) : sizeof(sources) / sizeof(sources[0]);
    int result = power && env ? 0 : -ENOMEM;
    if (!result) {
        power->eager = config->eager;
        env->root = config->sysfs_root ? config->sysfs_root : "";
        env->replay_file = config->replay_file;
        kj_cpu_info_read(env->root, &env->cpu);
    }
    for (size_t i = 0; !result && i < table_size; i++) {
        if (!replay && !allowed(config->only, table[i]->name))
            continue;
        int opened = open_source(power, table[i], env);
        if (opened == -ENOMEM || (opened && replay))
            result = opened == -ENOMEM ? opened : -EINVAL;
    }
    free(env);
    if (result) {
        if (result == -ENOMEM)
            kj_error_set(error, "out of memory while opening sensors");
        else
            kj_error_set(error, "%s", power->statuses[0].reason);
        kj_power_close(power);
        return result;
    }
    *ret_power = power;
    return 0;
}

struct kj_power *kj_power_close(struct kj_power *power)
{
    if (!power)
        return NULL;
    for (size_t i = 0; i < power->sources; i++)
        if (power->states[i])
            power->ops[i]->close(power->states[i]);
    free(power->channels);
    free(power->entries);
    free(power);
    return NULL;
}

size_t kj_power_channels(const struct kj_power *power, const struct kj_channel **ret_channels)
{
    *ret_channels = power->channels;
    return power->count;
}

size_t kj_power_statuses(const struct kj_power *power, const struct kj_source_status **ret_statuses)
{
    *ret_statuses = power->statuses;
    return power->sources;
}

void kj_power_exclude_device(struct kj_power *power, const char *device)
{
    for (size_t i = 0; i < power->count; i++)
        if (!strcmp(power->channels[i].device, device))
            power->entries[i].dropped = true;
}

static bool better(const struct kj_channel *a, const struct kj_channel *b)
{
    if (a->method != b->method)
        return a->method < b->method;
    if (a->kind != b->kind)
        return a->kind < b->kind;
    return a->id < b->id;
}

bool kj_channel_own_times(const struct kj_channel *channel)
{
    return !strcmp(channel->source, "nvml") && !strcmp(channel->name, "power_samples");
}

size_t kj_channels_choose(const struct kj_channel *channels, size_t count, enum kj_component component,
                          uint32_t *ret_ids, size_t cap)
{
    bool measured = false;
    for (size_t i = 0; i < count; i++)
        measured |= channels[i].component == component && channels[i].kind < KJ_CPU_BUSY_NS &&
                    channels[i].method == KJ_MEASURED;
    size_t chosen = 0;
    for (size_t i = 0; i < count; i++) {
        const struct kj_channel *channel = &channels[i];
        if (channel->component != component || channel->kind >= KJ_CPU_BUSY_NS ||
            (measured && channel->method == KJ_MODELLED))
            continue;
        size_t place = 0;
        while (place < chosen && strcmp(channels[ret_ids[place]].device, channel->device))
            place++;
        if (place < chosen) {
            if (better(channel, &channels[ret_ids[place]]))
                ret_ids[place] = (uint32_t)i;
        } else if (chosen < cap) {
            ret_ids[chosen++] = (uint32_t)i;
        }
    }
    return chosen;
}

static void note_failure(struct entry *entry, int error)
{
    entry->error = error;
    entry->failures++;
    if (error != -ENODEV && error != -ENODATA && entry->failures < FAILURES_ALLOWED)
        return;
    entry->dropped = entry->announce = true;
}

/* After a read: when the channel is due again. Returns the time now. */
static uint64_t rest(const struct kj_power *power, struct entry *entry, uint64_t before_ns)
{
    uint64_t after_ns = kj_power_now_ns();
    uint64_t rest_ns = (after_ns - before_ns) * (power->eager ? 1 : REST_FACTOR);
    /* A read of microseconds is no burden: then there is no rest that could make an evenly paced caller miss
     * its turn. */
    if (rest_ns < KJ_NS_PER_MS)
        rest_ns = 0;
    entry->due_ns = after_ns + (rest_ns < REST_MAX_NS ? rest_ns : REST_MAX_NS);
    return after_ns;
}

/* One sample, or false. */
static bool read_channel(struct kj_power *power, uint32_t id, struct kj_sample *ret_sample)
{
    struct entry *entry = &power->entries[id];
    uint64_t before_ns = kj_power_now_ns(), value = 0;
    if (before_ns < entry->due_ns)
        return false;
    int error = power->ops[entry->source]->read(power->states[entry->source], entry->slot, &value);
    uint64_t after_ns = rest(power, entry, before_ns);
    if (error) {
        note_failure(entry, error);
        return false;
    }
    entry->failures = 0;
    *ret_sample =
        (struct kj_sample){.channel = id, .t_ns = before_ns + (after_ns - before_ns) / 2, .value = value};
    return true;
}

static size_t read_ring(struct kj_power *power, uint32_t id, struct kj_sample *ret_samples, size_t cap)
{
    struct entry *entry = &power->entries[id];
    uint64_t before_ns = kj_power_now_ns();
    if (before_ns < entry->due_ns)
        return 0;
    int count =
        power->ops[entry->source]->read_ring(power->states[entry->source], entry->slot, ret_samples, cap);
    rest(power, entry, before_ns);
    if (count < 0)
        note_failure(entry, count);
    else
        entry->failures = 0;
    for (int i = 0; i < count; i++)
        ret_samples[i].channel = id;
    return count > 0 ? (size_t)count : 0;
}

static size_t drain_source(struct kj_power *power, uint32_t source, struct kj_sample *samples, size_t cap)
{
    uint32_t first = 0;
    while (first < power->count && power->entries[first].source != source)
        first++;
    size_t got = power->ops[source]->drain(power->states[source], kj_power_now_ns(), samples, cap);
    size_t kept = 0;
    for (size_t i = 0; i < got; i++) {
        samples[i].channel += first; /* slots of a source are added in order */
        if (!power->entries[samples[i].channel].dropped)
            samples[kept++] = samples[i];
    }
    return kept;
}

size_t kj_power_read(struct kj_power *power, struct kj_sample *ret_samples, size_t cap)
{
    size_t done = 0;
    for (uint32_t s = 0; s < power->sources; s++)
        if (power->states[s] && power->ops[s]->drain)
            done += drain_source(power, s, ret_samples + done, cap - done);
    for (int kind = KJ_ENERGY_UJ; kind < KJ_CPU_BUSY_NS; kind++)
        for (uint32_t id = 0; id < power->count && done < cap; id++)
            if ((int)power->channels[id].kind == kind && !power->entries[id].dropped &&
                !power->ops[power->entries[id].source]->drain)
                done += power->entries[id].ring ? read_ring(power, id, ret_samples + done, cap - done)
                                                : read_channel(power, id, &ret_samples[done]);
    return done;
}

int kj_power_read_one(struct kj_power *power, uint32_t id, struct kj_sample *ret_sample)
{
    const struct entry *entry = id < power->count ? &power->entries[id] : NULL;
    if (!entry || entry->dropped || entry->ring || power->ops[entry->source]->drain)
        return -ENOTSUP;
    return read_channel(power, id, ret_sample);
}

static void say_loss(const struct kj_channel *channel, int error, char *ret_reason, size_t size)
{
    const char *why = error == -ENODEV   ? "the device is gone"
                      : error == -EPROTO ? "what it says is in no form that is known"
                                         : strerror(-error);
    kj_text(ret_reason, size, "%s %s of %s stopped answering: %s", channel->source, channel->name,
            channel->device, why);
}

bool kj_power_lost(struct kj_power *power, uint32_t *ret_channel, char *ret_reason, size_t size)
{
    for (uint32_t s = 0; s < power->sources; s++) {
        uint32_t slot;
        if (!power->states[s] || !power->ops[s]->lost ||
            !power->ops[s]->lost(power->states[s], &slot, ret_reason, size))
            continue;
        for (uint32_t id = 0; id < power->count; id++)
            if (power->entries[id].source == s && power->entries[id].slot == slot &&
                !power->entries[id].dropped) {
                power->entries[id].dropped = true;
                *ret_channel = id;
                return true;
            }
    }
    for (uint32_t id = 0; id < power->count; id++)
        if (power->entries[id].announce) {
            power->entries[id].announce = false;
            *ret_channel = id;
            say_loss(&power->channels[id], power->entries[id].error, ret_reason, size);
            return true;
        }
    return false;
}
