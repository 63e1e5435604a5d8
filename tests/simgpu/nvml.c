/* SPDX-License-Identifier: Apache-2.0
 *
 * nvml.c - the part of NVML that energy tools use, over the simulated machine.
 */
#include "device.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define API __attribute__((visibility("default")))
typedef int nvml_return;
typedef struct handle *nvml_device;
enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7
};
enum { FIELD_TOTAL_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186 };
enum { SAMPLES_TOTAL_POWER = 0 };
enum { TYPE_UNSIGNED = 1, TYPE_UNSIGNED_LONG_LONG = 3 };

/* nvmlFieldValue_t */
struct field {
    unsigned id, scope;
    long long timestamp_us, latency_us;
    unsigned type;
    nvml_return result;
    union {
        unsigned ui;
        unsigned long long ull;
    } value;
};

static int started;

#define EXPORTED(name, ...) API nvml_return name(__VA_ARGS__)
#define DEVICE(handle)                                                                                       \
    int device = (int)(uintptr_t)(handle)-1;                                                                 \
    if (!started)                                                                                            \
        return UNINITIALIZED;                                                                                \
    if (device < 0 || device >= sim_machine()->script.devices)                                               \
    return INVALID_ARGUMENT

EXPORTED(nvmlInit_v2, void)
{
    sim_machine();
    __atomic_fetch_add(&started, 1, __ATOMIC_RELAXED);
    return SUCCESS;
}
EXPORTED(nvmlInit, void)
{
    return nvmlInit_v2();
}
EXPORTED(nvmlInitWithFlags, unsigned flags)
{
    (void)flags;
    return nvmlInit_v2();
}
EXPORTED(nvmlShutdown, void)
{
    if (!started)
        return UNINITIALIZED;
    __atomic_fetch_sub(&started, 1, __ATOMIC_RELAXED);
    return SUCCESS;
}

API const char *nvmlErrorString(nvml_return rc)
{
    static const char *const texts[] = {"Success", "Uninitialized", "Invalid Argument", "Not Supported"};
    return rc >= 0 && rc < 4 ? texts[rc] : "Unknown Error";
}

static nvml_return text(const char *from, char *to, unsigned size)
{
    if (strlen(from) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

EXPORTED(nvmlSystemGetDriverVersion, char *version, unsigned size)
{
    return text(sim_machine()->script.driver, version, size);
}
EXPORTED(nvmlSystemGetNVMLVersion, char *version, unsigned size)
{
    char line[96];
    snprintf(line, sizeof(line), "13.%s", sim_machine()->script.driver);
    return text(line, version, size);
}
EXPORTED(nvmlSystemGetCudaDriverVersion, int *version)
{
    *version = sim_machine()->script.driver_version;
    return SUCCESS;
}
EXPORTED(nvmlSystemGetCudaDriverVersion_v2, int *version)
{
    return nvmlSystemGetCudaDriverVersion(version);
}

EXPORTED(nvmlDeviceGetCount_v2, unsigned *count)
{
    *count = (unsigned)sim_machine()->script.devices;
    return started ? SUCCESS : UNINITIALIZED;
}
EXPORTED(nvmlDeviceGetCount, unsigned *count)
{
    return nvmlDeviceGetCount_v2(count);
}

EXPORTED(nvmlDeviceGetHandleByIndex_v2, unsigned index, nvml_device *handle)
{
    *handle = (nvml_device)(uintptr_t)(index + 1);
    DEVICE(*handle);
    return SUCCESS;
}
EXPORTED(nvmlDeviceGetHandleByIndex, unsigned index, nvml_device *handle)
{
    return nvmlDeviceGetHandleByIndex_v2(index, handle);
}

/* ---- MIG: an instance's handle is a number above those of boards, and has no sensors
 * -------------------------------------------------- */

enum { INSTANCES = 0x1000, INSTANCES_MOST = 7 };

static bool find_instance(nvml_device handle, int *ret_board, int *ret_instance)
{
    int number = (int)(uintptr_t)handle - INSTANCES;
    *ret_board = number / 16;
    *ret_instance = number % 16;
    return number >= 0 && *ret_board < sim_machine()->script.devices &&
           *ret_instance < sim_machine()->script.mig_instances;
}

EXPORTED(nvmlDeviceGetMigMode, nvml_device handle, unsigned *current, unsigned *pending)
{
    DEVICE(handle);
    *current = *pending = sim_machine()->script.mig_instances > 0;
    return SUCCESS;
}
EXPORTED(nvmlDeviceGetMaxMigDeviceCount, nvml_device handle, unsigned *count)
{
    DEVICE(handle);
    *count = INSTANCES_MOST;
    return SUCCESS;
}
EXPORTED(nvmlDeviceGetMigDeviceHandleByIndex, nvml_device handle, unsigned index, nvml_device *ret_instance)
{
    DEVICE(handle);
    if (index >= sim_machine()->script.mig_instances)
        return NOT_FOUND;
    *ret_instance = (nvml_device)(uintptr_t)(INSTANCES + device * 16 + (int)index);
    return SUCCESS;
}
EXPORTED(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, nvml_device handle, nvml_device *ret_board)
{
    int board, instance;
    if (!find_instance(handle, &board, &instance))
        return INVALID_ARGUMENT;
    *ret_board = (nvml_device)(uintptr_t)(board + 1);
    return SUCCESS;
}
EXPORTED(nvmlDeviceIsMigDeviceHandle, nvml_device handle, unsigned *ret_is)
{
    int board, instance;
    *ret_is = find_instance(handle, &board, &instance);
    return SUCCESS;
}

/* nvmlPciInfo_t */
struct pci {
    char legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char text[32];
};
EXPORTED(nvmlDeviceGetPciInfo_v3, nvml_device handle, struct pci *ret)
{
    DEVICE(handle);
    *ret =
        (struct pci){.bus = (unsigned)(0x18 + device), .device_id = 0x233010DE, .subsystem_id = 0x16C110DE};
    snprintf(ret->legacy, sizeof(ret->legacy), "0000:%02X:00.0", (unsigned char)ret->bus);
    snprintf(ret->text, sizeof(ret->text), "00000000:%02X:00.0", ret->bus);
    return SUCCESS;
}

EXPORTED(nvmlDeviceGetUUID, nvml_device handle, char *uuid, unsigned size)
{
    uint8_t bytes[16];
    char line[SIM_UUID_TEXT];
    int board, instance;
    if (started && find_instance(handle, &board, &instance)) {
        sim_instance_uuid(board, instance, bytes);
        sim_uuid_text("MIG", bytes, line);
        return text(line, uuid, size);
    }
    DEVICE(handle);
    sim_uuid(device, bytes);
    sim_uuid_text("GPU", bytes, line);
    return text(line, uuid, size);
}

EXPORTED(nvmlDeviceGetHandleByUUID, const char *uuid, nvml_device *handle)
{
    char line[64];
    for (int i = 0; i < sim_machine()->script.devices; i++) {
        *handle = (nvml_device)(uintptr_t)(i + 1);
        if (!nvmlDeviceGetUUID(*handle, line, sizeof(line)) && !strcmp(line, uuid))
            return SUCCESS;
    }
    for (int i = 0; i < sim_machine()->script.devices * 16; i++) {
        *handle = (nvml_device)(uintptr_t)(INSTANCES + i);
        int board, instance;
        if (find_instance(*handle, &board, &instance) && !nvmlDeviceGetUUID(*handle, line, sizeof(line)) &&
            !strcmp(line, uuid))
            return SUCCESS;
    }
    return NOT_FOUND;
}

EXPORTED(nvmlDeviceGetName, nvml_device handle, char *name, unsigned size)
{
    DEVICE(handle);
    return text(sim_machine()->script.board, name, size);
}
EXPORTED(nvmlDeviceGetIndex, nvml_device handle, unsigned *index)
{
    DEVICE(handle);
    *index = (unsigned)device;
    return SUCCESS;
}
EXPORTED(nvmlDeviceGetArchitecture, nvml_device handle, unsigned *architecture)
{
    DEVICE(handle);
    *architecture = (unsigned)sim_machine()->script.architecture;
    if (!*architecture)
        return NOT_SUPPORTED;
    return SUCCESS;
}
EXPORTED(nvmlDeviceGetMemoryInfo, nvml_device handle, unsigned long long *info)
{
    DEVICE(handle);
    info[0] = 80ull << 30;
    info[2] = sim_machine()->device[device].memory_used;
    info[1] = info[0] - info[2];
    return SUCCESS;
}
EXPORTED(nvmlDeviceGetEnforcedPowerLimit, nvml_device handle, unsigned *mw)
{
    DEVICE(handle);
    *mw = (unsigned)(sim_machine()->script.cap_w * 1e3);
    return SUCCESS;
}
EXPORTED(nvmlDeviceGetPowerManagementLimit, nvml_device handle, unsigned *mw)
{
    return nvmlDeviceGetEnforcedPowerLimit(handle, mw);
}

EXPORTED(nvmlDeviceGetTotalEnergyConsumption, nvml_device handle, unsigned long long *mj)
{
    DEVICE(handle);
    if (sim_machine()->script.refuse_counter)
        return NOT_SUPPORTED;
    *mj = sim_counter_mj(device);
    return SUCCESS;
}
EXPORTED(nvmlDeviceGetPowerUsage, nvml_device handle, unsigned *mw)
{
    DEVICE(handle);
    if (sim_machine()->script.refuse_power)
        return NOT_SUPPORTED;
    *mw = sim_power_mw(device);
    return SUCCESS;
}

EXPORTED(nvmlDeviceGetFieldValues, nvml_device handle, int count, struct field *fields)
{
    DEVICE(handle);
    for (int i = 0; i < count; i++) {
        struct field *f = &fields[i];
        f->timestamp_us = (long long)(sim_now_ns() / 1000);
        f->latency_us = 0;
        f->result = NOT_SUPPORTED;
        if (f->id == FIELD_TOTAL_ENERGY) {
            f->type = TYPE_UNSIGNED_LONG_LONG;
            f->result = nvmlDeviceGetTotalEnergyConsumption(handle, &f->value.ull);
        } else if (f->id == FIELD_POWER_INSTANT || f->id == FIELD_POWER_AVERAGE) {
            f->type = TYPE_UNSIGNED;
            f->result = nvmlDeviceGetPowerUsage(handle, &f->value.ui);
        }
    }
    return SUCCESS;
}

/* nvmlSample_t */
struct sample {
    unsigned long long timestamp_us;
    union {
        unsigned ui;
        unsigned long long ull;
    } value;
};

EXPORTED(nvmlDeviceGetSamples, nvml_device handle, int kind, unsigned long long after_us, int *type,
         unsigned *count, struct sample *samples)
{
    struct sim_ring_sample ring[SIM_RING];
    struct timespec t;
    DEVICE(handle);
    if (kind != SAMPLES_TOTAL_POWER || sim_machine()->script.refuse_ring)
        return NOT_SUPPORTED;
    clock_gettime(sim_machine()->script.ring_clock, &t);
    long long ahead_ns = (long long)t.tv_sec * 1000000000 + t.tv_nsec - (long long)sim_now_ns();
    long long after_ns = (long long)after_us * 1000 - ahead_ns;
    uint32_t found = sim_ring(device, after_us && after_ns > 0 ? (uint64_t)after_ns : 0, ring, SIM_RING);
    if (!samples) {
        *count = SIM_RING;
        return SUCCESS;
    }
    if (!found)
        return NOT_FOUND;
    if (*count < found)
        return INSUFFICIENT_SIZE;
    *type = TYPE_UNSIGNED;
    *count = found;
    for (uint32_t i = 0; i < found; i++)
        samples[i] =
            (struct sample){(unsigned long long)((long long)ring[i].t_ns + ahead_ns) / 1000, {ring[i].mw}};
    return SUCCESS;
}

/* nvmlProcessInfo_t */
struct process {
    unsigned pid;
    unsigned long long used_bytes;
    unsigned gpu_instance, compute_instance;
};

EXPORTED(nvmlDeviceGetComputeRunningProcesses_v3, nvml_device handle, unsigned *count,
         struct process *processes)
{
    unsigned found = 0, room = *count;
    DEVICE(handle);
    const struct sim_device *d = &sim_machine()->device[device];
    sim_bury(&sim_machine()->device[device]);
    for (int i = 0; i < SIM_CONTEXTS; i++) {
        if (!d->context_pid[i])
            continue;
        if (found < room && processes)
            processes[found] = (struct process){.pid = (unsigned)d->context_pid[i]};
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}
