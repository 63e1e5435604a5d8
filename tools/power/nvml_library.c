/* SPDX-License-Identifier: Apache-2.0
 *
 * nvml_library.c - finds NVML, and reads its values.
 */
#include "power/nvml_library.h"

#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *symbol;
    size_t offset;
    bool required;
} symbols[] = {
    {"nvmlInit_v2", offsetof(struct nvml_library, init), true},
    {"nvmlShutdown", offsetof(struct nvml_library, shutdown), true},
    {"nvmlSystemGetDriverVersion", offsetof(struct nvml_library, driver_version), false},
    {"nvmlDeviceGetCount_v2", offsetof(struct nvml_library, count), true},
    {"nvmlDeviceGetHandleByIndex_v2", offsetof(struct nvml_library, handle), true},
    {"nvmlDeviceGetUUID", offsetof(struct nvml_library, uuid), true},
    {"nvmlDeviceGetName", offsetof(struct nvml_library, name), false},
    {"nvmlDeviceGetTotalEnergyConsumption", offsetof(struct nvml_library, energy), false},
    {"nvmlDeviceGetPowerUsage", offsetof(struct nvml_library, power), false},
    {"nvmlDeviceGetFieldValues", offsetof(struct nvml_library, fields), false},
    {"nvmlDeviceGetSamples", offsetof(struct nvml_library, samples), false},
    {"nvmlDeviceGetArchitecture", offsetof(struct nvml_library, architecture), false},
    {"nvmlDeviceGetEnforcedPowerLimit", offsetof(struct nvml_library, power_limit), false},
    {"nvmlDeviceGetMigMode", offsetof(struct nvml_library, mig_mode), false},
    {"nvmlDeviceGetPciInfo_v3", offsetof(struct nvml_library, pci), false},
    {"nvmlDeviceGetComputeRunningProcesses_v3", offsetof(struct nvml_library, processes3), false},
    {"nvmlDeviceGetComputeRunningProcesses_v2", offsetof(struct nvml_library, processes2), false},
    {"nvmlErrorString", offsetof(struct nvml_library, error_string), false},
};

int kj_nvml_errno(nvml_return result)
{
    switch (result) {
    case NVML_SUCCESS:
        return 0;
    case NVML_NOT_SUPPORTED:
        return -EOPNOTSUPP;
    case NVML_NOT_FOUND:
        return -ENOENT;
    case NVML_NO_PERMISSION:
        return -EACCES;
    case NVML_GPU_IS_LOST:
        return -ENODEV;
    default:
        return -EIO;
    }
}

const char *kj_nvml_said(const struct nvml_library *nvml, nvml_return result)
{
    const char *text = nvml->error_string ? nvml->error_string(result) : NULL;
    return text ? text : "error";
}

int kj_nvml_value(unsigned type, const union nvml_value *value, uint64_t *ret_value)
{
    switch (type) {
    case 0:
        *ret_value = value->d > 0 ? (uint64_t)value->d : 0;
        return 0;
    case 1:
        *ret_value = value->ui;
        return 0;
    case 2:
        *ret_value = value->ul;
        return 0;
    case 3:
        *ret_value = value->ull;
        return 0;
    case 4:
        *ret_value = value->sll > 0 ? (uint64_t)value->sll : 0;
        return 0;
    case 5:
        *ret_value = value->si > 0 ? (uint64_t)value->si : 0;
        return 0;
    default:
        return -EPROTO;
    }
}

int kj_nvml_field(const struct nvml_library *nvml, nvml_device device, unsigned field, uint64_t *ret_value)
{
    if (!nvml->fields)
        return -EOPNOTSUPP;
    struct nvml_field value = {.field = field};
    nvml_return result = nvml->fields(device, 1, &value);
    if (result == NVML_SUCCESS)
        result = value.result;
    if (result != NVML_SUCCESS)
        return kj_nvml_errno(result);
    return kj_nvml_value(value.value_type, &value.value, ret_value);
}

void kj_nvml_driver(const struct nvml_library *nvml, char *ret_version, size_t size)
{
    if (!nvml->driver_version || nvml->driver_version(ret_version, (unsigned)size) != NVML_SUCCESS)
        ret_version[0] = 0;
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

int kj_nvml_load(struct nvml_library *nvml, const struct kj_source_env *env, struct kj_source_status *status)
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
    kj_text(status->reason, sizeof(status->reason), "nvmlInit_v2 says: %s", kj_nvml_said(nvml, result));
    kj_text(status->remedy, sizeof(status->remedy), "nvidia-smi (it fails the same way and says more)");
    dlclose(nvml->library);
    return -EIO;
}

void kj_nvml_unload(struct nvml_library *nvml)
{
    nvml->shutdown();
    dlclose(nvml->library);
}
