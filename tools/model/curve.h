/* SPDX-License-Identifier: Apache-2.0
 *
 * curve.h - integrals over time as broken lines: energy up to t, time that something ran up to t. Inside the
 * room only. Pure.
 */
#ifndef KJ_MODEL_CURVE_H
#define KJ_MODEL_CURVE_H

#include <stddef.h>

struct kj_curve {
    double *t_ns, *sum; /* rising t_ns */
    size_t count;
};

/* A rate that holds over [start, end). */
struct kj_curve_piece {
    double start_ns, end_ns, rate;
};

/* The integral of the sum of the pieces, which may overlap; -ENOMEM. */
int kj_curve_of_pieces(const struct kj_curve_piece *pieces, size_t count, struct kj_curve *ret_curve);
/* Up to t. Before the first point 0 is added, after the last one none. */
double kj_curve_at(const struct kj_curve *curve, double t_ns);
void kj_curve_free(struct kj_curve *curve);

#endif
