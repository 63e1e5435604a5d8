/* SPDX-License-Identifier: Apache-2.0
 *
 * series.h - the sampled quantities of a run: which channels there are, and what they read when.
 *
 * On disk (files "series.<nnn>.csv" in the run folder) a text that an auditor can read, appended line by
 * line, each line written whole by one write(2), so that a kill loses at most the lines not yet written (the
 * recorder writes at least once a second) and a torn last line is recognised and dropped: kjoule.series/1
 *     channel,<id>,<source>,<name>,<device>,<model>,<component>,<kind>,<method>,<gain_sd>,<low>,<high>,<window_ns>,<period_ns>,<basis>
 *     shape,<channel>,<none|inferred|table|calibrated>,<box|lag>,<delay_ns>,<gain>,<gain_mean>,<noise_mw>,<limit_mw>,<delay_sd_ns>
 *     board,<channel>,pci,<address>
 *     s,<channel>,<t_ns>,<value>
 *     m,<channel>,<t_first_ns>,<t_last_ns>,<n>,<first>,<min>,<mean>,<max>,<last>     thinned: n samples
 * folded into one lost,<channel>,<t_ns>,<reason>
 * A board line is of a GPU, where it is known. A shape line is of a GPU sensor, after its channel line;
 * readers older than it, or than its last field, skip that. Text fields are escaped: comma, newline,
 * backslash and control bytes as \xHH.
 *
 * A long run stays bounded: when the files pass the cap (64 MiB), the oldest are thinned, first to 1 s, then
 * to 10 s, then to 100 s.
 */
#ifndef KJ_SERIES_H
#define KJ_SERIES_H

#include "power/power.h"

/* Besides the power channels the recorder adds its own, of kind KJ_CPU_BUSY_NS and source "proc":
 *   name "tree",  device "tree":  CPU time of the run's process tree, user + system, all its processes dead
 * or alive name "node",  device "node":  busy CPU time of the machine (or of the cgroup's quota), all
 * processes name "cores", device "node":  CPU time on offer: elapsed time x cores that the run may use
 */

struct kj_series_writer;
int kj_series_create(int dir_fd, const struct kj_channel *channels, size_t count,
                     struct kj_series_writer **ret_writer);
int kj_series_append(struct kj_series_writer *writer, const struct kj_sample *samples, size_t count);
int kj_series_lost(struct kj_series_writer *writer, uint32_t channel, uint64_t t_ns, const char *reason);
/* Writes out what is buffered; call at least once a second. */
int kj_series_flush(struct kj_series_writer *writer);
struct kj_series_writer *kj_series_close(struct kj_series_writer *writer);

/* One channel, read back. Points are in order of time; thinned points carry their spread. */
struct kj_series_point {
    uint64_t t_ns;
    uint64_t value; /* energy: at t_ns; power: mean since the previous point when n > 1 */
    uint64_t min, max;
    uint32_t n;
};
struct kj_series_channel {
    struct kj_channel channel;
    struct kj_series_point *points;
    size_t count;
    uint64_t lost_ns; /* 0, or when the sensor stopped answering */
    char lost_reason[160];
};
struct kj_series {
    struct kj_series_channel *channels;
    size_t count;
    size_t bad_lines;    /* lines that could not be understood, a torn last one not counted */
    char first_bad[160]; /* "series.000.csv line 12: ..." */
};
/* Reads all series files of a folder. A corrupt line is counted and skipped. -ENOENT when there is none. */
int kj_series_read(int dir_fd, struct kj_series **ret_series, struct kj_error *error);
struct kj_series *kj_series_free(struct kj_series *series);

#endif
