/* SPDX-License-Identifier: Apache-2.0
 *
 * trace.h - timelines and power logs from other tools, as plain arrays. Times are int64 nanoseconds of the
 * file's own clock. What a reader returns is owned by the caller and freed by the matching _free.
 *
 * Readers are strict: the first line that is not understood is an error of the form "FILE:LINE: what; what to
 * do" and nothing is returned. 0 or negative errno: -EINVAL bad content, -ENOMEM, or of opening the file.
 * Files are plain or gzip, regular, 2 GiB unpacked at most, and never opened through a symbolic link.
 */
#ifndef KJ_TRACE_H
#define KJ_TRACE_H

#include "base/log.h"
#include "model/attribution.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kj_trace_launch {
    int64_t start_ns, end_ns;
    uint32_t name, device; /* indices of names and devices */
    uint32_t stream;
};

struct kj_trace_timeline {
    char **names; /* as in the file, mangled or not; each once */
    size_t name_count;
    char **devices; /* as in the file; "" where it has no such column */
    size_t device_count;
    struct kj_trace_launch *launches; /* in the file's order */
    size_t launch_count;
    const char *format; /* "csv" "chrome" */
};

/* CSV by its header, or Chrome trace by its first character. A file without any launch is an error. */
int kj_trace_timeline_read(const char *path, struct kj_trace_timeline **ret_timeline, struct kj_error *error);
struct kj_trace_timeline *kj_trace_timeline_free(struct kj_trace_timeline *timeline);

struct kj_trace_reading {
    int64_t t_ns;
    uint64_t value; /* mW; counter: uJ */
};

/* One column of one device of a power log, in order of time. */
struct kj_trace_series {
    char *device;  /* "" where the log does not say */
    char *channel; /* the column: "power_mw" "energy_uj" "power.draw.instant" */
    bool counter;
    struct kj_trace_reading *readings;
    size_t count;
    double limit_mw; /* power.limit where the log has it; 0 unknown */
};

struct kj_trace_power {
    struct kj_trace_series *series;
    size_t count;
    const char *format; /* "csv" "nvidia-smi" */
    char *ignored;      /* columns that were not read, comma-separated; NULL none */
};

/* nvidia-smi writes local time without a zone: it is taken to be that of this process (TZ). Of several power
 * columns the one with the shortest window is read: power.draw.instant, power.draw, power.draw.average. */
int kj_trace_power_read(const char *path, struct kj_trace_power **ret_power, struct kj_error *error);
struct kj_trace_power *kj_trace_power_free(struct kj_trace_power *power);

#endif
