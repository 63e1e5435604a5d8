/* SPDX-License-Identifier: Apache-2.0
 *
 * cmd_estimate.c - `kjoule estimate`: C = E x T x R for a run that has not been made, step by step, with each
 * factor's source. A plan, not a measurement: power is what the user says.
 */
#include "base/options.h"
#include "base/units.h"
#include "carbon/carbon.h"
#include "commands.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: kjoule estimate --power W --time DURATION [--gpus N] [--zone ZONE] [--pue RATIO]\n"
    "                       [--carbon-intensity G_PER_KWH]\n"
    "Emissions of a run that is only planned: power x time x grid intensity. --power is of one GPU when "
    "--gpus is given.\n"
    "DURATION: 3h, 90m, 1d12h, 45s; a bare number is seconds. Example: kjoule estimate --power 700 --gpus 8 "
    "--time 3h --zone FR\n";

struct plan {
    double power_w, time_s, gpus;
    const char *power, *time;
    struct kj_options options; /* --zone, --pue, --carbon-intensity, or their variables */
};

struct unit {
    const char *name;
    double factor;
};

/* Takes a number and the unit behind it, one of `units` ("" for none). NaN when it is none. */
static double take_number(const char **text, const struct unit *units)
{
    char *end;
    if ((!isdigit((unsigned char)**text) && **text != '.') || tolower((unsigned char)(*text)[1]) == 'x')
        return NAN; /* strtod would also take inf, nan, hexadecimal and signs */
    double value = strtod(*text, &end);
    size_t length = 0;
    while (isalpha((unsigned char)end[length]))
        length++;
    *text = end + length;
    for (; units->name; units++)
        if (strlen(units->name) == length && !memcmp(units->name, end, length))
            return value * units->factor;
    return NAN;
}

static double parse_power_w(const char *text)
{
    static const struct unit units[] = {{"", 1},     {"W", 1},    {"w", 1}, {"kW", 1e3},
                                        {"kw", 1e3}, {"MW", 1e6}, {NULL, 0}};
    double value = take_number(&text, units);
    return *text || !(value > 0 && value < 1e12) ? NAN : value;
}

static double parse_time_s(const char *text)
{
    static const struct unit units[] = {{"s", 1},    {"m", 60},    {"min", 60},
                                        {"h", 3600}, {"d", 86400}, {NULL, 0}};
    static const struct unit seconds[] = {{"", 1}, {NULL, 0}};
    double sum = 0;
    if (strspn(text, "0123456789.") == strlen(text))
        sum = take_number(&text, seconds);
    while (*text && !isnan(sum)) /* a text that is no number is not gone past */
        sum += take_number(&text, units);
    return sum > 0 && sum < 1e12 ? sum : NAN;
}

/* An option of this command: its own, or one of the common list. */
static const char *const own_options[] = {"--power", "--time", "--gpus"};
static const char *const common_options[] = {"--zone", "--pue", "--carbon-intensity"};

static bool is_among(const char *const *names, size_t count, const char *word, size_t length)
{
    for (size_t i = 0; i < count; i++)
        if (strlen(names[i]) == length && !memcmp(names[i], word, length))
            return true;
    return false;
}

static int unknown_option(const char *word, struct kj_error *error)
{
    const char *best = NULL;
    int best_distance = 4;
    char name[64];
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(word, "="), word);
    for (int i = 0; i < 6; i++) {
        const char *known = i < 3 ? own_options[i] : common_options[i - 3];
        int distance = kj_edit_distance(name, known);
        if (distance < best_distance)
            best_distance = distance, best = known;
    }
    kj_error_set(error, "estimate: unknown option '%s'; %s%s", word,
                 best ? "did you mean " : "kjoule estimate --help lists them", best ? best : "");
    return -1;
}

static int take_own(struct plan *plan, const char *word, size_t length, const char *value,
                    struct kj_error *error)
{
    double *target = &plan->gpus;
    const char *accepted = "a whole number of GPUs, at least 1";
    if (!memcmp(word, "--power", length)) {
        plan->power = value;
        plan->power_w = parse_power_w(value);
        target = &plan->power_w;
        accepted = "a power such as 300, 300W or 1.2kW";
    } else if (!memcmp(word, "--time", length)) {
        plan->time = value;
        plan->time_s = parse_time_s(value);
        target = &plan->time_s;
        accepted = "a duration such as 3h, 90m, 1d12h or 45s";
    } else {
        char *end;
        plan->gpus = isdigit((unsigned char)*value) ? (double)strtol(value, &end, 10) : NAN;
        if (isnan(plan->gpus) || *end || plan->gpus < 1 || plan->gpus > 10e6)
            plan->gpus = NAN;
    }
    if (!isnan(*target))
        return 0;
    kj_error_set(error, "%.*s: '%s' is not %s", (int)length, word, value, accepted);
    return -1;
}

/* Own options are taken here; the common ones are handed on to the common list, in their order. */
static int parse(int argc, char **argv, struct plan *plan, struct kj_error *error)
{
    char *common[32];
    int count = 0, used = 0;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        size_t length = strcspn(word, "=");
        bool own = is_among(own_options, 3, word, length);
        if (*word != '-') {
            kj_error_set(error, "estimate: '%s' is no option; kjoule estimate --help shows how", word);
            return -1;
        }
        if (!own && !is_among(common_options, 3, word, length))
            return unknown_option(word, error);
        if (!word[length] && i + 1 >= argc) {
            kj_error_set(error, "%s needs a value", word);
            return -1;
        }
        const char *value = word[length] ? word + length + 1 : argv[++i];
        if (own && take_own(plan, word, length, value, error))
            return -1;
        if (own)
            continue;
        if (count + 2 > (int)(sizeof(common) / sizeof(*common))) {
            kj_error_set(error, "estimate: too many options");
            return -1;
        }
        common[count++] = argv[word[length] ? i : i - 1];
        if (!word[length])
            common[count++] = argv[i];
    }
    if (kj_options_parse(count, common, &plan->options, &used, error))
        return -1;
    if (!plan->power || !plan->time) {
        kj_error_set(error, "estimate needs %s%s%s, as in: kjoule estimate --power 300 --time 3h",
                     plan->power ? "" : "--power W", !plan->power && !plan->time ? " and " : "",
                     plan->time ? "" : "--time DURATION");
        return -1;
    }
    return 0;
}

static void print_factor(const struct kj_factor *f)
{
    printf("%.4g gCO2e/kWh (90 %%: %.3g to %.3g", f->g_per_kwh, f->low_g_per_kwh, f->high_g_per_kwh);
    if (f->year)
        printf("; %s, %s, %d)\n             %s, %s\n", f->basis, f->boundary, f->year, f->source, f->licence);
    else
        printf(")\n             %s\n", f->source);
}

static void print_steps(const struct plan *plan, const struct kj_factor_choice *choice)
{
    double pue = plan->options.number[KJ_OPT_PUE], watts = plan->power_w * plan->gpus;
    double uj = watts * plan->time_s * (double)KJ_UJ_PER_J, low_g, high_g;
    double grams = kj_carbon_grams(uj, pue, choice->factor.g_per_kwh);
    char power[32], time[32], mass[32], low[32], high[32], where[256];
    kj_format_power(power, sizeof(power), watts * 1e3);
    kj_format_time(time, sizeof(time), plan->time_s * (double)KJ_NS_PER_S);
    kj_format_mass(mass, sizeof(mass), grams);
    kj_carbon_interval(uj, uj, uj, pue, &choice->factor, &low_g, &high_g);
    printf("C = E x T x R: power x time x grid intensity\n\n");
    printf("E  power     %s%s", power, plan->gpus > 1 ? "" : "\n");
    if (plan->gpus > 1)
        printf(" = %.0f GPUs x %.6g W\n", plan->gpus, plan->power_w);
    printf("T  time      %s = %.6g h\n", time, plan->time_s / 3600);
    printf("   energy    %.6g W x %.6g h = %.6g kWh\n", watts, plan->time_s / 3600,
           uj / (double)KJ_UJ_PER_KWH);
    printf("   building  x PUE %.4g = %.6g kWh\n", pue, uj / (double)KJ_UJ_PER_KWH * pue);
    printf("R  grid      %s, %s: ", choice->factor.code, choice->factor.name);
    print_factor(&choice->factor);
    printf("             from: %s\n", kj_location_text(&choice->location, where, sizeof(where)));
    printf("C  emissions %.6g kWh x %.4g g/kWh = %s CO2e (90 %%, of the grid alone: %s to %s)\n",
           uj / (double)KJ_UJ_PER_KWH * pue, choice->factor.g_per_kwh, mass,
           kj_format_mass(low, sizeof(low), low_g), kj_format_mass(high, sizeof(high), high_g));
    if (choice->has_alternative) {
        const struct kj_factor *f = &choice->alternative;
        kj_format_mass(mass, sizeof(mass), kj_carbon_grams(uj, pue, f->g_per_kwh));
        printf("   or        %s on the %s basis: ", mass, f->basis);
        print_factor(f);
    }
}

int kj_cmd_estimate(int argc, char **argv)
{
    struct plan plan = {.gpus = 1};
    struct kj_error error = {0};
    struct kj_factor_choice choice;
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            fputs(usage, stdout);
            return 0;
        }
    if (parse(argc, argv, &plan, &error)) {
        kj_say("%s", error.text);
        return KJ_EXIT_USAGE;
    }
    const char *zone = plan.options.text[KJ_OPT_ZONE],
               *intensity = plan.options.text[KJ_OPT_CARBON_INTENSITY];
    struct kj_zone_request request = {.zone = zone,
                                      .g_per_kwh =
                                          *intensity ? plan.options.number[KJ_OPT_CARBON_INTENSITY] : -1,
                                      .root = ""};
    if (kj_carbon_choose(&request, &choice, &error)) {
        kj_say("%s", error.text);
        return KJ_EXIT_USAGE;
    }
    print_steps(&plan, &choice);
    if (choice.location.is_default && strcmp(choice.factor.code, "user"))
        kj_warn("the place is not known, so the world's average is used; --zone FR (kjoule zones lists them) "
                "says it");
    return 0;
}
