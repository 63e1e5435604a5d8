/* SPDX-License-Identifier: Apache-2.0
 *
 * text.c - the summary for people: what it took, by what it was spent, how it is known, what to do next.
 * About 25 lines.
 */
#include "report/sensors.h"
#include "report/writers.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define KERNELS_SHOWN  6
#define WARNINGS_SHOWN 6
#define THREADS_SHOWN  4
#define NAME_WIDTH     42

/* Control bytes, which a name may hold, must not reach a terminal. At most `width` bytes, cut at a character.
 */
static const char *clean(const char *text, char *buf, size_t width)
{
    size_t used = 0;
    for (const unsigned char *p = (const unsigned char *)(text ? text : "?"); *p && used < width; p++)
        buf[used++] = *p < 0x20 || *p == 0x7f ? '?' : (char)*p;
    while (text && used == width && used && ((unsigned char)text[used] & 0xc0) == 0x80)
        used--;
    buf[used] = 0;
    return buf;
}

static void range(char *buf, size_t size, const struct kj_energy *energy)
{
    char low[24], high[24];
    kj_format_energy(low, sizeof(low), (double)energy->low_uj);
    kj_format_energy(high, sizeof(high), (double)energy->high_uj);
    snprintf(buf, size, "%s .. %s", low, high);
}

/* An energy, or that it is not known. */
static const char *energy_text(char *buf, size_t size, const struct kj_energy *energy)
{
    return energy->known ? kj_format_energy(buf, size, (double)energy->uj) : "unknown";
}

/* A time; only how long at most, where it may be next to nothing. */
static const char *time_text(char *buf, size_t size, const struct kj_time *time)
{
    bool at_most = time->low_ns < 0.1 * time->high_ns;
    if (!time->known)
        return "unknown";
    buf[0] = '<';
    kj_format_time(buf + at_most, size - at_most, at_most ? time->high_ns : time->ns);
    return buf;
}

/* Its interval, and its share of the run's energy. */
static void write_share(const struct kj_report *r, const struct kj_energy *energy, FILE *out)
{
    char interval[64];
    if (!energy->known && !energy->bounded)
        return;
    range(interval, sizeof(interval), energy);
    if (!energy->known)
        fprintf(out, "  %-22s (%s)", interval, kj_method_name(energy->method));
    else if (r->total.known && r->total.uj > 0)
        fprintf(out, "  %-22s %.1f %% (%s)", interval, 100.0 * (double)energy->uj / (double)r->total.uj,
                kj_method_name(energy->method));
}

static void write_head(const struct kj_report *r, FILE *out)
{
    char energy[24], interval[64], time[24], power[24], grams[24], low[24], high[24], command[80];
    kj_format_time(time, sizeof(time), (double)r->duration_ns);
    fprintf(out, "kjoule: ");
    if (!r->total.known) {
        fprintf(out, "energy unknown, CO2e unknown, in %s", time);
    } else {
        range(interval, sizeof(interval), &r->total);
        kj_format_energy(energy, sizeof(energy), (double)r->total.uj);
        kj_format_power(power, sizeof(power),
                        r->duration_ns ? (double)r->total.uj * 1e6 / (double)r->duration_ns : 0);
        kj_format_mass(grams, sizeof(grams), r->total_g);
        kj_format_mass(low, sizeof(low), r->low_g);
        kj_format_mass(high, sizeof(high), r->high_g);
        fprintf(out, "%s (%s) and %s CO2e (%s .. %s) in %s, %s on average", energy, interval, grams, low,
                high, time, power);
        if (r->components_unknown)
            fprintf(out, ", without %llu device%s of unknown energy",
                    (unsigned long long)r->components_unknown, r->components_unknown == 1 ? "" : "s");
    }
    fprintf(out, "\n  %s", clean(r->command, command, sizeof(command) - 1));
    if (r->exit_known && r->exit_signal)
        fprintf(out, "   ended by signal %d", r->exit_signal);
    else if (r->exit_known)
        fprintf(out, "   exit status %d", r->exit_status);
    fputc('\n', out);
}

static void write_components(const struct kj_report *r, FILE *out)
{
    char device[48], energy[24], interval[64];
    if (r->components_count)
        fprintf(out, "  %-5s %-34s %10s  %-22s\n", "", "", "energy", "90 % interval");
    for (size_t i = 0; i < r->components_count; i++) {
        const struct kj_report_component *c = &r->components[i];
        if (!c->energy.known) {
            fprintf(out, "  %-5s %-34s %10s\n", c->kind, clean(c->device, device, 34), "unknown");
            continue;
        }
        range(interval, sizeof(interval), &c->energy);
        fprintf(out, "  %-5s %-34s %10s  %-22s %s (%s)", c->kind,
                clean(*c->model ? c->model : c->device, device, 34),
                kj_format_energy(energy, sizeof(energy), (double)c->energy.uj), interval,
                kj_method_name(c->energy.method), c->source);
        if (c->share < 0.995)
            fprintf(out, ", %.0f %% of the %s", 100 * c->share, c->kind);
        fputc('\n', out);
    }
}

/* What the CPU's energy went to, where there is more than one answer. */
static void write_cpu(const struct kj_report *r, FILE *out)
{
    char energy[24], time[24], wait[24], name[40];
    if (r->cpu.wait_known && r->cpu.wait_cpu_ns > r->tree_cpu_ns / 100)
        fprintf(out, "  cpu   waiting for GPUs: %s of its CPU time, spinning in synchronise calls, %s (%s)\n",
                kj_format_time(time, sizeof(time), (double)r->cpu.wait_cpu_ns),
                energy_text(wait, sizeof(wait), &r->cpu.wait),
                r->cpu.wait.known ? kj_method_name(r->cpu.wait.method) : "unknown");
    for (size_t i = 0; i < r->cpu_phases_count; i++) {
        const struct kj_report_cpu_phase *p = &r->cpu_phases[i];
        fprintf(out, "  cpu   %-34s %10s  in %s\n", p->name, energy_text(energy, sizeof(energy), &p->energy),
                kj_format_time(time, sizeof(time), p->time_ns));
    }
    if (r->threads_count < 2)
        return;
    fprintf(out, "  cpu time by thread name:");
    for (size_t i = 0; i < r->threads_count && i < THREADS_SHOWN; i++)
        fprintf(out, "%s %s%s %s", i ? "," : "", clean(r->threads[i].name, name, sizeof(name) - 1),
                r->threads[i].main ? " (main)" : "",
                kj_format_time(time, sizeof(time), (double)r->threads[i].cpu_ns));
    fputc('\n', out);
}

static void write_devices(const struct kj_report *r, FILE *out)
{
    char kernels[24], idle[24], rest[24], device[48], instances[512];
    for (size_t i = 0; i < r->devices_count; i++) {
        const struct kj_report_device *d = &r->devices[i];
        char others[48] = "";
        fprintf(out, "  %s: %llu launches", clean(d->device, device, 44), (unsigned long long)d->launches);
        if (d->kernels_unknown && kj_kernels_known(d))
            snprintf(others, sizeof(others), " (without %llu unknown)",
                     (unsigned long long)d->kernels_unknown);
        if (d->energy.known)
            fprintf(out, "; kernels %s%s + idle %s + unattributed %s",
                    kj_kernels_known(d) ? kj_format_energy(kernels, sizeof(kernels), (double)d->kernels_uj)
                                        : "unknown",
                    others, kj_format_energy(idle, sizeof(idle), (double)d->idle_uj),
                    kj_format_energy(rest, sizeof(rest), (double)d->unattributed_uj));
        fputc('\n', out);
        if (d->instances)
            fprintf(out, "    of the board the run had %s; its energy is the whole board's\n",
                    clean(d->instances, instances, sizeof(instances) - 1));
        kj_report_sensors_text(r, d->device, out);
    }
}

static void write_kernels(const struct kj_report *r, FILE *out)
{
    char energy[24], time[24], name[NAME_WIDTH + 1];
    if (r->kernels_count)
        fprintf(out, "  %-*s %9s %9s %10s  %-22s %s\n", NAME_WIDTH, "kernel", "launches", "time", "energy",
                "90 % interval", "share of all");
    for (size_t i = 0; i < r->kernels_count && i < KERNELS_SHOWN; i++) {
        const struct kj_report_kernel *k = &r->kernels[i];
        char *readable = kj_demangle(k->name), *brief = readable ? kj_short_name(readable, NAME_WIDTH) : NULL;
        fprintf(out, "  %-*s %9llu %9s %10s", NAME_WIDTH, clean(brief ? brief : k->name, name, NAME_WIDTH),
                (unsigned long long)k->launches, time_text(time, sizeof(time), &k->time),
                energy_text(energy, sizeof(energy), &k->energy));
        write_share(r, &k->energy, out);
        fputc('\n', out);
        free(readable);
        free(brief);
    }
    if (r->kernels_count > KERNELS_SHOWN)
        fprintf(out, "  and %zu more in report.json\n", r->kernels_count - KERNELS_SHOWN);
}

/* Those whose parts are anything from nothing to all; what is not known of powers is in each one's interval.
 */
static void write_groups(const struct kj_report *r, FILE *out)
{
    char energy[24], interval[64];
    for (size_t i = 0; i < r->groups_count; i++) {
        const struct kj_report_group *g = &r->groups[i];
        if (!g->times || !g->energy.known)
            continue;
        range(interval, sizeof(interval), &g->energy);
        fprintf(
            out,
            "  group %d: %zu kernels%s whose times inside graphs are not known: %s together (%s, %s), each "
            "anything from 0 to all of it; --timing cupti times each\n",
            g->group, g->kernels, g->copies ? " and copies" : "",
            kj_format_energy(energy, sizeof(energy), (double)g->energy.uj), interval,
            kj_method_name(g->energy.method));
    }
}

/* A run without a training has phases too, data and unattributed, which say nothing new. */
static bool is_training(const struct kj_report *r)
{
    for (size_t i = 0; i < r->phases_count; i++)
        if (strcmp(r->phases[i].name, "data") && strcmp(r->phases[i].name, "unattributed"))
            return true;
    return false;
}

static void write_phases(const struct kj_report *r, FILE *out)
{
    char energy[24], time[24];
    if (!is_training(r))
        return;
    fprintf(out, "  %-*s %9s %9s %10s  %-22s %s\n", NAME_WIDTH, "phase", "launches", "time", "energy",
            "90 % interval", r->steps.count ? "share of all, of a step" : "share of all");
    for (size_t i = 0; i < r->phases_count; i++) {
        struct kj_report_phase p;
        if (!kj_phase_sum(r, i, &p))
            continue;
        fprintf(out, "  %-*s %9llu %9s %10s", NAME_WIDTH, p.name, (unsigned long long)(p.launches + p.copies),
                time_text(time, sizeof(time), &p.time), energy_text(energy, sizeof(energy), &p.energy));
        write_share(r, &p.energy, out);
        if (p.energy.known && r->steps.count)
            fprintf(out, ", %s",
                    kj_format_energy(energy, sizeof(energy), (double)p.energy.uj / (double)r->steps.count));
        fputc('\n', out);
    }
    if (!r->steps.count)
        return;
    fprintf(out, "  steps: %llu", (unsigned long long)r->steps.count);
    if (r->steps.timed)
        fprintf(out, " of %s", kj_format_time(time, sizeof(time), r->steps.mean_ns));
    if (r->steps.energy.known)
        fprintf(
            out, ", %s each without evaluation and idle time",
            kj_format_energy(energy, sizeof(energy), (double)r->steps.energy.uj / (double)r->steps.count));
    fputc('\n', out);
}

static void write_carbon(const struct kj_report *r, FILE *out)
{
    char evidence[100], zone[60], energy[24];
    if (!r->carbon_known)
        return;
    fprintf(out, "  carbon: %s x PUE %.3g x %.4g g/kWh, %s",
            kj_format_watt_hours(energy, sizeof(energy), (double)r->total.uj), r->pue, r->factor.g_per_kwh,
            clean(r->factor.name ? r->factor.name : r->factor.zone, zone, sizeof(zone) - 1));
    if (r->factor.year)
        fprintf(out, " %d, %s: %s", r->factor.year, r->factor.basis, r->factor.source);
    if (r->location_method && strcmp(r->location_method, "none"))
        fprintf(out, "\n          place from %s: %s", r->location_method,
                clean(r->location_evidence, evidence, sizeof(evidence) - 1));
    fputc('\n', out);
}

static void write_per(const struct kj_report *r, FILE *out)
{
    char each[24], name[41];
    for (size_t i = 0; i < r->per_count && r->total.known; i++)
        fprintf(out, "  per %s: %s\n", clean(r->per[i].name, name, 40),
                kj_format_energy(each, sizeof(each), (double)r->total.uj / r->per[i].count));
}

static void write_walk(const struct kj_report *r, FILE *out)
{
    char time[24], energy[24];
    if (r->walk.asked_share <= 0 || !r->duration_ns)
        return;
    fprintf(out, "  phase walk: %llu delays, %s in all, %.2f %% of the time (asked: %.3g %% at most)",
            (unsigned long long)r->walk.delays, kj_format_time(time, sizeof(time), (double)r->walk.delay_ns),
            100.0 * (double)r->walk.delay_ns / (double)r->duration_ns, 100 * r->walk.asked_share);
    if (r->walk.idle_uj)
        fprintf(out, "; %s of the GPUs' idle energy",
                kj_format_energy(energy, sizeof(energy), (double)r->walk.idle_uj));
    fputc('\n', out);
}

int kj_write_text(const struct kj_report *r, FILE *out)
{
    char warning[400], time[24], folder[400];
    write_head(r, out);
    write_components(r, out);
    write_cpu(r, out);
    write_devices(r, out);
    write_phases(r, out);
    write_kernels(r, out);
    write_groups(r, out);
    write_per(r, out);
    write_carbon(r, out);
    if (r->processes_count && r->duration_ns)
        fprintf(out, "  overhead: %s inside the shim and of its events, %.2f %% of the time\n",
                kj_format_time(time, sizeof(time), (double)(r->shim_ns + r->shim_device_ns)),
                100.0 * (double)(r->shim_ns + r->shim_device_ns) / (double)r->duration_ns);
    write_walk(r, out);
    for (size_t i = 0; i < r->warnings_count && i < WARNINGS_SHOWN; i++)
        fprintf(out, "  warning: %s\n", clean(r->warnings[i], warning, sizeof(warning) - 1));
    if (r->warnings_count > WARNINGS_SHOWN)
        fprintf(out, "  and %zu more warnings in report.json\n", r->warnings_count - WARNINGS_SHOWN);
    clean(r->folder, folder, sizeof(folder) - 1);
    fprintf(out, "  report: %s/report.json     again: kjoule report %s\n", folder, folder);
    return ferror(out) ? -5 : 0;
}
