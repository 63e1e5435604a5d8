/* SPDX-License-Identifier: Apache-2.0
 *
 * cmd_record.c - `kjoule record --pid PID`: what the shim starts when there is no wrapper. Detached from the
 * host, so all it has to say goes to the two descriptors that the shim hands over (shim/README.md).
 */
#include "base/options.h"
#include "commands.h"
#include "finish.h"
#include "record/recorder.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define READY_FD   3
#define SUMMARY_FD 4

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static void complain(int fd, const char *text)
{
    char line[640];
    int size = snprintf(line, sizeof(line), "kjoule: %s\n", text);
    ssize_t ignored =
        fd >= 0 ? write(fd, line, (size_t)size < sizeof(line) ? (size_t)size : sizeof(line) - 1) : 0;
    (void)ignored;
}

static int32_t parse_pid(int argc, char **argv)
{
    char *end;
    if (argc != 3 || strcmp(argv[1], "--pid"))
        return 0;
    long pid = strtol(argv[2], &end, 10);
    return *argv[2] && !*end && pid > 0 && pid <= INT32_MAX ? (int32_t)pid : 0;
}

int kj_cmd_record(int argc, char **argv)
{
    struct kj_options options;
    struct kj_error error = {0};
    struct kj_recorder *recorder = NULL;
    int ignored, status;
    int32_t pid = parse_pid(argc, argv);
    if (!pid) {
        kj_say("usage: kjoule record --pid PID, a process that runs");
        return KJ_EXIT_USAGE;
    }
    signal(SIGPIPE, SIG_IGN);
    /* By hand there are no such descriptors: then stderr is as good. */
    int summary_fd = is_open(SUMMARY_FD) ? SUMMARY_FD : STDERR_FILENO;
    status = kj_options_from_environment(&options, &error);
    const struct kj_recorder_config config = {
        .options = &options, .root_pid = pid, .ready_fd = is_open(READY_FD) ? READY_FD : -1};
    if (status || kj_recorder_start(&config, &recorder, &ignored, &error)) {
        complain(summary_fd, error.text);
        return KJ_EXIT_USAGE;
    }
    kj_recorder_watch(recorder);
    if (kj_recorder_is_void(recorder))
        kj_recorder_discard(recorder);
    else if (kj_finish_run(kj_recorder_folder(recorder), *options.text[KJ_OPT_QUIET] ? -1 : summary_fd,
                           &error))
        complain(summary_fd, error.text);
    kj_recorder_close(recorder);
    return 0;
}
