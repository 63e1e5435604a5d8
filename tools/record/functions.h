/* SPDX-License-Identifier: Apache-2.0
 *
 * functions.h - finds PyTorch's libraries in the run's processes and hands the functions that mark phases to
 * kjoule-probe. The library is opened here, with the user's own rights, and goes over as a descriptor. Inside
 * the room only.
 */
#ifndef KJ_RECORD_FUNCTIONS_H
#define KJ_RECORD_FUNCTIONS_H

#include "record/probe.h"

struct kj_functions;
struct kj_functions *kj_functions_new(void);
struct kj_functions *kj_functions_free(struct kj_functions *functions);
/* Looks at each process that has no library yet; cheap when called often. */
void kj_functions_look(struct kj_functions *functions, struct kj_probe *probe, const int32_t *pids,
                       size_t count);
/* "" or why no phases are seen, in one line. */
const char *kj_functions_reason(const struct kj_functions *functions);

#endif
