/* SPDX-License-Identifier: Apache-2.0
 *
 * phase_events.h - attaches the phase programs to functions of PyTorch in single processes.
 */
#ifndef KJ_PROBE_PHASES_H
#define KJ_PROBE_PHASES_H

#include "maps.h"
#include "probe_stream.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kj_phases_reader;

/* visit is called by kj_phases_read for each finished phase. admin: we hold CAP_SYS_ADMIN. Negative errno,
 * with the reason in ret_text. */
int kj_phases_open(bool admin, void (*visit)(void *context, const struct kj_phase_event *event),
                   void *context, struct kj_phases_reader **ret_reader, char *ret_text, size_t size);
struct kj_phases_reader *kj_phases_close(struct kj_phases_reader *reader);
/* This kernel attaches for nobody else. */
bool kj_phases_want_admin(const struct kj_phases_reader *reader);
/* fd: the library's file, opened by who asked, and named to the kernel by that descriptor. Closed by the
 * caller. */
int kj_phases_attach(struct kj_phases_reader *reader, enum kj_probe_function function, int32_t pid, int fd,
                     uint64_t offset);
/* Delivers what has happened. Returns how many phases were lost since the beginning for want of room. */
uint64_t kj_phases_read(struct kj_phases_reader *reader);

#endif
