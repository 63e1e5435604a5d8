/* SPDX-License-Identifier: Apache-2.0
 *
 * gpu_sensors.c - looks a board up in gpu_sensors.def.
 */
#include "power/gpu_sensors.h"

#include "power/source.h"

#include <ctype.h>
#include <string.h>

static const struct sensor {
    unsigned architecture;
    const char *name_part;
    unsigned driver_first, driver_last;
    enum kj_gpu_field field;
    enum kj_sensor_kernel kernel;
    double window_ms, period_ms, delay_ms;
    const char *source;
} sensors[] = {
#define GPU_SENSOR(architecture, name_part, first, last, field, kernel, window, period, delay, source)       \
    {KJ_ARCH_##architecture, name_part, first,  last,  KJ_GPU_##field,                                       \
     KJ_SENSOR_##kernel,     window,    period, delay, source},
#define GPU_GAIN(architecture, name_part, mean, sd, source)
#define GPU_FAMILY(name_part, architecture)
#include "power/gpu_sensors.def"
};

static const struct gain {
    unsigned architecture;
    const char *name_part;
    double mean, sd;
    const char *source;
} gains[] = {
#define GPU_SENSOR(architecture, name_part, first, last, field, kernel, window, period, delay, source)
#define GPU_GAIN(architecture, name_part, mean, sd, source)                                                  \
    {KJ_ARCH_##architecture, name_part, mean, sd, source},
#define GPU_FAMILY(name_part, architecture)
#include "power/gpu_sensors.def"
};

static const struct family {
    const char *name_part;
    unsigned architecture;
} families[] = {
#define GPU_SENSOR(architecture, name_part, first, last, field, kernel, window, period, delay, source)
#define GPU_GAIN(architecture, name_part, mean, sd, source)
#define GPU_FAMILY(name_part, architecture) {name_part, KJ_ARCH_##architecture},
#include "power/gpu_sensors.def"
};

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

static bool holds(const char *name, const char *part)
{
    char word[32];
    size_t length = strlen(part);
    bool whole = length && part[length - 1] == '$';
    kj_text(word, sizeof(word), "%.*s", (int)(length - whole), part);
    const char *at = strstr(name, word);
    return at && (!whole || !isalnum((unsigned char)at[strlen(word)]));
}

static unsigned architecture_of(const struct kj_gpu_board *board)
{
    for (size_t i = 0; !board->architecture && i < COUNT(families); i++)
        if (holds(board->name, families[i].name_part))
            return families[i].architecture;
    return board->architecture;
}

static const struct sensor *find_sensor(const struct kj_gpu_board *board, unsigned architecture,
                                        enum kj_gpu_field field)
{
    for (size_t i = 0; i < COUNT(sensors); i++) {
        const struct sensor *row = &sensors[i];
        bool bounded = row->driver_first || row->driver_last;
        if (row->architecture == architecture && row->field == field && holds(board->name, row->name_part) &&
            (!bounded || (board->driver_major >= row->driver_first && board->driver_major &&
                          (!row->driver_last || board->driver_major <= row->driver_last))))
            return row;
    }
    return NULL;
}

/* The last row is of every other board. */
static const struct gain *find_gain(const struct kj_gpu_board *board, unsigned architecture)
{
    size_t i = 0;
    while (i + 1 < COUNT(gains) &&
           (gains[i].architecture != architecture || !holds(board->name, gains[i].name_part)))
        i++;
    return &gains[i];
}

void kj_gpu_sensor_shape(const struct kj_gpu_board *board, enum kj_gpu_field field,
                         struct kj_channel *channel)
{
    unsigned architecture = architecture_of(board);
    const struct sensor *row = find_sensor(board, architecture, field);
    const struct gain *gain = find_gain(board, architecture);
    channel->shape = KJ_ORIGIN_INFERRED;
    channel->gain_mean = gain->mean;
    channel->gain_sd = gain->sd;
    if (row) {
        channel->shape = row->window_ms > 0 ? KJ_ORIGIN_TABLE : KJ_ORIGIN_INFERRED;
        channel->kernel = row->kernel;
        channel->window_ns = (uint64_t)(row->window_ms * KJ_NS_PER_MS);
        channel->period_ns = (uint64_t)(row->period_ms * KJ_NS_PER_MS);
        channel->delay_ns = (uint64_t)(row->delay_ms * KJ_NS_PER_MS);
    }
    const char *shape = "";
    if (field != KJ_GPU_COUNTER)
        shape = row && row->window_ms > 0 ? "; window and renewal of its kind"
                                          : "; window not known for this board, inferred";
    kj_text(channel->basis, sizeof(channel->basis), "board gain %.2f +- %.2f (1 sigma): %s%s", gain->mean,
            gain->sd, gain->source, shape);
}
