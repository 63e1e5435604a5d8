/* SPDX-License-Identifier: Apache-2.0
 *
 * power.c - `t_ns,power_mw` and `t_ns,energy_uj`, alone or both, in any order of columns and beside others;
 * and the choice of the reader.
 */
#include "trace/text.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define VALUE_MOST 9e18

struct kj_trace_series *kj_trace_power_add(struct kj_trace_power *power, const char *device,
                                           const char *channel, bool counter)
{
    struct kj_trace_series *larger = reallocarray(power->series, power->count + 1, sizeof(*larger));
    if (!larger)
        return NULL;
    power->series = larger;
    struct kj_trace_series *series = &larger[power->count];
    *series =
        (struct kj_trace_series){.device = strdup(device), .channel = strdup(channel), .counter = counter};
    power->count++;
    return series->device && series->channel ? series : NULL;
}

void kj_trace_power_ignore(struct kj_trace_power *power, const char *column)
{
    size_t before = power->ignored ? strlen(power->ignored) + 2 : 0;
    char *larger = realloc(power->ignored, before + strlen(column) + 1);
    if (!larger)
        return;
    strcpy(larger + before, column);
    if (before)
        memcpy(larger + before - 2, ", ", 2);
    power->ignored = larger;
}

/* One cell; an empty one is a reading that was not had. */
static int take_value(struct kj_trace_text *text, struct kj_trace_series *series, size_t *cap, int64_t t_ns,
                      const char *field, struct kj_error *error)
{
    double value;
    if (!*field)
        return 0;
    if (!kj_trace_number(field, &value, NULL) || value > VALUE_MOST)
        return kj_trace_complain(text, error, "%s '%.40s' is no number of at least 0", series->channel,
                                 field);
    uint64_t whole =
        strspn(field, "0123456789") == strlen(field) ? strtoull(field, NULL, 10) : (uint64_t)llround(value);
    if (series->counter && series->count && whole < series->readings[series->count - 1].value)
        return kj_trace_complain(text, error,
                                 "the energy counter goes back (a driver reload?); cut the file there");
    if (kj_trace_grow((void **)&series->readings, series->count, cap, sizeof(*series->readings)))
        return -ENOMEM;
    series->readings[series->count++] = (struct kj_trace_reading){t_ns, whole};
    return 0;
}

static int read_csv(struct kj_trace_text *text, char **fields, size_t width, struct kj_trace_power *power,
                    struct kj_error *error)
{
    static const char *const channels[] = {"power_mw", "energy_uj"};
    int time = -1, at[2], status = 0;
    size_t caps[2] = {0}, count;
    int64_t t_ns, last_ns = -1;
    power->format = "csv";
    for (size_t f = 0; f < width && !status; f++) {
        bool power_column = !strcmp(fields[f], "power_mw"), known = false;
        if (!strcmp(fields[f], "t_ns") && time < 0) {
            time = (int)f;
            continue;
        }
        for (size_t s = 0; s < power->count; s++)
            known = known || !strcmp(power->series[s].channel, fields[f]);
        if (known)
            return kj_trace_complain(text, error, "column %s twice", fields[f]);
        if (!power_column && strcmp(fields[f], channels[1])) {
            kj_trace_power_ignore(power, fields[f]);
            continue;
        }
        at[power->count] = (int)f;
        status = kj_trace_power_add(power, "", fields[f], !power_column) ? 0 : -ENOMEM;
    }
    if (!status && (time < 0 || !power->count))
        return kj_trace_complain(text, error,
                                 "the header of a power log is t_ns,power_mw or t_ns,energy_uj, or "
                                 "nvidia-smi's timestamp, power.draw [W]");
    while (!status && !(status = kj_trace_line(text, fields, &count, error)) && count) {
        if (count != width)
            return kj_trace_complain(text, error, "%zu fields where the header has %zu", count, width);
        if (!kj_trace_whole(fields[time], &t_ns))
            return kj_trace_complain(text, error, "t_ns '%.40s' is no whole number of nanoseconds",
                                     fields[time]);
        if (t_ns < last_ns)
            return kj_trace_complain(text, error, "time goes back; sort the log by t_ns");
        last_ns = t_ns;
        for (size_t s = 0; s < power->count && !status; s++)
            status = take_value(text, &power->series[s], &caps[s], t_ns, fields[at[s]], error);
    }
    return status;
}

int kj_trace_power_read(const char *path, struct kj_trace_power **ret_power, struct kj_error *error)
{
    struct kj_trace_text text;
    char *fields[KJ_TRACE_FIELDS];
    size_t width, readings = 0;
    int status = kj_trace_text_open(path, &text, error);
    if (status)
        return status;
    struct kj_trace_power *power = calloc(1, sizeof(*power));
    status = power ? kj_trace_line(&text, fields, &width, error) : -ENOMEM;
    bool smi = false;
    for (size_t f = 0; !status && f < width; f++)
        smi = smi || !strcmp(fields[f], "timestamp");
    if (!status && !width)
        status = kj_trace_complain(&text, error, "empty; a power log starts with t_ns,power_mw");
    if (!status)
        status = smi ? kj_trace_power_smi(&text, fields, width, power, error)
                     : read_csv(&text, fields, width, power, error);
    for (size_t s = 0; !status && s < power->count; s++)
        readings += power->series[s].count;
    if (!status && !readings)
        status = kj_trace_complain(&text, error, "no reading at all; the sensor may be unsupported");
    kj_trace_text_close(&text);
    if (status)
        power = kj_trace_power_free(power);
    *ret_power = power;
    return status;
}

struct kj_trace_power *kj_trace_power_free(struct kj_trace_power *power)
{
    if (!power)
        return NULL;
    for (size_t s = 0; s < power->count; s++) {
        free(power->series[s].device);
        free(power->series[s].channel);
        free(power->series[s].readings);
    }
    free(power->series);
    free(power->ignored);
    free(power);
    return NULL;
}
