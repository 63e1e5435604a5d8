/* SPDX-License-Identifier: Apache-2.0
 *
 * test_edges.c - where the edge of a sensor's window lies, against sums over the density it stands for.
 */
#include "model/normal.h"
#include "model/parts.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

struct laid {
    double place_ns, sd_ns, after_ns, seen_ns;
};
/* In the middle, to one side, near and far in a tail, looks close and far apart, a look that saw it late. */
static const struct laid cases[] = {
    {0, 1e6, -8e6, 8e6},        {0, 1e6, -0.5e6, 0.7e6}, {0, 1e6, 1.2e6, 9e6},
    {0, 1e6, 3e6, 90e6},        {0, 1e6, -90e6, -3e6},   {0, 1e5, -16e6, 2e4},
    {5e9, 1e6, 5e9 - 1e5, 5e9}, {0, 1e5, 3.5e5, 90e6},   {0, 1e5, -90e6, -3.5e5},
};

/* Mean, and how long it is past at t on average, by the middle rule over where the density is. */
static void sum_up(const struct laid *c, double t_ns, double *ret_mean_ns, double *ret_passed_ns)
{
    double low = fmax(c->after_ns, c->place_ns - 9 * c->sd_ns),
           high = fmin(c->seen_ns, c->place_ns + 9 * c->sd_ns);
    double weight = 0, mean = 0, passed = 0;
    int steps = 400000;
    for (int i = 0; i < steps; i++) {
        double at = low + (high - low) * (i + 0.5) / steps,
               p = kj_normal_density((at - c->place_ns) / c->sd_ns);
        weight += p, mean += p * (at - c->place_ns), passed += p * fmax(t_ns - at, 0);
    }
    *ret_mean_ns = c->place_ns + mean / weight;
    *ret_passed_ns = passed / weight;
}

static void test_against_sums(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        const struct laid *c = &cases[i];
        struct kj_edge edge = kj_edge_between(c->place_ns, c->sd_ns, c->after_ns, c->seen_ns, 0);
        for (double times = -4; times <= 4; times += 0.37) {
            double t_ns = c->place_ns + times * c->sd_ns, mean_ns, passed_ns;
            sum_up(c, t_ns, &mean_ns, &passed_ns);
            assert_true(fabs(edge.mean_ns - mean_ns) < 2e-3 * c->sd_ns);
            assert_true(fabs(kj_edge_passed_ns(&edge, t_ns) - passed_ns) < 2e-3 * c->sd_ns);
        }
    }
}

/* The nodes stand for the same: between the looks, weights of one in sum, mean and variance about right. */
static void test_nodes(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        const struct laid *c = &cases[i];
        struct kj_edge edge = kj_edge_between(c->place_ns, c->sd_ns, c->after_ns, c->seen_ns, 0);
        double at_ns[KJ_EDGE_NODES], weight[KJ_EDGE_NODES], sum = 0, mean = 0;
        kj_edge_nodes(&edge, at_ns, weight);
        for (size_t k = 0; k < KJ_EDGE_NODES; k++) {
            assert_true(at_ns[k] >= c->after_ns && at_ns[k] <= c->seen_ns);
            assert_true(isfinite(weight[k]) && weight[k] >= 0);
            sum += weight[k], mean += weight[k] * (at_ns[k] - c->place_ns);
        }
        assert_true(fabs(sum - 1) < 1e-9);
        assert_true(fabs(c->place_ns + mean - edge.mean_ns) < 0.1 * c->sd_ns);
    }
}

/* What is unseen adds its variance; no look at all is a normal alone; what lies off its grid is anywhere. */
static void test_what_is_unseen(void **state)
{
    (void)state;
    double at_ns[KJ_EDGE_NODES], weight[KJ_EDGE_NODES], square = 0;
    struct kj_edge edge = kj_edge_between(0, 10e6, -1e5, 1e5, 1e6);
    kj_edge_nodes(&edge, at_ns, weight);
    for (size_t k = 0; k < KJ_EDGE_NODES; k++)
        square += weight[k] * at_ns[k] * at_ns[k];
    assert_true(fabs(sqrt(square) / hypot(2e5 / sqrt(12), 1e6) - 1) < 0.05);
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases);
         i++) { /* and leaves the mean where the looks have it */
        const struct laid *c = &cases[i];
        struct kj_edge seen = kj_edge_between(c->place_ns, c->sd_ns, c->after_ns, c->seen_ns, 0),
                       blurred = kj_edge_between(c->place_ns, c->sd_ns, c->after_ns, c->seen_ns, 2e6);
        assert_true(fabs(seen.mean_ns - blurred.mean_ns) < 1);
    }
    edge = kj_edge_between(7, 1e6, 0, 0, 2e6);
    assert_true(fabs(edge.mean_ns - 7) < 1);
    edge = kj_edge_between(7, 1e6, 0, 0, 0);
    assert_true(fabs(edge.mean_ns - 7) < 1);
    edge = kj_edge_between(0, 1e5, 5e6, 7e6, 0);
    assert_true(fabs(edge.mean_ns - 6e6) < 1e4);
    struct kj_edge moved = kj_edge_moved(&edge, 3e6);
    assert_true(fabs(kj_edge_passed_ns(&moved, 9.5e6) - kj_edge_passed_ns(&edge, 6.5e6)) < 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_sums),
        cmocka_unit_test(test_nodes),
        cmocka_unit_test(test_what_is_unseen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
