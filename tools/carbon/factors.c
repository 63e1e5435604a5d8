/* SPDX-License-Identifier: Apache-2.0
 *
 * factors.c - the tables of data/, built in, and the product C = E x T x R.
 */
#include "base/units.h"
#include "carbon/lookup.h"

#include <ctype.h>
#include <math.h>
#include <string.h>
#include <strings.h>

/* Nine in ten countries differ by less than this between Ember and Electricity Maps, 2024 (data/SOURCES.md).
 */
#define SPREAD 0.41
#define SPREAD_BASIS_lifecycle                                                                               \
    "+-41 %: nine in ten of 87 countries differ by less between Ember and Electricity Maps, 2024"
#define SPREAD_BASIS_direct                                                                                  \
    "+-41 %: carried over from countries, nine in ten of which differ by less between Ember and "            \
    "Electricity Maps"
/* 5th and 95th percentile of the countries: where a run at an unknown place may be. */
#define WORLD_LOW_G_PER_KWH  37.0
#define WORLD_HIGH_G_PER_KWH 784.0

struct factor_row {
    struct kj_factor factor; /* first, so that a factor of the table leads back to its row */
    const char *iso2;
};

static const struct factor_row factors[] = {
#define WORLD(code, iso2, name, g, year, basis, boundary, source, licence)                                   \
    {{code, name, g, WORLD_LOW_G_PER_KWH, WORLD_HIGH_G_PER_KWH,                                              \
      "5th to 95th percentile of all countries: the place is not known", year, source, licence, #basis,      \
      #boundary},                                                                                            \
     iso2},
#define FACTOR(code, iso2, name, g, year, basis, boundary, source, licence)                                  \
    {{code, name, g, (g) * (1 - SPREAD), (g) * (1 + SPREAD), SPREAD_BASIS_##basis, year, source, licence,    \
      #basis, #boundary},                                                                                    \
     iso2},
#include "carbon_tables.def"
};

static const struct kj_cloud_region cloud_regions[] = {
#define CLOUD(provider, region, zone) {provider, region, zone, {0}},
/* What Google publishes is operational emissions of the electricity used there: direct, consumption. */
#define CLOUD_OWN(provider, region, zone, g, year, source, licence)                                          \
    {provider,                                                                                               \
     region,                                                                                                 \
     zone,                                                                                                   \
     {zone, provider ":" region, g, (g) * (1 - SPREAD), (g) * (1 + SPREAD), SPREAD_BASIS_direct, year,       \
      source, licence, "direct", "consumption"}},
#include "carbon_tables.def"
};

static const struct kj_named_zone aliases[] = {
#define ALIAS(name, code) {name, code},
#include "carbon_tables.def"
};

static const struct kj_named_zone timezones[] = {
#define TIMEZONE(name, code) {name, code},
#include "carbon_tables.def"
};

#define TABLES_SHA256(hash) const char kj_carbon_tables_sha256[65] = hash;
#include "carbon_tables.def"

#define COUNT(table) (sizeof(table) / sizeof(*(table)))

const struct kj_factor *kj_factor_at(size_t index)
{
    return index < COUNT(factors) ? &factors[index].factor : NULL;
}

const struct kj_cloud_region *kj_cloud_region_at(size_t index)
{
    return index < COUNT(cloud_regions) ? &cloud_regions[index] : NULL;
}

const struct kj_named_zone *kj_alias_at(size_t index)
{
    return index < COUNT(aliases) ? &aliases[index] : NULL;
}

const struct kj_named_zone *kj_timezone_at(size_t index)
{
    return index < COUNT(timezones) ? &timezones[index] : NULL;
}

const char *kj_factor_iso2(const struct kj_factor *factor)
{
    return ((const struct factor_row *)factor)->iso2;
}

const struct kj_factor *kj_factor_find(const char *code, const char *basis)
{
    const struct kj_factor *found = NULL;
    for (size_t i = 0; i < COUNT(factors); i++) {
        const struct kj_factor *f = &factors[i].factor;
        if (strcasecmp(f->code, code) || (basis && strcmp(f->basis, basis)))
            continue;
        if (!found || !strcmp(f->basis, "lifecycle"))
            found = f;
    }
    return found;
}

bool kj_factor_matches(const struct kj_factor *factor, const char *pattern)
{
    if (strcasestr(factor->code, pattern) || strcasestr(factor->name, pattern) ||
        (*pattern && !strcasecmp(kj_factor_iso2(factor), pattern)))
        return true;
    for (size_t i = 0; i < COUNT(aliases); i++)
        if (!strcmp(aliases[i].code, factor->code) && strcasestr(aliases[i].name, pattern))
            return true;
    return false;
}

/* The next character that counts in a name: letters and digits, and whatever is not ASCII. */
static int next_of_name(const char **text)
{
    unsigned char c;
    while ((c = (unsigned char)**text) && c < 0x80 && !isalnum(c))
        ++*text;
    *text += c != 0;
    return tolower(c);
}

bool kj_same_name(const char *a, const char *b)
{
    int c = next_of_name(&a);
    if (!c)
        return false; /* no letter at all is no name */
    while (c == next_of_name(&b)) {
        if (!c)
            return true;
        c = next_of_name(&a);
    }
    return false;
}

double kj_carbon_grams(double energy_uj, double pue, double g_per_kwh)
{
    return energy_uj / (double)KJ_UJ_PER_KWH * pue * g_per_kwh;
}

void kj_carbon_interval(double energy_uj, double low_uj, double high_uj, double pue,
                        const struct kj_factor *factor, double *ret_low_g, double *ret_high_g)
{
    double grams = kj_carbon_grams(energy_uj, pue, factor->g_per_kwh);
    *ret_low_g = *ret_high_g = grams;
    if (energy_uj <= 0 || factor->g_per_kwh <= 0) { /* nothing to take a ratio of: the corners */
        *ret_low_g = kj_carbon_grams(fmax(low_uj, 0), pue, factor->low_g_per_kwh);
        *ret_high_g = kj_carbon_grams(high_uj, pue, factor->high_g_per_kwh);
        return;
    }
    /* log(0) is -inf, and a lower bound of nothing is zero grams: the limits come out right. */
    double down = hypot(log(fmax(low_uj, 0) / energy_uj), log(factor->low_g_per_kwh / factor->g_per_kwh));
    double up = hypot(log(high_uj / energy_uj), log(factor->high_g_per_kwh / factor->g_per_kwh));
    *ret_low_g = grams * exp(-down);
    *ret_high_g = grams * exp(up);
}
