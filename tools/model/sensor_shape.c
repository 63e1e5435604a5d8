/* SPDX-License-Identifier: Apache-2.0
 *
 * sensor_shape.c - the likelihood of windows and delays. Each row: reading = sum_j x_j(window, delay) p_j +
 * noise, x_j the mean of column j's curve over the window. The powers p_j have normal priors and are
 * integrated out in closed form; the noise is the likeliest of a grid. shape_columns.c has the columns.
 */
#include "model/sensor_shape.h"

#include "model/normal.h"
#include "model/parts.h"
#include "model/shape_columns.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_CAP = 400, FINE_LOADS = 12, ROWS_LEAST = 8 };

#define MS            1e6
#define DELAY_FROM_NS (-40 * MS)
#define DELAY_TO_NS   (60 * MS)
#define DELAY_MEAN_NS (5 * MS) /* a value appears some ms after its window ends */
#define DELAY_SD_NS   (10 * MS)
#define GIVEN_OFF_NS  (10 * MS)
#define STEP_NS       (2 * MS)
#define SLOPE_NS      (2 * MS)
#define JITTER_NS     (1 * MS) /* of an update around its grid */
#define NOISE_LEAST   0.002
#define LATE_MOST_NS  (40 * MS) /* a timeline written by a host sees the end late */
#define LATE_SD_NS    (20 * MS)
#define LATE_STEP_NS  (2 * MS)
/* Rows err together where loads do not start and stop as the columns have it, so likelihoods are believed
 * less than they say. */
#define BELIEVED_TIMELINE 0.2
#define BELIEVED_METER    0.5
#define TOLD_APART        3.0 /* in log likelihood, so tempered: 20 times likelier */
#define WRONG             5.0
#define WRONG_PER_ROW     0.0125 /* 10 % more variance: what does not matter is no misfit, however sure */
#define PERIOD_LONG_NS    (60 * MS)

static const double windows_ms[] = {5,  7,  10,  13,  17,  20,  25,  30,  35,  40,   50,   60,
                                    75, 90, 100, 125, 150, 200, 300, 500, 750, 1000, 1250, 1500};
enum { WINDOWS = sizeof(windows_ms) / sizeof(*windows_ms) };
/* Known sensors by how often they are renewed: 10/20 ms (Volta, Pascal); 25, 100 or 1,000 every 100 ms. */
static const double known_long_ms[] = {25, 100, 1000}, known_short_ms[] = {10};
static const double noises[] = {.001, .002, .004, .008, .015, .03, .06, .12};

struct rows {
    struct kj_update *updates;
    size_t count;
    double low_mw, high_mw;
    double jitter_ns, noise_mw; /* of an update's moment; of a reading, roughly */
    double first_ns, last_ns;   /* between these the truth is known */
};

const char *kj_shape_source_name(enum kj_shape_source source)
{
    static const char *const names[] = {"given", "trace", "trace and known sensors", "assumed"};
    return names[source];
}

static double between(const struct kj_curve *curve, double start_ns, double end_ns)
{
    return kj_curve_at(curve, end_ns) - kj_curve_at(curve, start_ns);
}

/* Log likelihood of the rows, powers integrated out. -DBL_MAX: too few. */
static double likelihood(const struct kj_shape_columns *c, const struct rows *rows, double window_ns,
                         double delay_ns, double *ret_mean, double *ret_sd, double *ret_noise_mw)
{
    size_t n = c->count, used = 0;
    double xx[KJ_SHAPE_COLUMNS * KJ_SHAPE_COLUMNS] = {0}, xr[KJ_SHAPE_COLUMNS] = {0}, rr = 0, log_weights = 0,
                                 best = -DBL_MAX;
    for (size_t i = 0; i < rows->count; i++) {
        double x[KJ_SHAPE_COLUMNS] = {1}, end_ns = rows->updates[i].t_ns - delay_ns,
               start_ns = end_ns - window_ns;
        if (start_ns < rows->first_ns || end_ns > rows->last_ns)
            continue;
        double residual = rows->updates[i].value - c->mean[0], slope = 0;
        for (size_t j = 1; j < n; j++) {
            x[j] = between(&c->curve[j], start_ns, end_ns) / window_ns;
            residual -= x[j] * c->mean[j];
            if (c->mean[j] > 0)
                slope += c->mean[j] * (between(&c->curve[j], end_ns - SLOPE_NS, end_ns + SLOPE_NS) -
                                       between(&c->curve[j], start_ns - SLOPE_NS, start_ns + SLOPE_NS));
        }
        /* A reading at an edge says as much less as it is not known when exactly it was renewed. */
        slope *= rows->jitter_ns / (2 * SLOPE_NS * window_ns * rows->noise_mw);
        double weight = 1 / (1 + slope * slope);
        for (size_t j = 0; j < n; j++) {
            xr[j] += weight * x[j] * residual;
            for (size_t k = 0; k <= j; k++)
                xx[j * n + k] += weight * x[j] * x[k];
        }
        rr += weight * residual * residual;
        log_weights += .5 * log(weight);
        used++;
    }
    if (used < ROWS_LEAST)
        return -DBL_MAX;
    for (size_t k = 0; k < sizeof(noises) / sizeof(*noises); k++) {
        double l[KJ_SHAPE_COLUMNS * KJ_SHAPE_COLUMNS], m[KJ_SHAPE_COLUMNS],
            noise_mw = noises[k] * rows->high_mw + 1;
        double s2 = noise_mw * noise_mw, log_det = 0, gained = 0;
        for (size_t j = 0; j < n; j++) {
            m[j] = xr[j] / s2;
            for (size_t i = 0; i <= j; i++)
                l[j * n + i] = xx[j * n + i] / s2;
            l[j * n + j] += 1 / (c->sd[j] * c->sd[j]);
        }
        if (!kj_cholesky(l, n))
            continue;
        kj_cholesky_solve(l, n, m);
        for (size_t j = 0; j < n; j++) {
            gained += m[j] * xr[j] / s2;
            log_det += 2 * log(l[j * n + j] * c->sd[j]);
        }
        /* of the mean over the rows, so that windows which leave out a row at the edge compare */
        double log_l = (-0.5 * (rr / s2 - gained) - (double)used * log(noise_mw) + log_weights) *
                           (double)rows->count / (double)used -
                       0.5 * log_det;
        if (log_l <= best)
            continue;
        best = log_l;
        if (ret_noise_mw)
            *ret_noise_mw = noise_mw;
        if (ret_mean) {
            double inverse[KJ_SHAPE_COLUMNS * KJ_SHAPE_COLUMNS];
            kj_cholesky_inverse(l, n, inverse);
            for (size_t j = 0; j < n; j++) {
                ret_mean[j] = c->mean[j] + m[j];
                ret_sd[j] = sqrt(inverse[j * n + j]);
            }
        }
    }
    return best;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The updates, thinned where there are very many, and what range they span. */
static int open_rows(const struct kj_sensor_series *series, struct rows *rows, double *ret_period_ns)
{
    struct kj_grid grid;
    size_t all = kj_model_updates(series, &rows->updates, &grid), step = all / ROWS_CAP + 1;
    double *sorted = malloc((all + 1) * sizeof(*sorted));
    if (!sorted || !rows->updates) {
        free(sorted);
        return -ENOMEM;
    }
    for (size_t i = 0; i + 1 < all; i++)
        sorted[i] = rows->updates[i + 1].t_ns - rows->updates[i].t_ns;
    qsort(sorted, all ? all - 1 : 0, sizeof(*sorted), by_value);
    *ret_period_ns = grid.period_ns > 0 ? grid.period_ns : all > 1 ? sorted[(all - 1) / 2] : 0;
    rows->count = 0;
    for (size_t i = 0; i < all; i += step)
        rows->updates[rows->count++] = rows->updates[i];
    for (size_t i = 0; i < rows->count; i++)
        sorted[i] = rows->updates[i].value;
    qsort(sorted, rows->count, sizeof(*sorted), by_value);
    rows->low_mw = rows->count ? sorted[rows->count / 50] : 0;
    rows->high_mw = rows->count ? sorted[rows->count - 1 - rows->count / 50] : 0;
    /* and what the steps of the search skip */
    rows->jitter_ns = hypot(JITTER_NS, hypot(STEP_NS, LATE_STEP_NS) / sqrt(12));
    size_t bends = 0;
    for (size_t i = 2; i < rows->count; i++)
        sorted[bends++] =
            fabs(rows->updates[i].value - 2 * rows->updates[i - 1].value + rows->updates[i - 2].value);
    qsort(sorted, bends, sizeof(*sorted), by_value);
    rows->noise_mw = fmax(bends ? sorted[bends / 2] / (.6745 * sqrt(6)) : 0, NOISE_LEAST * rows->high_mw + 1);
    free(sorted);
    return rows->count >= ROWS_LEAST ? 0 : -ENODATA;
}

/* What is summed up while windows, delays and late ends are gone through. */
struct search {
    double log_l[WINDOWS + 1]; /* marginal; the last is that of the window given */
    double window_ns[WINDOWS + 1];
    double delay[WINDOWS + 1], delay2[WINDOWS + 1], late[WINDOWS + 1], weight[WINDOWS + 1], top[WINDOWS + 1];
    double best_noise_mw[WINDOWS + 1], best_delay_ns[WINDOWS + 1];
    double from_ns, to_ns, step_ns, mean_ns, sd_ns;
    double believed;
};

static void open_search(const struct kj_shape_question *question, double believed, struct search *search)
{
    const struct kj_sensor *sensor = &question->series->sensor;
    *search = (struct search){.believed = believed,
                              .from_ns = DELAY_FROM_NS,
                              .to_ns = DELAY_TO_NS,
                              .step_ns = STEP_NS,
                              .sd_ns = DELAY_SD_NS,
                              .mean_ns = DELAY_MEAN_NS};
    if (question->delay_to_ns > question->delay_from_ns) {
        search->from_ns = question->delay_from_ns;
        search->to_ns = question->delay_to_ns;
        search->sd_ns = 1e3 * (search->to_ns - search->from_ns); /* clocks may differ by anything */
    }
    /* A delay that is given is off by a few ms like any other; a window is not wrong for that. */
    if (question->delay_given) {
        search->mean_ns = (double)sensor->delay_ns;
        search->from_ns = search->mean_ns - GIVEN_OFF_NS;
        search->to_ns = search->mean_ns + GIVEN_OFF_NS;
    }
    for (int w = 0; w <= WINDOWS; w++) {
        search->window_ns[w] = w < WINDOWS ? windows_ms[w] * MS : (double)sensor->window_ns;
        search->top[w] = -DBL_MAX;
    }
}

/* Adds the part of one late end to the marginal of each window (weights relative to the largest so far). */
static void look(struct search *search, const struct kj_shape_columns *columns, const struct rows *rows,
                 double late_ns)
{
    for (int w = 0; w <= WINDOWS; w++)
        for (double d = search->from_ns; search->window_ns[w] > 0 && d <= search->to_ns;
             d += search->step_ns) {
            double noise_mw,
                log_l = likelihood(columns, rows, search->window_ns[w], d, NULL, NULL, &noise_mw);
            if (log_l == -DBL_MAX)
                continue;
            log_l = search->believed * log_l - 0.5 * pow(late_ns / LATE_SD_NS, 2);
            log_l -= 0.5 * pow((d - search->mean_ns) / search->sd_ns, 2);
            double scale = 1;
            if (log_l > search->top[w]) {
                scale = search->top[w] == -DBL_MAX ? 0 : exp(search->top[w] - log_l);
                search->top[w] = log_l;
                search->best_noise_mw[w] = noise_mw;
                search->best_delay_ns[w] = d;
            }
            double weight = exp(log_l - search->top[w]);
            search->weight[w] = search->weight[w] * scale + weight;
            search->delay[w] = search->delay[w] * scale + weight * d;
            search->delay2[w] = search->delay2[w] * scale + weight * d * d;
            search->late[w] = search->late[w] * scale + weight * late_ns;
        }
}

/* Which of the windows that are known of such sensors fits best; ret_other: another one that fits nearly as
 * well, 0 none. */
static int best_known(const struct search *search, double period_ns, double *ret_other_ns)
{
    bool slow = period_ns > PERIOD_LONG_NS;
    const double *known = slow ? known_long_ms : known_short_ms;
    int best = -1;
    for (int k = 0; k < (slow ? 3 : 1); k++)
        for (int w = 0; w < WINDOWS; w++)
            if (windows_ms[w] == known[k] && search->weight[w] > 0 &&
                (best < 0 || search->log_l[w] > search->log_l[best]))
                best = w;
    *ret_other_ns = 0;
    for (int k = 0; k < (slow ? 3 : 1) && best >= 0; k++)
        for (int w = 0; w < WINDOWS; w++)
            if (w != best && windows_ms[w] == known[k] && search->weight[w] > 0 &&
                search->log_l[w] > search->log_l[best] - TOLD_APART)
                *ret_other_ns = search->window_ns[w];
    return best;
}

/* 90 % of the windows by the trace alone, all of the grid alike before: from and to the midpoints between
 * those that are out and those that are in. */
static void interval(const struct search *search, int best, struct kj_sensor_shape *shape)
{
    double all = 0, below = 0;
    int low = 0, high = WINDOWS - 1;
    for (int w = 0; w < WINDOWS; w++)
        all += search->weight[w] > 0 ? exp(search->log_l[w] - search->log_l[best]) : 0;
    for (int w = 0; w < WINDOWS; w++) {
        double share = search->weight[w] > 0 ? exp(search->log_l[w] - search->log_l[best]) / all : 0;
        if (below < .05 && below + share >= .05)
            low = w;
        if (below < .95 && below + share >= .95)
            high = w;
        below += share;
    }
    shape->window_low_ns = low ? sqrt(search->window_ns[low] * search->window_ns[low - 1]) : 0;
    shape->window_high_ns = high + 1 < WINDOWS ? sqrt(search->window_ns[high] * search->window_ns[high + 1])
                                               : search->window_ns[high];
}

/* From the marginals to the answer. Returns the index of the window that is used. */
static int decide(const struct kj_shape_question *question, struct search *search, size_t rows,
                  struct kj_sensor_shape *shape)
{
    int best = -1, worst = -1;
    for (int w = 0; w <= WINDOWS; w++) {
        search->log_l[w] =
            search->weight[w] > 0 ? search->top[w] + log(search->weight[w] * search->step_ns / MS) : -DBL_MAX;
        if (w == WINDOWS || search->weight[w] <= 0)
            continue;
        if (best < 0 || search->log_l[w] > search->log_l[best])
            best = w;
        if (worst < 0 || search->log_l[w] < search->log_l[worst])
            worst = w;
    }
    if (best < 0)
        return -1;
    interval(search, best, shape);
    shape->best_window_ns = search->window_ns[best];
    int known = best_known(search, (double)shape->sensor.period_ns, &shape->other_window_ns), use = best;
    shape->window_source = KJ_SHAPE_TRACE;
    if (shape->other_window_ns > 0) { /* what is not ruled out does not lie outside */
        shape->window_low_ns = fmin(shape->window_low_ns, shape->other_window_ns);
        shape->window_high_ns = fmax(shape->window_high_ns, shape->other_window_ns);
    }
    if (known >= 0 && search->log_l[known] > search->log_l[best] - TOLD_APART) {
        use = known;
        shape->window_source = known == best && search->log_l[best] - search->log_l[worst] > WRONG &&
                                       shape->window_high_ns < 2 * shape->window_low_ns
                                   ? KJ_SHAPE_TRACE
                                   : KJ_SHAPE_TRACE_KNOWN;
    }
    if (search->log_l[best] - search->log_l[worst] < TOLD_APART) {
        shape->window_source = KJ_SHAPE_ASSUMED; /* steady power: all windows read the same */
        for (int w = 0; w < WINDOWS; w++)
            if (search->window_ns[w] == KJ_WINDOW_UNKNOWN_NS && search->weight[w] > 0)
                use = w;
    }
    if (question->series->sensor.window_ns || shape->window_source != KJ_SHAPE_TRACE_KNOWN)
        shape->other_window_ns = 0;
    if (question->series->sensor.window_ns) {
        use = WINDOWS;
        shape->window_source = KJ_SHAPE_GIVEN;
        shape->evidence = search->log_l[WINDOWS] == -DBL_MAX
                              ? WRONG
                              : fmax(search->log_l[best] - search->log_l[WINDOWS], 0);
        shape->misfit = shape->evidence > fmax(WRONG, WRONG_PER_ROW * (double)rows);
    }
    return use;
}

static void fill_in(const struct kj_shape_question *question, const struct search *search, int use,
                    struct kj_sensor_shape *shape)
{
    shape->sensor.window_ns = (uint64_t)llround(search->window_ns[use]);
    if (search->weight[use] <= 0)
        return;
    if (!question->delay_given)
        shape->delay_ns = search->delay[use] / search->weight[use];
    shape->ends_late_ns = search->late[use] / search->weight[use];
    shape->delay_sd_ns =
        question->delay_given
            ? 0
            : hypot(sqrt(fmax(search->delay2[use] / search->weight[use] - shape->delay_ns * shape->delay_ns,
                              0)),
                    STEP_NS / sqrt(12));
    shape->rms_mw = search->best_noise_mw[use];
    if (!question->delay_given)
        shape->sensor.delay_ns = shape->delay_ns > 0 ? (uint64_t)llround(shape->delay_ns) : 0;
}

/* What is used where the readings say nothing. */
static void assume(const struct kj_shape_question *question, struct kj_sensor_shape *shape)
{
    *shape = (struct kj_sensor_shape){
        .sensor = question->series->sensor,
        .window_source = question->series->sensor.window_ns ? KJ_SHAPE_GIVEN : KJ_SHAPE_ASSUMED,
        .delay_source = question->delay_given ? KJ_SHAPE_GIVEN : KJ_SHAPE_ASSUMED,
        .delay_ns = (double)question->series->sensor.delay_ns,
        .window_high_ns = windows_ms[WINDOWS - 1] * MS};
    if (!shape->sensor.window_ns)
        shape->sensor.window_ns = (uint64_t)KJ_WINDOW_UNKNOWN_NS;
}

static int open_question(const struct kj_shape_question *question, struct rows *rows,
                         struct kj_sensor_shape *shape)
{
    double period_ns;
    assume(question, shape);
    *rows = (struct rows){0};
    int status = open_rows(question->series, rows, &period_ns);
    if (status == -ENOMEM)
        return status;
    if (!shape->sensor.period_ns)
        shape->sensor.period_ns = (uint64_t)llround(period_ns);
    shape->rows = rows->count;
    return status;
}

int kj_sensor_shape_infer(const struct kj_model_input *input, const struct kj_shape_question *question,
                          struct kj_sensor_shape *ret_shape)
{
    struct rows rows;
    struct kj_shape_timeline timeline = {0};
    struct kj_shape_columns columns;
    struct search search;
    int status = open_question(question, &rows, ret_shape);
    if (!status)
        status = kj_shape_timeline_open(input, &timeline);
    if (!status) {
        rows.first_ns = (double)input->start_ns;
        rows.last_ns = (double)input->end_ns;
        open_search(question, BELIEVED_TIMELINE, &search);
        bool wide = question->delay_to_ns > question->delay_from_ns;
        bool fine = !wide && timeline.load_count <= FINE_LOADS && input->interval_count <= FINE_LOADS * 16;
        double most_ns = fine ? LATE_MOST_NS : 0;
        for (double late = -most_ns; late <= most_ns && !status; late += LATE_STEP_NS) {
            status = kj_shape_columns_open(&timeline, rows.low_mw, rows.high_mw, late, &columns);
            if (!status)
                look(&search, &columns, &rows, late);
            kj_shape_columns_close(&columns);
        }
        int use = status ? -1 : decide(question, &search, rows.count, ret_shape);
        if (use >= 0) {
            fill_in(question, &search, use, ret_shape);
            if (!question->delay_given)
                ret_shape->delay_source =
                    ret_shape->window_source == KJ_SHAPE_ASSUMED ? KJ_SHAPE_ASSUMED : KJ_SHAPE_TRACE;
        } else if (!status) {
            status = -ENODATA;
        }
    }
    kj_shape_timeline_close(&timeline);
    free(rows.updates);
    return status;
}

/* Energy up to t as a meter saw it, in mW ns. */
static int meter_curve(const struct kj_sensor_series *meter, struct kj_curve *ret_curve)
{
    size_t n = meter->count;
    *ret_curve =
        (struct kj_curve){.t_ns = malloc((n + 1) * sizeof(double)), .sum = malloc((n + 1) * sizeof(double))};
    if (!ret_curve->t_ns || !ret_curve->sum)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        const struct kj_reading *now = &meter->readings[i];
        double sum = i ? ret_curve->sum[i - 1] : 0;
        if (i && meter->counter)
            sum = (double)(now->value - meter->readings[0].value) * 1e6;
        else if (i)
            sum += ((double)now->value + (double)now[-1].value) / 2 * (double)(now->t_ns - now[-1].t_ns);
        ret_curve->t_ns[i] = (double)now->t_ns;
        ret_curve->sum[i] = sum;
    }
    ret_curve->count = n;
    return 0;
}

int kj_sensor_shape_by_meter(const struct kj_shape_question *question, const struct kj_sensor_series *meter,
                             struct kj_sensor_shape *ret_shape)
{
    struct rows rows;
    struct kj_shape_columns columns = {.count = 2};
    struct search search;
    int status = open_question(question, &rows, ret_shape);
    if (!status && meter->count < 2)
        status = -ENODATA;
    if (!status)
        status = meter_curve(meter, &columns.curve[1]);
    if (!status) {
        rows.first_ns = (double)meter->readings[0].t_ns;
        rows.last_ns = (double)meter->readings[meter->count - 1].t_ns;
        columns.mean[0] = 0, columns.sd[0] = 50e3;
        columns.mean[1] = 1, columns.sd[1] = .5;
        open_search(question, BELIEVED_METER, &search);
        look(&search, &columns, &rows, 0);
        int use = decide(question, &search, rows.count, ret_shape);
        double mean[KJ_SHAPE_COLUMNS], sd[KJ_SHAPE_COLUMNS];
        if (use >= 0)
            fill_in(question, &search, use, ret_shape);
        if (use < 0 || likelihood(&columns, &rows, search.window_ns[use], search.best_delay_ns[use], mean, sd,
                                  &ret_shape->rms_mw) == -DBL_MAX) {
            status = -ENODATA;
        } else {
            if (!question->delay_given)
                ret_shape->delay_source = KJ_SHAPE_TRACE;
            ret_shape->offset_mw = mean[0], ret_shape->offset_sd_mw = sd[0];
            ret_shape->gain = mean[1], ret_shape->gain_sd = sd[1];
        }
    }
    kj_curve_free(&columns.curve[1]);
    free(rows.updates);
    return status;
}
