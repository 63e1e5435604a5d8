/* SPDX-License-Identifier: Apache-2.0
 *
 * rests.c - when the processes of the run had nothing left to run, by looking at their ledgers now and then:
 * a process that is found at rest twice, with no call in between that would have given a device work, was at
 * rest between the two. A launch is counted when it returns: so the last look at each rest does not count,
 * for a launch may have been under way then.
 */
#include "base/file.h"
#include "base/units.h"
#include "folder/ledgers.h"
#include "record/parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_NS  (10 * KJ_NS_PER_MS)
#define NAMES_NS (50 * KJ_NS_PER_MS) /* how often new ledgers are looked for */
#define LEAST_NS (20 * KJ_NS_PER_MS) /* no sensor sees less by itself */
enum { PROCESSES_CAP = 256 };

struct process {
    char *name; /* of its ledger */
    struct kj_ledger_watch *watch;
    struct kj_ledger_rest rest; /* start_ns 0: it has something to run */
    uint64_t last_ns;           /* of the newest look at it at rest; rest.end_ns: of the one before */
    uint64_t calls;
};

struct kj_rests {
    int dir_fd;
    uint64_t look_ns, names_ns; /* when next */
    struct process processes[PROCESSES_CAP];
    size_t count;
};

struct kj_rests *kj_rests_new(int dir_fd)
{
    struct kj_rests *rests = calloc(1, sizeof(*rests));
    if (rests)
        rests->dir_fd = dir_fd;
    return rests;
}

static void find_ledgers(struct kj_rests *rests)
{
    char **names;
    size_t count;
    if (kj_folder_list_ledgers(rests->dir_fd, &names, &count))
        return;
    for (size_t i = 0; i < count && rests->count < PROCESSES_CAP; i++) {
        struct process *new = &rests->processes[rests->count];
        size_t known = 0;
        while (known < rests->count && strcmp(rests->processes[known].name, names[i]) != 0)
            known++;
        if (known < rests->count || kj_ledger_watch_open(rests->dir_fd, names[i], &new->watch))
            continue;
        if ((new->name = strdup(names[i])))
            rests->count++;
        else
            new->watch = kj_ledger_watch_close(new->watch);
    }
    kj_strings_free(names);
}

/* A process that was killed has no context, and leaves its ledger as it was. */
static bool is_alive(int32_t pid)
{
    char path[64], line[512];
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    if (kj_file_read_line(path, line, sizeof(line)))
        return false;
    const char *name_end = strrchr(line, ')');
    return name_end && !strchr("ZX", name_end[1] ? name_end[2] : 'X');
}

static void finish(struct process *process)
{
    struct kj_ledger_rest rest = process->rest;
    process->rest = (struct kj_ledger_rest){0};
    if (rest.start_ns && rest.end_ns > rest.start_ns + LEAST_NS)
        kj_ledger_watch_save(process->watch, &rest);
}

static void look(struct process *process)
{
    uint64_t before_ns = kj_mono_ns(), calls = 0;
    bool rests =
        kj_ledger_watch_rests(process->watch, &calls) && is_alive(kj_ledger_watch_pid(process->watch));
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

void kj_rests_look(struct kj_rests *rests)
{
    uint64_t now_ns = kj_mono_ns();
    if (!rests || now_ns < rests->look_ns)
        return;
    rests->look_ns = now_ns + LOOK_NS;
    if (now_ns >= rests->names_ns) {
        rests->names_ns = now_ns + NAMES_NS;
        find_ledgers(rests);
    }
    for (size_t i = 0; i < rests->count; i++)
        look(&rests->processes[i]);
}

struct kj_rests *kj_rests_close(struct kj_rests *rests)
{
    for (size_t i = 0; rests && i < rests->count; i++) {
        finish(&rests->processes[i]);
        kj_ledger_watch_close(rests->processes[i].watch);
        free(rests->processes[i].name);
    }
    free(rests);
    return NULL;
}
