/* SPDX-License-Identifier: Apache-2.0
 *
 * sensor_shape.h - what the readings of a power sensor say of the sensor: over how long it averages, how late
 * it is, how often it is renewed; and against an external meter, its gain.
 *
 * For each window and delay, what the sensor would have read is compared with what it read: of a load that
 * the timeline shows, powers unknown (Gaussian priors, integrated out), or of the power that a meter saw.
 * The likelihood over all of them is the answer; what it leaves open is settled by the windows that sensors
 * of today's boards are known to have (SC'24, arXiv 2312.02741), and that is said. METHOD.md has the
 * formulae.
 *
 * Pure, as attribution.h.
 */
#ifndef KJ_SENSOR_SHAPE_H
#define KJ_SENSOR_SHAPE_H

#include "model/attribution.h"

enum kj_shape_source {
    KJ_SHAPE_GIVEN = 0,   /* by the caller */
    KJ_SHAPE_TRACE,       /* the trace tells */
    KJ_SHAPE_TRACE_KNOWN, /* the trace leaves several open; one of them is known of such sensors */
    KJ_SHAPE_ASSUMED,     /* the trace says nothing */
};
/* "given" "trace" "trace and known sensors" "assumed" */
const char *kj_shape_source_name(enum kj_shape_source source);

struct kj_sensor_shape {
    struct kj_sensor sensor; /* as given, unknowns filled in: window, period, delay (at least 0) */
    enum kj_shape_source window_source, delay_source;
    double window_low_ns,
        window_high_ns;           /* 90 % by the trace alone, known ones it cannot rule out included */
    double other_window_ns;       /* another window of known sensors that the trace cannot rule out; 0 none */
    double best_window_ns;        /* likeliest by the trace alone */
    double delay_ns, delay_sd_ns; /* not cut at 0: what is below is a difference of the clocks */
    double ends_late_ns;          /* the timeline's ends, later than the load's; 0 where not asked */
    double rms_mw;                /* of what the best fit leaves; includes what no window explains */
    double evidence;              /* log likelihood of the best window over the one given; 0: none given */
    bool misfit;                  /* the one given fits so much worse that it is wrong */
    size_t rows;
    /* against a meter alone: reading = gain * power + offset */
    double gain, gain_sd, offset_mw, offset_sd_mw;
};

/* What a caller knows for certain and what is to be looked for. */
struct kj_shape_question {
    const struct kj_sensor_series *series; /* power; its sensor's window_ns 0: unknown */
    bool delay_given;
    double delay_from_ns, delay_to_ns; /* where to look for the delay; both 0: -40 to 60 ms */
};

/* By the timeline of `input`, of which series and totals are not looked at. -ENOMEM; -ENODATA: too few
 * updates, *ret_shape is as assumed. */
int kj_sensor_shape_infer(const struct kj_model_input *input, const struct kj_shape_question *question,
                          struct kj_sensor_shape *ret_shape);
/* By an external meter's readings of power (mW; or a counter's, uJ), on the same clock. */
int kj_sensor_shape_by_meter(const struct kj_shape_question *question, const struct kj_sensor_series *meter,
                             struct kj_sensor_shape *ret_shape);

#endif
