/* SPDX-License-Identifier: Apache-2.0
 *
 * test_looks.c - when sensors are looked at, over simulated sensors whose renewals are known: that each
 * renewal is seen closely, at how many looks more, and that nothing is wasted on sensors that keep no period.
 */
#include "model/normal.h"
#include "record/looks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>

#define MS 1e6

struct sensor {
    double period_ms, jitter_ms, late_ms; /* late: a look comes up to so much after it was due */
    double still_after_s;                 /* its value stays the same from then on */
    double jump_at_s, jump_ms;            /* its clock is set */
    double cost_ns;
};

struct seen {
    size_t renewals, looks, even, close; /* close: known to 1.5 ms; counted in the last half of the run */
    double worst_ms;
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Follows a sensor for a minute. Widths: between which looks each renewal was seen, of the last half. */
static struct seen follow(const struct sensor *sensor, double *ret_median_ms)
{
    static double widths[100000];
    struct kj_renewals renewals = {0};
    struct kj_draws random = {.state = 7};
    struct seen seen = {0};
    size_t count = 0;
    double even_ns = (double)kj_looks_first_ns((uint64_t)(100 * MS)), even = 5 * MS, end = 60e3 * MS;
    double renewed = 33 * MS, number = 0, last = 0, before = -1;
    for (double t = 0; even < end;) {
        double own = (double)kj_renewals_next_ns(&renewals), at = fmin(even, own);
        seen.even += at == even;
        even += at < even ? 0 : even_ns;
        t = fmax(at + sensor->late_ms * MS * kj_draw_uniform(&random), t);
        while (renewed <= t && t < sensor->still_after_s * 1e9) {
            number++;
            renewed =
                33 * MS + number * sensor->period_ms * MS + sensor->jitter_ms * MS * kj_draw_normal(&random);
            renewed += sensor->jump_at_s > 0 && renewed > sensor->jump_at_s * 1e9 ? sensor->jump_ms * MS : 0;
        }
        seen.looks++;
        kj_renewals_saw(&renewals, (uint64_t)t, number != before, (uint64_t)even_ns, sensor->cost_ns);
        if (number != before && t > end / 2) {
            widths[count++] = (t - last) / MS;
            seen.close += t - last < 1.5 * MS;
        }
        before = number, last = t;
    }
    seen.renewals = (size_t)number;
    qsort(widths, count, sizeof(*widths), by_value);
    *ret_median_ms = count ? widths[count / 2] : 0;
    seen.close = count ? 100 * seen.close / count : 0;
    return seen;
}

#define NEVER .still_after_s = 1e9
/* Of the usual sensors each renewal is seen to a ms or so, for a few looks more. */
static void test_renewals_are_followed(void **state)
{
    (void)state;
    static const struct {
        struct sensor sensor;
        double median_ms;  /* at most */
        size_t close;      /* % at least */
        double looks_each; /* beside the even ones, at most */
    } cases[] = {
        {{.period_ms = 100, .jitter_ms = 0, .late_ms = .1, NEVER}, 1, 95, 4},
        {{.period_ms = 100.3, .jitter_ms = 1, .late_ms = .1, NEVER}, 1.7, 30, 4.5},
        {{.period_ms = 99.2, .jitter_ms = .3, .late_ms = .3, NEVER}, 1.2, 80, 4.5},
        {{.period_ms = 50, .jitter_ms = .5, .late_ms = .1, NEVER}, 1.3, 60, 4.5},
        {{.period_ms = 100, .jitter_ms = .2, .late_ms = .1, .jump_at_s = 20, .jump_ms = 37, NEVER},
         1.2,
         80,
         4.5},
        {{.period_ms = 100, .jitter_ms = .2, .late_ms = .1, .cost_ns = 150e3, NEVER}, 1.2, 80, 4.5},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        double median_ms;
        struct seen seen = follow(&cases[i].sensor, &median_ms);
        double looks_each = ((double)seen.looks - (double)seen.even) / (double)seen.renewals;
        if (!(median_ms <= cases[i].median_ms) || seen.close < cases[i].close ||
            looks_each > cases[i].looks_each)
            fail_msg("case %zu: median %.2f ms, close %zu %%, %.1f looks a renewal", i, median_ms, seen.close,
                     looks_each);
    }
}

/* Nothing to follow, or too dear: looks stay even. */
static void test_nothing_is_wasted(void **state)
{
    (void)state;
    static const struct sensor cases[] = {
        {.period_ms = 25, NEVER},                                     /* no faster than the looks can tell */
        {.period_ms = 100, .jitter_ms = 60, NEVER},                   /* no period */
        {.period_ms = 100, .jitter_ms = .3, .still_after_s = 5},      /* idle from then on */
        {.period_ms = 100, .jitter_ms = .3, .cost_ns = 300e3, NEVER}, /* dear */
        {.period_ms = 100, .jitter_ms = .3, .still_after_s = .5},     /* never learned */
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        double median_ms, more;
        struct seen seen = follow(&cases[i], &median_ms);
        more = (double)(seen.looks - seen.even) / (double)seen.even;
        if (more > 0.12)
            fail_msg("case %zu: %.0f %% more looks", i, 100 * more);
    }
}

/* The even looks: by the golden ratio, closer for fast sensors, never for more than a hundredth of the time.
 */
static void test_even_looks(void **state)
{
    (void)state;
    uint64_t interval_ns = 100000000, first_ns = kj_looks_first_ns(interval_ns), at_ns = first_ns;
    assert_in_range(first_ns, 16180339, 16180341);
    assert_int_equal(kj_looks_next_ns(first_ns, interval_ns, 0.17, 0), first_ns);
    assert_int_equal(kj_looks_next_ns(first_ns, interval_ns, 0.8, 150e3), first_ns);
    for (int i = 0; i < 8; i++)
        at_ns = kj_looks_next_ns(at_ns, interval_ns, 1, 20e3);
    assert_in_range(at_ns, 6180000, 6190000);
    assert_int_equal(kj_looks_first_ns(1000000), 1000000); /* the user's own wish */
    assert_in_range(kj_looks_first_ns(1000000000), 161800000, 161810000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_renewals_are_followed),
        cmocka_unit_test(test_nothing_is_wasted),
        cmocka_unit_test(test_even_looks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
