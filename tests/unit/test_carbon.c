/* SPDX-License-Identifier: Apache-2.0
 *
 * test_carbon.c - the tables are sane, names lead to zones, the order of asking holds over a fake machine,
 * and C = E x T x R comes out.
 */
#include "base/units.h"
#include "carbon/lookup.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static void near_to(double value, double expected, double tolerance)
{
    if (!(fabs(value - expected) <= tolerance))
        fail_msg("%.9g is not %.9g +- %.3g", value, expected, tolerance);
}

/* ---- a fake machine: a folder that holds etc/, run/, sys/, proc/, home/ and the current folder ---- */

struct machine {
    char root[64], work[96], before[512];
};

static void put(const struct machine *m, const char *path, const char *text)
{
    char full[256];
    snprintf(full, sizeof(full), "%s%s", m->root, path);
    for (char *slash = full + strlen(m->root) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        mkdir(full, 0700);
        *slash = '/';
    }
    FILE *file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static int machine_setup(void **state)
{
    struct machine *m = calloc(1, sizeof(*m));
    if (!m)
        return -1;
    snprintf(m->root, sizeof(m->root), "/tmp/kj-carbon.XXXXXX");
    if (!getcwd(m->before, sizeof(m->before)) || !mkdtemp(m->root))
        return -1;
    put(m, "/project/here", "");
    snprintf(m->work, sizeof(m->work), "%s/project", m->root);
    *state = m;
    return chdir(m->work);
}

static int machine_teardown(void **state)
{
    struct machine *m = *state;
    char command[128];
    int status = chdir(m->before);
    snprintf(command, sizeof(command), "rm -rf '%s'", m->root);
    status |= system(command);
    free(m);
    return status;
}

static const char *const nothing[] = {NULL};

static int ask(const struct machine *m, const char *zone, double g, const char *const *environment,
               struct kj_factor_choice *choice, struct kj_error *error)
{
    struct kj_zone_request request = {
        .zone = zone, .g_per_kwh = g, .root = m->root, .environment = environment ? environment : nothing};
    memset(error, 0, sizeof(*error));
    return kj_carbon_choose(&request, choice, error);
}

static void expect(const struct machine *m, const char *zone, const char *const *environment,
                   const char *code, const char *method, const char *evidence)
{
    struct kj_factor_choice choice;
    struct kj_error error;
    if (ask(m, zone, -1, environment, &choice, &error))
        fail_msg("%s", error.text);
    assert_string_equal(choice.location.code, code);
    assert_string_equal(choice.location.method, method);
    if (!strstr(choice.location.evidence, evidence))
        fail_msg("evidence '%s' holds no '%s'", choice.location.evidence, evidence);
    assert_int_equal(choice.location.is_default, !strcmp(code, "WORLD") && strcmp(method, "flag") != 0);
}

static void expect_error(const struct machine *m, const char *zone, const char *const *environment,
                         const char *first, const char *second)
{
    struct kj_factor_choice choice;
    struct kj_error error;
    assert_int_equal(ask(m, zone, -1, environment, &choice, &error), -EINVAL);
    if (!strstr(error.text, first) || !strstr(error.text, second))
        fail_msg("'%s' holds not both '%s' and '%s'", error.text, first, second);
    assert_null(strchr(error.text, '\n'));
}

/* ---- tables ---- */

static int by_value(const void *a, const void *b)
{
    double d = *(const double *)a - *(const double *)b;
    return (d > 0) - (d < 0);
}

static void test_every_row_is_sane(void **state)
{
    (void)state;
    const struct kj_factor *f, *other;
    double countries[400];
    size_t n = 0, rows = 0;
    for (; (f = kj_factor_at(rows)); rows++) {
        assert_true(f->g_per_kwh > 0 && f->g_per_kwh < 1500);
        assert_true(f->low_g_per_kwh > 0 && f->low_g_per_kwh < f->g_per_kwh &&
                    f->g_per_kwh < f->high_g_per_kwh);
        assert_true(f->year >= 2020 && f->year <= 2026);
        assert_true(*f->source && *f->licence && *f->interval_basis && *f->name && strlen(f->code) < 32);
        assert_true(!strcmp(f->basis, "lifecycle") || !strcmp(f->basis, "direct"));
        assert_true(!strcmp(f->boundary, "generation") || !strcmp(f->boundary, "consumption"));
        for (size_t j = 0; j < rows && (other = kj_factor_at(j)); j++) {
            assert_false(!strcmp(f->code, other->code) && !strcmp(f->basis, other->basis));
            if (*kj_factor_iso2(f) && strcmp(f->code, other->code))
                assert_string_not_equal(kj_factor_iso2(f), kj_factor_iso2(other));
        }
        if (*kj_factor_iso2(f) && !strcmp(f->basis, "lifecycle"))
            countries[n++] = f->g_per_kwh;
    }
    assert_true(rows > 300 && n > 190);
    assert_int_equal(strlen(kj_carbon_tables_sha256), 64);
    /* The bracket of WORLD is what the table itself says: 5th and 95th percentile of the countries. */
    qsort(countries, n, sizeof(*countries), by_value);
    const struct kj_factor *world = kj_factor_find("WORLD", NULL);
    assert_true(countries[(size_t)(0.04 * (double)n)] <= world->low_g_per_kwh);
    assert_true(countries[(size_t)(0.06 * (double)n)] >= world->low_g_per_kwh);
    assert_true(countries[(size_t)(0.94 * (double)n)] <= world->high_g_per_kwh);
    assert_true(countries[(size_t)(0.96 * (double)n)] >= world->high_g_per_kwh);
}

static void test_other_tables_lead_to_factors(void **state)
{
    (void)state;
    const struct kj_cloud_region *r;
    const struct kj_named_zone *z;
    size_t i, own = 0;
    for (i = 0; (r = kj_cloud_region_at(i)); i++) {
        struct kj_location location = {0};
        assert_non_null(kj_factor_find(r->zone, NULL));
        assert_true(strlen(r->provider) < sizeof(location.cloud_provider));
        assert_true(strlen(r->region) < sizeof(location.cloud_region));
        assert_true(kj_zone_of_cloud(r->provider, r->region, &location));
        assert_string_equal(location.cloud_region, r->region);
        own += r->own.code != NULL;
        assert_true(!r->own.code || (r->own.g_per_kwh > 0 && r->own.g_per_kwh < 1500 && *r->own.source));
    }
    assert_true(i > 150 && own > 35);
    for (i = 0; (z = kj_timezone_at(i)); i++)
        assert_non_null(kj_factor_find(z->code, NULL));
    assert_true(i > 380);
    for (i = 0; (z = kj_alias_at(i)); i++) {
        struct kj_location location = {0};
        assert_int_equal(kj_zone_parse(z->name, NULL, &location, NULL), 0);
        assert_string_equal(location.code, z->code);
    }
}

/* Published values: Ember 2024, EEA 2024, DESNZ 2025, eGRID2023, Google 2024. */
static void test_known_factors(void **state)
{
    (void)state;
    static const struct {
        const char *code, *basis;
        double g_per_kwh, tolerance;
    } known[] = {
        {"WORLD", "lifecycle", 473, 0.5}, {"FRA", "lifecycle", 44.18, 0.005},
        {"USA", "lifecycle", 383.6, 0.1}, {"CHN", "lifecycle", 557.5, 0.1},
        {"IND", "lifecycle", 709.0, 0.1}, {"DEU", "lifecycle", 342.1, 0.1},
        {"GBR", "lifecycle", 215.8, 0.1}, {"SWE", "lifecycle", 35.9, 0.1},
        {"POL", "lifecycle", 615.0, 0.1}, {"NOR", "lifecycle", 30.8, 0.1},
        {"FRA", "direct", 36, 0.1},       {"DEU", "direct", 291, 0.1},
        {"SWE", "direct", 6, 0.1},        {"GBR", "direct", 177, 0.1},
        {"USA", "direct", 349.7, 0.5},
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++) {
        const struct kj_factor *f = kj_factor_find(known[i].code, known[i].basis);
        assert_non_null(f);
        near_to(f->g_per_kwh, known[i].g_per_kwh, known[i].tolerance);
    }
    assert_null(kj_factor_find("CAF", NULL)); /* 0 g/kWh is a gap in the data */
}

/* ---- names ---- */

static void test_names_lead_to_zones(void **state)
{
    (void)state;
    static const char *const known[][3] = {
        {"FR", "FRA", ""},
        {"fra", "FRA", ""},
        {"France", "FRA", ""},
        {"UK", "GBR", ""},
        {"united-states", "USA", ""},
        {"US", "USA", ""},
        {"CA", "CAN", ""},
        {"US-CA", "US-CA", ""},
        {"California", "US-CA", ""},
        {"camx", "US-EGRID-CAMX", ""},
        {"US-CAL-CISO", "US-EGRID-CAMX", ""},
        {"EU", "EU27", ""},
        {"IT-NO", "ITA", ""},
        {"ES-IB-MA", "ESP", ""},
        {"aws:eu-west-3", "FRA", "eu-west-3"},
        {"eu-west-3", "FRA", "eu-west-3"},
        {"aws:us-east-1b", "US-EGRID-SRVC", "us-east-1"},
        {"gcp:europe-west9-b", "FRA", "europe-west9"},
        {"azure:West Europe", "NLD", "westeurope"},
        {"aws:ca-central-1", "CA-QC", "ca-central-1"},
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++) {
        struct kj_location location = {0};
        struct kj_error error = {0};
        if (kj_zone_parse(known[i][0], "--zone", &location, &error))
            fail_msg("%s", error.text);
        assert_string_equal(location.code, known[i][1]);
        assert_string_equal(location.cloud_region, known[i][2]);
    }
}

static void test_unknown_names_suggest(void **state)
{
    static const char *const unknown[][2] = {
        {"FRX", "FRA (France)"},
        {"Frnce", "FRA (France)"},
        {"germny", "DEU (Germany)"},
        {"aws:eu-west-33", "aws:eu-west-3"},
        {"US-NX", "US-N"},
        {"sa-east-9", "aws:sa-east-1"}, /* SA is Saudi Arabia: not meant */
        {"nowhere near anything at all", "kjoule zones"},
        {"::", "kjoule zones"},
        {"-", "unknown zone"},
        {"mars:north", "unknown zone"},
        {"Georgia", "GEO or US-GA"},
    };
    for (size_t i = 0; i < sizeof(unknown) / sizeof(*unknown); i++)
        expect_error(*state, unknown[i][0], NULL, unknown[i][0], unknown[i][1]);
    expect_error(*state, "a\nb\x01", NULL, "a?b?", "--zone");
    char endless[5000];
    memset(endless, 'x', sizeof(endless));
    endless[sizeof(endless) - 1] = 0;
    expect_error(*state, endless, NULL, "xxxx", "unknown zone");
}

/* ---- where a run is ---- */

static void test_nothing_known_is_the_world(void **state)
{
    struct kj_factor_choice choice;
    struct kj_error error;
    assert_int_equal(ask(*state, NULL, -1, NULL, &choice, &error), 0);
    assert_true(choice.location.is_default);
    assert_int_equal(choice.location.confidence, KJ_CONFIDENCE_LOW);
    near_to(choice.factor.g_per_kwh, 473, 0.5);
    near_to(choice.factor.low_g_per_kwh, 37, 0);
    near_to(choice.factor.high_g_per_kwh, 784, 0);
    assert_string_equal(choice.table_sha256, kj_carbon_tables_sha256);
    const char *const utc[] = {"TZ=UTC", "KJOULE_ZONE=", NULL};
    expect(*state, "", utc, "WORLD", "none", "--zone");
    expect(*state, "WORLD", utc, "WORLD", "flag", "--zone WORLD");
}

/* Lays sources from the last to the first of the order; each one laid takes over from those below it. */
static void test_order_of_asking(void **state)
{
    const struct machine *m = *state;
    char link[128];
    put(m, "/etc/here", "");
    snprintf(link, sizeof(link), "%s/etc/localtime", m->root);
    assert_int_equal(symlink("/usr/share/zoneinfo/Asia/Tokyo", link), 0);
    expect(m, NULL, NULL, "JPN", "time_zone", "/etc/localtime: Asia/Tokyo");
    put(m, "/etc/timezone", "Europe/Paris\n");
    expect(m, NULL, NULL, "FRA", "time_zone", "/etc/timezone: Europe/Paris");
    const char *env[8] = {"TZ=:Europe/Berlin", NULL};
    expect(m, NULL, env, "DEU", "time_zone", "TZ=Europe/Berlin");
    put(m, "/run/cloud-init/instance-data.json",
        "{\"v1\": {\"cloud_name\": \"gce\", \"region\": null, \"availability_zone\": \"europe-west1-b\"}}");
    expect(m, NULL, env, "BEL", "cloud_init", "gce europe-west1-b");
    env[1] = "AWS_REGION=eu-north-1";
    expect(m, NULL, env, "SWE", "cloud_environment", "AWS_REGION=eu-north-1");
    put(m, "/home/u/.codecarbon.config", "[codecarbon]\ncountry_iso_code = CAN\nregion: quebec\n");
    env[2] = "HOME=/home/u";
    expect(m, NULL, env, "CA-QC", "codecarbon_config",
           "~/.codecarbon.config: country_iso_code=CAN region=quebec");
    put(m, "/project/.codecarbon.config", "# ours\n[codecarbon]\ncountry_iso_code=\"POL\"\n");
    expect(m, NULL, env, "POL", "codecarbon_config", "./.codecarbon.config");
    env[3] = "CODECARBON_COUNTRY_ISO_CODE=ITA";
    expect(m, NULL, env, "ITA", "codecarbon_config", "CODECARBON_COUNTRY_ISO_CODE");
    put(m, "/etc/kjoule/kjoule.conf", "zone = NO\n");
    expect(m, NULL, env, "NOR", "config", "/etc/kjoule/kjoule.conf line 1: zone=NO");
    put(m, "/home/u/.config/kjoule/config", "; mine\n\nzone = \"DK\"\n");
    expect(m, NULL, env, "DNK", "config", "/home/u/.config/kjoule/config line 3");
    put(m, "/home/x/kjoule/config", "zone=FI");
    env[4] = "XDG_CONFIG_HOME=/home/x";
    expect(m, NULL, env, "FIN", "config", "/home/x/kjoule/config");
    put(m, "/project/.kjoule.conf", "zone: CH\n");
    expect(m, NULL, env, "CHE", "config", ".kjoule.conf line 1");
    env[5] = "KJOULE_ZONE=AT";
    expect(m, NULL, env, "AUT", "environment", "KJOULE_ZONE=AT");
    expect(m, "AT", env, "AUT", "environment", "KJOULE_ZONE=AT"); /* callers hand over either alike */
    expect(m, "ES", env, "ESP", "flag", "--zone ES");
}

static void test_clusters_of_a_site(void **state)
{
    const struct machine *m = *state;
    put(m, "/etc/kjoule/kjoule.conf",
        "[cluster \"jean-zay*\"]\nzone = FR\ncarbon_intensity = 21.5\n[cluster other]\nzone = "
        "PL\n[kjoule]\nzone = DE\n");
    const char *const slurm[] = {"SLURM_CLUSTER_NAME=jean-zay2", NULL};
    struct kj_factor_choice choice;
    struct kj_error error;
    expect(m, NULL, slurm, "FRA", "config", "line 2");
    assert_int_equal(ask(m, NULL, -1, slurm, &choice, &error), 0);
    near_to(choice.factor.g_per_kwh, 21.5, 0);
    expect(m, NULL, NULL, "DEU", "config", "line 7");
    put(m, "/proc/sys/kernel/hostname", "other\n");
    expect(m, NULL, NULL, "POL", "config", "line 5");
}

static void test_wrong_configuration_is_said(void **state)
{
    const struct machine *m = *state;
    static const char *const wrong[][3] = {
        {"zone = Frnce\n", "line 1", "France"},
        {"# x\nzoen = FR\n", "line 2", "unknown setting"},
        {"hello\n", "line 1", "not a setting"},
        {"zone=FR\n[elsewhere]\nzone=FR", "line 3", "section"},
        {"carbon_intensity=-1", "line 1", "0 or more"},
        {"carbon_intensity=nan", "line 1", "0 or more"},
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        put(m, "/project/.kjoule.conf", wrong[i][0]);
        expect_error(m, NULL, NULL, wrong[i][1], wrong[i][2]);
        expect(m, "FR", NULL, "FRA", "flag", "FR"); /* not read where it is not asked */
    }
    const char *const env[] = {"KJOULE_ZONE=Frnce", NULL};
    expect_error(m, NULL, env, "KJOULE_ZONE: unknown zone 'Frnce'", "France");
    put(m, "/project/.kjoule.conf", "");
    put(m, "/project/.codecarbon.config", "[codecarbon]\nnonsense\ncountry_iso_code = Narnia\n[[[\n");
    put(m, "/run/cloud-init/instance-data.json", "{\"v1\": [1, 2");
    expect(m, NULL, NULL, "WORLD", "none", ""); /* files of others are not ours to judge */
}

/* AWS_REGION says where the machine is on AWS; on a laptop it says where its owner's data are. */
static void test_firmware_and_clouds(void **state)
{
    const struct machine *m = *state;
    const char *const aws[] = {"AWS_DEFAULT_REGION=us-east-1", NULL};
    const char *const nowhere[] = {"AWS_REGION=xx-middle-1", NULL};
    struct kj_factor_choice choice;
    struct kj_error error;
    assert_int_equal(ask(m, NULL, -1, aws, &choice, &error), 0);
    assert_int_equal(choice.location.confidence, KJ_CONFIDENCE_LOW);
    put(m, "/sys/class/dmi/id/sys_vendor", "LENOVO\n");
    expect(m, NULL, aws, "WORLD", "none", "");
    put(m, "/sys/class/dmi/id/sys_vendor", "Amazon EC2\n");
    expect(m, NULL, aws, "US-EGRID-SRVC", "cloud_environment", "AWS_DEFAULT_REGION");
    assert_int_equal(ask(m, NULL, -1, aws, &choice, &error), 0);
    assert_int_equal(choice.location.confidence, KJ_CONFIDENCE_HIGH);
    expect(m, NULL, nowhere, "WORLD", "dmi", "Amazon EC2");
    assert_int_equal(ask(m, NULL, -1, nowhere, &choice, &error), 0);
    assert_string_equal(choice.location.cloud_provider, "aws");
    put(m, "/etc/timezone", "Europe/Dublin");
    expect(m, NULL, nowhere, "IRL", "time_zone", "Europe/Dublin");
    put(m, "/sys/class/dmi/id/sys_vendor", "Google\n");
    put(m, "/sys/class/dmi/id/product_name", "Google Compute Engine\n");
    expect(m, NULL, aws, "IRL", "time_zone", ""); /* another cloud's variable */
}

/* ---- factors and the product ---- */

static void test_bases_stay_apart(void **state)
{
    struct kj_factor_choice choice;
    struct kj_error error;
    assert_int_equal(ask(*state, "FR", -1, NULL, &choice, &error), 0);
    assert_string_equal(choice.factor.basis, "lifecycle");
    assert_true(choice.has_alternative);
    assert_string_equal(choice.alternative.basis, "direct");
    near_to(choice.alternative.g_per_kwh, 36, 0.1);
    assert_int_equal(ask(*state, "gcp:europe-west9", -1, NULL, &choice, &error), 0);
    near_to(choice.factor.g_per_kwh, 44.18, 0.005); /* lifecycle, as for every run in France */
    near_to(choice.alternative.g_per_kwh, 16, 1);   /* Google's own */
    assert_int_equal(ask(*state, "gcp:us-east4", -1, NULL, &choice, &error), 0);
    assert_non_null(strstr(choice.factor.source, "Google"));
    assert_false(choice.has_alternative);
    assert_int_equal(ask(*state, "US-CA", -1, NULL, &choice, &error), 0);
    assert_string_equal(choice.factor.basis, "direct");
    assert_false(choice.has_alternative);
}

static void test_own_factor(void **state)
{
    struct kj_factor_choice choice;
    struct kj_error error;
    assert_int_equal(ask(*state, "FR", 123, NULL, &choice, &error), 0);
    assert_string_equal(choice.factor.code, "user");
    assert_string_equal(choice.location.code, "FRA");
    near_to(choice.factor.g_per_kwh, 123, 0);
    near_to(choice.factor.low_g_per_kwh, 123, 0);
    assert_int_equal(ask(*state, NULL, 0, NULL, &choice, &error), 0);
    near_to(choice.factor.g_per_kwh, 0, 0);
    const char *const env[] = {"KJOULE_CARBON_INTENSITY=55.5", NULL};
    assert_int_equal(ask(*state, NULL, -1, env, &choice, &error), 0);
    near_to(choice.factor.g_per_kwh, 55.5, 0);
    assert_int_equal(ask(*state, NULL, 7, env, &choice, &error), 0);
    near_to(choice.factor.g_per_kwh, 7, 0);
    const char *const wrong[] = {"KJOULE_CARBON_INTENSITY=-3", NULL};
    assert_int_equal(ask(*state, NULL, -1, wrong, &choice, &error), -EINVAL);
    assert_int_equal(ask(*state, NULL, NAN, NULL, &choice, &error), -EINVAL);
    assert_int_equal(ask(*state, NULL, INFINITY, NULL, &choice, &error), -EINVAL);
    assert_int_equal(ask(*state, "Frnce", 123, NULL, &choice, &error), -EINVAL);
}

static void test_product_and_interval(void **state)
{
    (void)state;
    const double kwh = (double)KJ_UJ_PER_KWH;
    near_to(kj_carbon_grams(kwh, 1, 473), 473, 1e-9);
    near_to(kj_carbon_grams(2 * kwh, 1.5, 100), 300, 1e-9); /* the building's share counts in full */
    near_to(kj_carbon_grams(0, 1.2, 100), 0, 0);
    struct kj_factor f = {.g_per_kwh = 100, .low_g_per_kwh = 59, .high_g_per_kwh = 141};
    double low, high;
    kj_carbon_interval(kwh, kwh, kwh, 1.2, &f, &low, &high); /* exact energy: the grid's bracket */
    near_to(low, 1.2 * 59, 1e-9);
    near_to(high, 1.2 * 141, 1e-9);
    f.low_g_per_kwh = f.high_g_per_kwh = 100;
    kj_carbon_interval(kwh, 0.9 * kwh, 1.1 * kwh, 1, &f, &low, &high); /* exact factor: the meter's */
    near_to(low, 90, 1e-9);
    near_to(high, 110, 1e-9);
    f.low_g_per_kwh = 90, f.high_g_per_kwh = 110;
    kj_carbon_interval(kwh, 0.9 * kwh, 1.1 * kwh, 1, &f, &low,
                       &high); /* both: wider than one, closer than the sum */
    assert_true(low < 90 && low > 81 && high > 110 && high < 121);
    kj_carbon_interval(kwh, 0, 1.1 * kwh, 1, &f, &low, &high);
    near_to(low, 0, 0);
    kj_carbon_interval(0, 0, kwh, 1, &f, &low, &high);
    near_to(low, 0, 0);
    near_to(high, 110, 1e-9);
    f.g_per_kwh = f.low_g_per_kwh = f.high_g_per_kwh = 0;
    kj_carbon_interval(kwh, kwh, kwh, 1, &f, &low, &high);
    near_to(high, 0, 0);
}

int main(void)
{
#define ON_A_MACHINE(test) cmocka_unit_test_setup_teardown(test, machine_setup, machine_teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_row_is_sane),
        cmocka_unit_test(test_other_tables_lead_to_factors),
        cmocka_unit_test(test_known_factors),
        cmocka_unit_test(test_names_lead_to_zones),
        ON_A_MACHINE(test_unknown_names_suggest),
        ON_A_MACHINE(test_nothing_known_is_the_world),
        ON_A_MACHINE(test_order_of_asking),
        ON_A_MACHINE(test_clusters_of_a_site),
        ON_A_MACHINE(test_wrong_configuration_is_said),
        ON_A_MACHINE(test_firmware_and_clouds),
        ON_A_MACHINE(test_bases_stay_apart),
        ON_A_MACHINE(test_own_factor),
        cmocka_unit_test(test_product_and_interval),
    };
    return cmocka_run_group_tests_name("carbon", tests, NULL, NULL);
}
