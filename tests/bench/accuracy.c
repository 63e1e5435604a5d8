/* SPDX-License-Identifier: Apache-2.0
 *
 * accuracy - the attribution model over devices whose every joule is known, in virtual time. Each scenario is
 * drawn many times; a table compares time-proportional, least squares without a prior, and the Bayesian
 * model: error weighted by energy, worst class, and how often the intervals hold the truth. Errors are of
 * shares of the total, so that the sensor's gain, which no method can know, is in the intervals and not in
 * the error.
 *
 *     accuracy [--runs N] [--only TEXT] [--check]       --check: exit 1 where the aims are missed
 */
#include "model/attribution.h"
#include "model/normal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CLASSES_CAP = 256, METHODS = 3 };
#define MS      1e6
#define IDLE_MW 85000.0
#define POLL_NS (20 * MS)
/* What no table of a sensor tells, in every scenario: */
#define LAUNCH_SD    .03      /* of one launch's power around its class's: other data, other clocks */
#define WARMING      .02      /* more power at the end of the run than at its start */
#define UPDATE_SD_NS (1 * MS) /* of the moment of an update around its grid */
#define COUNTER_SD   .003     /* of one increment of the energy counter */

struct scenario {
    const char *name;
    double step_ms, window_ms, period_ms; /* window 0: counter alone */
    int classes;
    double gain_sd, noise, lag_ms, overlap, duty, seconds;
    int shuffled;
};

static const struct scenario scenarios[] = {
    {"step 10 ms, 25/100", 10, 25, 100, 12, 0, .01, 0, 0, 1, 60, 0},
    {"step 10 ms, 10/20", 10, 10, 20, 12, 0, .01, 0, 0, 1, 60, 0},
    {"step 30 ms, 25/100", 30, 25, 100, 12, 0, .01, 0, 0, 1, 60, 0},
    {"step 30 ms, counter", 30, 0, 100, 12, 0, .01, 0, 0, 1, 60, 0},
    {"step 97 ms, 25/100", 97, 25, 100, 12, 0, .01, 0, 0, 1, 60, 0},
    {"step 100 ms (resonant), 25/100", 100, 25, 100, 12, 0, .01, 0, 0, 1, 60, 0},
    {"step 300 ms, counter", 300, 0, 100, 12, 0, .01, 0, 0, 1, 60, 0},
    {"step 300 ms, 25/100", 300, 25, 100, 12, 0, .01, 0, 0, 1, 60, 0},
    {"step 300 ms, 100/100", 300, 100, 100, 12, 0, .01, 0, 0, 1, 60, 0},
    {"step 300 ms, 1000/100", 300, 1000, 100, 12, 0, .01, 0, 0, 1, 60, 0},
    {"step 300 ms, 10/20", 300, 10, 20, 12, 0, .01, 0, 0, 1, 60, 0},
    {"step 1 s, 25/100", 1000, 25, 100, 12, 0, .01, 0, 0, 1, 60, 0},
    {"step 1 s, counter", 1000, 0, 100, 12, 0, .01, 0, 0, 1, 60, 0},
    {"step 300 ms, shuffled, 25/100", 300, 25, 100, 12, 0, .01, 0, 0, 1, 60, 1},
    {"5 classes, 300 ms, 25/100", 300, 25, 100, 5, 0, .01, 0, 0, 1, 60, 0},
    {"50 classes, 300 ms, 25/100", 300, 25, 100, 50, 0, .01, 0, 0, 1, 60, 0},
    {"200 classes, 1 s, 25/100", 1000, 25, 100, 200, 0, .01, 0, 0, 1, 60, 0},
    {"gain 0.97 +- 0.05, 300 ms", 300, 25, 100, 12, .05, .01, 0, 0, 1, 60, 0},
    {"noise 5 %, 300 ms", 300, 25, 100, 12, 0, .05, 0, 0, 1, 60, 0},
    {"lag 20 ms, 300 ms", 300, 25, 100, 12, 0, .01, 20, 0, 1, 60, 0},
    {"overlap 30 %, 300 ms", 300, 25, 100, 12, 0, .01, 0, .3, 1, 60, 0},
    {"5 % duty, 300 ms, 25/100", 300, 25, 100, 12, 0, .01, 0, 0, .05, 300, 0},
};

struct world {
    struct kj_model_interval *intervals;
    double *factor; /* of each interval's power, in the order of start */
    size_t count;
    double *at_ns, *energy_uj; /* board energy at the boundaries, cumulative */
    size_t boundaries;
    double power_mw[CLASSES_CAP], truth_uj[CLASSES_CAP], idle_uj, total_uj, end_ns;
    uint64_t launches[CLASSES_CAP];
};

static int by_time(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double uniform(struct kj_draws *r, double low, double high)
{
    return low + (high - low) * kj_draw_uniform(r);
}

static void add_interval(struct world *w, double start_ns, double end_ns, int class)
{
    w->intervals = realloc(w->intervals, (w->count + 1) * sizeof(*w->intervals));
    w->intervals[w->count++] =
        (struct kj_model_interval){(uint64_t)start_ns, (uint64_t)end_ns, (uint32_t) class, 0};
    w->launches[class]++;
}

/* Steps of all classes, each with its share of the step; short stalls between steps. */
static void make_timeline(struct world *w, const struct scenario *s, struct kj_draws *r)
{
    double share[CLASSES_CAP], sum = 0, t = 0;
    int order[CLASSES_CAP];
    for (int c = 0; c < s->classes; c++) {
        w->power_mw[c] = uniform(r, 100e3, 700e3) - IDLE_MW;
        share[c] = uniform(r, .2, 1);
        sum += share[c];
        order[c] = c;
    }
    for (t = uniform(r, 50, 300) * MS; t < s->seconds * 1e9;) {
        for (int c = 0; s->shuffled && c < s->classes; c++) {
            int other = (int)uniform(r, 0, s->classes), kept = order[c];
            order[c] = order[other];
            order[other] = kept;
        }
        for (int i = 0; i < s->classes; i++) {
            int c = order[i];
            double length = s->step_ms * MS * .95 * share[c] / sum * (1 + .01 * kj_draw_normal(r));
            double start = t - (i ? s->overlap * length * kj_draw_uniform(r) : 0);
            add_interval(w, start, start + length, c);
            t = start + length;
        }
        t += s->step_ms * MS * .05 * uniform(r, .5, 1.5);
        if (kj_draw_uniform(r) < .02)
            t += uniform(r, 50, 400) * MS; /* a checkpoint, an evaluation, a slow batch */
    }
    w->end_ns = t + 300 * MS;
}

/* Board power is idle plus what runs; a class's truth is its dynamic energy and its share of idle. */
static void make_energy(struct world *w, struct kj_draws *r)
{
    w->factor = malloc((w->count + 1) * sizeof(*w->factor));
    for (size_t i = 0; i < w->count; i++)
        w->factor[i] = 1 + LAUNCH_SD * kj_draw_normal(r);
    size_t edges = 2 * w->count + 2, running = 0;
    double *times = malloc(edges * sizeof(*times)), power = 0;
    size_t *active = malloc((w->count + 1) * sizeof(*active)), next = 0;
    for (size_t i = 0; i < w->count; i++) {
        times[2 * i] = (double)w->intervals[i].start_ns;
        times[2 * i + 1] = (double)w->intervals[i].end_ns;
    }
    times[edges - 2] = 0, times[edges - 1] = w->end_ns;
    qsort(times, edges, sizeof(*times), by_time);
    w->at_ns = times;
    w->energy_uj = calloc(edges, sizeof(double));
    w->boundaries = edges;
    for (size_t e = 0; e + 1 < edges; e++) {
        for (size_t a = running; a-- > 0;)
            if ((double)w->intervals[active[a]].end_ns <= times[e])
                active[a] = active[--running];
        for (; next < w->count && (double)w->intervals[next].start_ns <= times[e]; next++)
            if ((double)w->intervals[next].end_ns > times[e])
                active[running++] = next;
        double length = times[e + 1] - times[e], warm = 1 + WARMING * times[e] / w->end_ns;
        power = IDLE_MW;
        for (size_t a = 0; a < running; a++) {
            uint32_t c = w->intervals[active[a]].class_index;
            double own = w->power_mw[c] * w->factor[active[a]] * warm;
            power += own;
            w->truth_uj[c] += (own + IDLE_MW / (double)running) * length * 1e-6;
        }
        if (!running)
            w->idle_uj += IDLE_MW * length * 1e-6;
        w->energy_uj[e + 1] = w->energy_uj[e] + power * length * 1e-6;
    }
    w->total_uj = w->energy_uj[edges - 1];
    free(active);
}

static int by_start(const void *a, const void *b)
{
    uint64_t x = ((const struct kj_model_interval *)a)->start_ns,
             y = ((const struct kj_model_interval *)b)->start_ns;
    return (x > y) - (x < y);
}

static double energy_at(const struct world *w, double t_ns)
{
    size_t lo = 0, hi = w->boundaries - 1;
    t_ns = fmin(fmax(t_ns, 0), w->end_ns);
    while (hi - lo > 1) {
        size_t mid = (lo + hi) / 2;
        if (w->at_ns[mid] <= t_ns)
            lo = mid;
        else
            hi = mid;
    }
    double length = w->at_ns[hi] - w->at_ns[lo];
    return w->energy_uj[lo] +
           (length > 0 ? (w->energy_uj[hi] - w->energy_uj[lo]) * (t_ns - w->at_ns[lo]) / length : 0);
}

/* What a poller sees: renewed every period, each poll repeating the newest value. */
static struct kj_sensor_series make_series(const struct world *w, const struct scenario *s, bool counter,
                                           double gain, struct kj_draws *r)
{
    size_t cap = (size_t)(w->end_ns / POLL_NS) + 2, count = 0;
    struct kj_reading *readings = malloc(cap * sizeof(*readings));
    double period = (counter ? 100 : s->period_ms) * MS, phase = uniform(r, 0, period),
           poll = uniform(r, 0, POLL_NS);
    double poll_ns = s->period_ms < 50 && !counter ? POLL_NS / 4 : POLL_NS, value = 0, counted_uj = 0;
    readings = realloc(readings, (cap * 4) * sizeof(*readings));
    period *= 1 + .003 * kj_draw_normal(r); /* no two clocks agree, nor does a poller wake on the dot */
    double tick = 0, update = phase, before = 0;
    for (double at = poll; at < w->end_ns; at += poll_ns) {
        double t = at + .2 * MS * fabs(kj_draw_normal(r));
        for (; update <= t;
             before = update, tick++,
             update = phase + tick * period + fmin(period / 20, UPDATE_SD_NS) * kj_draw_normal(r)) {
            double to = update - s->lag_ms * MS, window = s->window_ms * MS;
            counted_uj +=
                (energy_at(w, update) - energy_at(w, before)) * gain * (1 + COUNTER_SD * kj_draw_normal(r));
            value = counter ? floor(counted_uj / 1000) * 1000
                            : (energy_at(w, to) - energy_at(w, to - window)) * 1e6 / window * gain *
                                  (1 + s->noise * kj_draw_normal(r));
        }
        if (tick > 0)
            readings[count++] = (struct kj_reading){(uint64_t)t, (uint64_t)fmax(value, 0)};
    }
    return (struct kj_sensor_series){.counter = counter,
                                     .readings = readings,
                                     .count = count,
                                     .sensor = {.window_ns = counter ? 0 : (uint64_t)(s->window_ms * MS),
                                                .delay_ns = counter ? 0 : (uint64_t)(s->lag_ms * MS),
                                                .residual_gain = s->gain_sd > 0 ? .97 : 1,
                                                .gain_sd = s->gain_sd}};
}

struct score {
    double error, weight, worst, wrong_r, weight_r, time_prop_r;
    double inside50, inside90, classes, identifiable;
    int broken;
};

static void score_run(const struct world *w, const struct scenario *s, const struct kj_model_result *result,
                      const struct kj_model_result *by_r, const struct kj_model_result *plain,
                      struct score *score)
{
    int64_t sum = result->idle_uj + result->unattributed_uj;
    double scale = (double)result->total_uj / w->total_uj;
    for (int c = 0; c < s->classes; c++) {
        const struct kj_model_class_result *class = &result->classes[c];
        double error = fabs((double)class->energy.energy_uj / scale - w->truth_uj[c]);
        sum += class->energy.energy_uj;
        score->error += error;
        score->weight += w->truth_uj[c];
        score->worst = fmax(score->worst, error / w->truth_uj[c]);
        if (by_r->classes[c].identifiability >= .5) {
            score->wrong_r += error;
            score->time_prop_r += fabs((double)plain->classes[c].energy.energy_uj / scale - w->truth_uj[c]);
            score->weight_r += w->truth_uj[c];
        }
        score->identifiable += by_r->classes[c].identifiability >= .5 ? w->truth_uj[c] : 0;
        score->classes++;
        score->inside90 += class->energy.low_uj <= w->truth_uj[c] && w->truth_uj[c] <= class->energy.high_uj;
        score->inside50 +=
            class->energy.low50_uj <= w->truth_uj[c] && w->truth_uj[c] <= class->energy.high50_uj;
    }
    score->broken += sum != result->total_uj;
}

/* Bursts: the timeline is complete there, and durations are learned there. */
static size_t keep_bursts(struct world *w, const struct scenario *s, struct kj_model_class *classes,
                          struct kj_model_span *spans, struct kj_draws *r)
{
    double length = 400 * MS, every = length / s->duty;
    size_t count = 0, kept = 0;
    for (double t = 1e9; t + length < w->end_ns; t += every * uniform(r, .7, 1.3))
        spans[count++] = (struct kj_model_span){(uint64_t)t, (uint64_t)(t + length)};
    for (size_t i = 0, b = 0; i < w->count; i++) {
        const struct kj_model_interval *interval = &w->intervals[i];
        while (b < count && spans[b].end_ns < interval->start_ns)
            b++;
        if (b == count || interval->end_ns < spans[b].start_ns)
            continue;
        struct kj_model_class *class = &classes[interval->class_index];
        double ns = (double)(interval->end_ns - interval->start_ns);
        class->timed++;
        class->mean_ns += ns;
        class->sd_ns += ns * ns;
        w->intervals[kept++] = *interval;
    }
    for (int c = 0; c < s->classes; c++) {
        double n = (double)classes[c].timed;
        classes[c].mean_ns /= n > 0 ? n : 1;
        classes[c].sd_ns =
            n > 1 ? sqrt(fmax(classes[c].sd_ns / n - classes[c].mean_ns * classes[c].mean_ns, 0)) : 0;
    }
    w->count = kept;
    return count;
}

static const enum kj_model_method methods[METHODS] = {KJ_MODEL_TIME_PROPORTIONAL, KJ_MODEL_LEAST_SQUARES,
                                                      KJ_MODEL_BAYES};

static void run(const struct scenario *s, uint64_t seed, struct score *scores)
{
    struct kj_draws r = {.state = seed * 7919 + 17};
    struct world w = {0};
    make_timeline(&w, s, &r);
    qsort(w.intervals, w.count, sizeof(*w.intervals), by_start);
    make_energy(&w, &r);
    double gain = s->gain_sd > 0 ? .97 + s->gain_sd * kj_draw_normal(&r) : 1;
    struct kj_model_class classes[CLASSES_CAP] = {0};
    struct kj_model_span spans[2048];
    struct kj_sensor_series series[2] = {make_series(&w, s, true, gain, &r), {0}};
    if (s->window_ms > 0)
        series[1] = make_series(&w, s, false, gain, &r);
    for (int c = 0; c < s->classes; c++)
        classes[c].launches = w.launches[c];
    size_t bursts = s->duty < 1 ? keep_bursts(&w, s, classes, spans, &r) : 0;
    const struct kj_model_input input = {.end_ns = (uint64_t)w.end_ns,
                                         .classes = classes,
                                         .class_count = (size_t)s->classes,
                                         .intervals = w.intervals,
                                         .interval_count = w.count,
                                         .timeline_complete = s->duty >= 1,
                                         .complete = spans,
                                         .complete_count = bursts,
                                         .series = series,
                                         .series_count = s->window_ms > 0 ? 2 : 1,
                                         .total_known = true,
                                         .total_uj = llround(w.total_uj * gain),
                                         .limit_mw = 1.5e6};
    struct kj_model_result *results[METHODS] = {0};
    struct kj_error error = {0};
    for (int m = 0; m < METHODS; m++) {
        const struct kj_model_options options = {.method = methods[m], .skip_shape_check = true};
        if (kj_model_attribute(&input, &options, &results[m], &error)) {
            fprintf(stderr, "accuracy: %s: %s\n", s->name, error.text);
            exit(1);
        }
    }
    for (int m = 0; m < METHODS; m++)
        score_run(&w, s, results[m], results[METHODS - 1], results[0], &scores[m]);
    for (int m = 0; m < METHODS; m++)
        kj_model_result_free(results[m]);
    free(w.intervals);
    free(w.at_ns);
    free(w.factor);
    free(w.energy_uj);
    free((void *)series[0].readings);
    free((void *)series[1].readings);
}

int main(int argc, char **argv)
{
    int runs = 20, check = 0, missed = 0;
    const char *only = "";
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--runs") && i + 1 < argc)
            runs = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--only") && i + 1 < argc)
            only = argv[++i];
        else
            check = !strcmp(argv[i], "--check");
    }
    printf("error of the energy of classes, weighted by energy; how often the intervals hold the truth (%d "
           "runs each)\n",
           runs);
    printf("%-32s %9s %9s | %7s %7s %7s %8s %8s | %12s %20s\n", "scenario", "by time", "least sq.", "ours",
           "worst", "R>=0.5", "50 %", "90 %", "identifiable", "where R>=0.5, by time");
    for (size_t i = 0; i < sizeof(scenarios) / sizeof(*scenarios); i++) {
        const struct scenario *s = &scenarios[i];
        struct score scores[METHODS] = {0};
        if (!strstr(s->name, only))
            continue;
        for (int k = 0; k < runs; k++)
            run(s, (uint64_t)k + 1, scores);
        const struct score *ours = &scores[METHODS - 1];
        double r_error = ours->weight_r > 0 ? ours->wrong_r / ours->weight_r : 0;
        double r_time = ours->weight_r > 0 ? ours->time_prop_r / ours->weight_r : 0,
               in90 = ours->inside90 / ours->classes;
        bool miss = in90 < .85 || in90 > .95 || r_error > .05 || (r_error > 0 && r_time < 4 * r_error) ||
                    ours->broken;
        missed += miss;
        printf("%-32s %8.1f%% %8.1f%% | %6.1f%% %6.0f%% %6.1f%% %7.1f%% %7.1f%% | %11.0f%% %19.1f%%%s\n",
               s->name, 100 * scores[0].error / scores[0].weight, 100 * scores[1].error / scores[1].weight,
               100 * ours->error / ours->weight, 100 * ours->worst, 100 * r_error,
               100 * ours->inside50 / ours->classes, 100 * in90, 100 * ours->identifiable / ours->weight,
               100 * r_time, miss ? "  MISSED" : "");
        fflush(stdout);
    }
    return check && missed;
}
