/* SPDX-License-Identifier: Apache-2.0
 *
 * kjoule.c - the program: finds the subcommand. A first word that is none is a command to run.
 */
#include "base/log.h"
#include "base/options.h"
#include "commands.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *arguments, *help;
    int (*run)(int argc, char **argv);
} commands[] = {
#define X(name, arguments, help) {#name, arguments, help, kj_cmd_##name},
    KJ_COMMANDS(X)
#undef X
};

static int print_help(void)
{
    puts("kjoule - energy and emissions of an unmodified training run\n\n"
         "usage: kjoule [options] [--] COMMAND...\n");
    for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
        printf("  kjoule %-9s %-28s %s\n", commands[i].name, commands[i].arguments, commands[i].help);
    puts("\nThe exit status is the command's: 128+n when signal n ended it, 126 or 127 when it cannot be\n"
         "started; 125 is a failure of kjoule itself and 2 bad input.\n\n"
         "Options of run; the name below each sets it from the environment:");
    kj_options_print(stdout);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        kj_say("no command given; kjoule COMMAND... runs one, kjoule --help lists the rest");
        return KJ_EXIT_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))
        return print_help();
    if (!strcmp(argv[1], "--version")) {
        puts("kjoule " KJ_VERSION);
        return 0;
    }
    for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
        if (!strcmp(argv[1], commands[i].name))
            return commands[i].run(argc - 1, argv + 1);
    return kj_cmd_run(argc, argv);
}
