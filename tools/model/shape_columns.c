/* SPDX-License-Identifier: Apache-2.0
 *
 * shape_columns.c - columns of a timeline: idle; the classes that ran longest; and how far a load is from its
 * steady power just after it starts and just after it stops, for clocks and regulators take a while: without
 * those, a board that needs 200 ms to come to full power looks like a sensor of a 200 ms window.
 */
#include "model/shape_columns.h"

#include "model/parts.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>

#define MS       1e6
#define APART_NS (2 * MS) /* launches closer than this are one load */

static const double age_from_ns[KJ_SHAPE_AGES] = {0 * MS, 100 * MS, 200 * MS, 500 * MS};
static const double age_to_ns[KJ_SHAPE_AGES] = {100 * MS, 200 * MS, 500 * MS, 2000 * MS};
static const double age_spread[KJ_SHAPE_AGES] = {.2, .15, .06,
                                                 .04}; /* of the load's power; half as much after its end */

/* Stretches in which something ran. */
static struct kj_shape_span *loads_of(const struct kj_model_interval *sorted, size_t count, size_t *ret_count)
{
    struct kj_shape_span *loads = malloc((count + 1) * sizeof(*loads));
    size_t n = 0;
    for (size_t i = 0; loads && i < count; i++) {
        double start_ns = (double)sorted[i].start_ns, end_ns = (double)sorted[i].end_ns;
        if (n && start_ns <= loads[n - 1].end_ns + APART_NS)
            loads[n - 1].end_ns = fmax(loads[n - 1].end_ns, end_ns);
        else
            loads[n++] = (struct kj_shape_span){start_ns, end_ns};
    }
    *ret_count = n;
    return loads;
}

void kj_shape_columns_close(struct kj_shape_columns *columns)
{
    for (size_t j = 1; j < columns->count; j++)
        kj_curve_free(&columns->curve[j]);
    columns->count = 0;
}

static int add_column(struct kj_shape_columns *columns, const struct kj_curve_piece *pieces, size_t count,
                      double mean, double sd)
{
    int status = kj_curve_of_pieces(pieces, count, &columns->curve[columns->count]);
    if (status || !columns->curve[columns->count].count) {
        kj_curve_free(&columns->curve[columns->count]);
        return status; /* what never happened has no column */
    }
    columns->mean[columns->count] = mean;
    columns->sd[columns->count++] = fmax(sd, 1);
    return 0;
}

/* Which classes have columns of their own: the longest; -1: the column of the others. */
static int *choose_classes(const struct kj_model_input *input, const struct kj_model_interval *sorted)
{
    double *time_ns = calloc(input->class_count + 1, sizeof(*time_ns));
    int *column = malloc((input->class_count + 1) * sizeof(*column));
    for (size_t i = 0; time_ns && i < input->interval_count; i++)
        time_ns[sorted[i].class_index] += (double)(sorted[i].end_ns - sorted[i].start_ns);
    for (size_t c = 0; column && c < input->class_count; c++)
        column[c] = KJ_SHAPE_CLASSES - 1;
    for (int rank = 0; time_ns && column && rank < KJ_SHAPE_CLASSES - 1; rank++) {
        size_t most = 0;
        for (size_t c = 1; c < input->class_count; c++)
            if (time_ns[c] > time_ns[most])
                most = c;
        if (time_ns[most] <= 0)
            break;
        column[most] = rank;
        time_ns[most] = -1;
    }
    free(time_ns);
    return column;
}

int kj_shape_timeline_open(const struct kj_model_input *input, struct kj_shape_timeline *timeline)
{
    *timeline = (struct kj_shape_timeline){.input = input, .sorted = kj_model_sorted_intervals(input)};
    if (!timeline->sorted)
        return input->interval_count ? -ENOMEM : -ENODATA;
    timeline->loads = loads_of(timeline->sorted, input->interval_count, &timeline->load_count);
    timeline->column = choose_classes(input, timeline->sorted);
    timeline->pieces = malloc((input->interval_count + 1) * sizeof(*timeline->pieces));
    return timeline->loads && timeline->column && timeline->pieces ? 0 : -ENOMEM;
}

void kj_shape_timeline_close(struct kj_shape_timeline *timeline)
{
    free(timeline->sorted);
    free(timeline->loads);
    free(timeline->column);
    free(timeline->pieces);
}

int kj_shape_columns_open(const struct kj_shape_timeline *timeline, double low_mw, double high_mw,
                          double late_ns, struct kj_shape_columns *columns)
{
    double swing_mw = fmax(high_mw - low_mw, .02 * high_mw);
    struct kj_curve_piece *pieces = timeline->pieces;
    *columns = (struct kj_shape_columns){.count = 1};
    columns->mean[0] = low_mw;
    columns->sd[0] = fmax(.3 * low_mw, 1000);
    int status = 0;
    for (int k = 0; k < KJ_SHAPE_CLASSES && !status; k++) {
        size_t n = 0, load = 0;
        for (size_t i = 0; i < timeline->input->interval_count; i++) {
            const struct kj_model_interval *interval = &timeline->sorted[i];
            while (timeline->loads[load].end_ns < (double)interval->start_ns)
                load++;
            if (timeline->column[interval->class_index] == k)
                pieces[n++] = (struct kj_curve_piece){
                    (double)interval->start_ns,
                    fmin((double)interval->end_ns, timeline->loads[load].end_ns - late_ns), 1};
        }
        status = add_column(columns, pieces, n, swing_mw, .5 * swing_mw);
    }
    for (int age = 0; age < 2 * KJ_SHAPE_AGES && !status; age++) {
        bool after = age >= KJ_SHAPE_AGES;
        size_t n = 0;
        for (size_t i = 0; i < timeline->load_count; i++) {
            const struct kj_shape_span *load = &timeline->loads[i];
            double end_ns = fmax(load->end_ns - late_ns, load->start_ns);
            double from_ns = after ? end_ns : load->start_ns;
            double until_ns = !after ? end_ns : i + 1 < timeline->load_count ? load[1].start_ns : DBL_MAX;
            pieces[n++] =
                (struct kj_curve_piece){from_ns + age_from_ns[age % KJ_SHAPE_AGES],
                                        fmin(from_ns + age_to_ns[age % KJ_SHAPE_AGES], until_ns), 1};
        }
        status =
            add_column(columns, pieces, n, 0, age_spread[age % KJ_SHAPE_AGES] * swing_mw * (after ? .5 : 1));
    }
    if (status)
        kj_shape_columns_close(columns);
    return status;
}
