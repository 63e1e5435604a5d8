/* SPDX-License-Identifier: Apache-2.0
 *
 * carbon.h - R of C = E x T x R: which grid, and grams of CO2e per kWh, from tables the project carries. No
 * network.
 *
 * Factors are location-based yearly averages. Both bases are kept apart: lifecycle (Ember) and direct
 * (national inventories). A country is never guessed: unknown is WORLD with its bracket.
 */
#ifndef KJ_CARBON_H
#define KJ_CARBON_H

#include "base/log.h"

#include <stdbool.h>
#include <stddef.h>

enum kj_confidence { KJ_CONFIDENCE_LOW = 1, KJ_CONFIDENCE_MEDIUM, KJ_CONFIDENCE_HIGH };

/* One row of the factor table. Strings are static. */
struct kj_factor {
    const char *code; /* ISO 3166-1 alpha-3, "WORLD", "EU27", "US-EGRID-CAMX", "US-CA", "CA-QC", "AU-NSW" */
    const char *name;
    double g_per_kwh;
    double low_g_per_kwh, high_g_per_kwh; /* 90 % bracket; how obtained is in interval_basis */
    const char *interval_basis;
    int year; /* 0 for the user's own number */
    const char *source, *licence;
    const char *basis;    /* "lifecycle", "direct"; "user" for the user's own number */
    const char *boundary; /* "generation", "consumption"; "user" */
};

/* Where the run is, and how that is known. */
struct kj_location {
    char code[32];                             /* of the factor table */
    char cloud_provider[16], cloud_region[48]; /* "" when none */
    char method[32];    /* "flag", "environment", "config", "codecarbon_config", "cloud_environment",
                           "cloud_init",    "dmi", "time_zone", "none" */
    char evidence[160]; /* "KJOULE_ZONE=FR", "/etc/timezone: Europe/Paris" */
    enum kj_confidence confidence;
    bool is_default; /* nothing known: WORLD */
};

/* The factor that prices a run: a table row, or the user's own number. */
struct kj_factor_choice {
    struct kj_location location;
    struct kj_factor factor; /* factor.code "user" when given by --carbon-intensity */
    bool has_alternative;    /* the other basis, when both are known */
    struct kj_factor alternative;
    char table_sha256[65]; /* of the tables built in */
};

struct kj_zone_request {
    const char *zone; /* --zone or KJOULE_ZONE, NULL or "" when not given */
    double g_per_kwh; /* --carbon-intensity, < 0 when not given */
    const char *root; /* "" normally; tests give a folder holding etc/, run/, sys/ and the home */
    const char *const *environment; /* NULL: this process's */
};

/* Resolves in the order of the table in zones.c. -EINVAL for an unknown zone (error suggests the near ones),
 * an intensity that is none, or a setting of a configuration file that is wrong. */
int kj_carbon_choose(const struct kj_zone_request *request, struct kj_factor_choice *ret_choice,
                     struct kj_error *error);

/* How a location is known, for people: "time zone, /etc/timezone: Europe/Paris". Returns buf. */
char *kj_location_text(const struct kj_location *location, char *buf, int size);

/* Iterates the table: index from 0, NULL past the end. For `kjoule zones`. */
const struct kj_factor *kj_factor_at(size_t index);

/* The factor of a code, or NULL. basis "lifecycle" or "direct"; NULL: lifecycle where known, else direct. */
const struct kj_factor *kj_factor_find(const char *code, const char *basis);

/* Whether a search finds this row: part of its code, its name or one of its other names; case is ignored. */
bool kj_factor_matches(const struct kj_factor *factor, const char *pattern);

/* A region of a cloud: the zone that feeds it and, where the provider publishes one, a factor of its own. */
struct kj_cloud_region {
    const char *provider, *region, *zone;
    struct kj_factor own; /* own.code NULL when there is none */
};
/* As kj_factor_at. */
const struct kj_cloud_region *kj_cloud_region_at(size_t index);

/* The nearest known names to a text that names no zone: "FRA (France), FRO (Faroe Islands)"; "" when none is
 * near. Returns buf. */
char *kj_zone_suggest(const char *text, char *buf, int size);

/* grams of CO2e: joules x PUE x factor. */
double kj_carbon_grams(double energy_uj, double pue, double g_per_kwh);

/* The 90 % interval of that product. Energy and factor err independently and by ratios, so their logarithms
 * add in squares; exact energy (low = value = high) leaves the factor's own bracket. */
void kj_carbon_interval(double energy_uj, double low_uj, double high_uj, double pue,
                        const struct kj_factor *factor, double *ret_low_g, double *ret_high_g);

#endif
