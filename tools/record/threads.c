/* SPDX-License-Identifier: Apache-2.0
 *
 * threads.c - CPU time by process and thread name, from numbers a thread: each growth goes to the row of the
 * name that the thread bears at that moment.
 */
#include "record/parts.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 1 << 17, ROW_SLOTS = 1 << 13 };

struct live {
    int32_t tid, pid; /* tid 0: free; -1: was used */
    uint32_t row;     /* + 1; 0 none yet */
    uint64_t cpu_ns, cycles, instructions;
};

struct kj_threads {
    struct kj_thread_rows file;
    uint32_t row_slots[ROW_SLOTS]; /* row + 1 */
    size_t used;                   /* of live, with those that were used */
    struct live *live;
};

struct kj_threads *kj_threads_new(const char *source)
{
    struct kj_threads *threads = calloc(1, sizeof(*threads));
    if (!threads)
        return NULL;
    threads->file.rows = calloc(KJ_THREADS_ROWS, sizeof(*threads->file.rows));
    threads->live = calloc(SLOTS, sizeof(*threads->live)); /* untouched pages cost nothing */
    kj_threads_set_source(threads, source);
    return threads->file.rows && threads->live ? threads : kj_threads_close(threads);
}

void kj_threads_set_source(struct kj_threads *threads, const char *source)
{
    snprintf(threads->file.source, sizeof(threads->file.source), "%s", source);
}

struct kj_threads *kj_threads_close(struct kj_threads *threads)
{
    if (!threads)
        return NULL;
    free(threads->file.rows);
    free(threads->live);
    free(threads);
    return NULL;
}

static uint32_t mix(uint32_t x)
{
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

/* The places of the dead are taken again only when the table is built anew. */
static void rebuild(struct kj_threads *threads)
{
    struct live *old = threads->live, *fresh = calloc(SLOTS, sizeof(*fresh));
    if (!fresh)
        return;
    threads->live = fresh;
    threads->used = 0;
    for (size_t i = 0; i < SLOTS; i++) {
        if (old[i].tid <= 0)
            continue;
        uint32_t at = mix((uint32_t)old[i].tid) % SLOTS;
        while (fresh[at].tid)
            at = (at + 1) % SLOTS;
        fresh[at] = old[i];
        threads->used++;
    }
    free(old);
}

static struct live *find_live(struct kj_threads *threads, const struct kj_thread_seen *seen)
{
    if (threads->used >= SLOTS / 2)
        rebuild(threads);
    uint32_t at = mix((uint32_t)seen->tid) % SLOTS;
    for (; threads->live[at].tid; at = (at + 1) % SLOTS)
        if (threads->live[at].tid == seen->tid && threads->live[at].pid == seen->pid)
            return &threads->live[at];
    if (threads->used >= SLOTS - SLOTS / 4)
        return NULL;
    threads->used++;
    threads->live[at] = (struct live){.tid = seen->tid, .pid = seen->pid};
    return &threads->live[at];
}

/* "pt_autograd_0": "pt_autograd"; "python3" stays, since the digit belongs to it; "grpc-12": "grpc". */
static void plain_name(const char *comm, char *ret_name, size_t size)
{
    size_t length = strlen(comm), digits = length;
    snprintf(ret_name, size, "%s", comm);
    while (digits && isdigit((unsigned char)comm[digits - 1]))
        digits--;
    if (digits < length && digits > 1 && strchr("_-:/#.", comm[digits - 1]))
        ret_name[digits - 1] = 0;
}

static bool same_row(const struct kj_thread_row *a, const struct kj_thread_row *b)
{
    return a->pid == b->pid && a->main == b->main && !strcmp(a->name, b->name) &&
           !strcmp(a->process, b->process);
}

/* Row + 1; 0: no room. */
static uint32_t find_row(struct kj_threads *threads, const struct kj_thread_row *wanted)
{
    uint32_t hash = (uint32_t)wanted->pid * 2 + wanted->main;
    for (const char *p = wanted->name; *p; p++)
        hash = mix(hash ^ (unsigned char)*p);
    for (uint32_t at = hash % ROW_SLOTS;; at = (at + 1) % ROW_SLOTS) {
        uint32_t row = threads->row_slots[at];
        if (row && same_row(&threads->file.rows[row - 1], wanted))
            return row;
        if (row)
            continue;
        if (threads->file.count == KJ_THREADS_ROWS)
            return 0;
        threads->file.rows[threads->file.count] = *wanted;
        threads->row_slots[at] = (uint32_t)++threads->file.count;
        return threads->row_slots[at];
    }
}

static uint32_t row_of(struct kj_threads *threads, const struct kj_thread_seen *seen)
{
    struct kj_thread_row wanted = {.pid = seen->pid, .main = seen->pid == seen->tid};
    plain_name(seen->comm, wanted.name, sizeof(wanted.name));
    snprintf(wanted.process, sizeof(wanted.process), "%s", seen->process);
    /* The last rows are for all further processes together. */
    uint32_t row = threads->file.count < KJ_THREADS_ROWS - 256 ? find_row(threads, &wanted) : 0;
    if (row)
        return row;
    wanted.pid = 0;
    row = find_row(threads, &wanted);
    if (row)
        return row;
    return (uint32_t)threads->file.count;
}

void kj_threads_note(struct kj_threads *threads, const struct kj_thread_seen *seen)
{
    struct live *live = find_live(threads, seen);
    if (!live)
        return;
    uint32_t row = row_of(threads, seen);
    struct kj_thread_row *to = &threads->file.rows[row - 1];
    if (live->row != row)
        to->threads++;
    if (live->row && live->row != row && !live->cpu_ns)
        threads->file.rows[live->row - 1].threads--;
    live->row = row;
    if (seen->cpu_ns > live->cpu_ns) {
        to->cpu_ns += seen->cpu_ns - live->cpu_ns;
        live->cpu_ns = seen->cpu_ns;
    }
    if (seen->cycles > live->cycles) {
        to->cycles += seen->cycles - live->cycles;
        live->cycles = seen->cycles;
    }
    if (seen->instructions > live->instructions) {
        to->instructions += seen->instructions - live->instructions;
        live->instructions = seen->instructions;
    }
    if (seen->dead)
        live->tid = -1;
}

int kj_threads_save(const struct kj_threads *threads, int dir_fd)
{
    return threads->file.count ? kj_threads_write(dir_fd, &threads->file) : 0;
}
