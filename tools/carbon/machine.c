/* SPDX-License-Identifier: Apache-2.0
 *
 * machine.c - what a machine says of where it is: its cloud's variables and files, its firmware, its time
 * zone.
 */
#include "carbon/lookup.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define DMI "/sys/class/dmi/id/"

/* What firmware says on the machines of a cloud. Hyper-V alone is not Azure, and a Chromebook is of Google
 * too: hence the fields that only the clouds set so. */
static const struct {
    const char *file, *text, *provider;
} firmware[] = {
    {"sys_vendor", "Amazon EC2", "aws"},
    {"bios_vendor", "Amazon EC2", "aws"},
    {"bios_version", "amazon", "aws"}, /* older instances, on Xen */
    {"product_name", "Google Compute Engine", "gcp"},
    {"chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77", "azure"},
    {"chassis_asset_tag", "OracleCloud.com", "oracle"},
};

enum dmi { DMI_UNREADABLE, DMI_OTHER, DMI_CLOUD };

static enum dmi read_dmi(const struct kj_search *search, const char **ret_provider, char *evidence,
                         size_t size)
{
    enum dmi answer = DMI_UNREADABLE;
    for (size_t i = 0; i < sizeof(firmware) / sizeof(*firmware); i++) {
        char path[64];
        snprintf(path, sizeof(path), DMI "%s", firmware[i].file);
        char *text = kj_search_file(search, path);
        if (!text)
            continue;
        text[strcspn(text, "\n")] = 0;
        bool same = strcasestr(text, firmware[i].text);
        if (same) {
            *ret_provider = firmware[i].provider;
            snprintf(evidence, size, "%s: %s", path, text);
        }
        if (*text)
            answer = DMI_OTHER;
        free(text);
        if (same)
            return DMI_CLOUD;
    }
    return answer;
}

/* `with`: another name that must be set too, where the first is too common to be believed alone. */
static const struct {
    const char *name, *provider, *with;
} region_variables[] = {
    {"AWS_REGION", "aws", NULL},
    {"AWS_DEFAULT_REGION", "aws", NULL},
    {"GOOGLE_CLOUD_REGION", "gcp", NULL},
    {"CLOUDSDK_COMPUTE_REGION", "gcp", NULL},
    {"CLOUDSDK_COMPUTE_ZONE", "gcp", NULL},
    {"REGION_NAME", "azure", "WEBSITE_SITE_NAME"},
};

/* These variables also say which region a laptop's command line talks to. So they count on a machine of that
 * cloud, for little where firmware cannot be read, and not at all where firmware names another maker. */
int kj_zone_from_cloud_environment(struct kj_search *search, struct kj_location *location,
                                   struct kj_error *error)
{
    (void)error;
    const char *provider = NULL;
    char evidence[160];
    enum dmi dmi = read_dmi(search, &provider, evidence, sizeof(evidence));
    if (dmi == DMI_OTHER)
        return 0;
    for (size_t i = 0; i < sizeof(region_variables) / sizeof(*region_variables); i++) {
        const char *value = kj_search_env(search, region_variables[i].name);
        if (!value || (region_variables[i].with && !kj_search_env(search, region_variables[i].with)))
            continue;
        if (provider && strcmp(provider, region_variables[i].provider))
            continue;
        if (!kj_zone_of_cloud(region_variables[i].provider, value, location))
            continue;
        kj_location_found(location, "cloud_environment",
                          dmi == DMI_CLOUD ? KJ_CONFIDENCE_HIGH : KJ_CONFIDENCE_LOW, "%s=%s",
                          region_variables[i].name, value);
        return 1;
    }
    return 0;
}

int kj_zone_from_cloud_init(struct kj_search *search, struct kj_location *location, struct kj_error *error)
{
    static const char path[] = "/run/cloud-init/instance-data.json";
    (void)error;
    char *data = kj_search_file(search, path);
    json_t *root = data ? json_loads(data, JSON_REJECT_DUPLICATES, NULL) : NULL;
    free(data);
    json_t *v1 = json_object_get(root, "v1");
    const char *cloud = json_string_value(json_object_get(v1, "cloud_name"));
    const char *const places[] = {"region", "availability_zone"};
    int found = 0;
    if (!cloud)
        cloud = json_string_value(json_object_get(v1, "cloud-name"));
    for (int i = 0; cloud && !found && i < 2; i++) {
        const char *place = json_string_value(json_object_get(v1, places[i]));
        if (place && kj_zone_of_cloud(cloud, place, location)) {
            kj_location_found(location, "cloud_init", KJ_CONFIDENCE_HIGH, "%s: %s %s", path, cloud, place);
            found = 1;
        }
    }
    json_decref(root);
    return found;
}

int kj_zone_from_dmi(struct kj_search *search, struct kj_location *location, struct kj_error *error)
{
    (void)location, (void)error;
    const char *provider = NULL;
    if (read_dmi(search, &provider, search->dmi_evidence, sizeof(search->dmi_evidence)) == DMI_CLOUD)
        snprintf(search->dmi_provider, sizeof(search->dmi_provider), "%s", provider);
    return 0; /* a cloud is not a place: the search goes on */
}

/* A name that ends in a star, US/ and its like, stands for every name of that family. */
static const char *country_of(const char *name)
{
    const struct kj_named_zone *zone;
    for (size_t i = 0; (zone = kj_timezone_at(i)); i++) {
        size_t length = strlen(zone->name);
        if (!strcmp(zone->name, name) ||
            (zone->name[length - 1] == '*' && !strncmp(zone->name, name, length - 1)))
            return zone->code;
    }
    return NULL;
}

/* UTC, Etc/GMT-2 and CET-1CEST name no country: then it is as if nothing had been said. */
static int take_time_zone(struct kj_location *location, const char *text, const char *from)
{
    const char *name = strstr(text, "zoneinfo/"); /* a path, as TZ and the link may be */
    name = name ? name + 9 : *text == ':' ? text + 1 : text;
    if (!strncmp(name, "posix/", 6) || !strncmp(name, "right/", 6))
        name += 6;
    const char *code = country_of(name);
    if (!code)
        return 0;
    snprintf(location->code, sizeof(location->code), "%s", code);
    kj_location_found(location, "time_zone", KJ_CONFIDENCE_LOW, "%s%s", from, name);
    return 1;
}

int kj_zone_from_time_zone(struct kj_search *search, struct kj_location *location, struct kj_error *error)
{
    (void)error;
    const char *tz = kj_search_env(search, "TZ");
    if (tz && take_time_zone(location, tz, "TZ="))
        return 1;
    char *file = kj_search_file(search, "/etc/timezone");
    if (file)
        file[strcspn(file, " \t\r\n")] = 0;
    int found = file && take_time_zone(location, file, "/etc/timezone: ");
    free(file);
    if (found)
        return 1;
    char path[4096], target[512];
    snprintf(path, sizeof(path), "%s/etc/localtime", search->request->root ? search->request->root : "");
    ssize_t length = readlink(path, target, sizeof(target) - 1);
    if (length <= 0)
        return 0;
    target[length] = 0;
    return take_time_zone(location, target, "/etc/localtime: ");
}
