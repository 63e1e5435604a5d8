/* SPDX-License-Identifier: Apache-2.0
 *
 * normal.h - dense symmetric systems, the normal distribution and draws of it, as the regression needs them.
 * Inside the room only.
 * Matrices are n x n in rows; only what the comments say is read or written. Pure.
 */
#ifndef KJ_MODEL_NORMAL_H
#define KJ_MODEL_NORMAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Cholesky factor L (lower triangle of a, in place); false where a is not positive definite. */
bool kj_cholesky(double *a, size_t n);
/* Solves L L' x = b in place. */
void kj_cholesky_solve(const double *l, size_t n, double *x);
/* x = L'^-1 z in place: z of unit normals gives a draw with covariance (L L')^-1. */
void kj_cholesky_back(const double *l, size_t n, double *x);
/* The inverse of L L'. */
void kj_cholesky_inverse(const double *l, size_t n, double *ret_inverse);

/* The unit normal's distribution function, and its density. */
double kj_normal_below(double z);
double kj_normal_density(double z);

/* The same draws for the same seed, on every machine (splitmix64; Marsaglia's polar method). */
struct kj_draws {
    uint64_t state;
    double spare;
    bool has_spare;
};
double kj_draw_normal(struct kj_draws *draws);
double kj_draw_uniform(struct kj_draws *draws);

#endif
