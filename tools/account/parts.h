/* SPDX-License-Identifier: Apache-2.0
 *
 * parts.h - the steps of the accounting. Inside the room only.
 */
#ifndef KJ_ACCOUNT_PARTS_H
#define KJ_ACCOUNT_PARTS_H

#include "folder/folder.h"
#include "folder/series.h"
#include "report/report.h"

/* What is open while a report is made. */
struct kj_account {
    int dir_fd;
    struct kj_run_info run;
    struct kj_series *series; /* NULL: there was none */
    uint64_t start_ns, end_ns;
    struct kj_report *report;
};

/* channel_energy.c: energy of one channel over [start, end]. What a counter does not cover is filled from
 * power readings of the same device (NULL: there are none); what nothing covers, with the power at the
 * nearest end. */
struct kj_span_energy {
    bool known;
    double uj;
    double coverage; /* share of the span between first and last reading */
};
struct kj_span_energy kj_channel_energy(const struct kj_series_channel *channel,
                                        const struct kj_series_channel *power, uint64_t start_ns,
                                        uint64_t end_ns);

/* components.c: one component of the report per device that counts, from its best channel. uuids: the GPUs
 * that this run used. */
int kj_account_components(struct kj_account *account, char *const *gpus, size_t gpu_count);

/* work.c: what the ledgers say, and its share of the devices' energy. */
struct kj_work;
struct kj_work *kj_work_read(struct kj_account *account);
struct kj_work *kj_work_free(struct kj_work *work);
size_t kj_work_gpus(const struct kj_work *work, char *const **ret_gpus);
/* Fills devices, kernels, copies. After kj_account_components. */
int kj_work_attribute(struct kj_account *account, struct kj_work *work);

#endif
