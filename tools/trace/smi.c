/* SPDX-License-Identifier: Apache-2.0
 *
 * smi.c - what `nvidia-smi --query-gpu=timestamp,power.draw,... --format=csv` prints, with units or without,
 * of one GPU or several.
 */
#include "trace/text.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define POWER_MOST_W 1e6

enum { POWER_COLUMNS = 3, DEVICE_COLUMNS = 4, LIMIT_COLUMNS = 2 };
/* The first that is there is read. */
static const char *const power_columns[] = {"power.draw.instant", "power.draw", "power.draw.average"};
static const char *const device_columns[] = {"index", "uuid", "pci.bus_id", "serial"};
static const char *const limit_columns[] = {"enforced.power.limit", "power.limit"};

struct layout {
    int time, power, device, limit; /* -1: none */
    const char *channel;
    double to_mw;
};

/* "power.draw [W]" is column power.draw. */
static int find(char **fields, size_t width, const char *name)
{
    size_t length = strlen(name);
    for (size_t f = 0; f < width; f++)
        if (!strncmp(fields[f], name, length) && (!fields[f][length] || fields[f][length] == ' '))
            return (int)f;
    return -1;
}

static int find_first(char **fields, size_t width, const char *const *names, int count, const char **ret_name)
{
    int at = -1;
    for (int i = 0; i < count && at < 0; i++)
        if ((at = find(fields, width, names[i])) >= 0 && ret_name)
            *ret_name = names[i];
    return at;
}

/* 2024/05/21 13:45:12.345, local time */
static bool timestamp(const char *text, int64_t *ret_ns)
{
    struct tm tm = {.tm_isdst = -1};
    int millis, used = 0;
    if (sscanf(text, "%4d/%2d/%2d %2d:%2d:%2d.%3d%n", &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &tm.tm_hour,
               &tm.tm_min, &tm.tm_sec, &millis, &used) != 7 ||
        text[used] || strspn(text, "0123456789/:. ") != strlen(text))
        return false;
    if (tm.tm_year < 1970 || tm.tm_year > 2200 || tm.tm_mon < 1 || tm.tm_mon > 12 || tm.tm_mday < 1 ||
        tm.tm_mday > 31 || tm.tm_hour > 23 || tm.tm_min > 59 || tm.tm_sec > 60)
        return false;
    tm.tm_year -= 1900;
    tm.tm_mon -= 1;
    time_t seconds = mktime(&tm);
    if (seconds <= 0 || seconds >= INT64_MAX / KJ_NS_PER_S)
        return false;
    *ret_ns = (int64_t)seconds * KJ_NS_PER_S + millis * KJ_NS_PER_MS;
    return true;
}

/* "56.38 W", "56.38". "[N/A]", "[Not Supported]", "[Unknown Error]": none, which is no error. */
static int watts(struct kj_trace_text *text, const char *field, const char *column, double *ret_w,
                 struct kj_error *error)
{
    const char *rest;
    *ret_w = NAN;
    if (*field == '[' || !strcmp(field, "N/A") || !*field)
        return 0;
    if (!kj_trace_number(field, ret_w, &rest) || (*rest && strcmp(rest, " W")) || *ret_w > POWER_MOST_W)
        return kj_trace_complain(text, error, "%s '%.40s' is no power in watts", column, field);
    return 0;
}

static struct kj_trace_series *series_of(struct kj_trace_power *power, const char *device,
                                         const char *channel, size_t **caps, size_t *ret_index)
{
    for (*ret_index = 0; *ret_index < power->count; (*ret_index)++)
        if (!strcmp(power->series[*ret_index].device, device))
            return &power->series[*ret_index];
    size_t *larger = reallocarray(*caps, power->count + 1, sizeof(*larger));
    if (!larger)
        return NULL;
    *caps = larger;
    larger[power->count] = 0;
    return kj_trace_power_add(power, device, channel, false);
}

static int take_line(struct kj_trace_text *text, char **fields, const struct layout *layout,
                     struct kj_trace_power *power, size_t **caps, struct kj_error *error)
{
    int64_t t_ns;
    double draw_w, limit_w = NAN;
    size_t index;
    int status = watts(text, fields[layout->power], layout->channel, &draw_w, error);
    if (!status && layout->limit >= 0)
        status = watts(text, fields[layout->limit], "power.limit", &limit_w, error);
    if (status)
        return status;
    if (!timestamp(fields[layout->time], &t_ns))
        return kj_trace_complain(text, error,
                                 "timestamp '%.40s' is not as nvidia-smi writes it, "
                                 "2024/05/21 13:45:12.345",
                                 fields[layout->time]);
    struct kj_trace_series *series =
        series_of(power, layout->device >= 0 ? fields[layout->device] : "", layout->channel, caps, &index);
    if (!series)
        return -ENOMEM;
    if (limit_w > 0)
        series->limit_mw = fmax(series->limit_mw, limit_w * 1e3);
    if (isnan(draw_w))
        return 0;
    if (series->count && t_ns < series->readings[series->count - 1].t_ns)
        return kj_trace_complain(text, error, "%s",
                                 layout->device >= 0
                                     ? "time goes back; cut the log where the clock was set"
                                     : "time goes back; query index too if the log is of several GPUs");
    if (kj_trace_grow((void **)&series->readings, series->count, &(*caps)[index], sizeof(*series->readings)))
        return -ENOMEM;
    series->readings[series->count++] = (struct kj_trace_reading){t_ns, (uint64_t)llround(draw_w * 1e3)};
    return 0;
}

int kj_trace_power_smi(struct kj_trace_text *text, char **fields, size_t width, struct kj_trace_power *power,
                       struct kj_error *error)
{
    struct layout layout = {.channel = ""};
    size_t count, *caps = NULL;
    int status = 0;
    power->format = "nvidia-smi";
    layout.time = find(fields, width, "timestamp");
    layout.power = find_first(fields, width, power_columns, POWER_COLUMNS, &layout.channel);
    layout.device = find_first(fields, width, device_columns, DEVICE_COLUMNS, NULL);
    layout.limit = find_first(fields, width, limit_columns, LIMIT_COLUMNS, NULL);
    if (layout.power < 0)
        return kj_trace_complain(text, error,
                                 "no power.draw; query nvidia-smi "
                                 "--query-gpu=timestamp,power.draw.instant --format=csv -lms 20");
    for (size_t f = 0; f < width; f++)
        if ((int)f != layout.time && (int)f != layout.power && (int)f != layout.device &&
            (int)f != layout.limit)
            kj_trace_power_ignore(power, fields[f]);
    while (!status && !(status = kj_trace_line(text, fields, &count, error)) && count)
        status = count == width
                     ? take_line(text, fields, &layout, power, &caps, error)
                     : kj_trace_complain(text, error, "%zu fields where the header has %zu", count, width);
    free(caps);
    return status;
}
