/* SPDX-License-Identifier: Apache-2.0
 *
 * graphs.c - graphs and what is made of them. A captured graph is known from its capture, another one is read
 * when it is first instantiated, and neither is read again before something may have changed it. Each launch
 * is one activity; GRAPH_NODES says what one launch runs.
 */
#include "graphs.h"

#include <string.h>

enum { EXECS = 8192, GRAPHS = 4096 };

static struct kj_exec execs[EXECS];
/* Graphs whose nodes are known, as long as nothing edits a graph. */
static struct record {
    CUgraph graph;
    uint32_t content, edits;
    size_t nodes;
} graphs[GRAPHS];
_Atomic uint32_t kj_graph_edits;

/* ---- rows by handle
 * ----------------------------------------------------------------------------------------------- */

#define GONE ((void *)1)
enum { PROBES = 256 };

static void *_Atomic *key_at(void *rows, size_t row_bytes, size_t count, size_t place)
{
    return (void *_Atomic *)((char *)rows + place % count * row_bytes);
}

static size_t place_of(const void *key)
{
    return ((uintptr_t)key * 0x9e3779b97f4a7c15ULL) >> 40;
}

void *kj_handle_find(void *rows, size_t row_bytes, size_t count, const void *key)
{
    size_t place = place_of(key);
    for (size_t i = 0; i < PROBES; i++) {
        void *_Atomic *at = key_at(rows, row_bytes, count, place + i);
        const void *there = atomic_load_explicit(at, memory_order_acquire);
        if (there == key)
            return (void *)at;
        if (!there)
            break;
    }
    return NULL;
}

void *kj_handle_add(void *rows, size_t row_bytes, size_t count, const void *key)
{
    size_t place = place_of(key);
    void *row = kj_handle_find(rows, row_bytes, count, key);
    for (size_t i = 0; i < PROBES && !row; i++) {
        void *_Atomic *at = key_at(rows, row_bytes, count, place + i);
        const void *there = atomic_load_explicit(at, memory_order_relaxed);
        if (there && there != GONE)
            continue;
        row = (void *)at;
        memset((char *)row + sizeof(key), 0, row_bytes - sizeof(key));
        atomic_store_explicit(at, (void *)key, memory_order_release);
    }
    return row;
}

void kj_handle_remove(void *rows, size_t row_bytes, size_t count, const void *key)
{
    void *row = kj_handle_find(rows, row_bytes, count, key);
    size_t place = row ? (size_t)((char *)row - (char *)rows) / row_bytes : 0;
    if (!row)
        return;
    bool last = !atomic_load_explicit(key_at(rows, row_bytes, count, place + 1), memory_order_relaxed);
    atomic_store_explicit(key_at(rows, row_bytes, count, place), last ? NULL : GONE, memory_order_release);
    /* Where nothing follows, what is gone need not be passed any more. */
    for (size_t back = 1; last && back < PROBES; back++) {
        void *_Atomic *at = key_at(rows, row_bytes, count, place + count - back);
        if (atomic_load_explicit(at, memory_order_relaxed) != GONE)
            break;
        atomic_store_explicit(at, NULL, memory_order_release);
    }
}

#define FIND(table, count, key)   kj_handle_find(table, sizeof((table)[0]), count, key)
#define ADD(table, count, key)    kj_handle_add(table, sizeof((table)[0]), count, key)
#define REMOVE(table, count, key) kj_handle_remove(table, sizeof((table)[0]), count, key)

/* ---- executable graphs
 * ----------------------------------------------------------------------------------------------- */

struct kj_exec *kj_exec_find(CUgraphExec exec)
{
    return FIND(execs, EXECS, exec);
}

/* A graph's launch is keyed by what it runs; that sits in the shape's place,
 * and leaves grid[0] at 0, for contents are never one row. On the launch path. */
struct kj_shape kj_graph_shape(CUgraphExec exec)
{
    struct kj_shape shape = {.function = NULL};
    const struct kj_exec *e = FIND(execs, EXECS, exec);
    if (likely(e))
        shape.grid[1] = atomic_load_explicit(&e->content, memory_order_relaxed);
    return shape;
}

void kj_graphs_forget(void)
{
    atomic_store(&kj_captures, 0);
    memset(execs, 0, sizeof(execs));
    memset(graphs, 0, sizeof(graphs));
    kj_changes_forget();
    kj_captured_forget();
    kj_contents_forget();
}

void kj_graph_known(CUgraph graph, uint32_t content, size_t nodes)
{
    kj_lock_cold();
    const struct record *before = FIND(graphs, GRAPHS, graph);
    if (content && before && before->content != content)
        atomic_fetch_add(&kj_graph_edits, 1); /* captured anew: executables made of it run what it was */
    struct record *record = content ? ADD(graphs, GRAPHS, graph) : NULL;
    if (record)
        *record = (struct record){graph, content, atomic_load(&kj_graph_edits), nodes};
    else
        REMOVE(graphs, GRAPHS, graph);
    kj_unlock_cold();
}

/* What a graph runs, as it was seen before: 0 where something may have changed it since. */
static uint32_t content_before(CUgraph graph)
{
    size_t nodes = 0;
    kj_lock_cold();
    const struct record *found = FIND(graphs, GRAPHS, graph);
    const struct record record = found ? *found : (struct record){.graph = NULL};
    kj_unlock_cold();
    if (!record.content || record.edits != atomic_load(&kj_graph_edits) || !kj_driver.cuGraphGetNodes ||
        kj_driver.cuGraphGetNodes(graph, NULL, &nodes) || nodes != record.nodes)
        return 0;
    return record.content;
}

/* Instantiated, or updated by a graph. */
void kj_graph_instantiated(CUgraphExec exec, CUgraph graph, bool update)
{
    struct kj_ledger_header *ledger = kj_enter();
    struct kj_context *context = ledger ? kj_context_current(ledger) : NULL;
    if (!context)
        return;
    uint64_t begun_ns = kj_now_ns();
    struct kj_reading r = {.ledger = ledger, .device = kj_context_device(context)};
    kj_self.inside = true;
    uint32_t content = content_before(graph);
    if (!content) {
        kj_graph_read(&r, graph);
        content = kj_content_of(ledger, &r.tally, r.device, r.serial);
        if (r.flat)
            kj_graph_known(graph, content, r.nodes);
        kj_tally_drop(&r.tally);
    }
    kj_self.inside = false;
    kj_lock_cold();
    struct kj_exec *e = ADD(execs, EXECS, exec);
    if (e) {
        kj_changes_drop(&e->changes);
        e->foreign = update && e->graph != graph;
        e->graph = update ? e->graph : graph;
        e->edits = atomic_load(&kj_graph_edits);
        atomic_store_explicit(&e->content, content, memory_order_relaxed);
    }
    kj_unlock_cold();
    if (!e)
        __atomic_fetch_or(&ledger->flags, KJ_LEDGER_PARTIAL, __ATOMIC_RELAXED);
    kj_governor_read(ledger, kj_now_ns() - begun_ns, r.asked);
}

/* Forgotten before it is gone: another thread may be given the same handle at once. */
CUresult cuGraphExecDestroy(CUgraphExec exec)
{
    struct kj_exec was = {.exec = NULL};
    kj_lock_cold();
    struct kj_exec *e = FIND(execs, EXECS, exec);
    if (e) {
        kj_changes_drop(&e->changes);
        was = *e;
        was.foreign = true;
    }
    REMOVE(execs, EXECS, exec);
    kj_unlock_cold();
    CUresult rc = REAL(cuGraphExecDestroy)(exec);
    if (rc && was.exec) { /* it lives on */
        kj_lock_cold();
        if ((e = ADD(execs, EXECS, exec)))
            *e = was;
        kj_unlock_cold();
    }
    return kj_counted(KJ_HOOK_cuGraphExecDestroy, rc);
}

CUresult cuGraphDestroy(CUgraph graph)
{
    kj_graph_known(graph, 0, 0);
    return kj_counted(KJ_HOOK_cuGraphDestroy, REAL(cuGraphDestroy)(graph));
}
