/* SPDX-License-Identifier: Apache-2.0
 *
 * account.h - from a run folder to a finished report.
 */
#ifndef KJ_ACCOUNT_H
#define KJ_ACCOUNT_H

#include "base/log.h"
#include "report/report.h"

struct kj_account_options {
    const char *zone;                  /* overrides what the run was given; NULL: as recorded */
    double carbon_intensity_g_per_kwh; /* < 0: as recorded */
    double pue;                        /* 0: as recorded, else 1.0 */
};

/* Computes the report of a run folder, finished, killed or still running. A broken ledger becomes a named
 * warning beside the rest. -ENOENT, -ENOTDIR: no such run; -EPROTO, -ENOTSUP: run.json broken or newer;
 * -EINVAL: bad zone. error says what to do. */
int kj_account_folder(const char *path, const struct kj_account_options *options,
                      struct kj_report **ret_report, struct kj_error *error);

#endif
