/* SPDX-License-Identifier: Apache-2.0 */
#include "model/curve.h"

#include <errno.h>
#include <stdlib.h>

struct change {
    double t_ns, rate;
};

static int by_time(const void *a, const void *b)
{
    double x = ((const struct change *)a)->t_ns, y = ((const struct change *)b)->t_ns;
    return (x > y) - (x < y);
}

int kj_curve_of_pieces(const struct kj_curve_piece *pieces, size_t count, struct kj_curve *ret_curve)
{
    struct change *changes = malloc((2 * count + 1) * sizeof(*changes));
    *ret_curve = (struct kj_curve){.t_ns = malloc((2 * count + 1) * sizeof(double)),
                                   .sum = malloc((2 * count + 1) * sizeof(double))};
    if (!changes || !ret_curve->t_ns || !ret_curve->sum) {
        free(changes);
        kj_curve_free(ret_curve);
        return -ENOMEM;
    }
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        if (pieces[i].end_ns <= pieces[i].start_ns)
            continue;
        changes[n++] = (struct change){pieces[i].start_ns, pieces[i].rate};
        changes[n++] = (struct change){pieces[i].end_ns, -pieces[i].rate};
    }
    qsort(changes, n, sizeof(*changes), by_time);
    double rate = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        if (i)
            sum += rate * (changes[i].t_ns - changes[i - 1].t_ns);
        rate += changes[i].rate;
        ret_curve->t_ns[i] = changes[i].t_ns;
        ret_curve->sum[i] = sum;
    }
    ret_curve->count = n;
    free(changes);
    return 0;
}

double kj_curve_at(const struct kj_curve *curve, double t_ns)
{
    size_t lo = 0, hi = curve->count;
    if (!hi || t_ns <= curve->t_ns[0])
        return 0;
    if (t_ns >= curve->t_ns[hi - 1])
        return curve->sum[hi - 1];
    while (hi - lo > 1) {
        size_t mid = (lo + hi) / 2;
        if (curve->t_ns[mid] <= t_ns)
            lo = mid;
        else
            hi = mid;
    }
    double length = curve->t_ns[hi] - curve->t_ns[lo];
    double part = length > 0 ? (t_ns - curve->t_ns[lo]) / length : 0;
    return curve->sum[lo] + part * (curve->sum[hi] - curve->sum[lo]);
}

void kj_curve_free(struct kj_curve *curve)
{
    free(curve->t_ns);
    free(curve->sum);
    *curve = (struct kj_curve){0};
}
