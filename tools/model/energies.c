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
#define CLAIMED_SD        0.03 /* of a class's energy, 1 sigma: 2.5 % on average */
#define SEEN_LEAST        0.1

/* Of one draw: all energies, made to add up: uJ by class, last the idle energy. Beside untimed launches they
 * are no more than the target, and may be less. Returns idle power as scaled. */
static double energies(const struct fit *fit, const struct kj_model_result *result, const double *theta,
                       const double *power_mw, const double *times_ns, double bare_ns, double target_uj,
                       double *ret_uj)
{
    size_t count = fit->input->class_count;
    double sum = 0;
    for (size_t c = 0; c < count; c++) {
        ret_uj[c] = times_ns[c] * (power_mw[c] + theta[0] * fit->static_share[c]) * 1e-6;
        sum += ret_uj[c];
    }
    double level = result->bare_mw > 0 ? fmin(result->bare_mw, theta[0]) : theta[0];
    ret_uj[count] = (level * bare_ns + theta[0] * fmax(result->idle_ns - bare_ns, 0)) * 1e-6;
    sum += ret_uj[count];
    double scale = sum > 0 ? target_uj / sum : 0;
    scale = result->untimed ? fmin(scale, 1) : scale;
    for (size_t c = 0; c <= count; c++)
        ret_uj[c] *= scale;
    return theta[0] * scale;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Draws of one energy in, in any order; gains: of the sensor, as many. Sorts the draws. */
struct kj_model_estimate kj_model_estimate_of(int64_t energy_uj, double *draws, const double *gains,
                                              size_t count)
{
    double mean = 0, square = 0;
    for (size_t i = 0; i < count; i++)
        mean += draws[i] / (double)count;
    for (size_t i = 0; i < count; i++)
        square += (draws[i] - mean) * (draws[i] - mean) / (double)count;
    for (size_t i = 0; i < count; i++)
        draws[i] /= gains[i];
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

/* What share the data would have in the answer, beside a prior as narrow as the accuracy that is claimed: R =
 * information of the data / (that + 1 / claimed variance). loose: the sd without bounds, for what a bound
 * tells is not told by the data. */
double kj_model_identifiability(const struct kj_model_estimate *e, double prior_uj, double loose_uj)
{
    double claimed = CLAIMED_SD * (double)e->energy_uj, sd = fmax(fmax(e->sd_uj, loose_uj), 1e-3 * claimed);
    double of_data = fmax(1 / (sd * sd) - 1 / fmax(prior_uj * prior_uj, 1), 0);
    return claimed > 0 ? of_data / (of_data + 1 / (claimed * claimed)) : 0;
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

/* What is wanted is what the launches did draw, not the mean that they vary around: the more of them the
 * sensors saw, the closer are the two. METHOD.md has the formula. 1: they are the same. */
static double seen_factor(const struct fit *fit, const struct kj_model_result *result, size_t c,
                          uint64_t launches)
{
    size_t i = fit->column_of[c], rows = 0;
    double variance = fit->inverse[i * fit->n + i], share = 0;
    (void)result;
    for (size_t s = 0; s < fit->input->series_count; s++) {
        rows += fit->noise[s].rows;
        share += (double)fit->noise[s].rows * fit->noise[s].share[KJ_NOISE_LAUNCH];
    }
    if (!rows || !launches || variance <= 0)
        return 1;
    double known = 1 - variance / (fit->prior_sd_mw[i] * fit->prior_sd_mw[i]);
    double realised = share / (double)rows * fit->m[i] * fit->m[i] / (double)launches;
    double factor2 = (variance - (2 * known - 1) * realised) / variance;
    return sqrt(fmin(fmax(factor2, SEEN_LEAST), 1));
}

/* Posterior draws of every class's energy, in rows of a class; the idle energy last. */
struct draws {
    size_t count;
    double *uj;        /* [class + 1][count], before the sensor's gain */
    double *static_mw; /* [count] idle power as scaled */
    double *gains;     /* [count] */
};

static void free_draws(struct draws *draws)
{
    free(draws->uj);
    free(draws->static_mw);
    free(draws->gains);
}

static uint64_t launches_of(const struct fit *fit, const struct kj_model_result *result, size_t c)
{
    const struct kj_model_class *class = &fit->input->classes[c];
    if (class->launches)
        return class->launches;
    return class->mean_ns > 0 ? (uint64_t)(result->classes[c].time_ns / class->mean_ns) : 0;
}

static int draw_energies(const struct fit *fit, const struct kj_model_result *result, const double *thetas,
                         double target_uj, struct draws *draws)
{
    size_t count = fit->input->class_count + 1;
    double *times_ns = malloc(count * sizeof(*times_ns)), *uj = malloc(count * sizeof(*uj));
    double *power_mw = malloc(count * sizeof(*power_mw)), *seen = malloc(count * sizeof(*seen));
    struct kj_draws random = {.state = 2};
    double bare_ns = kj_model_bare_ns(fit->input, result);
    draws->uj = malloc(count * draws->count * sizeof(double));
    draws->static_mw = malloc((draws->count + 1) * sizeof(double));
    draws->gains = malloc((draws->count + 1) * sizeof(double));
    bool ok = times_ns && uj && power_mw && seen && draws->uj && draws->static_mw && draws->gains;
    for (size_t c = 0; ok && c + 1 < count; c++)
        seen[c] = seen_factor(fit, result, c, launches_of(fit, result, c));
    for (size_t d = 0; ok && d < draws->count; d++) {
        const double *theta = thetas + d * fit->n;
        for (size_t c = 0; c + 1 < count; c++) {
            const struct kj_model_class *class = &fit->input->classes[c];
            size_t i = fit->column_of[c];
            double relative = class->timed > 1 && class->mean_ns > 0
                                  ? class->sd_ns / class->mean_ns / sqrt((double)class->timed)
                                  : 0;
            double ns = result->classes[c].time_ns, normal = kj_draw_normal(&random), sd_ns = relative * ns;
            if (class->time_high_ns > 0)
                sd_ns = (normal < 0 ? ns - kj_model_time_low_ns(fit->input, result, c)
                                    : kj_model_time_high_ns(fit->input, result, c) - ns) /
                        KJ_Z90;
            times_ns[c] = fmax(0, ns + sd_ns * normal);
            power_mw[c] = fit->m[i] + seen[c] * (theta[i] - fit->m[i]);
        }
        draws->static_mw[d] = energies(fit, result, theta, power_mw, times_ns, bare_ns, target_uj, uj);
        for (size_t c = 0; c < count; c++)
            draws->uj[c * draws->count + d] = uj[c];
        draws->gains[d] = fmax(result->residual_gain + result->gain_sd * kj_draw_normal(&random), 0.1);
    }
    free(times_ns);
    free(uj);
    free(power_mw);
    free(seen);
    return ok ? 0 : -ENOMEM;
}

/* Known less well than an estimate claims. */
static bool loose(const struct fit *fit, size_t i)
{
    return sqrt(fit->inverse[i * fit->n + i]) > CLAIMED_SD * (fit->m[i] + fit->m[0]);
}

/* Energies of columns as they vary together; [columns x columns], zero between columns that are known well,
 * for those need no group. */
static double *covariance_of_columns(const struct fit *fit)
{
    size_t n = fit->n, k = fit->columns;
    double *s = malloc((k * k + 1) * sizeof(*s));
    for (size_t i = 0; s && i < k; i++)
        for (size_t j = 0; j < k; j++) {
            bool both = i == j || (loose(fit, i + 1) && loose(fit, j + 1));
            double scale = fit->column_ns[i + 1] * fit->column_ns[j + 1];
            s[i * k + j] = both ? fit->inverse[(i + 1) * n + j + 1] * scale : 0;
        }
    return s;
}

/* Two columns or groups at a time, those whose errors mirror each other most, become one. */
static bool join_groups(const struct fit *fit, int32_t *group_of)
{
    size_t k = fit->columns;
    double *s = covariance_of_columns(fit);
    for (size_t joins = 0; s && joins < k; joins++) {
        double least = GROUP_CORRELATION;
        size_t a = 0, b = 0;
        for (size_t i = 0; i < k; i++)
            for (size_t j = 0; j < i; j++) {
                double scale = sqrt(s[i * k + i] * s[j * k + j]);
                if (scale > 0 && s[i * k + j] < least * scale)
                    least = s[i * k + j] / scale, a = j, b = i;
            }
        if (a == b)
            break;
        for (size_t i = 0; i < k; i++)
            s[a * k + i] += s[b * k + i], s[b * k + i] = 0;
        for (size_t i = 0; i < k; i++)
            s[i * k + a] += s[i * k + b], s[i * k + b] = 0;
        for (size_t i = 1; i <= k; i++)
            if (group_of[i] == (int32_t)b || i == b + 1 || i == a + 1)
                group_of[i] = (int32_t)a;
    }
    bool ok = s != NULL;
    free(s);
    return ok;
}

/* Classes that cannot be told apart: their sum, from the same draws. */
static int find_groups(const struct fit *fit, struct kj_model_result *result, const struct draws *draws)
{
    size_t count = fit->input->class_count, n = draws->count;
    int32_t *group_of = malloc((fit->columns + 1) * sizeof(*group_of));
    double *sums = malloc((n + 1) * sizeof(*sums));
    result->groups = calloc(fit->columns + 1, sizeof(*result->groups));
    for (size_t i = 0; group_of && i <= fit->columns; i++)
        group_of[i] = -1;
    int status = group_of && sums && result->groups && join_groups(fit, group_of) ? 0 : -ENOMEM;
    for (int32_t g = 0; !status && g < (int32_t)fit->columns; g++) {
        struct kj_model_group *group = &result->groups[result->group_count];
        double prior2 = 0;
        int64_t energy_uj = 0;
        memset(sums, 0, n * sizeof(*sums));
        for (size_t c = 0; c < count; c++) {
            size_t i = fit->column_of[c];
            if (group_of[i] != g)
                continue;
            group->members++;
            energy_uj += result->classes[c].energy.energy_uj;
            result->classes[c].group = (int32_t)result->group_count;
            prior2 += pow(fit->prior_sd_mw[i] * 1e-6 * result->classes[c].time_ns, 2);
            for (size_t d = 0; d < n; d++)
                sums[d] += draws->uj[c * n + d];
        }
        if (!group->members)
            continue;
        group->energy = kj_model_estimate_of(energy_uj, sums, draws->gains, n);
        group->identifiability = kj_model_identifiability(&group->energy, sqrt(prior2), 0);
        result->group_count++;
    }
    free(group_of);
    free(sums);
    return status;
}

/* Whole microjoules that add up: kernels, idle, and the classes among themselves. Beside untimed launches
 * what is left of the total is unattributed. */
static void publish_energies(struct kj_model_result *result, const double *uj, size_t count,
                             int64_t target_uj)
{
    double running = 0;
    int64_t given = 0;
    double all = uj[count];
    for (size_t c = 0; c < count; c++)
        all += uj[c];
    if (result->untimed) {
        target_uj = llround(fmin(all, (double)target_uj));
        result->unattributed_uj = result->total_uj - target_uj;
    }
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
    double rss = 0, reading = 0;
    for (size_t s = 0; s < fit->input->series_count; s++) {
        rss += fit->noise[s].residual2;
        reading += fit->noise[s].reading;
        result->rows += fit->noise[s].rows;
    }
    result->residual_rms_mw = result->rows ? sqrt(rss / (double)result->rows) : 0;
    result->residual_relative = reading > 0 ? result->residual_rms_mw * (double)result->rows / reading : 0;
}

static void warn_of_bounds(const struct fit *fit, struct kj_model_result *result)
{
    double sum_ns = 0;
    for (size_t i = 1; i <= fit->columns; i++)
        sum_ns += fit->column_ns[i];
    for (size_t i = 0; i <= fit->columns; i++)
        if (fit->held[i] && (!i || fit->column_ns[i] > 0.01 * sum_ns)) {
            kj_model_warn(result, KJ_MODEL_WARN_BOUND,
                          "a kernel's power wanted below zero or above the board's limit and was held there; "
                          "is the sensor's window right? `kjoule calibrate` measures it");
            return;
        }
}

static void publish_class(const struct fit *fit, struct kj_model_result *result, size_t c,
                          const struct draws *draws, double *dynamic)
{
    struct kj_model_class_result *class = &result->classes[c];
    size_t i = fit->column_of[c];
    double mean_uj = 0, static_s = class->time_ns * fit->static_share[c] * 1e-6;
    for (size_t d = 0; d < draws->count; d++) {
        dynamic[d] = fmax(draws->uj[c * draws->count + d] - draws->static_mw[d] * static_s, 0);
        mean_uj += dynamic[d] / (double)draws->count;
    }
    class->dynamic = kj_model_estimate_of(llround(mean_uj), dynamic, draws->gains, draws->count);
    (void)i;
    class->group = -1;
}

int kj_fit_publish(struct fit *fit, const struct kj_model_options *options, struct kj_model_result *result)
{
    size_t count = fit->input->class_count;
    struct draws draws = {.count = options->draws ? options->draws : DRAWS};
    int64_t target_uj = result->total_uj - (result->untimed ? 0 : result->unattributed_uj);
    double *uj = calloc(count + 1, sizeof(*uj)), *one = malloc((draws.count + 1) * sizeof(*one));
    double *thetas = kj_fit_draw(fit, options->method, draws.count);
    result->idle_mw = fit->m[0];
    result->idle_sd_mw = sqrt(fit->inverse[0]);
    reference_gain(fit->input, result);
    int status =
        uj && one && thetas ? draw_energies(fit, result, thetas, (double)target_uj, &draws) : -ENOMEM;
    if (!status) {
        for (size_t c = 0; c <= count; c++)
            for (size_t d = 0; d < draws.count; d++)
                uj[c] += draws.uj[c * draws.count + d] / (double)draws.count;
        publish_energies(result, uj, count, target_uj);
        for (size_t c = 0; c < count; c++)
            publish_class(fit, result, c, &draws, one);
        status = find_groups(fit, result, &draws);
        if (!status)
            status = kj_model_labels_by_draws(fit->input, result, fit->spread_mw, draws.uj, draws.gains,
                                              draws.count);
        for (size_t c = 0; c <= count; c++) {
            struct kj_model_estimate *e = c < count ? &result->classes[c].energy : &result->idle;
            *e = kj_model_estimate_of(c < count ? e->energy_uj : result->idle_uj, draws.uj + c * draws.count,
                                      draws.gains, draws.count);
            if (c == count)
                break;
            struct kj_model_class_result *class = &result->classes[c];
            double s = class->time_ns * 1e-6, alone = result->kernels_uj == e->energy_uj ? 0 : 1;
            size_t i = fit->column_of[c];
            class->identifiability =
                kj_model_identifiability(e, fit->prior_sd_mw[i] * s, alone * fit->loose_sd_mw[i] * s);
            class->method = class->identifiability >= KJ_R_ESTIMATED ? KJ_ESTIMATED : KJ_MODELLED;
        }
        publish_residuals(fit, result);
        warn_of_bounds(fit, result);
    }
    free(thetas);
    free(uj);
    free(one);
    free_draws(&draws);
    return status;
}
