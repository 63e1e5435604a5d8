/* SPDX-License-Identifier: Apache-2.0
 *
 * design.c - the left-hand side of the regression: what share of a sensor's window each class ran; and what
 * may vary a row around that.
 */
#include "model/fit.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    COLUMNS_CAP = 320, /* classes with a power of their own; the rest share one */
};

static int by_time(const void *a, const void *b)
{
    const double *x = *(const double *const *)a, *y = *(const double *const *)b;
    return (*x < *y) - (*x > *y);
}

/* The classes that ran longest have columns of their own; the others share the last. */
bool kj_fit_assign_columns(struct fit *fit, const struct kj_model_result *result)
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
        fit->n = 3 + fit->columns + 2 * fit->input->series_count;
        fit->column_ns = calloc(fit->n, sizeof(double));
        ok = fit->column_ns != NULL;
        for (size_t c = 0; ok && c < count; c++)
            fit->column_ns[fit->column_of[c]] += times[c];
    }
    free(times);
    free(order);
    return ok;
}

/* How much of an interval lies in a window whose edges are blurred. */
static double overlap_ns(const struct kj_model_interval *interval, const struct kj_row *row)
{
    double from = (double)interval->start_ns, to = (double)interval->end_ns;
    return kj_edge_passed_ns(&row->start, to) - kj_edge_passed_ns(&row->start, from) -
           kj_edge_passed_ns(&row->end, to) + kj_edge_passed_ns(&row->end, from);
}

struct foretold {
    double mean_mw, variance_mw2, shared_mw2; /* shared: with the row before, of a counter */
};

/* Power over idle that a window sees at fit->m, wherever its edges may lie, `later` than said. */
static struct foretold foretell(const struct fit *fit, const struct kj_row *row, double later_ns)
{
    double window_ns = row->end_ns - row->start_ns, sum[2] = {0}, square[2] = {0};
    double start_at[KJ_EDGE_NODES], end_at[KJ_EDGE_NODES], start_weight[KJ_EDGE_NODES],
        end_weight[KJ_EDGE_NODES];
    kj_edge_nodes(&row->start, start_at, start_weight);
    kj_edge_nodes(&row->end, end_at, end_weight);
    double anchor = kj_timeline_energy(fit->timeline, row->start_ns + later_ns);
    for (size_t k = 0; k < KJ_EDGE_NODES; k++) {
        double from = (kj_timeline_energy(fit->timeline, start_at[k] + later_ns) - anchor) / window_ns;
        double to = (kj_timeline_energy(fit->timeline, end_at[k] + later_ns) - anchor) / window_ns;
        double first = row->counter ? from : to - from, second = row->counter ? to : 0;
        sum[0] += start_weight[k] * first;
        sum[1] += end_weight[k] * second;
        square[0] += start_weight[k] * first * first;
        square[1] += end_weight[k] * second * second;
    }
    double first = fmax(square[0] - sum[0] * sum[0], 0), second = fmax(square[1] - sum[1] * sum[1], 0);
    return (struct foretold){.mean_mw = row->counter ? sum[1] - sum[0] : sum[0],
                             .variance_mw2 = first + second,
                             .shared_mw2 = row->counter ? first : 0};
}

/* Shares of the row's window by column, x[0] being that of idle power: all of it. Returns the variance that
 * launches would give the row, were each as far off its class as its class's own power. */
static double design(const struct fit *fit, const struct kj_row *row, const struct foretold *now, double *x)
{
    double window_ns = row->end_ns - row->start_ns, launches_mw2 = 0;
    size_t count;
    const struct kj_model_interval *sorted = kj_timeline_intervals(fit->timeline, &count);
    memset(x, 0, fit->n * sizeof(*x));
    x[0] = 1;
    for (size_t i = kj_timeline_first(fit->timeline, row->start.after_ns);
         i < count && (double)sorted[i].start_ns < row->end.seen_ns; i++) {
        uint32_t column = fit->column_of[sorted[i].class_index];
        double share = overlap_ns(&sorted[i], row) / window_ns, own_mw = share * fit->m[column];
        x[column] += share;
        launches_mw2 += own_mw * own_mw;
    }
    /* What the row would change by, were the series a millisecond later: a secant, for power jumps. */
    double h = fit->probe_ns;
    if (h > 0) {
        /* A board that grows warm, or a clock that sinks: idle power, and that of kernels, with the time of
         * the run. */
        double place = kj_model_place(fit->input, row->end_ns);
        x[fit->n - 2] = place * fit->m[0];
        x[fit->n - 1] = place * now->mean_mw;
        double per_ms = (foretell(fit, row, h).mean_mw - foretell(fit, row, -h).mean_mw) / (2 * h / 1e6);
        double *shift = &x[1 + fit->columns + 2 * row->series];
        shift[0] = per_ms;
        shift[1] = per_ms * kj_model_place(fit->input, row->end_ns);
    }
    return launches_mw2;
}

static void moments_add(struct moments *m, const double *x, double y, size_t n, uint32_t *active)
{
    size_t count = 0;
    for (uint32_t i = 0; i < n; i++)
        if (x[i] != 0)
            active[count++] = i;
    for (size_t i = 0; i < count; i++) {
        double *row = m->xx + active[i] * n, own = x[active[i]];
        for (size_t j = 0; j <= i; j++)
            row[active[j]] += own * x[active[j]];
        m->xy[active[i]] += own * y;
    }
    m->yy += y * y;
    m->rows++;
}

static void moments_clear(struct moments *m, size_t n)
{
    memset(m->xx, 0, n * n * sizeof(double));
    memset(m->xy, 0, n * sizeof(double));
    m->yy = 0, m->rows = 0;
}

/* Rows made white one after the other: a counter's neighbours share an edge, and what one has too much the
 * other has too little. x_white[i] = (x[i] - c x_white[i - 1]) / l, the Cholesky factor of a band. */
struct chain {
    double *x, *white;
    double y_white, scale, residual, variance, window_ns;
};

static void collect_row(struct fit *fit, const struct kj_row *row, const struct foretold *timing,
                        struct chain *chain, uint32_t *active)
{
    struct kj_noise *noise = &fit->noise[row->series];
    struct foretold now = {0};
    if (!fit->plain)
        now = foretell(fit, row, 0);
    if (timing)
        now.variance_mw2 = timing->variance_mw2, now.shared_mw2 = timing->shared_mw2;
    double features[KJ_NOISE_PARTS] = {0}, launches_mw2 = design(fit, row, &now, chain->x);
    double level_mw = fit->m[0] + now.mean_mw, residual = row->mw, window_ns = row->end_ns - row->start_ns;
    for (size_t i = 0; i < fit->n; i++)
        residual -= chain->x[i] * fit->m[i];
    features[KJ_NOISE_SENSOR] = level_mw * level_mw;
    features[KJ_NOISE_LAUNCH] = launches_mw2;
    features[KJ_NOISE_TIMING] = now.variance_mw2;
    double given_mw = fit->input->series[row->series].sensor.noise_mw;
    double plain_mw = fit->total_mw / 20 + 1000;
    double variance =
        fit->plain ? plain_mw * plain_mw : kj_noise_variance(noise, features) + given_mw * given_mw;
    double carried = 0;
    kj_noise_add(noise, features, residual * residual, 2 * variance * variance);
    if (row->chained && !fit->plain) {
        double product[KJ_NOISE_PARTS] = {0};
        product[KJ_NOISE_TIMING] = -now.shared_mw2 * window_ns / chain->window_ns;
        kj_noise_add(noise, product, residual * chain->residual, variance * chain->variance);
        carried = noise->share[KJ_NOISE_TIMING] * product[KJ_NOISE_TIMING] / chain->scale;
    }
    chain->scale = sqrt(fmax(variance - carried * carried, 0.05 * variance));
    for (size_t i = 0; i < fit->n; i++)
        chain->white[i] = (chain->x[i] - carried * chain->white[i]) / chain->scale;
    chain->y_white = (row->mw - carried * chain->y_white) / chain->scale;
    double off = chain->y_white;
    for (size_t i = 0; i < fit->n; i++)
        off -= chain->white[i] * fit->m[i];
    fit->minus2_log += off * off + 2 * log(chain->scale);
    chain->residual = residual, chain->variance = variance, chain->window_ns = window_ns;
    noise->rows++;
    noise->residual2 += residual * residual;
    noise->reading += row->mw;
    double place = (kj_model_place(fit->input, row->end_ns) + 1) / 2 * KJ_BLOCKS;
    size_t block = place < 0 ? 0 : place >= KJ_BLOCKS ? KJ_BLOCKS - 1 : (size_t)place;
    moments_add(&fit->blocks[block], chain->white, chain->y_white, fit->n, active);
}

static void clear(struct fit *fit)
{
    for (size_t b = 0; b < KJ_BLOCKS; b++)
        moments_clear(&fit->blocks[b], fit->n);
    moments_clear(&fit->all, fit->n);
    fit->minus2_log = 0;
    for (size_t s = 0; s < fit->input->series_count; s++) {
        struct kj_noise *noise = &fit->noise[s];
        memset(noise->features, 0, sizeof(noise->features));
        memset(noise->target, 0, sizeof(noise->target));
        noise->rows = 0, noise->residual2 = noise->reading = 0;
    }
}

/* How much a late update may change a row, over what the powers may be: the powers' mean alone has less
 * contrast than any that are possible. NULL: nothing to average over, or no memory for it. */
static struct foretold *timing_over_draws(struct fit *fit, const struct kj_row *rows, size_t count)
{
    struct foretold *timing = fit->maybe && !fit->plain ? calloc(count + 1, sizeof(*timing)) : NULL;
    for (size_t d = 0; timing && d < fit->maybe_count; d++) {
        kj_timeline_set_powers(fit->timeline, fit->maybe + d * fit->n);
        for (size_t i = 0; i < count; i++) {
            struct foretold one = foretell(fit, &rows[i], 0);
            timing[i].variance_mw2 += one.variance_mw2 / (double)fit->maybe_count;
            timing[i].shared_mw2 += one.shared_mw2 / (double)fit->maybe_count;
        }
    }
    return timing;
}

int kj_fit_collect(struct fit *fit, const struct kj_row *rows, size_t count)
{
    size_t n = fit->n;
    struct chain chain = {.x = malloc(n * sizeof(double)), .white = calloc(n, sizeof(double))};
    uint32_t *active = malloc(n * sizeof(*active));
    int status = chain.x && chain.white && active ? 0 : -ENOMEM;
    clear(fit);
    struct foretold *timing = timing_over_draws(fit, rows, count);
    if (!status)
        kj_timeline_set_powers(fit->timeline, fit->m);
    for (size_t i = 0; !status && i < count; i++)
        collect_row(fit, &rows[i], timing ? &timing[i] : NULL, &chain, active);
    for (size_t b = 0; !status && b < KJ_BLOCKS; b++) {
        const struct moments *m = &fit->blocks[b];
        for (size_t i = 0; i < n * n; i++)
            fit->all.xx[i] += m->xx[i];
        for (size_t i = 0; i < n; i++)
            fit->all.xy[i] += m->xy[i];
        fit->all.yy += m->yy;
        fit->all.rows += m->rows;
    }
    if (!status && fit->total_sd_mw > 0 && !fit->plain) {
        for (size_t i = 0; i < n; i++)
            chain.x[i] = fit->total_x[i] / fit->total_sd_mw;
        moments_add(&fit->all, chain.x, fit->total_mw / fit->total_sd_mw, n, active);
    }
    fit->rows = count;
    free(timing);
    free(chain.x);
    free(chain.white);
    free(active);
    return status;
}
