/* SPDX-License-Identifier: Apache-2.0
 *
 * contents.c - what one launch of a graph runs. Graphs that run the same share a content, and with it their
 * rows of kind GRAPH: a program that updates its graph at every step goes back and forth between a few of
 * them. A content is written to GRAPH_NODES when it is first launched, under each role that launches it.
 */
#include "graphs.h"

#include <string.h>
#include <sys/mman.h>

enum { CONTENTS = 8192, PLACES = 2 * CONTENTS, ROWS = 131072 };

static struct content {
    uint64_t hash;
    uint32_t first, count; /* in rows */
    uint16_t device;
    bool serial;
} contents[CONTENTS];
static uint32_t contents_used = 1; /* 0: not known */
static uint16_t places[PLACES];    /* by hash: content, 0 free */
static struct kj_tally_row *rows;
static uint32_t rows_used;

/* ---- tallies
 * ----------------------------------------------------------------------------------------------- */

static bool tally_grow(struct kj_tally *tally)
{
    size_t bytes = tally->mapped_bytes ? tally->mapped_bytes * 2 : 4096;
    void *grown = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (grown == MAP_FAILED)
        return false;
    if (tally->rows) {
        memcpy(grown, tally->rows, tally->mapped_bytes);
        munmap(tally->rows, tally->mapped_bytes);
    }
    tally->rows = grown;
    tally->mapped_bytes = bytes;
    return true;
}

void kj_tally_add(struct kj_tally *tally, uint32_t activity, int64_t nodes, int64_t bytes)
{
    size_t lo = 0, hi = tally->count;
    if (tally->next < hi && tally->rows[tally->next].activity == activity)
        lo = hi = tally->next;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (tally->rows[mid].activity < activity)
            lo = mid + 1;
        else
            hi = mid;
    }
    struct kj_tally_row *row = tally->rows + lo;
    bool there = lo < tally->count && row->activity == activity;
    int64_t left = (there ? row->nodes : 0) + nodes;
    if (left < 0 || left > UINT32_MAX ||
        (!there && left && (tally->count + 1) * sizeof(*row) > tally->mapped_bytes && !tally_grow(tally))) {
        tally->lost = true;
        return;
    }
    tally->next = lo + 1;
    row = tally->rows + lo;
    if (there && !left) {
        memmove(row, row + 1, (--tally->count - lo) * sizeof(*row));
    } else if (there) {
        row->nodes = (uint32_t)left;
        row->bytes += (uint64_t)bytes;
    } else if (left) {
        memmove(row + 1, row, (tally->count++ - lo) * sizeof(*row));
        *row = (struct kj_tally_row){activity, (uint32_t)left, (uint64_t)bytes};
    }
}

void kj_tally_add_all(struct kj_tally *to, const struct kj_tally *from, int sign)
{
    for (size_t i = 0; i < from->count; i++)
        kj_tally_add(to, from->rows[i].activity, sign * (int64_t)from->rows[i].nodes,
                     sign * (int64_t)from->rows[i].bytes);
    to->lost = to->lost || from->lost;
}

void kj_tally_clear(struct kj_tally *tally)
{
    tally->count = 0;
    tally->lost = false;
}

void kj_tally_drop(struct kj_tally *tally)
{
    if (tally->rows)
        munmap(tally->rows, tally->mapped_bytes);
    *tally = (struct kj_tally){0};
}

/* ---- contents
 * ----------------------------------------------------------------------------------------------- */

static uint64_t hash_of(const struct kj_tally *tally, uint16_t device, bool serial)
{
    uint64_t h = ((uint64_t)device << 1 | serial) + 1;
    for (size_t i = 0; i < tally->count; i++) {
        h = (h ^ ((uint64_t)tally->rows[i].activity << 32 | tally->rows[i].nodes)) * 0x9e3779b97f4a7c15ULL;
        h = (h ^ h >> 29 ^ tally->rows[i].bytes) * 0xd1342543de82ef95ULL;
        h ^= h >> 31;
    }
    return h;
}

static bool content_is(const struct content *content, const struct kj_tally *tally)
{
    if (content->count != tally->count)
        return false;
    for (uint32_t i = 0; i < content->count; i++) {
        const struct kj_tally_row *a = &rows[content->first + i], *b = &tally->rows[i];
        if (a->activity != b->activity || a->nodes != b->nodes || a->bytes != b->bytes)
            return false;
    }
    return true;
}

static uint32_t content_make(const struct kj_tally *tally, const struct content *like)
{
    if (contents_used == CONTENTS || tally->count > ROWS - rows_used)
        return 0;
    if (!rows) {
        void *map = mmap(NULL, ROWS * sizeof(*rows), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED)
            return 0;
        rows = map;
    }
    struct content *content = &contents[contents_used];
    *content = *like;
    content->first = rows_used;
    content->count = (uint32_t)tally->count;
    if (tally->count)
        memcpy(rows + rows_used, tally->rows, tally->count * sizeof(*rows));
    rows_used += content->count;
    return contents_used++;
}

uint32_t kj_content_of(struct kj_ledger_header *ledger, const struct kj_tally *tally, uint16_t device,
                       bool serial)
{
    const struct content like = {.hash = hash_of(tally, device, serial), .device = device, .serial = serial};
    size_t place = like.hash >> 32;
    uint32_t index = 0;
    if (tally->lost)
        return 0;
    kj_lock_cold();
    for (;; place++) {
        index = places[place % PLACES];
        const struct content *content = &contents[index];
        if (!index || (content->hash == like.hash && content->device == device && content->serial == serial &&
                       content_is(content, tally)))
            break;
    }
    if (!index)
        places[place % PLACES] = (uint16_t)(index = content_make(tally, &like));
    kj_unlock_cold();
    if (!index)
        __atomic_fetch_or(&ledger->flags, KJ_LEDGER_PARTIAL, __ATOMIC_RELAXED);
    return index;
}

void kj_content_add_to(uint32_t content, struct kj_tally *tally, int sign)
{
    kj_lock_cold();
    const struct content *from = &contents[content];
    const struct kj_tally held = {.rows = rows + from->first, .count = from->count};
    if (content)
        kj_tally_add_all(tally, &held, sign);
    else
        tally->lost = true;
    kj_unlock_cold();
}

bool kj_content_is_serial(uint32_t content)
{
    return contents[content].serial;
}

/* All of them or none: a graph of which some nodes are missing would be split by what is not true. */
void kj_graph_row_added(struct kj_ledger_header *ledger, uint32_t index, uint32_t row)
{
    struct kj_ledger_activity *activities = kj_section(ledger, KJ_SECTION_ACTIVITIES);
    struct kj_ledger_graph_node *nodes = kj_section(ledger, KJ_SECTION_GRAPH_NODES);
    struct kj_ledger_section_entry *section = &ledger->sections[KJ_SECTION_GRAPH_NODES];
    kj_lock_cold();
    const struct content *content = &contents[index];
    bool room = section->cap - section->used >= content->count;
    for (uint32_t i = 0; i < content->count && row && room; i++) {
        const struct kj_tally_row *from = &rows[content->first + i];
        int64_t to = kj_row_reserve(ledger, KJ_SECTION_GRAPH_NODES);
        if (to < 0)
            break;
        nodes[to] = (struct kj_ledger_graph_node){
            .graph = row, .activity = from->activity, .nodes = from->nodes, .bytes = from->bytes};
        kj_row_publish(ledger, KJ_SECTION_GRAPH_NODES);
    }
    if (index && row && room)
        activities[row].flags |= KJ_GRAPH_KNOWN | (content->serial ? KJ_GRAPH_SERIAL : 0);
    if (!room) {
        section->dropped += content->count;
        __atomic_fetch_or(&ledger->flags, KJ_LEDGER_PARTIAL, __ATOMIC_RELAXED);
    }
    kj_unlock_cold();
}

void kj_contents_forget(void)
{
    memset(places, 0, sizeof(places));
    contents_used = 1;
    rows_used = 0;
}
