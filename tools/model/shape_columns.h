/* SPDX-License-Identifier: Apache-2.0
 *
 * shape_columns.h - the columns of sensor_shape.c's regression: what a timeline says of power at each moment.
 * Inside the room only. Pure.
 */
#ifndef KJ_SHAPE_COLUMNS_H
#define KJ_SHAPE_COLUMNS_H

#include "model/attribution.h"
#include "model/curve.h"

enum { KJ_SHAPE_CLASSES = 6, KJ_SHAPE_AGES = 4, KJ_SHAPE_COLUMNS = 2 + KJ_SHAPE_CLASSES + 2 * KJ_SHAPE_AGES };

/* Each with the normal prior of its power. [0] is idle, all of the time, and has no curve. */
struct kj_shape_columns {
    struct kj_curve curve[KJ_SHAPE_COLUMNS];
    double mean[KJ_SHAPE_COLUMNS], sd[KJ_SHAPE_COLUMNS];
    size_t count;
};

struct kj_shape_span {
    double start_ns, end_ns;
};

struct kj_shape_timeline {
    const struct kj_model_input *input;
    struct kj_model_interval *sorted;
    struct kj_shape_span *loads; /* stretches in which something ran */
    size_t load_count;
    int *column;                   /* [class] */
    struct kj_curve_piece *pieces; /* room for as many as there are launches */
};

/* 0, -ENODATA without any launch, -ENOMEM. Closed in either case. */
int kj_shape_timeline_open(const struct kj_model_input *input, struct kj_shape_timeline *ret_timeline);
void kj_shape_timeline_close(struct kj_shape_timeline *timeline);

/* The columns, if all loads ended late_ns before the timeline says; low and high: the range of the readings.
 */
int kj_shape_columns_open(const struct kj_shape_timeline *timeline, double low_mw, double high_mw,
                          double late_ns, struct kj_shape_columns *ret_columns);
void kj_shape_columns_close(struct kj_shape_columns *columns);

#endif
