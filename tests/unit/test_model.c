/* SPDX-License-Identifier: Apache-2.0
 *
 * test_model.c - attribution by time, on devices whose every joule is known.
 */
#include "model/attribution.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

#define S KJ_NS_PER_S

/* 10 s: 60 W while idle, 2 s at 160 W, then 3 s at 360 W. 300 + 320 + 1080 J. */
static const int64_t TOTAL_UJ = 1700000000;
static const struct kj_reading powers[] = {{1 * S, 60000}, {2 * S, 160000}, {3 * S, 360000}, {9 * S, 60000}};
static const struct kj_sensor_series series = {.readings = powers, .count = 4};

static struct kj_model_result *attribute(const struct kj_model_input *input)
{
    const struct kj_model_options options = {.method = KJ_MODEL_TIME_PROPORTIONAL};
    struct kj_model_result *result = NULL;
    struct kj_error error = {0};
    assert_int_equal(kj_model_attribute(input, &options, &result, &error), 0);
    int64_t classes_uj = 0;
    for (size_t i = 0; i < result->class_count; i++) {
        const struct kj_model_estimate *e = &result->classes[i].energy;
        classes_uj += e->energy_uj;
        assert_true(e->low_uj <= e->energy_uj && e->energy_uj <= e->high_uj);
        assert_true(e->low_uj <= e->low50_uj && e->high50_uj <= e->high_uj);
    }
    assert_int_equal(classes_uj, result->kernels_uj);
    assert_int_equal(result->kernels_uj + result->idle_uj + result->unattributed_uj, input->total_uj);
    return result;
}

static struct kj_model_input device(const struct kj_model_class *classes, size_t count)
{
    return (struct kj_model_input){.end_ns = 10 * S,
                                   .classes = classes,
                                   .class_count = count,
                                   .series = &series,
                                   .series_count = 1,
                                   .total_known = true,
                                   .total_uj = TOTAL_UJ};
}

static void test_two_kernels(void **state)
{
    (void)state;
    const struct kj_model_class classes[] = {{.launches = 2000, .mean_ns = 1e6},
                                             {.launches = 3000, .mean_ns = 1e6}};
    struct kj_model_input input = device(classes, 2);
    struct kj_model_result *r = attribute(&input);
    assert_int_equal(r->idle_uj, 300000000);
    assert_int_equal(r->kernels_uj, 1400000000);
    assert_int_equal(r->classes[0].energy.energy_uj, 560000000); /* two fifths: it cannot know better */
    assert_true(r->classes[0].energy.low_uj <= 320000000 && r->classes[0].energy.high_uj >= 320000000);
    assert_true(r->classes[1].energy.low_uj <= 1080000000 && r->classes[1].energy.high_uj >= 1080000000);
    assert_int_equal(r->classes[0].method, KJ_MODELLED);
    kj_model_result_free(r);
}

static bool warns_of(const struct kj_model_result *r, const char *words)
{
    for (size_t i = 0; i < r->warning_count; i++)
        if (strstr(r->warnings[i].text, words))
            return true;
    return false;
}

/* 13 s of kernels in a run of 10 s, none of which ran beside another. */
static void test_more_busy_than_there_is_time(void **state)
{
    (void)state;
    const struct kj_model_class longer[] = {{.launches = 13000, .mean_ns = 1e6}};
    const struct kj_model_class shorter[] = {{.launches = 9990, .mean_ns = 1e6}};
    struct kj_model_input input = device(longer, 1);
    struct kj_model_result *r = attribute(&input);
    assert_true(warns_of(r, "13 s of the device's time, in a run of 10 s"));
    assert_true(warns_of(r, "--timing cupti"));
    assert_true(r->busy_ns <= 10e9);
    kj_model_result_free(r);
    input = device(shorter, 1);
    r = attribute(&input);
    assert_false(warns_of(r, "of the device's time"));
    kj_model_result_free(r);
}

static void test_one_kernel_is_certain(void **state)
{
    (void)state;
    const struct kj_model_class classes[] = {{.launches = 5, .mean_ns = 1e9}};
    struct kj_model_input input = device(classes, 1);
    struct kj_model_result *r = attribute(&input);
    assert_int_equal(r->classes[0].energy.low_uj, r->classes[0].energy.high_uj);
    assert_int_equal(r->classes[0].energy.energy_uj, 1400000000);
    assert_int_equal(r->classes[0].method, KJ_ESTIMATED);
    kj_model_result_free(r);
}

/* 30 W without a context, 80 W at rest with one from 2 s to 9 s, and launches of which none was timed. */
static void test_rest_tells_idle_power(void **state)
{
    (void)state;
    const struct kj_model_class classes[] = {{.launches = 1000, .mean_ns = 2e6}};
    const struct kj_reading readings[] = {
        {1 * S, 30000}, {3 * S, 80000}, {6 * S, 360000}, {19 * S / 2, 30000}};
    const struct kj_sensor_series one = {.readings = readings, .count = 4};
    const struct kj_model_span rest = {2 * S, 4 * S};
    struct kj_model_input input = device(classes, 1);
    input.series = &one;
    input.context_ns = 2 * S;
    input.context_end_ns = 9 * S;
    input.complete = &rest;
    input.complete_count = 1;
    struct kj_model_result *r = attribute(&input);
    assert_true(r->idle_mw == 80000 && r->bare_mw == 30000 && r->idle_most_mw == 0);
    assert_int_equal(r->idle_uj, 3 * 30000000 + 5 * 80000000);
    kj_model_result_free(r);
    input.complete_count = 0; /* whether it rested then is not known: 80 W is the most it may be */
    r = attribute(&input);
    assert_true(r->idle_most_mw == 80000);
    kj_model_result_free(r);
}

static void test_nothing_ran(void **state)
{
    (void)state;
    struct kj_model_input input = device(NULL, 0);
    struct kj_model_result *r = attribute(&input);
    assert_int_equal(r->idle_uj, TOTAL_UJ);
    kj_model_result_free(r);
}

static void test_untimed_is_unattributed(void **state)
{
    (void)state;
    const struct kj_model_class classes[] = {{.launches = 5000}};
    struct kj_model_input input = device(classes, 1);
    struct kj_model_result *r = attribute(&input);
    assert_int_equal(r->classes[0].energy.energy_uj, 0);
    assert_int_equal(r->idle_uj, 600000000);
    assert_int_equal(r->unattributed_uj, 1100000000);
    assert_int_equal(r->warning_count, 1);
    kj_model_result_free(r);
}

static void test_overlap_is_not_busy_twice(void **state)
{
    (void)state;
    const struct kj_model_class classes[] = {{.launches = 1, .mean_ns = 4e9},
                                             {.launches = 1, .mean_ns = 4e9}};
    const struct kj_model_interval intervals[] = {{1 * S, 5 * S, 0, 0}, {1 * S, 5 * S, 1, 1}};
    struct kj_model_input input = device(classes, 2);
    input.intervals = intervals;
    input.interval_count = 2;
    struct kj_model_result *r = attribute(&input);
    assert_int_equal(r->busy_ns / 1e9, 4);
    assert_int_equal(r->classes[0].energy.energy_uj, r->classes[1].energy.energy_uj);
    kj_model_result_free(r);
}

static void test_no_power_is_modelled(void **state)
{
    (void)state;
    const struct kj_model_class classes[] = {{.launches = 5, .mean_ns = 1e9}};
    struct kj_model_input input = device(classes, 1);
    input.series_count = 0;
    struct kj_model_result *r = attribute(&input);
    assert_int_equal(r->classes[0].method, KJ_MODELLED);
    assert_int_equal(r->warnings[0].code, KJ_MODEL_WARN_NO_POWER);
    kj_model_result_free(r);
}

/* Odd totals and many classes: rounding loses nothing. */
static void test_every_microjoule(void **state)
{
    (void)state;
    struct kj_model_class classes[97];
    for (size_t i = 0; i < 97; i++)
        classes[i] = (struct kj_model_class){.launches = i % 7 + 1, .mean_ns = 1e6 / (double)(i + 3)};
    struct kj_model_input input = device(classes, 97);
    for (int64_t total_uj = 0; total_uj < 2000000; total_uj += 12347) {
        input.total_uj = total_uj;
        kj_model_result_free(attribute(&input));
    }
}

static void test_refuses_nonsense(void **state)
{
    (void)state;
    const struct kj_model_class classes[] = {{.launches = 1, .mean_ns = 1}};
    const struct kj_model_interval backwards = {2 * S, 1 * S, 0, 0}, foreign = {1 * S, 2 * S, 1, 0};
    const struct kj_model_options options = {.method = KJ_MODEL_TIME_PROPORTIONAL};
    struct kj_model_result *result = NULL;
    struct kj_error error = {0};
    struct kj_model_input input = device(classes, 1);
    input.intervals = &backwards;
    input.interval_count = 1;
    assert_int_equal(kj_model_attribute(&input, &options, &result, &error), -EINVAL);
    input.intervals = &foreign;
    assert_int_equal(kj_model_attribute(&input, &options, &result, &error), -EINVAL);
    input.interval_count = 0;
    input.start_ns = 11 * S;
    assert_int_equal(kj_model_attribute(&input, &options, &result, &error), -EINVAL);
    assert_null(result);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_kernels),
        cmocka_unit_test(test_more_busy_than_there_is_time),
        cmocka_unit_test(test_one_kernel_is_certain),
        cmocka_unit_test(test_rest_tells_idle_power),
        cmocka_unit_test(test_nothing_ran),
        cmocka_unit_test(test_untimed_is_unattributed),
        cmocka_unit_test(test_overlap_is_not_busy_twice),
        cmocka_unit_test(test_no_power_is_modelled),
        cmocka_unit_test(test_every_microjoule),
        cmocka_unit_test(test_refuses_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
