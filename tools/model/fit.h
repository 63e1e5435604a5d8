/* SPDX-License-Identifier: Apache-2.0
 *
 * fit.h - the regression's state and steps. Inside the room only; METHOD.md has the formulae.
 */
#ifndef KJ_MODEL_FIT_H
#define KJ_MODEL_FIT_H

#include "model/normal.h"
#include "model/parts.h"

enum {
    KJ_ROWS_LEAST = 6, /* fewer equations are not worth a regression */
    KJ_BLOCKS = 12,    /* of the run, each left out once by the jackknife */
};

/* Normal equations of rows whose noise is white and of variance 1. */
struct moments {
    double *xx, *xy; /* lower triangle of [n x n], [n] */
    double yy;
    size_t rows;
};

#define KJ_UNSEEN_NS 3e5 /* before the data: a reading and a clock are no better */

/* What varies a row of a series around its expectation, as shares of variance: noise.c. */
enum kj_noise_part {
    KJ_NOISE_SENSOR, /* of the reading, squared */
    KJ_NOISE_LAUNCH, /* of the power of one launch around its class's, squared */
    KJ_NOISE_TIMING, /* of what was assumed not to be known of an update's moment, squared */
    KJ_NOISE_PARTS,
};
struct kj_noise {
    double share[KJ_NOISE_PARTS];
    double features[KJ_NOISE_PARTS][KJ_NOISE_PARTS], target[KJ_NOISE_PARTS]; /* collected for the next */
    double unseen_ns; /* 1 sigma of one update, beside what looks see of it */
    double jitter_ns, jitter_most_ns, jitter_least_ns; /* around its grid; and what the looks allow */
    size_t rows;
    double residual2, reading; /* sums over rows, mW^2 and mW */
};

struct timeline; /* timeline.c */

struct fit {
    const struct kj_model_input *input;
    size_t n; /* unknowns: idle, the columns, a shift and a stretch in time of each series (ms), warming of
                 both */
    size_t columns;                     /* 1 .. columns */
    struct kj_shift *shift;             /* [series_count], so far */
    double *grid_sd_ns, *stretch_sd_ns; /* [series_count] of the prior of the shifts */
    double probe_ns;                    /* half the step by which the effect of a shift is looked at */
    uint32_t *column_of;                /* [class] 1..columns */
    double *column_ns;                  /* [n] time of the classes of each */
    double *static_share; /* [class] of idle power while it runs: less than 1 where others run too */
    struct timeline *timeline;
    bool plain; /* all rows alike and independent: least squares, and the look for another window */
    struct kj_noise *noise;           /* [series_count] */
    struct moments all;               /* of all rows, and what is known of the total */
    struct moments blocks[KJ_BLOCKS]; /* of the rows of each part of the run */
    double widening; /* of the noise's variance: rows err together where the model is wrong */
    size_t rows;
    double minus2_log;                      /* of how likely the rows were at fit->m, but for a constant */
    double total_mw, total_sd_mw, *total_x; /* the run as one more equation; sd 0: not known */
    double mean_mw, spread_mw;              /* of the prior of a class's dynamic power, at the moment */
    double first_spread_mw;                 /* what it is before the data */
    double idle_mw, idle_spread_mw;
    double limit_mw, top_mw;        /* of the board; of a class, over idle */
    double *prior_mw, *prior_sd_mw; /* [n] */
    bool *own_prior;                /* [n] prior is the caller's, not shared */
    double *l, *m, *inverse;        /* posterior: factor of the precision, mean, covariance */
    bool *held;                     /* at a bound */
    double *loose_sd_mw;            /* [n] of the posterior, were there no bounds; 0: not known */
    const double *maybe;            /* draws that the effect of timing is averaged over; NULL: at m alone */
    size_t maybe_count;
};

/* fit.c. A fit is opened, given rows, solved, closed. 0 or -ENOMEM; false: the system has no solution. */
bool kj_fit_open(struct fit *fit, const struct kj_model_input *input, const struct kj_model_result *result);
void kj_fit_close(struct fit *fit);
/* Normal posterior for the noise and priors as they are, no power past a bound; weight 0: least squares. */
bool kj_fit_solve(struct fit *fit, double weight_of_prior);
/* Everything that is learned: powers, noise, spread, places in time. */
int kj_fit_all(struct fit *fit, enum kj_model_method method, const double *windows_ns, bool *ret_solved);
/* Highest that an unknown may be: DBL_MAX where it is no power. */
double kj_fit_top(const struct fit *fit, size_t i);

/* design.c: which class has which column, and the normal equations of the rows. Leaves the sums of residuals
 * at fit->m in fit->noise. */
bool kj_fit_assign_columns(struct fit *fit, const struct kj_model_result *result);
int kj_fit_collect(struct fit *fit, const struct kj_row *rows, size_t count);

/* timeline.c: the intervals in order, and the energy over idle that the powers fit->m make of them. */
struct timeline *kj_timeline_make(const struct fit *fit);
struct timeline *kj_timeline_free(struct timeline *timeline);
void kj_timeline_set_powers(struct timeline *timeline, const double *column_mw);
/* mW ns from the start of the timeline to t. */
double kj_timeline_energy(const struct timeline *timeline, double t_ns);
/* The intervals that may reach into [from, to): index of the first, to be walked until starts_ns >= to. */
size_t kj_timeline_first(const struct timeline *timeline, double from_ns);
const struct kj_model_interval *kj_timeline_intervals(const struct timeline *timeline, size_t *ret_count);
double *kj_timeline_static_shares(const struct timeline *timeline, const struct kj_model_input *input,
                                  const struct kj_model_result *result);

/* noise.c: variance of a row from its features, and the shares anew from what was collected. */
double kj_noise_variance(const struct kj_noise *noise, const double *features);
void kj_noise_add(struct kj_noise *noise, const double *features, double target, double variance2);
void kj_noise_learn(struct kj_noise *noise, double freedom);

/* posterior.c: draws of the unknowns, in rows of n; fit->m and fit->inverse become their mean and covariance,
 * fit->prior_sd_mw what one class could be when nothing is seen of it. The caller frees; NULL: no memory. */
double *kj_fit_draw(struct fit *fit, enum kj_model_method method, size_t draws);

/* energies.c: joules and intervals from the posterior, made to add up. 0 or -ENOMEM. */
int kj_fit_publish(struct fit *fit, const struct kj_model_options *options, struct kj_model_result *result);

#endif
