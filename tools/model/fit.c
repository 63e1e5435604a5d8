/* SPDX-License-Identifier: Apache-2.0
 *
 * fit.c - the powers of the classes, the noise of the sensors and their places in time, learned together:
 * a normal approximation, which posterior.c then draws from as it should be.
 */
#include "model/fit.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    SHIFT_ROUNDS = 7,
    ROUNDS = 30, /* of empirical Bayes */
    MAYBE = 60,  /* draws on the way */
};
/* Spread of the classes' powers before the data, of their mean. Kernels of one training draw anything from a
 * little over idle to the board's limit (shared/reference/energy.md 2.2; A100: 100 to 400 W): nearly flat
 * from nothing to twice the mean, whose sd is 0.58 of it; 0.9, cut off there, has 0.53. A limit that is known
 * cuts off, and must not make anything less sure. */
#define SPREAD_OF_MEAN 0.9
#define SPREAD_WEIGHT  6.0 /* as many classes as that prior counts, here */
#define PLACE_FAR      0.8 /* sds of a series from where it was expected: looked at from the other side too, */
#define PLACE_OTHER    1.5  /* at most so many from there */
#define WARMING_SD     0.03 /* relative change of power from the middle of the run to its end */
#define TOTAL_SD       0.02 /* of the run as one equation: another sensor's gain, durations */
#define JITTER_OPEN                                                                                          \
    0.25 /* relative sd of a jitter that the looks leave open: residuals may say that it is less */
#define SHIFT_LEAST_NS 1e5 /* a grid that the polls place perfectly may still be this far off */
#define BOARD_MOST_MW  1200000.0

static bool solve_free(struct fit *fit, double weight_of_prior)
{
    size_t n = fit->n;
    double w = 1 / fit->widening;
    for (size_t i = 0; i < n; i++) {
        fit->m[i] = w * fit->all.xy[i];
        for (size_t j = 0; j <= i; j++)
            fit->l[i * n + j] = w * fit->all.xx[i * n + j];
    }
    for (size_t i = 0; i < n; i++) {
        double precision = weight_of_prior / (fit->prior_sd_mw[i] * fit->prior_sd_mw[i]);
        if (fit->held[i])
            precision = 1e6 / (fit->prior_sd_mw[i] * fit->prior_sd_mw[i]) + 1e6 * fit->l[i * n + i];
        double at = !fit->held[i] ? fit->prior_mw[i] : fit->prior_mw[i] < 0 ? -fit->prior_mw[i] : 0;
        fit->l[i * n + i] += precision;
        fit->m[i] += precision * at;
    }
    if (!kj_cholesky(fit->l, n))
        return false;
    kj_cholesky_solve(fit->l, n, fit->m);
    return true;
}

double kj_fit_top(const struct fit *fit, size_t i)
{
    return !i ? fit->limit_mw : i <= fit->columns ? fit->top_mw : DBL_MAX;
}

/* With no power below zero nor above the board's limit: what wants past a bound is held there. */
bool kj_fit_solve(struct fit *fit, double weight_of_prior)
{
    memset(fit->held, 0, fit->n * sizeof(*fit->held));
    double *kept = malloc(fit->n * sizeof(*kept));
    if (!kept)
        return false;
    memcpy(kept, fit->prior_mw, fit->n * sizeof(*kept));
    bool ok = true, again = true;
    for (int round = 0; ok && again && round < 12; round++) {
        again = false;
        ok = solve_free(fit, weight_of_prior);
        for (size_t i = 0; ok && i <= fit->columns; i++) {
            double top = kj_fit_top(fit, i);
            if (fit->held[i] || (fit->m[i] >= 0 && fit->m[i] <= top))
                continue;
            fit->held[i] = true;
            fit->prior_mw[i] = fit->m[i] < 0 ? 0 : -top; /* the sign marks the upper bound for solve_free */
            again = true;
        }
    }
    memcpy(fit->prior_mw, kept, fit->n * sizeof(*kept));
    free(kept);
    for (size_t i = 0; ok && i <= fit->columns; i++)
        fit->m[i] = fmin(fmax(fit->m[i], 0), kj_fit_top(fit, i));
    return ok;
}

static void set_priors(struct fit *fit)
{
    fit->prior_mw[0] = fit->idle_mw;
    fit->prior_sd_mw[0] = fit->idle_spread_mw;
    fit->prior_sd_mw[fit->n - 2] = fit->prior_sd_mw[fit->n - 1] = WARMING_SD;
    for (size_t s = 0; s < fit->input->series_count; s++) {
        size_t at = 1 + fit->columns + 2 * s;
        fit->prior_mw[at] = -fit->shift[s].middle_ns / 1e6;
        fit->prior_mw[at + 1] = -fit->shift[s].stretch_ns / 1e6;
        fit->prior_sd_mw[at] = fit->grid_sd_ns[s] / 1e6;
        fit->prior_sd_mw[at + 1] = fit->stretch_sd_ns[s] / 1e6;
    }
    for (size_t i = 1; i <= fit->columns; i++) {
        fit->prior_mw[i] = fit->mean_mw;
        fit->prior_sd_mw[i] = fit->spread_mw;
    }
    for (size_t c = 0; c < fit->input->class_count; c++) {
        const struct kj_model_class *class = &fit->input->classes[c];
        if (class->prior_mw > 0 && class->prior_sd_mw > 0) {
            fit->own_prior[fit->column_of[c]] = true;
            fit->prior_mw[fit->column_of[c]] = class->prior_mw;
            fit->prior_sd_mw[fit->column_of[c]] = class->prior_sd_mw;
        }
    }
}

/* One round of empirical Bayes: what the posterior says of mean and spread of the classes. */
static void learn_powers(struct fit *fit)
{
    double weight = 0, sum = 0, spread2 = 0;
    for (size_t i = 1; i <= fit->columns; i++) {
        double w = 1 / (fit->inverse[i * fit->n + i] + fit->spread_mw * fit->spread_mw);
        weight += w;
        sum += w * fit->m[i];
    }
    fit->mean_mw = weight > 0 ? sum / weight : fit->mean_mw;
    for (size_t i = 1; i <= fit->columns; i++) {
        double d = fit->m[i] - fit->mean_mw;
        spread2 += d * d + fit->inverse[i * fit->n + i];
    }
    double before2 = fit->first_spread_mw * fit->first_spread_mw;
    fit->spread_mw = sqrt((spread2 + SPREAD_WEIGHT * before2) / ((double)fit->columns + SPREAD_WEIGHT));
    set_priors(fit);
}

static bool fit_bayes(struct fit *fit)
{
    for (int round = 0; round < ROUNDS; round++) {
        double before = fit->spread_mw;
        if (!kj_fit_solve(fit, 1))
            return false;
        kj_cholesky_inverse(fit->l, fit->n, fit->inverse);
        if (round + 1 < ROUNDS)
            learn_powers(fit);
        if (round > 1 && fabs(fit->spread_mw / before - 1) < 1e-2)
            break;
    }
    return true;
}

static bool fit_least_squares(struct fit *fit)
{
    return kj_fit_solve(fit, 1e-9) && (kj_cholesky_inverse(fit->l, fit->n, fit->inverse), true);
}

/* What the noise of each series is, from the residuals at the last powers; and what idle leaves of the limit.
 */
static void learn_noise(struct fit *fit)
{
    fit->top_mw = fit->limit_mw - fmax(fit->m[0] - sqrt(fit->inverse[0]), 0);
    double parameters = 0;
    for (size_t i = 0; i < fit->n; i++)
        parameters += fmin(fmax(1 - fit->inverse[i * fit->n + i] / pow(fit->prior_sd_mw[i], 2), 0), 1);
    double rows = fmax((double)fit->rows, 1), freedom = rows / fmax(rows - parameters, rows / 4);
    for (size_t s = 0; s < fit->input->series_count; s++) {
        kj_noise_learn(&fit->noise[s], freedom);
        fit->shift[s].unseen_ns = fit->noise[s].unseen_ns;
        fit->shift[s].jitter_ns = fit->noise[s].jitter_ns;
    }
}

/* The run as one equation: its mean power is known, whatever the sensors saw of its parts. */
static void set_total(struct fit *fit, const struct kj_model_result *result)
{
    const struct kj_model_input *input = fit->input;
    double run_ns = (double)input->end_ns - (double)input->start_ns,
           bare_ns = kj_model_bare_ns(input, result);
    double bare_mw = result->bare_mw > 0 ? fmin(result->bare_mw, result->idle_mw) : result->idle_mw;
    double uj = (double)(result->total_uj - result->unattributed_uj) - bare_mw * bare_ns * 1e-6;
    if (run_ns - bare_ns < 1 || uj <= 0 || result->untimed) /* what untimed launches took is not known */
        return;
    fit->total_mw = uj * 1e6 / (run_ns - bare_ns);
    fit->total_sd_mw = TOTAL_SD * fit->total_mw;
    fit->total_x[0] = 1;
    for (size_t i = 1; i <= fit->columns; i++)
        fit->total_x[i] = fit->column_ns[i] / (run_ns - bare_ns);
}

static void set_levels(struct fit *fit, const struct kj_model_result *result)
{
    double busy_ns = fmax(result->busy_ns, 1), busy_mw = (double)result->kernels_uj * 1e6 / busy_ns;
    fit->limit_mw = fit->input->limit_mw > 0 ? fit->input->limit_mw : BOARD_MOST_MW;
    fit->idle_mw = fmin(result->idle_mw, fit->limit_mw / 2);
    fit->idle_spread_mw = fmax(result->idle_sd_mw, 1000);
    /* Never seen by itself: as much as without a context, or more. Of several classes that would take from
     * what they are thought to differ by: there, anything up to the least power seen. */
    if (result->idle_most_mw > 0 && fit->columns == 1) {
        double most_mw = fmin(result->idle_most_mw, fit->limit_mw / 2),
               least_mw = fmin(result->bare_mw, most_mw);
        fit->idle_spread_mw = 0.35 * (most_mw - least_mw) + 1000;
        fit->idle_mw = (most_mw + least_mw) / 2;
    } else if (result->idle_most_mw > 0) {
        fit->idle_spread_mw = 0.35 * fit->idle_mw + 1000;
        fit->idle_mw /= 2;
    }
    fit->top_mw = fit->limit_mw - fmax(fit->idle_mw - fit->idle_spread_mw, 0);
    fit->mean_mw = fmax(busy_mw - fit->idle_mw, 0.02 * busy_mw + 1000);
    fit->first_spread_mw = SPREAD_OF_MEAN * fit->mean_mw;
    set_total(fit, result);
}

/* As nothing of the rows were known; each series `times` what is not known of its place from where it seems
 * to be. */
static void begin_at(struct fit *fit, const double *times)
{
    fit->mean_mw = fit->first_spread_mw / SPREAD_OF_MEAN;
    fit->spread_mw = fit->first_spread_mw;
    fit->widening = 1;
    memset(fit->m, 0, fit->n * sizeof(*fit->m));
    fit->m[0] = fit->idle_mw;
    for (size_t i = 1; i <= fit->columns; i++)
        fit->m[i] = fmin(fit->mean_mw, kj_fit_top(fit, i));
    for (size_t s = 0; s < fit->input->series_count; s++) {
        struct kj_noise *noise = &fit->noise[s];
        fit->shift[s] = (struct kj_shift){.middle_ns = times ? times[s] * fit->grid_sd_ns[s] : 0,
                                          .sd_ns = fit->grid_sd_ns[s],
                                          .unseen_ns = KJ_UNSEEN_NS};
        *noise = (struct kj_noise){.share = {1e-4, 9e-4, 1},
                                   .unseen_ns = KJ_UNSEEN_NS,
                                   .jitter_ns = noise->jitter_most_ns,
                                   .jitter_most_ns = noise->jitter_most_ns,
                                   .jitter_least_ns = noise->jitter_least_ns};
    }
    set_priors(fit);
}

static bool open_series(struct fit *fit)
{
    const struct kj_model_input *input = fit->input;
    fit->noise = calloc(input->series_count + 1, sizeof(*fit->noise));
    fit->grid_sd_ns = calloc(input->series_count + 1, sizeof(*fit->grid_sd_ns));
    fit->stretch_sd_ns = calloc(input->series_count + 1, sizeof(*fit->stretch_sd_ns));
    fit->shift = calloc(input->series_count + 1, sizeof(*fit->shift));
    if (!fit->noise || !fit->stretch_sd_ns || !fit->grid_sd_ns || !fit->shift)
        return false;
    for (size_t s = 0; s < input->series_count; s++) {
        struct kj_update *updates;
        struct kj_grid grid;
        kj_model_updates(&input->series[s], &updates, &grid);
        free(updates);
        double delay_sd_ns = input->series[s].sensor.delay_sd_ns;
        delay_sd_ns = delay_sd_ns > 0 ? fmax(delay_sd_ns, SHIFT_LEAST_NS) : KJ_DELAY_UNKNOWN_SD_NS;
        fit->grid_sd_ns[s] = hypot(grid.sd_ns, delay_sd_ns);
        fit->stretch_sd_ns[s] = hypot(grid.stretch_sd_ns, SHIFT_LEAST_NS);
        double jitter_least_ns = grid.jitter_sd > JITTER_OPEN ? SHIFT_LEAST_NS : grid.jitter_ns;
        fit->noise[s].jitter_most_ns = grid.jitter_ns;
        fit->noise[s].jitter_least_ns = jitter_least_ns;
    }
    return true;
}

static bool open_moments(struct moments *m, size_t n)
{
    m->xx = calloc(n * n, sizeof(double));
    m->xy = calloc(n, sizeof(double));
    return m->xx && m->xy;
}

bool kj_fit_open(struct fit *fit, const struct kj_model_input *input, const struct kj_model_result *result)
{
    *fit = (struct fit){.input = input};
    if (!kj_fit_assign_columns(fit, result))
        return false;
    size_t n = fit->n;
    fit->timeline = kj_timeline_make(fit);
    fit->static_share = fit->timeline ? kj_timeline_static_shares(fit->timeline, input, result) : NULL;
    fit->prior_mw = calloc(n, sizeof(double));
    fit->prior_sd_mw = calloc(n, sizeof(double));
    fit->own_prior = calloc(n, sizeof(bool));
    fit->m = calloc(n, sizeof(double));
    fit->total_x = calloc(n, sizeof(double));
    fit->l = calloc(n * n, sizeof(double));
    fit->inverse = calloc(n * n, sizeof(double));
    fit->held = calloc(n, sizeof(bool));
    fit->loose_sd_mw = calloc(n, sizeof(double));
    bool ok = fit->static_share && fit->prior_mw && fit->prior_sd_mw && fit->own_prior && fit->m &&
              fit->total_x && fit->l && fit->inverse && fit->held && fit->loose_sd_mw &&
              open_moments(&fit->all, n);
    for (size_t b = 0; ok && b < KJ_BLOCKS; b++)
        ok = open_moments(&fit->blocks[b], n);
    ok = ok && open_series(fit);
    if (ok) {
        set_levels(fit, result);
        begin_at(fit, NULL);
    }
    return ok;
}

void kj_fit_close(struct fit *fit)
{
    for (size_t b = 0; b <= KJ_BLOCKS; b++) {
        struct moments *m = b < KJ_BLOCKS ? &fit->blocks[b] : &fit->all;
        free(m->xx);
        free(m->xy);
    }
    kj_timeline_free(fit->timeline);
    free(fit->noise);
    free(fit->shift);
    free(fit->grid_sd_ns);
    free(fit->stretch_sd_ns);
    free(fit->static_share);
    free(fit->column_of);
    free(fit->column_ns);
    free(fit->prior_mw);
    free(fit->prior_sd_mw);
    free(fit->own_prior);
    free(fit->m);
    free(fit->total_x);
    free(fit->l);
    free(fit->inverse);
    free(fit->held);
    free(fit->loose_sd_mw);
}

static void moments_take(struct moments *from, const struct moments *m, size_t n, double times)
{
    for (size_t i = 0; i < n * n; i++)
        from->xx[i] += times * m->xx[i];
    for (size_t i = 0; i < n; i++)
        from->xy[i] += times * m->xy[i];
}

/* Rows err together where the model is wrong: kernels that vary, updates that come late, a board that warms.
 * How much more the answer moves than independent errors would let it, is seen by leaving out each twelfth of
 * the run (a jackknife by blocks: Kunsch, Annals of Statistics 17, 1989). */
static bool widen(struct fit *fit)
{
    size_t n = fit->n;
    double *kept = malloc(n * sizeof(*kept)), *sum = calloc(n, sizeof(*sum)),
           *square = calloc(n, sizeof(*square)), moved = 0, expected = 0;
    bool ok = kept && sum && square;
    fit->widening = 1;
    memset(fit->held, 0, n * sizeof(*fit->held));
    ok = ok && solve_free(fit, 1);
    if (ok) {
        kj_cholesky_inverse(fit->l, n, fit->inverse);
        memcpy(kept, fit->m, n * sizeof(*kept));
    }
    for (size_t b = 0; ok && b < KJ_BLOCKS; b++) {
        moments_take(&fit->all, &fit->blocks[b], n, -1);
        ok = solve_free(fit, 1);
        moments_take(&fit->all, &fit->blocks[b], n, 1);
        for (size_t i = 0; ok && i < n; i++) {
            sum[i] += fit->m[i] - kept[i];
            square[i] += (fit->m[i] - kept[i]) * (fit->m[i] - kept[i]);
        }
    }
    for (size_t i = 1; ok && i <= fit->columns; i++) {
        /* Of the posterior's variance C, what the rows' noise gives: C - C P C, P the prior's precision. */
        double variance = fit->inverse[i * n + i], of_rows = variance;
        for (size_t j = 0; j < n; j++)
            of_rows -= pow(fit->inverse[i * n + j] / fit->prior_sd_mw[j], 2);
        double jack = (double)(KJ_BLOCKS - 1) / KJ_BLOCKS * fmax(square[i] - sum[i] * sum[i] / KJ_BLOCKS, 0);
        if (of_rows > 0.1 * variance) {
            moved += jack / of_rows;
            expected += 1;
        }
    }
    /* (Student's t / normal)^2 at 90 %, for blocks are few and the classes are not independent. */
    double student = 1 + 1.85 / ((KJ_BLOCKS - 1) * fmax(expected / 2, 1));
    fit->widening = ok && expected > 0 ? fmin(fmax(student * moved / expected, 1), 100) : 1;
    free(kept);
    free(sum);
    free(square);
    return ok;
}

static double bounded(double value, double most)
{
    return fmin(fmax(value, -most), most);
}

static void move_series(struct fit *fit)
{
    for (size_t s = 0; s < fit->input->series_count; s++) {
        size_t at = 1 + fit->columns + 2 * s;
        fit->shift[s].middle_ns += bounded(fit->m[at] * 1e6, 2 * fit->probe_ns);
        fit->shift[s].stretch_ns += bounded(fit->m[at + 1] * 1e6, 2 * fit->probe_ns);
        fit->m[at] = fit->m[at + 1] = 0;
        /* What becomes known of a series' place lets finer things be told apart, not before. */
        double known_ns =
            1e6 * sqrt(fit->inverse[at * fit->n + at] + fit->inverse[(at + 1) * fit->n + at + 1]);
        fit->shift[s].sd_ns = fmin(fit->shift[s].sd_ns, fmax(2 * known_ns, 0.5 * fit->shift[s].sd_ns));
    }
}

static int collect(struct fit *fit, const double *windows_ns)
{
    struct kj_row *rows;
    size_t count = kj_model_rows(fit->input, windows_ns, fit->shift, &rows);
    int status = rows ? kj_fit_collect(fit, rows, count) : -ENOMEM;
    free(rows);
    return status;
}

/* Powers, noise and the series' places in time, in turn: the effect of a shift depends on the powers. */
static int settle(struct fit *fit, const double *windows_ns, bool *ret_solved)
{
    double widest_ns = 0;
    for (size_t s = 0; s < fit->input->series_count; s++)
        widest_ns = fmax(widest_ns, fit->grid_sd_ns[s]);
    *ret_solved = true;
    for (size_t round = 0; *ret_solved && round < SHIFT_ROUNDS; round++) {
        fit->probe_ns =
            !fit->plain && round ? fmin(fmax(2 * widest_ns * pow(0.6, (double)round - 1), 2e5), 5e6) : 0;
        int status = collect(fit, windows_ns);
        if (status)
            return status;
        if (fit->plain) {
            *ret_solved = fit_least_squares(fit);
            return 0;
        }
        if (round > 1)
            learn_noise(fit);
        set_priors(fit);
        *ret_solved = fit_bayes(fit);
        if (*ret_solved && fit->probe_ns > 0)
            move_series(fit);
    }
    return 0;
}

/* -2 log of how likely the rows are at the powers and places that were settled for, and these before them. */
static int unlikeliness(struct fit *fit, const double *windows_ns, double *ret_minus2_log)
{
    int status = collect(fit, windows_ns);
    *ret_minus2_log = fit->minus2_log;
    for (size_t s = 0; s < fit->input->series_count; s++)
        *ret_minus2_log += pow(fit->shift[s].middle_ns / fit->grid_sd_ns[s], 2) +
                           pow(fit->shift[s].stretch_ns / fit->stretch_sd_ns[s], 2);
    for (size_t i = 1; i <= fit->columns; i++)
        if (!fit->own_prior[i])
            *ret_minus2_log += pow((fit->m[i] - fit->mean_mw) / fit->spread_mw, 2);
    return status;
}

/* Whether a series ends far from where it was expected; and for all, as far on the other side. */
static bool ends_far(const struct fit *fit, double *ret_times)
{
    bool far = false;
    for (size_t s = 0; s < fit->input->series_count; s++) {
        double times = fit->shift[s].middle_ns / fit->grid_sd_ns[s];
        ret_times[s] = -bounded(times, PLACE_OTHER);
        far = far || fabs(times) > PLACE_FAR;
    }
    return far;
}

/* Where kernels and a sensor's period make a pattern that comes back after milliseconds, a series lies well,
 * as it seems, in more than one place. It starts again from the other side; the likelier stays. */
static int settle_best(struct fit *fit, const double *windows_ns, bool *ret_solved)
{
    double *times = calloc(fit->input->series_count + 1, sizeof(*times)), first, other;
    int status = times ? settle(fit, windows_ns, ret_solved) : -ENOMEM;
    if (!status && *ret_solved && !fit->plain && ends_far(fit, times)) {
        status = unlikeliness(fit, windows_ns, &first);
        begin_at(fit, times);
        status = status ? status : settle(fit, windows_ns, ret_solved);
        status = status ? status : unlikeliness(fit, windows_ns, &other);
        if (!status && (!*ret_solved || other > first)) {
            begin_at(fit, NULL);
            status = settle(fit, windows_ns, ret_solved);
        }
    }
    free(times);
    return status;
}

int kj_fit_all(struct fit *fit, enum kj_model_method method, const double *windows_ns, bool *ret_solved)
{
    fit->plain = method != KJ_MODEL_BAYES;
    begin_at(fit, NULL);
    for (size_t s = 0; fit->plain && s < fit->input->series_count; s++)
        fit->shift[s] = (struct kj_shift){0}; /* it takes updates for where they seem to be */
    int status = settle_best(fit, windows_ns, ret_solved);
    if (status || fit->plain)
        return status;
    /* Once more about the mean of what may be, rather than about its peak. */
    double *draws = NULL;
    for (size_t round = 0; *ret_solved && round < 2; round++) {
        status = status ? status : collect(fit, windows_ns);
        if (status)
            break;
        if (!round)
            learn_noise(fit);
        set_priors(fit);
        *ret_solved = fit_bayes(fit) && widen(fit);
        if (!round && *ret_solved) {
            draws = kj_fit_draw(fit, method, MAYBE);
            status = draws ? 0 : -ENOMEM;
            fit->maybe = draws, fit->maybe_count = MAYBE;
        }
    }
    fit->maybe = NULL;
    free(draws);
    return status;
}
