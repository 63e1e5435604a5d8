/* SPDX-License-Identifier: Apache-2.0
 *
 * unhooked.c - entry points of a driver newer than this shim: handed out as they are, since their ABI is not
 * known here, and written down, since work may go through them that nobody sees.
 */
#include "shim.h"

#include <fnmatch.h>
#include <string.h>

/* The functions that are known and let through on purpose. */
#define PASS(symbol, reason) #symbol,
#include "hooks_none.h"
static const char *const passed[] = {
#include "hooks.def"
};
#include "hooks_undef.h"

/* Names of what starts work on a device, or decides when it starts. */
static const char *const work[] = {"cuLaunch*",         "cuMemcpy*",       "cuMemset*",    "cuGraph*Launch*",
                                   "cuStream*Capture*", "cuMem*Prefetch*", "cuMem*Batch*", "cuStream*Batch*"};

/* Of a name without what marks its ABI: _v2, _ptsz, _ptds. */
static size_t base_length(const char *name)
{
    const char *end = strchr(name, '_');
    return end ? (size_t)(end - name) : strlen(name);
}

bool kj_unhooked_is_work(const char *name)
{
    size_t length = base_length(name);
    for (size_t i = 0; i < sizeof(passed) / sizeof(passed[0]); i++)
        if (length == base_length(passed[i]) && !strncmp(name, passed[i], length))
            return false;
    for (size_t i = 0; i < sizeof(work) / sizeof(work[0]); i++)
        if (!fnmatch(work[i], name, 0))
            return true;
    return false;
}

void kj_unhooked_note(const char *name, int version, uint64_t flags)
{
    struct kj_ledger_header *ledger = kj_ledger_now();
    if (!ledger)
        return;
    kj_lock_cold();
    struct kj_ledger_unhooked *rows = kj_section(ledger, KJ_SECTION_UNHOOKED);
    uint64_t used = ledger->sections[KJ_SECTION_UNHOOKED].used, i = 0;
    const char *names = kj_section(ledger, KJ_SECTION_NAMES);
    while (i < used && (rows[i].version != version || strcmp(names + rows[i].name, name)))
        i++;
    if (i < used) {
        rows[i].requests++;
    } else if (kj_row_reserve(ledger, KJ_SECTION_UNHOOKED) >= 0) {
        rows[i] = (struct kj_ledger_unhooked){kj_name_store(ledger, name), version, (uint32_t)flags, 1};
        kj_row_publish(ledger, KJ_SECTION_UNHOOKED);
    }
    kj_unlock_cold();
}
