/* SPDX-License-Identifier: Apache-2.0
 *
 * cgroup.h - quota and CPU time of the control group that this process is in. Inside the room only.
 */
#ifndef KJ_RECORD_CGROUP_H
#define KJ_RECORD_CGROUP_H

#include "record/parts.h"

/* Cores' worth of CPU time that this process's group, or one above it, may use; 0: no limit. root: prefix of
 * /proc and /sys, "" but in tests. */
double kj_cgroup_quota(const char *root);

/* Whose CPU time is wanted: the root and its descendants as far as they are known. */
struct kj_cgroup_run {
    int32_t root;
    const int32_t *pids;
    size_t count;
};

struct kj_cgroup;
/* NULL where the group's CPU time cannot be read, or others are in it: the recorder itself and who started it
 * apart. */
struct kj_cgroup *kj_cgroup_open(const struct kj_cgroup_run *run);
/* CPU time of the run since open. False: somebody else was seen in the group, and from then on always. */
bool kj_cgroup_read(struct kj_cgroup *cgroup, const struct kj_cgroup_run *run, uint64_t *ret_ns);
/* NULL-safe, returns NULL. */
struct kj_cgroup *kj_cgroup_close(struct kj_cgroup *cgroup);

#endif
