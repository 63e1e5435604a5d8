/* SPDX-License-Identifier: Apache-2.0
 *
 * chrome.c - Chrome traces as torch.profiler exports them: complete events ("ph": "X") of what ran on the
 * device. ts and dur are microseconds, with fractions; baseTimeNanoseconds, where there is one, is the wall
 * clock at ts 0.
 */
#include "trace/text.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

#define TIME_MOST_NS 4e18

/* What the device did; everything else in the trace is of the host. */
static const char *const categories[] = {"kernel", "gpu_memcpy", "gpu_memset"};

static bool is_of_device(const json_t *event)
{
    const char *phase = json_string_value(json_object_get(event, "ph"));
    const char *category = json_string_value(json_object_get(event, "cat"));
    for (size_t i = 0;
         phase && category && !strcmp(phase, "X") && i < sizeof(categories) / sizeof(*categories); i++)
        if (!strcmp(category, categories[i]))
            return true;
    return false;
}

/* Numbers come as integers, as reals, and from some exporters as texts. */
static bool number(const json_t *value, double *ret_value)
{
    const char *text = json_string_value(value);
    if (text)
        return kj_trace_number(text, ret_value, NULL);
    *ret_value = json_number_value(value);
    return json_is_number(value) && isfinite(*ret_value);
}

static void device_text(const json_t *args, char *ret_text, size_t size)
{
    const json_t *device = json_object_get(args, "device");
    *ret_text = 0;
    if (json_is_integer(device))
        snprintf(ret_text, size, "%" JSON_INTEGER_FORMAT, json_integer_value(device));
    else if (json_is_string(device))
        snprintf(ret_text, size, "%s", json_string_value(device));
}

static int take_event(const char *path, size_t index, const json_t *event, int64_t base_ns,
                      struct kj_trace_names *names, struct kj_trace_names *devices,
                      struct kj_trace_launch *ret_launch, struct kj_error *error)
{
    const json_t *args = json_object_get(event, "args");
    const char *name = json_string_value(json_object_get(event, "name"));
    double ts_us, dur_us, stream = 0;
    char device[64];
    const char *missing = !name || !*name                                                 ? "name"
                          : !number(json_object_get(event, "ts"), &ts_us) || ts_us < 0    ? "ts"
                          : !number(json_object_get(event, "dur"), &dur_us) || dur_us < 0 ? "dur"
                                                                                          : NULL;
    if (missing || (ts_us + dur_us) * 1e3 + (double)base_ns > TIME_MOST_NS) {
        kj_error_set(error, "%s: traceEvents[%zu], '%.60s', has no usable %s; export the trace again", path,
                     index, name ? name : "?", missing ? missing : "ts");
        return -EINVAL;
    }
    device_text(args, device, sizeof(device));
    number(json_object_get(args, "stream"), &stream);
    int64_t name_index = kj_trace_name(names, name), device_index = kj_trace_name(devices, device);
    if (name_index < 0 || device_index < 0)
        return -ENOMEM;
    *ret_launch =
        (struct kj_trace_launch){.start_ns = base_ns + llround(ts_us * 1e3),
                                 .end_ns = base_ns + llround((ts_us + dur_us) * 1e3),
                                 .name = (uint32_t)name_index,
                                 .device = (uint32_t)device_index,
                                 .stream = stream >= 0 && stream < UINT32_MAX ? (uint32_t)stream : 0};
    return 0;
}

int kj_trace_timeline_chrome(struct kj_trace_text *text, struct kj_trace_timeline *timeline,
                             struct kj_error *error)
{
    json_error_t where;
    size_t index, cap = 0;
    json_t *event;
    struct kj_trace_names names = {0}, devices = {0};
    json_t *root = json_loadb(text->data, (size_t)(text->end - text->data), 0, &where);
    int status = 0;
    timeline->format = "chrome";
    text->line = (size_t)(where.line > 0 ? where.line : 0);
    if (!root)
        return kj_trace_complain(text, error, "not JSON: %.200s; is the trace cut short?", where.text);
    const json_t *events = json_is_array(root) ? root : json_object_get(root, "traceEvents");
    const json_t *base = json_object_get(root, "baseTimeNanoseconds");
    int64_t base_ns = json_is_integer(base) ? json_integer_value(base) : 0;
    if (!json_is_array(events) || base_ns < 0) {
        kj_error_set(error, "%s has no traceEvents; export it with torch.profiler's export_chrome_trace",
                     text->path);
        status = -EINVAL;
    }
    json_array_foreach(events, index, event)
    {
        if (status || !is_of_device(event))
            continue;
        status = kj_trace_grow((void **)&timeline->launches, timeline->launch_count, &cap,
                               sizeof(*timeline->launches));
        if (!status)
            status = take_event(text->path, index, event, base_ns, &names, &devices,
                                &timeline->launches[timeline->launch_count], error);
        timeline->launch_count += !status;
    }
    timeline->names = kj_trace_names_take(&names, &timeline->name_count);
    timeline->devices = kj_trace_names_take(&devices, &timeline->device_count);
    json_decref(root);
    return status;
}
