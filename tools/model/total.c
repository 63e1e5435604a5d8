/* SPDX-License-Identifier: Apache-2.0
 *
 * total.c - what a run took, from readings that do not see all of it: total.h says how.
 */
#include "model/total.h"

#include "model/curve.h"
#include "model/parts.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BEYOND_SD   0.3  /* of the energy before a counter's first and after its last renewal */
#define CORRELATION 0.9  /* most that is believed of neighbouring residuals */
#define RESIDUAL_SD 0.01 /* least of a residual, relative: no sensor's noise is less */

struct shape {
    struct kj_curve board;  /* power as the attribution has it: mW ns up to t */
    struct kj_curve *class; /* [class_count] time each class ran, ns up to t */
    struct kj_curve idle;   /* time that nothing ran */
    const struct kj_model_input *input;
    const struct kj_model_result *result;
};

static double class_mw(const struct kj_model_result *result, size_t c)
{
    const struct kj_model_class_result *class = &result->classes[c];
    return class->time_ns > 0 ? (double)class->energy.energy_uj * 1e6 / class->time_ns : 0;
}

static double idle_mw(const struct kj_model_result *result)
{
    return result->idle_ns > 0 ? (double)result->idle_uj * 1e6 / result->idle_ns : result->idle_mw;
}

/* Stretches of the run where nothing ran, at idle power, behind the `count` pieces of the classes. */
static size_t idle_pieces(const struct kj_model_input *input, const struct kj_model_interval *sorted,
                          double level_mw, struct kj_curve_piece *pieces)
{
    double reached_ns = (double)input->start_ns;
    size_t n = 0;
    for (size_t i = 0; i < input->interval_count; i++) {
        if ((double)sorted[i].start_ns > reached_ns)
            pieces[n++] = (struct kj_curve_piece){reached_ns, (double)sorted[i].start_ns, level_mw};
        reached_ns = fmax(reached_ns, (double)sorted[i].end_ns);
    }
    if ((double)input->end_ns > reached_ns)
        pieces[n++] = (struct kj_curve_piece){reached_ns, (double)input->end_ns, level_mw};
    return n;
}

/* by_class: the intervals in order of class, classes' first places in `first`. */
static int class_curves(struct shape *shape, const struct kj_model_interval *sorted,
                        struct kj_curve_piece *pieces)
{
    const struct kj_model_input *input = shape->input;
    size_t *first = calloc(input->class_count + 2, sizeof(*first));
    if (!first)
        return -ENOMEM;
    for (size_t i = 0; i < input->interval_count; i++)
        first[sorted[i].class_index + 2]++;
    for (size_t c = 0; c < input->class_count; c++)
        first[c + 2] += first[c + 1];
    for (size_t i = 0; i < input->interval_count; i++)
        pieces[first[sorted[i].class_index + 1]++] =
            (struct kj_curve_piece){(double)sorted[i].start_ns, (double)sorted[i].end_ns, 1};
    int status = 0;
    for (size_t c = 0; c < input->class_count && !status; c++)
        status = kj_curve_of_pieces(pieces + first[c], first[c + 1] - first[c], &shape->class[c]);
    free(first);
    return status;
}

static int open_shape(const struct kj_model_input *input, const struct kj_model_result *result,
                      struct shape *shape)
{
    struct kj_model_interval *sorted = kj_model_sorted_intervals(input);
    struct kj_curve_piece *pieces = malloc((2 * input->interval_count + 2) * sizeof(*pieces));
    *shape = (struct shape){
        .input = input, .result = result, .class = calloc(input->class_count + 1, sizeof(*shape->class))};
    int status = shape->class && pieces && (sorted || !input->interval_count) ? 0 : -ENOMEM;
    if (!status)
        status = class_curves(shape, sorted, pieces);
    size_t n = status ? 0 : idle_pieces(input, sorted, 1, pieces);
    if (!status)
        status = kj_curve_of_pieces(pieces, n, &shape->idle);
    for (size_t i = 0; i < n && !status; i++)
        pieces[i].rate = idle_mw(result);
    for (size_t i = 0; i < input->interval_count && !status; i++)
        pieces[n++] = (struct kj_curve_piece){(double)sorted[i].start_ns, (double)sorted[i].end_ns,
                                              class_mw(result, sorted[i].class_index)};
    if (!status)
        status = kj_curve_of_pieces(pieces, n, &shape->board);
    free(sorted);
    free(pieces);
    return status;
}

static void close_shape(struct shape *shape)
{
    for (size_t c = 0; shape->class && c < shape->input->class_count; c++)
        kj_curve_free(&shape->class[c]);
    free(shape->class);
    kj_curve_free(&shape->idle);
    kj_curve_free(&shape->board);
}

static double between(const struct kj_curve *curve, double start_ns, double end_ns)
{
    return kj_curve_at(curve, end_ns) - kj_curve_at(curve, start_ns);
}

/* One reading: what it looked at, and the time it stands for. */
struct look {
    double start_ns, end_ns, mw, from_ns, to_ns;
};

/* Readings of a power series whose windows lie in the run; each stands for the time up to half way to its
 * neighbours, the first and the last for what is left of the run. */
static struct look *looks_of(const struct kj_model_input *input, const struct kj_sensor_series *series,
                             size_t *ret_count)
{
    struct kj_update *updates;
    struct kj_grid grid;
    const struct kj_sensor *sensor = &series->sensor;
    size_t all = kj_model_updates(series, &updates, &grid), n = 0;
    struct look *looks = malloc((all + 2) * sizeof(*looks));
    double gain = sensor->gain > 0 ? sensor->gain : 1;
    /* A value that was never renewed is one reading too. */
    bool still = looks && updates && !all && series->count;
    if (still)
        updates[all++] = (struct kj_update){(double)input->end_ns, (double)series->readings[0].value};
    for (size_t i = 0; looks && updates && i < all; i++) {
        double end_ns = updates[i].t_ns - (double)sensor->delay_ns;
        struct look look = {.start_ns = end_ns - (double)sensor->window_ns,
                            .end_ns = end_ns,
                            .mw = fmax((updates[i].value - sensor->offset_mw) / gain, 0)};
        if (still)
            look.start_ns = (double)input->start_ns, look.end_ns = (double)input->end_ns;
        if (look.start_ns >= (double)input->start_ns && look.end_ns <= (double)input->end_ns)
            looks[n++] = look;
    }
    for (size_t i = 0; i < n; i++) {
        double middle_ns = (looks[i].start_ns + looks[i].end_ns) / 2;
        looks[i].from_ns = i ? looks[i - 1].to_ns : (double)input->start_ns;
        looks[i].to_ns = i + 1 < n ? (middle_ns + (looks[i + 1].start_ns + looks[i + 1].end_ns) / 2) / 2
                                   : (double)input->end_ns;
    }
    free(updates);
    *ret_count = looks ? n : 0;
    return looks;
}

/* What the readings do not say: where the time that each stands for differs from what it looked at, the
 * powers of what ran then count, as uncertain as they are; and the residual may differ outside the window. */
static double unseen_variance(const struct shape *shape, const struct look *looks, size_t count,
                              double residual2, double correlation)
{
    const struct kj_model_input *input = shape->input;
    double variance = 0, factor = (1 + correlation) / (1 - correlation);
    for (size_t i = 0; i < count; i++) {
        double time_ns = looks[i].to_ns - looks[i].from_ns, window_ns = looks[i].end_ns - looks[i].start_ns;
        double outside = fmax(1 - window_ns / fmax(time_ns, 1), 0);
        variance += time_ns * time_ns * residual2 * factor * outside;
    }
    for (size_t c = 0; c <= input->class_count; c++) {
        bool idle = c == input->class_count;
        const struct kj_curve *curve = idle ? &shape->idle : &shape->class[c];
        double time_ns = between(curve, (double)input->start_ns, (double)input->end_ns), seen_ns = 0;
        for (size_t i = 0; i < count; i++)
            seen_ns += between(curve, looks[i].start_ns, looks[i].end_ns) *
                       (looks[i].to_ns - looks[i].from_ns) / (looks[i].end_ns - looks[i].start_ns);
        double sd_mw = idle ? shape->result->idle_sd_mw
                       : time_ns > 0
                           ? shape->result->classes[c].energy.sd_uj * 1e6 / shape->result->classes[c].time_ns
                           : 0;
        variance += pow((time_ns - seen_ns) * sd_mw, 2);
    }
    return variance;
}

static void total_of_power(const struct shape *shape, const struct kj_sensor_series *series,
                           const struct look *looks, size_t count, struct kj_model_total *total)
{
    double xy = 0, xx = 0, rr = 0, neighbours = 0, before = 0, seen_ns = 0, reached_ns = 0, mean = 0;
    double start_ns = (double)shape->input->start_ns, end_ns = (double)shape->input->end_ns;
    double gain = series->sensor.gain > 0 ? series->sensor.gain : 1;
    for (size_t i = 0; i < count; i++) {
        double x = between(&shape->board, looks[i].start_ns, looks[i].end_ns) /
                   (looks[i].end_ns - looks[i].start_ns);
        xy += x * looks[i].mw;
        xx += x * x;
    }
    double scale = xx > 0 ? xy / xx : 1, uj = scale * between(&shape->board, start_ns, end_ns) * 1e-6;
    for (size_t i = 0; i < count; i++) {
        double x = between(&shape->board, looks[i].start_ns, looks[i].end_ns) /
                   (looks[i].end_ns - looks[i].start_ns);
        double residual = looks[i].mw - scale * x;
        uj += residual * (looks[i].to_ns - looks[i].from_ns) * 1e-6;
        rr += residual * residual;
        neighbours += i ? residual * before : 0;
        before = residual;
        mean += looks[i].mw / (double)count;
        seen_ns += fmax(looks[i].end_ns - fmax(looks[i].start_ns, reached_ns), 0);
        reached_ns = looks[i].end_ns;
    }
    double residual2 = fmax(rr / (double)count, pow(RESIDUAL_SD * mean, 2));
    double correlation = rr > 0 ? fmin(fmax(neighbours / rr, 0), CORRELATION) : 0;
    total->unseen_sd_uj = sqrt(unseen_variance(shape, looks, count, residual2, correlation)) * 1e-6;
    total->total_uj = llround(fmax(uj, 0));
    total->seen = end_ns > start_ns ? fmin(seen_ns / (end_ns - start_ns), 1) : 0;
    for (size_t i = 1; i < series->count; i++)
        total->naive_uj += ((double)series->readings[i - 1].value - series->sensor.offset_mw) / gain *
                           (double)(series->readings[i].t_ns - series->readings[i - 1].t_ns) * 1e-6;
}

/* The counter between renewals, by a line; before the first and after the last by the board's power. */
static int total_of_counter(const struct shape *shape, const struct kj_sensor_series *series,
                            struct kj_model_total *total)
{
    struct kj_update *updates;
    struct kj_grid grid;
    double start_ns = (double)shape->input->start_ns, end_ns = (double)shape->input->end_ns;
    double gain = series->sensor.gain > 0 ? series->sensor.gain : 1, lag_ns = (double)series->sensor.delay_ns;
    size_t all = kj_model_updates(series, &updates, &grid), first = 0, last = all;
    while (first < all && updates[first].t_ns - lag_ns < start_ns)
        first++;
    while (last > first && updates[last - 1].t_ns - lag_ns > end_ns)
        last--;
    if (!updates || last - first < 2) {
        free(updates);
        return updates ? -ENODATA : -ENOMEM;
    }
    double from_ns = updates[first].t_ns - lag_ns, to_ns = updates[last - 1].t_ns - lag_ns;
    double known_uj = (updates[last - 1].value - updates[first].value) / gain, beyond_uj = 0;
    double board = between(&shape->board, from_ns, to_ns);
    double scale = board > 0 ? known_uj / board : 0;
    beyond_uj = scale * (between(&shape->board, start_ns, from_ns) + between(&shape->board, to_ns, end_ns));
    double mean_mw = known_uj * 1e6 / (to_ns - from_ns);
    total->total_uj = llround(fmax(known_uj + beyond_uj, 0));
    total->unseen_sd_uj =
        hypot(BEYOND_SD * beyond_uj, hypot(grid.sd_ns, grid.jitter_ns) * M_SQRT2 * mean_mw * 1e-6);
    total->seen = (to_ns - from_ns) / fmax(end_ns - start_ns, 1);
    total->naive_uj = (double)(series->readings[series->count - 1].value - series->readings[0].value) / gain;
    total->counter = true;
    free(updates);
    return 0;
}

static void bounds(const struct kj_sensor *sensor, struct kj_model_total *total)
{
    double gain = sensor->residual_gain > 0 ? sensor->residual_gain : 1, uj = (double)total->total_uj;
    double spread = KJ_Z90 * hypot(sensor->gain_sd / gain, uj > 0 ? total->unseen_sd_uj / uj : 0);
    double low = uj / gain * fmax(1 - spread, 0) - .5, high = uj / gain * (1 + spread + spread * spread) + .5;
    total->low_uj = (int64_t)floor(fmax(fmin(low, uj), 0));
    total->high_uj = (int64_t)ceil(fmax(high, uj));
}

static int keep_windows(const struct kj_model_input *input, const struct shape *shape,
                        struct kj_model_total *total)
{
    struct kj_row *rows;
    double *windows_ns = calloc(input->series_count + 1, sizeof(*windows_ns));
    size_t count = windows_ns ? kj_model_rows(input, windows_ns, NULL, &rows) : 0;
    free(windows_ns);
    if (!windows_ns || !rows || !(total->windows = calloc(count + 1, sizeof(*total->windows)))) {
        free(windows_ns ? rows : NULL);
        return -ENOMEM;
    }
    for (size_t i = 0; i < count; i++)
        total->windows[i] = (struct kj_model_window){
            .start_ns = (uint64_t)llround(fmax(rows[i].start_ns, 0)),
            .end_ns = (uint64_t)llround(fmax(rows[i].end_ns, 0)),
            .series = rows[i].series,
            .measured_uj = rows[i].mw * (rows[i].end_ns - rows[i].start_ns) * 1e-6,
            .modelled_uj = between(&shape->board, rows[i].start_ns, rows[i].end_ns) * 1e-6};
    total->window_count = count;
    free(rows);
    return 0;
}

int kj_model_total(const struct kj_model_input *input, const struct kj_model_result *result,
                   struct kj_model_total *ret_total)
{
    struct shape shape;
    size_t reference = input->series_count;
    *ret_total = (struct kj_model_total){0};
    for (size_t pass = 0; pass < 2; pass++)
        for (size_t s = 0; s < input->series_count && reference == input->series_count; s++)
            if (input->series[s].counter == !pass)
                reference = s;
    if (reference == input->series_count)
        return -ENODATA;
    const struct kj_sensor_series *series = &input->series[reference];
    int status = open_shape(input, result, &shape);
    if (!status && series->counter) {
        status = total_of_counter(&shape, series, ret_total);
    } else if (!status) {
        size_t count;
        struct look *looks = looks_of(input, series, &count);
        status = !looks ? -ENOMEM : !count ? -ENODATA : 0;
        if (!status)
            total_of_power(&shape, series, looks, count, ret_total);
        free(looks);
    }
    if (!status) {
        bounds(&series->sensor, ret_total);
        status = keep_windows(input, &shape, ret_total);
    }
    close_shape(&shape);
    return status;
}
