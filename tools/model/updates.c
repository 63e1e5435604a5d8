/* SPDX-License-Identifier: Apache-2.0
 *
 * updates.c - when a sensor's value was renewed. A poll sees a new value some time after it appeared; sensors
 * renew on a grid, so all polls together tell where the grid lies much better than each its own update.
 */
#include "model/parts.h"

#include <math.h>
#include <stdlib.h>

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

/* Least-squares line through (number of the update, time), numbers by rounding to the period; then the grid
 * is moved so that it lies before what was seen of it. */
static double fit_grid(struct kj_update *updates, const double *earliest, size_t count, double period_ns)
{
    double n_sum = 0, t_sum = 0, nn = 0, nt = 0, number = 0;
    double *numbers = malloc(count * sizeof(*numbers));
    if (!numbers)
        return 0;
    for (size_t i = 0; i < count; i++) {
        if (i)
            number += fmax(1, round((updates[i].t_ns - updates[i - 1].t_ns) / period_ns));
        numbers[i] = number;
        n_sum += number;
        t_sum += updates[i].t_ns - updates[0].t_ns;
    }
    for (size_t i = 0; i < count; i++) {
        double n = numbers[i] - n_sum / (double)count;
        nn += n * n;
        nt += n * (updates[i].t_ns - updates[0].t_ns - t_sum / (double)count);
    }
    double slope = nn > 0 ? nt / nn : period_ns, low = -INFINITY, high = INFINITY;
    size_t off = 0;
    for (size_t i = 0; i < count;
         i++) { /* each update lies between the last poll without and the first with it */
        double at = updates[0].t_ns + numbers[i] * slope;
        low = fmax(low, earliest[i] - at);
        high = fmin(high, updates[i].t_ns - at);
    }
    double shift = low <= high ? (low + high) / 2 : high;
    for (size_t i = 0; i < count; i++) {
        double at = updates[0].t_ns + numbers[i] * slope + shift;
        off += at < earliest[i] - 0.05 * period_ns || at > updates[i].t_ns + 0.05 * period_ns;
    }
    bool believed = (double)off <= GRID_OFF_SHARE * (double)count;
    double base = updates[0].t_ns + shift;
    for (size_t i = 0; believed && i < count; i++)
        updates[i].t_ns = base + numbers[i] * slope;
    free(numbers);
    return believed ? slope : 0;
}

size_t kj_model_updates(const struct kj_sensor_series *series, struct kj_update **ret_updates,
                        double *ret_period_ns)
{
    struct kj_update *updates = malloc((series->count + 1) * sizeof(*updates));
    double *earliest = malloc((series->count + 1) * sizeof(*earliest));
    size_t count = 0;
    *ret_period_ns = 0;
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
        *ret_period_ns = fit_grid(updates, earliest, count, period_ns);
    if (*ret_period_ns <= 0)
        for (size_t i = 0; i < count; i++) /* in the middle of where it may have been */
            updates[i].t_ns = (updates[i].t_ns + earliest[i]) / 2;
    free(steps);
    free(earliest);
    *ret_updates = updates;
    return updates ? count : 0;
}

double kj_model_poll_sd_ns(const struct kj_sensor_series *series)
{
    double shortest = INFINITY;
    for (size_t i = 1; i < series->count && i < 200; i++)
        if (series->readings[i].t_ns > series->readings[i - 1].t_ns)
            shortest = fmin(shortest, (double)(series->readings[i].t_ns - series->readings[i - 1].t_ns));
    return isfinite(shortest) ? fmin(shortest, 50e6) / sqrt(12) : 1e6;
}
