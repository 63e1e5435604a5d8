/* SPDX-License-Identifier: Apache-2.0
 *
 * fit.c - the powers of the classes, the noise of the sensors and their places in time, learned together.
 */
#include "model/fit.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    SHIFT_ROUNDS = 7,
    BLOCKS = 12, /* of the run, each left out once */
    ROUNDS = 30, /* of empirical Bayes */
};
#define SPREAD_PRIOR  0.5 /* sd of a class's power over the mean of classes, before the data: 100 to 700 W */
#define SPREAD_WEIGHT 6.0 /* as many classes as that prior counts */
#define NOISE_LEAST   0.005 /* of the mean reading: no board sensor is better */
#define WARMING_SD    0.03  /* relative change of power from the middle of the run to its end */
#define BOARD_MOST_MW 1200000.0
#define T_FACTOR      1.19 /* (t of 11 degrees of freedom / normal)^2 at 90 %: the blocks are twelve */

/* Sum of squared residuals of a series at the current mean, plus what the covariance adds to its expectation.
 */
double kj_fit_rss(const struct fit *fit, const struct moments *m, bool with_covariance)
{
    double rss = m->yy;
    for (size_t i = 0; i < fit->n; i++) {
        rss -= 2 * fit->m[i] * m->xy[i];
        for (size_t j = 0; j <= i; j++) {
            double xx = m->xx[i * fit->n + j] * (i == j ? 1 : 2);
            rss += xx * (fit->m[i] * fit->m[j] + (with_covariance ? fit->inverse[i * fit->n + j] : 0));
        }
    }
    return fmax(rss, 0);
}

static bool solve_free(struct fit *fit, double weight_of_prior)
{
    size_t n = fit->n;
    memset(fit->l, 0, n * n * sizeof(double));
    memset(fit->m, 0, n * sizeof(double));
    for (size_t s = 0; s < fit->input->series_count; s++) {
        const struct moments *m = &fit->series[s];
        double w = m->rows ? 1 / m->noise2 : 0;
        for (size_t i = 0; i < n && w > 0; i++) {
            fit->m[i] += w * m->xy[i];
            for (size_t j = 0; j <= i; j++)
                fit->l[i * n + j] += w * m->xx[i * n + j];
        }
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
            double top = i ? fit->limit_mw - fit->idle_mw : fit->limit_mw;
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
        fit->m[i] = fmin(fmax(fit->m[i], 0), fit->limit_mw);
    return ok;
}

static void set_priors(struct fit *fit)
{
    fit->prior_mw[0] = fit->idle_mw;
    fit->prior_sd_mw[0] = fit->idle_spread_mw;
    fit->prior_sd_mw[fit->n - 1] = WARMING_SD;
    for (size_t s = 0; s < fit->input->series_count; s++) {
        size_t at = 1 + fit->columns + 2 * s;
        fit->prior_mw[at] = -fit->shift[s].middle_ns / 1e6;
        fit->prior_mw[at + 1] = -fit->shift[s].stretch_ns / 1e6;
        fit->prior_sd_mw[at] = fit->prior_sd_mw[at + 1] = fmax(fit->grid_sd_ns[s], 1e4) / 1e6;
    }
    for (size_t i = 1; i <= fit->columns; i++) {
        fit->prior_mw[i] = fit->mean_mw;
        fit->prior_sd_mw[i] = fit->spread_mw;
    }
    for (size_t c = 0; c < fit->input->class_count; c++) {
        const struct kj_model_class *class = &fit->input->classes[c];
        if (class->prior_mw > 0 && class->prior_sd_mw > 0) {
            fit->prior_mw[fit->column_of[c]] = class->prior_mw;
            fit->prior_sd_mw[fit->column_of[c]] = class->prior_sd_mw;
        }
    }
}

/* One round of empirical Bayes: what the posterior says of the noise of each series, and of mean and spread
 * of the classes. */
static void learn(struct fit *fit)
{
    for (size_t s = 0; s < fit->input->series_count; s++) {
        struct moments *m = &fit->series[s];
        double given_mw = fit->input->series[s].sensor.noise_mw;
        if (m->rows)
            m->noise2 = fmax((kj_fit_rss(fit, m, true) + 1e6) / ((double)m->rows + 1),
                             fmax(given_mw * given_mw, pow(NOISE_LEAST * m->xy[0] / (double)m->rows, 2)));
    }
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
    double before2 = SPREAD_PRIOR * fit->mean_mw * SPREAD_PRIOR * fit->mean_mw;
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
            learn(fit);
        if (round > 4 && fabs(fit->spread_mw / before - 1) < 1e-3)
            break;
    }
    return true;
}

static bool fit_least_squares(struct fit *fit)
{
    return kj_fit_solve(fit, 1e-9) && (kj_cholesky_inverse(fit->l, fit->n, fit->inverse), true);
}

/* Idle power is shared equally by what runs at the same moment. Classes without an interval take the average.
 */
static double *static_shares(const struct kj_model_input *input, const struct kj_model_result *result)
{
    size_t count = input->interval_count, running = 0, next = 0;
    struct kj_model_interval *sorted = kj_model_sorted_intervals(input);
    double *share = calloc(input->class_count + 1, sizeof(*share)), sum_ns = 0;
    double *all_ns = calloc(input->class_count + 1, sizeof(*all_ns));
    size_t *active = malloc((count + 1) * sizeof(*active));
    uint64_t now_ns = count && sorted ? sorted[0].start_ns : 0;
    while (sorted && share && all_ns && active && (next < count || running)) {
        if (!running && sorted[next].start_ns > now_ns)
            now_ns = sorted[next].start_ns;
        while (next < count && sorted[next].start_ns <= now_ns)
            active[running++] = next++;
        uint64_t until_ns = next < count ? sorted[next].start_ns : UINT64_MAX;
        for (size_t a = 0; a < running; a++)
            until_ns = sorted[active[a]].end_ns < until_ns ? sorted[active[a]].end_ns : until_ns;
        double length_ns = until_ns > now_ns ? (double)(until_ns - now_ns) : 0;
        for (size_t a = running; a-- > 0;) {
            uint32_t class = sorted[active[a]].class_index;
            share[class] += length_ns / (double)running;
            all_ns[class] += length_ns;
        }
        now_ns = until_ns > now_ns ? until_ns : now_ns;
        for (size_t a = running; a-- > 0;)
            if (sorted[active[a]].end_ns <= now_ns)
                active[a] = active[--running];
    }
    for (size_t c = 0; c < input->class_count; c++)
        sum_ns += result->classes[c].time_ns;
    for (size_t c = 0; share && all_ns && c < input->class_count; c++)
        share[c] = all_ns[c] > 0 ? share[c] / all_ns[c] : sum_ns > 0 ? result->busy_ns / sum_ns : 1;
    free(sorted);
    free(all_ns);
    free(active);
    return share;
}

bool kj_fit_open(struct fit *fit, const struct kj_model_input *input, const struct kj_model_result *result)
{
    *fit = (struct fit){.input = input};
    if (!kj_fit_assign_columns(fit, result))
        return false;
    size_t n = fit->n;
    fit->series = calloc(input->series_count + 1, sizeof(*fit->series));
    fit->static_share = static_shares(input, result);
    fit->grid_sd_ns = calloc(input->series_count + 1, sizeof(*fit->grid_sd_ns));
    fit->shift = calloc(input->series_count + 1, sizeof(*fit->shift));
    fit->prior_mw = calloc(n, sizeof(double));
    fit->prior_sd_mw = calloc(n, sizeof(double));
    fit->m = calloc(n, sizeof(double));
    fit->l = malloc(n * n * sizeof(double));
    fit->inverse = malloc(n * n * sizeof(double));
    fit->held = calloc(n, sizeof(bool));
    bool ok = fit->series && fit->grid_sd_ns && fit->static_share && fit->shift && fit->prior_mw &&
              fit->prior_sd_mw && fit->m && fit->l && fit->inverse && fit->held;
    for (size_t s = 0; ok && s < input->series_count; s++) {
        struct kj_update *updates;
        struct kj_grid grid;
        kj_model_updates(&input->series[s], &updates, &grid);
        free(updates);
        fit->grid_sd_ns[s] = fit->shift[s].sd_ns = grid.sd_ns;
        fit->series[s].xx = malloc(n * n * sizeof(double));
        fit->series[s].xy = malloc(n * sizeof(double));
        ok = fit->series[s].xx && fit->series[s].xy;
    }
    fit->limit_mw = input->limit_mw > 0 ? input->limit_mw : BOARD_MOST_MW;
    double busy_ns = fmax(result->busy_ns, 1), busy_mw = (double)result->kernels_uj * 1e6 / busy_ns;
    fit->idle_mw = result->idle_mw;
    fit->idle_spread_mw = input->idle_sd_mw > 0 ? input->idle_sd_mw : 0.15 * fit->idle_mw + 1000;
    fit->mean_mw = fmax(busy_mw - fit->idle_mw, 0.02 * busy_mw + 1000);
    fit->spread_mw = SPREAD_PRIOR * fit->mean_mw;
    for (size_t s = 0; ok && s < input->series_count; s++)
        fit->series[s].noise2 = 0.0025 * busy_mw * busy_mw + 1e6;
    if (ok)
        set_priors(fit);
    return ok;
}

void kj_fit_close(struct fit *fit)
{
    for (size_t s = 0; fit->series && s < fit->input->series_count; s++) {
        free(fit->series[s].xx);
        free(fit->series[s].xy);
    }
    free(fit->series);
    free(fit->shift);
    free(fit->grid_sd_ns);
    free(fit->static_share);
    free(fit->column_of);
    free(fit->column_ns);
    free(fit->prior_mw);
    free(fit->prior_sd_mw);
    free(fit->m);
    free(fit->l);
    free(fit->inverse);
    free(fit->held);
}

/* Rows err together where the model is wrong: kernels that vary, updates that come late, a board that warms.
 * How much more the answer moves than independent errors would let it, is seen by leaving out each twelfth of
 * the run (a jackknife by blocks: Kunsch, Annals of Statistics 17, 1989). 1: not at all. */
static int overdispersion(struct fit *fit, const struct kj_row *rows, size_t count, double *ret_factor)
{
    size_t n = fit->n;
    double *kept = malloc(n * sizeof(*kept)), *variance = malloc(n * sizeof(*variance)),
           *inverse = fit->inverse;
    double *sum = calloc(n, sizeof(*sum)), *square = calloc(n, sizeof(*square)), moved = 0, expected = 0;
    struct kj_row *rest = malloc((count + 1) * sizeof(*rest));
    int status = kept && variance && sum && square && rest ? 0 : -ENOMEM;
    for (size_t i = 0; !status && i < n; i++) {
        kept[i] = fit->m[i];
        variance[i] = inverse[i * n + i];
    }
    for (size_t block = 0; !status && block < BLOCKS; block++) {
        size_t left = 0;
        for (size_t i = 0; i < count; i++) {
            double place = (kj_model_place(fit->input, rows[i].end_ns) + 1) / 2 * BLOCKS;
            if (place < (double)block || place >= (double)block + 1)
                rest[left++] = rows[i];
        }
        status = kj_fit_collect(fit, rest, left);
        if (!status && !kj_fit_solve(fit, 1))
            status = -EDOM;
        for (size_t i = 0; !status && i < n; i++) {
            sum[i] += fit->m[i];
            square[i] += fit->m[i] * fit->m[i];
            fit->m[i] = kept[i]; /* what the secants are taken at */
        }
    }
    for (size_t i = 1; !status && i <= fit->columns; i++) {
        double known = 1 - variance[i] / (fit->prior_sd_mw[i] * fit->prior_sd_mw[i]);
        double jack = (double)(BLOCKS - 1) / BLOCKS * fmax(square[i] - sum[i] * sum[i] / BLOCKS, 0);
        if (known > 0.2) {
            moved += jack / (variance[i] * known);
            expected += 1;
        }
    }
    *ret_factor = expected > 0 ? T_FACTOR * moved / expected : T_FACTOR;
    free(kept);
    free(variance);
    free(sum);
    free(square);
    free(rest);
    return status;
}

int kj_fit_widen(struct fit *fit, const double *windows_ns)
{
    struct kj_row *rows;
    double factor = 1;
    size_t count = kj_model_rows(fit->input, windows_ns, fit->shift, &rows);
    int status = overdispersion(fit, rows, count, &factor);
    if (!status)
        status = kj_fit_collect(fit, rows, count);
    for (size_t s = 0; !status && s < fit->input->series_count; s++)
        fit->series[s].noise2 *= fmin(fmax(factor, 0.5), 100);
    if (!status && kj_fit_solve(fit, 1))
        kj_cholesky_inverse(fit->l, fit->n, fit->inverse);
    free(rows);
    return status == -EDOM ? 0 : status;
}

static double bounded(double value, double most)
{
    return fmin(fmax(value, -most), most);
}

/* Powers, noise and the series' places in time, in turn: the effect of a shift depends on the powers. */
int kj_fit_all(struct fit *fit, enum kj_model_method method, const double *windows_ns, bool *ret_solved)
{
    double widest_ns = 0;
    for (size_t s = 0; s < fit->input->series_count; s++)
        widest_ns = fmax(widest_ns, fit->grid_sd_ns[s]);
    *ret_solved = true;
    for (size_t s = 0; s < fit->input->series_count; s++)
        fit->shift[s] = (struct kj_shift){.sd_ns = fit->grid_sd_ns[s]};
    for (size_t round = 0; *ret_solved && round < SHIFT_ROUNDS; round++) {
        struct kj_row *rows;
        size_t count = kj_model_rows(fit->input, windows_ns, fit->shift, &rows);
        fit->probe_ns = method == KJ_MODEL_BAYES && round
                            ? fmin(fmax(2 * widest_ns * pow(0.6, (double)round - 1), 2e5), 5e6)
                            : 0;
        int status = kj_fit_collect(fit, rows, count);
        free(rows);
        if (status)
            return status;
        set_priors(fit);
        *ret_solved = method == KJ_MODEL_BAYES ? fit_bayes(fit) : fit_least_squares(fit);
        if (method != KJ_MODEL_BAYES)
            break;
        for (size_t s = 0; *ret_solved && fit->probe_ns > 0 && s < fit->input->series_count; s++) {
            const double *step_ms = &fit->m[1 + fit->columns + 2 * s];
            fit->shift[s].middle_ns += bounded(step_ms[0] * 1e6, 2 * fit->probe_ns);
            fit->shift[s].stretch_ns += bounded(step_ms[1] * 1e6, 2 * fit->probe_ns);
            /* What becomes known of a series' place lets finer things be told apart, not before. */
            size_t at = 1 + fit->columns + 2 * s;
            double known_ns =
                1e6 * sqrt(fit->inverse[at * fit->n + at] + fit->inverse[(at + 1) * fit->n + at + 1]);
            fit->shift[s].sd_ns = fmin(fit->shift[s].sd_ns, fmax(2 * known_ns, 0.5 * fit->shift[s].sd_ns));
        }
    }
    return 0;
}
