/* SPDX-License-Identifier: Apache-2.0
 *
 * normal.c - Cholesky, by rows, and normal draws. Golub and Van Loan, Matrix Computations, 4.2.5.
 */
#include "model/normal.h"

#include <math.h>

bool kj_cholesky(double *a, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j <= i; j++) {
            double sum = a[i * n + j];
            for (size_t k = 0; k < j; k++)
                sum -= a[i * n + k] * a[j * n + k];
            if (i != j)
                a[i * n + j] = sum / a[j * n + j];
            else if (sum > 0)
                a[i * n + i] = sqrt(sum);
            else
                return false;
        }
    }
    return true;
}

void kj_cholesky_back(const double *l, size_t n, double *x)
{
    for (size_t i = n; i-- > 0;) {
        x[i] /= l[i * n + i];
        for (size_t k = 0; k < i; k++)
            x[k] -= l[i * n + k] * x[i];
    }
}

void kj_cholesky_solve(const double *l, size_t n, double *x)
{
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < i; k++)
            x[i] -= l[i * n + k] * x[k];
        x[i] /= l[i * n + i];
    }
    kj_cholesky_back(l, n, x);
}

void kj_cholesky_inverse(const double *l, size_t n, double *ret_inverse)
{
    for (size_t j = 0; j < n; j++) {
        double *column = ret_inverse + j * n; /* symmetric: a row is a column */
        for (size_t i = 0; i < n; i++)
            column[i] = i == j;
        kj_cholesky_solve(l, n, column);
    }
}

double kj_normal_below(double z)
{
    return 0.5 * erfc(-z * M_SQRT1_2);
}

double kj_normal_density(double z)
{
    return exp(-0.5 * z * z) * 0.398942280401432678;
}

double kj_draw_uniform(struct kj_draws *draws)
{
    uint64_t z = draws->state += 0x9e3779b97f4a7c15ULL;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

double kj_draw_normal(struct kj_draws *draws)
{
    if (draws->has_spare) {
        draws->has_spare = false;
        return draws->spare;
    }
    double u, v, s;
    do {
        u = 2 * kj_draw_uniform(draws) - 1;
        v = 2 * kj_draw_uniform(draws) - 1;
        s = u * u + v * v;
    } while (s >= 1 || s == 0);
    double scale = sqrt(-2 * log(s) / s);
    draws->spare = v * scale;
    draws->has_spare = true;
    return u * scale;
}
