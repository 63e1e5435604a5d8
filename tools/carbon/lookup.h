/* SPDX-License-Identifier: Apache-2.0
 *
 * lookup.h - between the files of this room: tables by index, texts to zones, and where a machine says it is.
 */
#ifndef KJ_CARBON_LOOKUP_H
#define KJ_CARBON_LOOKUP_H

#include "carbon/carbon.h"

/* Another name of a zone (aliases.csv), or a time zone of a country (timezones.csv). */
struct kj_named_zone {
    const char *name, *code;
};
const struct kj_named_zone *kj_alias_at(size_t index);
const struct kj_named_zone *kj_timezone_at(size_t index);

/* The two-letter code of a factor row, "" when it has none. */
const char *kj_factor_iso2(const struct kj_factor *factor);
extern const char kj_carbon_tables_sha256[65];

/* Letters and digits alike, case and everything else ignored: "United-States" is "united states". */
bool kj_same_name(const char *a, const char *b);

/* Finds the zone that a person or a file names: FR, FRA, France, US-CA, CAMX, aws:eu-west-3, IT-NO (as ITA).
 * Fills code and cloud_* of the location. -EINVAL: error says so, beginning with `where` (may be NULL with
 * error). */
int kj_zone_parse(const char *text, const char *where, struct kj_location *location, struct kj_error *error);

/* A cloud region as clouds write it, also as one of its availability zones. False when the table has none. */
bool kj_zone_of_cloud(const char *provider, const char *region, struct kj_location *location);

/* A part of a country by its name: "USA", "california" -> US-CA. NULL when the table has none. */
const struct kj_factor *kj_zone_of_part(const char *country, const char *part);

/* What the sources of a resolution share. */
struct kj_search {
    const struct kj_zone_request *request;
    double g_per_kwh; /* the user's own number, < 0 when none so far */
    char g_evidence[160];
    char dmi_provider[16], dmi_evidence[160]; /* set by the dmi source when only the provider is known */
};

/* A source of a location: 1 found, 0 it does not know, -EINVAL what it says is wrong. */
typedef int kj_zone_source(struct kj_search *search, struct kj_location *location, struct kj_error *error);
kj_zone_source kj_zone_from_config, kj_zone_from_codecarbon;            /* config.c */
kj_zone_source kj_zone_from_cloud_environment, kj_zone_from_cloud_init; /* machine.c */
kj_zone_source kj_zone_from_dmi, kj_zone_from_time_zone;

/* A variable of the request's environment; NULL when unset or empty. */
const char *kj_search_env(const struct kj_search *search, const char *name);

/* A whole small file, NUL-terminated, links followed; absolute paths are under the request's root. NULL when
 * it is not there, not regular, or over the size that any such file has. The caller frees it. */
char *kj_search_file(const struct kj_search *search, const char *path);

/* Evidence is cut to its size, never an error. */
void kj_location_found(struct kj_location *location, const char *method, enum kj_confidence confidence,
                       const char *format, ...) __attribute__((format(printf, 4, 5)));

#endif
