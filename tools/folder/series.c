/* SPDX-License-Identifier: Apache-2.0
 *
 * series.c - writing the sampled channels of a run: whole lines, at least once a second, in files that stay
 * bounded.
 */
#include "folder/series.h"

#include "base/file.h"
#include "folder/csv.h"
#include "folder/series_text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_BYTES  (4u << 20)  /* a file is closed and the next begun */
#define TOTAL_BYTES (64u << 20) /* above: the oldest are thinned */
#define FILES_CAP   1000
#define LINE_CAP    2600

/* Bucket widths that a file is thinned to, one step at a time. */
static const uint64_t thinning_ns[] = {0, KJ_NS_PER_S, 10 * KJ_NS_PER_S, 100 * KJ_NS_PER_S};
#define THINNEST (sizeof(thinning_ns) / sizeof(*thinning_ns) - 1)

struct kj_series_writer {
    int dir_fd, fd;
    struct kj_channel *channels;
    size_t count;
    unsigned number; /* of the open file */
    uint64_t size[FILES_CAP];
    uint8_t level[FILES_CAP];
    size_t used; /* of buffer */
    char buffer[1 << 16];
};

static void file_name(unsigned number, char *ret_name, size_t size)
{
    snprintf(ret_name, size, KJ_SERIES_PREFIX "%03u" KJ_SERIES_SUFFIX, number);
}

int kj_series_flush(struct kj_series_writer *writer)
{
    size_t done = 0;
    while (done < writer->used) {
        ssize_t n = write(writer->fd, writer->buffer + done, writer->used - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            break;
        done += (size_t)n;
    }
    int status = done < writer->used ? -errno : 0;
    writer->size[writer->number] += done;
    writer->used = 0; /* a full disk loses samples, not memory */
    return status;
}

static void put_line(struct kj_series_writer *writer, const char *line)
{
    size_t size = strlen(line);
    if (writer->used + size > sizeof(writer->buffer))
        kj_series_flush(writer);
    memcpy(writer->buffer + writer->used, line, size);
    writer->used += size;
}

/* Each file tells its channels, so that it can be read alone. */
static void put_head(struct kj_series_writer *writer)
{
    char line[LINE_CAP];
    put_line(writer, KJ_SERIES_SCHEMA "\n");
    for (size_t i = 0; i < writer->count; i++) {
        kj_series_format_channel(&writer->channels[i], line, sizeof(line));
        put_line(writer, line);
    }
}

static int begin_file(struct kj_series_writer *writer, unsigned number)
{
    char name[32];
    file_name(number, name, sizeof(name));
    int fd = kj_file_create(writer->dir_fd, name);
    if (fd < 0)
        return fd;
    if (writer->fd >= 0)
        close(writer->fd);
    writer->fd = fd;
    writer->number = number;
    put_head(writer);
    return 0;
}

/* Rewrites one finished file in buckets of `width_ns`. */
static int thin_file(struct kj_series_writer *writer, unsigned number, uint64_t width_ns)
{
    char name[32], *text = NULL;
    size_t size = 0;
    struct kj_series *series = NULL;
    file_name(number, name, sizeof(name));
    int status = kj_series_read_file(writer->dir_fd, name, &series);
    FILE *out = status ? NULL : open_memstream(&text, &size);
    if (!out) {
        kj_series_free(series);
        return status ? status : -ENOMEM;
    }
    char line[LINE_CAP];
    fputs(KJ_SERIES_SCHEMA "\n", out);
    for (size_t i = 0; i < series->count; i++) {
        kj_series_format_channel(&series->channels[i].channel, line, sizeof(line));
        fputs(line, out);
    }
    for (size_t i = 0; i < series->count; i++)
        kj_series_print_thinned(&series->channels[i], width_ns, out);
    kj_series_free(series);
    status = fclose(out) ? -ENOMEM : kj_file_replace(writer->dir_fd, name, text, size);
    free(text);
    if (!status)
        writer->size[number] = size;
    return status;
}

static void keep_bounded(struct kj_series_writer *writer)
{
    uint64_t total = 0;
    unsigned best = writer->number;
    for (unsigned i = 0; i <= writer->number; i++) {
        total += writer->size[i];
        if (i < writer->number && writer->level[i] < THINNEST &&
            (best == writer->number || writer->level[i] < writer->level[best]))
            best = i;
    }
    if (total > TOTAL_BYTES && best != writer->number) {
        writer->level[best]++;
        thin_file(writer, best, thinning_ns[writer->level[best]]);
    }
}

int kj_series_create(int dir_fd, const struct kj_channel *channels, size_t count,
                     struct kj_series_writer **ret_writer)
{
    struct kj_series_writer *writer = calloc(1, sizeof(*writer));
    if (!writer)
        return -ENOMEM;
    writer->dir_fd = dir_fd;
    writer->fd = -1;
    writer->count = count;
    writer->channels = calloc(count + 1, sizeof(*channels));
    int status = writer->channels ? 0 : -ENOMEM;
    if (!status) {
        if (count)
            memcpy(writer->channels, channels, count * sizeof(*channels));
        status = begin_file(writer, 0);
    }
    if (!status)
        status = kj_series_flush(writer);
    if (status) {
        kj_series_close(writer);
        return status;
    }
    *ret_writer = writer;
    return 0;
}

int kj_series_append(struct kj_series_writer *writer, const struct kj_sample *samples, size_t count)
{
    char line[96];
    for (size_t i = 0; i < count; i++) {
        snprintf(line, sizeof(line), "s,%u,%llu,%llu\n", samples[i].channel,
                 (unsigned long long)samples[i].t_ns, (unsigned long long)samples[i].value);
        put_line(writer, line);
    }
    if (writer->size[writer->number] + writer->used < FILE_BYTES || writer->number + 1 >= FILES_CAP)
        return 0;
    int status = kj_series_flush(writer);
    if (!status)
        status = begin_file(writer, writer->number + 1);
    keep_bounded(writer);
    return status;
}

int kj_series_lost(struct kj_series_writer *writer, uint32_t channel, uint64_t t_ns, const char *reason)
{
    char text[700], line[LINE_CAP];
    kj_csv_escape(reason, text, sizeof(text));
    snprintf(line, sizeof(line), "lost,%u,%llu,%s\n", channel, (unsigned long long)t_ns, text);
    put_line(writer, line);
    return 0;
}

struct kj_series_writer *kj_series_close(struct kj_series_writer *writer)
{
    if (!writer)
        return NULL;
    if (writer->fd >= 0) {
        kj_series_flush(writer);
        close(writer->fd);
    }
    free(writer->channels);
    free(writer);
    return NULL;
}
