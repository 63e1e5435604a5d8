/* SPDX-License-Identifier: Apache-2.0
 *
 * threads.c - who calls: a thread's row, made at its first hooked call, and its shard of the counts.
 */
#include "shim.h"

#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

__thread struct kj_thread kj_self;
static atomic_uint shards_taken;

void kj_thread_start(struct kj_ledger_header *ledger)
{
    memset(&kj_self, 0, sizeof(kj_self));
    struct kj_ledger_thread thread = {.tid = (int32_t)syscall(SYS_gettid)};
    prctl(PR_GET_NAME, thread.name);
    thread.name[15] = 0;
    thread.role = !strncmp(thread.name, "pt_autograd", 11) ? KJ_ROLE_AUTOGRAD
                  : thread.tid == ledger->pid              ? KJ_ROLE_MAIN
                                                           : KJ_ROLE_OTHER;
    kj_lock_cold();
    int64_t row = kj_row_reserve(ledger, KJ_SECTION_THREADS);
    if (row >= 0) {
        ((struct kj_ledger_thread *)kj_section(ledger, KJ_SECTION_THREADS))[row] = thread;
        kj_row_publish(ledger, KJ_SECTION_THREADS);
    }
    kj_unlock_cold();
    /* The last shard is for everybody who comes after the first fifteen, with atomic adds. */
    unsigned shard = atomic_fetch_add(&shards_taken, 1);
    kj_self.exclusive = shard < KJ_LEDGER_SHARDS - 1;
    shard = kj_self.exclusive ? shard : KJ_LEDGER_SHARDS - 1;
    kj_self.counts = (uint64_t *)kj_section(ledger, KJ_SECTION_COUNTS) + (size_t)shard * KJ_LEDGER_COUNTS_CAP;
    kj_self.row = row >= 0 ? (uint16_t)row : 0;
    kj_self.place.role = kj_role_in_range((uint8_t)thread.role);
    kj_self.place.kind = KJ_ACTIVITY_KERNEL;
    kj_self.random = (uint32_t)thread.tid * 2654435761u | 1;
    kj_self.sample_distance = kj_self.until_sample = KJ_SAMPLE_EVERY / 2;
    kj_self.skips = kj_self.skips_drawn = 0;
    kj_self.ledger = ledger;
}

void kj_threads_forget(void)
{
    atomic_store(&shards_taken, 0);
    memset(&kj_self, 0, sizeof(kj_self));
}
