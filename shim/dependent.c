/* SPDX-License-Identifier: Apache-2.0
 *
 * dependent.c - programmatic dependent launches: a kernel that may begin before the one ahead of it on its
 * stream has ended. An event between the two would make it wait, so that what is timed would run otherwise
 * than what is not. Neither is timed, then: not the dependent launch, and not a kernel that such launches
 * follow. The latter is known once it has been followed for the first time.
 */
#include "shim.h"

enum { ATTRIBUTES_MOST = 64 };

KJ_EACH_LAUNCH atomic_bool kj_dependent_seen;
static _Atomic uint8_t followed[KJ_LEDGER_ACTIVITIES_CAP]; /* by row of ACTIVITIES */

bool kj_launch_is_dependent(const CUlaunchConfig *config)
{
    const CUlaunchAttribute *attributes = config ? config->attrs : NULL;
    for (unsigned i = 0; attributes && i < config->numAttrs && i < ATTRIBUTES_MOST; i++) {
        if (attributes[i].id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION &&
            attributes[i].value.programmaticStreamSerializationAllowed)
            return true;
        if (attributes[i].id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT)
            return true;
    }
    return false;
}

void kj_dependent_launched(struct kj_ledger_header *ledger, CUstream stream)
{
    __atomic_fetch_add(&ledger->dependent_launches, 1, __ATOMIC_RELAXED);
    atomic_store_explicit(&kj_dependent_seen, true, memory_order_relaxed);
    if (kj_self.last_row && kj_self.last_stream == stream)
        atomic_store_explicit(&followed[kj_self.last_row], 1, memory_order_relaxed);
}

bool kj_dependent_follows(uint32_t row)
{
    return row < KJ_LEDGER_ACTIVITIES_CAP && atomic_load_explicit(&followed[row], memory_order_relaxed);
}

void kj_dependent_forget(void)
{
    if (!atomic_exchange(&kj_dependent_seen, false))
        return;
    for (uint32_t row = 0; row < KJ_LEDGER_ACTIVITIES_CAP; row++)
        atomic_store_explicit(&followed[row], 0, memory_order_relaxed);
}
