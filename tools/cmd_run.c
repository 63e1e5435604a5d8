/* SPDX-License-Identifier: Apache-2.0
 *
 * cmd_run.c - `kjoule [run] [options] [--] COMMAND...`: the command as it is, and its report.
 */
#include "base/options.h"
#include "commands.h"
#include "finish.h"
#include "record/recorder.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int print_help(void)
{
    puts("usage: kjoule [run] [options] [--] COMMAND...\n\n"
         "Runs COMMAND unchanged and leaves a report of its energy and emissions in a folder of its own.\n");
    kj_options_print(stdout);
    return 0;
}

/* The command's exit status is the command's: what goes wrong with the report is said, and changes nothing.
 */
static int record_and_report(const struct kj_options *options, char **argv, const char *program)
{
    struct kj_recorder *recorder = NULL;
    struct kj_error error = {0};
    int exit_status = KJ_EXIT_FAILURE;
    const struct kj_recorder_config config = {
        .options = options, .argv = argv, .program = program, .ready_fd = -1};
    int status = kj_recorder_start(&config, &recorder, &exit_status, &error);
    if (status) {
        kj_say("%s", error.text);
        return status == -ENOEXEC ? exit_status : status == -ENOMEM ? KJ_EXIT_FAILURE : KJ_EXIT_USAGE;
    }
    signal(SIGPIPE, SIG_IGN); /* after the command has started: it is not to inherit that */
    exit_status = kj_recorder_watch(recorder);
    bool quiet = *options->text[KJ_OPT_QUIET];
    if (kj_finish_run(kj_recorder_folder(recorder), quiet ? -1 : STDERR_FILENO, &error))
        kj_say("no report: %s", error.text);
    kj_recorder_close(recorder);
    return exit_status;
}

int kj_cmd_run(int argc, char **argv)
{
    struct kj_options options;
    struct kj_error error = {0};
    int used = 0;
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")))
        return print_help();
    if (kj_options_parse(argc - 1, argv + 1, &options, &used, &error)) {
        kj_say("%s", error.text);
        return KJ_EXIT_USAGE;
    }
    char **command = argv + 1 + used, *program = NULL;
    if (!*command) {
        kj_say("no command given; say what to run, as in: kjoule python train.py");
        return KJ_EXIT_USAGE;
    }
    kj_options_warn_unknown();
    int status = kj_command_find(*command, &program, &error);
    if (status)
        kj_say("%s", error.text);
    else
        status = record_and_report(&options, command, program);
    free(program);
    return status;
}
