/* SPDX-License-Identifier: Apache-2.0
 *
 * test_regression.c - attribution by regression, on a device whose every joule is known: what can be told
 * apart is, what cannot is not claimed, and all adds up.
 */
#include "model/attribution.h"
#include "model/normal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MS 1000000ull

enum { INTERVALS_CAP = 20000, READINGS_CAP = 40000 };
static const double IDLE_MW = 80e3;

struct world {
    struct kj_model_interval intervals[INTERVALS_CAP];
    struct kj_reading power[READINGS_CAP], counter[READINGS_CAP];
    double mw[8], truth_uj[8], total_uj;
    size_t count, readings;
    uint64_t end_ns;
};
static struct world w;
static double jitter_ns; /* of the moment that a power reading looks at */

/* Board energy up to t: idle, and each kernel's own. */
static double energy_uj(double t_ns)
{
    double uj = IDLE_MW * t_ns * 1e-6;
    for (size_t i = 0; i < w.count && (double)w.intervals[i].start_ns < t_ns; i++)
        uj += w.mw[w.intervals[i].class_index] *
              (fmin(t_ns, (double)w.intervals[i].end_ns) - (double)w.intervals[i].start_ns) * 1e-6;
    return uj;
}

/* Steps of `classes` kernels of the lengths given, for `seconds`; then the sensors: a box of 25 ms every 100
 * ms, and a counter, polled every 20 ms or so. */
static void simulate(const double *mw, const uint64_t *lengths_ms, size_t classes, uint64_t gap_ms,
                     double seconds)
{
    struct kj_draws random = {.state = 5};
    memset(&w, 0, sizeof(w));
    uint64_t t = 100 * MS;
    while ((double)t < seconds * 1e9) {
        for (size_t c = 0; c < classes; c++) {
            uint64_t length = lengths_ms[c] * MS + (uint64_t)(1e5 * kj_draw_uniform(&random));
            w.intervals[w.count++] = (struct kj_model_interval){t, t + length, (uint32_t)c, 0};
            w.truth_uj[c] += (mw[c] + IDLE_MW) * (double)length * 1e-6;
            t += length;
        }
        t += gap_ms * MS + (uint64_t)(2e6 * kj_draw_uniform(&random));
    }
    memcpy(w.mw, mw, classes * sizeof(*mw));
    w.end_ns = t + 200 * MS;
    w.total_uj = energy_uj((double)w.end_ns);
    double next_ns = 31e6, at_ns = 0, power = 0;
    for (double poll_ns = 3e6; poll_ns < (double)w.end_ns; poll_ns += 20e6 + 3e5 * kj_draw_uniform(&random)) {
        for (; next_ns <= poll_ns; next_ns += 100.17e6) {
            double late_ns = next_ns + jitter_ns * kj_draw_normal(&random);
            power = (energy_uj(late_ns) - energy_uj(fmax(late_ns - 25e6, 0))) * 1e6 / 25e6;
            power *= 1 + 0.01 * kj_draw_normal(&random);
            at_ns = next_ns;
        }
        w.power[w.readings] = (struct kj_reading){(uint64_t)poll_ns, (uint64_t)fmax(power, 0)};
        w.counter[w.readings++] = (struct kj_reading){(uint64_t)poll_ns, (uint64_t)energy_uj(at_ns)};
    }
}

static uint64_t walked_ns;
static double delay_sd_ns;      /* of the power sensor */
static size_t series_count = 2; /* 1: the counter alone */
static uint64_t context_ns;

static struct kj_model_result *attribute(size_t classes, uint64_t window_ns, enum kj_model_method method)
{
    static const struct kj_model_class class[8];
    const struct kj_sensor_series series[] = {{.counter = true, .readings = w.counter, .count = w.readings},
                                              {.sensor = {.window_ns = window_ns, .delay_sd_ns = delay_sd_ns},
                                               .readings = w.power,
                                               .count = w.readings}};
    const struct kj_model_input input = {.end_ns = w.end_ns,
                                         .classes = class,
                                         .class_count = classes,
                                         .intervals = w.intervals,
                                         .interval_count = w.count,
                                         .timeline_complete = true,
                                         .series = series,
                                         .series_count = series_count,
                                         .total_known = true,
                                         .total_uj = llround(w.total_uj),
                                         .limit_mw = 700e3,
                                         .walked_ns = walked_ns,
                                         .context_ns = context_ns};
    const struct kj_model_options options = {.method = method};
    struct kj_model_result *result = NULL;
    struct kj_error error = {0};
    assert_int_equal(kj_model_attribute(&input, &options, &result, &error), 0);
    int64_t sum_uj = result->idle_uj + result->unattributed_uj;
    for (size_t c = 0; c < classes; c++) {
        const struct kj_model_estimate *e = &result->classes[c].energy;
        assert_true(e->low_uj <= e->low50_uj && e->low50_uj <= e->energy_uj);
        assert_true(e->energy_uj <= e->high50_uj && e->high50_uj <= e->high_uj);
        assert_true(e->energy_uj >= 0);
        sum_uj += e->energy_uj;
    }
    assert_int_equal(sum_uj, result->total_uj);
    return result;
}

static double off(const struct kj_model_result *r, size_t c)
{
    return fabs((double)r->classes[c].energy.energy_uj / w.truth_uj[c] - 1);
}

static bool warned(const struct kj_model_result *r, enum kj_model_warning_code code)
{
    for (size_t i = 0; i < r->warning_count; i++)
        if (r->warnings[i].code == code)
            return true;
    return false;
}

static void test_tells_kernels_apart(void **state)
{
    (void)state;
    simulate((double[]){500e3, 120e3, 300e3}, (uint64_t[]){120, 130, 50}, 3, 10, 30);
    struct kj_model_result *r = attribute(3, 25 * MS, KJ_MODEL_BAYES),
                           *plain = attribute(3, 25 * MS, KJ_MODEL_TIME_PROPORTIONAL);
    double ours = 0, by_time = 0;
    for (size_t c = 0; c < 3; c++) {
        assert_true(off(r, c) < 0.03);
        assert_int_equal(r->classes[c].method, KJ_ESTIMATED);
        assert_true(r->classes[c].identifiability > 0.9);
        ours += off(r, c);
        by_time += off(plain, c);
    }
    assert_true(by_time > 4 * ours);
    assert_true(fabs(r->idle_mw / IDLE_MW - 1) < 0.1);
    kj_model_result_free(r);
    kj_model_result_free(plain);
}

/* Two kernels in turn within 2 ms, under a window of 25 that comes a millisecond or two early or late: nobody
 * can tell them apart, and nobody says so. */
static void test_does_not_claim_what_it_cannot_see(void **state)
{
    (void)state;
    jitter_ns = 1.5e6;
    simulate((double[]){380e3, 120e3}, (uint64_t[]){1, 1}, 2, 0, 3);
    jitter_ns = 0;
    struct kj_model_result *r = attribute(2, 25 * MS, KJ_MODEL_BAYES);
    for (size_t c = 0; c < 2; c++) {
        const struct kj_model_estimate *e = &r->classes[c].energy;
        assert_true((double)e->low_uj <= w.truth_uj[c] && w.truth_uj[c] <= (double)e->high_uj);
        assert_true((double)(e->high_uj - e->low_uj) > 0.3 * (double)e->energy_uj);
        assert_true(r->classes[c].identifiability < 0.5);
        assert_int_equal(r->classes[c].method, KJ_MODELLED);
        assert_int_equal(r->classes[c].group, 0);
    }
    /* What the two took together is known, and is said. */
    assert_int_equal(r->group_count, 1);
    const struct kj_model_group *both = &r->groups[0];
    assert_int_equal(both->members, 2);
    assert_true(both->identifiability > 0.9);
    assert_true((double)(both->energy.high_uj - both->energy.low_uj) < 0.02 * (double)both->energy.energy_uj);
    assert_true((double)both->energy.low_uj <= w.truth_uj[0] + w.truth_uj[1]);
    assert_true((double)both->energy.high_uj >= w.truth_uj[0] + w.truth_uj[1]);
    kj_model_result_free(r);
}

/* The same where every update comes on the dot, and it is known when after its window: what a window of six
 * periods and a bit sees is enough. */
static void test_tells_apart_what_is_shorter_than_the_window(void **state)
{
    (void)state;
    simulate((double[]){380e3, 120e3}, (uint64_t[]){2, 2}, 2, 0, 20);
    delay_sd_ns = 1e5;
    struct kj_model_result *r = attribute(2, 25 * MS, KJ_MODEL_BAYES);
    delay_sd_ns = 0;
    for (size_t c = 0; c < 2; c++) {
        assert_true(off(r, c) < 0.03);
        assert_int_equal(r->classes[c].method, KJ_ESTIMATED);
    }
    kj_model_result_free(r);
}

/* On for 50 ms, off for 50: naive averaging puts half of the one's power into the other. */
static void test_square_wave(void **state)
{
    (void)state;
    simulate((double[]){400e3}, (uint64_t[]){50}, 1, 49, 30);
    struct kj_model_result *r = attribute(1, 25 * MS, KJ_MODEL_BAYES);
    double on_mw = (double)r->classes[0].energy.energy_uj * 1e6 / r->busy_ns;
    assert_true(fabs(on_mw / (400e3 + IDLE_MW) - 1) < 0.05);
    assert_true(fabs(r->idle_mw / IDLE_MW - 1) < 0.05);
    kj_model_result_free(r);
}

static void test_wrong_window_is_noticed(void **state)
{
    (void)state;
    simulate((double[]){400e3}, (uint64_t[]){50}, 1, 49, 30);
    struct kj_model_result *right = attribute(1, 25 * MS, KJ_MODEL_BAYES),
                           *wrong = attribute(1, 100 * MS, KJ_MODEL_BAYES);
    assert_false(warned(right, KJ_MODEL_WARN_WINDOW));
    assert_true(warned(wrong, KJ_MODEL_WARN_WINDOW));
    assert_true(wrong->idle_mw >= 0 && wrong->idle_mw <= 700e3);
    kj_model_result_free(right);
    kj_model_result_free(wrong);
}

static void test_unknown_window_is_found(void **state)
{
    (void)state;
    simulate((double[]){400e3}, (uint64_t[]){50}, 1, 49, 30);
    struct kj_model_result *r = attribute(1, 0, KJ_MODEL_BAYES);
    assert_int_equal(r->sensor_count, 2);
    assert_in_range(r->sensors[1].window_ns, 20 * MS, 35 * MS);
    kj_model_result_free(r);
}

/* Steps as long as the sensor's period: the same part of each is seen; of another length, or moved on the way
 * by as much as a period, all. */
static void test_resonance_is_noticed(void **state)
{
    (void)state;
    static const uint64_t gaps_ms[] = {0, 17};
    for (size_t i = 0; i < 2; i++) {
        simulate((double[]){400e3, 100e3}, (uint64_t[]){50, 49}, 2, gaps_ms[i], 20);
        struct kj_model_result *r = attribute(2, 25 * MS, KJ_MODEL_BAYES);
        assert_int_equal(warned(r, KJ_MODEL_WARN_RESONANCE), !i);
        kj_model_result_free(r);
        walked_ns = 100 * MS;
        r = attribute(2, 25 * MS, KJ_MODEL_BAYES);
        assert_false(warned(r, KJ_MODEL_WARN_RESONANCE));
        kj_model_result_free(r);
        walked_ns = 0;
    }
}

/* A counter renewed as often as steps come, to the tick, within the one kernel or the other. That looks find
 * it now a little earlier and now a little later tells nothing of the powers there. */
static void test_counter_that_keeps_step(void **state)
{
    (void)state;
    static const uint64_t edges_ms[] = {20, 36, 65, 80};
    for (size_t k = 0; k < 4; k++) {
        struct kj_draws random = {.state = 7};
        memset(&w, 0, sizeof(w));
        w.mw[0] = 200e3, w.mw[1] = 430e3;
        for (uint64_t t = 300 * MS; t < 11300 * MS; t += 100 * MS)
            for (uint32_t c = 0; c < 2; c++) {
                uint64_t start = t + c * 45 * MS;
                w.intervals[w.count++] = (struct kj_model_interval){start, start + 45 * MS, c, 0};
                w.truth_uj[c] += (w.mw[c] + IDLE_MW) * 45;
            }
        w.end_ns = 11300 * MS;
        w.total_uj = energy_uj((double)w.end_ns);
        for (uint64_t at = edges_ms[k] * MS + 200 * MS; at < w.end_ns; at += 100 * MS) {
            double room_ns = w.readings < 24 ? 16e6 : 0.5e6, into = kj_draw_uniform(&random);
            uint64_t before = (uint64_t)((double)at - room_ns * into), after = before + (uint64_t)room_ns;
            w.counter[w.readings++] = (struct kj_reading){before, (uint64_t)energy_uj((double)at - 100e6)};
            w.counter[w.readings++] = (struct kj_reading){after, (uint64_t)energy_uj((double)at)};
        }
        series_count = 1, context_ns = 295 * MS;
        struct kj_model_result *r = attribute(2, 0, KJ_MODEL_BAYES);
        series_count = 2, context_ns = 0;
        for (size_t c = 0; c < 2; c++) {
            const struct kj_model_estimate *e = &r->classes[c].energy;
            assert_true((double)e->low_uj <= w.truth_uj[c] && w.truth_uj[c] <= (double)e->high_uj);
            assert_int_equal(r->classes[c].method, KJ_MODELLED);
        }
        kj_model_result_free(r);
    }
}

/* Whatever the window that is claimed, no power leaves the bounds. */
static void test_powers_stay_within_bounds(void **state)
{
    (void)state;
    static const uint64_t windows_ms[] = {5, 60, 100, 300};
    simulate((double[]){400e3, 20e3}, (uint64_t[]){50, 37}, 2, 12, 20);
    for (size_t i = 0; i < 4; i++) {
        struct kj_model_result *r = attribute(2, windows_ms[i] * MS, KJ_MODEL_BAYES);
        for (size_t c = 0; c < 2; c++) {
            const struct kj_model_class_result *class = &r->classes[c];
            assert_true(class->dynamic.low_uj >= 0 && class->dynamic.energy_uj <= class->energy.energy_uj);
            assert_true((double)class->energy.high_uj * 1e6 / class->time_ns < 1.02 * 700e3);
        }
        assert_true(r->idle_mw >= 0 && r->idle_mw <= 700e3);
        kj_model_result_free(r);
    }
}

static void test_too_little_is_shared_by_time(void **state)
{
    (void)state;
    simulate((double[]){400e3, 100e3}, (uint64_t[]){50, 50}, 2, 10, 1);
    w.readings = 14; /* and then the sensors fell silent */
    struct kj_model_result *r = attribute(2, 25 * MS, KJ_MODEL_BAYES);
    assert_true(warned(r, KJ_MODEL_WARN_COVERAGE));
    for (size_t c = 0; c < 2; c++) {
        const struct kj_model_estimate *e = &r->classes[c].energy;
        assert_int_equal(r->classes[c].method, KJ_MODELLED);
        assert_true((double)e->low_uj <= w.truth_uj[c] && w.truth_uj[c] <= (double)e->high_uj);
    }
    kj_model_result_free(r);
}

static void test_same_input_same_output(void **state)
{
    (void)state;
    simulate((double[]){500e3, 120e3, 300e3}, (uint64_t[]){12, 13, 5}, 3, 1, 10);
    struct kj_model_result *a = attribute(3, 25 * MS, KJ_MODEL_BAYES),
                           *b = attribute(3, 25 * MS, KJ_MODEL_BAYES);
    assert_memory_equal(a->classes, b->classes, 3 * sizeof(*a->classes));
    kj_model_result_free(a);
    kj_model_result_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tells_kernels_apart),
        cmocka_unit_test(test_does_not_claim_what_it_cannot_see),
        cmocka_unit_test(test_tells_apart_what_is_shorter_than_the_window),
        cmocka_unit_test(test_square_wave),
        cmocka_unit_test(test_wrong_window_is_noticed),
        cmocka_unit_test(test_unknown_window_is_found),
        cmocka_unit_test(test_resonance_is_noticed),
        cmocka_unit_test(test_counter_that_keeps_step),
        cmocka_unit_test(test_powers_stay_within_bounds),
        cmocka_unit_test(test_too_little_is_shared_by_time),
        cmocka_unit_test(test_same_input_same_output),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
