/* SPDX-License-Identifier: Apache-2.0
 *
 * wave_shape.c - window, delay and period of a sensor from a load that was switched: wave_shape.h.
 */
#include "model/wave_shape.h"

#include "model/parts.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { UPDATES_LEAST = 24, STARTS = 6, REFINEMENTS = 24 };
#define WINDOW_LEAST_NS  1e6
#define WINDOW_MOST_NS   3e9
#define WINDOW_RATIO     1.16
#define DELAY_MOST_NS    300e6
#define DELAY_STEP_NS    5e6
#define LIKELIHOOD_90    2.706 /* chi squared of one degree of freedom */
#define LIKELIHOOD_CLEAR 12.0  /* by which a less usual explanation must be better */
#define UNEXPLAINED_MOST 0.5
#define RESOLUTION_NS    2e5 /* of the wave's own times */
#define WANDER_NS        1e9

const struct kj_wave_step kj_wave_plan[] = {
    {50, 54, 0.36}, {23, 31, 0.12}, {9, 13, 0.08}, {130, 157, 0.14}, {410, 337, 0.14}, {1300, 1170, 0.16},
};
const size_t kj_wave_plan_count = sizeof(kj_wave_plan) / sizeof(kj_wave_plan[0]);

struct reading {
    double t_ns, y_mw;
    double span_ns; /* counter: since the update before */
};

struct search {
    const struct kj_wave *wave;
    double *on_before_ns; /* [on_count]: time on before each span */
    double *state;        /* [on_count]: of a lag at the start of each span */
    double state_of_ns;   /* the time constant that the states are for */
    struct reading *readings;
    size_t count;
    double middle_ns, half_ns; /* of the readings */
    bool whole_period;         /* counter: the window is all of the step */
    double effective;          /* independent readings */
    double period_ns, timing_sd_ns;
};

/* A point of the search, and the line through it. */
struct point {
    enum kj_sensor_kernel kernel;
    double window_ns, delay_ns;
    double rss, off_mw, on_mw, off_sd_mw, on_sd_mw;
};

/* ---- how much of a window the load was on */

/* The last span that began at or before t; on_count where none did. */
static size_t span_before(const struct kj_wave *wave, double t_ns)
{
    size_t lo = 0, hi = wave->on_count;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if ((double)wave->on[mid].start_ns <= t_ns)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo ? lo - 1 : wave->on_count;
}

static double on_until_ns(const struct search *s, double t_ns)
{
    size_t i = span_before(s->wave, t_ns);
    if (i == s->wave->on_count)
        return 0;
    double end_ns = fmin(t_ns, (double)s->wave->on[i].end_ns);
    return s->on_before_ns[i] + end_ns - (double)s->wave->on[i].start_ns;
}

static void find_states(struct search *s, double tau_ns)
{
    double state = 0;
    const struct kj_model_span *on = s->wave->on;
    for (size_t i = 0; i < s->wave->on_count; i++) {
        if (i) {
            state = 1 - (1 - state) * exp(-((double)on[i - 1].end_ns - (double)on[i - 1].start_ns) / tau_ns);
            state *= exp(-((double)on[i].start_ns - (double)on[i - 1].end_ns) / tau_ns);
        }
        s->state[i] = state;
    }
    s->state_of_ns = tau_ns;
}

static double lag_at(struct search *s, double t_ns, double tau_ns)
{
    if (s->state_of_ns != tau_ns)
        find_states(s, tau_ns);
    size_t i = span_before(s->wave, t_ns);
    if (i == s->wave->on_count)
        return 0;
    double start_ns = (double)s->wave->on[i].start_ns, end_ns = (double)s->wave->on[i].end_ns;
    double state = 1 - (1 - s->state[i]) * exp(-(fmin(t_ns, end_ns) - start_ns) / tau_ns);
    return t_ns > end_ns ? state * exp(-(t_ns - end_ns) / tau_ns) : state;
}

static double share_on(struct search *s, const struct point *p, const struct reading *r)
{
    double end_ns = r->t_ns - p->delay_ns;
    if (p->kernel == KJ_SENSOR_LAG)
        return lag_at(s, end_ns, p->window_ns);
    double window_ns = s->whole_period ? r->span_ns : p->window_ns;
    return (on_until_ns(s, end_ns) - on_until_ns(s, end_ns - window_ns)) / window_ns;
}

/* ---- the line through the readings */

/* Solves a symmetric 3 x 3 system and inverts its matrix. */
static bool solve3(double a[3][3], const double b[3], double ret_x[3], double ret_inverse[3][3])
{
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) {
            int i1 = (i + 1) % 3, i2 = (i + 2) % 3, j1 = (j + 1) % 3, j2 = (j + 2) % 3;
            ret_inverse[j][i] = a[i1][j1] * a[i2][j2] - a[i1][j2] * a[i2][j1];
        }
    double det = a[0][0] * ret_inverse[0][0] + a[0][1] * ret_inverse[1][0] + a[0][2] * ret_inverse[2][0];
    double scale = a[0][0] * a[1][1] * a[2][2];
    if (!(fabs(det) > 1e-9 * scale) || scale <= 0)
        return false;
    for (int i = 0; i < 3; i++) {
        ret_x[i] = 0;
        for (int j = 0; j < 3; j++) {
            ret_inverse[i][j] /= det;
            ret_x[i] += ret_inverse[i][j] * b[j];
        }
    }
    return true;
}

/* Least squares of 1, share on, and share on with the time of the whole: a board that warms. */
static void fit_line(struct search *s, struct point *p)
{
    double a[3][3] = {{0}}, b[3] = {0}, yy = 0, theta[3], inverse[3][3];
    for (size_t i = 0; i < s->count; i++) {
        double x = share_on(s, p, &s->readings[i]);
        double row[3] = {1, x, x * (s->readings[i].t_ns - s->middle_ns) / s->half_ns};
        for (int j = 0; j < 3; j++) {
            for (int k = 0; k < 3; k++)
                a[j][k] += row[j] * row[k];
            b[j] += row[j] * s->readings[i].y_mw;
        }
        yy += s->readings[i].y_mw * s->readings[i].y_mw;
    }
    p->rss = DBL_MAX;
    if (!solve3(a, b, theta, inverse))
        return;
    p->rss = yy;
    for (int j = 0; j < 3; j++)
        p->rss -= theta[j] * b[j];
    p->rss = fmax(p->rss, 1e-9 * yy); /* what the arithmetic leaves */
    p->off_mw = theta[0];
    p->on_mw = theta[0] + theta[1];
    double noise2 = p->rss / fmax((double)s->count - 5, 1);
    p->off_sd_mw = sqrt(noise2 * inverse[0][0]);
    p->on_sd_mw = sqrt(noise2 * (inverse[0][0] + 2 * inverse[0][1] + inverse[1][1]));
    if (p->on_mw <= p->off_mw) /* a load that takes power away is none */
        p->rss = DBL_MAX;
}

/* ---- the search */

static struct point at(struct search *s, enum kj_sensor_kernel kernel, double window_ns, double delay_ns)
{
    struct point p = {.kernel = kernel, .window_ns = window_ns, .delay_ns = delay_ns};
    fit_line(s, &p);
    return p;
}

static void keep_best(struct point *best, size_t cap, const struct point *p)
{
    size_t place = cap;
    while (place > 0 && p->rss < best[place - 1].rss)
        place--;
    if (place == cap)
        return;
    memmove(best + place + 1, best + place, (cap - place - 1) * sizeof(*best));
    best[place] = *p;
}

/* Goes downhill in steps that grow smaller. fixed: the window stays. */
static struct point refine(struct search *s, struct point best, bool fixed)
{
    double ratio = WINDOW_RATIO, step_ns = DELAY_STEP_NS;
    for (int round = 0; round < REFINEMENTS; round++) {
        struct point here = best;
        for (int i = fixed ? 0 : -1; i <= (fixed ? 0 : 1); i++)
            for (int j = -1; j <= 1; j++) {
                double window_ns = fixed ? here.window_ns : here.window_ns * pow(ratio, i);
                double delay_ns = fmin(fmax(here.delay_ns + j * step_ns, 0), DELAY_MOST_NS);
                /* A window may also grow at one end alone, the other staying. */
                for (int end = 0; end < (i && !j ? 3 : 1); end++) {
                    double moved_ns =
                        delay_ns - (end ? (end == 1 ? 0.5 : 1) * (window_ns - here.window_ns) : 0);
                    if (moved_ns < 0 || window_ns < WINDOW_LEAST_NS || window_ns > WINDOW_MOST_NS)
                        continue;
                    struct point p = at(s, here.kernel, window_ns, moved_ns);
                    if (p.rss < best.rss)
                        best = p;
                }
            }
        if (best.window_ns == here.window_ns && best.delay_ns == here.delay_ns) {
            ratio = sqrt(ratio);
            step_ns /= 2;
        }
    }
    return best;
}

static struct point search_kernel(struct search *s, enum kj_sensor_kernel kernel)
{
    struct point best[STARTS + 1];
    for (size_t i = 0; i <= STARTS; i++)
        best[i] = (struct point){.rss = DBL_MAX};
    double least_ns = s->whole_period ? WINDOW_MOST_NS / 2 : WINDOW_LEAST_NS;
    double most_ns = s->wave->series->counter ? fmax(s->period_ns, 2 * WINDOW_LEAST_NS) : WINDOW_MOST_NS;
    if (s->whole_period)
        most_ns = WINDOW_MOST_NS;
    for (double window_ns = least_ns; window_ns < most_ns; window_ns *= s->whole_period ? 4 : WINDOW_RATIO)
        for (double delay_ns = 0; delay_ns <= DELAY_MOST_NS; delay_ns += DELAY_STEP_NS) {
            struct point p = at(s, kernel, window_ns, delay_ns);
            keep_best(best, STARTS, &p);
        }
    struct point found = {.rss = DBL_MAX};
    for (size_t i = 0; i < STARTS && best[i].rss < DBL_MAX; i++) {
        struct point p = refine(s, best[i], s->whole_period);
        if (p.rss < found.rss)
            found = p;
    }
    return found;
}

/* ---- intervals */

/* Readings that err alike count less: by the correlation of neighbours. */
static void find_effective(struct search *s, const struct point *best)
{
    double sum = 0, cross = 0, before = 0;
    for (size_t i = 0; i < s->count; i++) {
        double x = share_on(s, best, &s->readings[i]);
        double residual = s->readings[i].y_mw - best->off_mw - (best->on_mw - best->off_mw) * x;
        sum += residual * residual;
        cross += i ? residual * before : 0;
        before = residual;
    }
    double rho = sum > 0 ? fmin(fmax(cross / sum, 0), 0.9) : 0;
    s->effective = (double)s->count * (1 - rho) / (1 + rho);
}

static double gap(const struct search *s, double rss, double best_rss)
{
    return rss < DBL_MAX ? s->effective * log(rss / best_rss) : DBL_MAX;
}

/* Where, going outward from the best, the likelihood has fallen too far: by halving. */
static double edge(struct search *s, const struct point *best, bool of_window, double outside)
{
    double inside = 0;
    for (int i = 0; i < 14; i++) {
        double t = i ? (inside + outside) / 2 : outside;
        struct point p = *best;
        if (of_window) {
            p.window_ns = best->window_ns * exp(t);
            /* the middle of the window is what is known best */
            p.delay_ns = fmax(
                best->delay_ns - (p.kernel == KJ_SENSOR_BOX ? 0.5 : 1) * (p.window_ns - best->window_ns), 0);
            fit_line(s, &p);
            p = refine(s, p, true);
        } else {
            p.delay_ns = best->delay_ns + t;
            p.window_ns = fmax(best->window_ns - (p.kernel == KJ_SENSOR_BOX ? 2 : 1) * t, WINDOW_LEAST_NS);
            p = at(s, p.kernel, s->whole_period ? best->window_ns : p.window_ns, p.delay_ns);
            for (int k = -8; k <= 8 && !s->whole_period; k++) {
                struct point q =
                    at(s, p.kernel, fmax(best->window_ns + k * t / 4, WINDOW_LEAST_NS), p.delay_ns);
                p = q.rss < p.rss ? q : p;
            }
        }
        bool beyond = gap(s, p.rss, best->rss) > LIKELIHOOD_90;
        if (!i && !beyond)
            return outside;
        *(beyond ? &outside : &inside) = t;
    }
    return outside;
}

static void find_ranges(struct search *s, const struct point *best, struct kj_wave_shape *shape)
{
    double slack_ns = fmax(RESOLUTION_NS, s->timing_sd_ns);
    double shorter = s->whole_period ? 0 : edge(s, best, true, -2);
    double longer = s->whole_period ? 0 : edge(s, best, true, 2);
    double sooner_ns = best->delay_ns > 0 ? edge(s, best, false, -best->delay_ns) : 0;
    double later_ns = edge(s, best, false, 150e6);
    double narrow_ns = best->window_ns * exp(shorter), wide_ns = best->window_ns * exp(longer);
    shape->window_ns =
        (struct kj_range){best->window_ns, fmax(fmin(narrow_ns, best->window_ns - slack_ns), 0),
                          fmax(wide_ns, best->window_ns + slack_ns)};
    shape->delay_ns = (struct kj_range){best->delay_ns, fmax(best->delay_ns + sooner_ns - slack_ns, 0),
                                        best->delay_ns + later_ns + slack_ns};
    double widen = sqrt((double)s->count / s->effective);
    shape->off_mw = (struct kj_range){best->off_mw, best->off_mw - KJ_Z90 * widen * best->off_sd_mw,
                                      best->off_mw + KJ_Z90 * widen * best->off_sd_mw};
    shape->on_mw = (struct kj_range){best->on_mw, best->on_mw - KJ_Z90 * widen * best->on_sd_mw,
                                     best->on_mw + KJ_Z90 * widen * best->on_sd_mw};
    const double ends_ns[] = {narrow_ns, wide_ns};
    for (int i = 0; i < 2 && !s->whole_period; i++) { /* powers hang on the window */
        struct point p = *best;
        p.window_ns = fmax(ends_ns[i], WINDOW_LEAST_NS);
        p.delay_ns = fmax(best->delay_ns - 0.5 * (p.window_ns - best->window_ns), 0);
        fit_line(s, &p);
        if (p.rss == DBL_MAX)
            continue;
        shape->off_mw.low = fmin(shape->off_mw.low, p.off_mw);
        shape->off_mw.high = fmax(shape->off_mw.high, p.off_mw);
        shape->on_mw.low = fmin(shape->on_mw.low, p.on_mw);
        shape->on_mw.high = fmax(shape->on_mw.high, p.on_mw);
    }
}

/* ---- updates */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median time between updates, sharpened by all that lie few of them apart: long gaps are numbered by it
 * later. */
static double first_period_ns(const struct kj_sensor_series *series, double *ret_poll_ns)
{
    double *steps = malloc((series->count + 1) * sizeof(*steps)), before_ns = 0, sum = 0, number = 0;
    size_t count = 0, polls = 0;
    *ret_poll_ns = 0;
    for (size_t i = 1; steps && i < series->count; i++) {
        if (series->readings[i].value == series->readings[i - 1].value && !series->own_times)
            continue;
        double now_ns = (double)series->readings[i].t_ns, last_ns = (double)series->readings[i - 1].t_ns;
        double middle_ns = series->own_times ? now_ns : (now_ns + last_ns) / 2;
        *ret_poll_ns += series->own_times ? 0 : now_ns - last_ns;
        polls++;
        if (before_ns > 0)
            steps[count++] = middle_ns - before_ns;
        before_ns = middle_ns;
    }
    *ret_poll_ns = polls ? *ret_poll_ns / (double)polls : 0;
    if (count)
        qsort(steps, count, sizeof(*steps), by_value);
    double median_ns = count ? steps[count / 2] : 0;
    for (size_t i = 0; i < count; i++) {
        double n = round(steps[i] / median_ns);
        if (n >= 1 && n <= 4 && fabs(steps[i] / median_ns - n) < 0.3) {
            sum += steps[i];
            number += n;
        }
    }
    free(steps);
    return number > 0 ? sum / number : median_ns;
}

static bool is_used(const struct kj_wave *wave, double t_ns)
{
    for (size_t i = 0; i < wave->use_count; i++)
        if (t_ns >= (double)wave->use[i].start_ns && t_ns <= (double)wave->use[i].end_ns)
            return true;
    return false;
}

static int take_updates(struct search *s, struct kj_wave_shape *shape)
{
    double poll_ns, period_ns = first_period_ns(s->wave->series, &poll_ns);
    struct kj_sensor_series series = *s->wave->series;
    struct kj_update *updates;
    struct kj_grid grid;
    series.sensor = (struct kj_sensor){.period_ns = (uint64_t)period_ns};
    size_t n = kj_model_updates(&series, &updates, &grid);
    s->readings = calloc(n + 1, sizeof(*s->readings));
    for (size_t i = 0; s->readings && i < n; i++) {
        double step_ns = i ? updates[i].t_ns - updates[i - 1].t_ns : 0;
        struct reading r = {.t_ns = updates[i].t_ns, .y_mw = updates[i].value, .span_ns = step_ns};
        if (series.counter) {
            if (step_ns < 0.5 * period_ns || step_ns > 1.5 * period_ns)
                continue;
            r.y_mw = (updates[i].value - updates[i - 1].value) * 1e6 / step_ns;
        }
        if (is_used(s->wave, r.t_ns))
            s->readings[s->count++] = r;
    }
    free(updates);
    if (!s->readings)
        return -ENOMEM;
    s->period_ns = grid.period_ns > 0 ? grid.period_ns : period_ns;
    double one_ns = hypot(grid.jitter_ns, poll_ns / sqrt(12));
    double spans = n > 1 ? (double)n : 1;
    double sd_ns = grid.period_ns > 0 ? one_ns * sqrt(12 / spans) / spans : one_ns / sqrt(spans);
    s->timing_sd_ns = grid.sd_ns;
    if (s->period_ns < 1.5 * poll_ns) /* new each time: it is renewed as often or more often */
        shape->period_ns = (struct kj_range){0, 0, s->period_ns};
    else
        shape->period_ns =
            (struct kj_range){s->period_ns, s->period_ns - KJ_Z90 * sd_ns - 1e-5 * s->period_ns,
                              s->period_ns + KJ_Z90 * sd_ns + 1e-5 * s->period_ns};
    shape->updates = s->count;
    if (s->count) {
        double first_ns = s->readings[0].t_ns, last_ns = s->readings[s->count - 1].t_ns;
        s->middle_ns = (first_ns + last_ns) / 2;
        s->half_ns = fmax((last_ns - first_ns) / 2, 1);
    }
    return 0;
}

/* Does a second of the counter hold what a second of the wave drew? */
static double find_wander(struct search *s, const struct point *best)
{
    double span_ns = 0, seen = 0, expected = 0, sum2 = 0;
    size_t windows = 0;
    struct point whole = *best;
    bool kept = s->whole_period;
    s->whole_period = true;
    for (size_t i = 0; i < s->count; i++) {
        const struct reading *r = &s->readings[i];
        if (i && r->t_ns - s->readings[i - 1].t_ns > 1.5 * s->period_ns)
            span_ns = seen = expected = 0;
        span_ns += r->span_ns;
        seen += r->y_mw * r->span_ns;
        whole.kernel = KJ_SENSOR_BOX;
        expected += (best->off_mw + (best->on_mw - best->off_mw) * share_on(s, &whole, r)) * r->span_ns;
        if (span_ns >= WANDER_NS) {
            sum2 += expected > 0 ? pow(seen / expected - 1, 2) : 0;
            windows++;
            span_ns = seen = expected = 0;
        }
    }
    s->whole_period = kept;
    return windows ? sqrt(sum2 / (double)windows) : 0;
}

static double variance_sum(const struct search *s)
{
    double sum = 0, square = 0;
    for (size_t i = 0; i < s->count; i++) {
        sum += s->readings[i].y_mw;
        square += s->readings[i].y_mw * s->readings[i].y_mw;
    }
    return square - sum * sum / (double)s->count;
}

/* The plain explanation stands unless the other is clearly better. */
static struct point choose(struct search *s, struct kj_wave_shape *shape)
{
    bool counter = s->wave->series->counter;
    s->whole_period = counter;
    struct point plain = search_kernel(s, KJ_SENSOR_BOX);
    s->whole_period = false;
    struct point other = search_kernel(s, counter ? KJ_SENSOR_BOX : KJ_SENSOR_LAG);
    if (plain.rss == DBL_MAX && other.rss == DBL_MAX)
        return plain;
    s->effective = (double)s->count;
    s->whole_period = counter && plain.rss < DBL_MAX;
    if (plain.rss < DBL_MAX)
        find_effective(s, &plain);
    s->whole_period = false;
    bool better = plain.rss == DBL_MAX || gap(s, plain.rss, other.rss) > LIKELIHOOD_CLEAR;
    if (counter) {
        better = better && other.window_ns < 0.8 * s->period_ns;
        shape->sub_sampled = better;
        s->whole_period = !better;
    }
    return better ? other : plain;
}

static int find(struct search *s, struct kj_wave_shape *shape, struct kj_error *error)
{
    const struct kj_wave *wave = s->wave;
    s->on_before_ns = calloc(wave->on_count + 1, sizeof(double));
    s->state = calloc(wave->on_count + 1, sizeof(double));
    if (!s->on_before_ns || !s->state)
        return -ENOMEM;
    for (size_t i = 1; i < wave->on_count; i++)
        s->on_before_ns[i] =
            s->on_before_ns[i - 1] + (double)(wave->on[i - 1].end_ns - wave->on[i - 1].start_ns);
    int status = take_updates(s, shape);
    if (status)
        return status;
    if (s->count < UPDATES_LEAST) {
        kj_error_set(error, "%zu updates in the time of the load, and %d are the least", s->count,
                     UPDATES_LEAST);
        return -ENODATA;
    }
    struct point best = choose(s, shape);
    double all = variance_sum(s);
    shape->unexplained = best.rss < DBL_MAX && all > 0 ? best.rss / all : 1;
    if (shape->unexplained > UNEXPLAINED_MOST) {
        kj_error_set(error,
                     "the readings do not follow the load: %.0f %% of their changes are of other origin",
                     100 * fmin(shape->unexplained, 1));
        return -EDOM;
    }
    find_effective(s, &best);
    find_ranges(s, &best, shape);
    shape->kernel = best.kernel;
    shape->noise_mw = sqrt(best.rss / fmax((double)s->count - 5, 1));
    if (wave->series->counter)
        shape->wander = find_wander(s, &best);
    if (s->whole_period)
        shape->window_ns = (struct kj_range){0};
    return 0;
}

int kj_wave_shape_find(const struct kj_wave *wave, struct kj_wave_shape *ret_shape, struct kj_error *error)
{
    struct search s = {.wave = wave};
    struct kj_wave_shape shape = {0};
    int status = find(&s, &shape, error);
    free(s.on_before_ns);
    free(s.state);
    free(s.readings);
    if (status == -ENOMEM)
        kj_error_set(error, "out of memory");
    else if (!status)
        *ret_shape = shape;
    return status;
}
