/* SPDX-License-Identifier: Apache-2.0
 *
 * recorder.h - one recorder per run: starts a command, or watches a tree that is already there, and keeps the
 * run folder up to date until the root process ends. It never makes the report: whoever calls it does that
 * from the folder, then closes the recorder.
 *
 * One recorder a process, one thread. It blocks the signals that it forwards and makes itself the reaper of
 * the command's orphans.
 */
#ifndef KJ_RECORDER_H
#define KJ_RECORDER_H

#include "base/log.h"
#include "base/options.h"

#include <stdbool.h>
#include <stdint.h>

struct kj_recorder_config {
    const struct kj_options *options;
    char *const *argv;   /* the command; NULL: watch root_pid */
    const char *program; /* argv[0] resolved to a file by kj_command_find */
    int32_t root_pid;
    int ready_fd; /* gets the folder's path and a newline once the folder is there; -1: none. Closed here. */
};

struct kj_recorder;

/* Makes the folder, starts the command, opens the sensors (in this order: the command does not wait for
 * them). -EINVAL, -EEXIST and the like for the folder or the replay file: nothing was started or left.
 * *ret_exit_status is 126 or 127 with -ENOEXEC when the command cannot be run, and nothing is left either. */
int kj_recorder_start(const struct kj_recorder_config *config, struct kj_recorder **ret_recorder,
                      int *ret_exit_status, struct kj_error *error);
/* Samples until the root has ended, then writes what is left to write. Returns the exit status as a shell's.
 */
int kj_recorder_watch(struct kj_recorder *recorder);
const char *kj_recorder_folder(const struct kj_recorder *recorder);
/* A run without wrapper that was brief and never touched CUDA: nothing to report. */
bool kj_recorder_is_void(const struct kj_recorder *recorder);
/* Removes a folder that holds nothing but what the recorder itself wrote. */
void kj_recorder_discard(struct kj_recorder *recorder);
/* Gives back devices and lets a process go that waits for its report. NULL-safe, returns NULL. */
struct kj_recorder *kj_recorder_close(struct kj_recorder *recorder);

/* Finds argv[0] as execvp would. Returns 0, or 126 or 127 with the reason; the caller frees *ret_path. */
int kj_command_find(const char *name, char **ret_path, struct kj_error *error);

#endif
