/* SPDX-License-Identifier: Apache-2.0
 *
 * gpu_sensors.h - what is published of the power sensors of NVIDIA boards (gpu_sensors.def). Private to this
 * room and its tests.
 */
#ifndef KJ_GPU_SENSORS_H
#define KJ_GPU_SENSORS_H

#include "power/power.h"

/* nvmlDeviceArchitecture_t */
enum kj_gpu_architecture {
    KJ_ARCH_UNKNOWN = 0,
    KJ_ARCH_KEPLER = 2,
    KJ_ARCH_MAXWELL = 3,
    KJ_ARCH_PASCAL = 4,
    KJ_ARCH_VOLTA = 5,
    KJ_ARCH_TURING = 6,
    KJ_ARCH_AMPERE = 7,
    KJ_ARCH_ADA = 8,
    KJ_ARCH_HOPPER = 9,
};

enum kj_gpu_field { KJ_GPU_COUNTER, KJ_GPU_USAGE, KJ_GPU_AVERAGE, KJ_GPU_INSTANT, KJ_GPU_RING };

struct kj_gpu_board {
    unsigned architecture; /* as NVML says; 0: it does not, and the name decides */
    unsigned driver_major; /* 0 unknown */
    const char *name;
};

/* Fills in window, period, delay, kernel, gain and its spread, shape and basis of the channel. What no row
 * tells stays 0, and shape is KJ_ORIGIN_INFERRED. */
void kj_gpu_sensor_shape(const struct kj_gpu_board *board, enum kj_gpu_field field,
                         struct kj_channel *channel);

#endif
