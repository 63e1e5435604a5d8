/* SPDX-License-Identifier: Apache-2.0
 *
 * energies.c - from the posterior of powers to joules: draws, intervals, groups, and whole microjoules that
 * add up.
 */
#include "model/fit.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DRAWS = 1000 };
#define GROUP_CORRELATION -0.8
#define R_ESTIMATED       0.5

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

struct kj_model_estimate kj_model_estimate_of(int64_t energy_uj, double *draws, size_t count)
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
        *group = (struct kj_model_group){.energy = kj_model_estimate_of(energy_uj, sums, draw_count),
                                         .members = members};
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
        rss += kj_fit_rss(fit, &fit->series[s], false);
        mean += fit->series[s].rows ? fit->series[s].xy[0] : 0;
        rows += fit->series[s].rows;
    }
    result->rows = rows;
    result->residual_rms_mw = rows ? sqrt(rss / (double)rows) : 0;
    result->residual_relative = mean > 0 ? result->residual_rms_mw * (double)rows / mean : 0;
}

int kj_fit_publish(const struct fit *fit, const struct kj_model_options *options,
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
            class->energy = kj_model_estimate_of(class->energy.energy_uj, all + c * draws, draws);
            class->dynamic = class->energy;
            class->identifiability = fmin(
                fmax(1 - fit->inverse[i * fit->n + i] / (fit->prior_sd_mw[i] * fit->prior_sd_mw[i]), 0), 1);
            class->method = class->identifiability >= R_ESTIMATED ? KJ_ESTIMATED : KJ_MODELLED;
            class->group = -1;
        }
        status = find_groups(fit, result, all, draws);
        if (!status)
            status = kj_model_labels_by_draws(fit->input, result, fit->spread_mw, all, draws);
        result->idle = kj_model_estimate_of(result->idle_uj, all + count * draws, draws);
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
