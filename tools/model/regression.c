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
#include "model/fit.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    if (!unknown && best_ns > 0 && gain > 3) {
        snprintf(text, sizeof(text),
                 "a sensor window of %.0f ms leaves %.0f times less unexplained than the one given; check "
                 "the sensor's "
                 "shape (`kjoule calibrate`)",
                 best_ns / 1e6, gain);
        kj_model_warn(result, KJ_MODEL_WARN_WINDOW, text);
    }
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
    if (!status && count >= KJ_ROWS_LEAST) {
        status = fit_and_publish(&fit, options, windows_ns, result);
    } else if (!status) {
        kj_model_warn(result, KJ_MODEL_WARN_COVERAGE,
                      "too few sensor updates fall into the timeline; energy is shared by time");
    }
    free(rows);
    free(windows_ns);
    kj_fit_close(&fit);
    return status;
}
