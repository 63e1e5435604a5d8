/* SPDX-License-Identifier: Apache-2.0
 *
 * cpu_phases.c - appending to and reading phases.cpu.csv.
 */
#include "folder/cpu_phases.h"

#include "base/file.h"
#include "folder/csv.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SCHEMA     "kjoule.cpu-phases/1"
#define FILE_BYTES (64u << 20)

static const char *const names[KJ_CPU_PHASES] = {"backward", "optimizer"};

struct kj_cpu_phases_writer {
    int dir_fd, fd; /* fd -1: not made yet; -2: it could not be, or it is full */
    size_t written, used;
    char buffer[1 << 14];
};

const char *kj_cpu_phase_name(enum kj_cpu_phase phase)
{
    return phase < KJ_CPU_PHASES ? names[phase] : NULL;
}

struct kj_cpu_phases_writer *kj_cpu_phases_create(int dir_fd)
{
    struct kj_cpu_phases_writer *writer = calloc(1, sizeof(*writer));
    if (writer) {
        writer->dir_fd = dir_fd;
        writer->fd = -1;
    }
    return writer;
}

void kj_cpu_phases_flush(struct kj_cpu_phases_writer *writer)
{
    for (size_t done = 0; writer && writer->fd >= 0 && done < writer->used;) {
        ssize_t n = write(writer->fd, writer->buffer + done, writer->used - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            break;
        done += (size_t)n;
        writer->written += (size_t)n;
    }
    if (writer)
        writer->used = 0; /* a full disk loses phases, not memory */
}

static void put(struct kj_cpu_phases_writer *writer, const char *line, uint64_t t_ns)
{
    char head[64];
    if (writer->fd == -1) {
        writer->fd = kj_file_create(writer->dir_fd, KJ_CPU_PHASES_FILE);
        if (writer->fd < 0)
            writer->fd = -2;
        else
            put(writer, SCHEMA "\n", t_ns);
    }
    if (writer->fd < 0)
        return;
    if (writer->written + writer->used > FILE_BYTES) {
        snprintf(head, sizeof(head), "full,%" PRIu64 "\n", t_ns);
        kj_cpu_phases_flush(writer);
        writer->used = strlen(head);
        memcpy(writer->buffer, head, writer->used);
        kj_cpu_phases_flush(writer);
        close(writer->fd);
        writer->fd = -2;
        return;
    }
    size_t size = strlen(line);
    if (writer->used + size > sizeof(writer->buffer))
        kj_cpu_phases_flush(writer);
    memcpy(writer->buffer + writer->used, line, size);
    writer->used += size;
}

void kj_cpu_phases_seen(struct kj_cpu_phases_writer *writer, int32_t pid, uint64_t t_ns, unsigned functions)
{
    char line[96];
    snprintf(line, sizeof(line), "seen,%" PRId32 ",%" PRIu64 ",%u\n", pid, t_ns, functions);
    put(writer, line, t_ns);
}

void kj_cpu_phases_append(struct kj_cpu_phases_writer *writer, const struct kj_cpu_phase_row *row)
{
    char line[128];
    snprintf(line, sizeof(line), "p,%" PRId32 ",%" PRId32 ",%s,%" PRIu64 ",%" PRIu64 "\n", row->pid, row->tid,
             names[row->phase], row->start_ns, row->end_ns);
    put(writer, line, row->end_ns);
}

struct kj_cpu_phases_writer *kj_cpu_phases_close(struct kj_cpu_phases_writer *writer)
{
    if (!writer)
        return NULL;
    kj_cpu_phases_flush(writer);
    if (writer->fd >= 0)
        close(writer->fd);
    free(writer);
    return NULL;
}

static void *one_more(void *rows, size_t count, size_t size)
{
    return count & (count - 1) ? rows : realloc(rows, (count ? count * 2 : 1) * size);
}

static bool parse_phase(struct kj_cpu_phases *phases, char **f)
{
    struct kj_cpu_phase_row row = {0};
    uint64_t pid, tid;
    while (row.phase < KJ_CPU_PHASES && strcmp(f[3], names[row.phase]))
        row.phase++;
    if (row.phase == KJ_CPU_PHASES || !kj_csv_u64(f[1], &pid) || pid > INT32_MAX || !kj_csv_u64(f[2], &tid) ||
        tid > INT32_MAX || !kj_csv_u64(f[4], &row.start_ns) || !kj_csv_u64(f[5], &row.end_ns) ||
        row.end_ns < row.start_ns)
        return false;
    row.pid = (int32_t)pid;
    row.tid = (int32_t)tid;
    void *larger = one_more(phases->rows, phases->count, sizeof(row));
    if (!larger)
        return false;
    phases->rows = larger;
    phases->rows[phases->count++] = row;
    return true;
}

static bool parse(struct kj_cpu_phases *phases, char **f, size_t count)
{
    uint64_t pid, t_ns, functions;
    if (count == 6 && !strcmp(f[0], "p"))
        return parse_phase(phases, f);
    if (count == 2 && !strcmp(f[0], "full"))
        return phases->full = true;
    if (count != 4 || strcmp(f[0], "seen") || !kj_csv_u64(f[1], &pid) || pid > INT32_MAX ||
        !kj_csv_u64(f[2], &t_ns) || !kj_csv_u64(f[3], &functions))
        return false;
    void *larger = one_more(phases->seen, phases->seen_count, sizeof(*phases->seen));
    if (!larger)
        return false;
    phases->seen = larger;
    phases->seen[phases->seen_count++] = (struct kj_cpu_phases_seen){(int32_t)pid, t_ns, (unsigned)functions};
    return true;
}

int kj_cpu_phases_read(int dir_fd, struct kj_cpu_phases **ret_phases)
{
    char *text, *line;
    size_t size;
    int status = kj_file_read(dir_fd, KJ_CPU_PHASES_FILE, FILE_BYTES + (1 << 16), &text, &size);
    if (status)
        return status;
    struct kj_cpu_phases *phases = calloc(1, sizeof(*phases));
    struct kj_csv_lines lines = {.text = text, .end = text + size};
    bool known = phases && (line = kj_csv_line(&lines)) && !strcmp(line, SCHEMA);
    while (known && (line = kj_csv_line(&lines))) {
        char *f[KJ_CSV_FIELDS];
        if (!parse(phases, f, kj_csv_split(line, f)))
            phases->bad_lines++;
    }
    free(text);
    if (!known) {
        kj_cpu_phases_free(phases);
        return phases ? -EPROTO : -ENOMEM;
    }
    *ret_phases = phases;
    return 0;
}

struct kj_cpu_phases *kj_cpu_phases_free(struct kj_cpu_phases *phases)
{
    if (!phases)
        return NULL;
    free(phases->rows);
    free(phases->seen);
    free(phases);
    return NULL;
}
