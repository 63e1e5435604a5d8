/* SPDX-License-Identifier: Apache-2.0
 *
 * rests.c - when the processes of the run had nothing left to run, by reading their ledgers now and then:
 * a process that is found at rest twice, with no call in between that would have given a device work, was at
 * rest between the two. A launch is counted when it returns: so the last reading in each rest does not count,
 * for a launch may have been under way then.
 */
#include "base/file.h"
#include "base/units.h"
#include "folder/ledgers.h"
#include "record/parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define READ_EVERY_NS (10 * KJ_NS_PER_MS)
#define LIST_EVERY_NS (50 * KJ_NS_PER_MS) /* how often the folder is listed for new ledgers */
#define LEAST_NS      (20 * KJ_NS_PER_MS) /* no sensor sees less by itself */

struct process {
    char *name;                    /* of its ledger */
    struct kj_ledger_watch *watch; /* NULL: it has ended; the name keeps its ledger from being opened again */
    struct kj_ledger_rest rest;    /* start_ns 0: it has something to run */
    uint64_t last_ns;              /* of the newest reading of it at rest; rest.end_ns: of the one before */
    uint64_t calls;
};

struct kj_rests {
    int dir_fd;
    uint64_t read_next_ns, list_next_ns;
    struct process *processes; /* by name */
    size_t count;
};

struct kj_rests *kj_rests_new(int dir_fd)
{
    struct kj_rests *rests = calloc(1, sizeof(*rests));
    if (rests)
        rests->dir_fd = dir_fd;
    return rests;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct process *)a)->name, ((const struct process *)b)->name);
}

static void find_ledgers(struct kj_rests *rests)
{
    char **names;
    size_t count, known = rests->count;
    if (kj_folder_list_ledgers(rests->dir_fd, &names, &count))
        return;
    void *grown = realloc(rests->processes, (known + count + 1) * sizeof(*rests->processes));
    rests->processes = grown ? grown : rests->processes;
    for (size_t i = 0; grown && i < count; i++) {
        struct process new = {.name = names[i]};
        if ((known && bsearch(&new, rests->processes, known, sizeof(new), by_name)) ||
            kj_ledger_watch_open(rests->dir_fd, names[i], &new.watch))
            continue;
        if ((new.name = strdup(names[i])))
            rests->processes[rests->count++] = new;
        else
            kj_ledger_watch_close(new.watch);
    }
    kj_strings_free(names);
    if (rests->count > known)
        qsort(rests->processes, rests->count, sizeof(*rests->processes), by_name);
}

/* A process that was killed has no context, and leaves its ledger as it was. Its pid may be another's by now,
 * which began at another time. */
static bool is_alive(const struct kj_ledger_header *header)
{
    char path[64], line[512], state;
    unsigned long long start_ticks;
    snprintf(path, sizeof(path), "/proc/%d/stat", header->pid);
    if (kj_file_read_line(path, line, sizeof(line)))
        return false;
    const char *name_end = strrchr(line, ')');
    return name_end &&
           sscanf(name_end + 1,
                  " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &state,
                  &start_ticks) == 2 &&
           !strchr("ZX", state) && start_ticks == header->start_ticks;
}

static void finish(struct process *process)
{
    struct kj_ledger_rest rest = process->rest;
    process->rest = (struct kj_ledger_rest){0};
    if (rest.start_ns && rest.end_ns > rest.start_ns + LEAST_NS)
        kj_ledger_watch_save(process->watch, &rest);
}

static void close_watch(struct process *process)
{
    if (process->watch)
        finish(process);
    process->watch = kj_ledger_watch_close(process->watch);
}

static void read_rest(struct process *process, bool check_alive)
{
    uint64_t before_ns = kj_mono_ns(), calls = 0;
    int rests = kj_ledger_watch_rests(process->watch, &calls);
    if (rests < 0 || ((rests || check_alive) && !is_alive(kj_ledger_watch_header(process->watch)))) {
        close_watch(process);
        return;
    }
    if (!rests || calls != process->calls)
        finish(process);
    if (!rests)
        return;
    process->calls = calls;
    if (!process->rest.start_ns) {
        process->rest.start_ns = kj_mono_ns();
        process->last_ns = 0;
    }
    process->rest.end_ns = process->last_ns;
    process->last_ns = before_ns;
}

void kj_rests_tick(struct kj_rests *rests)
{
    uint64_t now_ns = kj_mono_ns();
    if (!rests || now_ns < rests->read_next_ns)
        return;
    rests->read_next_ns = now_ns + READ_EVERY_NS;
    bool list = now_ns >= rests->list_next_ns;
    if (list) {
        rests->list_next_ns = now_ns + LIST_EVERY_NS;
        find_ledgers(rests);
    }
    for (size_t i = 0; i < rests->count; i++)
        if (rests->processes[i].watch)
            read_rest(&rests->processes[i], list);
}

struct kj_rests *kj_rests_close(struct kj_rests *rests)
{
    if (!rests)
        return NULL;
    for (size_t i = 0; i < rests->count; i++) {
        close_watch(&rests->processes[i]);
        free(rests->processes[i].name);
    }
    free(rests->processes);
    free(rests);
    return NULL;
}
