/* SPDX-License-Identifier: Apache-2.0
 *
 * cpu_share.h - which part of a package's energy is this run's. Two parts, two rules (energy.md section 3):
 *
 *   dynamic   what the package drew above its idle power, by who ran: cycles where they were counted, CPU
 * time else. A CPU-second of dense arithmetic draws two to three times that of waiting for memory, so the
 *             interval lets this run's be worth from 1/k to k of another's (k: 2.5 by time, 1.6 by cycles).
 * Alone on the machine there is nothing to be wrong about. idle      what it would have drawn anyway, by the
 * rule that the run was given (--idle-share), between the bounds that the other rules give.
 *
 * Inside the room only.
 */
#ifndef KJ_ACCOUNT_CPU_SHARE_H
#define KJ_ACCOUNT_CPU_SHARE_H

#include "account/parts.h"

/* Who ran, over the whole run. */
struct kj_cpu_use {
    double run_ns, tree_ns, others_ns; /* others < 0: unknown */
    double cycles_share;               /* of all cycles; NAN: not counted */
    bool by_probe;
    double busy;            /* mean utilisation of the machine, 0 to 1 */
    double reserved;        /* of the machine's cores: what this run may use */
    bool is_reservation;    /* cores or a quota less than the machine, or a job of a scheduler */
    enum kj_idle_rule rule; /* as it applies, never auto */
};
void kj_cpu_use_find(struct kj_account *account, struct kj_cpu_use *ret_use);

/* This run's part of one device. */
struct kj_cpu_split {
    double idle_uj, dynamic_uj; /* of the whole device; their sum is its energy */
    double own_idle_uj, own_dynamic_uj;
    double low, high; /* bounds of own / (idle + dynamic) */
    char basis[200];
};
/* modelled: the channel itself is a model. owner: this run counts what belongs to nobody else in its job. */
void kj_cpu_split(const struct kj_account *account, const struct kj_cpu_use *use,
                  const struct kj_series_channel *channel, double total_uj, bool owner,
                  struct kj_cpu_split *ret_split);

#endif
