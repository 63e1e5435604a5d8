/* SPDX-License-Identifier: Apache-2.0
 *
 * kernel_lines.c - the report's lists of kernels, copies and groups, from the model's classes. A class has
 * what the model says of it, and its part of the groups that it is in: a guess between nothing and all.
 */
#include "account/work.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define R_ESTIMATED 0.5
#define OPEN_MOST   (2 * KJ_Z90 * 0.03) /* width of an estimate's interval, of the value, at most */

static const char *copy_name(uint8_t kind)
{
    switch (kind) {
    case KJ_ACTIVITY_MEMCPY_HTOD:
        return "HtoD";
    case KJ_ACTIVITY_MEMCPY_DTOH:
        return "DtoH";
    case KJ_ACTIVITY_MEMCPY_DTOD:
        return "DtoD";
    case KJ_ACTIVITY_MEMSET:
        return "memset";
    default:
        return "other";
    }
}

/* Of its own, and its parts of groups: a guess between nothing and all. */
static struct kj_time time_of(const struct kj_work *work, uint32_t c)
{
    struct kj_time time = kj_work_time(&work->classes[c]);
    for (size_t i = 0; i < work->part_count; i++)
        if (work->parts[i].class == c) {
            time.ns += work->parts[i].ns;
            time.high_ns += kj_work_time(&work->classes[work->parts[i].group]).high_ns;
            time.method = KJ_MODELLED;
        }
    return time;
}

static struct kj_report_kernel *add_kernel(struct kj_report *report, const struct kj_work *work, uint32_t c)
{
    const struct kj_work_class *class = &work->classes[c];
    struct kj_report_kernel *row = kj_report_add_kernel(report);
    if (row)
        *row =
            (struct kj_report_kernel){.name = strdup(class->name),
                                      .device = strdup(work->devices[class->device].key),
                                      .launches = class->launches,
                                      .timed = class->timed,
                                      .time = time_of(work, c),
                                      .time_sd_ns = class->time_var_ns2 < 0 ? -1 : sqrt(class->time_var_ns2),
                                      .group = -1};
    return row;
}

static int add_copy(struct kj_report *report, const struct kj_work *work, uint32_t c)
{
    const struct kj_work_class *class = &work->classes[c];
    struct kj_report_copy *row = kj_report_add_copy(report);
    if (row)
        *row =
            (struct kj_report_copy){strdup(copy_name(class->kind)), strdup(work->devices[class->device].key),
                                    class->launches, class->bytes, time_of(work, c)};
    return row ? 0 : -1;
}

/* What a class has: of its own, and of the groups that it is in. */
struct have {
    bool known, bounded; /* as of struct kj_energy */
    int64_t uj;
    double low_uj, high_uj, sd_uj, identifiability;
    enum kj_method method;
    int group; /* of the report; -1: none */
};

static struct have have_of_estimate(const struct kj_model_estimate *e, enum kj_method method)
{
    return (struct have){.known = true,
                         .uj = e->energy_uj,
                         .low_uj = (double)e->low_uj,
                         .high_uj = (double)e->high_uj,
                         .sd_uj = e->sd_uj,
                         .method = method};
}

/* An interval on top of that of the whole device's energy. */
static struct kj_energy on_device(const struct have *have, const struct kj_energy *whole)
{
    double low = whole->uj > 0 ? (double)whole->low_uj / (double)whole->uj : 1;
    double high = whole->uj > 0 ? (double)whole->high_uj / (double)whole->uj : 1;
    return (struct kj_energy){.known = have->known,
                              .bounded = have->bounded,
                              .method = have->method,
                              .uj = have->uj,
                              .low_uj = (int64_t)floor(have->low_uj * low),
                              .high_uj = (int64_t)ceil(have->high_uj * high)};
}

static struct have own_of(const struct kj_model_class_result *own)
{
    struct have have = have_of_estimate(&own->energy, own->method);
    have.known = !own->untimed;
    have.bounded = own->untimed && own->energy.high_uj;
    have.identifiability = own->identifiability;
    have.group = own->group;
    return have;
}

/* Whole microjoules of a group's energy that its parts up to `part` have. */
static int64_t given_uj(const struct kj_work *work, size_t part, int64_t group_uj)
{
    double until = 0, all = 0;
    for (size_t i = 0; i < work->part_count; i++)
        if (work->parts[i].group == work->parts[part].group) {
            all += work->parts[i].ns;
            until += i <= part ? work->parts[i].ns : 0;
        }
    return all > 0 ? llround((double)group_uj * (until / all)) : 0;
}

static void add_part(const struct kj_work *work, size_t part, const struct kj_model_class_result *group,
                     struct have *have)
{
    size_t before = part;
    while (before-- && work->parts[before].group != work->parts[part].group)
        ;
    int64_t uj = given_uj(work, part, group->energy.energy_uj) -
                 (before == SIZE_MAX ? 0 : given_uj(work, before, group->energy.energy_uj));
    have->uj += uj;
    have->high_uj += (double)group->energy.high_uj;
    if ((double)group->energy.high_uj > OPEN_MOST * (double)have->uj) {
        have->method = KJ_MODELLED;
        have->identifiability = 0;
    }
    have->sd_uj = hypot(have->sd_uj, (double)group->energy.high_uj / (2 * KJ_Z90));
}

/* Groups of the model keep their numbers; those of open times follow. */
static int group_number(const struct kj_work *work, uint32_t d, const struct kj_model_result *result,
                        uint32_t c)
{
    int number = (int)result->group_count;
    for (uint32_t i = 0; i < c; i++)
        number += work->classes[i].device == d && work->classes[i].kind == KJ_WORK_GROUP;
    return number;
}

static struct have have_of(const struct kj_work *work, uint32_t d, const struct kj_model_classes *m,
                           const struct kj_model_result *result, uint32_t c)
{
    struct have have = {.known = true, .method = KJ_MEASURED, .group = -1};
    if (m->place[c] != KJ_NO_CLASS)
        have = own_of(&result->classes[m->place[c]]);
    for (size_t i = 0; i < work->part_count; i++) {
        uint32_t group = work->parts[i].group;
        if (work->parts[i].class != c || m->place[group] == KJ_NO_CLASS)
            continue;
        add_part(work, i, &result->classes[m->place[group]], &have);
        have.group = group_number(work, d, result, group);
    }
    return have;
}

static int add_group_of_times(struct kj_report *report, const struct kj_work *work,
                              const struct kj_model_class_result *energy, int number, uint32_t c)
{
    const struct kj_report_device *device = &report->devices[report->devices_count - 1];
    const struct have have = have_of_estimate(&energy->energy, energy->method);
    struct kj_report_group *row = kj_report_add_group(report);
    if (!row)
        return -1;
    *row = (struct kj_report_group){.device = strdup(device->device),
                                    .group = number,
                                    .times = true,
                                    .energy = on_device(&have, &device->energy)};
    for (size_t i = 0; i < work->part_count; i++)
        if (work->parts[i].group == c) {
            const struct kj_work_class *class = &work->classes[work->parts[i].class];
            *(kj_kind_is_copy(class->kind) ? &row->copies : &row->kernels) +=
                kj_kind_is_copy(class->kind) ? class->open : 1;
        }
    kj_report_warn(
        report,
        "%s: how long each of %zu kernels ran is not known, for they ran inside graphs: each has "
        "anything from 0 to all of the energy of group %d; kjoule run --timing cupti times each of "
        "them",
        device->device, row->kernels, number);
    return 0;
}

static int list_groups(struct kj_report *report, const struct kj_work *work, uint32_t d,
                       const struct kj_model_classes *m, const struct kj_model_result *result)
{
    const struct kj_report_device *device = &report->devices[report->devices_count - 1];
    for (size_t g = 0; g < result->group_count; g++) {
        const struct kj_model_group *from = &result->groups[g];
        const struct have have = have_of_estimate(
            &from->energy, from->identifiability >= R_ESTIMATED ? KJ_ESTIMATED : KJ_MODELLED);
        struct kj_report_group *row = kj_report_add_group(report);
        if (!row)
            return -1;
        *row = (struct kj_report_group){
            .device = strdup(device->device), .group = (int)g, .energy = on_device(&have, &device->energy)};
        for (size_t i = 0; i < m->count; i++)
            if (result->classes[i].group == (int32_t)g) {
                const struct kj_work_class *class = &work->classes[m->index[i]];
                *(kj_kind_is_copy(class->kind) ? &row->copies : &row->kernels) +=
                    kj_kind_is_copy(class->kind) ? class->launches : 1;
            }
    }
    for (uint32_t c = 0; c < work->class_count; c++)
        if (work->classes[c].device == d && work->classes[c].kind == KJ_WORK_GROUP &&
            m->place[c] != KJ_NO_CLASS &&
            add_group_of_times(report, work, &result->classes[m->place[c]], group_number(work, d, result, c),
                               c))
            return -1;
    return 0;
}

static void warn_of_kind(struct kj_report *report, const struct kj_work *work,
                         const struct kj_work_class *class)
{
    const char *device = work->devices[class->device].key;
    if (class->kind == KJ_ACTIVITY_BODY)
        kj_report_warn(
            report,
            "%s: graphs with conditional nodes: how often their bodies run is the device's to decide, "
            "so the kernels in them are one line, %s, and not counted; kjoule run --timing cupti "
            "times each of them",
            device, class->name);
    if (class->kind == KJ_ACTIVITY_GRAPH)
        kj_report_warn(report,
                       "%s: what %llu launches of graphs ran is not known (changed in a way that cannot be "
                       "followed, or more graphs than the ledger holds): they are one line, %s, not split by "
                       "kernels; kjoule run --timing cupti times each of them",
                       device, (unsigned long long)class->launches, class->name);
}

int kj_kernel_lines(struct kj_report *report, const struct kj_work *work, uint32_t d,
                    const struct kj_model_classes *m, const struct kj_model_result *result,
                    struct kj_report_device *device)
{
    for (uint32_t c = 0; c < work->class_count; c++) {
        const struct kj_work_class *class = &work->classes[c];
        if (class->device != d || !class->launches || class->kind == KJ_WORK_GROUP)
            continue;
        struct have have = {0};
        if (result)
            have = have_of(work, d, m, result, c);
        if (!have.known) { /* what it is given is nobody's, or the lines would not add up */
            device->unattributed_uj += have.uj;
            have.uj = 0;
        }
        if (kj_kind_is_copy(class->kind)) {
            device->unattributed_uj += have.uj;
            if (add_copy(report, work, c))
                return -1;
            continue;
        }
        struct kj_report_kernel *row = add_kernel(report, work, c);
        if (!row)
            return -1;
        device->launches += class->kind == KJ_ACTIVITY_KERNEL ? class->launches : 0;
        warn_of_kind(report, work, class);
        if (!result)
            continue;
        row->energy = on_device(&have, &device->energy);
        row->energy_sd_uj = have.sd_uj;
        row->identifiability = have.identifiability;
        row->group = have.group;
        device->kernels_uj += have.uj;
        device->kernels_known += have.known;
        device->kernels_unknown += !have.known;
    }
    return result ? list_groups(report, work, d, m, result) : 0;
}
