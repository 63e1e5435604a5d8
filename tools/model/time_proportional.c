/* SPDX-License-Identifier: Apache-2.0
 *
 * time_proportional.c - attribution by time: each class gets energy in proportion to how long it ran. It
 * knows nothing of what tells kernels apart, so the intervals are bounds: no kernel runs below idle power, so
 * none takes more than what the others at idle power leave over; and none above the board's limit. The
 * highest power seen would be no bound: a sensor's window blurs kernels that are shorter than itself.
 */
#include "model/parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BOARD_MOST_MW 1200000.0 /* no board of today draws more (B200: 1,000 to 1,200 W) */
#define IDLE_SEEN_SD  0.15      /* of idle power that a reading or two showed */
#define BUSY_MOST     1.02      /* of the run's time, that kernels may be told to have taken */
#define SETTLE_NS     (200 * (uint64_t)KJ_NS_PER_MS) /* renewal and window of the slower sensors */

/* What the readings say of power: lowest and highest mean between two of their updates. */
struct power_range {
    double min_mw, max_mw;
    bool known;
};

static void widen(struct power_range *range, double mw)
{
    if (!range->known || mw < range->min_mw)
        range->min_mw = mw;
    if (!range->known || mw > range->max_mw)
        range->max_mw = mw;
    range->known = true;
}

static void look_at_counter(const struct kj_sensor_series *series, struct power_range *range)
{
    const struct kj_reading *from = NULL;
    for (size_t i = 1; i < series->count; i++) {
        const struct kj_reading *now = &series->readings[i];
        if (now->value == series->readings[i - 1].value)
            continue;
        /* An update lies between two polls: a mean over a stretch that is long beside that is good. */
        if (from && now->t_ns - from->t_ns < 400 * KJ_NS_PER_MS)
            continue;
        if (from && now->value > from->value)
            widen(range, (double)(now->value - from->value) * 1e6 / (double)(now->t_ns - from->t_ns));
        from = now;
    }
}

/* Of the readings in [from, to): power readings alone where there are some, for their window is known to be
 * short. */
static struct power_range power_range(const struct kj_model_input *input, uint64_t from_ns, uint64_t to_ns)
{
    struct power_range range = {0};
    for (size_t s = 0; s < input->series_count; s++) {
        const struct kj_sensor_series *series = &input->series[s];
        for (size_t i = 0; !series->counter && i < series->count; i++)
            if (series->readings[i].value && series->readings[i].t_ns >= from_ns &&
                series->readings[i].t_ns < to_ns)
                widen(&range, (double)series->readings[i].value);
    }
    for (size_t s = 0; s < input->series_count && !range.known; s++) {
        const struct kj_sensor_series *series = &input->series[s];
        size_t first = 0, end;
        while (first < series->count && series->readings[first].t_ns < from_ns)
            first++;
        for (end = first; end < series->count && series->readings[end].t_ns < to_ns; end++)
            ;
        const struct kj_sensor_series part = {.readings = series->readings + first, .count = end - first};
        if (series->counter)
            look_at_counter(&part, &range);
    }
    return range;
}

static int by_start(const void *a, const void *b)
{
    uint64_t x = ((const struct kj_model_interval *)a)->start_ns,
             y = ((const struct kj_model_interval *)b)->start_ns;
    return (x > y) - (x < y);
}

/* A copy in order of start; NULL when there are none. */
struct kj_model_interval *kj_model_sorted_intervals(const struct kj_model_input *input)
{
    struct kj_model_interval *sorted =
        input->interval_count ? malloc(input->interval_count * sizeof(*sorted)) : NULL;
    if (sorted) {
        memcpy(sorted, input->intervals, input->interval_count * sizeof(*sorted));
        qsort(sorted, input->interval_count, sizeof(*sorted), by_start);
    }
    return sorted;
}

/* Time that the intervals cover, over the sum of their lengths: 1 when none overlap. */
static double overlap_factor(const struct kj_model_interval *sorted, size_t count)
{
    double sum_ns = 0, covered_ns = 0;
    uint64_t reached_ns = 0;
    for (size_t i = 0; sorted && i < count; i++) {
        uint64_t start_ns = sorted[i].start_ns > reached_ns ? sorted[i].start_ns : reached_ns;
        sum_ns += (double)(sorted[i].end_ns - sorted[i].start_ns);
        if (sorted[i].end_ns > start_ns) {
            covered_ns += (double)(sorted[i].end_ns - start_ns);
            reached_ns = sorted[i].end_ns;
        }
    }
    return sum_ns > 0 ? covered_ns / sum_ns : 1;
}

/* The lowest power read while the timeline shows nothing for as long as a sensor looks back, while there
 * is a context.
 * Where it is complete, or holds nearly all launches: a gap in any other may be full of work. */
static struct power_range idle_range(const struct kj_model_input *input,
                                     const struct kj_model_interval *sorted,
                                     const struct kj_model_span *context, bool anywhere)
{
    struct power_range range = {0};
    for (size_t s = 0; s < input->series_count; s++) {
        const struct kj_sensor_series *series = &input->series[s];
        uint64_t reached_ns = 0;
        size_t next = 0;
        for (size_t i = 0; !series->counter && i < series->count; i++) {
            uint64_t t_ns = series->readings[i].t_ns;
            for (; sorted && next < input->interval_count && sorted[next].start_ns <= t_ns; next++)
                reached_ns = sorted[next].end_ns > reached_ns ? sorted[next].end_ns : reached_ns;
            if (t_ns >= context->start_ns + SETTLE_NS && t_ns <= context->end_ns &&
                reached_ns + SETTLE_NS <= t_ns && series->readings[i].value &&
                (anywhere || kj_model_is_complete(input, (double)(t_ns - SETTLE_NS), (double)t_ns)))
                widen(&range, (double)series->readings[i].value);
        }
    }
    return range;
}

static bool timeline_is_nearly_whole(const struct kj_model_input *input)
{
    uint64_t launches = 0;
    for (size_t c = 0; c < input->class_count; c++)
        launches += input->classes[c].launches;
    return (double)input->interval_count >= 0.9 * (double)launches;
}

double kj_model_time_low_ns(const struct kj_model_input *input, const struct kj_model_result *result,
                            size_t c)
{
    double low_ns = input->classes[c].time_low_ns, ns = result->classes[c].time_ns;
    return input->classes[c].time_high_ns > 0 ? fmin(fmax(low_ns, 0), ns) : ns;
}

double kj_model_time_high_ns(const struct kj_model_input *input, const struct kj_model_result *result,
                             size_t c)
{
    return fmax(input->classes[c].time_high_ns, result->classes[c].time_ns);
}

/* Time of each class: exact launches x learned duration, else what the intervals say. Counts launches without
 * any duration. */
static void class_times(const struct kj_model_input *input, struct kj_model_result *result)
{
    double *sum_ns = calloc(input->class_count + 1, sizeof(*sum_ns));
    uint64_t *seen = calloc(input->class_count + 1, sizeof(*seen));
    for (size_t i = 0; sum_ns && seen && i < input->interval_count; i++) {
        const struct kj_model_interval *interval = &input->intervals[i];
        sum_ns[interval->class_index] += (double)(interval->end_ns - interval->start_ns);
        seen[interval->class_index]++;
    }
    for (size_t c = 0; c < input->class_count; c++) {
        const struct kj_model_class *class = &input->classes[c];
        double mean_ns = class->mean_ns > 0          ? class->mean_ns
                         : sum_ns && seen && seen[c] ? sum_ns[c] / (double)seen[c]
                                                     : 0;
        uint64_t launches = class->launches ? class->launches : seen ? seen[c] : 0;
        result->classes[c].time_ns = mean_ns * (double)launches;
        result->classes[c].untimed = mean_ns <= 0 && launches;
        result->untimed += result->classes[c].untimed ? launches : 0;
    }
    free(sum_ns);
    free(seen);
}

static int64_t clamp(double value, int64_t low, int64_t high)
{
    return value < (double)low ? low : value > (double)high ? high : llround(value);
}

/* What all timed classes took together: bounds that follow from those of their times. */
struct bounds {
    double static_uj_per_ns; /* of a class's own time: idle power, shared where several run */
    double static_uj;        /* of all of them at their least */
    double low_uj, high_uj;
    double limit_mw;
};

static struct bounds find_bounds(const struct kj_model_input *input, const struct kj_model_result *result,
                                 double time_ns, double limit_mw)
{
    double low_ns = 0, high_ns = 0, factor = time_ns > 0 ? result->busy_ns / time_ns : 0;
    for (size_t c = 0; c < input->class_count; c++) {
        low_ns += kj_model_time_low_ns(input, result, c) * factor;
        high_ns += kj_model_time_high_ns(input, result, c) * factor;
    }
    high_ns = fmin(high_ns, result->busy_ns + result->idle_ns);
    /* Time that is not the kernels' is idle. */
    double over_uj = (double)(result->total_uj - result->idle_uj), idle_uj_per_ns = result->idle_mw * 1e-6;
    struct bounds b = {.static_uj_per_ns = idle_uj_per_ns * factor, .static_uj = idle_uj_per_ns * low_ns};
    b.limit_mw = limit_mw;
    b.low_uj = result->untimed ? 0 : over_uj - idle_uj_per_ns * (result->busy_ns - low_ns);
    b.low_uj = fmax(fmin(b.low_uj, limit_mw * 1e-6 * low_ns), b.static_uj);
    b.high_uj = fmin(over_uj + idle_uj_per_ns * (high_ns - result->busy_ns), limit_mw * 1e-6 * high_ns);
    return b;
}

static void bound_class(const struct kj_model_input *input, struct kj_model_result *result, size_t c,
                        const struct bounds *b)
{
    struct kj_model_class_result *class = &result->classes[c];
    struct kj_model_estimate *e = &class->energy;
    double own_static_uj = kj_model_time_low_ns(input, result, c) * b->static_uj_per_ns;
    bool alone = input->class_count == 1;
    double high_uj = fmin(b->high_uj - (b->static_uj - own_static_uj),
                          b->limit_mw * 1e-6 * kj_model_time_high_ns(input, result, c));
    e->low_uj = clamp(alone ? b->low_uj : own_static_uj, 0, e->energy_uj);
    e->high_uj = clamp(high_uj, e->energy_uj, result->total_uj);
    e->low50_uj = (e->low_uj + e->energy_uj) / 2;
    e->high50_uj = (e->high_uj + e->energy_uj) / 2;
    e->sd_uj = (double)(e->high_uj - e->low_uj) / (2 * KJ_Z90);
    int64_t static_uj = clamp(own_static_uj, 0, e->energy_uj);
    class->dynamic = *e;
    class->dynamic.energy_uj -= static_uj;
    class->dynamic.low_uj = class->dynamic.low_uj > static_uj ? class->dynamic.low_uj - static_uj : 0;
    class->dynamic.high_uj -= static_uj < class->dynamic.high_uj ? static_uj : class->dynamic.high_uj;
}

/* Shares out whole microjoules so that they add up: each class the difference of rounded running sums. */
static void share_out(const struct kj_model_input *input, struct kj_model_result *result, double time_ns,
                      double limit_mw, const struct power_range *range)
{
    double running = 0;
    int64_t given = 0;
    const struct bounds bounds = find_bounds(input, result, time_ns, limit_mw);
    for (size_t c = 0; c < input->class_count; c++) {
        struct kj_model_class_result *class = &result->classes[c];
        running += class->time_ns;
        int64_t until = running < time_ns
                            ? clamp((double)result->kernels_uj * running / time_ns, 0, result->kernels_uj)
                            : result->kernels_uj;
        class->energy.energy_uj = until - given;
        given = until;
        class->method = KJ_MODELLED;
        class->group = -1;
        if (time_ns <= 0 || class->untimed)
            continue;
        bound_class(input, result, c, &bounds);
        /* What several draw is not told apart by time; what one does, by the total. */
        if (input->class_count == 1 && range->known && !result->unattributed_uj)
            class->identifiability =
                class->energy.sd_uj > 0 ? kj_model_identifiability(&class->energy, HUGE_VAL, 0) : 1;
        class->method = class->identifiability >= KJ_R_ESTIMATED ? KJ_ESTIMATED : KJ_MODELLED;
    }
    result->kernels_high_uj = time_ns > 0 ? clamp(bounds.high_uj, result->kernels_uj, result->total_uj) : 0;
}

struct kj_model_span kj_model_context(const struct kj_model_input *input)
{
    uint64_t start_ns = input->context_ns > input->start_ns ? input->context_ns : input->start_ns;
    uint64_t end_ns = input->context_end_ns && input->context_end_ns < input->end_ns ? input->context_end_ns
                                                                                     : input->end_ns;
    start_ns = start_ns < input->end_ns ? start_ns : input->end_ns;
    return (struct kj_model_span){start_ns, end_ns > start_ns ? end_ns : start_ns};
}

double kj_model_bare_ns(const struct kj_model_input *input, const struct kj_model_result *result)
{
    const struct kj_model_span context = kj_model_context(input);
    return fmin((double)(context.start_ns - input->start_ns + input->end_ns - context.end_ns),
                result->idle_ns);
}

/* The least power with a context, which idle power cannot be above; else the mean. */
static double idle_most_mw(const struct kj_model_input *input, const struct kj_model_result *result)
{
    const struct kj_model_span context = kj_model_context(input);
    struct power_range seen = power_range(input, context.start_ns + SETTLE_NS, context.end_ns);
    double bare_ns = kj_model_bare_ns(input, result), length_ns = (double)(context.end_ns - context.start_ns);
    double uj = (double)result->total_uj - result->bare_mw * bare_ns * 1e-6;
    return seen.known ? seen.min_mw : fmax(uj * 1e6 / fmax(length_ns, 1), result->bare_mw);
}

/* Idle power without a context and with one differ; a reading soon after the change looks at both. */
static double idle_energy_uj(const struct kj_model_input *input, const struct kj_model_interval *sorted,
                             struct kj_model_result *result)
{
    const struct kj_model_span context = kj_model_context(input);
    double bare_ns = kj_model_bare_ns(input, result);
    struct power_range bare = power_range(input, input->start_ns, context.start_ns);
    if (!bare.known)
        bare = power_range(input, context.end_ns + SETTLE_NS, input->end_ns);
    bool anywhere = input->interval_count && timeline_is_nearly_whole(input);
    struct power_range after = idle_range(input, sorted, &context, anywhere);
    struct power_range any = power_range(input, 0, UINT64_MAX);
    double run_ns = (double)(input->end_ns - input->start_ns);
    double mean_mw = run_ns > 0 ? (double)result->total_uj * 1e6 / run_ns : 0;
    result->bare_mw = bare.known ? bare.min_mw : 0;
    result->idle_mw = input->idle_mw > 0 ? input->idle_mw
                      : after.known      ? after.min_mw
                      : any.known        ? any.min_mw
                                         : 0;
    result->idle_sd_mw = input->idle_mw > 0 && input->idle_sd_mw > 0 ? input->idle_sd_mw
                         : input->idle_mw > 0 || after.known         ? IDLE_SEEN_SD * result->idle_mw + 1000
                                                             : result->idle_mw; /* no more than that */
    result->idle_most_mw = input->idle_mw > 0 || after.known ? 0 : idle_most_mw(input, result);
    if (result->idle_mw <= 0 || result->idle_mw > mean_mw)
        result->idle_mw = mean_mw; /* nothing better is known: idle as costly as the rest */
    double level_mw = bare.known ? fmin(bare.min_mw, result->idle_mw) : result->idle_mw;
    return (level_mw * bare_ns + result->idle_mw * (result->idle_ns - bare_ns)) * 1e-6;
}

void kj_model_warn(struct kj_model_result *result, enum kj_model_warning_code code, const char *text)
{
    if (result->warning_count == sizeof(result->warnings) / sizeof(*result->warnings))
        return;
    struct kj_model_warning *warning = &result->warnings[result->warning_count++];
    warning->code = code;
    strncpy(warning->text, text, sizeof(warning->text) - 1);
}

/* What the timed classes took, and what has no owner: of launches that nobody timed, and more than a board
 * can draw in the kernels' time, which was something else: a clock that had not come down yet, another's
 * work. Beside untimed launches the most power that was seen stands for the kernels', for what is left is not
 * theirs alone. */
static double own_energy(const struct kj_model_input *input, struct kj_model_result *result, double time_ns,
                         const struct power_range *range)
{
    double limit_mw = input->limit_mw > 0 ? input->limit_mw : BOARD_MOST_MW;
    double most_mw = result->untimed && range->known ? fmin(limit_mw, range->max_mw) : limit_mw;
    int64_t over_uj = result->total_uj - result->idle_uj;
    result->kernels_uj = time_ns > 0 ? clamp(most_mw * result->busy_ns * 1e-6, 0, over_uj) : 0;
    result->unattributed_uj = over_uj - result->kernels_uj;
    if (time_ns <= 0)
        kj_model_warn(result, KJ_MODEL_WARN_DURATION,
                      "no launch was timed, so the kernels' energy is unknown: energy above idle power is "
                      "unattributed, and idle power counts as idle; run with --timing events");
    else if (result->untimed)
        kj_model_warn(result, KJ_MODEL_WARN_DURATION,
                      "some kernels were never timed, so their energy is unknown: it is in the unattributed "
                      "energy; a longer run, a larger --budget or --timing cupti times them");
    return limit_mw;
}

/* Brackets that hold more than their launches are seen here at the latest. */
static void warn_of_busy_time(struct kj_model_result *result, double busy_ns, double run_ns)
{
    char text[sizeof(result->warnings[0].text) - 1];
    if (busy_ns <= BUSY_MOST * run_ns)
        return;
    snprintf(
        text, sizeof(text),
        "launches are told as %.3g s of the device's time, in a run of %.3g s: their times hold more than "
        "them, and so may energies that are shared by time; kjoule run --timing cupti times each of them",
        busy_ns * 1e-9, run_ns * 1e-9);
    kj_model_warn(result, KJ_MODEL_WARN_DURATION, text);
}

void kj_model_split_by_time(const struct kj_model_input *input, struct kj_model_result *result)
{
    struct power_range range = power_range(input, 0, UINT64_MAX);
    double run_ns = (double)(input->end_ns - input->start_ns), time_ns = 0, limit_mw = 0;
    class_times(input, result);
    for (size_t c = 0; c < input->class_count; c++)
        time_ns += result->classes[c].time_ns;
    struct kj_model_interval *sorted = kj_model_sorted_intervals(input);
    double busy_ns = time_ns * overlap_factor(sorted, input->interval_count);
    warn_of_busy_time(result, busy_ns, run_ns);
    result->busy_ns = fmin(busy_ns, run_ns);
    result->idle_ns = run_ns - result->busy_ns;
    result->idle_uj = clamp(idle_energy_uj(input, sorted, result), 0, result->total_uj);
    free(sorted);
    if (input->class_count)
        limit_mw = own_energy(input, result, time_ns, &range);
    else
        result->idle_uj = result->total_uj;
    result->idle.energy_uj = result->idle_uj;
    result->idle.low_uj = 0;
    result->idle.high_uj = clamp(run_ns > 0 ? (double)result->total_uj * result->idle_ns / run_ns : 0,
                                 result->idle_uj, result->total_uj);
    if (!range.known)
        kj_model_warn(result, KJ_MODEL_WARN_NO_POWER, "no power reading; energy is shared by time alone");
    share_out(input, result, time_ns, limit_mw, &range);
}
