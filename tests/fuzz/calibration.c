/* SPDX-License-Identifier: Apache-2.0
 *
 * calibration.c - the reader of a calibration against what nobody would write: what it takes is within its
 * bounds, and is the same when written and read again.
 */
#include "power/calibration.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(const struct kj_calibration *c)
{
    if (c->count > sizeof(c->sensors) / sizeof(c->sensors[0]) ||
        (c->gain != 0 && !(c->gain >= 0.3 && c->gain <= 3)))
        abort();
    for (size_t i = 0; i < c->count; i++) {
        const struct kj_range *window = &c->sensors[i].shape.window_ns;
        if (!(window->value >= 0 && window->value <= 10e9) || !(window->low <= window->value) ||
            !(window->value <= window->high))
            abort();
        struct kj_channel channel = {.kind = c->sensors[i].counter ? KJ_ENERGY_UJ : KJ_POWER_MW};
        snprintf(channel.name, sizeof(channel.name), "%s", c->sensors[i].name);
        kj_calibration_apply(c, &channel);
        if (channel.shape != KJ_ORIGIN_CALIBRATED || channel.window_ns > 10000000000u)
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kj_calibration calibration, again;
    struct kj_error error;
    char *text = strndup((const char *)data, size);
    if (text && !kj_calibration_parse(text, &calibration, &error)) {
        check(&calibration);
        char *written = kj_calibration_text(&calibration);
        if (written && (kj_calibration_parse(written, &again, &error) || again.count != calibration.count))
            abort();
        free(written);
    }
    free(text);
    return 0;
}

size_t kj_fuzz_seed(size_t i, uint8_t *ret_data, size_t cap);
size_t kj_fuzz_seed(size_t i, uint8_t *ret_data, size_t cap)
{
    struct kj_calibration c = {.uuid = "GPU-1", .driver = "1.2", .model = "m", .date = "2026", .gain = 0.9};
    for (c.count = 0; c.count <= i; c.count++)
        c.sensors[c.count] = (struct kj_calibrated_sensor){
            "power_instant",
            false,
            {.window_ns = {25e6, 24e6, 26e6}, .period_ns = {1e8, 1e8, 1e8}, .noise_mw = 3}};
    char *text = i < 3 ? kj_calibration_text(&c) : NULL;
    size_t size = text ? strlen(text) : 0;
    if (text && size < cap)
        memcpy(ret_data, text, size + 1);
    free(text);
    return size < cap ? size : 0;
}
