/* SPDX-License-Identifier: Apache-2.0
 *
 * labels.c - sums over parts of classes, such as the phases of a training, with intervals of their own:
 * errors of classes that mirror each other cancel within a sum, and those that all share do not.
 */
#include "model/parts.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CLAIMED_SD 0.03 /* as of a class */

static double share(const struct kj_model_input *input, size_t class, size_t label)
{
    return input->label_share[class * input->label_count + label];
}

/* Whole microjoules that add up to all classes together. */
static void give_energies(const struct kj_model_input *input, struct kj_model_result *result)
{
    double running = 0;
    int64_t given = 0, all_uj = 0;
    for (size_t c = 0; c < result->class_count; c++)
        all_uj += result->classes[c].energy.energy_uj;
    for (size_t l = 0; l < result->label_count; l++) {
        for (size_t c = 0; c < result->class_count; c++)
            running += share(input, c, l) * (double)result->classes[c].energy.energy_uj;
        int64_t until = l + 1 == result->label_count ? all_uj : llround(running);
        until = until < given ? given : until > all_uj ? all_uj : until;
        result->labels[l].energy = (struct kj_model_estimate){.energy_uj = until - given};
        given = until;
    }
}

/* By time, each class has bounds: what it draws at idle power, and what that of the others leaves over. So
 * has a sum of them. */
void kj_model_labels_by_time(const struct kj_model_input *input, struct kj_model_result *result)
{
    double all_low_uj = 0;
    if (!result->label_count)
        return;
    give_energies(input, result);
    for (size_t c = 0; c < result->class_count; c++)
        all_low_uj += (double)result->classes[c].energy.low_uj;
    for (size_t l = 0; l < result->label_count; l++) {
        struct kj_model_label *label = &result->labels[l];
        struct kj_model_estimate *e = &label->energy;
        double low_uj = 0, high_uj = 0;
        label->method = KJ_ESTIMATED;
        for (size_t c = 0; c < result->class_count; c++) {
            const struct kj_model_class_result *class = &result->classes[c];
            low_uj += share(input, c, l) * (double)class->energy.low_uj;
            high_uj += share(input, c, l) * (double)class->energy.high_uj;
            if (share(input, c, l) > 0 && class->method == KJ_MODELLED)
                label->method = KJ_MODELLED;
        }
        high_uj = fmin(high_uj, (double)result->kernels_high_uj - (all_low_uj - low_uj));
        e->low_uj = (int64_t)fmin(floor(low_uj), (double)e->energy_uj);
        e->high_uj = (int64_t)fmax(ceil(high_uj), (double)e->energy_uj);
        e->low50_uj = (e->low_uj + e->energy_uj) / 2;
        e->high50_uj = (e->high_uj + e->energy_uj) / 2;
        e->sd_uj = (double)(e->high_uj - e->low_uj) / (2 * KJ_Z90);
    }
}

int kj_model_labels_by_draws(const struct kj_model_input *input, struct kj_model_result *result,
                             double spread_mw, const double *draws, const double *gains, size_t draw_count)
{
    if (!result->label_count)
        return 0;
    double *sums = malloc((draw_count + 1) * sizeof(*sums));
    if (!sums)
        return -ENOMEM;
    give_energies(input, result);
    for (size_t l = 0; l < result->label_count; l++) {
        struct kj_model_label *label = &result->labels[l];
        double prior2 = 0;
        memset(sums, 0, draw_count * sizeof(*sums));
        for (size_t c = 0; c < result->class_count; c++) {
            double part = share(input, c, l);
            for (size_t d = 0; part > 0 && d < draw_count; d++)
                sums[d] += part * draws[c * draw_count + d];
            prior2 += pow(spread_mw * 1e-6 * result->classes[c].time_ns * part, 2);
        }
        label->energy = kj_model_estimate_of(label->energy.energy_uj, sums, gains, draw_count);
        label->identifiability = kj_model_identifiability(&label->energy, sqrt(prior2), 0);
        label->method = label->identifiability >= KJ_R_ESTIMATED ? KJ_ESTIMATED : KJ_MODELLED;
    }
    free(sums);
    return 0;
}

/* Where a class's part is a guess, all of the class may be the label's, or nothing. What that adds to the
 * interval makes it no estimate where it is more than one claims. */
static void widen_label(const struct kj_model_input *input, const struct kj_model_result *result, size_t l)
{
    struct kj_model_label *label = &result->labels[l];
    struct kj_model_estimate *e = &label->energy;
    double below_uj = 0, above_uj = 0;
    for (size_t c = 0; c < result->class_count; c++) {
        const struct kj_model_estimate *class = &result->classes[c].energy;
        if (!input->label_open[c * result->label_count + l])
            continue;
        below_uj += share(input, c, l) * (double)class->energy_uj;
        above_uj += (1 - share(input, c, l)) * (double)class->high_uj;
    }
    if (below_uj + above_uj <= 0)
        return;
    e->low_uj = (int64_t)fmax((double)e->low_uj - below_uj, 0);
    e->high_uj = (int64_t)fmin((double)e->high_uj + above_uj, (double)result->total_uj);
    e->low50_uj = (int64_t)fmax((double)e->low50_uj - below_uj / 2, (double)e->low_uj);
    e->high50_uj = (int64_t)fmin((double)e->high50_uj + above_uj / 2, (double)e->high_uj);
    e->sd_uj = fmax(e->sd_uj, (double)(e->high_uj - e->low_uj) / (2 * KJ_Z90));
    if (below_uj + above_uj > 2 * KJ_Z90 * CLAIMED_SD * (double)e->energy_uj) {
        label->method = KJ_MODELLED;
        label->identifiability = 0;
    }
}

void kj_model_labels_widen(const struct kj_model_input *input, struct kj_model_result *result)
{
    for (size_t l = 0; input->label_open && l < result->label_count; l++)
        widen_label(input, result, l);
}
