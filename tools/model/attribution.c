/* SPDX-License-Identifier: Apache-2.0
 *
 * attribution.c - the door of the room: checks the input, splits by time, and refines by regression where
 * that is asked for.
 */
#include "model/parts.h"

#include <errno.h>
#include <stdlib.h>

static int check(const struct kj_model_input *input, struct kj_error *error)
{
    if (input->end_ns < input->start_ns) {
        kj_error_set(error, "the run ends before it starts");
        return -EINVAL;
    }
    for (size_t i = 0; i < input->interval_count; i++)
        if (input->intervals[i].class_index >= input->class_count ||
            input->intervals[i].end_ns < input->intervals[i].start_ns) {
            kj_error_set(error, "interval %zu ends before it starts, or is of no class", i);
            return -EINVAL;
        }
    if (!input->total_known || input->total_uj < 0) {
        kj_error_set(error, "no total to share out");
        return -EINVAL;
    }
    return 0;
}

/* Classes without any duration, beside others that have one: from nothing to all that those leave, as one
 * group. */
static int bound_untimed(struct kj_model_result *result)
{
    size_t members = 0;
    int64_t left_uj = result->total_high_uj, timed = 0;
    for (size_t c = 0; c < result->class_count; c++) {
        members += result->classes[c].untimed;
        timed += result->classes[c].time_ns > 0;
        left_uj -= result->classes[c].energy.low_uj;
    }
    if (!members || !timed)
        return 0;
    int32_t group = -1;
    const struct kj_model_estimate bounds = {.high_uj = left_uj > 0 ? left_uj : 0,
                                             .high50_uj = left_uj > 0 ? left_uj / 2 : 0};
    if (members > 1) {
        void *groups = realloc(result->groups, (result->group_count + 1) * sizeof(*result->groups));
        if (!groups)
            return -ENOMEM;
        result->groups = groups;
        group = (int32_t)result->group_count;
        result->groups[result->group_count++] = (struct kj_model_group){.energy = bounds, .members = members};
    }
    for (size_t c = 0; c < result->class_count; c++)
        if (result->classes[c].untimed) {
            result->classes[c].energy = result->classes[c].dynamic = bounds;
            result->classes[c].method = KJ_MODELLED;
            result->classes[c].identifiability = 0;
            result->classes[c].group = group;
        }
    return 0;
}

int kj_model_attribute(const struct kj_model_input *input, const struct kj_model_options *options,
                       struct kj_model_result **ret_result, struct kj_error *error)
{
    int status = check(input, error);
    if (status)
        return status;
    struct kj_model_result *result = calloc(1, sizeof(*result));
    if (!result || !(result->classes = calloc(input->class_count + 1, sizeof(*result->classes))) ||
        !(result->labels = calloc(input->label_count + 1, sizeof(*result->labels)))) {
        kj_model_result_free(result);
        return -ENOMEM;
    }
    result->class_count = input->class_count;
    result->label_count = input->label_share ? input->label_count : 0;
    result->total_uj = result->total_low_uj = result->total_high_uj = input->total_uj;
    result->residual_gain = 1;
    result->raking_factor = 1;
    kj_model_split_by_time(input, result);
    kj_model_labels_by_time(input, result);
    if (options->method != KJ_MODEL_TIME_PROPORTIONAL)
        status = kj_model_regress(input, options, result);
    status = status ? status : bound_untimed(result);
    if (status) {
        kj_model_result_free(result);
        return status;
    }
    kj_model_labels_widen(input, result);
    *ret_result = result;
    return 0;
}

struct kj_model_result *kj_model_result_free(struct kj_model_result *result)
{
    if (!result)
        return NULL;
    free(result->classes);
    free(result->groups);
    free(result->labels);
    free(result->sensors);
    free(result->windows);
    free(result);
    return NULL;
}
