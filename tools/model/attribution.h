/* SPDX-License-Identifier: Apache-2.0
 *
 * attribution.h - who used the energy of one device: sensor readings and a timeline in, joules per class of
 * activity out, each with an interval that is meant to hold the truth as often as it says. The method is on
 * one page in METHOD.md.
 *
 * Definitions. While kernels run, the board's power is its static (idle) power plus the dynamic power of each
 * running kernel. A class's energy is the dynamic energy of its kernels plus their share of the static power
 * while they run, shared equally by those that overlap. `idle` is the energy while nothing runs.
 * `unattributed` is what no rule claims: time that neither a timeline nor counts cover. Always, in integer
 * microjoules: sum(classes) + idle + unattributed == total.
 *
 * Pure: no I/O, no globals, no clock; the same input gives the same output. Different inputs may be solved in
 * different threads. Nothing of the input is kept after the call, and the caller's arrays are only read.
 */
#ifndef KJ_ATTRIBUTION_H
#define KJ_ATTRIBUTION_H

#include "base/log.h"
#include "base/units.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How a sensor turns power into readings. Zero-initialise: an all-zero shape is "nothing is known". */
enum kj_sensor_kernel {
    KJ_SENSOR_BOX = 0, /* a reading is the mean over window_ns */
    KJ_SENSOR_LAG = 1, /* first-order lag with time constant window_ns (Kepler, Maxwell) */
};

struct kj_sensor {
    enum kj_sensor_kernel kernel;
    uint64_t window_ns; /* 0: unknown, inferred (power). Counter: 0 sees all of the time; else it sees only
                           this much before each update */
    uint64_t period_ns; /* how often the value is renewed; 0: inferred from the readings */
    uint64_t delay_ns;  /* the window ends this long before the value appears */
    double delay_sd_ns; /* how far off that may be, 1 sigma; 0: KJ_DELAY_UNKNOWN_SD_NS */
    double gain;        /* true power = (reading - offset) / gain; 0 counts as 1 */
    double offset_mw;
    /* What is not known of the gain after that correction: reading / true ~ N(residual_gain, gain_sd).
     * residual_gain 0 counts as 1. Unknown card: 0.97 and 0.05 (shared/reference/energy.md 1.3). */
    double residual_gain, gain_sd;
    double noise_mw; /* 1 sigma of one reading; 0: estimated from the residuals alone */
};
#define KJ_DELAY_UNKNOWN_SD_NS 1.5e6 /* no table says when after its window a value appears */
#define KJ_GAIN_UNKNOWN_MEAN   0.97
#define KJ_GAIN_UNKNOWN_SD     0.05

/* One reading. Power: value is mW, at t_ns. Counter: cumulative uJ. In order of t_ns; polled readings that
 * repeat the last value are fine, and cost nothing: only updates count as information. */
struct kj_reading {
    uint64_t t_ns;
    uint64_t value;
};

struct kj_sensor_series {
    bool counter;    /* value is uJ cumulative; else mW */
    bool own_times;  /* t_ns is when the sensor renewed its value, each reading an update; else when it was
                        looked at */
    double stamp_ns; /* how far that may be from when it was really looked at; 0: as the recorder does it */
    struct kj_sensor sensor;
    const struct kj_reading *readings;
    size_t count;
};

/* One execution, host clock. Any order; sorted by start_ns is fastest. */
struct kj_model_interval {
    uint64_t start_ns, end_ns;
    uint32_t class_index;
    uint32_t stream; /* informative: overlap is found from the times */
};

struct kj_model_span {
    uint64_t start_ns, end_ns;
};

/* A class: kernels that are taken to draw the same power. */
struct kj_model_class {
    uint64_t launches;     /* exact, inside and outside the timeline; 0: the intervals are all there is */
    double mean_ns, sd_ns; /* learned duration of one launch and its spread; 0: from the intervals */
    uint64_t timed;        /* launches that mean_ns was learned from; 0: the intervals */
    /* 90 % interval of what all launches took together; both 0: as sd_ns and timed say. */
    double time_low_ns, time_high_ns;
    double prior_mw;    /* expected dynamic power; 0: learned from the device's other classes */
    double prior_sd_mw; /* ignored when prior_mw is 0 */
};

struct kj_model_input {
    uint64_t start_ns, end_ns; /* of the run, on the clock of the intervals and readings */
    const struct kj_model_class *classes;
    size_t class_count;
    const struct kj_model_interval *intervals;
    size_t interval_count;
    /* Sums of parts of classes that are wanted too, such as phases of a training: [class][label] is the part
     * of the class's energy that is the label's. A class's parts add up to 1. NULL: none are wanted. */
    const double *label_share;
    /* [class][label] the part is a guess: anything from 0 to all of the class. NULL: none is. */
    const bool *label_open;
    size_t label_count;
    /* Where the timeline is complete: in order, and none overlaps with another. No span and
     * !timeline_complete: nowhere. */
    bool timeline_complete;
    const struct kj_model_span *complete;
    size_t complete_count;

    const struct kj_sensor_series
        *series; /* the first counter, else the first power series, is the reference */
    size_t series_count;

    bool total_known;    /* false: the total is what the model integrates from the power readings */
    int64_t total_uj;    /* what must add up, as the counter said (before sensor.gain) */
    uint64_t context_ns; /* when the first context was made; 0: before start. Idle with and without one are
                            two levels */
    uint64_t context_end_ns;    /* when the last one ended; 0: after the end */
    double idle_mw, idle_sd_mw; /* of the device with a context; 0: learned */
    double limit_mw;            /* board limit: no power above; 0: unknown */
    uint64_t
        step_ns; /* period of the training step, for the resonance warning; 0: guessed from the launches */
    uint64_t walked_ns; /* what delays made on purpose have moved the steps by, in sum */
};

enum kj_model_method {
    /* The whole posterior of the powers, bounded, under a prior that the classes share; and least squares
     * without one, for comparison. Where the sensors saw little, the former's interval is the prior's given
     * the total, and the class is modelled. */
    KJ_MODEL_BAYES = 0,
    KJ_MODEL_LEAST_SQUARES = 1,
    /* Energy over idle by time. The interval of a class is bounds, not statistics: from its time at idle
     * power to all that the other classes at idle power leave over. */
    KJ_MODEL_TIME_PROPORTIONAL = 2,
};

struct kj_model_options {
    enum kj_model_method method;
    uint32_t draws;        /* of the posterior; 0: 1000 */
    bool skip_shape_check; /* do not look whether another window fits far better */
    bool keep_windows;     /* fill result.windows */
};

/* Intervals are 90 % and 50 %, everything included: statistics, durations, prior, the sensor's gain. */
struct kj_model_estimate {
    int64_t energy_uj;
    double sd_uj; /* statistical alone; the gain is a common factor, see kj_model_result.gain_sd */
    int64_t low_uj, high_uj, low50_uj, high50_uj;
};

struct kj_model_class_result {
    struct kj_model_estimate energy;  /* static share included */
    struct kj_model_estimate dynamic; /* over idle */
    double time_ns;                   /* executions added up; overlapping ones count each */
    double identifiability;           /* R: 0 the prior alone, 1 the data alone; METHOD.md */
    enum kj_method method;            /* estimated: R >= 0.5; modelled: below; measured: it alone ran */
    /* No launch has a duration: energy_uj is 0 and in no sum. low and high bound what it may have taken,
     * where other classes are timed; both 0: nothing is known. */
    bool untimed;
    int32_t group; /* index in groups, -1: can be told apart from the others */
};

/* Classes that the run cannot tell apart; their sum is known better than its parts. */
struct kj_model_group {
    struct kj_model_estimate energy;
    double identifiability;
    size_t members;
};

/* The part of each class, summed within the same draws: what the classes' errors have in common stays in. */
struct kj_model_label {
    struct kj_model_estimate energy; /* of all labels, they add up to kernels_uj */
    double identifiability;
    enum kj_method method; /* as a class's */
};

/* code, text of the way out is in the message */
#define KJ_MODEL_WARNINGS(X)                                                                                 \
    X(NO_POWER, "no usable reading")                                                                         \
    X(RESONANCE, "step period sits on the sensor's period")                                                  \
    X(WINDOW, "another sensor window fits far better")                                                       \
    X(BOUND, "a power was held at zero or at the board limit")                                               \
    X(COVERAGE, "sensor or timeline cover little of the run")                                                \
    X(RESIDUAL, "what the model wanted differs from the total")                                              \
    X(DURATION, "launches without a known duration")                                                         \
    X(DISAGREE, "two sensors disagree beyond their gain")

enum kj_model_warning_code {
#define X(name, doc) KJ_MODEL_WARN_##name,
    KJ_MODEL_WARNINGS(X)
#undef X
};

struct kj_model_warning {
    enum kj_model_warning_code code;
    char text[240];
};

/* One row of the regression, for whoever wants to check. */
struct kj_model_window {
    uint64_t start_ns, end_ns;
    uint32_t series;
    double measured_uj, modelled_uj;
};

struct kj_model_result {
    int64_t total_uj;
    int64_t total_low_uj, total_high_uj; /* 90 %: the sensor's gain and what it did not see */
    int64_t kernels_uj, idle_uj, unattributed_uj;
    int64_t kernels_high_uj; /* no more than that, by the bounds of their time and of the board */
    struct kj_model_estimate idle;
    double busy_ns, idle_ns; /* something ran, nothing ran */
    /* Launches of untimed classes. What they took is in unattributed_uj, and in idle_uj as far as idle power
     * goes, for nobody knows when they ran. */
    uint64_t untimed;
    double idle_mw, idle_sd_mw;    /* static power, context resident */
    double bare_mw;                /* of the device without a context; 0: not seen */
    double idle_most_mw;           /* idle_mw was not seen by itself, and is no more than that; 0: it was */
    double residual_gain, gain_sd; /* of the reference, as used */

    struct kj_model_class_result *classes; /* as the input's */
    size_t class_count;
    struct kj_model_group *groups;
    size_t group_count;
    struct kj_model_label *labels; /* as the input's */
    size_t label_count;

    /* Residual: what is left of each reading; and what the model wanted before it was made to add up. */
    size_t rows;
    double residual_rms_mw, residual_relative; /* relative to the mean reading */
    double residual_autocorrelation;           /* of neighbouring rows; white is 0 */
    double raking_factor;                      /* total / modelled total, 1 is perfect */
    double sensor_coverage;                    /* share of the run that readings look at */
    double timeline_coverage;                  /* share of the run where the timeline is complete */
    struct kj_sensor *sensors;                 /* per series: as given, unknowns filled in */
    size_t sensor_count;

    struct kj_model_warning warnings[8];
    size_t warning_count;
    struct kj_model_window *windows;
    size_t window_count;
};

/* -ENOMEM; -EINVAL: end before start, class index out of range, interval that ends before
 * it starts (error says which). Without any usable reading, and a known total, the split is time-proportional
 * and tagged modelled. */
int kj_model_attribute(const struct kj_model_input *input, const struct kj_model_options *options,
                       struct kj_model_result **ret_result, struct kj_error *error);
/* NULL-safe, returns NULL. */
struct kj_model_result *kj_model_result_free(struct kj_model_result *result);

#endif
