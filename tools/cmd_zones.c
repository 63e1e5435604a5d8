/* SPDX-License-Identifier: Apache-2.0
 *
 * cmd_zones.c - `kjoule zones [PATTERN] [--format text|json]`: the zones and cloud regions that --zone knows.
 */
#include "carbon/carbon.h"
#include "commands.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static const char usage[] =
    "usage: kjoule zones [PATTERN] [--format text|json]\n"
    "The zones and cloud regions that --zone knows, with grams of CO2e per kWh. PATTERN: part of "
    "a code or a name.\n";

static bool region_matches(const struct kj_cloud_region *r, const char *pattern)
{
    char full[80];
    snprintf(full, sizeof(full), "%s:%s", r->provider, r->region);
    return strcasestr(full, pattern) || !strcasecmp(r->zone, pattern);
}

/* What a run there is priced with: lifecycle where it is known, as for every zone. */
static const struct kj_factor *region_factor(const struct kj_cloud_region *r)
{
    const struct kj_factor *lifecycle = kj_factor_find(r->zone, "lifecycle");
    return lifecycle ? lifecycle : r->own.code ? &r->own : kj_factor_find(r->zone, NULL);
}

/* printf pads by bytes; names hold letters of more than one. */
static void print_padded(const char *text, int columns)
{
    int width = 0;
    for (const char *c = text; *c; c++)
        width += (*c & 0xc0) != 0x80;
    printf("%s%*s", text, columns > width ? columns - width : 0, "");
}

static int print_text(const char *pattern)
{
    const struct kj_factor *f;
    const struct kj_cloud_region *r;
    int zones = 0, regions = 0;
    for (size_t i = 0; (f = kj_factor_at(i)); i++) {
        if (!kj_factor_matches(f, pattern))
            continue;
        if (!zones++)
            printf("%-14s  %7s  %-4s  %-9s  %-32s  %s\n", "zone", "g/kWh", "year", "basis", "name",
                   "source, licence");
        printf("%-14s  %7.1f  %4d  %-9s  ", f->code, f->g_per_kwh, f->year, f->basis);
        print_padded(f->name, 32);
        printf("  %s, %s\n", f->source, f->licence);
    }
    for (size_t i = 0; (r = kj_cloud_region_at(i)); i++) {
        if (!region_matches(r, pattern))
            continue;
        if (!regions++)
            printf("%s%-30s  %-14s  %7s  %s\n", zones ? "\n" : "", "cloud region", "zone", "g/kWh", "basis");
        const struct kj_factor *used = region_factor(r);
        printf("%s:%-*s  %-14s  %7.1f  %s\n", r->provider, 29 - (int)strlen(r->provider), r->region, r->zone,
               used->g_per_kwh, used->basis);
    }
    return zones + regions;
}

static json_t *factor_json(const struct kj_factor *f)
{
    return json_pack("{s:s, s:s, s:f, s:f, s:f, s:s, s:i, s:s, s:s, s:s, s:s}", "code", f->code, "name",
                     f->name, "g_per_kwh", f->g_per_kwh, "low_g_per_kwh", f->low_g_per_kwh, "high_g_per_kwh",
                     f->high_g_per_kwh, "interval_basis", f->interval_basis, "year", f->year, "basis",
                     f->basis, "boundary", f->boundary, "source", f->source, "licence", f->licence);
}

static int print_json(const char *pattern)
{
    const struct kj_factor *f;
    const struct kj_cloud_region *r;
    json_t *zones = json_array(), *regions = json_array();
    for (size_t i = 0; (f = kj_factor_at(i)); i++)
        if (kj_factor_matches(f, pattern))
            json_array_append_new(zones, factor_json(f));
    for (size_t i = 0; (r = kj_cloud_region_at(i)); i++)
        if (region_matches(r, pattern))
            json_array_append_new(regions, json_pack("{s:s, s:s, s:s, s:o}", "provider", r->provider,
                                                     "region", r->region, "zone", r->zone, "factor",
                                                     factor_json(region_factor(r))));
    int count = (int)(json_array_size(zones) + json_array_size(regions));
    json_t *root = json_pack("{s:o, s:o}", "zones", zones, "cloud_regions", regions);
    if (count && root) {
        json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
        putchar('\n');
    }
    json_decref(root);
    return count;
}

int kj_cmd_zones(int argc, char **argv)
{
    const char *pattern = NULL, *format = "text";
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            fputs(usage, stdout);
            return 0;
        }
        if (!strncmp(argv[i], "--format=", 9)) {
            format = argv[i] + 9;
        } else if (!strcmp(argv[i], "--format") && i + 1 < argc) {
            format = argv[++i];
        } else if (argv[i][0] == '-' && argv[i][1]) {
            kj_say("unknown option '%s' of zones; it takes [PATTERN] [--format text|json]", argv[i]);
            return KJ_EXIT_USAGE;
        } else if (pattern) {
            kj_say("zones takes one pattern, not also '%s'; quote a name of several words", argv[i]);
            return KJ_EXIT_USAGE;
        } else {
            pattern = argv[i];
        }
    }
    bool json = !strcmp(format, "json");
    if (!json && strcmp(format, "text")) {
        kj_say("--format: '%s' is not a format of zones; text and json are", format);
        return KJ_EXIT_USAGE;
    }
    if (json ? print_json(pattern ? pattern : "") : print_text(pattern ? pattern : ""))
        return 0;
    char near[240];
    kj_zone_suggest(pattern, near, sizeof(near));
    kj_say("no zone and no cloud region matches '%s'; %s%s", pattern,
           *near ? "near: " : "kjoule zones lists all", near);
    return KJ_EXIT_USAGE;
}
