/* SPDX-License-Identifier: Apache-2.0
 *
 * posterior.c - draws of what the powers may be. Given mean and spread of the classes' powers, the unknowns
 * are normal and cut off at zero and at the board's limit; mean and spread are unknown themselves. Three
 * steps in turn leave the joint distribution as it is:
 *
 * - The unknowns, given mean and spread: a particle in the normal's own potential, which swings for a quarter
 *   of its period and is thrown back by the bounds. Exact: Pakman and Paninski, J. Comput. Graph. Stat. 23
 * (2014).
 * - Mean and spread, given the unknowns: Metropolis.
 * - Mean and spread, with each class kept at its quantile: Metropolis. The second moves well where the data
 *   say much, the third where they say little (Yu and Meng, J. Comput. Graph. Stat. 20, 2011).
 */
#include "model/fit.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    LEVELS = 15, /* of the spread */
    FIRST_LEVEL = 10,
    WARM_UP = 200,
    THINNING = 3,
    HYPER_MOVES = 15,
    BOUNCES_MOST = 4000,
};
#define LEVEL_FACTOR  1.25
#define LOG_SPREAD_SD 0.8 /* of what is known of the spread before the data: a factor of two */
#define HELD_SDS      2.5

/* The normal posterior for one spread: its mean is base + mean of the classes x slope. */
struct level {
    double spread_mw, *l, *covariance, *base, *slope;
    bool tried, ready;
};

struct sampler {
    struct fit *fit;
    struct level levels[LEVELS];
    size_t shared, level, n;
    double mean_mw, top_mw; /* of the classes that share a prior */
    double *theta, *velocity, *centre, *proposal;
    struct kj_draws random;
};

/* Inverse of kj_normal_below: Tukey's lambda, and Newton. */
static double quantile(double q)
{
    q = fmin(fmax(q, 1e-12), 1 - 1e-12);
    double z = (pow(q, 0.135) - pow(1 - q, 0.135)) / 0.1975;
    for (int i = 0; i < 3; i++)
        z -= fmin(fmax((kj_normal_below(z) - q) / kj_normal_density(z), -1), 1);
    return z;
}

static bool make_level(struct sampler *s, struct level *level)
{
    const struct fit *fit = s->fit;
    size_t n = s->n;
    if (level->tried)
        return level->ready;
    level->tried = true;
    level->l = malloc(n * n * sizeof(double));
    level->covariance = malloc(n * n * sizeof(double));
    level->base = calloc(n, sizeof(double));
    level->slope = calloc(n, sizeof(double));
    if (!level->l || !level->covariance || !level->base || !level->slope)
        return false;
    for (size_t i = 0; i < n; i++) {
        bool shared = i && i <= fit->columns && !fit->own_prior[i];
        double sd = shared ? level->spread_mw : fit->prior_sd_mw[i], precision = 1 / (sd * sd);
        for (size_t j = 0; j <= i; j++)
            level->l[i * n + j] = fit->all.xx[i * n + j] / fit->widening;
        level->l[i * n + i] += precision;
        level->base[i] = fit->all.xy[i] / fit->widening + (shared ? 0 : precision * fit->prior_mw[i]);
        level->slope[i] = shared ? precision : 0;
    }
    level->ready = kj_cholesky(level->l, n);
    if (level->ready) {
        kj_cholesky_inverse(level->l, n, level->covariance);
        kj_cholesky_solve(level->l, n, level->base);
        kj_cholesky_solve(level->l, n, level->slope);
    }
    return level->ready;
}

/* When an unknown that swings around `centre` next meets a bound; past a quarter of the period: never. */
static double meets(double theta, double velocity, double centre, double top)
{
    double from = theta - centre, swing2 = from * from + velocity * velocity, when = DBL_MAX;
    if (swing2 > centre * centre) {
        when = atan2(velocity, from) + acos(fmin(fmax(-centre / sqrt(swing2), -1), 1));
        when = when < 0 ? when + 2 * M_PI : when;
    }
    double room = top - centre;
    if (swing2 > room * room) {
        double at = atan2(velocity, from) - acos(fmin(fmax(room / sqrt(swing2), -1), 1));
        at = at < 0 ? at + 2 * M_PI : at;
        when = at < when ? at : when;
    }
    return when;
}

static void swing(struct sampler *s, double angle)
{
    double c = cos(angle), k = sin(angle);
    for (size_t i = 0; i < s->n; i++) {
        double from = s->theta[i] - s->centre[i], v = s->velocity[i];
        s->theta[i] = s->centre[i] + from * c + v * k;
        s->velocity[i] = v * c - from * k;
    }
}

static void move_unknowns(struct sampler *s)
{
    const struct fit *fit = s->fit;
    const struct level *level = &s->levels[s->level];
    double left = M_PI_2;
    memcpy(s->proposal, s->theta, s->n * sizeof(*s->theta));
    for (size_t i = 0; i < s->n; i++) {
        s->centre[i] = level->base[i] + s->mean_mw * level->slope[i];
        s->velocity[i] = kj_draw_normal(&s->random);
    }
    kj_cholesky_back(level->l, s->n, s->velocity);
    for (size_t bounce = 0; bounce < BOUNCES_MOST; bounce++) {
        double first = left;
        size_t at = s->n;
        for (size_t i = 0; i <= fit->columns; i++) {
            double when = meets(s->theta[i], s->velocity[i], s->centre[i], kj_fit_top(fit, i));
            if (when < first)
                first = when, at = i;
        }
        swing(s, first);
        left -= first;
        if (at == s->n) {
            for (size_t i = 0; i <= fit->columns; i++)
                s->theta[i] = fmin(fmax(s->theta[i], 0), kj_fit_top(fit, i));
            return;
        }
        const double *row = level->covariance + at * s->n;
        double back = 2 * s->velocity[at] / row[at];
        s->theta[at] = s->velocity[at] < 0 ? 0 : kj_fit_top(fit, at);
        for (size_t i = 0; i < s->n; i++)
            s->velocity[i] -= back * row[i];
    }
    memcpy(s->theta, s->proposal, s->n * sizeof(*s->theta)); /* lost among the walls: stays where it was */
}

/* Log of the share of the normal that lies between the bounds. */
static double log_inside(double mean, double spread, double top)
{
    return log(fmax(kj_normal_below((top - mean) / spread) - kj_normal_below(-mean / spread), 1e-300));
}

static double log_hyperprior(const struct sampler *s, size_t level)
{
    double z = log(s->levels[level].spread_mw / s->fit->first_spread_mw) / LOG_SPREAD_SD;
    return -0.5 * z * z;
}

static size_t other_level(struct sampler *s, size_t most)
{
    size_t step = (size_t)(kj_draw_uniform(&s->random) * (double)(2 * most + 1)), to = s->level + step;
    return to < most || to - most >= LEVELS ? s->level : to - most;
}

static void move_hyper_given_unknowns(struct sampler *s)
{
    const struct fit *fit = s->fit;
    double sum = 0, square = 0, k = (double)s->shared;
    for (size_t i = 1; i <= fit->columns; i++)
        if (!fit->own_prior[i]) {
            sum += s->theta[i];
            square += s->theta[i] * s->theta[i];
        }
    for (size_t move = 0; move < HYPER_MOVES; move++) {
        size_t to = other_level(s, 2);
        double before = s->levels[s->level].spread_mw, spread = s->levels[to].spread_mw;
        double mean = s->mean_mw + 1.5 * before / sqrt(k) * kj_draw_normal(&s->random);
        double back = (mean - s->mean_mw) * sqrt(k) / 1.5;
        if (mean < 0 || mean > s->top_mw)
            continue;
        double gain = log_hyperprior(s, to) - log_hyperprior(s, s->level);
        gain += -0.5 * (square - 2 * mean * sum + k * mean * mean) / (spread * spread) +
                0.5 * (square - 2 * s->mean_mw * sum + k * s->mean_mw * s->mean_mw) / (before * before);
        gain -= k * (log(spread / before) + log_inside(mean, spread, s->top_mw) -
                     log_inside(s->mean_mw, before, s->top_mw));
        gain += log(before / spread) - 0.5 * back * back * (1 / (spread * spread) - 1 / (before * before));
        if (log(kj_draw_uniform(&s->random)) < gain && make_level(s, &s->levels[to])) {
            s->mean_mw = mean;
            s->level = to;
        }
    }
}

/* Log-likelihood of the rows, but for a constant. */
static double log_likelihood(const struct sampler *s, const double *theta)
{
    const struct fit *fit = s->fit;
    double sum = 0;
    for (size_t i = 0; i < s->n; i++) {
        const double *row = fit->all.xx + i * s->n;
        double own = 0.5 * row[i] * theta[i] - fit->all.xy[i];
        for (size_t j = 0; j < i; j++)
            own += row[j] * theta[j];
        sum -= own * theta[i];
    }
    return sum / fit->widening;
}

static void move_hyper_at_quantiles(struct sampler *s)
{
    const struct fit *fit = s->fit;
    size_t to = other_level(s, 1);
    double before = s->levels[s->level].spread_mw, spread = s->levels[to].spread_mw;
    double width = 0.02 * s->top_mw * (kj_draw_uniform(&s->random) < 0.5 ? 1 : 0.1);
    double mean = s->mean_mw + width * kj_draw_normal(&s->random);
    if (mean < 0 || mean > s->top_mw)
        return;
    double low = kj_normal_below(-s->mean_mw / before),
           room = kj_normal_below((s->top_mw - s->mean_mw) / before) - low;
    double low_to = kj_normal_below(-mean / spread),
           room_to = kj_normal_below((s->top_mw - mean) / spread) - low_to;
    memcpy(s->proposal, s->theta, s->n * sizeof(*s->theta));
    for (size_t i = 1; i <= fit->columns; i++) {
        if (fit->own_prior[i])
            continue;
        double u = (kj_normal_below((s->theta[i] - s->mean_mw) / before) - low) / fmax(room, 1e-300);
        double z = quantile(low_to + fmin(fmax(u, 0), 1) * room_to);
        s->proposal[i] = fmin(fmax(mean + spread * z, 0), s->top_mw);
    }
    double gain = log_likelihood(s, s->proposal) - log_likelihood(s, s->theta) + log_hyperprior(s, to) -
                  log_hyperprior(s, s->level);
    if (log(kj_draw_uniform(&s->random)) < gain && make_level(s, &s->levels[to])) {
        memcpy(s->theta, s->proposal, s->n * sizeof(*s->theta));
        s->mean_mw = mean;
        s->level = to;
    }
}

/* Variance of a class's power of which nothing is seen. */
static double variance_of_class(const struct sampler *s)
{
    double spread = s->levels[s->level].spread_mw;
    double a = -s->mean_mw / spread, b = (s->top_mw - s->mean_mw) / spread;
    double room = fmax(kj_normal_below(b) - kj_normal_below(a), 1e-300),
           shift = (kj_normal_density(a) - kj_normal_density(b)) / room;
    return spread * spread *
           fmax(1 + (a * kj_normal_density(a) - b * kj_normal_density(b)) / room - shift * shift, 1e-6);
}

/* Which powers the rows would have well past a bound, were they let: something is wrong with what is known.
 */
static void find_held(const struct sampler *s)
{
    const struct level *level = &s->levels[s->level];
    for (size_t i = 0; i <= s->fit->columns; i++) {
        double wanted = level->base[i] + s->mean_mw * level->slope[i];
        double sd = sqrt(level->covariance[i * s->n + i]), slack = HELD_SDS * sd;
        s->fit->loose_sd_mw[i] = sd;
        s->fit->held[i] = wanted < -slack || wanted > kj_fit_top(s->fit, i) + slack;
    }
}

static bool open_sampler(struct sampler *s, struct fit *fit)
{
    *s = (struct sampler){.fit = fit, .n = fit->n, .random = {.state = 1}};
    s->theta = calloc(s->n, sizeof(double));
    s->velocity = calloc(s->n, sizeof(double));
    s->centre = calloc(s->n, sizeof(double));
    s->proposal = calloc(s->n, sizeof(double));
    s->top_mw = kj_fit_top(fit, 1);
    double nearest = DBL_MAX;
    for (size_t k = 0; k < LEVELS; k++) {
        double spread = fit->first_spread_mw * pow(LEVEL_FACTOR, (double)k - FIRST_LEVEL);
        s->levels[k].spread_mw = spread;
        if (fabs(log(spread / fit->spread_mw)) < nearest)
            nearest = fabs(log(spread / fit->spread_mw)), s->level = k;
    }
    s->mean_mw = fmin(fmax(fit->mean_mw, 0), s->top_mw);
    for (size_t i = 1; i <= fit->columns; i++)
        s->shared += !fit->own_prior[i];
    bool ok = s->theta && s->velocity && s->centre && s->proposal && make_level(s, &s->levels[s->level]);
    for (size_t i = 0; ok && i < s->n; i++)
        s->theta[i] = i <= fit->columns ? fmin(fmax(fit->m[i], 1), kj_fit_top(fit, i) - 1) : fit->m[i];
    return ok;
}

static void close_sampler(struct sampler *s)
{
    for (size_t k = 0; k < LEVELS; k++) {
        free(s->levels[k].l);
        free(s->levels[k].covariance);
        free(s->levels[k].base);
        free(s->levels[k].slope);
    }
    free(s->theta);
    free(s->velocity);
    free(s->centre);
    free(s->proposal);
}

/* Mean and covariance of the draws, in place of the normal's. */
static void summarise(struct fit *fit, const double *all, size_t draws)
{
    size_t n = fit->n;
    memset(fit->m, 0, n * sizeof(*fit->m));
    memset(fit->inverse, 0, n * n * sizeof(*fit->inverse));
    for (size_t d = 0; d < draws; d++)
        for (size_t i = 0; i < n; i++)
            fit->m[i] += all[d * n + i] / (double)draws;
    for (size_t d = 0; d < draws; d++)
        for (size_t i = 0; i < n; i++) {
            double own = (all[d * n + i] - fit->m[i]) / (double)draws, *row = fit->inverse + i * n;
            for (size_t j = 0; j <= i; j++)
                row[j] += own * (all[d * n + j] - fit->m[j]);
        }
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++)
            fit->inverse[j * n + i] = fit->inverse[i * n + j];
}

/* Of least squares: normal, and cut off where no power can be. */
static void draw_normal(const struct fit *fit, double *all, size_t draws)
{
    struct kj_draws random = {.state = 1};
    for (size_t d = 0; d < draws; d++) {
        double *theta = all + d * fit->n;
        for (size_t i = 0; i < fit->n; i++)
            theta[i] = kj_draw_normal(&random);
        kj_cholesky_back(fit->l, fit->n, theta);
        for (size_t i = 0; i < fit->n; i++) {
            theta[i] += fit->m[i];
            theta[i] = i <= fit->columns ? fmin(fmax(theta[i], 0), kj_fit_top(fit, i)) : theta[i];
        }
    }
}

double *kj_fit_draw(struct fit *fit, enum kj_model_method method, size_t draws)
{
    double *all = malloc((draws * fit->n + 1) * sizeof(*all)), prior2 = 0;
    if (!all)
        return NULL;
    if (method != KJ_MODEL_BAYES) {
        draw_normal(fit, all, draws);
        return all;
    }
    struct sampler s;
    bool ok = open_sampler(&s, fit);
    for (size_t step = 0; ok && step < WARM_UP + draws * THINNING; step++) {
        move_unknowns(&s);
        if (s.shared) {
            move_hyper_given_unknowns(&s);
            move_hyper_at_quantiles(&s);
        }
        if (step < WARM_UP || (step - WARM_UP) % THINNING)
            continue;
        memcpy(all + (step - WARM_UP) / THINNING * fit->n, s.theta, fit->n * sizeof(*all));
        prior2 += variance_of_class(&s) / (double)draws;
    }
    if (ok) {
        for (size_t i = 1; i <= fit->columns; i++)
            if (!fit->own_prior[i])
                fit->prior_sd_mw[i] = sqrt(prior2);
        find_held(&s);
        summarise(fit, all, draws);
    }
    close_sampler(&s);
    if (!ok) {
        free(all);
        return NULL;
    }
    return all;
}
