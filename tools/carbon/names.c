/* SPDX-License-Identifier: Apache-2.0
 *
 * names.c - from what people and clouds call a place to a zone of the table, and the near ones when there is
 * none.
 */
#include "base/options.h"
#include "carbon/lookup.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define EGRID "US-EGRID-"

static bool is_code(const struct kj_factor *factor, const char *text)
{
    bool egrid = !strncmp(factor->code, EGRID, sizeof(EGRID) - 1);
    return !strcasecmp(factor->code, text) || (*text && !strcasecmp(kj_factor_iso2(factor), text)) ||
           (egrid && !strcasecmp(factor->code + sizeof(EGRID) - 1, text));
}

static const struct kj_factor *find_code(const char *text)
{
    const struct kj_factor *f;
    for (size_t i = 0; (f = kj_factor_at(i)); i++)
        if (is_code(f, text))
            return f;
    const struct kj_named_zone *alias;
    for (size_t i = 0; (alias = kj_alias_at(i)); i++)
        if (kj_same_name(alias->name, text))
            return kj_factor_find(alias->code, NULL);
    return NULL;
}

/* By full name. Some names are of two places (Georgia): then *ret_other is the second, and nobody may choose.
 */
static const struct kj_factor *find_name(const char *text, const struct kj_factor **ret_other)
{
    const struct kj_factor *f, *found = NULL;
    *ret_other = NULL;
    for (size_t i = 0; (f = kj_factor_at(i)); i++) {
        if (!kj_same_name(f->name, text))
            continue;
        if (!found)
            found = f;
        else if (strcmp(found->code, f->code))
            *ret_other = f;
    }
    return found;
}

const struct kj_factor *kj_zone_of_part(const char *country, const char *part)
{
    const struct kj_factor *whole = find_code(country), *f;
    if (!whole || !*kj_factor_iso2(whole))
        return NULL;
    for (size_t i = 0; (f = kj_factor_at(i)); i++)
        if (!strncmp(f->code, kj_factor_iso2(whole), 2) && f->code[2] == '-' &&
            strncmp(f->code, EGRID, sizeof(EGRID) - 1) &&
            (kj_same_name(f->name, part) || !strcasecmp(f->code + 3, part) || !strcasecmp(f->code, part)))
            return f;
    return NULL;
}

/* "IT-NO", "SE-SE3", "ES-IB-MA": a part of a country that the table has only whole. A misspelt US-XX stays
 * unknown. */
static const struct kj_factor *find_whole(const char *text)
{
    char country[4];
    size_t length = strcspn(text, "-");
    if (length < 2 || length > 3 || text[length] != '-')
        return NULL;
    for (const char *part = text + length; *part;) {
        size_t n = strcspn(++part, "-");
        if (!n || n > 3)
            return NULL;
        for (size_t i = 0; i < n; i++)
            if (!isalnum((unsigned char)part[i]))
                return NULL;
        part += n;
    }
    snprintf(country, sizeof(country), "%.*s", (int)length, text);
    const struct kj_factor *f, *whole = find_code(country);
    if (!whole || !*kj_factor_iso2(whole))
        return NULL;
    for (size_t i = 0; (f = kj_factor_at(i)); i++)
        if (!strncmp(f->code, kj_factor_iso2(whole), 2) && f->code[2] == '-')
            return NULL; /* this country's parts are known, and this is none of them */
    return whole;
}

static bool take_region(const struct kj_cloud_region *r, struct kj_location *location)
{
    snprintf(location->code, sizeof(location->code), "%s", r->zone);
    snprintf(location->cloud_provider, sizeof(location->cloud_provider), "%s", r->provider);
    snprintf(location->cloud_region, sizeof(location->cloud_region), "%s", r->region);
    return true;
}

/* provider NULL: any, if but one has it. */
static const struct kj_cloud_region *find_region(const char *provider, const char *region)
{
    const struct kj_cloud_region *r, *found = NULL;
    for (size_t i = 0; (r = kj_cloud_region_at(i)); i++) {
        if (provider && strcasecmp(provider, r->provider))
            continue;
        /* "West Europe" is how Azure shows its names; elsewhere us-east1 and us-east-1 are two places. */
        if (strcasecmp(region, r->region) &&
            !(provider && !strcmp(r->provider, "azure") && kj_same_name(region, r->region)))
            continue;
        if (found)
            return NULL;
        found = r;
    }
    return found;
}

bool kj_zone_of_cloud(const char *provider, const char *region, struct kj_location *location)
{
    char cut[48];
    if (!strcasecmp(provider, "gce") || !strcasecmp(provider, "google"))
        provider = "gcp";
    const struct kj_cloud_region *r = find_region(provider, region);
    if (r)
        return take_region(r, location);
    /* An availability zone: eu-west-3a, europe-west9-b. */
    size_t length = strlen(region);
    if (length < 4 || length >= sizeof(cut) || !islower((unsigned char)region[length - 1]))
        return false;
    memcpy(cut, region, length + 1);
    cut[length - 1] = 0;
    if (cut[length - 2] == '-')
        cut[length - 2] = 0;
    r = find_region(provider, cut);
    return r && take_region(r, location);
}

struct near {
    const struct kj_factor *factor;
    const struct kj_cloud_region *region;
    int distance;
};

#define NEAR_MAX 3

/* Keeps the nearest few, one entry a place. */
static void keep_near(struct near *nearest, struct near one)
{
    int at = NEAR_MAX;
    for (int i = 0; i < NEAR_MAX; i++) {
        bool same = one.factor && nearest[i].factor && !strcmp(nearest[i].factor->code, one.factor->code);
        if (same && nearest[i].distance <= one.distance)
            return;
        if (same) {
            memmove(&nearest[i], &nearest[i + 1], sizeof(*nearest) * (size_t)(NEAR_MAX - 1 - i));
            nearest[NEAR_MAX - 1] = (struct near){.distance = 999};
        }
    }
    while (at > 0 && nearest[at - 1].distance > one.distance)
        at--;
    if (at == NEAR_MAX)
        return;
    memmove(&nearest[at + 1], &nearest[at], sizeof(*nearest) * (size_t)(NEAR_MAX - 1 - at));
    nearest[at] = one;
}

/* Twice the edit distance, and one more when the first letter differs: people seldom mistype it. Far ones are
 * 999. */
static int nearness(const char *text, const char *name)
{
    int distance = kj_edit_distance(text, name);
    int allowed = strlen(text) <= 3 ? 1 : 1 + (int)strnlen(text, 20) / 5;
    return distance > allowed
               ? 999
               : 2 * distance + (tolower((unsigned char)*text) != tolower((unsigned char)*name));
}

char *kj_zone_suggest(const char *text, char *buf, int size)
{
    struct near nearest[NEAR_MAX] = {{.distance = 999}, {.distance = 999}, {.distance = 999}};
    const struct kj_factor *f;
    for (size_t i = 0; (f = kj_factor_at(i)); i++) {
        keep_near(nearest, (struct near){.factor = f, .distance = nearness(text, f->code)});
        keep_near(nearest, (struct near){.factor = f, .distance = nearness(text, f->name)});
    }
    const struct kj_named_zone *alias;
    for (size_t i = 0; (alias = kj_alias_at(i)); i++)
        keep_near(nearest, (struct near){.factor = kj_factor_find(alias->code, NULL),
                                         .distance = nearness(text, alias->name)});
    const struct kj_cloud_region *r;
    for (size_t i = 0; (r = kj_cloud_region_at(i)); i++) {
        char full[80];
        snprintf(full, sizeof(full), "%s:%s", r->provider, r->region);
        const char *name = strchr(text, ':') ? full : r->region;
        keep_near(nearest, (struct near){.region = r, .distance = nearness(text, name)});
    }
    int used = 0;
    *buf = 0;
    for (int i = 0; i < NEAR_MAX && nearest[i].distance < 999 && used < size; i++) {
        const struct near *n = &nearest[i];
        const char *comma = used ? ", " : "";
        used += n->factor ? snprintf(buf + used, (size_t)(size - used), "%s%s (%s)", comma, n->factor->code,
                                     n->factor->name)
                          : snprintf(buf + used, (size_t)(size - used), "%s%s:%s", comma, n->region->provider,
                                     n->region->region);
    }
    return buf;
}

static int unknown_zone(const char *text, const char *where, struct kj_error *error)
{
    char near[240], shown[64];
    snprintf(shown, sizeof(shown), "%s", text);
    for (char *c = shown; *c; c++)
        if (iscntrl((unsigned char)*c))
            *c = '?';
    if (!error)
        return -EINVAL;
    kj_zone_suggest(shown, near, sizeof(near));
    if (*near)
        kj_error_set(error, "%s: unknown zone '%s'; did you mean %s? (kjoule zones lists them)", where, shown,
                     near);
    else
        kj_error_set(
            error,
            "%s: unknown zone '%s'; a country (FR), a state (US-CA) or a cloud region (aws:eu-west-3) is "
            "meant, kjoule zones lists them",
            where, shown);
    return -EINVAL;
}

int kj_zone_parse(const char *text, const char *where, struct kj_location *location, struct kj_error *error)
{
    const char *colon = strchr(text, ':');
    if (colon) {
        char provider[16];
        snprintf(provider, sizeof(provider), "%.*s", (int)(colon - text), text);
        return kj_zone_of_cloud(provider, colon + 1, location) ? 0 : unknown_zone(text, where, error);
    }
    const struct kj_factor *other = NULL, *found = find_code(text);
    if (!found)
        found = find_name(text, &other);
    if (other) {
        if (error)
            kj_error_set(error, "%s: '%.60s' is the name of two places; say %s or %s", where, text,
                         found->code, other->code);
        return -EINVAL;
    }
    const struct kj_cloud_region *region = found ? NULL : find_region(NULL, text);
    if (region)
        return take_region(region, location) ? 0 : -EINVAL;
    if (!found)
        found = find_whole(text);
    if (!found)
        return unknown_zone(text, where, error);
    snprintf(location->code, sizeof(location->code), "%s", found->code);
    return 0;
}
