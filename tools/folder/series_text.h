/* SPDX-License-Identifier: Apache-2.0
 *
 * series_text.h - the lines of a series file, shared by its writer and its reader. Inside the room only.
 */
#ifndef KJ_SERIES_TEXT_H
#define KJ_SERIES_TEXT_H

#include "folder/series.h"

#include <stdio.h>

#define KJ_SERIES_SCHEMA "kjoule.series/1"
#define KJ_SERIES_PREFIX "series."
#define KJ_SERIES_SUFFIX ".csv"

/* The whole line, with its newline, and where the sensor has a shape a second one with that. */
void kj_series_format_channel(const struct kj_channel *channel, char *ret_line, size_t size);
/* The channel's points folded into buckets, as "m" lines; its "lost" line, if any. */
void kj_series_print_thinned(const struct kj_series_channel *channel, uint64_t width_ns, FILE *out);
/* One file alone. */
int kj_series_read_file(int dir_fd, const char *name, struct kj_series **ret_series);

#endif
