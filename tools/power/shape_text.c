/* SPDX-License-Identifier: Apache-2.0
 *
 * shape_text.c - a sensor's shape as a line of a series file: folder/series.h has the format. Here, because a
 * replay reads it too.
 */
#include "power/power.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const kernel_names[] = {"box", "lag"};

const char *kj_shape_origin_name(enum kj_shape_origin source)
{
    static const char *const names[] = {"none", "inferred", "table", "calibrated"};
    return names[source];
}

const char *kj_sensor_kernel_name(enum kj_sensor_kernel kernel)
{
    return kernel_names[kernel];
}

int kj_shape_format(const struct kj_channel *channel, char *ret_line, size_t size)
{
    return snprintf(ret_line, size, "shape,%u,%s,%s,%llu,%.6g,%.6g,%.6g,%.6g,%.6g\n", channel->id,
                    kj_shape_origin_name(channel->shape), kernel_names[channel->kernel],
                    (unsigned long long)channel->delay_ns, channel->gain, channel->gain_mean,
                    channel->noise_mw, channel->limit_mw, channel->delay_sd_ns);
}

static bool real(const char *text, double low, double high, double *ret_value)
{
    char *end;
    *ret_value = strtod(text, &end);
    return end != text && !*end && isfinite(*ret_value) && *ret_value >= low && *ret_value <= high;
}

/* A factor, or 0 where there is none. */
static bool factor(const char *text, double *ret_value)
{
    return real(text, 0, 10, ret_value) && (*ret_value == 0 || *ret_value >= 0.1);
}

int kj_shape_parse(char *const *fields, size_t count, struct kj_channel *channel)
{
    struct kj_channel shape = *channel;
    double delay_ns;
    int source = KJ_ORIGIN_CALIBRATED, kernel = KJ_SENSOR_LAG;
    if (count < 8)
        return -EINVAL;
    while (source >= 0 && strcmp(fields[2], kj_shape_origin_name((enum kj_shape_origin)source)))
        source--;
    while (kernel >= 0 && strcmp(fields[3], kernel_names[kernel]))
        kernel--;
    if (source < 0 || kernel < 0 || !real(fields[4], 0, 10e9, &delay_ns) || !factor(fields[5], &shape.gain) ||
        !factor(fields[6], &shape.gain_mean) || !real(fields[7], 0, 1e7, &shape.noise_mw))
        return -EINVAL;
    if (count < 9 || !real(fields[8], 0, 1e7, &shape.limit_mw)) /* of before there was one */
        shape.limit_mw = 0;
    if (count < 10 || !real(fields[9], 0, 10e9, &shape.delay_sd_ns))
        shape.delay_sd_ns = 0;
    shape.shape = (enum kj_shape_origin)source;
    shape.kernel = (enum kj_sensor_kernel)kernel;
    shape.delay_ns = (uint64_t)delay_ns;
    *channel = shape;
    return 0;
}
