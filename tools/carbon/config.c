/* SPDX-License-Identifier: Apache-2.0
 *
 * config.c - places that people wrote down: kjoule's configuration files, and CodeCarbon's, which many
 * projects have.
 *
 * kjoule's own:    zone = FR               and for the machines of a site, in /etc/kjoule/kjoule.conf:
 *                  carbon_intensity = 42   [cluster "jean-zay*"]   matched with SLURM_CLUSTER_NAME and the
 * host name zone = FR A wrong line of kjoule's own file is an error; CodeCarbon's files are not kjoule's to
 * judge.
 */
#include "carbon/lookup.h"

#include <ctype.h>
#include <errno.h>
#include <fnmatch.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* One setting of an INI file; texts point into the file's data, which is cut up. */
struct setting {
    const char *section, *key, *value;
    int line;
};

static char *trim(char *text)
{
    while (isspace((unsigned char)*text))
        text++;
    size_t length = strlen(text);
    while (length && isspace((unsigned char)text[length - 1]))
        text[--length] = 0;
    if (length >= 2 && (*text == '"' || *text == '\'') && text[length - 1] == *text) {
        text[length - 1] = 0;
        text++;
    }
    return text;
}

/* Takes the next setting from *rest. 1, 0 at the end, -EINVAL for a line that is none (out->line tells).
 * Begin with *out zeroed and section "". */
static int next_setting(char **rest, struct setting *out)
{
    while (*rest && **rest) {
        char *raw = strsep(rest, "\n");
        out->line++;
        char *line = trim(raw);
        if (!*line || *line == '#' || *line == ';')
            continue;
        if (*line == '[') {
            line[strcspn(line, "]")] = 0;
            out->section = trim(line + 1);
            continue;
        }
        size_t split = strcspn(line, "=:");
        if (!line[split])
            return -EINVAL;
        line[split] = 0;
        out->key = trim(line);
        out->value = trim(line + split + 1);
        return 1;
    }
    return 0;
}

/* Whether a section speaks of this machine: 2 a cluster that it is of, 1 everywhere, 0 another cluster. */
static int section_rank(const struct kj_search *search, const char *section)
{
    char pattern[64];
    if (!*section || !strcmp(section, "kjoule"))
        return 1;
    if (strncmp(section, "cluster", 7))
        return -EINVAL;
    snprintf(pattern, sizeof(pattern), "%s", section + 7);
    const char *glob = trim(pattern), *cluster = kj_search_env(search, "SLURM_CLUSTER_NAME");
    if (cluster && !fnmatch(glob, cluster, 0))
        return 2;
    char *host = kj_search_file(search, "/proc/sys/kernel/hostname");
    bool same = host && !fnmatch(glob, trim(host), 0);
    free(host);
    return same ? 2 : 0;
}

static int wrong_line(const char *path, const struct setting *s, const char *what, struct kj_error *error)
{
    kj_error_set(error, "%s line %d: %s; zone, carbon_intensity and [cluster \"NAME\"] are known", path,
                 s->line, what);
    return -EINVAL;
}

/* What one file says, the most particular section winning. */
struct said {
    char zone[64], where[200];
    int zone_rank, intensity_rank;
    double g_per_kwh;
};

static int take_setting(const struct kj_search *search, const char *path, const struct setting *s,
                        struct said *said, struct kj_error *error)
{
    int rank = section_rank(search, s->section);
    if (rank < 0)
        return wrong_line(path, s, "unknown section", error);
    if (!strcmp(s->key, "zone")) {
        if (rank < said->zone_rank || !rank)
            return 0;
        said->zone_rank = rank;
        snprintf(said->zone, sizeof(said->zone), "%s", s->value);
        snprintf(said->where, sizeof(said->where), "%s line %d", path, s->line);
        return 0;
    }
    if (strcmp(s->key, "carbon_intensity"))
        return wrong_line(path, s, "unknown setting", error);
    char *end;
    double g = strtod(s->value, &end);
    if (end == s->value || *end || !isfinite(g) || g < 0)
        return wrong_line(path, s, "carbon_intensity is gCO2e per kWh, 0 or more", error);
    if (rank && rank >= said->intensity_rank) {
        said->intensity_rank = rank;
        said->g_per_kwh = g;
    }
    return 0;
}

static int read_config(struct kj_search *search, const char *path, struct kj_location *location,
                       struct kj_error *error)
{
    char *data = kj_search_file(search, path), *rest = data;
    struct setting s = {.section = ""};
    struct said said = {0};
    int status = 0, wrong = 0;
    while (data && !wrong && (status = next_setting(&rest, &s)) > 0)
        wrong = take_setting(search, path, &s, &said, error);
    if (status < 0)
        wrong = wrong_line(path, &s, "not a setting (name = value)", error);
    free(data);
    if (wrong)
        return wrong;
    if (said.intensity_rank && search->g_per_kwh < 0)
        search->g_per_kwh = said.g_per_kwh;
    if (!*said.zone)
        return 0;
    kj_location_found(location, "config", KJ_CONFIDENCE_HIGH, "%s: zone=%s", said.where, said.zone);
    status = kj_zone_parse(said.zone, said.where, location, error);
    return status ? status : 1;
}

int kj_zone_from_config(struct kj_search *search, struct kj_location *location, struct kj_error *error)
{
    char home[1024] = "";
    const char *xdg = kj_search_env(search, "XDG_CONFIG_HOME"), *user = kj_search_env(search, "HOME");
    if (xdg && *xdg == '/')
        snprintf(home, sizeof(home), "%s/kjoule/config", xdg);
    else if (user && *user == '/')
        snprintf(home, sizeof(home), "%s/.config/kjoule/config", user);
    const char *const paths[] = {".kjoule.conf", home, "/etc/kjoule/kjoule.conf"};
    int status = 0;
    for (size_t i = 0; !status && i < sizeof(paths) / sizeof(*paths); i++)
        if (*paths[i])
            status = read_config(search, paths[i], location, error);
    return status;
}

/* The settings of CodeCarbon that name a place. Each is looked for in its environment, the current folder,
 * the home: the order in which CodeCarbon lets one win. */
enum { COUNTRY, REGION, PROVIDER, CLOUD_REGION, PLACE_COUNT };
static const struct {
    const char *key, *environment;
} place_keys[PLACE_COUNT] = {
    [COUNTRY] = {"country_iso_code", "CODECARBON_COUNTRY_ISO_CODE"},
    [REGION] = {"region", "CODECARBON_REGION"},
    [PROVIDER] = {"cloud_provider", "CODECARBON_CLOUD_PROVIDER"},
    [CLOUD_REGION] = {"cloud_region", "CODECARBON_CLOUD_REGION"},
};

struct place {
    char value[PLACE_COUNT][64];
    char from[PLACE_COUNT][64];
};

static void set_place(struct place *place, int key, const char *value, const char *from)
{
    if (*place->value[key] || !value || !*value)
        return;
    snprintf(place->value[key], sizeof(place->value[key]), "%s", value);
    snprintf(place->from[key], sizeof(place->from[key]), "%s", from);
}

static void read_codecarbon(const struct kj_search *search, const char *path, const char *shown,
                            struct place *place)
{
    char *data = kj_search_file(search, path), *rest = data;
    struct setting s = {.section = ""};
    int status;
    while (data && (status = next_setting(&rest, &s)))
        for (int k = 0; status > 0 && k < PLACE_COUNT; k++)
            if (!strcasecmp(s.section, "codecarbon") && !strcasecmp(s.key, place_keys[k].key))
                set_place(place, k, s.value, shown);
    free(data);
}

int kj_zone_from_codecarbon(struct kj_search *search, struct kj_location *location, struct kj_error *error)
{
    (void)error;
    struct place place = {0};
    char path[1024];
    const char *home = kj_search_env(search, "HOME");
    for (int k = 0; k < PLACE_COUNT; k++)
        set_place(&place, k, kj_search_env(search, place_keys[k].environment), place_keys[k].environment);
    read_codecarbon(search, ".codecarbon.config", "./.codecarbon.config", &place);
    if (home && *home == '/') {
        snprintf(path, sizeof(path), "%s/.codecarbon.config", home);
        read_codecarbon(search, path, "~/.codecarbon.config", &place);
    }
    if (*place.value[PROVIDER] && *place.value[CLOUD_REGION] &&
        kj_zone_of_cloud(place.value[PROVIDER], place.value[CLOUD_REGION], location)) {
        kj_location_found(location, "codecarbon_config", KJ_CONFIDENCE_HIGH, "%s: cloud_region=%s",
                          place.from[CLOUD_REGION], place.value[CLOUD_REGION]);
        return 1;
    }
    if (!*place.value[COUNTRY] || kj_zone_parse(place.value[COUNTRY], NULL, location, NULL))
        return 0;
    const struct kj_factor *part = kj_zone_of_part(place.value[COUNTRY], place.value[REGION]);
    if (part) {
        snprintf(location->code, sizeof(location->code), "%s", part->code);
        kj_location_found(location, "codecarbon_config", KJ_CONFIDENCE_HIGH,
                          "%s: country_iso_code=%s region=%s", place.from[COUNTRY], place.value[COUNTRY],
                          place.value[REGION]);
    } else {
        kj_location_found(location, "codecarbon_config", KJ_CONFIDENCE_HIGH, "%s: country_iso_code=%s",
                          place.from[COUNTRY], place.value[COUNTRY]);
    }
    return 1;
}
