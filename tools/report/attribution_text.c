/* SPDX-License-Identifier: Apache-2.0
 *
 * attribution_text.c - the answer of `kjoule attribute` for people: what it took, how the sensor was read,
 * what each kernel took, what to doubt.
 */
#include "report/attribution.h"
#include "report/writers.h"

#include <errno.h>
#include <stdlib.h>

enum { KERNELS_SHOWN = 12, NAME_WIDTH = 40 };

/* Control bytes must not reach a terminal; cut at a character. */
static const char *clean(const char *text, char *buf, size_t width)
{
    size_t used = 0;
    for (const unsigned char *p = (const unsigned char *)text; *p && used < width; p++)
        buf[used++] = *p < 0x20 || *p == 0x7f ? '?' : (char)*p;
    while (used == width && used && ((unsigned char)text[used] & 0xc0) == 0x80)
        used--;
    buf[used] = 0;
    return buf;
}

static const char *range(char *buf, size_t size, double low_uj, double high_uj)
{
    char low[24], high[24];
    snprintf(buf, size, "%s .. %s", kj_format_energy(low, sizeof(low), low_uj),
             kj_format_energy(high, sizeof(high), high_uj));
    return buf;
}

static void write_sensor(const struct kj_trace_sensor *sensor, FILE *out)
{
    const struct kj_sensor_shape *shape = &sensor->shape;
    const struct kj_sensor *used = &shape->sensor;
    char file[80], channel[40];
    fprintf(out, "  sensor  %s of %s: ", clean(sensor->channel, channel, sizeof(channel) - 1),
            clean(sensor->file, file, sizeof(file) - 1));
    if (sensor->counter) {
        fprintf(out, "counter");
    } else {
        fprintf(out, "window %.4g ms (%s", (double)used->window_ns / 1e6,
                kj_shape_source_name(shape->window_source));
        if (shape->window_source == KJ_SHAPE_TRACE || shape->window_source == KJ_SHAPE_TRACE_KNOWN)
            fprintf(out, "; the trace alone: %.3g .. %.3g ms", shape->window_low_ns / 1e6,
                    shape->window_high_ns / 1e6);
        fprintf(out, "), every %.4g ms, delay %.0f", (double)used->period_ns / 1e6, shape->delay_ns / 1e6);
        if (shape->delay_source == KJ_SHAPE_TRACE)
            fprintf(out, " +- %.0f", shape->delay_sd_ns / 1e6);
        fprintf(out, " ms (%s)", kj_shape_source_name(shape->delay_source));
    }
    if (sensor->gain_source == KJ_TRACE_GAIN_UNKNOWN)
        fprintf(out, "; gain unknown, taken as read, %.2f +- %.2f in the intervals\n", used->residual_gain,
                used->gain_sd);
    else
        fprintf(out, "; gain %.4f +- %.4f, offset %.2f W (%s)\n", used->gain > 0 ? used->gain : 1,
                used->gain_sd, used->offset_mw / 1e3, kj_trace_gain_source_name(sensor->gain_source));
}

static void write_kernels(const struct kj_trace_answer *answer, FILE *out)
{
    char energy[24], time[24], power[24], interval[64], name[NAME_WIDTH + 1];
    double total_uj = (double)answer->result->total_uj;
    fprintf(out, "  %-*s %9s %9s %9s %10s  %-22s %s\n", NAME_WIDTH, "kernel", "launches", "time", "power",
            "energy", "90 % interval", "share");
    for (size_t i = 0; i < answer->kernel_count && i < KERNELS_SHOWN; i++) {
        const struct kj_trace_kernel *kernel = &answer->kernels[i];
        const struct kj_model_estimate *e = &kernel->result.energy;
        char *readable = kj_demangle(kernel->name), group[24] = "";
        double mw = kernel->result.time_ns > 0 ? (double)e->energy_uj * 1e6 / kernel->result.time_ns : 0;
        if (kernel->result.group >= 0)
            snprintf(group, sizeof(group), ", group %d", kernel->result.group);
        fprintf(out, "  %-*s %9llu %9s %9s %10s  %-22s %.1f %% (%s%s)\n", NAME_WIDTH,
                clean(readable ? readable : kernel->name, name, NAME_WIDTH),
                (unsigned long long)kernel->launches,
                kj_format_time(time, sizeof(time), kernel->result.time_ns),
                kj_format_power(power, sizeof(power), mw),
                kj_format_energy(energy, sizeof(energy), (double)e->energy_uj),
                range(interval, sizeof(interval), (double)e->low_uj, (double)e->high_uj),
                total_uj > 0 ? 100 * (double)e->energy_uj / total_uj : 0,
                kj_method_name(kernel->result.method), group);
        free(readable);
    }
    if (answer->kernel_count > KERNELS_SHOWN)
        fprintf(out, "  and %zu more with -o\n", answer->kernel_count - KERNELS_SHOWN);
}

static void write_meter(const struct kj_trace_answer *answer, FILE *out)
{
    const struct kj_trace_meter *meter = &answer->meter;
    char measured[24], read[24], corrected[24];
    if (!meter->known || meter->meter_uj <= 0)
        return;
    fprintf(out,
            "  meter   %s from %.3f s to %.3f s; the sensor as read %s (%+.1f %%), corrected %s (%+.2f %%)\n",
            kj_format_energy(measured, sizeof(measured), meter->meter_uj),
            (double)(meter->start_ns - answer->start_ns) / 1e9,
            (double)(meter->end_ns - answer->start_ns) / 1e9,
            kj_format_energy(read, sizeof(read), meter->as_read_uj),
            100 * (meter->as_read_uj / meter->meter_uj - 1),
            kj_format_energy(corrected, sizeof(corrected), meter->corrected_uj),
            100 * (meter->corrected_uj / meter->meter_uj - 1));
}

int kj_write_attribution_text(const struct kj_trace_answer *answer, FILE *out)
{
    const struct kj_model_result *result = answer->result;
    char total[24], interval[64], time[24], busy[24], idle[24], idle_power[24], kernels[24], rest[24];
    char unseen[24], warning[400], device[60];
    double run_ns = (double)(answer->end_ns - answer->start_ns);
    double idle_mw = result->idle_ns > 0 ? (double)result->idle_uj * 1e6 / result->idle_ns : 0;
    fprintf(out, "kjoule: %s (%s) in %s, busy for %s%s%s\n",
            kj_format_energy(total, sizeof(total), (double)result->total_uj),
            range(interval, sizeof(interval), (double)result->total_low_uj, (double)result->total_high_uj),
            kj_format_time(time, sizeof(time), run_ns), kj_format_time(busy, sizeof(busy), result->busy_ns),
            *answer->device ? ", device " : "", clean(answer->device, device, sizeof(device) - 1));
    fprintf(out, "  kernels %s + idle %s (%s while nothing ran) + unattributed %s\n",
            kj_format_energy(kernels, sizeof(kernels), (double)result->kernels_uj),
            kj_format_energy(idle, sizeof(idle), (double)result->idle_uj),
            kj_format_power(idle_power, sizeof(idle_power), idle_mw),
            kj_format_energy(rest, sizeof(rest), (double)result->unattributed_uj));
    for (size_t i = 0; i < answer->sensor_count; i++)
        write_sensor(&answer->sensors[i], out);
    fprintf(out, "  seen    readings look at %.0f %% of the time; what they do not see: +- %s (1 sd)\n",
            100 * answer->total.seen, kj_format_energy(unseen, sizeof(unseen), answer->total.unseen_sd_uj));
    if (answer->offset_ns)
        fprintf(out, "  clocks  timeline + %lld ns = power log (%s)\n", (long long)answer->offset_ns,
                answer->offset_source);
    write_meter(answer, out);
    write_kernels(answer, out);
    if (result->rows)
        fprintf(out, "  residual: %.1f %% of the mean reading (rms) over %zu readings\n",
                100 * result->residual_relative, result->rows);
    for (size_t i = 0; i < answer->warning_count; i++)
        fprintf(out, "  warning: %s\n", clean(answer->warnings[i], warning, sizeof(warning) - 1));
    return ferror(out) ? -EIO : 0;
}
