/* SPDX-License-Identifier: Apache-2.0
 *
 * design.c - the left-hand side of the regression: what share of a sensor's window each class ran.
 */
#include "model/fit.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMNS_CAP = 320 }; /* classes with a power of their own; the rest share one */

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
        fit->n = 2 + fit->columns + 2 * fit->input->series_count;
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

/* Integral up to t of a ramp from 0 to 1 around the edge. */
static double ramp(double t, double edge, double blur)
{
    if (t >= edge + blur)
        return t - edge;
    return t <= edge - blur ? 0 : (t - edge + blur) * (t - edge + blur) / (4 * blur);
}

/* How much of an interval lies in a window whose edges are blurred. */
static double overlap_ns(const struct kj_model_interval *interval, const struct kj_row *row)
{
    double s = (double)interval->start_ns, e = (double)interval->end_ns, blur = fmax(row->blur_ns, 1);
    return ramp(e, row->start_ns, blur) - ramp(s, row->start_ns, blur) - ramp(e, row->end_ns, blur) +
           ramp(s, row->end_ns, blur);
}

static double predicted_mw(const struct fit *fit, const struct kj_model_interval *sorted,
                           const uint64_t *reach, const struct kj_row *like, double later_ns)
{
    struct kj_row row = *like;
    row.start_ns += later_ns;
    row.end_ns += later_ns;
    double sum = 0;
    for (size_t i = first_reaching(reach, fit->input->interval_count, row.start_ns - row.blur_ns);
         i < fit->input->interval_count && (double)sorted[i].start_ns < row.end_ns + row.blur_ns; i++)
        sum += fit->m[fit->column_of[sorted[i].class_index]] * overlap_ns(&sorted[i], &row);
    return fit->m[0] + sum / (row.end_ns - row.start_ns);
}

/* Shares of the row's window by column, x[0] being that of idle power: all of it. */
static void design(const struct fit *fit, const struct kj_model_interval *sorted, const uint64_t *reach,
                   const struct kj_row *row, double *x)
{
    double window_ns = row->end_ns - row->start_ns;
    memset(x, 0, fit->n * sizeof(*x));
    x[0] = 1;
    for (size_t i = first_reaching(reach, fit->input->interval_count, row->start_ns - row->blur_ns);
         i < fit->input->interval_count && (double)sorted[i].start_ns < row->end_ns + row->blur_ns; i++)
        x[fit->column_of[sorted[i].class_index]] += overlap_ns(&sorted[i], row) / window_ns;
    /* What the row would change by, were the series a millisecond later: a secant, for power jumps. */
    double h = fit->probe_ns;
    if (h > 0) {
        /* A board that grows warm, or a clock that sinks: all power with the time of the run. */
        x[fit->n - 1] = kj_model_place(fit->input, row->end_ns) * predicted_mw(fit, sorted, reach, row, 0);
        double per_ms =
            (predicted_mw(fit, sorted, reach, row, h) - predicted_mw(fit, sorted, reach, row, -h)) /
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

int kj_fit_collect(struct fit *fit, const struct kj_row *rows, size_t count)
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
