/* SPDX-License-Identifier: Apache-2.0
 *
 * wave_shape.h - how a power sensor or an energy counter turns power into readings, found from what it
 * showed while a load of known times was switched on and off.
 *
 * The load is a rectangular wave. A reading is the mean of what was on over a window that ends some delay
 * before the value appears (or a first-order lag of it), on a straight line between the powers off and on:
 *
 *     y = off + (on - off) x(window, delay) + noise        x: share of the window that the load was on
 *
 * For each window and delay the line is linear least squares; the two are searched, and their intervals are
 * where the likelihood falls by what 90 % allow (profile likelihood), with as many readings as are
 * independent. Waves whose periods keep no step with the sensor's updates are what makes both known: Yang,
 * Adamek, Armour, SC'24, arXiv 2312.02741. A counter is tried with windows shorter than its update period: if
 * one of them explains the steps far better than the whole period, then the counter adds up samples of power,
 * and does not see the rest of the time.
 *
 * Pure: no I/O, no globals, no clock.
 */
#ifndef KJ_WAVE_SHAPE_H
#define KJ_WAVE_SHAPE_H

#include "model/attribution.h"

/* A value with its 90 % interval. */
struct kj_range {
    double value, low, high;
};

struct kj_wave {
    const struct kj_sensor_series *series; /* polled often; of its shape only `counter` is looked at */
    const struct kj_model_span *on;        /* when the load ran: in order, apart from one another */
    size_t on_count;
    const struct kj_model_span *use; /* where updates count: in order. Outside them `on` must hold, too */
    size_t use_count;
};

struct kj_wave_shape {
    enum kj_sensor_kernel kernel;
    struct kj_range window_ns; /* lag: the time constant. Counter: 0 when it sees all of the time */
    struct kj_range period_ns; /* of updates; value 0: each reading was new */
    struct kj_range delay_ns;  /* from the window's end to the update */
    struct kj_range on_mw, off_mw;
    double noise_mw;    /* 1 sigma of what the wave leaves unexplained of a reading */
    double unexplained; /* share of the readings' variance that is left */
    size_t updates;     /* that were looked at */
    /* Counter alone: */
    bool sub_sampled; /* sees only window_ns of each period */
    double wander;    /* relative rms of its power over about a second, against what the wave says */
};

/* What to switch, and for what share of the time: periods of many lengths, none of which keeps step with
 * updates every 10, 20 or 100 ms. The first is that of the self-test of counters: 50 ms on, 54 ms off. */
struct kj_wave_step {
    double on_ms, off_ms, share;
};
extern const struct kj_wave_step kj_wave_plan[];
extern const size_t kj_wave_plan_count;

/* 0; -ENOMEM; -ENODATA: fewer than 24 updates; -EDOM: the readings do not follow the wave. The error says it.
 */
int kj_wave_shape_find(const struct kj_wave *wave, struct kj_wave_shape *ret_shape, struct kj_error *error);

#endif
