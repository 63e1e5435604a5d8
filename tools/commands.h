/* SPDX-License-Identifier: Apache-2.0
 *
 * commands.h - the subcommands of kjoule, once: from this list come the prototypes, the dispatch and the
 * help. Each takes its own name in argv[0] and returns the exit status.
 */
#ifndef KJ_COMMANDS_H
#define KJ_COMMANDS_H

#define KJ_COMMANDS(X)                                                                                       \
    X(run, "[options] [--] COMMAND...", "run a command and report its energy (`run` may be left out)")       \
    X(report, "DIR [--format text|json]", "the report again, from a run folder")                             \
    X(doctor, "", "which sensors answer here, and what would mend the others")                               \
    X(attribute, "--timeline T --power P", "joules per kernel of a trace and a power log from other tools")  \
    X(calibrate, "[--device N]", "how a GPU's sensors work, from a load switched on and off")                \
    X(zones, "[PATTERN]", "the grid factors, with year and source")                                          \
    X(estimate, "--power W --time T", "C = E x T x R by hand, step by step")                                 \
    X(record, "--pid PID", "watch a running tree (what bare LD_PRELOAD starts)")

#define X(name, arguments, help) int kj_cmd_##name(int argc, char **argv);
KJ_COMMANDS(X)
#undef X

#endif
