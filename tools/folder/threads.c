/* SPDX-License-Identifier: Apache-2.0
 *
 * threads.c - writing and reading threads.csv.
 */
#include "folder/threads.h"

#include "base/file.h"
#include "folder/csv.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SCHEMA   "kjoule.threads/1"
#define FILE_MAX (4u << 20)

int kj_threads_write(int dir_fd, const struct kj_thread_rows *rows)
{
    char *text = NULL, process[96], name[96];
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return -ENOMEM;
    fprintf(out, SCHEMA "\nby,%s\n", rows->source);
    for (size_t i = 0; i < rows->count; i++) {
        const struct kj_thread_row *r = &rows->rows[i];
        kj_csv_escape(r->process, process, sizeof(process));
        kj_csv_escape(r->name, name, sizeof(name));
        fprintf(out, "t,%" PRId32 ",%s,%s,%d,%" PRIu32 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 "\n", r->pid,
                process, name, r->main, r->threads, r->cpu_ns, r->cycles, r->instructions);
    }
    int status = fclose(out) ? -ENOMEM : kj_file_replace(dir_fd, KJ_THREADS_FILE, text, size);
    free(text);
    return status;
}

static bool parse(struct kj_thread_rows *rows, char **f, size_t count)
{
    uint64_t pid, main, threads;
    struct kj_thread_row row = {0};
    if (count == 2 && !strcmp(f[0], "by")) {
        snprintf(rows->source, sizeof(rows->source), "%.7s", f[1]);
        return true;
    }
    if (count != 9 || strcmp(f[0], "t") || !kj_csv_u64(f[1], &pid) || pid > INT32_MAX ||
        !kj_csv_u64(f[4], &main) || !kj_csv_u64(f[5], &threads) || threads > UINT32_MAX ||
        !kj_csv_u64(f[6], &row.cpu_ns) || !kj_csv_u64(f[7], &row.cycles) ||
        !kj_csv_u64(f[8], &row.instructions) || row.cpu_ns > INT64_MAX / 1024 ||
        rows->count == KJ_THREADS_ROWS)
        return false;
    row.pid = (int32_t)pid;
    row.main = main != 0;
    row.threads = (uint32_t)threads;
    kj_csv_unescape(f[2], row.process, sizeof(row.process));
    kj_csv_unescape(f[3], row.name, sizeof(row.name));
    rows->rows[rows->count++] = row;
    return true;
}

int kj_threads_read(int dir_fd, struct kj_thread_rows **ret_rows)
{
    char *text, *line = NULL;
    size_t size;
    int status = kj_file_read(dir_fd, KJ_THREADS_FILE, FILE_MAX, &text, &size);
    if (status)
        return status;
    struct kj_thread_rows *rows = calloc(1, sizeof(*rows));
    if (rows)
        rows->rows = calloc(KJ_THREADS_ROWS, sizeof(*rows->rows));
    struct kj_csv_lines lines = {.text = text, .end = text + size};
    bool known = rows && rows->rows && (line = kj_csv_line(&lines)) && !strcmp(line, SCHEMA);
    while (known && (line = kj_csv_line(&lines))) {
        char *f[KJ_CSV_FIELDS];
        if (!parse(rows, f, kj_csv_split(line, f)))
            rows->bad_lines++;
    }
    free(text);
    if (!known) {
        status = rows && rows->rows ? -EPROTO : -ENOMEM;
        kj_threads_free(rows);
        return status;
    }
    *ret_rows = rows;
    return 0;
}

struct kj_thread_rows *kj_threads_free(struct kj_thread_rows *rows)
{
    if (rows)
        free(rows->rows);
    free(rows);
    return NULL;
}
