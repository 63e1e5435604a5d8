/* SPDX-License-Identifier: Apache-2.0
 *
 * nvml.c - NVIDIA boards, by NVML.
 *
 * Of each board the energy counter, a power reading and the driver's ring of power samples are kept: the
 * counter conserves energy, the powers show contrast, and what they disagree on is not known.
 */
#include "power/calibration.h"
#include "power/gpu_sensors.h"
#include "power/nvml_library.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { DEVICES_MAX = 64, COUNTER = 0, POWER = 1, RING = 2, CHANNELS_PER_DEVICE = 3 };
#define RING_FRESH_NS                                                                                        \
    (10 * KJ_NS_PER_S) /* how old the newest sample of a ring may be for its clock to be known */
#define RING_EVERY_NS (KJ_NS_PER_S / 5) /* the ring holds some seconds */

struct board {
    nvml_device handle;
    bool energy_by_field;
    unsigned power_field; /* 0: nvmlDeviceGetPowerUsage */
    uint64_t energy_base_mj, energy_last_mj;
    clockid_t ring_clock;
    bool ring_clock_known; /* by its first samples */
    uint64_t opened_ns;
    uint64_t ring_last_us, ring_next_ns;
};

struct nvml {
    struct nvml_library api;
    unsigned devices;
    unsigned driver_major;
    char driver[80];
    struct board boards[DEVICES_MAX];
};

static int read_energy_mj(const struct nvml *nvml, const struct board *board, uint64_t *ret_mj)
{
    if (board->energy_by_field)
        return kj_nvml_field(&nvml->api, board->handle, NVML_FIELD_TOTAL_ENERGY, ret_mj);
    if (!nvml->api.energy)
        return -EOPNOTSUPP;
    unsigned long long mj = 0;
    nvml_return result = nvml->api.energy(board->handle, &mj);
    *ret_mj = mj;
    return kj_nvml_errno(result);
}

static int read_power_mw(const struct nvml *nvml, const struct board *board, uint64_t *ret_mw)
{
    if (board->power_field)
        return kj_nvml_field(&nvml->api, board->handle, board->power_field, ret_mw);
    if (!nvml->api.power)
        return -EOPNOTSUPP;
    unsigned mw = 0;
    nvml_return result = nvml->api.power(board->handle, &mw);
    *ret_mw = mw;
    return kj_nvml_errno(result);
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * KJ_NS_PER_S + (uint64_t)t.tv_nsec;
}

/* The samples since the last look, at most NVML_SAMPLES_CAP. Returns how many, negative errno. */
static int read_ring(const struct nvml *nvml, const struct board *board, struct nvml_sample *samples,
                     int *ret_type)
{
    unsigned count = NVML_SAMPLES_CAP;
    if (!nvml->api.samples)
        return -EOPNOTSUPP;
    memset(samples, 0, NVML_SAMPLES_CAP * sizeof(*samples));
    nvml_return result = nvml->api.samples(board->handle, NVML_SAMPLES_TOTAL_POWER, board->ring_last_us,
                                           ret_type, &count, samples);
    if (result == NVML_NOT_FOUND) /* nothing new */
        return 0;
    return result == NVML_SUCCESS && count <= NVML_SAMPLES_CAP ? (int)count : kj_nvml_errno(result);
}

/* The newest sample is of the last moments: that tells which clock its time is of. Documented is none. */
static bool find_ring_clock(struct board *board, const struct nvml_sample *samples, int count)
{
    static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME};
    uint64_t newest_us = 0, best_ns = RING_FRESH_NS;
    for (int i = 0; i < count; i++)
        newest_us = samples[i].timestamp_us > newest_us ? samples[i].timestamp_us : newest_us;
    for (size_t i = 0; i < sizeof(clocks) / sizeof(clocks[0]); i++) {
        uint64_t now_ns = clock_ns(clocks[i]), then_ns = newest_us * 1000;
        uint64_t apart_ns = now_ns > then_ns ? now_ns - then_ns : then_ns - now_ns;
        if (apart_ns < best_ns) {
            best_ns = apart_ns;
            board->ring_clock = clocks[i];
        }
    }
    board->ring_clock_known = best_ns < RING_FRESH_NS;
    return board->ring_clock_known;
}

static int add_channel(const struct nvml *nvml, unsigned index, unsigned slot, enum kj_gpu_field field,
                       const struct kj_calibration *calibration, struct kj_power *power,
                       struct kj_channel channel)
{
    static const char *const names[] = {"energy_counter", "power_usage", "power_average", "power_instant",
                                        "power_samples"};
    unsigned architecture = 0;
    if (!nvml->api.architecture ||
        nvml->api.architecture(nvml->boards[index].handle, &architecture) != NVML_SUCCESS)
        architecture = 0;
    const struct kj_gpu_board board = {
        .architecture = architecture, .driver_major = nvml->driver_major, .name = channel.model};
    kj_text(channel.name, sizeof(channel.name), "%s", names[field]);
    channel.kind = field == KJ_GPU_COUNTER ? KJ_ENERGY_UJ : KJ_POWER_MW;
    kj_gpu_sensor_shape(&board, field, &channel);
    if (calibration)
        kj_calibration_apply(calibration, &channel);
    unsigned place = index * CHANNELS_PER_DEVICE + slot;
    return slot == RING ? kj_power_add_ring(power, place, &channel) : kj_power_add(power, place, &channel);
}

struct tally {
    unsigned boards, with_energy, with_power, with_ring, calibrated, mig;
    char name[96];
    char refusal[64]; /* the first of a board that lacks one of the two */
};

static void note_refusal(struct tally *tally, unsigned index, const char *what, int error)
{
    if (error && !tally->refusal[0])
        kj_text(tally->refusal, sizeof(tally->refusal), "%s of GPU %u: %s", what, index, strerror(-error));
}

/* What `kjoule calibrate` found on this board, if it did, and may be trusted. */
static bool find_calibration(const struct nvml *nvml, const struct kj_channel *channel,
                             struct kj_calibration *ret_calibration, struct kj_source_status *status)
{
    struct kj_error error = {0};
    int result = nvml->driver[0] ? kj_calibration_load(channel->device, nvml->driver, ret_calibration, &error)
                                 : -ENOENT;
    if (result && result != -ENOENT && !status->warning[0])
        kj_text(status->warning, sizeof(status->warning), "%s", error.text);
    return !result;
}

static int open_sensors(struct nvml *nvml, unsigned index, struct kj_power *power, struct tally *tally,
                        const struct kj_calibration *calibration, const struct kj_channel *channel)
{
    static const struct {
        unsigned nvml;
        enum kj_gpu_field field;
    } fields[] = {{NVML_FIELD_POWER_INSTANT, KJ_GPU_INSTANT},
                  {NVML_FIELD_POWER_AVERAGE, KJ_GPU_AVERAGE},
                  {0, KJ_GPU_USAGE}};
    struct board *board = &nvml->boards[index];
    int error = read_energy_mj(nvml, board, &board->energy_base_mj);
    if (error) {
        board->energy_by_field = true;
        error = read_energy_mj(nvml, board, &board->energy_base_mj);
    }
    board->energy_last_mj = board->energy_base_mj;
    note_refusal(tally, index, "energy counter", error);
    tally->with_energy += !error;
    if (!error && add_channel(nvml, index, COUNTER, KJ_GPU_COUNTER, calibration, power, *channel))
        return -ENOMEM;
    error = -ENODEV;
    size_t i = 0;
    for (; error && i < sizeof(fields) / sizeof(fields[0]); i++) {
        uint64_t mw;
        board->power_field = fields[i].nvml;
        error = read_power_mw(nvml, board, &mw);
    }
    note_refusal(tally, index, "power", error);
    tally->with_power += !error;
    if (!error && add_channel(nvml, index, POWER, fields[i - 1].field, calibration, power, *channel))
        return -ENOMEM;
    struct nvml_sample samples[NVML_SAMPLES_CAP];
    int type, count = read_ring(nvml, board, samples, &type);
    board->opened_ns = kj_power_now_ns();
    if (count >= 0 && (!count || find_ring_clock(board, samples, count))) { /* one may be empty at first */
        tally->with_ring++;
        if (add_channel(nvml, index, RING, KJ_GPU_RING, calibration, power, *channel))
            return -ENOMEM;
    }
    return 0;
}

static int open_board(struct nvml *nvml, unsigned index, struct kj_power *power, struct tally *tally,
                      struct kj_source_status *status)
{
    struct board *board = &nvml->boards[index];
    struct kj_channel channel = {.component = KJ_COMPONENT_GPU, .method = KJ_MEASURED};
    struct kj_calibration calibration;
    nvml_return result = nvml->api.handle(index, &board->handle);
    if (result == NVML_SUCCESS)
        result = nvml->api.uuid(board->handle, channel.device, sizeof(channel.device));
    note_refusal(tally, index, "identity", kj_nvml_errno(result));
    if (result != NVML_SUCCESS)
        return kj_nvml_errno(result);
    if (nvml->api.name && nvml->api.name(board->handle, channel.model, sizeof(channel.model)) != NVML_SUCCESS)
        channel.model[0] = 0;
    struct nvml_pci pci;
    if (nvml->api.pci && nvml->api.pci(board->handle, &pci) == NVML_SUCCESS)
        kj_text(channel.pci, sizeof(channel.pci), "%x:%x:%x", pci.domain, pci.bus, pci.device);
    unsigned limit_mw = 0;
    if (nvml->api.power_limit && nvml->api.power_limit(board->handle, &limit_mw) == NVML_SUCCESS)
        channel.limit_mw = limit_mw;
    if (!tally->boards++)
        kj_text(tally->name, sizeof(tally->name), "%s", channel.model);
    unsigned mig = 0, pending = 0;
    tally->mig +=
        nvml->api.mig_mode && nvml->api.mig_mode(board->handle, &mig, &pending) == NVML_SUCCESS && mig == 1;
    bool calibrated = find_calibration(nvml, &channel, &calibration, status);
    tally->calibrated += calibrated;
    return open_sensors(nvml, index, power, tally, calibrated ? &calibration : NULL, &channel);
}

static void nvml_close(void *state)
{
    struct nvml *nvml = state;
    if (!nvml)
        return;
    kj_nvml_unload(&nvml->api);
    free(nvml);
}

static void describe(const struct nvml *nvml, const struct tally *tally, struct kj_source_status *status)
{
    const char *version = nvml->driver[0] ? nvml->driver : "unknown";
    if (!tally->boards) {
        kj_text(status->reason, sizeof(status->reason), "driver %s works, but shows no GPU", version);
        kj_text(status->remedy, sizeof(status->remedy), "nvidia-smi -L (does the job own a GPU?)");
        return;
    }
    if (!tally->with_energy && !tally->with_power) {
        kj_text(status->reason, sizeof(status->reason),
                "%u x %.60s, driver %.24s: neither energy nor power can be read (%.48s)", tally->boards,
                tally->name[0] ? tally->name : "GPU", version, tally->refusal);
        kj_text(status->remedy, sizeof(status->remedy),
                "nvidia-smi -q -d POWER (a vGPU has no power sensor)");
        return;
    }
    int used = snprintf(status->reason, sizeof(status->reason),
                        "%u x %.60s, driver %.24s: energy counter of %u, power of %u", tally->boards,
                        tally->name[0] ? tally->name : "GPU", version, tally->with_energy, tally->with_power);
    if (used > 0 && used < (int)sizeof(status->reason) && tally->with_ring)
        used += snprintf(status->reason + used, sizeof(status->reason) - (size_t)used, ", sample ring of %u",
                         tally->with_ring);
    if (used > 0 && used < (int)sizeof(status->reason) && tally->calibrated)
        used += snprintf(status->reason + used, sizeof(status->reason) - (size_t)used, ", %u calibrated",
                         tally->calibrated);
    if (used > 0 && used < (int)sizeof(status->reason) && tally->mig)
        used += snprintf(status->reason + used, sizeof(status->reason) - (size_t)used,
                         "; MIG is on: readings are of the whole board");
    if (used > 0 && used < (int)sizeof(status->reason) && tally->refusal[0])
        kj_text(status->reason + used, sizeof(status->reason) - (size_t)used, "; %s", tally->refusal);
}

static int nvml_open(const struct kj_source_env *env, struct kj_power *power, struct kj_source_status *status,
                     void **ret_state)
{
    struct nvml *nvml = calloc(1, sizeof(*nvml));
    if (!nvml)
        return -ENOMEM;
    int error = kj_nvml_load(&nvml->api, env, status);
    if (error) {
        free(nvml);
        return error;
    }
    struct tally tally = {0};
    kj_nvml_driver(&nvml->api, nvml->driver, sizeof(nvml->driver));
    nvml->driver_major = (unsigned)strtoul(nvml->driver, NULL, 10);
    if (nvml->api.count(&nvml->devices) != NVML_SUCCESS)
        nvml->devices = 0;
    if (nvml->devices > DEVICES_MAX)
        nvml->devices = DEVICES_MAX;
    for (unsigned i = 0; !error && i < nvml->devices; i++) {
        if (open_board(nvml, i, power, &tally, status) == -ENOMEM)
            error = -ENOMEM;
    }
    describe(nvml, &tally, status);
    if (!error && !tally.with_energy && !tally.with_power)
        error = -ENODEV;
    if (error) {
        nvml_close(nvml);
        return error;
    }
    *ret_state = nvml;
    return 0;
}

static int nvml_read(void *state, uint32_t slot, uint64_t *ret_value)
{
    struct nvml *nvml = state;
    struct board *board = &nvml->boards[slot / CHANNELS_PER_DEVICE];
    if (slot % CHANNELS_PER_DEVICE == POWER)
        return read_power_mw(nvml, board, ret_value);
    uint64_t mj;
    int error = read_energy_mj(nvml, board, &mj);
    if (error)
        return error;
    if (mj < board->energy_last_mj)
        return -ENODEV; /* the driver was reloaded: what was counted between is gone */
    board->energy_last_mj = mj;
    *ret_value = (mj - board->energy_base_mj) * 1000;
    return 0;
}

static int by_time(const void *a, const void *b)
{
    const struct nvml_sample *x = a, *y = b;
    return (x->timestamp_us > y->timestamp_us) - (x->timestamp_us < y->timestamp_us);
}

/* Its times are brought to CLOCK_MONOTONIC by how far the clocks are apart now. */
static int nvml_read_ring(void *state, uint32_t slot, struct kj_sample *ret_samples, size_t cap)
{
    struct nvml *nvml = state;
    struct board *board = &nvml->boards[slot / CHANNELS_PER_DEVICE];
    struct nvml_sample samples[NVML_SAMPLES_CAP];
    uint64_t now_ns = kj_power_now_ns();
    if (now_ns < board->ring_next_ns)
        return 0;
    board->ring_next_ns = now_ns + RING_EVERY_NS;
    int type = 0, count = read_ring(nvml, board, samples, &type);
    if (count <= 0)
        return count;
    if (!board->ring_clock_known && !find_ring_clock(board, samples, count))
        return -EPROTO;
    qsort(samples, (size_t)count, sizeof(*samples), by_time);
    uint64_t ahead_ns = clock_ns(board->ring_clock) - kj_power_now_ns();
    int done = 0;
    for (int i = 0; i < count && (size_t)done < cap; i++) {
        uint64_t value;
        if (samples[i].timestamp_us <= board->ring_last_us ||
            kj_nvml_value((unsigned)type, &samples[i].value, &value))
            continue;
        uint64_t t_ns = samples[i].timestamp_us * 1000 - ahead_ns;
        if (t_ns > kj_power_now_ns() + 10 * KJ_NS_PER_MS)
            continue;
        board->ring_last_us = samples[i].timestamp_us;
        if (t_ns >= board->opened_ns) /* what it held of before is not this run's */
            ret_samples[done++] = (struct kj_sample){.t_ns = t_ns, .value = value};
    }
    return done;
}

const struct kj_source_ops kj_source_nvml = {
    .name = "nvml", .open = nvml_open, .read = nvml_read, .close = nvml_close, .read_ring = nvml_read_ring};
