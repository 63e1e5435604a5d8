/* SPDX-License-Identifier: Apache-2.0
 *
 * sensors.c - how the sensors of the GPUs turn power into readings, and where that is known from.
 */
#include "report/sensors.h"

#include "base/units.h"

static json_t *whole_or_null(uint64_t ns)
{
    return ns ? json_integer((json_int_t)ns) : json_null();
}

static json_t *real_or_null(double value)
{
    return value > 0 ? json_real(value) : json_null();
}

static json_t *text_or_null(const char *text)
{
    return text ? json_string(text) : json_null();
}

json_t *kj_report_sensors_json(const struct kj_report *report)
{
    json_t *list = json_array();
    for (size_t i = 0; i < report->sensors_count; i++) {
        const struct kj_report_sensor *s = &report->sensors[i];
        json_array_append_new(list,
                              json_pack("{s:o,s:o,s:o,s:o,s:o,s:b,s:o,s:o,s:I,s:f,s:o,s:f,s:f,s:o,s:o,s:o}",
                                        "device", text_or_null(s->device), "source", text_or_null(s->source),
                                        "channel", text_or_null(s->channel), "shape", text_or_null(s->shape),
                                        "kernel", text_or_null(s->kernel), "counter", s->counter, "window_ns",
                                        whole_or_null(s->window_ns), "period_ns", whole_or_null(s->period_ns),
                                        "delay_ns", (json_int_t)s->delay_ns, "delay_sd_ns", s->delay_sd_ns,
                                        "gain", real_or_null(s->gain), "gain_mean", s->gain_mean, "gain_sd",
                                        s->gain_sd, "noise_mw", real_or_null(s->noise_mw), "limit_mw",
                                        real_or_null(s->limit_mw), "basis", text_or_null(s->basis)));
    }
    return list;
}

/* "25 ms of each 100 ms"; "" when nothing is known. */
static void shape_text(const struct kj_report_sensor *s, char *ret_text, size_t size)
{
    char window[24], period[24];
    kj_format_time(window, sizeof(window), (double)s->window_ns);
    kj_format_time(period, sizeof(period), (double)s->period_ns);
    ret_text[0] = 0;
    if (s->window_ns && s->period_ns)
        snprintf(ret_text, size, "%s%s every %s, ", s->counter ? "only " : "", window, period);
    else if (s->counter && s->period_ns)
        snprintf(ret_text, size, "every %s, ", period);
    else if (s->window_ns)
        snprintf(ret_text, size, "%s, ", window);
}

void kj_report_sensors_text(const struct kj_report *report, const char *device, FILE *out)
{
    char shape[80];
    size_t shown = 0;
    for (size_t i = 0; i < report->sensors_count; i++) {
        const struct kj_report_sensor *s = &report->sensors[i];
        if (strcmp(s->device, device))
            continue;
        shape_text(s, shape, sizeof(shape));
        fprintf(out, "%s%s (%s%s)", shown++ ? ", " : "    sensors: ", s->channel, shape, s->shape);
    }
    if (shown)
        fputc('\n', out);
}
