/* SPDX-License-Identifier: Apache-2.0
 *
 * total.h - the energy of a run from readings that do not see all of it.
 *
 * A counter says it, but for what went on before its first and after its last renewal. A power sensor may
 * look at a quarter of the time: each reading stands for the time around it, and is corrected by how that
 * time differs from the window it looked at, as the attribution so far says (a regression estimator, as in
 * survey sampling: Cochran, Sampling Techniques, 1977, chapter 7). METHOD.md has the formulae.
 *
 * Pure, as attribution.h.
 */
#ifndef KJ_MODEL_TOTAL_H
#define KJ_MODEL_TOTAL_H

#include "model/attribution.h"

struct kj_model_total {
    bool counter;                    /* the reference is one */
    int64_t total_uj;                /* gain and offset of the reference's sensor taken out */
    int64_t low_uj, high_uj;         /* 90 %: the gain's uncertainty and what no reading saw */
    double unseen_sd_uj;             /* the latter alone, 1 sigma */
    double seen;                     /* share of the run that the reference's windows cover, 0..1 */
    double naive_uj;                 /* readings times the time until the next: what a plain integral says */
    struct kj_model_window *windows; /* of all series, gain taken out; the caller frees */
    size_t window_count;
};

/* result: of an attribution of the same input, whose total may have been a guess: only how power differs
 * between classes and idle is used, and how well that is known. Series' sensors must be filled in (window,
 * period). -ENODATA: no series with two readings within the run. -ENOMEM. */
int kj_model_total(const struct kj_model_input *input, const struct kj_model_result *result,
                   struct kj_model_total *ret_total);

#endif
