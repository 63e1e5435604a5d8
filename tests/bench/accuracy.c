/* SPDX-License-Identifier: Apache-2.0
 *
 * accuracy - the attribution model over devices whose every joule is known, in virtual time. Each scenario is
 * drawn many times; a table compares time-proportional, least squares without a prior, and the Bayesian
 * model: error weighted by energy, worst class, and how often the intervals hold the truth. Errors are of
 * shares of the total, so that the sensor's gain, which no method can know, is in the intervals and not in
 * the error.
 *
 *     accuracy [--runs N] [--only TEXT] [--jobs N] [--each] [--check]
 *
 * --each: a line for every run; --check: exit 1 where the aims are missed
 *
 * Aims, in every scenario: 85 to 95 % of the 90 % intervals hold the truth, microjoules add up; and of the
 * classes whose R is at least 0.5, the error is at most 5 % and a quarter of that of sharing by time.
 * Coverage carries its standard error (classes of one run are not independent: over runs); an aim is missed
 * when the figure lies outside by itself, not only when it surely does. Powers that follow another law than
 * the prior has it are no exception.
 */
#include "model/attribution.h"
#include "model/normal.h"
#include "record/looks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CLASSES_CAP = 256, METHODS = 3, RUNS = 100, RUNS_CAP = 4000, JOBS_CAP = 64 };
#define MS          1e6
#define IDLE_MW     85000.0
#define LIMIT_MW    700000.0
#define INTERVAL_NS (100 * MS) /* as `kjoule` has it by default */
/* What no table of a sensor tells, in every scenario: */
#define LAUNCH_SD    .03      /* of one launch's power around its class's: other data, other clocks */
#define WARMING      .02      /* more power at the end of the run than at its start */
#define UPDATE_SD_NS (1 * MS) /* of the moment of an update around its grid */
#define COUNTER_SD   .003     /* of one increment of the energy counter */

/* What the classes' powers are drawn from, board power while one runs. */
enum law {
    UNIFORM,    /* 100 to 700 W */
    LOG_NORMAL, /* idle + 230 W times or over 1.5 */
    BIMODAL,    /* memory-bound: 250 W, tensor cores: 600 W, 40 W each way */
};

struct scenario {
    const char *name;
    double step_ms, window_ms, period_ms; /* window 0: counter alone */
    int classes;
    double gain_sd, noise, lag_ms, overlap, duty, seconds;
    double walk;     /* share of the time that --phase-walk may take */
    int on_the_beat; /* steps are as long as they say, to the microsecond, and nothing comes between */
    int shuffled, unlimited; /* the board's limit is not known */
    enum law law;
    double shown_late_ms; /* a value appears up to so much after its window has ended, now more, now less */
    double runs;          /* times as many: where the classes of a run err together, or are many */
};

#define USUAL .classes = 12, .noise = .01, .duty = 1, .seconds = 60, .runs = 1
#pragma GCC diagnostic ignored "-Woverride-init" /* what differs from the usual is said after it */
static const struct scenario scenarios[] = {
    {"step 10 ms, counter", 10, 0, 100, USUAL},
    {"step 10 ms, 25/100", 10, 25, 100, USUAL},
    {"step 10 ms, 100/100", 10, 100, 100, USUAL},
    {"step 10 ms, 10/20", 10, 10, 20, USUAL},
    {"step 30 ms, counter", 30, 0, 100, USUAL},
    {"step 30 ms, 25/100", 30, 25, 100, USUAL},
    {"step 30 ms, 10/20", 30, 10, 20, USUAL},
    {"step 97 ms, 25/100", 97, 25, 100, USUAL},
    {"step 100 ms (resonant), 25/100", 100, 25, 100, USUAL},
    {"step 100 ms (resonant), counter", 100, 0, 100, USUAL},
    {"on the beat of 100 ms, 25/100", 100, 25, 100, USUAL, .on_the_beat = 1},
    {"on the beat, phase walk, 25/100", 100, 25, 100, USUAL, .on_the_beat = 1, .walk = .02},
    {"on the beat of 100 ms, counter", 100, 0, 100, USUAL, .on_the_beat = 1},
    {"on the beat, phase walk, counter", 100, 0, 100, USUAL, .on_the_beat = 1, .walk = .02},
    {"step 300 ms, counter", 300, 0, 100, USUAL},
    {"step 300 ms, 25/100", 300, 25, 100, USUAL},
    {"step 300 ms, 100/100", 300, 100, 100, USUAL},
    {"step 300 ms, 1000/100", 300, 1000, 100, USUAL},
    {"step 300 ms, 10/20", 300, 10, 20, USUAL},
    {"step 1 s, 25/100", 1000, 25, 100, USUAL},
    {"step 1 s, 1000/100", 1000, 1000, 100, USUAL},
    {"step 1 s, counter", 1000, 0, 100, USUAL},
    {"step 300 ms, shuffled, 25/100", 300, 25, 100, USUAL, .shuffled = 1},
    {"5 classes, 300 ms, 25/100", 300, 25, 100, USUAL, .classes = 5},
    {"5 classes, 30 ms, counter", 30, 0, 100, USUAL, .classes = 5},
    {"50 classes, 300 ms, 25/100", 300, 25, 100, USUAL, .classes = 50, .runs = .5},
    {"200 classes, 1 s, 25/100", 1000, 25, 100, USUAL, .classes = 200, .runs = .2},
    {"200 classes, 100 ms, 25/100", 100, 25, 100, USUAL, .classes = 200, .runs = .2},
    {"gain 0.97 +- 0.05, 300 ms", 300, 25, 100, USUAL, .gain_sd = .05, .runs = 4},
    {"gain 0.97 +- 0.05, 10 ms", 10, 25, 100, USUAL, .gain_sd = .05},
    {"noise 5 %, 300 ms", 300, 25, 100, USUAL, .noise = .05},
    {"lag 20 ms, 300 ms", 300, 25, 100, USUAL, .lag_ms = 20},
    {"shown up to 2 ms late, 30 ms", 30, 25, 100, USUAL, .shown_late_ms = 2},
    {"shown up to 2 ms late, 300 ms", 300, 25, 100, USUAL, .shown_late_ms = 2},
    {"overlap 30 %, 300 ms", 300, 25, 100, USUAL, .overlap = .3},
    {"overlap 30 %, 10 ms", 10, 25, 100, USUAL, .overlap = .3},
    {"5 % duty, 300 ms, 25/100", 300, 25, 100, USUAL, .duty = .05, .seconds = 300},
    {"5 % duty, 30 ms, 25/100", 30, 25, 100, USUAL, .duty = .05, .seconds = 120},
    {"limit unknown, 10 ms, 25/100", 10, 25, 100, USUAL, .unlimited = 1},
    {"limit unknown, 300 ms, 25/100", 300, 25, 100, USUAL, .unlimited = 1},
    {"run of 3 s, 30 ms, 25/100", 30, 25, 100, USUAL, .seconds = 3},
    {"log-normal powers, 10 ms, 25/100", 10, 25, 100, USUAL, .law = LOG_NORMAL},
    {"log-normal powers, 300 ms, 25/100", 300, 25, 100, USUAL, .law = LOG_NORMAL},
    {"two kinds of power, 10 ms, 25/100", 10, 25, 100, USUAL, .law = BIMODAL},
    {"two kinds of power, 300 ms, 25/100", 300, 25, 100, USUAL, .law = BIMODAL},
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

/* Over idle. */
static double draw_power_mw(enum law law, struct kj_draws *r)
{
    if (law == LOG_NORMAL)
        return fmin(230e3 * pow(1.5, kj_draw_normal(r)), LIMIT_MW - IDLE_MW);
    if (law == BIMODAL)
        return (kj_draw_uniform(r) < .5 ? 250e3 : 600e3) + uniform(r, -40e3, 40e3) - IDLE_MW;
    return uniform(r, 100e3, 700e3) - IDLE_MW;
}

/* As shim/walk.c: each octave as often. */
static double walk_delay_ns(struct kj_draws *r)
{
    return 2 * MS * pow(2, floor(uniform(r, 0, 4))) * uniform(r, 1, 2);
}

/* Steps of all classes, each with its share of the step; short stalls between steps. */
static void make_timeline(struct world *w, const struct scenario *s, struct kj_draws *r)
{
    double share[CLASSES_CAP], sum = 0, t = 0;
    int order[CLASSES_CAP];
    for (int c = 0; c < s->classes; c++) {
        w->power_mw[c] = draw_power_mw(s->law, r);
        share[c] = uniform(r, .2, 1);
        sum += share[c];
        order[c] = c;
    }
    double beat_ns = t = uniform(r, 50, 300) * MS, due_ns = 0, delay_ns = s->walk > 0 ? walk_delay_ns(r) : 0;
    while (t < s->seconds * 1e9) {
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
        if (s->on_the_beat)
            t = beat_ns = fmax(beat_ns + s->step_ms * MS, t);
        else
            t += s->step_ms * MS * .05 * uniform(r, .5, 1.5);
        if (s->walk > 0 && t > due_ns + delay_ns / s->walk) {
            due_ns = t;
            t = beat_ns += delay_ns;
            delay_ns = walk_delay_ns(r);
        }
        if (!s->on_the_beat && kj_draw_uniform(r) < .02)
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

/* How often the recorder comes to look at a device whose fastest sensor is renewed so often. */
static double look_period_ns(double renewal_ns)
{
    uint64_t before_ns = 0, period_ns = kj_looks_first_ns((uint64_t)INTERVAL_NS);
    while (before_ns != period_ns) {
        before_ns = period_ns;
        period_ns =
            kj_looks_next_ns(before_ns, (uint64_t)INTERVAL_NS, fmin((double)before_ns / renewal_ns, 1), 0);
    }
    return (double)period_ns;
}

/* What the recorder sees: renewed every period, each look repeating the newest value. */
static struct kj_sensor_series make_series(const struct world *w, const struct scenario *s, bool counter,
                                           double gain, struct kj_draws *r)
{
    double look_ns = look_period_ns(fmin(s->window_ms > 0 ? s->period_ms : 100, 100) * MS);
    size_t cap = (size_t)(w->end_ns / look_ns) + 2, count = 0;
    struct kj_reading *readings = malloc(cap * sizeof(*readings));
    double period = (counter ? 100 : s->period_ms) * MS, phase = uniform(r, 0, period),
           look = uniform(r, 0, look_ns), value = 0, counted_uj = 0;
    period *= 1 + .003 * kj_draw_normal(r); /* no two clocks agree, nor does a recorder wake on the dot */
    double tick = 0, update = phase, before = 0, late = 0;
    struct kj_renewals renewals = {0};
    for (double t = 0, seen = -1; look < w->end_ns;) {
        double extra = (double)kj_renewals_next_ns(&renewals), at = fmin(look, extra);
        look += at < look ? 0 : look_ns;
        t = fmax(at + .2 * MS * fabs(kj_draw_normal(r)), t);
        for (; update + late <= t;
             before = update, tick++,
             update = phase + tick * period + fmin(period / 20, UPDATE_SD_NS) * kj_draw_normal(r),
             late = s->shown_late_ms > 0 ? uniform(r, 0, s->shown_late_ms * MS) : 0) {
            double to = update - s->lag_ms * MS, window = s->window_ms * MS;
            counted_uj +=
                (energy_at(w, update) - energy_at(w, before)) * gain * (1 + COUNTER_SD * kj_draw_normal(r));
            value = counter ? floor(counted_uj / 1000) * 1000
                            : (energy_at(w, to) - energy_at(w, to - window)) * 1e6 / window * gain *
                                  (1 + s->noise * kj_draw_normal(r));
        }
        if (!tick)
            continue;
        if (count == cap)
            readings = realloc(readings, (cap *= 2) * sizeof(*readings));
        readings[count++] = (struct kj_reading){(uint64_t)t, (uint64_t)fmax(value, 0)};
        kj_renewals_saw(&renewals, (uint64_t)t, value != seen, (uint64_t)look_ns, 0);
        seen = value;
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
                                         .limit_mw = s->unlimited ? 0 : LIMIT_MW};
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

/* Runs of a scenario, shared out among processes; each leaves its score where all see it. */
static void run_all(const struct scenario *s, size_t runs, size_t jobs, struct score (*scores)[METHODS])
{
    pid_t children[JOBS_CAP];
    memset(scores, 0, runs * sizeof(*scores));
    fflush(stdout);
    for (size_t job = 0; job < jobs; job++) {
        children[job] = fork();
        if (children[job])
            continue;
        for (size_t k = job; k < runs; k += jobs)
            run(s, k + 1, scores[k]);
        _exit(0);
    }
    for (size_t job = 0; job < jobs; job++) {
        int status = 1;
        if (children[job] < 0 || waitpid(children[job], &status, 0) < 0 || status) {
            fprintf(stderr, "accuracy: %s: a run failed\n", s->name);
            exit(1);
        }
    }
}

/* Standard error of a coverage, the classes of one run being one observation. */
static double coverage_error(struct score (*scores)[METHODS], size_t runs, double mean)
{
    double sum = 0, classes = 0;
    for (size_t k = 0; k < runs; k++) {
        const struct score *one = &scores[k][METHODS - 1];
        sum += pow(one->inside90 - mean * one->classes, 2);
        classes += one->classes;
    }
    return sqrt(sum) / classes;
}

static void add_up(struct score *to, const struct score *one)
{
    to->error += one->error, to->weight += one->weight, to->worst = fmax(to->worst, one->worst);
    to->wrong_r += one->wrong_r, to->weight_r += one->weight_r, to->time_prop_r += one->time_prop_r;
    to->inside50 += one->inside50, to->inside90 += one->inside90, to->classes += one->classes;
    to->identifiable += one->identifiable, to->broken += one->broken;
}

static void print_each(struct score (*scores)[METHODS], size_t runs)
{
    for (size_t k = 0; k < runs; k++) {
        const struct score *ours = &scores[k][METHODS - 1];
        printf("    run %zu: by time %.1f %%, least squares %.1f %%, ours %.1f %%, worst %.0f %%, in 90 %%: "
               "%.0f of %.0f\n",
               k + 1, 100 * scores[k][0].error / scores[k][0].weight,
               100 * scores[k][1].error / scores[k][1].weight, 100 * ours->error / ours->weight,
               100 * ours->worst, ours->inside90, ours->classes);
    }
}

static int print_scenario(const struct scenario *s, struct score (*scores)[METHODS], size_t runs)
{
    struct score sums[METHODS] = {0};
    for (size_t k = 0; k < runs; k++)
        for (int m = 0; m < METHODS; m++)
            add_up(&sums[m], &scores[k][m]);
    const struct score *ours = &sums[METHODS - 1];
    double in90 = ours->inside90 / ours->classes, off90 = coverage_error(scores, runs, in90);
    double r_error = ours->weight_r > 0 ? ours->wrong_r / ours->weight_r : 0;
    double r_time = ours->weight_r > 0 ? ours->time_prop_r / ours->weight_r : 0;
    int miss = in90 < .85 || in90 > .95 || r_error > .05 || r_time < 4 * r_error || ours->broken;
    printf("%-35s%8.1f%%%8.1f%% |%6.1f%%%6.0f%%%7.1f%%%7.1f%% +-%4.1f |%9.0f%%", s->name,
           100 * sums[0].error / sums[0].weight, 100 * sums[1].error / sums[1].weight,
           100 * ours->error / ours->weight, 100 * ours->worst, 100 * ours->inside50 / ours->classes,
           100 * in90, 100 * off90, 100 * ours->identifiable / ours->weight);
    if (ours->weight_r > 0)
        printf("%8.1f%%%9.1f%%", 100 * r_error, 100 * r_time);
    else
        printf("%9s%10s", "none", "");
    printf("%s%s\n", miss ? "  MISSED" : "", ours->broken ? ": does not add up" : "");
    return miss;
}

int main(int argc, char **argv)
{
    size_t runs = RUNS, jobs = 0;
    int check = 0, each = 0, missed = 0;
    const char *only = "";
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--runs") && i + 1 < argc)
            runs = strtoul(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--jobs") && i + 1 < argc)
            jobs = strtoul(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--only") && i + 1 < argc)
            only = argv[++i];
        else if (!strcmp(argv[i], "--each"))
            each = 1;
        else if (!strcmp(argv[i], "--check"))
            check = 1;
        else
            return fprintf(stderr, "accuracy: %s: unknown; see the head of accuracy.c\n", argv[i]), 2;
    }
    jobs = jobs ? jobs : (size_t)sysconf(_SC_NPROCESSORS_ONLN);
    jobs = jobs < 1 ? 1 : jobs > JOBS_CAP ? JOBS_CAP : jobs;
    struct score(*scores)[METHODS] =
        mmap(NULL, RUNS_CAP * sizeof(*scores), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (scores == MAP_FAILED)
        return perror("accuracy: mmap"), 1;
    printf("error of the energy of classes, weighted by energy; how often the intervals hold the truth\n");
    printf("%-35s%9s%9s |%7s%7s%8s%8s %6s |%10s%9s%10s\n", "scenario", "by time", "least sq", "ours", "worst",
           "in 50 %", "in 90 %", "s.e.", "R >= 0.5", "error", "by time");
    for (size_t i = 0; i < sizeof(scenarios) / sizeof(*scenarios); i++) {
        const struct scenario *s = &scenarios[i];
        size_t own = (size_t)fmin(fmax(ceil((double)runs * s->runs), 2), RUNS_CAP);
        if (!strstr(s->name, only))
            continue;
        run_all(s, own, jobs, scores);
        missed += print_scenario(s, scores, own);
        if (each)
            print_each(scores, own);
        fflush(stdout);
    }
    return check && missed;
}
