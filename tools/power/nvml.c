/* SPDX-License-Identifier: Apache-2.0
 *
 * nvml.c - NVIDIA boards through libnvidia-ml.so.1, found at run time. Declared here, from the public ABI, so
 * that no header is needed.
 *
 * Of each board both the energy counter and a power reading are kept: the counter conserves energy, the power
 * shows contrast.
 */
#include "power/source.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int nvml_return;
typedef struct nvml_device_handle *nvml_device;

enum { NVML_SUCCESS = 0, NVML_NOT_SUPPORTED = 3, NVML_NO_PERMISSION = 4, NVML_GPU_IS_LOST = 15 };
enum { FIELD_TOTAL_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186 };
enum { DEVICES_MAX = 64, CHANNELS_PER_DEVICE = 2 };

/* nvmlFieldValue_t */
struct nvml_field {
    unsigned field, scope;
    long long timestamp, latency_us;
    unsigned value_type;
    nvml_return result;
    union {
        double d;
        unsigned ui;
        unsigned long ul;
        unsigned long long ull;
        long long sll;
        int si;
        unsigned short us;
    } value;
};

struct nvml {
    void *library;
    nvml_return (*init)(void);
    nvml_return (*shutdown)(void);
    nvml_return (*driver_version)(char *, unsigned);
    nvml_return (*count)(unsigned *);
    nvml_return (*handle)(unsigned, nvml_device *);
    nvml_return (*uuid)(nvml_device, char *, unsigned);
    nvml_return (*name)(nvml_device, char *, unsigned);
    /* These may be missing from an old driver. */
    nvml_return (*energy)(nvml_device, unsigned long long *);
    nvml_return (*power)(nvml_device, unsigned *);
    nvml_return (*fields)(nvml_device, int, struct nvml_field *);
    nvml_return (*architecture)(nvml_device, unsigned *);
    nvml_return (*mig_mode)(nvml_device, unsigned *, unsigned *);
    const char *(*error_string)(nvml_return);
    unsigned devices;
    struct board {
        nvml_device handle;
        bool energy_by_field;
        unsigned power_field; /* 0: nvmlDeviceGetPowerUsage */
        uint64_t energy_base_mj, energy_last_mj;
    } boards[DEVICES_MAX];
};

static const struct {
    const char *symbol;
    size_t offset;
    bool required;
} symbols[] = {
    {"nvmlInit_v2", offsetof(struct nvml, init), true},
    {"nvmlShutdown", offsetof(struct nvml, shutdown), true},
    {"nvmlSystemGetDriverVersion", offsetof(struct nvml, driver_version), false},
    {"nvmlDeviceGetCount_v2", offsetof(struct nvml, count), true},
    {"nvmlDeviceGetHandleByIndex_v2", offsetof(struct nvml, handle), true},
    {"nvmlDeviceGetUUID", offsetof(struct nvml, uuid), true},
    {"nvmlDeviceGetName", offsetof(struct nvml, name), false},
    {"nvmlDeviceGetTotalEnergyConsumption", offsetof(struct nvml, energy), false},
    {"nvmlDeviceGetPowerUsage", offsetof(struct nvml, power), false},
    {"nvmlDeviceGetFieldValues", offsetof(struct nvml, fields), false},
    {"nvmlDeviceGetArchitecture", offsetof(struct nvml, architecture), false},
    {"nvmlDeviceGetMigMode", offsetof(struct nvml, mig_mode), false},
    {"nvmlErrorString", offsetof(struct nvml, error_string), false},
};

/* Averaging window and renewal of the power reading in ms: Yang, Adamek, Armour, SC'24, over 70 boards. 0:
 * not in that data. "average" is what nvmlDeviceGetPowerUsage and field 185 show. */
static const struct shape {
    unsigned architecture; /* nvmlDeviceArchitecture_t */
    const char *name_part; /* NULL: any board of the architecture */
    uint16_t instant_window_ms, instant_period_ms, average_window_ms, average_period_ms;
} shapes[] = {
    {4, NULL, 10, 20, 10, 20},      /* Pascal */
    {5, NULL, 10, 20, 10, 20},      /* Volta */
    {6, NULL, 100, 100, 100, 100},  /* Turing */
    {7, "A100", 25, 100, 25, 100},  /* GA100 */
    {7, "A800", 25, 100, 25, 100},  /* GA100 */
    {7, "A30", 25, 100, 25, 100},   /* GA100 */
    {7, NULL, 100, 100, 1000, 100}, /* GA10x */
    {8, NULL, 100, 100, 1000, 100}, /* Ada */
    {9, NULL, 25, 100, 1000, 100},  /* Hopper */
};

/* Where the driver does not tell the architecture. */
static const struct {
    const char *name_part;
    unsigned architecture;
} families[] = {
    {"H100", 9}, {"H200", 9},   {"H800", 9}, {"GH200", 9}, {"H20", 9},    {"A100", 7},
    {"A800", 7}, {"A30", 7},    {"A40", 7},  {"A10", 7},   {"RTX 30", 7}, {"L40", 8},
    {"L4", 8},   {"RTX 40", 8}, {"V100", 5}, {"T4", 6},    {"RTX 20", 6}, {"P100", 4},
};

static int as_errno(nvml_return result)
{
    switch (result) {
    case NVML_SUCCESS:
        return 0;
    case NVML_NOT_SUPPORTED:
        return -EOPNOTSUPP;
    case NVML_NO_PERMISSION:
        return -EACCES;
    case NVML_GPU_IS_LOST:
        return -ENODEV;
    default:
        return -EIO;
    }
}

static const char *said(const struct nvml *nvml, nvml_return result)
{
    const char *text = nvml->error_string ? nvml->error_string(result) : NULL;
    return text ? text : "error";
}

static int read_field(const struct nvml *nvml, nvml_device device, unsigned field, uint64_t *ret_value)
{
    if (!nvml->fields)
        return -EOPNOTSUPP;
    struct nvml_field value = {.field = field};
    nvml_return result = nvml->fields(device, 1, &value);
    if (result == NVML_SUCCESS)
        result = value.result;
    if (result != NVML_SUCCESS)
        return as_errno(result);
    switch (value.value_type) { /* differs by driver for the same field */
    case 0:
        *ret_value = value.value.d > 0 ? (uint64_t)value.value.d : 0;
        return 0;
    case 1:
        *ret_value = value.value.ui;
        return 0;
    case 2:
        *ret_value = value.value.ul;
        return 0;
    case 3:
        *ret_value = value.value.ull;
        return 0;
    case 4:
        *ret_value = value.value.sll > 0 ? (uint64_t)value.value.sll : 0;
        return 0;
    case 5:
        *ret_value = value.value.si > 0 ? (uint64_t)value.value.si : 0;
        return 0;
    default:
        return -EPROTO;
    }
}

static int read_energy_mj(const struct nvml *nvml, const struct board *board, uint64_t *ret_mj)
{
    if (board->energy_by_field)
        return read_field(nvml, board->handle, FIELD_TOTAL_ENERGY, ret_mj);
    if (!nvml->energy)
        return -EOPNOTSUPP;
    unsigned long long mj = 0;
    nvml_return result = nvml->energy(board->handle, &mj);
    *ret_mj = mj;
    return as_errno(result);
}

static int read_power_mw(const struct nvml *nvml, const struct board *board, uint64_t *ret_mw)
{
    if (board->power_field)
        return read_field(nvml, board->handle, board->power_field, ret_mw);
    if (!nvml->power)
        return -EOPNOTSUPP;
    unsigned mw = 0;
    nvml_return result = nvml->power(board->handle, &mw);
    *ret_mw = mw;
    return as_errno(result);
}

static const struct shape *find_shape(const struct nvml *nvml, nvml_device device, const char *name)
{
    unsigned architecture = 0;
    if (!nvml->architecture || nvml->architecture(device, &architecture) != NVML_SUCCESS)
        architecture = 0;
    for (size_t i = 0; !architecture && i < sizeof(families) / sizeof(families[0]); i++)
        if (strstr(name, families[i].name_part))
            architecture = families[i].architecture;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        if (shapes[i].architecture == architecture &&
            (!shapes[i].name_part || strstr(name, shapes[i].name_part)))
            return &shapes[i];
    return NULL;
}

static int add_energy(struct board *board, unsigned index, struct kj_power *power, struct kj_channel channel)
{
    board->energy_last_mj = board->energy_base_mj;
    kj_text(channel.name, sizeof(channel.name), "energy_counter");
    channel.kind = KJ_ENERGY_UJ;
    channel.period_ns = 100 * KJ_NS_PER_MS;
    kj_text(
        channel.basis, sizeof(channel.basis),
        "board gain 5 %% (1 sigma): SC'24 arXiv 2312.02741; renewed about every 100 ms (20 to 100): nominal");
    return kj_power_add(power, index * CHANNELS_PER_DEVICE, &channel);
}

static int add_power(const struct board *board, unsigned index, const struct shape *shape,
                     struct kj_power *power, struct kj_channel channel)
{
    bool instant = board->power_field == FIELD_POWER_INSTANT;
    kj_text(channel.name, sizeof(channel.name), "%s",
            instant                                     ? "power_instant"
            : board->power_field == FIELD_POWER_AVERAGE ? "power_average"
                                                        : "power_usage");
    channel.kind = KJ_POWER_MW;
    if (shape) {
        channel.window_ns =
            (instant ? shape->instant_window_ms : shape->average_window_ms) * (uint64_t)KJ_NS_PER_MS;
        channel.period_ns =
            (instant ? shape->instant_period_ms : shape->average_period_ms) * (uint64_t)KJ_NS_PER_MS;
    }
    kj_text(channel.basis, sizeof(channel.basis), "board gain 5 %% (1 sigma)%s: SC'24 arXiv 2312.02741",
            shape ? ", window and renewal of its architecture" : "; window unknown for this architecture");
    return kj_power_add(power, index * CHANNELS_PER_DEVICE + 1, &channel);
}

struct tally {
    unsigned boards, with_energy, with_power, mig;
    char name[96];
    char refusal[64]; /* the first of a board that lacks one of the two */
};

static void note_refusal(struct tally *tally, unsigned index, const char *what, int error)
{
    if (error && !tally->refusal[0])
        kj_text(tally->refusal, sizeof(tally->refusal), "%s of GPU %u: %s", what, index, strerror(-error));
}

static int open_board(struct nvml *nvml, unsigned index, struct kj_power *power, struct tally *tally)
{
    struct board *board = &nvml->boards[index];
    struct kj_channel channel = {.component = KJ_COMPONENT_GPU, .method = KJ_MEASURED, .gain_sd = 0.05};
    nvml_return result = nvml->handle(index, &board->handle);
    if (result == NVML_SUCCESS)
        result = nvml->uuid(board->handle, channel.device, sizeof(channel.device));
    note_refusal(tally, index, "identity", as_errno(result));
    if (result != NVML_SUCCESS)
        return as_errno(result);
    if (nvml->name && nvml->name(board->handle, channel.model, sizeof(channel.model)) != NVML_SUCCESS)
        channel.model[0] = 0;
    if (!tally->boards++)
        kj_text(tally->name, sizeof(tally->name), "%s", channel.model);
    unsigned mig = 0, pending = 0;
    tally->mig += nvml->mig_mode && nvml->mig_mode(board->handle, &mig, &pending) == NVML_SUCCESS && mig == 1;

    int error = read_energy_mj(nvml, board, &board->energy_base_mj);
    if (error) {
        board->energy_by_field = true;
        error = read_energy_mj(nvml, board, &board->energy_base_mj);
    }
    note_refusal(tally, index, "energy counter", error);
    tally->with_energy += !error;
    if (!error && add_energy(board, index, power, channel))
        return -ENOMEM;
    static const unsigned fields[] = {FIELD_POWER_INSTANT, FIELD_POWER_AVERAGE, 0};
    error = -ENODEV;
    for (size_t i = 0; i < 3 && error; i++) {
        uint64_t mw;
        board->power_field = fields[i];
        error = read_power_mw(nvml, board, &mw);
    }
    note_refusal(tally, index, "power", error);
    tally->with_power += !error;
    if (!error && add_power(board, index, find_shape(nvml, board->handle, channel.model), power, channel))
        return -ENOMEM;
    return 0;
}

static void nvml_close(void *state)
{
    struct nvml *nvml = state;
    if (!nvml)
        return;
    nvml->shutdown();
    dlclose(nvml->library);
    free(nvml);
}

/* Why the library is not there, by what else of the driver is. */
static void explain_absence(const struct kj_source_env *env, struct kj_source_status *status)
{
    char line[160];
    if (kj_root_line(env->root, line, sizeof(line), "/proc/driver/nvidia/version") == 0) {
        kj_text(status->reason, sizeof(status->reason),
                "the NVIDIA kernel driver is loaded, but libnvidia-ml.so.1 is not found");
        kj_text(status->remedy, sizeof(status->remedy),
                "in a container: docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility ...; "
                "else install the driver's libnvidia-compute package");
    } else {
        kj_text(status->reason, sizeof(status->reason),
                "libnvidia-ml.so.1 is not found and no NVIDIA kernel driver is loaded");
        kj_text(status->remedy, sizeof(status->remedy),
                "with an NVIDIA GPU: install its driver (in a container: docker run --gpus all ...)");
    }
}

static int load(struct nvml *nvml, const struct kj_source_env *env, struct kj_source_status *status)
{
    nvml->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!nvml->library) {
        explain_absence(env, status);
        return -ENOENT;
    }
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        void *address = dlsym(nvml->library, symbols[i].symbol);
        memcpy((char *)nvml + symbols[i].offset, &address, sizeof(address));
        if (!address && symbols[i].required) {
            kj_text(status->reason, sizeof(status->reason), "libnvidia-ml.so.1 has no %s: driver too old",
                    symbols[i].symbol);
            kj_text(status->remedy, sizeof(status->remedy), "install a newer NVIDIA driver");
            dlclose(nvml->library);
            return -ENOSYS;
        }
    }
    nvml_return result = nvml->init();
    if (result == NVML_SUCCESS)
        return 0;
    kj_text(status->reason, sizeof(status->reason), "nvmlInit_v2 says: %s", said(nvml, result));
    kj_text(status->remedy, sizeof(status->remedy), "nvidia-smi (it fails the same way and says more)");
    dlclose(nvml->library);
    return -EIO;
}

static void describe(const struct nvml *nvml, const struct tally *tally, struct kj_source_status *status)
{
    char version[80] = "unknown";
    if (nvml->driver_version && nvml->driver_version(version, sizeof(version)) != NVML_SUCCESS)
        kj_text(version, sizeof(version), "unknown");
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
    int error = load(nvml, env, status);
    if (error) {
        free(nvml);
        return error;
    }
    struct tally tally = {0};
    if (nvml->count(&nvml->devices) != NVML_SUCCESS)
        nvml->devices = 0;
    if (nvml->devices > DEVICES_MAX)
        nvml->devices = DEVICES_MAX;
    for (unsigned i = 0; !error && i < nvml->devices; i++) {
        if (open_board(nvml, i, power, &tally) == -ENOMEM)
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
    if (slot % CHANNELS_PER_DEVICE)
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

const struct kj_source_ops kj_source_nvml = {
    .name = "nvml", .open = nvml_open, .read = nvml_read, .close = nvml_close};
