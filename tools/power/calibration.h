/* SPDX-License-Identifier: Apache-2.0
 *
 * calibration.h - what `kjoule calibrate` found on one board, kept in the user's cache by the board's UUID
 * and the driver's version: $XDG_CACHE_HOME/kjoule or ~/.cache/kjoule, a folder 0700, one JSON file each.
 *
 * A file is only believed when it and its folder are the user's own or root's, nobody else may write to them,
 * and no link leads there.
 */
#ifndef KJ_CALIBRATION_H
#define KJ_CALIBRATION_H

#include "model/wave_shape.h"
#include "power/power.h"

struct kj_calibrated_sensor {
    char name[48]; /* channel: "power_instant", ... */
    bool counter;
    struct kj_wave_shape shape;
};

struct kj_calibration {
    char uuid[64], driver[80], model[96];
    char date[32];        /* ISO 8601, UTC */
    double gain, gain_sd; /* by the user's own meter: reading / true, and its 1 sigma. 0: none was given */
    struct kj_range steady_on_mw, steady_off_mw; /* what the first power sensor showed in a steady state */
    struct kj_calibrated_sensor sensors[4];
    size_t count;
};

/* -ENOENT: there is none, or no place for one. Else negative errno, and the error is one line on which file
 * and why it is not used. */
int kj_calibration_load(const char *uuid, const char *driver, struct kj_calibration *ret_calibration,
                        struct kj_error *error);
/* Makes the folder, replaces the file in one step. ret_path: what was written. Negative errno, error says it.
 */
int kj_calibration_save(const struct kj_calibration *calibration, char *ret_path, size_t size,
                        struct kj_error *error);
/* The file's text; the caller frees. NULL: no memory. */
char *kj_calibration_text(const struct kj_calibration *calibration);
/* Back from it. -EINVAL: the error says what is wrong. */
int kj_calibration_parse(const char *text, struct kj_calibration *ret_calibration, struct kj_error *error);

/* Fills in the channel's shape, basis and gain where it was calibrated. */
void kj_calibration_apply(const struct kj_calibration *calibration, struct kj_channel *channel);

#endif
