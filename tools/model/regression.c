/* SPDX-License-Identifier: Apache-2.0
 *
 * regression.c - what each class of kernels draws, from what the sensors saw: METHOD.md explains it and gives
 * its sources.
 *
 * Each update of a sensor is an equation: mean power over its window = idle + sum of (share of the window
 * that class k ran) x (dynamic power of k). What the data leave open is drawn from a prior that the device's
 * classes share, whose mean and spread are unknown too; its posterior and the sensor's gain make the
 * intervals. All is then made to add up to the total.
 */
#include "model/fit.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS_LEAST = 8 };
#define STEP_JITTER      0.01
#define ROWS_PER_UNKNOWN 3
#define RESONANCE        0.05 /* shared/reference/energy.md 2.5 */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Mean square of what is left of the power readings at the powers as they are. */
static double unexplained(const struct fit *fit)
{
    double left = 0;
    size_t rows = 0;
    for (size_t s = 0; s < fit->input->series_count; s++)
        if (!fit->input->series[s].counter) {
            left += fit->noise[s].residual2;
            rows += fit->noise[s].rows;
        }
    return rows ? left / (double)rows : DBL_MAX;
}

/* Whether the power readings are many beside the unknowns: as many powers as readings explain any window's.
 */
static bool tells_windows_apart(const struct fit *fit)
{
    size_t rows = 0;
    for (size_t s = 0; s < fit->input->series_count; s++)
        if (!fit->input->series[s].counter)
            rows += fit->noise[s].rows;
    return rows > ROWS_PER_UNKNOWN * (fit->columns + 1);
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
        if (count >= KJ_ROWS_LEAST && !kj_fit_collect(fit, rows, count) && kj_fit_solve(fit, 1) &&
            !kj_fit_collect(fit, rows, count)) {
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
            windows_ns[s] = best_ns > 0 ? best_ns : KJ_WINDOW_UNKNOWN_NS;
    char text[240];
    if (!unknown && best_ns > 0 && gain > 3 && tells_windows_apart(fit)) {
        snprintf(text, sizeof(text),
                 "a sensor window of %.0f ms leaves %.0f times less unexplained than the one given; check "
                 "the sensor's "
                 "shape (`kjoule calibrate`)",
                 best_ns / 1e6, gain);
        kj_model_warn(result, KJ_MODEL_WARN_WINDOW, text);
    }
}

/* The step of the training: what separates launches of the rarest kernel that comes again and again. 0: there
 * is none, or its distance varies by more than a hundredth, and then no sensor keeps step with it. */
static double guess_step_ns(const struct fit *fit)
{
    size_t count, classes = fit->input->class_count, rarest = classes;
    const struct kj_model_interval *sorted = kj_timeline_intervals(fit->timeline, &count);
    size_t *seen = calloc(classes + 1, sizeof(*seen)), n = 0, steady = 0;
    double *steps = malloc((count + 1) * sizeof(*steps)), before_ns = -1, middle_ns = 0;
    for (size_t i = 0; seen && i < count; i++)
        seen[sorted[i].class_index]++;
    for (size_t c = 0; seen && c < classes; c++)
        if (seen[c] >= STEPS_LEAST && (rarest == classes || seen[c] < seen[rarest]))
            rarest = c;
    for (size_t i = 0; steps && rarest < classes && i < count; i++)
        if (sorted[i].class_index == rarest) {
            if (before_ns >= 0)
                steps[n++] = (double)sorted[i].start_ns - before_ns;
            before_ns = (double)sorted[i].start_ns;
        }
    if (steps && n) {
        qsort(steps, n, sizeof(*steps), by_value);
        middle_ns = steps[n / 2];
        for (size_t i = 0; i < n; i++)
            steady += fabs(steps[i] / middle_ns - 1) < STEP_JITTER;
    }
    free(seen);
    free(steps);
    return 3 * steady > 2 * n ? middle_ns : 0;
}

/* One period that is, as good as, a whole multiple of the other, so that the sensor sees the same part of
 * every step all run long; a little off, it goes through the whole step before the run ends. A counter and a
 * window as long as its period miss nothing of a step that is longer than they are. */
static bool resonates(double step_ns, double period_ns, double window_ns, double run_ns, double walked_ns)
{
    if (step_ns > 1.05 * period_ns && window_ns > 0.8 * period_ns)
        return false;
    double longer_ns = fmax(step_ns, period_ns), ratio = longer_ns / fmin(step_ns, period_ns);
    double off = fabs(ratio - round(ratio));
    return off < RESONANCE && (off * run_ns + walked_ns) / longer_ns < 1;
}

static void check_resonance(const struct fit *fit, const double *windows_ns, struct kj_model_result *result)
{
    double step_ns = fit->input->step_ns ? (double)fit->input->step_ns : guess_step_ns(fit), at_ns = 0;
    double run_ns = (double)fit->input->end_ns - (double)fit->input->start_ns;
    for (size_t s = 0; step_ns > 0 && s < fit->input->series_count; s++) {
        const struct kj_sensor_series *series = &fit->input->series[s];
        struct kj_update *updates;
        struct kj_grid grid;
        kj_model_updates(series, &updates, &grid);
        free(updates);
        double window_ns = series->counter            ? grid.period_ns
                           : windows_ns[s] > 0        ? windows_ns[s]
                           : series->sensor.window_ns ? (double)series->sensor.window_ns
                                                      : KJ_WINDOW_UNKNOWN_NS;
        if (grid.period_ns <= 0 ||
            !resonates(step_ns, grid.period_ns, window_ns, run_ns, (double)fit->input->walked_ns))
            return; /* one that does not keep step is enough */
        at_ns = grid.period_ns;
    }
    char text[240];
    if (at_ns <= 0)
        return;
    snprintf(
        text, sizeof(text),
        "steps of %.1f ms keep step with a sensor renewed every %.1f ms, which so sees the same part of "
        "each; steps of another length, or short pauses (kjoule run --phase-walk), would tell the kernels "
        "apart",
        step_ns / 1e6, at_ns / 1e6);
    kj_model_warn(result, KJ_MODEL_WARN_RESONANCE, text);
}

static int fit_and_publish(struct fit *fit, const struct kj_model_options *options, const double *windows_ns,
                           struct kj_model_result *result)
{
    bool solved;
    int status = kj_fit_all(fit, options->method, windows_ns, &solved);
    return status || !solved ? status : kj_fit_publish(fit, options, result);
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
    status = kj_fit_open(&fit, input, result) ? 0 : -ENOMEM;
    if (!status)
        fit.plain = true, check_window(&fit, options, windows_ns, result);
    size_t count = status ? 0 : kj_model_rows(input, windows_ns, NULL, &rows);
    result->sensors = calloc(input->series_count + 1, sizeof(*result->sensors));
    for (size_t s = 0; result->sensors && s < input->series_count; s++) {
        result->sensors[s] = input->series[s].sensor;
        if (windows_ns[s] > 0)
            result->sensors[s].window_ns = (uint64_t)windows_ns[s];
        result->sensor_count = input->series_count;
    }
    bool enough = count >= KJ_ROWS_LEAST, bayes = options->method == KJ_MODEL_BAYES;
    if (!status && !enough)
        kj_model_warn(
            result, KJ_MODEL_WARN_COVERAGE,
            "too few sensor updates fall into the timeline; energy is shared by time, give or take what "
            "kernels differ by");
    if (!status && enough && bayes)
        check_resonance(&fit, windows_ns, result);
    if (!status && (enough || bayes))
        status = fit_and_publish(&fit, options, windows_ns, result);
    free(rows);
    free(windows_ns);
    kj_fit_close(&fit);
    return status;
}
