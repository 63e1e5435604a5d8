/* SPDX-License-Identifier: Apache-2.0
 *
 * finish.h - the end of a run, as the wrapper and the recorder of a bare preload share it.
 */
#ifndef KJ_FINISH_H
#define KJ_FINISH_H

#include "base/log.h"

#include <stdbool.h>

/* Computes the report of a run folder, writes report.json there, and the summary to summary_fd in one piece
 * (-1: nowhere). Nothing is printed on failure: error says what. */
int kj_finish_run(const char *folder, int summary_fd, struct kj_error *error);

#endif
