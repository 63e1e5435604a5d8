/* SPDX-License-Identifier: Apache-2.0
 *
 * device_sensors.c - what the sensors of the shared machine show: power through a window or a lag, the energy
 * counter, the ring of samples.
 */
#include "device.h"

#include <errno.h>
#include <math.h>

enum { LAG_STEPS_PER_TAU = 25, LAG_TAUS = 8 };

static double mean_w(int device, uint64_t from_ns, uint64_t to_ns)
{
    struct sim_device *d = &sim_machine()->device[device];
    from_ns = from_ns > d->zero_ns ? from_ns : d->zero_ns;
    if (to_ns <= from_ns)
        return sim_base_w(d);
    return (sim_energy_at(device, to_ns) - sim_energy_at(device, from_ns)) / (double)(to_ns - from_ns);
}

/* A first-order lag, in steps: each a box. */
static double lagged_w(int device, uint64_t at_ns, double tau_ns)
{
    double step_ns = tau_ns / LAG_STEPS_PER_TAU, sum = 0, weights = 0;
    for (int i = 0; i < LAG_STEPS_PER_TAU * LAG_TAUS; i++) {
        double weight = exp(-(i + 0.5) / LAG_STEPS_PER_TAU);
        uint64_t to_ns = at_ns - (uint64_t)(i * step_ns), from_ns = at_ns - (uint64_t)((i + 1) * step_ns);
        sum += weight * mean_w(device, from_ns, to_ns);
        weights += weight;
    }
    return sum / weights;
}

/* The same tick always reads the same. */
static double shown_mw(double watts, uint64_t tick)
{
    const struct sim_script *s = &sim_machine()->script;
    if (s->noise > 0) {
        uint64_t h = (tick + 1) * 0x9e3779b97f4a7c15ULL;
        double u = (double)((h ^ h >> 31) >> 11) / 9007199254740992.0,
               v = (double)((h * 31) >> 11) / 9007199254740992.0;
        watts *= 1 + s->noise * sqrt(-2 * log(u + 1e-300)) * cos(6.283185307179586 * v);
    }
    return fmax((watts * s->gain + s->offset_w) * 1e3, 0);
}

uint32_t sim_power_mw(int device)
{
    struct sim_machine *m = sim_machine();
    struct sim_device *d = &m->device[device];
    const struct sim_script *s = &m->script;
    sim_bury(d);
    uint64_t period_ns = (uint64_t)(s->period_ms * 1e6), window_ns = (uint64_t)(s->window_ms * 1e6);
    uint64_t delay_ns = (uint64_t)(s->delay_ms * 1e6), since_ns = sim_now_ns() - d->zero_ns;
    uint64_t tick = period_ns ? since_ns / period_ns : since_ns;
    uint64_t at_ns = d->zero_ns + (period_ns ? tick * period_ns : since_ns);
    at_ns = at_ns > d->zero_ns + delay_ns ? at_ns - delay_ns : d->zero_ns;
    if (s->lag_ms <= 0)
        return (uint32_t)shown_mw(mean_w(device, at_ns - window_ns, at_ns), tick);
    if (!period_ns || d->lag_tick != tick + 1) { /* dear, and the same for all of the tick */
        d->lag_mw = shown_mw(lagged_w(device, at_ns, s->lag_ms * 1e6), tick);
        d->lag_tick = tick + 1;
    }
    return (uint32_t)d->lag_mw;
}

/* Adds up, at each tick, the power over the end of the period as though it had been that all along. */
static double sampled_nj(int device, uint64_t tick, uint64_t period_ns, uint64_t window_ns)
{
    struct sim_device *d = &sim_machine()->device[device];
    if (pthread_mutex_lock(&d->sensor_lock) == EOWNERDEAD)
        pthread_mutex_consistent(&d->sensor_lock);
    while (d->counter_tick < tick) {
        uint64_t to_ns = d->zero_ns + (d->counter_tick + 1) * period_ns;
        d->counter_nj += mean_w(device, to_ns - window_ns, to_ns) * (double)period_ns;
        d->counter_tick++;
    }
    double nj = d->counter_nj;
    pthread_mutex_unlock(&d->sensor_lock);
    return nj;
}

uint64_t sim_counter_mj(int device)
{
    struct sim_machine *m = sim_machine();
    struct sim_device *d = &m->device[device];
    sim_bury(d);
    uint64_t period_ns = (uint64_t)(m->script.counter_period_ms * 1e6), at_ns = sim_now_ns();
    uint64_t window_ns = (uint64_t)(m->script.counter_window_ms * 1e6);
    if (period_ns)
        at_ns -= (at_ns - d->zero_ns) % period_ns;
    double nj = period_ns && window_ns
                    ? sampled_nj(device, (at_ns - d->zero_ns) / period_ns, period_ns, window_ns)
                    : sim_energy_at(device, at_ns);
    return (uint64_t)(nj * m->script.counter_gain * 1e-6);
}

uint32_t sim_ring(int device, uint64_t after_ns, struct sim_ring_sample *ret_samples, uint32_t cap)
{
    struct sim_machine *m = sim_machine();
    struct sim_device *d = &m->device[device];
    uint64_t period_ns = (uint64_t)(m->script.ring_period_ms * 1e6);
    uint64_t window_ns = (uint64_t)(m->script.ring_window_ms * 1e6);
    uint64_t last = (sim_now_ns() - d->zero_ns) / period_ns;
    uint64_t first = last >= SIM_RING ? last - SIM_RING + 1 : 1;
    uint32_t count = 0;
    for (uint64_t tick = first; tick <= last && count < cap; tick++) {
        uint64_t at_ns = d->zero_ns + tick * period_ns;
        if (at_ns > after_ns)
            ret_samples[count++] = (struct sim_ring_sample){
                at_ns, (uint32_t)shown_mw(mean_w(device, at_ns - window_ns, at_ns), tick)};
    }
    return count;
}
