/* SPDX-License-Identifier: Apache-2.0
 *
 * options.c - one table, from which command line, environment, help and spelling checks follow.
 */
#include "base/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

extern char **environ;

const struct kj_option kj_option_table[KJ_OPT_COUNT] = {
#define OPTION(id, long_name, environment, kind, fallback, metavar, help)                                    \
    [KJ_OPT_##id] = {long_name, environment, KJ_OPTION_##kind, fallback, metavar, help},
#include "base/options.def"
#undef OPTION
};

/* Bounds that hold whatever the source; what is not here is checked by the room that uses it. */
static const struct {
    enum kj_option_id id;
    double min, max;
    const char *accepted;
} ranges[] = {
    {KJ_OPT_PUE, 1.0, 10.0, "a ratio of at least 1, such as 1.2"},
    {KJ_OPT_CARBON_INTENSITY, 0.0, 10000.0, "gCO2e per kWh, 0 or more"},
    {KJ_OPT_BUDGET, 0.0, 100.0, "a percentage from 0 to 100"},
    {KJ_OPT_PHASE_WALK, 0.0, 20.0, "a percentage from 0 to 20"},
    {KJ_OPT_INTERVAL, 10.0, 60000.0, "milliseconds from 10 to 60000"},
};

/* What a text must be; NULL for good, else what is accepted. */
static const char *check_text(int id, const char *value)
{
    if (id == KJ_OPT_TIMING && strcmp(value, "events") && strcmp(value, "cupti") && strcmp(value, "count"))
        return "events, cupti or count";
    if (id == KJ_OPT_PROBE && strcmp(value, "auto") && strcmp(value, "off"))
        return "auto or off";
    if (id == KJ_OPT_IDLE_SHARE && strcmp(value, "auto") && strcmp(value, "cores") && strcmp(value, "cpu") &&
        strcmp(value, "all") && strcmp(value, "none"))
        return "cores, cpu, all, none or auto";
    if (id == KJ_OPT_PER) {
        const char *equals = strchr(value, '=');
        char *end = NULL;
        double count = equals ? strtod(equals + 1, &end) : 0;
        if (!equals || equals == value || !equals[1] || *end || !isfinite(count) || count <= 0)
            return "NAME=COUNT with a count over 0, such as tokens=1e9";
    }
    return NULL;
}

static const char *when_absent(const struct kj_option *option)
{
    return option->kind == KJ_OPTION_SHARE ? "" : option->fallback;
}

static int set_value(struct kj_options *options, int id, const char *value, const char *where,
                     struct kj_error *error)
{
    const struct kj_option *option = &kj_option_table[id];
    options->given[id] = *value != 0;
    if (!*value) /* given empty: as if it were not given */
        value = when_absent(option);
    options->text[id] = value;
    if (option->kind == KJ_OPTION_FLAG && (!strcmp(value, "0") || !strcasecmp(value, "no"))) {
        options->text[id] = "";
        options->given[id] = false;
    }
    const char *accepted = *value ? check_text(id, value) : NULL;
    if (accepted) {
        kj_error_set(error, "%s: '%s' is not %s", where, value, accepted);
        return -EINVAL;
    }
    if ((option->kind != KJ_OPTION_NUMBER && option->kind != KJ_OPTION_SHARE) || !*value)
        return 0;
    char *end;
    errno = 0;
    double number = strtod(value, &end);
    accepted = "a number";
    bool good = end != value && !*end && !errno && isfinite(number);
    for (size_t i = 0; i < sizeof(ranges) / sizeof(*ranges); i++)
        if ((int)ranges[i].id == id) {
            accepted = ranges[i].accepted;
            good = good && number >= ranges[i].min && number <= ranges[i].max;
        }
    if (!good) {
        kj_error_set(error, "%s: '%s' is not %s", where, value, accepted);
        return -EINVAL;
    }
    options->number[id] = number;
    return 0;
}

int kj_options_from_environment(struct kj_options *ret_options, struct kj_error *error)
{
    memset(ret_options, 0, sizeof(*ret_options));
    for (int id = 0; id < KJ_OPT_COUNT; id++) {
        const struct kj_option *option = &kj_option_table[id];
        set_value(ret_options, id, when_absent(option), option->long_name, NULL);
        ret_options->given[id] = false;
        const char *value = *option->environment ? getenv(option->environment) : NULL;
        int status = value && *value ? set_value(ret_options, id, value, option->environment, error) : 0;
        if (status)
            return status;
    }
    return 0;
}

static int find_long(const char *word, size_t length)
{
    if (length == 2 && word[0] == '-')
        return word[1] == 'o' ? KJ_OPT_OUTPUT : word[1] == 'q' ? KJ_OPT_QUIET : -1;
    for (int id = 0; id < KJ_OPT_COUNT; id++) {
        const char *name = kj_option_table[id].long_name;
        if (*name && strlen(name) == length && !memcmp(name, word, length))
            return id;
    }
    return -1;
}

static int unknown_option(const char *word, struct kj_error *error)
{
    char name[64];
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(word, "="), word);
    int best = -1, best_distance = 4;
    for (int id = 0; id < KJ_OPT_COUNT; id++) {
        int distance =
            *kj_option_table[id].long_name ? kj_edit_distance(name, kj_option_table[id].long_name) : 99;
        if (distance < best_distance)
            best_distance = distance, best = id;
    }
    if (best >= 0)
        kj_error_set(error, "unknown option '%s'; did you mean %s? (kjoule --help lists them)", word,
                     kj_option_table[best].long_name);
    else
        kj_error_set(error, "unknown option '%s'; kjoule --help lists the options", word);
    return -EINVAL;
}

/* The value of a SHARE may be left out, so the word after it is the command; none is named by a number. */
static int check_no_number(const char *name, const char *next, struct kj_error *error)
{
    char *end;
    strtod(next, &end);
    if (end == next || *end)
        return 0;
    kj_error_set(error, "%s takes its value after an equals sign: %s=%s", name, name, next);
    return -EINVAL;
}

int kj_options_parse(int argc, char **argv, struct kj_options *ret_options, int *ret_used,
                     struct kj_error *error)
{
    int status = kj_options_from_environment(ret_options, error);
    int i = 0;
    for (; !status && i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
        if (!strcmp(argv[i], "--")) {
            i++;
            break;
        }
        const char *word = argv[i];
        size_t length = strcspn(word, "=");
        int id = find_long(word, length);
        if (id < 0) {
            status = unknown_option(word, error);
            break;
        }
        const char *name = kj_option_table[id].long_name;
        const char *value = word[length] ? word + length + 1 : NULL;
        if (kj_option_table[id].kind == KJ_OPTION_FLAG) {
            value = value ? value : "1";
        } else if (kj_option_table[id].kind == KJ_OPTION_SHARE) {
            status = value ? 0 : check_no_number(name, i + 1 < argc ? argv[i + 1] : "", error);
            if (status)
                break;
            value = value ? value : kj_option_table[id].fallback;
        } else if (!value) {
            if (i + 1 >= argc) {
                kj_error_set(error, "%s needs a value: %s %s", name, name, kj_option_table[id].metavar);
                status = -EINVAL;
                break;
            }
            value = argv[++i];
        }
        status = set_value(ret_options, id, value, name, error);
    }
    *ret_used = i;
    return status;
}

int kj_edit_distance(const char *a, const char *b)
{
    unsigned char row[64];
    size_t m = strnlen(a, 63), n = strnlen(b, 63);
    for (size_t j = 0; j <= n; j++)
        row[j] = (unsigned char)j;
    for (size_t i = 1; i <= m; i++) {
        int diagonal = row[0];
        row[0] = (unsigned char)i;
        for (size_t j = 1; j <= n; j++) {
            int same = tolower((unsigned char)a[i - 1]) == tolower((unsigned char)b[j - 1]);
            int best = diagonal + !same;
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = (unsigned char)best;
        }
    }
    return row[n];
}

void kj_options_warn_unknown(void)
{
    for (char **entry = environ; entry && *entry; entry++) {
        if (strncmp(*entry, "KJOULE_", 7))
            continue;
        char name[64];
        snprintf(name, sizeof(name), "%.*s", (int)strcspn(*entry, "="), *entry);
        int best = 0, best_distance = 99;
        for (int id = 0; id < KJ_OPT_COUNT; id++) {
            int distance = kj_edit_distance(name, kj_option_table[id].environment);
            if (distance < best_distance)
                best_distance = distance, best = id;
        }
        if (best_distance)
            kj_warn("%s is not a setting of kjoule, ignoring; the nearest is %s", name,
                    kj_option_table[best].environment);
    }
}

void kj_options_print(FILE *out)
{
    for (int id = 0; id < KJ_OPT_COUNT; id++) {
        const struct kj_option *option = &kj_option_table[id];
        if (!*option->long_name)
            continue;
        char left[64];
        bool share = option->kind == KJ_OPTION_SHARE; /* its value may be left out, and a command follows */
        snprintf(left, sizeof(left), share ? "%s[=%s]" : "%s %s", option->long_name, option->metavar);
        fprintf(out, "  %-30s %s", left, option->help);
        if (*option->fallback)
            fprintf(out, share ? " [off; %s without a number]" : " [%s]", option->fallback);
        fprintf(out, "\n  %-30s   %s\n", "", option->environment);
    }
}
