/* SPDX-License-Identifier: Apache-2.0
 *
 * fit.h - the regression's state and steps. Inside the room only; METHOD.md has the formulae.
 */
#ifndef KJ_MODEL_FIT_H
#define KJ_MODEL_FIT_H

#include "model/normal.h"
#include "model/parts.h"

#define KJ_ROWS_LEAST 6 /* fewer equations are not worth a regression */

/* Normal equations of one series, so that series can be weighed anew without going over the rows. */
struct moments {
    double *xx, *xy, yy;
    size_t rows;
    double noise2; /* variance of one row, mW^2 */
};

struct fit {
    const struct kj_model_input *input;
    size_t n; /* unknowns: idle, the columns, a shift and a stretch in time of each series (ms), warming */
    size_t columns;         /* 1 .. columns */
    struct kj_shift *shift; /* [series_count], so far */
    double *grid_sd_ns;     /* [series_count] of the prior of the shifts */
    double probe_ns;        /* half the step by which the effect of a shift is looked at */
    uint32_t *column_of;    /* [class] 1..columns */
    double *column_ns;      /* [n] time of the classes of each */
    double *static_share;   /* [class] of idle power while it runs: less than 1 where others run too */
    struct moments *series; /* [series_count] */
    size_t rows;
    double mean_mw, spread_mw; /* of the prior of a class's dynamic power */
    double idle_mw, idle_spread_mw;
    double limit_mw;
    double *prior_mw, *prior_sd_mw; /* [n] */
    double *l, *m, *inverse;        /* posterior: factor of the precision, mean, covariance */
    bool *held;                     /* at a bound */
};

/* fit.c. A fit is opened, given rows, solved, closed. 0 or -ENOMEM; false: the system has no solution. */
bool kj_fit_open(struct fit *fit, const struct kj_model_input *input, const struct kj_model_result *result);
void kj_fit_close(struct fit *fit);
/* Mean for the noise and priors as they are; weight 0: least squares. */
bool kj_fit_solve(struct fit *fit, double weight_of_prior);
/* Everything that is learned: powers, noise, spread, places in time. */
int kj_fit_all(struct fit *fit, enum kj_model_method method, const double *windows_ns, bool *ret_solved);
/* Adds what the model does not know of itself to the covariance. */
int kj_fit_widen(struct fit *fit, const double *windows_ns);
/* Sum of squared residuals of a series at the mean, plus what the covariance adds to its expectation. */
double kj_fit_rss(const struct fit *fit, const struct moments *m, bool with_covariance);

/* design.c: which class has which column, and the normal equations of the rows. */
bool kj_fit_assign_columns(struct fit *fit, const struct kj_model_result *result);
int kj_fit_collect(struct fit *fit, const struct kj_row *rows, size_t count);

/* energies.c: joules and intervals from the posterior, made to add up. 0 or -ENOMEM. */
int kj_fit_publish(const struct fit *fit, const struct kj_model_options *options,
                   struct kj_model_result *result);

#endif
