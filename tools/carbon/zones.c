/* SPDX-License-Identifier: Apache-2.0
 *
 * zones.c - where is this run, and which factor prices it. The order of asking is the table `sources`; the
 * first that knows is believed, and what it said is kept as evidence. No network, and no guess: a place that
 * nobody names is WORLD.
 */
#include "carbon/lookup.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

#define FILE_MAX_BYTES (1 << 20) /* cloud-init's instance data is some tens of KiB */

const char *kj_search_env(const struct kj_search *search, const char *name)
{
    const char *const *entry = search->request->environment;
    size_t length = strlen(name);
    for (entry = entry ? entry : (const char *const *)environ; entry && *entry; entry++)
        if (!strncmp(*entry, name, length) && (*entry)[length] == '=')
            return (*entry)[length + 1] ? *entry + length + 1 : NULL;
    return NULL;
}

char *kj_search_file(const struct kj_search *search, const char *path)
{
    char full[4096];
    const char *root = *path == '/' && search->request->root ? search->request->root : "";
    if (snprintf(full, sizeof(full), "%s%s", root, path) >= (int)sizeof(full))
        return NULL;
    /* Links are followed: people keep their settings in one folder and link to it. O_NONBLOCK: a FIFO must
     * not wait. */
    int fd = open(full, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return NULL;
    struct stat st;
    char *data = !fstat(fd, &st) && S_ISREG(st.st_mode) ? malloc(FILE_MAX_BYTES + 1) : NULL;
    size_t size = 0;
    ssize_t n = 0;
    while (data && size < FILE_MAX_BYTES && (n = read(fd, data + size, FILE_MAX_BYTES - size)) > 0)
        size += (size_t)n;
    close(fd);
    if (!data || n < 0 || size == FILE_MAX_BYTES) {
        free(data);
        return NULL;
    }
    data[size] = 0;
    return data;
}

void kj_location_found(struct kj_location *location, const char *method, enum kj_confidence confidence,
                       const char *format, ...)
{
    va_list arguments;
    snprintf(location->method, sizeof(location->method), "%s", method);
    location->confidence = confidence;
    va_start(arguments, format);
    vsnprintf(location->evidence, sizeof(location->evidence), format, arguments);
    va_end(arguments);
    for (char *c = location->evidence; *c; c++)
        if ((unsigned char)*c < ' ')
            *c = ' '; /* it will stand in one line of a report */
}

/* Callers hand over the value of --zone or of KJOULE_ZONE alike: one that equals the variable came from
 * there. */
static bool is_from_environment(const struct kj_search *search)
{
    const char *value = kj_search_env(search, "KJOULE_ZONE"), *zone = search->request->zone;
    return value && (!zone || !*zone || !strcmp(value, zone));
}

static int from_flag(struct kj_search *search, struct kj_location *location, struct kj_error *error)
{
    const char *zone = search->request->zone;
    if (!zone || !*zone || is_from_environment(search))
        return 0;
    kj_location_found(location, "flag", KJ_CONFIDENCE_HIGH, "--zone %s", zone);
    int status = kj_zone_parse(zone, "--zone", location, error);
    return status ? status : 1;
}

static int from_environment(struct kj_search *search, struct kj_location *location, struct kj_error *error)
{
    if (!is_from_environment(search))
        return 0;
    const char *zone = kj_search_env(search, "KJOULE_ZONE");
    kj_location_found(location, "environment", KJ_CONFIDENCE_HIGH, "KJOULE_ZONE=%s", zone);
    int status = kj_zone_parse(zone, "KJOULE_ZONE", location, error);
    return status ? status : 1;
}

/* The order of asking: what people said of this run, of this machine, then what the machine says of itself.
 */
static kj_zone_source *const sources[] = {
    from_flag,                      /* --zone */
    from_environment,               /* KJOULE_ZONE */
    kj_zone_from_config,            /* ./.kjoule.conf, ~/.config/kjoule/config, /etc/kjoule/kjoule.conf */
    kj_zone_from_codecarbon,        /* CODECARBON_*, ./.codecarbon.config, ~/.codecarbon.config */
    kj_zone_from_cloud_environment, /* AWS_REGION and its like, unless the machine is plainly not of that
                                       cloud */
    kj_zone_from_cloud_init,        /* /run/cloud-init/instance-data.json */
    kj_zone_from_dmi,               /* /sys/class/dmi/id: the provider, never the region */
    kj_zone_from_time_zone,         /* TZ, /etc/timezone, /etc/localtime: a country at best */
};

static int find_location(struct kj_search *search, struct kj_location *location, struct kj_error *error)
{
    for (size_t i = 0; i < sizeof(sources) / sizeof(*sources); i++) {
        memset(location, 0, sizeof(*location));
        int status = sources[i](search, location, error);
        if (status < 0)
            return status;
        if (!status)
            continue;
        if (!*location->cloud_provider &&
            *search->dmi_provider) /* the cloud is known by one source, the place by another */
            memcpy(location->cloud_provider, search->dmi_provider, sizeof(location->cloud_provider));
        return 0;
    }
    memset(location, 0, sizeof(*location));
    location->is_default = true;
    memcpy(location->code, "WORLD", 6);
    memcpy(location->cloud_provider, search->dmi_provider, sizeof(location->cloud_provider));
    if (*search->dmi_provider)
        kj_location_found(location, "dmi", KJ_CONFIDENCE_LOW, "%s: the cloud, not the region; --zone says it",
                          search->dmi_evidence);
    else
        kj_location_found(location, "none", KJ_CONFIDENCE_LOW,
                          "nothing here names a place; --zone or KJOULE_ZONE says it");
    return 0;
}

static const struct kj_cloud_region *region_of(const struct kj_location *location)
{
    const struct kj_cloud_region *r;
    for (size_t i = 0; (r = kj_cloud_region_at(i)); i++)
        if (!strcmp(r->provider, location->cloud_provider) && !strcmp(r->region, location->cloud_region))
            return r;
    return NULL;
}

static struct kj_factor users_own(double g_per_kwh, bool from_option)
{
    return (struct kj_factor){.code = "user",
                              .name = "the user's own factor",
                              .g_per_kwh = g_per_kwh,
                              .low_g_per_kwh = g_per_kwh,
                              .high_g_per_kwh = g_per_kwh,
                              .interval_basis = "taken as exact: the user gave it",
                              .source = from_option ? "--carbon-intensity or KJOULE_CARBON_INTENSITY"
                                                    : "carbon_intensity of a configuration file",
                              .licence = "the user's own",
                              .basis = "user",
                              .boundary = "user"};
}

/* Lifecycle prices a run wherever it is known, so that two runs compare; a figure of the same place on the
 * other basis stands beside it. A cloud's own figure is direct, and finer than the grid around it. */
static void pick_factor(struct kj_factor_choice *choice)
{
    const struct kj_cloud_region *region = region_of(&choice->location);
    const struct kj_factor *lifecycle = kj_factor_find(choice->location.code, "lifecycle");
    const struct kj_factor *direct =
        region && region->own.code ? &region->own : kj_factor_find(choice->location.code, "direct");
    choice->factor = lifecycle ? *lifecycle : *direct;
    choice->has_alternative = lifecycle && direct;
    if (choice->has_alternative)
        choice->alternative = *direct;
}

int kj_carbon_choose(const struct kj_zone_request *request, struct kj_factor_choice *ret_choice,
                     struct kj_error *error)
{
    struct kj_search search = {.request = request, .g_per_kwh = request->g_per_kwh};
    const char *where = "--carbon-intensity", *value = kj_search_env(&search, "KJOULE_CARBON_INTENSITY");
    memset(ret_choice, 0, sizeof(*ret_choice));
    memcpy(ret_choice->table_sha256, kj_carbon_tables_sha256, sizeof(kj_carbon_tables_sha256));
    bool from_option = !(search.g_per_kwh < 0);
    if (!from_option && value) {
        char *end;
        where = "KJOULE_CARBON_INTENSITY";
        search.g_per_kwh = strtod(value, &end);
        from_option = true;
        if (end == value || *end)
            search.g_per_kwh = NAN;
    }
    if (from_option && !(search.g_per_kwh >= 0 && isfinite(search.g_per_kwh))) {
        kj_error_set(error, "%s: '%.60s' is not gCO2e per kWh, 0 or more", where, value ? value : "nan");
        return -EINVAL;
    }
    int status = find_location(&search, &ret_choice->location, error);
    if (status)
        return status;
    if (search.g_per_kwh >= 0)
        ret_choice->factor = users_own(search.g_per_kwh, from_option);
    else
        pick_factor(ret_choice);
    return 0;
}

char *kj_location_text(const struct kj_location *location, char *buf, int size)
{
    char method[sizeof(location->method)];
    memcpy(method, location->method, sizeof(method));
    for (char *c = method; *c; c++)
        if (*c == '_')
            *c = ' ';
    snprintf(buf, (size_t)size, "%s, %s", method, location->evidence);
    return buf;
}
