/* SPDX-License-Identifier: Apache-2.0
 *
 * phase_lines.c - energy and time of each phase on each device, and the steps. Per device, all phases and the
 * idle energy add up to the device's; what no rule claims, and what the model could give to nobody, is the
 * phase `unattributed`.
 */
#include "account/work.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MOST 9e18 /* counts of a corrupt ledger may be anything */

double *kj_phase_shares(const struct kj_work *work, const struct kj_phase_classes *classes)
{
    double *shares = calloc((classes->count + 1) * KJ_PHASE_COUNT, sizeof(*shares));
    for (size_t i = 0; shares && i < classes->count; i++) {
        const struct kj_work_class *class = &work->classes[classes->index[i]];
        const double *part = class->untimed ? class->phase_untimed : class->phase_ns;
        double *to = shares + i * KJ_PHASE_COUNT, sum = 0;
        for (int p = 0; p < KJ_PHASE_COUNT; p++)
            sum += fmax(part[p], 0);
        for (int p = 0; p < KJ_PHASE_COUNT; p++)
            to[p] = sum > 0 ? fmax(part[p], 0) / sum : p == KJ_PHASE_UNATTRIBUTED;
    }
    return shares;
}

bool *kj_phase_guesses(const struct kj_work *work, const struct kj_phase_classes *classes)
{
    bool *guesses = calloc((classes->count + 1) * KJ_PHASE_COUNT, sizeof(*guesses));
    for (size_t i = 0; guesses && i < classes->count; i++) {
        const struct kj_work_class *class = &work->classes[classes->index[i]];
        int phases = 0;
        for (int p = 0; p < KJ_PHASE_COUNT; p++)
            phases += class->phase_ns[p] > 0;
        for (int p = 0; p < KJ_PHASE_COUNT && class->kind == KJ_WORK_GROUP && phases > 1; p++)
            guesses[i * KJ_PHASE_COUNT + (size_t)p] = class->phase_ns[p] > 0;
    }
    return guesses;
}

/* Standard deviation of the part of the time that phase p has of what was seen of the bursts: a jackknife
 * over blocks of them. 0 where all was seen. */
static double sampled_sd(const struct kj_work_device *device, int p)
{
    double part[KJ_PHASE_BLOCKS] = {0}, of_phase = 0, of_all = 0, mean = 0, square = 0;
    double block_all[KJ_PHASE_BLOCKS] = {0};
    if (!device->phases_sampled)
        return 0;
    for (int b = 0; b < KJ_PHASE_BLOCKS; b++) {
        for (int k = 0; k < KJ_PHASE_COUNT; k++)
            block_all[b] += device->block_ns[b][k];
        of_phase += device->block_ns[b][p];
        of_all += block_all[b];
    }
    if (of_all <= 0)
        return 1;
    for (int b = 0; b < KJ_PHASE_BLOCKS; b++) {
        double rest = of_all - block_all[b];
        part[b] = rest > 0 ? (of_phase - device->block_ns[b][p]) / rest : of_phase / of_all;
        mean += part[b] / KJ_PHASE_BLOCKS;
    }
    for (int b = 0; b < KJ_PHASE_BLOCKS; b++)
        square += (part[b] - mean) * (part[b] - mean);
    return sqrt(square * (KJ_PHASE_BLOCKS - 1) / KJ_PHASE_BLOCKS);
}

/* Parts of the device's time whose phase the order of launches tells, over all of its time. */
static double ruled_part(const struct kj_work *work, uint32_t d)
{
    double ruled_ns = 0, all_ns = 0;
    for (size_t v = 0; v < work->view_count; v++) {
        struct kj_ledger_activity activity;
        for (uint32_t a = 0; kj_ledger_view_row(work->views[v], KJ_SECTION_ACTIVITIES, a, &activity); a++) {
            uint32_t c = work->class_of[v][a];
            if (c == KJ_NO_CLASS || work->classes[c].device != d || !activity.timed)
                continue;
            double ns = (double)activity.sum_ns / (double)activity.timed *
                        (double)kj_ledger_view_launches(work->views[v], a);
            all_ns += ns;
            ruled_ns += work->phase_of[v][a].direct < 0 ? ns : 0;
        }
    }
    return all_ns > 0 ? ruled_ns / all_ns : 1;
}

/* The most that launches of phase p took that were not timed; NAN: there are none. 0: nobody knows. */
static double untimed_energy(const struct kj_work *work, const struct kj_phase_classes *classes, int p,
                             const struct kj_model_result *result)
{
    double most_uj = NAN;
    for (size_t i = 0; i < classes->count; i++)
        if (work->classes[classes->index[i]].phase_untimed[p] > 0)
            most_uj = fmax(most_uj, (double)result->classes[i].energy.high_uj);
    return most_uj;
}

/* timed: some of its launches were. untimed_uj: of the others, as above. */
static struct kj_energy phase_energy(const struct kj_model_result *result, int p, double sampled_uj,
                                     bool timed, double untimed_uj, const struct kj_report_device *device)
{
    bool untimed = !isnan(untimed_uj);
    untimed_uj = untimed ? untimed_uj : 0;

    const struct kj_model_label *label = &result->labels[p];
    double scale_low = 1, scale_high = 1, e = (double)label->energy.energy_uj;
    if (device->energy.uj > 0) {
        scale_low = (double)device->energy.low_uj / (double)device->energy.uj;
        scale_high = (double)device->energy.high_uj / (double)device->energy.uj;
    }
    double below = hypot(e - (double)label->energy.low_uj, KJ_Z90 * sampled_uj);
    double above = hypot((double)label->energy.high_uj - e, KJ_Z90 * sampled_uj);
    struct kj_energy energy = {.known = true,
                               .method = label->method,
                               .uj = label->energy.energy_uj,
                               .low_uj = (int64_t)floor(fmax(e - below, 0) * scale_low),
                               .high_uj = (int64_t)ceil((e + above + untimed_uj) * scale_high)};
    if (untimed && p != KJ_PHASE_UNATTRIBUTED) {
        energy.known = timed;
        energy.bounded = !timed && untimed_uj > 0;
        energy.method = KJ_MODELLED;
    }
    if (p == KJ_PHASE_UNATTRIBUTED) {
        energy.uj += result->unattributed_uj;
        energy.low_uj += result->unattributed_uj;
        energy.high_uj += result->unattributed_uj;
    }
    return energy;
}

/* Whole launches that add up to all of them: differences of rounded running sums. */
struct running {
    double launches, copies;
    uint64_t launches_given, copies_given;
};

/* A class's time in the phase: the interval is in parts as the time is. */
static void add_time(struct kj_time *time, const struct kj_work_class *class, int p)
{
    const struct kj_time all = kj_work_time(class);
    double part = all.ns > 0 ? fmax(class->phase_ns[p], 0) / all.ns : 0;
    time->known = time->known && class->phase_untimed[p] <= 0;
    time->ns += part * all.ns;
    bool guess = class->kind == KJ_WORK_GROUP && part > 0 && part < 1;
    time->low_ns += guess ? 0 : part * all.low_ns;
    time->high_ns += (guess ? 1 : part) * all.high_ns;
    time->method = guess ? KJ_MODELLED : time->method;
    if (part > 0 && all.method > time->method)
        time->method = all.method;
}

static void fill_counts(const struct kj_work *work, uint32_t d, int p, struct running *running,
                        struct kj_report_phase *row)
{
    row->time = (struct kj_time){.known = true, .method = KJ_MEASURED};
    for (size_t i = 0; i < work->class_count; i++) {
        const struct kj_work_class *class = &work->classes[i];
        bool kernel = class->kind == KJ_ACTIVITY_KERNEL || class->kind == KJ_ACTIVITY_GRAPH ||
                      class->kind == KJ_ACTIVITY_BODY;
        if (class->device != d)
            continue;
        *(kernel ? &running->launches : &running->copies) += class->phase_launches[p];
        add_time(&row->time, class, p);
    }
    uint64_t launches = (uint64_t)llround(fmin(fmax(running->launches, 0), MOST));
    uint64_t copies = (uint64_t)llround(fmin(fmax(running->copies, 0), MOST));
    row->launches = launches > running->launches_given ? launches - running->launches_given : 0;
    row->copies = copies > running->copies_given ? copies - running->copies_given : 0;
    running->launches_given += row->launches;
    running->copies_given += row->copies;
}

int kj_phase_lines(struct kj_report *report, const struct kj_work *work, uint32_t d,
                   const struct kj_phase_classes *classes, const struct kj_model_result *result,
                   const struct kj_report_device *device)
{
    struct running running = {0};
    double sampled_part = work->devices[d].phases_sampled ? ruled_part(work, d) : 0;
    for (int p = 0; p < KJ_PHASE_COUNT; p++) {
        struct kj_report_phase row = {0};
        double sampled_uj =
            result ? sampled_part * sampled_sd(&work->devices[d], p) * (double)result->kernels_uj : 0;
        fill_counts(work, d, p, &running, &row);
        row.launches_method = work->devices[d].phases_sampled ? KJ_ESTIMATED : KJ_MEASURED;
        if (result && result->label_count) {
            row.energy = phase_energy(result, p, sampled_uj, row.time.ns > 0,
                                      untimed_energy(work, classes, p, result), device);
            row.identifiability = result->labels[p].identifiability;
        }
        if (!row.launches && !row.copies && !row.energy.uj)
            continue;
        struct kj_report_phase *to = kj_report_add_phase(report);
        if (!to)
            return -1;
        *to = row;
        to->name = strdup(kj_phase_name((enum kj_phase)p));
        to->device = strdup(device->device);
        to->share = row.energy.known && device->energy.uj > 0
                        ? (double)row.energy.uj / (double)device->energy.uj
                        : NAN;
        if (!to->name || !to->device)
            return -1;
    }
    return 0;
}

/* Is the phase of the step itself? Evaluation comes beside the steps, and the rest is nobody's. */
static bool is_of_step(const char *name)
{
    return strcmp(name, kj_phase_name(KJ_PHASE_EVALUATION)) &&
           strcmp(name, kj_phase_name(KJ_PHASE_UNATTRIBUTED));
}

void kj_phase_steps(struct kj_report *report, const struct kj_work *work)
{
    struct kj_report_steps *steps = &report->steps;
    const struct kj_work_steps *longest = NULL;
    /* The devices of one job take the same steps together. */
    for (size_t d = 0; d < work->device_count; d++)
        if (!longest || work->devices[d].steps.count > longest->count)
            longest = &work->devices[d].steps;
    if (!longest || longest->count < 1)
        return;
    steps->count = (uint64_t)fmin(longest->count, MOST);
    steps->count_method = longest->counted ? KJ_MEASURED : KJ_ESTIMATED;
    steps->timed = longest->timed;
    if (longest->timed) {
        double n = (double)longest->timed;
        steps->mean_ns = longest->sum_ns / n;
        steps->sd_ns = sqrt(fmax(longest->sum_ns2 / n - steps->mean_ns * steps->mean_ns, 0));
        steps->min_ns = longest->min_ns;
        steps->max_ns = longest->max_ns;
    }
    bool all_known = true;
    for (size_t i = 0; i < report->phases_count; i++) {
        const struct kj_report_phase *phase = &report->phases[i];
        if (!is_of_step(phase->name))
            continue;
        all_known = all_known && phase->energy.known;
        struct kj_energy *sum = &steps->energy;
        sum->method = sum->known && sum->method > phase->energy.method ? sum->method : phase->energy.method;
        sum->known = true;
        sum->uj += phase->energy.uj;
        sum->low_uj += phase->energy.low_uj;
        sum->high_uj += phase->energy.high_uj;
    }
    steps->energy.known = steps->energy.known && all_known;
}
