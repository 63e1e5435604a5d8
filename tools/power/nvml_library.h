/* SPDX-License-Identifier: Apache-2.0
 *
 * nvml_library.h - libnvidia-ml.so.1, found at run time. Declared here, from the public ABI, so that no
 * header is needed. Private to this room.
 */
#ifndef KJ_NVML_LIBRARY_H
#define KJ_NVML_LIBRARY_H

#include "power/source.h"

typedef int nvml_return;
typedef struct nvml_device_handle *nvml_device;

enum {
    NVML_SUCCESS = 0,
    NVML_NOT_SUPPORTED = 3,
    NVML_NO_PERMISSION = 4,
    NVML_NOT_FOUND = 6,
    NVML_INSUFFICIENT_SIZE = 7,
    NVML_GPU_IS_LOST = 15,
};
enum { NVML_FIELD_TOTAL_ENERGY = 83, NVML_FIELD_POWER_AVERAGE = 185, NVML_FIELD_POWER_INSTANT = 186 };
enum { NVML_SAMPLES_TOTAL_POWER = 0, NVML_SAMPLES_CAP = 512, NVML_PROCESSES_CAP = 64 };

/* nvmlValue_t */
union nvml_value {
    double d;
    unsigned ui;
    unsigned long ul;
    unsigned long long ull;
    long long sll;
    int si;
    unsigned short us;
};

/* nvmlFieldValue_t */
struct nvml_field {
    unsigned field, scope;
    long long timestamp, latency_us;
    unsigned value_type;
    nvml_return result;
    union nvml_value value;
};

/* nvmlSample_t */
struct nvml_sample {
    unsigned long long timestamp_us; /* of which clock differs by driver */
    union nvml_value value;
};

/* nvmlPciInfo_t */
struct nvml_pci {
    char legacy_text[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char text[32];
};

/* nvmlProcessInfo_t, as of ..._v2 and _v3 */
struct nvml_process {
    unsigned pid;
    unsigned long long used_bytes;
    unsigned gpu_instance, compute_instance;
};

struct nvml_library {
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
    nvml_return (*samples)(nvml_device, int, unsigned long long, int *, unsigned *, struct nvml_sample *);
    nvml_return (*architecture)(nvml_device, unsigned *);
    nvml_return (*power_limit)(nvml_device, unsigned *); /* mW */
    nvml_return (*mig_mode)(nvml_device, unsigned *, unsigned *);
    nvml_return (*pci)(nvml_device, struct nvml_pci *);
    nvml_return (*processes3)(nvml_device, unsigned *, struct nvml_process *);
    nvml_return (*processes2)(nvml_device, unsigned *, struct nvml_process *);
    const char *(*error_string)(nvml_return);
};

/* Loads and initialises. Negative errno: status says why and what mends it. */
int kj_nvml_load(struct nvml_library *nvml, const struct kj_source_env *env, struct kj_source_status *status);
void kj_nvml_unload(struct nvml_library *nvml);

int kj_nvml_errno(nvml_return result);
const char *kj_nvml_said(const struct nvml_library *nvml, nvml_return result);
/* As an unsigned number, by nvmlValueType_t; the type differs by driver for the same field. -EPROTO. */
int kj_nvml_value(unsigned type, const union nvml_value *value, uint64_t *ret_value);
int kj_nvml_field(const struct nvml_library *nvml, nvml_device device, unsigned field, uint64_t *ret_value);
/* "580.65.06"; "" unknown. */
void kj_nvml_driver(const struct nvml_library *nvml, char *ret_version, size_t size);

#endif
