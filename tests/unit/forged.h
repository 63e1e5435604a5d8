/* SPDX-License-Identifier: Apache-2.0
 *
 * forged.h - a place for the folders of a test, and the header of a ledger that no process wrote.
 */
#ifndef KJ_TEST_FORGED_H
#define KJ_TEST_FORGED_H

#include "folder/ledgers.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static char place[] = "/tmp/kjoule-unit-folder.XXXXXX";

static struct kj_ledger_header empty_ledger(void)
{
    struct kj_ledger_header h = {
        .magic = KJ_LEDGER_MAGIC, .version = KJ_LEDGER_VERSION, .header_size = sizeof(h), .pid = 1};
    uint64_t at = (sizeof(h) + 63) / 64 * 64;
#define X(name, type, rows, doc)                                                                             \
    h.sections[KJ_SECTION_##name] = (struct kj_ledger_section_entry){at, sizeof(type), rows, 0, 0};          \
    at = (at + sizeof(type) * (uint64_t)(rows) + 63) / 64 * 64;
    KJ_LEDGER_SECTIONS(X)
#undef X
    h.file_size = at;
    return h;
}

static int set_up(void **state)
{
    (void)state;
    return mkdtemp(place) ? 0 : -1;
}

static int tear_down(void **state)
{
    char command[128];
    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", place);
    return system(command);
}

#endif
