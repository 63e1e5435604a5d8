/* SPDX-License-Identifier: Apache-2.0
 *
 * align.c - two clocks that differ by an unknown constant: the offset at which power follows the timeline
 * best. By correlation, coarse to fine; outside the timeline nothing is taken to have run.
 */
#include "trace/attribute.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

enum { BINS_CAP = 4096, FINE_BINS = 40 };
#define BIN_LEAST_NS    20e6
#define FINE_LEAST_NS   4e6
#define ELSEWHERE_NS    1e9
#define REACH_NS        150e6
#define SENSOR_DELAY_NS 2e6 /* what a sensor itself is late by */

/* Samples at a regular step: power as a mean over each bin, or the share of the bin that something ran. */
struct bins {
    double *value;
    size_t count;
    double start_ns, step_ns;
};

/* Spreads `amount` per ns over [a, b). */
static void spread(struct bins *bins, double a_ns, double b_ns, double amount)
{
    double a = (a_ns - bins->start_ns) / bins->step_ns, b = (b_ns - bins->start_ns) / bins->step_ns;
    a = fmin(fmax(a, 0), (double)bins->count);
    b = fmin(fmax(b, 0), (double)bins->count);
    for (size_t i = (size_t)a; i < bins->count && (double)i < b; i++)
        bins->value[i] += amount * (fmin(b, (double)i + 1) - fmax(a, (double)i));
}

static bool open_bins(struct bins *bins, double start_ns, double end_ns, double step_ns)
{
    bins->start_ns = start_ns;
    bins->step_ns = step_ns;
    bins->count = (size_t)fmax(ceil((end_ns - start_ns) / step_ns), 1);
    bins->value = calloc(bins->count, sizeof(double));
    return bins->value != NULL;
}

/* Each value as long as it is nearest: from half way to the update before until half way to the one after. */
static void fill_power(struct bins *bins, const struct kj_trace_series *series)
{
    const struct kj_trace_reading *r = series->readings;
    double from_ns = 0, at_ns = 0, mw = 0;
    for (size_t i = 1; i < series->count; i++) {
        if (r[i].value == r[i - 1].value && i + 1 < series->count)
            continue;
        double now_ns = (double)(r[i].t_ns - r[0].t_ns),
               half_ns = series->counter ? at_ns : (at_ns + now_ns) / 2;
        spread(bins, from_ns, half_ns, mw);
        from_ns = half_ns;
        mw = !series->counter ? (double)r[i].value
             : now_ns > at_ns ? (double)(r[i].value - r[i - 1].value) * 1e6 / (now_ns - at_ns)
                              : 0;
        at_ns = now_ns;
    }
    spread(bins, from_ns, at_ns, mw);
}

/* Correlation of power with busy, moved `shift_bins` later. */
static double correlation(const struct bins *power, const struct bins *busy, long shift)
{
    double n = (double)power->count, p = 0, pp = 0, b = 0, bb = 0, pb = 0;
    for (size_t i = 0; i < power->count; i++) {
        long at = (long)i - shift;
        double x = at >= 0 && at < (long)busy->count ? busy->value[at] : 0, y = power->value[i];
        p += y, pp += y * y, b += x, bb += x * x, pb += x * y;
    }
    double scale = (pp - p * p / n) * (bb - b * b / n);
    return scale > 1e-12 * pp * bb ? (pb - p * b / n) / sqrt(scale) : 0;
}

/* Fine steps around an offset: the same bins of power, busy anew at each. */
static double refine(const struct kj_trace_launch *launches, size_t count, double first_ns,
                     const struct bins *power, double around_ns, double reach_ns, double *ret_best)
{
    struct bins busy = {0};
    double step_ns = fmax(reach_ns / FINE_BINS, FINE_LEAST_NS), best_ns = around_ns;
    if (!open_bins(&busy, 0, power->step_ns * (double)power->count, power->step_ns))
        return around_ns;
    for (double o = around_ns - reach_ns; o <= around_ns + reach_ns; o += step_ns) {
        for (size_t i = 0; i < busy.count; i++)
            busy.value[i] = 0;
        for (size_t i = 0; i < count; i++)
            spread(&busy, (double)launches[i].start_ns - first_ns + o,
                   (double)launches[i].end_ns - first_ns + o, 1);
        double r = correlation(power, &busy, 0);
        if (r > *ret_best)
            *ret_best = r, best_ns = o;
    }
    free(busy.value);
    return best_ns;
}

/* Correlation leaves what the sensor's window and holding of values hide; their likelihood places the series
 * to a few ms. Returns what is to be added to the offset. */
static int by_likelihood(const struct kj_trace_launch *launches, size_t count, size_t classes,
                         const struct kj_trace_series *series, int64_t offset_ns, double *ret_more_ns)
{
    int64_t base_ns = series->readings[0].t_ns, end_ns = series->readings[series->count - 1].t_ns;
    struct kj_model_interval *intervals = malloc((count + 1) * sizeof(*intervals));
    struct kj_model_class *class = calloc(classes + 1, sizeof(*class));
    struct kj_reading *readings = malloc((series->count + 1) * sizeof(*readings));
    struct kj_model_input input = {.end_ns = (uint64_t)(end_ns - base_ns),
                                   .classes = class,
                                   .class_count = classes,
                                   .intervals = intervals};
    struct kj_sensor_series plain = {.readings = readings, .count = series->count};
    const struct kj_shape_question ask = {
        .series = &plain, .delay_from_ns = -REACH_NS, .delay_to_ns = REACH_NS};
    struct kj_sensor_shape shape = {0};
    int status = intervals && class && readings ? 0 : -ENOMEM;
    *ret_more_ns = 0;
    for (size_t i = 0; i < count && !status; i++) {
        int64_t start_ns = launches[i].start_ns + offset_ns, stop_ns = launches[i].end_ns + offset_ns;
        start_ns = start_ns < base_ns ? base_ns : start_ns;
        if (stop_ns > start_ns)
            intervals[input.interval_count++] = (struct kj_model_interval){
                (uint64_t)(start_ns - base_ns), (uint64_t)(stop_ns - base_ns), launches[i].name, 0};
    }
    for (size_t i = 0; i < series->count && !status; i++)
        readings[i] =
            (struct kj_reading){(uint64_t)(series->readings[i].t_ns - base_ns), series->readings[i].value};
    if (!status)
        status = kj_sensor_shape_infer(&input, &ask, &shape);
    if (!status && shape.delay_source == KJ_SHAPE_TRACE)
        *ret_more_ns = shape.delay_ns - SENSOR_DELAY_NS;
    free(intervals);
    free(class);
    free(readings);
    return status == -ENODATA ? 0 : status;
}

int kj_trace_align(const struct kj_trace_launch *launches, size_t launch_count, size_t names,
                   const struct kj_trace_series *series, int64_t *ret_offset_ns, double *ret_correlation,
                   double *ret_second)
{
    int64_t first = launches[0].start_ns, last = launches[0].end_ns, power_first = series->readings[0].t_ns;
    for (size_t i = 0; i < launch_count; i++) {
        first = launches[i].start_ns < first ? launches[i].start_ns : first;
        last = launches[i].end_ns > last ? launches[i].end_ns : last;
    }
    double length_ns = (double)(last - first),
           power_ns = (double)(series->readings[series->count - 1].t_ns - power_first);
    double step_ns = fmax(BIN_LEAST_NS, fmax(length_ns, power_ns) / BINS_CAP), best = -2, best_ns = 0;
    struct bins power = {0}, busy = {0};
    bool ok = open_bins(&power, 0, power_ns, step_ns) && open_bins(&busy, 0, length_ns, step_ns);
    *ret_second = 0;
    if (ok)
        fill_power(&power, series);
    for (size_t i = 0; ok && i < launch_count; i++)
        spread(&busy, (double)(launches[i].start_ns - first), (double)(launches[i].end_ns - first), 1);
    long lags = ok ? (long)(power.count + busy.count) : 0;
    double *all = ok ? malloc((size_t)(lags + 1) * sizeof(*all)) : NULL;
    long at = 0;
    for (long lag = 0; all && lag < lags; lag++) {
        all[lag] = correlation(&power, &busy, lag - (long)busy.count);
        if (all[lag] > best)
            best = all[lag], at = lag;
    }
    for (long lag = 0; all && lag < lags; lag++) /* another peak, not the slope of this one */
        if (fabs((double)(lag - at)) * step_ns > fmin(ELSEWHERE_NS, length_ns / 2) && lag > 0 &&
            lag + 1 < lags && all[lag] >= all[lag - 1] && all[lag] >= all[lag + 1])
            *ret_second = fmax(*ret_second, all[lag]);
    best_ns = (double)(at - (long)busy.count) * step_ns;
    if (all)
        best_ns = refine(launches, launch_count, (double)first, &power, best_ns, 1.5 * step_ns, &best);
    *ret_correlation = best;
    *ret_offset_ns = power_first - first + llround(best_ns);
    double more_ns = 0;
    if (ok && all && !series->counter)
        ok = !by_likelihood(launches, launch_count, names, series, *ret_offset_ns, &more_ns);
    *ret_offset_ns += llround(more_ns);
    ok = ok && all;
    free(all);
    free(power.value);
    free(busy.value);
    return ok ? 0 : -ENOMEM;
}
