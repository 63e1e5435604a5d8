/* SPDX-License-Identifier: Apache-2.0
 *
 * rows.c - the equations of the regression: what each update of a sensor says of the mean power over a
 * stretch of time.
 */
#include "model/parts.h"

#include <math.h>
#include <stdlib.h>

#define PIECE_MOST_NS 2e9 /* a counter that stood still for longer says little of any one kernel */

bool kj_model_is_complete(const struct kj_model_input *input, double start_ns, double end_ns)
{
    if (input->timeline_complete)
        return true;
    size_t lo = 0, hi = input->complete_count;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if ((double)input->complete[mid].end_ns < end_ns)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < input->complete_count && (double)input->complete[lo].start_ns <= start_ns;
}

static bool in_timeline(const struct kj_model_input *input, double start_ns, double end_ns)
{
    const struct kj_model_span context = kj_model_context(input);
    return start_ns >= (double)context.start_ns && end_ns <= (double)context.end_ns &&
           kj_model_is_complete(input, start_ns, end_ns);
}

double kj_model_place(const struct kj_model_input *input, double t_ns)
{
    double half_ns = ((double)input->end_ns - (double)input->start_ns) / 2;
    return half_ns > 0 ? (t_ns - (double)input->start_ns) / half_ns - 1 : 0;
}

static double shifted(const struct kj_model_input *input, const struct kj_shift *shift, double t_ns)
{
    return shift ? t_ns + shift->middle_ns + shift->stretch_ns * kj_model_place(input, t_ns) : t_ns;
}

/* Looks see a value appear; how long after its window's end that is, is a shift of the whole series. */
static struct kj_edge edge_of(const struct kj_model_input *input, const struct kj_update *update,
                              const struct kj_shift *shift, const struct kj_grid *grid, double lag_ns)
{
    double unseen_ns = shift ? hypot(shift->unseen_ns, shift->sd_ns) : grid->sd_ns;
    double jitter_ns = shift && shift->jitter_ns > 0 ? shift->jitter_ns : grid->jitter_ns;
    struct kj_edge edge =
        kj_edge_between(update->t_ns, jitter_ns, update->after_ns, update->seen_ns, unseen_ns);
    return kj_edge_moved(&edge, shifted(input, shift, update->t_ns) - update->t_ns - lag_ns);
}

static void window_from_end(struct kj_row *row, double window_ns)
{
    row->start = kj_edge_moved(&row->end, -window_ns);
    row->start_ns = row->start.mean_ns;
}

size_t kj_model_rows(const struct kj_model_input *input, const double *windows_ns,
                     const struct kj_shift *shifts, struct kj_row **ret_rows)
{
    size_t count = 0, cap = 0;
    for (size_t s = 0; s < input->series_count; s++)
        cap += input->series[s].count;
    struct kj_row *rows = malloc((cap + 1) * sizeof(*rows));
    for (size_t s = 0; rows && s < input->series_count; s++) {
        const struct kj_sensor_series *series = &input->series[s];
        const struct kj_sensor *sensor = &series->sensor;
        struct kj_update *updates;
        struct kj_grid grid;
        double gain = sensor->gain > 0 ? sensor->gain : 1;
        size_t n = kj_model_updates(series, &updates, &grid);
        double window_ns = windows_ns && windows_ns[s] > 0 ? windows_ns[s]
                           : sensor->window_ns             ? (double)sensor->window_ns
                                                           : KJ_WINDOW_UNKNOWN_NS;
        const struct kj_shift *shift = shifts ? &shifts[s] : NULL;
        double lag_ns = (double)sensor->delay_ns;
        struct kj_edge last = {0};
        for (size_t i = 0; updates && i < n; i++) {
            struct kj_edge before = last;
            last = edge_of(input, &updates[i], shift, &grid, lag_ns);
            struct kj_row row = {
                .end = last, .end_ns = last.mean_ns, .series = (uint32_t)s, .counter = series->counter};
            if (series->counter) {
                if (!i)
                    continue;
                row.start = before;
                row.start_ns = before.mean_ns;
                if (row.end_ns - row.start_ns < 1e6 || row.end_ns - row.start_ns > PIECE_MOST_NS)
                    continue;
                row.mw = (updates[i].value - updates[i - 1].value) * 1e6 / (row.end_ns - row.start_ns);
                if (sensor->window_ns && (double)sensor->window_ns < row.end_ns - row.start_ns) {
                    if (sensor->period_ns && row.end_ns - row.start_ns > 1.5 * (double)sensor->period_ns)
                        continue; /* samples of several periods in one step */
                    window_from_end(&row, (double)sensor->window_ns);
                }
            } else if (sensor->kernel == KJ_SENSOR_LAG && sensor->window_ns) {
                /* What came in since the last update is what the lag did not keep of that: Burtscher, Zecena,
                 * Zong, GPGPU-7 2014. Weighed a little towards its end, which a step shorter than the lag
                 * may. */
                double tau_ns = (double)sensor->window_ns;
                row.start_ns = i ? before.mean_ns : row.end_ns;
                if (row.end_ns - row.start_ns < 1e6 || row.end_ns - row.start_ns > tau_ns)
                    continue;
                window_from_end(&row, row.end_ns - row.start_ns);
                double kept = exp(-(row.end_ns - row.start_ns) / tau_ns);
                row.mw = (updates[i].value - kept * updates[i - 1].value) / (1 - kept);
            } else {
                window_from_end(&row, window_ns);
                row.mw = updates[i].value;
            }
            row.mw = (row.mw - (series->counter ? 0 : sensor->offset_mw)) / gain;
            if (!in_timeline(input, row.start_ns, row.end_ns))
                continue;
            const struct kj_row *former = count ? &rows[count - 1] : NULL;
            row.chained = row.counter && former && former->series == s && former->end_ns == row.start_ns;
            rows[count++] = row;
        }
        free(updates);
    }
    *ret_rows = rows;
    return rows ? count : 0;
}
