/* SPDX-License-Identifier: Apache-2.0
 *
 * gpu.c - finds one board by NVML.
 */
#include "power/gpu.h"

#include "power/nvml_library.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void find_processes(const struct nvml_library *nvml, nvml_device device, struct kj_gpu *gpu)
{
    struct nvml_process processes[NVML_PROCESSES_CAP] = {{0}};
    unsigned count = NVML_PROCESSES_CAP;
    nvml_return (*ask)(nvml_device, unsigned *, struct nvml_process *) =
        nvml->processes3 ? nvml->processes3 : nvml->processes2;
    nvml_return result = ask ? ask(device, &count, processes) : NVML_NOT_SUPPORTED;
    gpu->processes_known = result == NVML_SUCCESS || result == NVML_INSUFFICIENT_SIZE;
    gpu->processes = gpu->processes_known ? count : 0;
    for (size_t i = 0; i < gpu->processes && i < sizeof(gpu->pids) / sizeof(gpu->pids[0]); i++)
        gpu->pids[i] = processes[i].pid;
}

static bool describe(const struct nvml_library *nvml, unsigned index, struct kj_gpu *ret_gpu)
{
    nvml_device device;
    unsigned mig = 0, pending = 0;
    *ret_gpu = (struct kj_gpu){.index = index};
    if (nvml->handle(index, &device) != NVML_SUCCESS ||
        nvml->uuid(device, ret_gpu->uuid, sizeof(ret_gpu->uuid)) != NVML_SUCCESS)
        return false;
    if (!nvml->name || nvml->name(device, ret_gpu->model, sizeof(ret_gpu->model)) != NVML_SUCCESS)
        ret_gpu->model[0] = 0;
    ret_gpu->mig = nvml->mig_mode && nvml->mig_mode(device, &mig, &pending) == NVML_SUCCESS && mig == 1;
    kj_nvml_driver(nvml, ret_gpu->driver, sizeof(ret_gpu->driver));
    find_processes(nvml, device, ret_gpu);
    return true;
}

static int choose(const struct nvml_library *nvml, const char *which, struct kj_gpu *ret_gpu,
                  struct kj_error *error)
{
    unsigned count = 0, found = 0;
    size_t length = strlen(which);
    bool by_number = strspn(which, "0123456789") == length;
    unsigned long number = by_number ? strtoul(length ? which : "0", NULL, 10) : 0;
    if (nvml->count(&count) != NVML_SUCCESS)
        count = 0;
    for (unsigned i = 0; i < count; i++) {
        struct kj_gpu gpu;
        if ((by_number && i != number) || !describe(nvml, i, &gpu) ||
            (!by_number && strncasecmp(gpu.uuid, which, length)))
            continue;
        *ret_gpu = gpu;
        found++;
    }
    if (found == 1)
        return 0;
    if (found)
        kj_error_set(error, "--device %s: the beginning of the UUIDs of %u GPUs; give more of it", which,
                     found);
    else
        kj_error_set(error,
                     "--device %s: there is no such GPU; the driver shows %u (nvidia-smi -L lists them)",
                     length ? which : "0", count);
    return found ? -EINVAL : -ENOENT;
}

int kj_gpu_find(const char *which, struct kj_gpu *ret_gpu, struct kj_error *error)
{
    const struct kj_source_env env = {.root = ""};
    struct kj_source_status status = {0};
    struct nvml_library nvml = {0};
    int result = kj_nvml_load(&nvml, &env, &status);
    if (result) {
        kj_error_set(error, "%s", status.reason);
        return -ENOENT;
    }
    result = choose(&nvml, which, ret_gpu, error);
    kj_nvml_unload(&nvml);
    return result;
}
