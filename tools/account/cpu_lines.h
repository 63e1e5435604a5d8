/* SPDX-License-Identifier: Apache-2.0
 *
 * cpu_lines.h - this run's CPU energy by line: thread names, processes, waiting for GPUs, phases. Inside the
 * room only.
 */
#ifndef KJ_ACCOUNT_CPU_LINES_H
#define KJ_ACCOUNT_CPU_LINES_H

#include "account/cpu_share.h"

/* What the packages gave this run, in sum. */
struct kj_cpu_sums {
    bool known;
    enum kj_method method;
    uint64_t packages_unknown;
    int64_t own_idle_uj, own_dynamic_uj;     /* together: the packages' components, to the microjoule */
    double low, high;                        /* factors of the sum, of sensor and share together */
    const struct kj_series_channel *channel; /* of the first package: the course of the energy in time */
};

/* Fills report->cpu. After the components and the calls. */
int kj_cpu_lines(struct kj_account *account, const struct kj_cpu_use *use, const struct kj_cpu_sums *sums);

/* cpu_phase_lines.c: the part of it that comes from phases.cpu.csv. */
int kj_cpu_phase_lines(struct kj_account *account, const struct kj_cpu_use *use,
                       const struct kj_cpu_sums *sums);

#endif
