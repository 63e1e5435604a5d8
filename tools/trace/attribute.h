/* SPDX-License-Identifier: Apache-2.0
 *
 * attribute.h - one device's timeline and power readings laid on one clock, attributed by model/, as a
 * finished answer for the writers.
 *
 * The run is the stretch that all power series cover, or what is asked of it; the timeline is taken to be
 * complete in it: what it does not show is idle. Times of the answer are on the power log's clock.
 */
#ifndef KJ_TRACE_ATTRIBUTE_H
#define KJ_TRACE_ATTRIBUTE_H

#include "model/sensor_shape.h"
#include "model/total.h"
#include "trace/trace.h"

enum { KJ_TRACE_SERIES_CAP = 8, KJ_TRACE_WARNINGS_CAP = 24 };

/* One power series to be used, and what the user says of its sensor. */
struct kj_trace_source {
    const char *file;
    const struct kj_trace_series *series;
    struct kj_sensor sensor;
    bool delay_given, gain_given, gain_sd_given;
};

struct kj_trace_question {
    const struct kj_trace_timeline *timeline;
    struct kj_trace_source sources[KJ_TRACE_SERIES_CAP];
    size_t source_count;
    const struct kj_trace_series *meter; /* NULL none; on the power log's clock */
    const char *device;                  /* NULL: the only one */
    int64_t offset_ns;                   /* timeline's time + offset = power log's time */
    bool align;                          /* find the offset */
    bool from_given, to_given;
    int64_t from_ns, to_ns;
    double limit_mw; /* board limit; 0 unknown */
    enum kj_model_method method;
};

struct kj_trace_kernel {
    const char *name; /* of the timeline */
    uint64_t launches;
    struct kj_model_class_result result;
};

enum kj_trace_gain_source {
    KJ_TRACE_GAIN_UNKNOWN, /* 0.97 +- 0.05 of any card */
    KJ_TRACE_GAIN_GIVEN,
    KJ_TRACE_GAIN_METER,
};

struct kj_trace_sensor {
    const char *file, *channel;
    bool counter;
    struct kj_sensor_shape shape; /* counter: window and delay have no meaning */
    enum kj_trace_gain_source gain_source;
};

/* The stretch that meter and run share. */
struct kj_trace_meter {
    bool known;
    int64_t start_ns, end_ns;
    double meter_uj, as_read_uj, corrected_uj, corrected_low_uj, corrected_high_uj;
};

struct kj_trace_answer {
    const char *device;
    int64_t start_ns, end_ns; /* of the run, on the power log's clock */
    int64_t offset_ns;
    const char *offset_source;           /* "given" "none" "aligned" */
    double align_correlation;            /* 0..1, when aligned */
    uint64_t launches, launches_outside; /* of the device; of them not in the run */
    struct kj_trace_kernel *kernels;     /* most energy first */
    size_t kernel_count;
    struct kj_model_result *result; /* totals, idle, groups, residual */
    struct kj_model_total total;    /* windows' times: since start_ns */
    struct kj_trace_sensor sensors[KJ_TRACE_SERIES_CAP];
    size_t sensor_count;
    struct kj_trace_meter meter;
    char *warnings[KJ_TRACE_WARNINGS_CAP];
    size_t warning_count;
};

/* 0, -EINVAL (error: what, and what to do), -ENOMEM. The answer points into the question's timeline and
 * files. */
int kj_trace_attribute(const struct kj_trace_question *question, struct kj_trace_answer **ret_answer,
                       struct kj_error *error);
struct kj_trace_answer *kj_trace_answer_free(struct kj_trace_answer *answer);

/* align.c: what to add to the times of the busy stretches so that power follows them: the offset of the best
 * correlation, *ret_correlation, and of the best one elsewhere (more than a second or half the timeline
 * away), *ret_second. names: more than any launch's name. -ENOMEM. */
int kj_trace_align(const struct kj_trace_launch *launches, size_t launch_count, size_t names,
                   const struct kj_trace_series *series, int64_t *ret_offset_ns, double *ret_correlation,
                   double *ret_second);

#endif
