/* SPDX-License-Identifier: Apache-2.0
 *
 * channel_energy.c - joules from readings. A counter that is renewed more seldom than it is read shows old
 * energy: its value belongs to the moment of its update, which lies between the last reading of the old value
 * and the first of the new.
 */
#include "account/parts.h"

#include <stdlib.h>

struct knot {
    double t_ns, uj;
};

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The usual time between updates. */
static double update_period_ns(const struct knot *knots, size_t count)
{
    double *gaps = malloc(count * sizeof(*gaps));
    if (!gaps || count < 2) {
        free(gaps);
        return 0;
    }
    for (size_t i = 1; i < count; i++)
        gaps[i - 1] = knots[i].t_ns - knots[i - 1].t_ns;
    qsort(gaps, count - 1, sizeof(*gaps), compare_doubles);
    double period_ns = gaps[(count - 1) / 2];
    free(gaps);
    return period_ns;
}

/* Knots of the energy's course. Returns their number; knots has room for count + 1. */
static size_t find_knots(const struct kj_series_channel *c, struct knot *knots)
{
    bool coarse = false;
    for (size_t i = 1; i < c->count && !coarse; i++)
        coarse = c->points[i].value == c->points[i - 1].value;
    size_t n = 0;
    if (!coarse) {
        for (size_t i = 0; i < c->count; i++)
            knots[n++] = (struct knot){(double)c->points[i].t_ns, (double)c->points[i].value};
        return n;
    }
    knots[n++] =
        (struct knot){(double)c->points[0].t_ns, (double)c->points[0].value}; /* its time is mended below */
    for (size_t i = 1; i < c->count; i++)
        if (c->points[i].value > c->points[i - 1].value)
            knots[n++] = (struct knot){((double)c->points[i].t_ns + (double)c->points[i - 1].t_ns) / 2,
                                       (double)c->points[i].value};
    double period_ns = update_period_ns(knots + 1, n - 1);
    double first_ns = n > 1 ? knots[1].t_ns - period_ns : 0;
    if (n > 2 && first_ns < knots[0].t_ns)
        knots[0].t_ns = first_ns;
    return n;
}

static double energy_at(const struct knot *knots, size_t count, double t_ns)
{
    size_t i = 1; /* the segment that holds t, or the outermost one */
    if (t_ns > knots[count - 2].t_ns)
        i = count - 1;
    while (i < count - 1 && knots[i].t_ns < t_ns)
        i++;
    double length_ns = knots[i].t_ns - knots[i - 1].t_ns;
    double slope = length_ns > 0 ? (knots[i].uj - knots[i - 1].uj) / length_ns : 0;
    return knots[i].uj + slope * (t_ns - knots[i].t_ns);
}

static double covered(double from_ns, double to_ns, double start_ns, double end_ns)
{
    double low = from_ns > start_ns ? from_ns : start_ns, high = to_ns < end_ns ? to_ns : end_ns;
    return end_ns > start_ns && high > low ? (high - low) / (end_ns - start_ns) : 0;
}

/* A reading speaks for the time since the one before: sensors look back. */
static struct kj_span_energy power_energy(const struct kj_series_channel *c, double start_ns, double end_ns)
{
    struct kj_span_energy energy = {.known = c->count > 0};
    double from_ns = start_ns;
    for (size_t i = 0; i < c->count; i++) {
        double to_ns = i + 1 == c->count ? end_ns : (double)c->points[i].t_ns;
        to_ns = to_ns > end_ns ? end_ns : to_ns;
        if (to_ns > from_ns) {
            energy.uj += (double)c->points[i].value * (to_ns - from_ns) * 1e-6;
            from_ns = to_ns;
        }
    }
    if (c->count)
        energy.coverage =
            covered((double)c->points[0].t_ns, (double)c->points[c->count - 1].t_ns, start_ns, end_ns);
    return energy;
}

static double power_between(const struct kj_series_channel *power, double start_ns, double end_ns)
{
    return end_ns > start_ns ? power_energy(power, start_ns, end_ns).uj : 0;
}

/* Before its first update and after its last the counter is silent: there the power readings speak, and
 * without them the power is taken as in the nearest stretch. */
static struct kj_span_energy counter_energy(const struct kj_series_channel *c,
                                            const struct kj_series_channel *power, double start_ns,
                                            double end_ns)
{
    struct kj_span_energy energy = {0};
    struct knot *knots = malloc((c->count + 1) * sizeof(*knots));
    size_t n = knots ? find_knots(c, knots) : 0;
    if (n >= 2 && knots[n - 1].t_ns > knots[0].t_ns) {
        double from_ns = start_ns, to_ns = end_ns;
        if (power && knots[0].t_ns > start_ns)
            from_ns = knots[0].t_ns < end_ns ? knots[0].t_ns : end_ns;
        if (power && knots[n - 1].t_ns < end_ns)
            to_ns = knots[n - 1].t_ns > from_ns ? knots[n - 1].t_ns : from_ns;
        energy.known = true;
        energy.uj = energy_at(knots, n, to_ns) - energy_at(knots, n, from_ns);
        if (power)
            energy.uj += power_between(power, start_ns, from_ns) + power_between(power, to_ns, end_ns);
        energy.coverage = covered(knots[0].t_ns, knots[n - 1].t_ns, start_ns, end_ns);
        if (energy.uj < 0)
            energy.uj = 0;
    }
    free(knots);
    return energy;
}

struct kj_span_energy kj_channel_energy(const struct kj_series_channel *channel,
                                        const struct kj_series_channel *power, uint64_t start_ns,
                                        uint64_t end_ns)
{
    if (channel->channel.kind == KJ_ENERGY_UJ)
        return counter_energy(channel, power && power->count ? power : NULL, (double)start_ns,
                              (double)end_ns);
    if (channel->channel.kind == KJ_POWER_MW)
        return power_energy(channel, (double)start_ns, (double)end_ns);
    return (struct kj_span_energy){0};
}
