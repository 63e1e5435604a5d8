/* SPDX-License-Identifier: Apache-2.0
 *
 * options.h - settings from the command line and the environment, by the one list in options.def.
 * The command line wins over the environment, the environment over the default. An empty value counts as not
 * given.
 */
#ifndef KJ_OPTIONS_H
#define KJ_OPTIONS_H

#include "base/log.h"

#include <stdbool.h>
#include <stdio.h>

enum kj_option_kind { KJ_OPTION_FLAG, KJ_OPTION_TEXT, KJ_OPTION_NUMBER, KJ_OPTION_PATH, KJ_OPTION_SHARE };

enum kj_option_id {
#define OPTION(id, long_name, environment, kind, fallback, metavar, help) KJ_OPT_##id,
#include "base/options.def"
#undef OPTION
    KJ_OPT_COUNT
};

struct kj_option {
    const char *long_name, *environment;
    enum kj_option_kind kind;
    const char *fallback, *metavar, *help;
};

extern const struct kj_option kj_option_table[KJ_OPT_COUNT];

struct kj_options {
    const char *text[KJ_OPT_COUNT]; /* the value as given, "" for none; points into argv or the environment */
    double number[KJ_OPT_COUNT];    /* of NUMBER and SHARE options; meaningless when text is "" */
    bool given[KJ_OPT_COUNT];       /* by command line or environment, not by default */
};

/* Reads the environment, then options from argv[0] on, until the first word that is none, or past "--".
 * *ret_used: words consumed. -o is --output, -q is --quiet. -EINVAL: error names the option, the value and
 * what is accepted. */
int kj_options_parse(int argc, char **argv, struct kj_options *ret_options, int *ret_used,
                     struct kj_error *error);

/* The environment alone. */
int kj_options_from_environment(struct kj_options *ret_options, struct kj_error *error);

/* Warns once of each KJOULE_ name that is not in the list, naming the nearest one that is. */
void kj_options_warn_unknown(void);

/* The table for --help. */
void kj_options_print(FILE *out);

/* Edit distance, for "did you mean": shared by options and zones. Both at most 63 bytes are looked at; case
 * is ignored. */
int kj_edit_distance(const char *a, const char *b);

#endif
