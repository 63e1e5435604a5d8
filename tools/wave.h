/* SPDX-License-Identifier: Apache-2.0
 *
 * wave.h - a load that can be switched on and off on one GPU, through the driver's API alone: libcuda.so.1 is
 * found at run time, and its kernel is PTX that the driver compiles. For `kjoule calibrate`.
 */
#ifndef KJ_WAVE_H
#define KJ_WAVE_H

#include "base/log.h"
#include "model/attribution.h"

struct kj_load;

/* uuid: "GPU-...". Negative errno: the error says in one line what is missing. */
int kj_load_open(const char *uuid, struct kj_load **ret_load, struct kj_error *error);
struct kj_load *kj_load_close(struct kj_load *load);

/* Runs for about on_ms, from an idle GPU, and returns when it is done. ret_span: when it ran,
 * CLOCK_MONOTONIC, by the GPU's own events. */
int kj_load_pulse(struct kj_load *load, double on_ms, struct kj_model_span *ret_span, struct kj_error *error);

#endif
