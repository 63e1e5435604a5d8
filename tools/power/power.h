/* SPDX-License-Identifier: Apache-2.0
 *
 * power.h - where joules and watts come from.
 *
 * Sources stand in one table (power.c): nvml, rapl_perf, rapl_powercap, hwmon, dcmi,
 * cpu_model, dram_model, replay.
 * Each is opened in order; all that work are kept, side by side, and each that refuses keeps its reason and
 * the command that would mend it. A source offers channels. A channel is one quantity of one component:
 * "energy counter of GPU-...".
 *
 * Threads: a struct kj_power belongs to one thread. Nothing here runs inside the measured program.
 */
#ifndef KJ_POWER_H
#define KJ_POWER_H

#include "base/log.h"
#include "base/units.h"
#include "model/attribution.h" /* enum kj_sensor_kernel */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum kj_component {
    KJ_COMPONENT_GPU = 1,
    KJ_COMPONENT_CPU = 2, /* one package */
    KJ_COMPONENT_DRAM = 3,
    KJ_COMPONENT_NODE = 4, /* psys, hwmon or IPMI of the whole machine, or AMD's cores within their package:
                              beside the parts, never added to them */
};

enum kj_quantity_kind {
    KJ_ENERGY_UJ = 1, /* cumulative since the channel was opened; the source unwraps */
    KJ_POWER_MW = 2,  /* at, or averaged over a window before, the sample's time */
    /* Not power, but sampled beside it, by the recorder only: */
    KJ_CPU_BUSY_NS = 3, /* cumulative CPU time */
    KJ_CPU_CYCLES = 4,  /* cumulative cycles of CPUs */
};

/* Where what is known of a sensor's shape comes from. */
enum kj_shape_origin {
    KJ_ORIGIN_NONE = 0,       /* nothing to know: no averaging sensor */
    KJ_ORIGIN_INFERRED = 1,   /* unknown, found from the run's own readings */
    KJ_ORIGIN_TABLE = 2,      /* published for boards of its kind: gpu_sensors.def */
    KJ_ORIGIN_CALIBRATED = 3, /* measured on this very board by `kjoule calibrate` */
};
const char *kj_shape_origin_name(enum kj_shape_origin source);   /* "none" "inferred" "table" "calibrated" */
const char *kj_sensor_kernel_name(enum kj_sensor_kernel kernel); /* "box" "lag" */

/* One quantity of one component. Plain data: copied into the run folder as it is. */
struct kj_channel {
    uint32_t id;     /* index, dense from 0, stable for the run */
    char source[24]; /* "nvml", "rapl_perf", ... */
    char name[48];   /* within the source: "energy_counter", "power_instant", "package" */
    char device[64]; /* "GPU-<uuid>", "package-0", "dram-0", "node" */
    char model[96];  /* "NVIDIA H100 80GB HBM3", CPU model name; "" unknown */
    char pci[20];    /* of a GPU: "0:18:0", domain, bus and device in hexadecimal; "" unknown */
    enum kj_component component;
    enum kj_quantity_kind kind;
    enum kj_method method;
    double gain_sd; /* relative 1-sigma systematic error of the sensor, e.g. 0.05; around gain_mean */
    double low_factor,
        high_factor;    /* 90 % bounds as factors of the reading, for modelled channels; 1,1 otherwise */
    uint64_t window_ns; /* averaging window, 0 unknown or not applicable. Of a counter: it sees only this much
                           of each period */
    uint64_t period_ns; /* how often the sensor renews its value, 0 unknown */
    char basis[160];    /* where gain_sd, window, model constants come from */
    /* More of a GPU sensor's shape. All zero: nothing is known. */
    enum kj_shape_origin shape;
    enum kj_sensor_kernel kernel; /* of a lag, window_ns is the time constant */
    uint64_t delay_ns;            /* the window ends this long before the value appears */
    double gain;                  /* by the user's own meter: true = reading / gain. 0: none was given */
    double gain_mean;             /* what is left: (reading / gain) / true is about N(gain_mean, gain_sd); 0
                                     counts as 1 */
    double noise_mw;              /* 1 sigma of a reading, 0 unknown */
    double delay_sd_ns;           /* 1 sigma of delay_ns; 0: not known */
    double limit_mw; /* no board power above, as the sensor reads it, when the run began; 0 unknown */
};

/* Whether the times of its samples are the sensor's own, not those of the looks at it: a ring of the
 * driver's. */
bool kj_channel_own_times(const struct kj_channel *channel);

/* The shape as a whole line "shape,..." of a series file, and back from the line's fields: -EINVAL when it
 * makes no sense, and then the channel is untouched. Fields beyond those known are of later versions. */
int kj_shape_format(const struct kj_channel *channel, char *ret_line, size_t size);
int kj_shape_parse(char *const *fields, size_t count, struct kj_channel *channel);

struct kj_sample {
    uint32_t channel;
    uint64_t t_ns; /* CLOCK_MONOTONIC, taken around the read; the middle */
    uint64_t value;
};

/* What became of one source: for doctor, the report's provenance and its warnings. */
struct kj_source_status {
    const char *name;
    bool accepted;
    char reason[192];  /* why refused, or what was found */
    char remedy[192];  /* the command that would mend it; "" when none is known */
    char warning[192]; /* what a user should know although it was accepted, one line; "" nothing */
};

struct kj_power_config {
    const char *replay_file; /* replace all sources by this recording; NULL otherwise */
    const char *sysfs_root;  /* "" normally; a folder holding sys/ and proc/ for tests and bind mounts */
    const char *const *only; /* NULL-terminated source names to allow, NULL for all */
    bool eager;              /* reading may cost half of the time: to see each update, for a minute */
};

struct kj_power;

/* Opens all sources. Succeeds even when none works: then there is no channel and the statuses say why.
 * -ENOMEM; -EINVAL for an unreadable replay file (error says what). */
int kj_power_open(const struct kj_power_config *config, struct kj_power **ret_power, struct kj_error *error);
/* NULL-safe, returns NULL. */
struct kj_power *kj_power_close(struct kj_power *power);

/* Valid until close. */
size_t kj_power_channels(const struct kj_power *power, const struct kj_channel **ret_channels);
size_t kj_power_statuses(const struct kj_power *power, const struct kj_source_status **ret_statuses);

/* Power of a processor at a utilisation of 0 to 1, as a share of that at 1: the curve that models go by where
 * nothing is measured (cpu_curves.def). model_name: as /proc/cpuinfo has it; "" unknown. */
double kj_cpu_load_curve(const char *model_name, double utilisation);

/* Drops the channels of a device (another recorder of this job owns it): they stay in the list, so that
 * channels[id].id == id, and are never read again. */
void kj_power_exclude_device(struct kj_power *power, const char *device);

/* Of several channels for the same thing, those to count: one a device, measured before modelled, energy
 * counters before powers, earlier sources before later. Modelled channels count only where a component has no
 * measured one at all. Writes at most cap ids in order of device found; returns how many. Works on any list
 * of channels whose ids are their places. */
size_t kj_channels_choose(const struct kj_channel *channels, size_t count, enum kj_component component,
                          uint32_t *ret_ids, size_t cap);

/* Reads every channel that is due: energy counters, then powers. A sensor whose read is slow falls due less
 * often, so that reading costs at most one twentieth of the time. A replayed recording yields all its samples
 * up to now, moved to this clock. Returns the number of samples (0..cap); a channel that fails is left out,
 * and kj_power_lost() then names it. A channel whose counter has not moved still yields a sample. */
size_t kj_power_read(struct kj_power *power, struct kj_sample *ret_samples, size_t cap);

/* Reads one channel: 1 and a sample; 0: it is not due, or failed. -ENOTSUP: it is lost, or cannot be read
 * alone: a ring, a replayed one. */
int kj_power_read_one(struct kj_power *power, uint32_t id, struct kj_sample *ret_sample);

/* A channel that stopped answering since the last call, with its reason; false when there is none. */
bool kj_power_lost(struct kj_power *power, uint32_t *ret_channel, char *ret_reason, size_t size);

#endif
