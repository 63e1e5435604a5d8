/* SPDX-License-Identifier: Apache-2.0
 *
 * blind.c - finds the processes of the run that use CUDA where the shim cannot see it. Such a process has the
 * driver mapped and no ledger; its own maps, environment and file say why.
 */
#include "base/file.h"
#include "base/units.h"
#include "folder/ledgers.h"
#include "ledger.h"
#include "record/parts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROCESSES_CAP 256 /* more are not followed: the first of a kind has spoken for all */
#define WARNINGS_CAP  8
#define MAPS_MAX      (16u << 20)

struct process {
    int32_t pid;
    bool done, held_driver;
    uint64_t next_ns, wait_ns;
};

struct kj_blind {
    int dir_fd;
    struct process processes[PROCESSES_CAP];
    size_t count;
    unsigned warnings;
};

struct kj_blind *kj_blind_new(int dir_fd)
{
    struct kj_blind *blind = calloc(1, sizeof(*blind));
    if (blind)
        blind->dir_fd = dir_fd;
    return blind;
}

struct kj_blind *kj_blind_free(struct kj_blind *blind)
{
    free(blind);
    return NULL;
}

static struct process *process_of(struct kj_blind *blind, int32_t pid, uint64_t now_ns)
{
    for (size_t i = 0; i < blind->count; i++)
        if (blind->processes[i].pid == pid)
            return &blind->processes[i];
    if (blind->count == PROCESSES_CAP)
        return NULL;
    struct process *process = &blind->processes[blind->count++];
    *process = (struct process){.pid = pid, .next_ns = now_ns, .wait_ns = KJ_NS_PER_S / 2};
    return process;
}

/* The words of a file of /proc: its NULs turned into newlines. NULL: gone, or not ours to read. */
static char *read_proc(int32_t pid, const char *file)
{
    char path[64], *text;
    size_t size;
    snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
    if (kj_file_read(AT_FDCWD, path, MAPS_MAX, &text, &size))
        return NULL;
    for (size_t i = 0; i + 1 < size; i++)
        if (!text[i])
            text[i] = '\n';
    return text;
}

static bool has_ledger(const struct kj_blind *blind, int32_t pid)
{
    char prefix[64];
    char **names;
    size_t count;
    bool found = false;
    if (kj_folder_list_ledgers(blind->dir_fd, &names, &count))
        return false;
    int length = snprintf(prefix, sizeof(prefix), KJ_LEDGER_PREFIX "%d.", pid);
    for (size_t i = 0; i < count && !found; i++)
        found = !strncmp(names[i], prefix, (size_t)length);
    kj_strings_free(names);
    return found;
}

static void warn(int32_t pid, const char *maps, struct kj_run_info *info)
{
    char path[64], program[256];
    snprintf(path, sizeof(path), "/proc/%d/exe", pid);
    ssize_t length = readlink(path, program, sizeof(program) - 1);
    program[length > 0 ? length : 0] = 0;
    char *reason = kj_host_blind_reason(path), *environment = read_proc(pid, "environ");
    const char *cause = reason;
    if (!cause && strstr(maps, "libkjoule.so"))
        cause = "libkjoule.so is loaded in it, but was passed by: a loader with its own name space (dlmopen, "
                "RTLD_DEEPBIND), or KJOULE_DISABLE";
    else if (!cause && environment && !strstr(environment, "libkjoule.so"))
        cause =
            "LD_PRELOAD was taken out of its environment (env -i, sudo, a container, ssh or a launcher that "
            "passes none); let it through";
    else if (!cause)
        cause = "libkjoule.so was not loaded into it";
    kj_host_warn(info,
                 "process %d (%s) has loaded the CUDA driver, and launches that it makes cannot be seen: %s; "
                 "its energy "
                 "counts, its kernels do not",
                 pid, *program ? program : "?", cause);
    free(reason);
    free(environment);
}

void kj_blind_look(struct kj_blind *blind, const int32_t *pids, size_t count, struct kj_run_info *info)
{
    uint64_t now_ns = kj_mono_ns();
    for (size_t i = 0; i < count && blind->warnings < WARNINGS_CAP; i++) {
        struct process *process = process_of(blind, pids[i], now_ns);
        if (!process || process->done || now_ns < process->next_ns)
            continue;
        process->next_ns = now_ns + process->wait_ns;
        process->wait_ns *= 2;
        if (has_ledger(blind, process->pid)) {
            process->done = true;
            continue;
        }
        char *maps = read_proc(process->pid, "maps");
        /* With the shim beside it, a driver that is merely linked is no sign yet: an open device is. */
        if (maps && strstr(maps, "/libcuda.so") &&
            (!strstr(maps, "libkjoule.so") || strstr(maps, "/dev/nvidia"))) {
            /* Twice in a row: the first time it may be on its way to its first look-up. */
            if (process->held_driver) {
                warn(process->pid, maps, info);
                blind->warnings++;
                process->done = true;
            } else {
                process->held_driver = true;
                process->wait_ns = process->next_ns - now_ns;
            }
        }
        free(maps);
    }
}
