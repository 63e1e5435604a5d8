/* SPDX-License-Identifier: Apache-2.0
 *
 * regression.c - what each class of kernels draws, from what the sensors saw: METHOD.md explains it and gives
 * its sources.
 *
 * Each update of a sensor is an equation: mean power over its window = idle + sum of (share of the window
 * that class k ran) x (dynamic power of k). A normal prior, whose mean and spread the device's classes share
 * and which is learned with the noise of each series (empirical Bayes), decides what the data leave open; its
 * covariance and the sensor's gain make the intervals. All is then made to add up to the total.
 */
#include "model/normal.h"
#include "model/parts.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    COLUMNS_CAP = 320, /* classes with a power of their own; the rest share one */
    ROWS_LEAST = 6,    /* fewer equations are not worth a regression */
    ROUNDS = 30,       /* of empirical Bayes */
    DRAWS = 1000,
};
#define SPREAD_PRIOR      0.5 /* sd of a class's power over the mean of classes, before the data: 100 to 700 W */
#define SPREAD_WEIGHT     6.0 /* as many classes as that prior counts */
#define BOARD_MOST_MW     1200000.0
#define GROUP_CORRELATION -0.8
#define R_ESTIMATED       0.5

/* Normal equations of one series, so that series can be weighed anew without going over the rows. */
struct moments {
    double *xx, *xy, yy;
    size_t rows;
    double noise2; /* variance of one row, mW^2 */
};

struct fit {
    const struct kj_model_input *input;
    size_t n;       /* unknowns: idle, the columns, a shift and a stretch in time of each series (ms) */
    size_t columns; /* 1 .. columns */
    struct kj_shift *shift; /* [series_count], so far */
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

static int by_time(const void *a, const void *b)
{
    const double *x = *(const double *const *)a, *y = *(const double *const *)b;
    return (*x < *y) - (*x > *y);
}

/* The classes that ran longest have columns of their own; the others share the last. */
static bool assign_columns(struct fit *fit, const struct kj_model_result *result)
{
    size_t count = fit->input->class_count;
    double *times = malloc((count + 1) * sizeof(*times));
    const double **order = malloc((count + 1) * sizeof(*order));
    fit->column_of = calloc(count + 1, sizeof(*fit->column_of));
    for (size_t c = 0; times && order && c < count; c++) {
        times[c] = result->classes[c].time_ns;
        order[c] = &times[c];
    }
    bool ok = times && order && fit->column_of;
    if (ok) {
        qsort(order, count, sizeof(*order), by_time);
        for (size_t i = 0; i < count; i++)
            fit->column_of[order[i] - times] = (uint32_t)(i < COLUMNS_CAP ? i + 1 : COLUMNS_CAP);
        fit->columns = count < COLUMNS_CAP ? count : COLUMNS_CAP;
        fit->n = 1 + fit->columns + 2 * fit->input->series_count;
        fit->column_ns = calloc(fit->n, sizeof(double));
        ok = fit->column_ns != NULL;
        for (size_t c = 0; ok && c < count; c++)
            fit->column_ns[fit->column_of[c]] += times[c];
    }
    free(times);
    free(order);
    return ok;
}

/* How far back an interval may begin and still reach a moment: running maximum of the ends. */
static uint64_t *reaches(const struct kj_model_interval *sorted, size_t count)
{
    uint64_t *reach = malloc((count + 1) * sizeof(*reach)), most = 0;
    for (size_t i = 0; reach && i < count; i++)
        reach[i] = most = sorted[i].end_ns > most ? sorted[i].end_ns : most;
    return reach;
}

static size_t first_reaching(const uint64_t *reach, size_t count, double t_ns)
{
    size_t lo = 0, hi = count;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if ((double)reach[mid] <= t_ns)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static double predicted_mw(const struct fit *fit, const struct kj_model_interval *sorted,
                           const uint64_t *reach, double start_ns, double end_ns)
{
    double sum = fit->m[0];
    for (size_t i = first_reaching(reach, fit->input->interval_count, start_ns);
         i < fit->input->interval_count && (double)sorted[i].start_ns < end_ns; i++) {
        double from = fmax((double)sorted[i].start_ns, start_ns);
        double to = fmin((double)sorted[i].end_ns, end_ns);
        if (to > from)
            sum += fit->m[fit->column_of[sorted[i].class_index]] * (to - from) / (end_ns - start_ns);
    }
    return sum;
}

/* Shares of the row's window by column, x[0] being that of idle power: all of it. */
static void design(const struct fit *fit, const struct kj_model_interval *sorted, const uint64_t *reach,
                   const struct kj_row *row, double *x)
{
    double window_ns = row->end_ns - row->start_ns;
    memset(x, 0, fit->n * sizeof(*x));
    x[0] = 1;
    for (size_t i = first_reaching(reach, fit->input->interval_count, row->start_ns);
         i < fit->input->interval_count && (double)sorted[i].start_ns < row->end_ns; i++) {
        double from = fmax((double)sorted[i].start_ns, row->start_ns);
        double to = fmin((double)sorted[i].end_ns, row->end_ns);
        if (to > from)
            x[fit->column_of[sorted[i].class_index]] += (to - from) / window_ns;
    }
    /* What the row would change by, were the series a millisecond later: a secant, for power jumps. */
    double h = fit->probe_ns;
    if (h > 0) {
        double per_ms = (predicted_mw(fit, sorted, reach, row->start_ns + h, row->end_ns + h) -
                         predicted_mw(fit, sorted, reach, row->start_ns - h, row->end_ns - h)) /
                        (2 * h / 1e6);
        double *shift = &x[1 + fit->columns + 2 * row->series];
        shift[0] = per_ms;
        shift[1] = per_ms * kj_model_place(fit->input, row->end_ns);
    }
}

static void moments_add(struct moments *m, const double *x, double y, size_t n, uint32_t *active)
{
    size_t count = 0;
    for (uint32_t i = 0; i < n; i++)
        if (x[i] != 0)
            active[count++] = i;
    for (size_t i = 0; i < count; i++) {
        double *row = m->xx + active[i] * n;
        for (size_t j = 0; j <= i; j++)
            row[active[j]] += x[active[i]] * x[active[j]];
        m->xy[active[i]] += x[active[i]] * y;
    }
    m->yy += y * y;
    m->rows++;
}

static int collect(struct fit *fit, const struct kj_row *rows, size_t count)
{
    struct kj_model_interval *sorted = kj_model_sorted_intervals(fit->input);
    uint64_t *reach = sorted ? reaches(sorted, fit->input->interval_count) : NULL;
    double *x = malloc(fit->n * sizeof(*x));
    uint32_t *active = malloc(fit->n * sizeof(*active));
    int status = reach && x && active ? 0 : -ENOMEM;
    for (size_t s = 0; !status && s < fit->input->series_count; s++) {
        struct moments *m = &fit->series[s];
        memset(m->xx, 0, fit->n * fit->n * sizeof(double));
        memset(m->xy, 0, fit->n * sizeof(double));
        m->yy = 0, m->rows = 0;
    }
    for (size_t i = 0; !status && i < count; i++) {
        design(fit, sorted, reach, &rows[i], x);
        moments_add(&fit->series[rows[i].series], x, rows[i].mw, fit->n, active);
    }
    fit->rows = count;
    free(sorted);
    free(reach);
    free(x);
    free(active);
    return status;
}

/* Sum of squared residuals of a series at the current mean, plus what the covariance adds to its expectation.
 */
static double expected_rss(const struct fit *fit, const struct moments *m, bool with_covariance)
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
static bool solve(struct fit *fit, double weight_of_prior)
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
    for (size_t s = 0; s < fit->input->series_count; s++) {
        size_t at = 1 + fit->columns + 2 * s;
        fit->prior_mw[at] = -fit->shift[s].middle_ns / 1e6;
        fit->prior_mw[at + 1] = -fit->shift[s].stretch_ns / 1e6;
        fit->prior_sd_mw[at] = fit->prior_sd_mw[at + 1] = kj_model_poll_sd_ns(&fit->input->series[s]) / 1e6;
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
            m->noise2 = fmax((expected_rss(fit, m, true) + 1e6) / ((double)m->rows + 1), given_mw * given_mw);
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
        if (!solve(fit, 1))
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
    return solve(fit, 1e-9) && (kj_cholesky_inverse(fit->l, fit->n, fit->inverse), true);
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

static bool fit_new(struct fit *fit, const struct kj_model_input *input, const struct kj_model_result *result)
{
    *fit = (struct fit){.input = input};
    if (!assign_columns(fit, result))
        return false;
    size_t n = fit->n;
    fit->series = calloc(input->series_count + 1, sizeof(*fit->series));
    fit->static_share = static_shares(input, result);
    fit->shift = calloc(input->series_count + 1, sizeof(*fit->shift));
    fit->prior_mw = calloc(n, sizeof(double));
    fit->prior_sd_mw = calloc(n, sizeof(double));
    fit->m = calloc(n, sizeof(double));
    fit->l = malloc(n * n * sizeof(double));
    fit->inverse = malloc(n * n * sizeof(double));
    fit->held = calloc(n, sizeof(bool));
    bool ok = fit->series && fit->static_share && fit->shift && fit->prior_mw && fit->prior_sd_mw && fit->m &&
              fit->l && fit->inverse && fit->held;
    for (size_t s = 0; ok && s < input->series_count; s++) {
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

static void fit_clear(struct fit *fit)
{
    for (size_t s = 0; fit->series && s < fit->input->series_count; s++) {
        free(fit->series[s].xx);
        free(fit->series[s].xy);
    }
    free(fit->series);
    free(fit->shift);
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

/* ---- windows that nobody gave
 * ------------------------------------------------------------------------------------------------ */

/* Share of the variance of a series that the fit leaves. */
static double unexplained(const struct fit *fit)
{
    double rss = 0, all = 0;
    for (size_t s = 0; s < fit->input->series_count; s++) {
        const struct moments *m = &fit->series[s];
        if (fit->input->series[s].counter || !m->rows)
            continue;
        double mean = m->xy[0] / (double)m->rows;
        rss += expected_rss(fit, m, false);
        all += m->yy - mean * mean * (double)m->rows;
    }
    return all > 0 ? rss / all : 1;
}

static const double candidates_ns[] = {10e6, 15e6, 20e6, 25e6, 35e6, 50e6, 75e6, 100e6, 200e6, 500e6, 1000e6};

/* The window that explains the power readings best; 0: there are too few, or all do alike. ret_gain: how many
 * times more is left unexplained with the window as given. */
static double best_window(struct fit *fit, double *ret_gain)
{
    double *windows_ns = calloc(fit->input->series_count + 1, sizeof(*windows_ns));
    double best = DBL_MAX, best_ns = 0, given = DBL_MAX;
    *ret_gain = 1;
    for (size_t k = 0; windows_ns && k <= sizeof(candidates_ns) / sizeof(*candidates_ns); k++) {
        struct kj_row *rows;
        for (size_t s = 0; s < fit->input->series_count; s++)
            windows_ns[s] = k && !fit->input->series[s].counter ? candidates_ns[k - 1] : 0;
        size_t count = kj_model_rows(fit->input, windows_ns, NULL, &rows);
        if (count >= ROWS_LEAST && !collect(fit, rows, count) && solve(fit, 1)) {
            double left = unexplained(fit);
            if (!k)
                given = left;
            if (left < best)
                best = left, best_ns = k ? candidates_ns[k - 1] : 0;
        }
        free(rows);
    }
    free(windows_ns);
    if (best > 0 && given < DBL_MAX)
        *ret_gain = given / fmax(best, 1e-4);
    return best_ns;
}

/* ---- what comes of it
 * ------------------------------------------------------------------------------------------------------- */

/* All energies of one draw of the unknowns, made to add up: uJ by class, last the idle energy. */
static void energies(const struct fit *fit, const struct kj_model_result *result, const double *theta,
                     const double *times_ns, double before_ns, double target_uj, double *ret_uj)
{
    size_t count = fit->input->class_count;
    double sum = 0;
    for (size_t c = 0; c < count; c++) {
        double p = fit->input->class_count ? theta[fit->column_of[c]] : 0;
        ret_uj[c] = times_ns[c] * (fmin(fmax(p, 0), fit->limit_mw) + theta[0] * fit->static_share[c]) * 1e-6;
        sum += ret_uj[c];
    }
    double level = result->before_context_mw > 0 ? fmin(result->before_context_mw, theta[0]) : theta[0];
    ret_uj[count] = (level * before_ns + theta[0] * fmax(result->idle_ns - before_ns, 0)) * 1e-6;
    sum += ret_uj[count];
    for (size_t c = 0; c <= count; c++)
        ret_uj[c] *= sum > 0 ? target_uj / sum : 0;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct kj_model_estimate estimate_of(int64_t energy_uj, double *draws, size_t count)
{
    double mean = 0, square = 0;
    for (size_t i = 0; i < count; i++)
        mean += draws[i] / (double)count;
    for (size_t i = 0; i < count; i++)
        square += (draws[i] - mean) * (draws[i] - mean) / (double)count;
    qsort(draws, count, sizeof(*draws), by_value);
    struct kj_model_estimate e = {.energy_uj = energy_uj, .sd_uj = sqrt(square)};
    e.low_uj = (int64_t)floor(draws[count / 20]);
    e.high_uj = (int64_t)ceil(draws[count - 1 - count / 20]);
    e.low50_uj = (int64_t)floor(draws[count / 4]);
    e.high50_uj = (int64_t)ceil(draws[count - 1 - count / 4]);
    if (e.low_uj > energy_uj)
        e.low_uj = energy_uj;
    if (e.high_uj < energy_uj)
        e.high_uj = energy_uj;
    e.low50_uj = e.low50_uj < e.low_uj ? e.low_uj : e.low50_uj > energy_uj ? energy_uj : e.low50_uj;
    e.high50_uj = e.high50_uj > e.high_uj ? e.high_uj : e.high50_uj < energy_uj ? energy_uj : e.high50_uj;
    return e;
}

static double before_context_ns(const struct kj_model_input *input, const struct kj_model_result *result)
{
    uint64_t change_ns = input->context_ns > input->start_ns ? input->context_ns : input->start_ns;
    return fmin((double)(change_ns - input->start_ns), result->idle_ns);
}

/* The sensor that the total is of, and what is not known of its gain. */
static void reference_gain(const struct kj_model_input *input, struct kj_model_result *result)
{
    result->residual_gain = 1;
    for (size_t pass = 0; pass < 2; pass++)
        for (size_t s = 0; s < input->series_count; s++)
            if (input->series[s].counter == !pass) {
                const struct kj_sensor *sensor = &input->series[s].sensor;
                result->residual_gain = sensor->residual_gain > 0 ? sensor->residual_gain : 1;
                result->gain_sd = sensor->gain_sd;
                return;
            }
}

/* Posterior draws of every class's energy, in rows of a class; the idle energy last. */
static double *draw(const struct fit *fit, const struct kj_model_result *result, double target_uj,
                    size_t draws)
{
    size_t count = fit->input->class_count + 1;
    double *all = malloc(count * draws * sizeof(*all)), *theta = malloc(fit->n * sizeof(*theta));
    double *times_ns = malloc(count * sizeof(*times_ns)), *uj = malloc(count * sizeof(*uj));
    struct kj_draws random = {.state = 1};
    double before_ns = before_context_ns(fit->input, result);
    for (size_t d = 0; all && theta && times_ns && uj && d < draws; d++) {
        for (size_t i = 0; i < fit->n; i++)
            theta[i] = kj_draw_normal(&random);
        kj_cholesky_back(fit->l, fit->n, theta);
        for (size_t i = 0; i <= fit->columns; i++)
            theta[i] = fmin(fmax(theta[i] + fit->m[i], 0), fit->limit_mw);
        for (size_t c = 0; c + 1 < count; c++) {
            const struct kj_model_class *class = &fit->input->classes[c];
            double relative = class->timed > 1 && class->mean_ns > 0
                                  ? class->sd_ns / class->mean_ns / sqrt((double)class->timed)
                                  : 0;
            times_ns[c] = result->classes[c].time_ns * fmax(0, 1 + relative * kj_draw_normal(&random));
        }
        double gain = result->residual_gain + result->gain_sd * kj_draw_normal(&random);
        energies(fit, result, theta, times_ns, before_ns, target_uj, uj);
        for (size_t c = 0; c < count; c++)
            all[c * draws + d] = uj[c] / fmax(gain, 0.1);
    }
    bool ok = all && theta && times_ns && uj;
    free(theta);
    free(times_ns);
    free(uj);
    if (!ok) {
        free(all);
        return NULL;
    }
    return all;
}

/* Classes whose errors mirror each other: union of all pairs below the threshold. */
static int find_groups(const struct fit *fit, struct kj_model_result *result, const double *draws,
                       size_t draw_count)
{
    size_t count = fit->input->class_count, n = fit->n;
    int32_t *group_of = malloc(n * sizeof(*group_of));
    if (!group_of)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        group_of[i] = -1;
    int32_t groups = 0;
    for (size_t i = 1; i <= fit->columns; i++) {
        for (size_t j = 1; j < i; j++) {
            double scale = sqrt(fit->inverse[i * n + i] * fit->inverse[j * n + j]);
            bool loose = fit->inverse[i * n + i] > 0.25 * fit->spread_mw * fit->spread_mw &&
                         fit->inverse[j * n + j] > 0.25 * fit->spread_mw * fit->spread_mw;
            if (!loose || fit->inverse[i * n + j] > GROUP_CORRELATION * scale)
                continue;
            int32_t to = group_of[j] >= 0 ? group_of[j] : group_of[i] >= 0 ? group_of[i] : groups++;
            int32_t from = group_of[i];
            group_of[i] = group_of[j] = to;
            for (size_t k = 1; k <= fit->columns && from >= 0 && from != to; k++)
                if (group_of[k] == from)
                    group_of[k] = to;
        }
    }
    result->groups = calloc((size_t)groups + 1, sizeof(*result->groups));
    double *sums = malloc(draw_count * sizeof(*sums));
    for (int32_t g = 0; result->groups && sums && g < groups; g++) {
        int64_t energy_uj = 0;
        size_t members = 0;
        memset(sums, 0, draw_count * sizeof(*sums));
        for (size_t c = 0; c < count; c++) {
            if (group_of[fit->column_of[c]] != g)
                continue;
            members++;
            energy_uj += result->classes[c].energy.energy_uj;
            result->classes[c].group = (int32_t)result->group_count;
            for (size_t d = 0; d < draw_count; d++)
                sums[d] += draws[c * draw_count + d];
        }
        if (!members)
            continue;
        struct kj_model_group *group = &result->groups[result->group_count++];
        *group =
            (struct kj_model_group){.energy = estimate_of(energy_uj, sums, draw_count), .members = members};
        double spread_uj = fit->spread_mw * 1e-6, prior2 = 0;
        for (size_t c = 0; c < count; c++)
            if (result->classes[c].group == (int32_t)result->group_count - 1)
                prior2 += pow(spread_uj * result->classes[c].time_ns, 2);
        group->identifiability =
            prior2 > 0 ? fmax(0, 1 - group->energy.sd_uj * group->energy.sd_uj / prior2) : 0;
    }
    free(group_of);
    free(sums);
    return 0;
}

/* Whole microjoules that add up: kernels, idle, and the classes among themselves. */
static void publish_energies(struct kj_model_result *result, const double *uj, size_t count,
                             int64_t target_uj)
{
    double running = 0;
    int64_t given = 0;
    double all = uj[count];
    for (size_t c = 0; c < count; c++)
        all += uj[c];
    for (size_t c = 0; c < count; c++) {
        running += uj[c];
        int64_t until = all > 0 ? llround((double)target_uj * fmin(running / all, 1)) : 0;
        until = until < given ? given : until > target_uj ? target_uj : until;
        result->classes[c].energy.energy_uj = until - given;
        given = until;
    }
    result->kernels_uj = given;
    result->idle_uj = target_uj - given;
}

static void publish_residuals(const struct fit *fit, struct kj_model_result *result)
{
    double rss = 0, mean = 0;
    size_t rows = 0;
    for (size_t s = 0; s < fit->input->series_count; s++) {
        rss += expected_rss(fit, &fit->series[s], false);
        mean += fit->series[s].rows ? fit->series[s].xy[0] : 0;
        rows += fit->series[s].rows;
    }
    result->rows = rows;
    result->residual_rms_mw = rows ? sqrt(rss / (double)rows) : 0;
    result->residual_relative = mean > 0 ? result->residual_rms_mw * (double)rows / mean : 0;
}

static int publish(const struct fit *fit, const struct kj_model_options *options,
                   struct kj_model_result *result)
{
    size_t count = fit->input->class_count, draws = options->draws ? options->draws : DRAWS;
    double sum_ns = 0, target_uj = (double)(result->total_uj - result->unattributed_uj);
    double *times_ns = calloc(count + 1, sizeof(*times_ns)), *uj = calloc(count + 1, sizeof(*uj));
    for (size_t c = 0; c < count; c++)
        sum_ns += result->classes[c].time_ns;

    result->idle_mw = fit->m[0];
    result->idle_sd_mw = sqrt(fit->inverse[0]);
    reference_gain(fit->input, result);
    double *all = draw(fit, result, target_uj, draws);
    int status = times_ns && uj && all ? 0 : -ENOMEM;
    if (!status) {
        for (size_t c = 0; c < count; c++)
            times_ns[c] = result->classes[c].time_ns;
        double before_ns = before_context_ns(fit->input, result);
        energies(fit, result, fit->m, times_ns, before_ns, 1, uj);
        publish_energies(result, uj, count, result->total_uj - result->unattributed_uj);
        for (size_t c = 0; c < count; c++) {
            struct kj_model_class_result *class = &result->classes[c];
            size_t i = fit->column_of[c];
            class->energy = estimate_of(class->energy.energy_uj, all + c * draws, draws);
            class->dynamic = class->energy;
            class->identifiability = fmin(
                fmax(1 - fit->inverse[i * fit->n + i] / (fit->prior_sd_mw[i] * fit->prior_sd_mw[i]), 0), 1);
            class->method = class->identifiability >= R_ESTIMATED ? KJ_ESTIMATED : KJ_MODELLED;
            class->group = -1;
        }
        status = find_groups(fit, result, all, draws);
        result->idle = estimate_of(result->idle_uj, all + count * draws, draws);
        publish_residuals(fit, result);
        for (size_t i = 0; i <= fit->columns; i++)
            if (fit->held[i] && (!i || fit->column_ns[i] > 0.01 * sum_ns)) {
                kj_model_warn(result, KJ_MODEL_WARN_BOUND,
                              "a kernel's power wanted below zero or above the board's limit and was held "
                              "there; is the "
                              "sensor's window right? `kjoule calibrate` measures it");
                break;
            }
    }
    free(times_ns);
    free(uj);
    free(all);
    return status;
}

static double bounded(double value, double most)
{
    return fmin(fmax(value, -most), most);
}

/* Powers, noise and the series' places in time, in turn: the effect of a shift depends on the powers. */
static int fit_all(struct fit *fit, enum kj_model_method method, const double *windows_ns, bool *ret_solved)
{
    static const double probes_ns[] = {0, 5e6, 3e6, 2e6, 1e6, 0.5e6};
    *ret_solved = true;
    for (size_t round = 0; *ret_solved && round < sizeof(probes_ns) / sizeof(*probes_ns); round++) {
        struct kj_row *rows;
        size_t count = kj_model_rows(fit->input, windows_ns, fit->shift, &rows);
        fit->probe_ns = method == KJ_MODEL_BAYES ? probes_ns[round] : 0;
        int status = collect(fit, rows, count);
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
        }
    }
    return 0;
}

static void check_window(struct fit *fit, const struct kj_model_options *options, double *windows_ns,
                         struct kj_model_result *result)
{
    bool unknown = false, power = false;
    for (size_t s = 0; s < fit->input->series_count; s++) {
        power = power || !fit->input->series[s].counter;
        unknown = unknown || (!fit->input->series[s].counter && !fit->input->series[s].sensor.window_ns);
    }
    if (!power || options->skip_shape_check)
        return;
    double gain, best_ns = best_window(fit, &gain);
    for (size_t s = 0; s < fit->input->series_count; s++)
        if (!fit->input->series[s].counter && !fit->input->series[s].sensor.window_ns)
            windows_ns[s] = best_ns;
    char text[240];
    if (!unknown && best_ns > 0 && gain > 3) {
        snprintf(text, sizeof(text),
                 "a sensor window of %.0f ms leaves %.0f times less unexplained than the one given; check "
                 "the sensor's "
                 "shape (`kjoule calibrate`)",
                 best_ns / 1e6, gain);
        kj_model_warn(result, KJ_MODEL_WARN_WINDOW, text);
    }
}

int kj_model_regress(const struct kj_model_input *input, const struct kj_model_options *options,
                     struct kj_model_result *result)
{
    struct fit fit;
    struct kj_row *rows = NULL;
    double *windows_ns = calloc(input->series_count + 1, sizeof(*windows_ns));
    int status = windows_ns ? 0 : -ENOMEM;
    if (!input->class_count || !input->interval_count || result->kernels_uj <= 0 || status) {
        free(windows_ns);
        return status;
    }
    status = fit_new(&fit, input, result) ? 0 : -ENOMEM;
    if (!status)
        check_window(&fit, options, windows_ns, result);
    size_t count = status ? 0 : kj_model_rows(input, windows_ns, NULL, &rows);
    result->sensors = calloc(input->series_count + 1, sizeof(*result->sensors));
    for (size_t s = 0; result->sensors && s < input->series_count; s++) {
        result->sensors[s] = input->series[s].sensor;
        if (windows_ns[s] > 0)
            result->sensors[s].window_ns = (uint64_t)windows_ns[s];
        result->sensor_count = input->series_count;
    }
    if (!status && count >= ROWS_LEAST) {
        bool solved;
        status = fit_all(&fit, options->method, windows_ns, &solved);
        if (!status && solved)
            status = publish(&fit, options, result);
    } else if (!status) {
        kj_model_warn(result, KJ_MODEL_WARN_COVERAGE,
                      "too few sensor updates fall into the timeline; energy is shared by time");
    }
    free(rows);
    free(windows_ns);
    fit_clear(&fit);
    return status;
}
