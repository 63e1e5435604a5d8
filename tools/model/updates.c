/* SPDX-License-Identifier: Apache-2.0
 *
 * updates.c - when a sensor's value was renewed. A poll sees a new value some time after it appeared; sensors
 * renew on a grid, so all polls together tell where the grid lies much better than each its own update: the
 * likeliest grid for the moments between which each update was first seen. Where polls keep step with the
 * sensor, as 20 ms do with 100 ms, that leaves much open, and the sd says so.
 */
#include "model/normal.h"
#include "model/parts.h"

#include <math.h>
#include <stdlib.h>

#define JITTER_NS      1e6 /* of an update around its grid, 1 sigma, before the looks say more */
#define LOOK_NS        5e4 /* a look of the recorder takes as long */
#define JITTER_LOG_SD  0.7 /* of what is known of that before */
#define JITTER_STEP    0.23
#define JITTER_OFF_NS  3e6
#define LOOKS_APART    2    /* mean distances of looks about the grid: what they can tell of a jitter */
#define SETTLED        1e-3 /* of a jitter: Newton's steps are at their end */
#define GRID_OFF_SHARE 0.1  /* of the updates may miss the grid before it is not believed */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof(*values), by_value);
    return count ? values[count / 2] : 0;
}

/* Where a grid may lie: update i at middle + half x place[i] + base[i], each between two polls, give or take
 * the jitter. */
struct grid_fit {
    const struct kj_update *updates;
    double *base, *place; /* place: -1 .. 1 */
    size_t count;
    double middle_ns, half_ns;
    double curve[3]; /* negative second derivatives of the log-likelihood: mm, mh, hh */
};

/* Log-likelihood of one update that lies `to` before the poll that saw it and `from` before the last that did
 * not, in units of jitter; and its derivatives by the time of the update. Farther than three jitters outside
 * of the two, the tail goes on straight: one late update shall not move the grid. */
static double one_update(double from, double to, double *ret_slope, double *ret_curve)
{
    double past = from > 3 ? from - 3 : to < -3 ? -3 - to : 0, sign = from > 3 ? 1 : -1;
    from -= sign * past, to -= sign * past;
    double inside = fmax(kj_normal_below(to) - kj_normal_below(from), 1e-12);
    double at_from = exp(-0.5 * from * from) / sqrt(2 * M_PI), at_to = exp(-0.5 * to * to) / sqrt(2 * M_PI);
    double slope = -(at_to - at_from) / inside;
    *ret_slope = slope;
    *ret_curve = past > 0 ? 1e-3 : (to * at_to - from * at_from) / inside + slope * slope;
    return log(inside) - fabs(slope) * past;
}

/* Newton's steps on a concave function, at most so many. Returns the log-likelihood. */
static double improve(struct grid_fit *fit, double jitter_ns, size_t steps)
{
    double sum = 0;
    for (size_t step = 0; step <= steps; step++) {
        double gm = 0, gh = 0, *c = fit->curve;
        c[0] = c[1] = c[2] = sum = 0;
        for (size_t i = 0; i < fit->count; i++) {
            double at = fit->base[i] + fit->middle_ns + fit->half_ns * fit->place[i], slope, curve;
            sum += one_update((fit->updates[i].after_ns - at) / jitter_ns,
                              (fit->updates[i].seen_ns - at) / jitter_ns, &slope, &curve);
            gm += slope / jitter_ns, gh += slope / jitter_ns * fit->place[i];
            curve /= jitter_ns * jitter_ns;
            c[0] += curve, c[1] += curve * fit->place[i], c[2] += curve * fit->place[i] * fit->place[i];
        }
        double ridge = 1e-4 * (double)fit->count / (jitter_ns * jitter_ns);
        double a = c[0] + ridge, d = c[2] + ridge, determinant = a * d - c[1] * c[1];
        double middle_ns = fmin(fmax((d * gm - c[1] * gh) / determinant, -2 * jitter_ns), 2 * jitter_ns);
        double half_ns = fmin(fmax((a * gh - c[1] * gm) / determinant, -2 * jitter_ns), 2 * jitter_ns);
        if (step == steps || fmax(fabs(middle_ns), fabs(half_ns)) < SETTLED * jitter_ns)
            break;
        fit->middle_ns += middle_ns;
        fit->half_ns += half_ns;
    }
    return sum;
}

/* The likeliest grid, coarse to fine; and the jitter, from how well each explains the looks, the grid's place
 * and length integrated out (Laplace), for they take up some of it. *ret_sd: relative, of the jitter. Looks
 * that are far apart say little of it, and then it is the usual. Some sensors keep their grid to a clock's
 * tick; less than the nearest looks leave open about the grid is not looked at, for there all are as likely.
 */
static double likeliest(struct grid_fit *fit, double look_ns, double usual_ns, double *ret_sd)
{
    enum { LESS_MOST = 16, MORE = 6, JITTERS = LESS_MOST + 1 + MORE };
    double nearest = 0; /* looks per ns about where the grid may lie */
    for (size_t i = 0; i < fit->count; i++)
        nearest += 1 / (fit->updates[i].seen_ns - fit->updates[i].after_ns);
    double least_ns = fmin(LOOKS_APART / nearest, usual_ns);
    size_t least = LESS_MOST - (size_t)fmin(log(usual_ns / least_ns) / JITTER_STEP, LESS_MOST);
    double found[JITTERS], best = -INFINITY, sum = 0, mean = 0, square = 0;
    for (double blur_ns = fmax(look_ns, usual_ns); blur_ns > 1.5 * usual_ns; blur_ns *= 0.6)
        improve(fit, blur_ns, 4);
    for (size_t k = JITTERS; k-- > least;) { /* the narrow peak of a small one is found from the wide ones */
        double log_times = ((double)k - LESS_MOST) * JITTER_STEP, z = log_times / JITTER_LOG_SD;
        found[k] = improve(fit, usual_ns * exp(log_times), 12) - 0.5 * z * z;
        double curve = fit->curve[0] * fit->curve[2] - fit->curve[1] * fit->curve[1];
        found[k] -= 0.5 * log(fmax(curve, pow(look_ns, -4))); /* no wider than the looks */
        best = fmax(best, found[k]);
    }
    for (size_t k = least; k < JITTERS; k++) {
        double log_times = ((double)k - LESS_MOST) * JITTER_STEP, weight = exp(found[k] - best);
        sum += weight, mean += weight * log_times, square += weight * log_times * log_times;
    }
    mean /= sum;
    *ret_sd = sqrt(fmax(square / sum - mean * mean, JITTER_STEP * JITTER_STEP / 12));
    improve(fit, usual_ns * exp(mean), 12);
    return usual_ns * exp(mean);
}

/* How often the sensor renews, roughly. Where looks are nearly as far apart as renewals, what is seen of
 * them comes after one look or two, and only their mean says anything. */
static double usual_period(const struct kj_update *updates, size_t count)
{
    double *steps = malloc((count + 1) * sizeof(*steps)), *looks = malloc((count + 1) * sizeof(*looks));
    double period_ns = 0, sum = 0, n = 0;
    for (size_t i = 1; steps && looks && i < count; i++) {
        steps[i - 1] = updates[i].t_ns - updates[i - 1].t_ns;
        looks[i - 1] = updates[i].seen_ns - updates[i].after_ns;
    }
    if (steps && looks && count > 4) {
        double middle = median(steps, count - 1);
        bool coarse = middle < 2.5 * median(looks, count - 1);
        for (size_t i = 0; i + 1 < count; i++)
            if (coarse ? steps[i] < 3 * middle : steps[i] > 0.5 * middle && steps[i] < 1.5 * middle)
                sum += steps[i], n++;
        period_ns = n > 0 ? sum / n : middle;
    }
    free(steps);
    free(looks);
    return period_ns;
}

/* Numbers the updates: each is so many periods after the last as brings it between its two looks. */
static void number_updates(const struct kj_update *updates, size_t count, double period_ns, double *ret_place)
{
    double at_ns = (updates[0].after_ns + updates[0].seen_ns) / 2;
    ret_place[0] = 0;
    for (size_t i = 1; i < count; i++) {
        double middle_ns = (updates[i].after_ns + updates[i].seen_ns) / 2;
        double steps = fmax(1, round((middle_ns - at_ns) / period_ns));
        at_ns = fmin(fmax(at_ns + steps * period_ns, updates[i].after_ns), updates[i].seen_ns);
        ret_place[i] = ret_place[i - 1] + steps;
    }
}

/* Places all updates on one grid, if they keep one. */
static struct kj_grid fit_grid(struct kj_update *updates, size_t count, double period_ns)
{
    struct grid_fit fit = {.updates = updates, .count = count};
    struct kj_grid grid = {0};
    double n_sum = 0, t_sum = 0, nn = 0, nt = 0, look_ns = 0, first_ns = updates[0].t_ns;
    fit.base = malloc(count * sizeof(double));
    fit.place = malloc(count * sizeof(double));
    if (fit.base && fit.place)
        number_updates(updates, count, period_ns, fit.place);
    for (size_t i = 0; fit.base && fit.place && i < count; i++) {
        n_sum += fit.place[i];
        t_sum += (updates[i].seen_ns + updates[i].after_ns) / 2 - first_ns;
        look_ns += (updates[i].seen_ns - updates[i].after_ns) / (double)count;
    }
    if (fit.base && fit.place) {
        double n_mean = n_sum / (double)count, t_mean = t_sum / (double)count, last = fit.place[count - 1];
        for (size_t i = 0; i < count; i++) {
            nn += (fit.place[i] - n_mean) * (fit.place[i] - n_mean);
            nt += (fit.place[i] - n_mean) *
                  ((updates[i].seen_ns + updates[i].after_ns) / 2 - first_ns - t_mean);
        }
        double slope = nn > 0 ? nt / nn : period_ns, off = 0;
        for (size_t i = 0; i < count; i++) {
            fit.base[i] = first_ns + t_mean + (fit.place[i] - n_mean) * slope;
            fit.place[i] = 2 * fit.place[i] / fmax(last, 1) - 1;
        }
        grid.jitter_ns = likeliest(&fit, look_ns, fmin(JITTER_NS, period_ns / 20), &grid.jitter_sd);
        double determinant = fit.curve[0] * fit.curve[2] - fit.curve[1] * fit.curve[1];
        double most_ns = look_ns / sqrt(12) + grid.jitter_ns;
        grid.sd_ns = determinant > 0 ? fmin(sqrt(fit.curve[2] / determinant), most_ns) : most_ns;
        grid.stretch_sd_ns = determinant > 0 ? fmin(sqrt(fit.curve[0] / determinant), most_ns) : most_ns;
        for (size_t i = 0; i < count; i++) {
            double at = fit.base[i] + fit.middle_ns + fit.half_ns * fit.place[i];
            double slack = fmax(0.05 * period_ns, JITTER_OFF_NS);
            off += at < updates[i].after_ns - slack || at > updates[i].seen_ns + slack;
            fit.base[i] = at;
        }
        if (off <= GRID_OFF_SHARE * (double)count) {
            grid.period_ns = slope + 2 * fit.half_ns / fmax(last, 1);
            for (size_t i = 0; i < count; i++)
                updates[i].t_ns = fit.base[i];
        }
    }
    free(fit.base);
    free(fit.place);
    return grid;
}

/* Nothing to find: each reading is an update, at its time. */
static size_t own_updates(const struct kj_sensor_series *series, struct kj_update *updates,
                          struct kj_grid *grid)
{
    double *steps = malloc((series->count + 1) * sizeof(*steps));
    for (size_t i = 0; i < series->count; i++) {
        updates[i] = (struct kj_update){.t_ns = (double)series->readings[i].t_ns,
                                        .value = (double)series->readings[i].value};
        if (i && steps)
            steps[i - 1] = updates[i].t_ns - updates[i - 1].t_ns;
    }
    if (steps && series->count > 8)
        grid->period_ns = median(steps, series->count - 1);
    free(steps);
    return series->count;
}

size_t kj_model_updates(const struct kj_sensor_series *series, struct kj_update **ret_updates,
                        struct kj_grid *ret_grid)
{
    struct kj_update *updates = malloc((series->count + 1) * sizeof(*updates));
    size_t count = 0;
    double stamp_ns = series->stamp_ns > 0 ? series->stamp_ns : LOOK_NS;
    *ret_grid = (struct kj_grid){0};
    if (series->own_times && updates) {
        *ret_updates = updates;
        return own_updates(series, updates, ret_grid);
    }
    for (size_t i = 1; updates && i < series->count; i++) {
        const struct kj_reading *now = &series->readings[i], *before = now - 1;
        if (now->value == before->value || (series->counter && now->value < before->value))
            continue;
        updates[count++] = (struct kj_update){.t_ns = (double)now->t_ns,
                                              .after_ns = (double)before->t_ns - stamp_ns,
                                              .seen_ns = (double)now->t_ns + stamp_ns,
                                              .value = (double)now->value};
    }
    double period_ns =
        series->sensor.period_ns ? (double)series->sensor.period_ns : usual_period(updates, count);
    if (count > 8 && period_ns > 0)
        *ret_grid = fit_grid(updates, count, period_ns);
    for (size_t i = 0; i < count && ret_grid->period_ns <= 0;
         i++) { /* in the middle of where it may have been */
        ret_grid->jitter_ns =
            fmax(ret_grid->jitter_ns, (updates[i].seen_ns - updates[i].after_ns) / sqrt(12));
        ret_grid->sd_ns = ret_grid->stretch_sd_ns = JITTER_NS;
        updates[i].t_ns = (updates[i].seen_ns + updates[i].after_ns) / 2;
    }
    *ret_updates = updates;
    return updates ? count : 0;
}
