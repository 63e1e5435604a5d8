/* SPDX-License-Identifier: Apache-2.0
 *
 * updates.c - when a sensor's value was renewed. A poll sees a new value some time after it appeared; sensors
 * renew on a grid, so all polls together tell where the grid lies much better than each its own update.
 */
#include "model/parts.h"

#include <math.h>
#include <stdlib.h>

#define JITTER_NS      3e6 /* of an update around its grid */
#define GRID_OFF_SHARE 0.1 /* of the updates may miss the grid before it is not believed */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof(*values), by_value);
    return count ? values[count / 2] : 0;
}

/* Least-squares line through (number of the update, the middle of where it may have been), numbers by
 * rounding to the period. *
 * How well the polls tell its place: where they scan all of the time between updates, an average of many is
 * good; where they keep step with it, as 20 ms do with 100 ms, all of them may be off by as much as one. */
static struct kj_grid fit_grid(struct kj_update *updates, const double *earliest, size_t count,
                               double period_ns)
{
    double n_sum = 0, t_sum = 0, nn = 0, nt = 0, number = 0, first_ns = updates[0].t_ns;
    double *numbers = malloc(count * sizeof(*numbers));
    if (!numbers)
        return (struct kj_grid){0};
    for (size_t i = 0; i < count; i++) {
        if (i)
            number += fmax(1, round((updates[i].t_ns - updates[i - 1].t_ns) / period_ns));
        numbers[i] = number;
        n_sum += number;
        t_sum += (updates[i].t_ns + earliest[i]) / 2 - first_ns;
    }
    double n_mean = n_sum / (double)count, t_mean = t_sum / (double)count;
    for (size_t i = 0; i < count; i++) {
        nn += (numbers[i] - n_mean) * (numbers[i] - n_mean);
        nt += (numbers[i] - n_mean) * ((updates[i].t_ns + earliest[i]) / 2 - first_ns - t_mean);
    }
    double slope = nn > 0 ? nt / nn : period_ns, base = first_ns + t_mean - n_mean * slope;
    size_t off = 0;
    double spread2 = 0, poll_ns = 0;
    for (size_t i = 0; i < count; i++) {
        double at = base + numbers[i] * slope, slack = fmax(0.05 * period_ns, JITTER_NS);
        double error_ns = (updates[i].t_ns + earliest[i]) / 2 - at;
        spread2 += error_ns * error_ns;
        poll_ns += updates[i].t_ns - earliest[i];
        off += at < earliest[i] - slack || at > updates[i].t_ns + slack;
    }
    bool believed = (double)off <= GRID_OFF_SHARE * (double)count;
    for (size_t i = 0; believed && i < count; i++)
        updates[i].t_ns = base + numbers[i] * slope;
    free(numbers);
    double seen_sd_ns = sqrt(spread2 / (double)count), poll_sd_ns = poll_ns / (double)count / sqrt(12);
    bool scanned = seen_sd_ns > 0.5 * poll_sd_ns;
    double excess = spread2 / (double)count - poll_sd_ns * poll_sd_ns;
    return (struct kj_grid){.period_ns = believed ? slope : 0,
                            .jitter_ns = excess > 0 ? sqrt(excess) : 0,
                            .sd_ns = scanned ? 2 * seen_sd_ns / sqrt((double)count) + 5e4 : poll_sd_ns};
}

/* Nothing to find: each reading is an update, at its time. */
static size_t own_updates(const struct kj_sensor_series *series, struct kj_update *updates,
                          struct kj_grid *grid)
{
    double *steps = malloc((series->count + 1) * sizeof(*steps));
    for (size_t i = 0; i < series->count; i++) {
        updates[i] = (struct kj_update){(double)series->readings[i].t_ns, (double)series->readings[i].value};
        if (i && steps)
            steps[i - 1] = updates[i].t_ns - updates[i - 1].t_ns;
    }
    if (steps && series->count > 8)
        grid->period_ns = median(steps, series->count - 1);
    free(steps);
    return series->count;
}

size_t kj_model_updates(const struct kj_sensor_series *series, struct kj_update **ret_updates,
                        struct kj_grid *ret_grid)
{
    struct kj_update *updates = malloc((series->count + 1) * sizeof(*updates));
    double *earliest = malloc((series->count + 1) * sizeof(*earliest));
    size_t count = 0;
    *ret_grid = (struct kj_grid){0};
    if (series->own_times && updates) {
        free(earliest);
        *ret_updates = updates;
        return own_updates(series, updates, ret_grid);
    }
    for (size_t i = 1; updates && earliest && i < series->count; i++) {
        const struct kj_reading *now = &series->readings[i], *before = now - 1;
        if (now->value == before->value || (series->counter && now->value < before->value))
            continue;
        earliest[count] = (double)before->t_ns;
        updates[count++] = (struct kj_update){(double)now->t_ns, (double)now->value};
    }
    double *steps = malloc((count + 1) * sizeof(*steps));
    for (size_t i = 1; steps && i < count; i++)
        steps[i - 1] = updates[i].t_ns - updates[i - 1].t_ns;
    double period_ns = series->sensor.period_ns ? (double)series->sensor.period_ns
                       : steps && count > 4     ? median(steps, count - 1)
                                                : 0;
    if (count > 8 && period_ns > 0)
        *ret_grid = fit_grid(updates, earliest, count, period_ns);
    for (size_t i = 0; i < count && ret_grid->period_ns <= 0;
         i++) { /* in the middle of where it may have been */
        ret_grid->sd_ns = fmax(ret_grid->sd_ns, (updates[i].t_ns - earliest[i]) / sqrt(12));
        updates[i].t_ns = (updates[i].t_ns + earliest[i]) / 2;
    }
    free(steps);
    free(earliest);
    *ret_updates = updates;
    return updates ? count : 0;
}
