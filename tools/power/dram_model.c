/* SPDX-License-Identifier: Apache-2.0
 *
 * dram_model.c - memory power where no sensor tells: watts per GiB fitted, whatever the load. Published rules
 * differ ninefold, and the bounds say so.
 */
#include "power/source.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

/* Between Green Algorithms' present rule (0.08 W/GB) and its former one (0.3725 W/GB, also Cloud Carbon
 * Footprint's): their geometric mean, and they as the bounds. CodeCarbon 3 lies between for all but the
 * largest nodes. */
#define MW_PER_GIB  170.0
#define LOW_FACTOR  (80.0 / MW_PER_GIB)
#define HIGH_FACTOR (375.0 / MW_PER_GIB)

struct dram_model {
    double power_mw;
    uint64_t begin_ns;
};

static int read_memory_kib(const char *root, uint64_t *ret_kib)
{
    char path[PATH_MAX], *text;
    if (snprintf(path, sizeof(path), "%s/proc/meminfo", root) >= (int)sizeof(path))
        return -ENAMETOOLONG;
    int error = kj_file_read(AT_FDCWD, path, 1 << 20, &text, NULL);
    if (error)
        return error;
    const char *total = strstr(text, "MemTotal:");
    *ret_kib = total ? strtoull(total + 9, NULL, 10) : 0;
    free(text);
    return *ret_kib ? 0 : -EPROTO;
}

static int dram_model_open(const struct kj_source_env *env, struct kj_power *power,
                           struct kj_source_status *status, void **ret_state)
{
    uint64_t kib = 0;
    int error = read_memory_kib(env->root, &kib);
    if (error) {
        kj_text(status->reason, sizeof(status->reason), "/proc/meminfo tells no MemTotal: %s",
                strerror(-error));
        return error;
    }
    struct dram_model *model = malloc(sizeof(*model));
    if (!model)
        return -ENOMEM;
    double gib = (double)kib / (1 << 20);
    model->power_mw = gib * MW_PER_GIB;
    model->begin_ns = kj_power_now_ns();
    struct kj_channel channel = {.component = KJ_COMPONENT_DRAM,
                                 .kind = KJ_ENERGY_UJ,
                                 .method = KJ_MODELLED,
                                 .low_factor = LOW_FACTOR,
                                 .high_factor = HIGH_FACTOR};
    kj_text(channel.name, sizeof(channel.name), "capacity_model");
    kj_text(channel.device, sizeof(channel.device), "dram-0");
    kj_text(channel.basis, sizeof(channel.basis),
            "%.1f GiB x %.2f W/GiB (0.08 to 0.375: Green Algorithms now and before, Cloud Carbon Footprint)",
            gib, MW_PER_GIB / 1000);
    error = kj_power_add(power, 0, &channel);
    if (error) {
        free(model);
        return error;
    }
    kj_text(status->reason, sizeof(status->reason), "modelled, %.1f to %.1f times: %.1f GiB, %.1f W",
            LOW_FACTOR, HIGH_FACTOR, gib, model->power_mw / 1000);
    *ret_state = model;
    return 0;
}

static int dram_model_read(void *state, uint32_t slot, uint64_t *ret_value)
{
    const struct dram_model *model = state;
    (void)slot;
    *ret_value = (uint64_t)(model->power_mw * (double)(kj_power_now_ns() - model->begin_ns) * 1e-6);
    return 0;
}

const struct kj_source_ops kj_source_dram_model = {
    .name = "dram_model", .open = dram_model_open, .read = dram_model_read, .close = free};
