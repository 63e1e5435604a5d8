/* SPDX-License-Identifier: Apache-2.0
 *
 * graph_changes.c - single nodes of an executable graph are changed: it runs another content from its next
 * launch on. What a node ran before is known from an earlier change, or from the graph that the executable
 * was made of, as long as nothing has edited that. Else the content is not known, and the graph's launches
 * are told as a whole.
 */
#include "graphs.h"

#include <string.h>

enum { CHANGES = 8192, PLACES = 2 * CHANGES };

static struct kj_change changes[CHANGES];
static uint16_t places[PLACES];   /* by executable and node: change + 1; 0 free */
static uint32_t free_first, used; /* + 1; those never used come last */
#define GONE UINT16_MAX

static size_t place_of(CUgraphExec exec, CUgraphNode node)
{
    return (((uintptr_t)exec ^ (uintptr_t)node << 7) * 0x9e3779b97f4a7c15ULL) >> 40;
}

static size_t find_place(CUgraphExec exec, CUgraphNode node)
{
    size_t at = place_of(exec, node);
    for (size_t i = 0; i < PLACES && places[at % PLACES]; i++, at++) {
        const struct kj_change *c = places[at % PLACES] == GONE ? NULL : &changes[places[at % PLACES] - 1];
        if (c && c->exec == exec && c->node == node)
            return at % PLACES;
    }
    return PLACES;
}

struct kj_change *kj_change_find(CUgraphExec exec, CUgraphNode node)
{
    size_t place = find_place(exec, node);
    return place == PLACES ? NULL : &changes[places[place] - 1];
}

struct kj_change *kj_change_add(CUgraphExec exec, CUgraphNode node, uint32_t *first)
{
    struct kj_change *found = kj_change_find(exec, node);
    uint32_t index = free_first ? free_first - 1 : used;
    if (found || index == CHANGES)
        return found;
    free_first = free_first ? changes[index].next : 0;
    used += index == used;
    size_t at = place_of(exec, node);
    while (places[at % PLACES] && places[at % PLACES] != GONE)
        at++;
    places[at % PLACES] = (uint16_t)(index + 1);
    changes[index] = (struct kj_change){.exec = exec, .node = node, .next = *first};
    *first = index + 1;
    return &changes[index];
}

void kj_changes_drop(uint32_t *first)
{
    for (uint32_t next; *first; *first = next) {
        struct kj_change *c = &changes[*first - 1];
        size_t place = find_place(c->exec, c->node);
        next = c->next;
        if (place < PLACES)
            places[place] = GONE;
        /* Where nothing follows, what is gone need not be passed any more. */
        for (size_t at = place; place < PLACES && !places[(at + 1) % PLACES] && places[at % PLACES] == GONE;
             at = (at + PLACES - 1) % PLACES)
            places[at % PLACES] = 0;
        *c = (struct kj_change){.next = free_first};
        free_first = *first;
    }
}

void kj_changes_forget(void)
{
    memset(changes, 0, sizeof(changes));
    memset(places, 0, sizeof(places));
    free_first = used = 0;
}

/* ---- one change
 * ----------------------------------------------------------------------------------------------- */

struct edit {
    struct kj_ledger_header *ledger;
    uint16_t device;
    CUgraphExec exec;
    CUgraphNode node;
    const bool *off;   /* switched off or on */
    uint32_t activity; /* that it runs now; KJ_ROW_UNKNOWN: as before */
    uint64_t bytes;
    CUgraph child; /* the same of a node that is a graph */
    size_t asked;
    uint32_t content; /* of the executable, before */
    bool trusted;     /* its own graph tells what it runs */
    struct kj_change was;
    bool changed; /* before: was is its last change */
};

/* The row of the same kernel in the tally, whoever captured it; as it is where there is none. */
static uint32_t row_in(const struct kj_ledger_header *ledger, const struct kj_tally *tally, uint32_t activity)
{
    const struct kj_ledger_activity *rows = kj_section((void *)ledger, KJ_SECTION_ACTIVITIES);
    const struct kj_ledger_activity *wanted = &rows[activity];
    for (size_t i = 0; i < tally->count; i++) {
        const struct kj_ledger_activity *a = &rows[tally->rows[i].activity];
        if (a->name == wanted->name && a->kind == wanted->kind && a->device == wanted->device &&
            !memcmp(a->grid, wanted->grid, sizeof(a->grid)) &&
            !memcmp(a->block, wanted->block, sizeof(a->block)) && a->shared_bytes == wanted->shared_bytes)
            return tally->rows[i].activity;
    }
    return activity;
}

/* Nodes of a graph that is no longer there are not to be followed any more. */
static void forget_nodes(struct edit *e, CUgraph graph)
{
    size_t count = 0;
    CUgraphNode nodes[64];
    CUgraphNodeType type;
    CUgraph child;
    if (kj_driver.cuGraphGetNodes(graph, NULL, &count) || count > 64) {
        e->trusted = false; /* of any other node, either */
        return;
    }
    if (kj_driver.cuGraphGetNodes(graph, nodes, &count))
        count = 0;
    for (size_t i = 0; i < count; i++) {
        kj_lock_cold();
        struct kj_exec *exec = kj_exec_find(e->exec);
        struct kj_change *c = exec ? kj_change_add(e->exec, nodes[i], &exec->changes) : NULL;
        if (c)
            c->gone = true;
        else if (exec)
            exec->foreign = true;
        kj_unlock_cold();
        if (!kj_driver.cuGraphNodeGetType(nodes[i], &type) && type == CU_GRAPH_NODE_TYPE_GRAPH &&
            !kj_driver.cuGraphChildGraphNodeGetGraph(nodes[i], &child))
            forget_nodes(e, child);
    }
}

/* Takes what the node ran off the tally. */
static void take_off(struct edit *e, struct kj_tally *tally)
{
    CUgraphNodeType type;
    CUgraph child;
    if (e->changed) {
        if (e->was.gone)
            tally->lost = true;
        else if (e->was.content)
            kj_content_add_to(e->was.content, tally, -1);
        else if (!e->was.off && e->was.activity)
            kj_tally_add(tally, e->was.activity, -1, -(int64_t)e->was.bytes);
        return;
    }
    if (!e->trusted || kj_driver.cuGraphNodeGetType(e->node, &type)) {
        tally->lost = true;
        return;
    }
    if (type != CU_GRAPH_NODE_TYPE_GRAPH) {
        uint32_t row = kj_node_activity(e->ledger, e->device, e->node, type, &e->was.bytes);
        e->was.activity = row ? row_in(e->ledger, tally, row) : 0;
        if (row)
            kj_tally_add(tally, e->was.activity, -1, -(int64_t)e->was.bytes);
        return;
    }
    struct kj_reading r = {.ledger = e->ledger, .device = e->device, .exec = e->exec};
    if (!kj_driver.cuGraphChildGraphNodeGetGraph ||
        kj_driver.cuGraphChildGraphNodeGetGraph(e->node, &child)) {
        tally->lost = true;
        return;
    }
    kj_graph_read(&r, child);
    for (size_t i = 0; i < r.tally.count; i++)
        kj_tally_add(tally, row_in(e->ledger, tally, r.tally.rows[i].activity),
                     -(int64_t)r.tally.rows[i].nodes, -(int64_t)r.tally.rows[i].bytes);
    tally->lost = tally->lost || r.tally.lost;
    e->asked += r.asked;
    kj_tally_drop(&r.tally);
    forget_nodes(e, child);
}

/* Adds what it runs now. */
static bool add_new(struct edit *e, struct kj_tally *tally, struct kj_change *ret_now)
{
    bool serial = kj_content_is_serial(e->content);
    *ret_now = e->was;
    ret_now->off = e->off ? *e->off : e->was.off;
    if (e->child) {
        struct kj_reading r = {.ledger = e->ledger, .device = e->device};
        kj_graph_read(&r, e->child);
        serial = serial && r.serial;
        ret_now->content = kj_content_of(e->ledger, &r.tally, e->device, r.serial);
        ret_now->gone = !ret_now->content;
        kj_tally_add_all(tally, &r.tally, 1);
        e->asked += r.asked;
        kj_tally_drop(&r.tally);
        return serial;
    }
    if (e->activity != KJ_ROW_UNKNOWN) {
        const struct kj_ledger_activity *rows = kj_section(e->ledger, KJ_SECTION_ACTIVITIES);
        /* It stays with whoever captured the node. */
        ret_now->activity = e->was.activity && e->activity
                                ? kj_activity_in_role(e->ledger, e->activity, rows[e->was.activity].role)
                                : e->activity;
        ret_now->bytes = e->bytes;
        ret_now->gone = false;
    }
    if (!ret_now->off && ret_now->activity)
        kj_tally_add(tally, ret_now->activity, 1, (int64_t)ret_now->bytes);
    return serial;
}

static void apply(struct edit *e)
{
    struct kj_tally tally = {0};
    struct kj_change now;
    kj_lock_cold();
    struct kj_exec *exec = kj_exec_find(e->exec);
    const struct kj_change *change = exec ? kj_change_find(e->exec, e->node) : NULL;
    e->content = exec ? atomic_load_explicit(&exec->content, memory_order_relaxed) : 0;
    e->trusted = exec && !exec->foreign && exec->edits == atomic_load(&kj_graph_edits);
    e->changed = change != NULL;
    if (change)
        e->was = *change;
    kj_unlock_cold();
    if (!exec)
        return;
    kj_content_add_to(e->content, &tally, 1);
    take_off(e, &tally);
    bool serial = add_new(e, &tally, &now);
    uint32_t content = kj_content_of(e->ledger, &tally, e->device, serial);
    kj_tally_drop(&tally);
    kj_lock_cold();
    exec = kj_exec_find(e->exec);
    struct kj_change *kept = exec ? kj_change_add(e->exec, e->node, &exec->changes) : NULL;
    if (kept) {
        kept->activity = now.activity;
        kept->content = now.content;
        kept->bytes = now.bytes;
        kept->off = now.off;
        kept->gone = now.gone;
    }
    if (exec) {
        exec->foreign = exec->foreign || !kept || (!e->trusted && !e->changed);
        atomic_store_explicit(&exec->content, content, memory_order_relaxed);
    }
    kj_unlock_cold();
}

static void node_changed(struct edit *e)
{
    struct kj_context *context = e->ledger ? kj_context_current(e->ledger) : NULL;
    if (!context || !kj_driver.cuGraphNodeGetType)
        return;
    uint64_t begun_ns = kj_now_ns();
    kj_self.inside = true;
    e->device = kj_context_device(context);
    apply(e);
    kj_self.inside = false;
    kj_governor_read(e->ledger, kj_now_ns() - begun_ns, e->asked + 1);
}

static void runs(CUgraphExec exec, CUgraphNode node, uint8_t kind, const struct kj_shape *shape,
                 uint64_t bytes)
{
    struct edit e = {.ledger = kj_enter(), .exec = exec, .node = node, .bytes = bytes};
    struct kj_context *context = e.ledger ? kj_context_current(e.ledger) : NULL;
    const struct kj_shape none = {.function = NULL};
    bool unused;
    if (!context)
        return;
    e.activity = kj_activity_find(e.ledger, kind, kj_context_device(context), shape ? shape : &none, &unused);
    node_changed(&e);
}

static void runs_copy(CUgraphExec exec, CUgraphNode node, const CUDA_MEMCPY3D *copy)
{
    runs(exec, node, kj_node_copy_kind(copy), NULL, kj_node_copy_bytes(copy));
}

static void runs_graph(CUgraphExec exec, CUgraphNode node, CUgraph child)
{
    struct edit e = {
        .ledger = kj_enter(), .exec = exec, .node = node, .child = child, .activity = KJ_ROW_UNKNOWN};
    node_changed(&e);
}

/* ---- hooks
 * ----------------------------------------------------------------------------------------------- */

CUresult cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                        const CUDA_KERNEL_NODE_PARAMS_v1 *params)
{
    CUresult rc = REAL(cuGraphExecKernelNodeSetParams)(exec, node, params);
    if (!rc) {
        struct kj_shape shape = kj_node_shape_v1(params);
        runs(exec, node, KJ_ACTIVITY_KERNEL, &shape, 0);
    }
    return kj_counted(KJ_HOOK_cuGraphExecKernelNodeSetParams, rc);
}

CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                           const CUDA_KERNEL_NODE_PARAMS_v2 *params)
{
    CUresult rc = REAL(cuGraphExecKernelNodeSetParams_v2)(exec, node, params);
    if (!rc) {
        struct kj_shape shape = kj_node_shape_v2(params);
        runs(exec, node, KJ_ACTIVITY_KERNEL, &shape, 0);
    }
    return kj_counted(KJ_HOOK_cuGraphExecKernelNodeSetParams_v2, rc);
}

CUresult cuGraphExecMemcpyNodeSetParams(CUgraphExec exec, CUgraphNode node, const CUDA_MEMCPY3D *params,
                                        CUcontext context)
{
    CUresult rc = REAL(cuGraphExecMemcpyNodeSetParams)(exec, node, params, context);
    if (!rc)
        runs_copy(exec, node, params);
    return kj_counted(KJ_HOOK_cuGraphExecMemcpyNodeSetParams, rc);
}

CUresult cuGraphExecMemsetNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                        const CUDA_MEMSET_NODE_PARAMS *params, CUcontext context)
{
    CUresult rc = REAL(cuGraphExecMemsetNodeSetParams)(exec, node, params, context);
    if (!rc)
        runs(exec, node, KJ_ACTIVITY_MEMSET, NULL, kj_node_fill_bytes(params));
    return kj_counted(KJ_HOOK_cuGraphExecMemsetNodeSetParams, rc);
}

CUresult cuGraphExecChildGraphNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraph child)
{
    CUresult rc = REAL(cuGraphExecChildGraphNodeSetParams)(exec, node, child);
    if (!rc)
        runs_graph(exec, node, child);
    return kj_counted(KJ_HOOK_cuGraphExecChildGraphNodeSetParams, rc);
}

CUresult cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraphNodeParams *params)
{
    CUresult rc = REAL(cuGraphExecNodeSetParams)(exec, node, params);
    CUgraphNodeType type = rc ? CU_GRAPH_NODE_TYPE_HOST : params->type;
    if (type == CU_GRAPH_NODE_TYPE_KERNEL) {
        struct kj_shape shape = kj_node_shape_v2(&params->kernel);
        runs(exec, node, KJ_ACTIVITY_KERNEL, &shape, 0);
    } else if (type == CU_GRAPH_NODE_TYPE_MEMCPY) {
        runs_copy(exec, node, &params->memcpy.copyParams);
    } else if (type == CU_GRAPH_NODE_TYPE_MEMSET) {
        runs(exec, node, KJ_ACTIVITY_MEMSET, NULL, kj_node_fill_bytes(&params->memset));
    } else if (type == CU_GRAPH_NODE_TYPE_GRAPH) {
        runs_graph(exec, node, params->graph);
    }
    return kj_counted(KJ_HOOK_cuGraphExecNodeSetParams, rc);
}

CUresult cuGraphNodeSetEnabled(CUgraphExec exec, CUgraphNode node, unsigned enabled)
{
    CUresult rc = REAL(cuGraphNodeSetEnabled)(exec, node, enabled);
    bool off = !enabled;
    struct edit e = {
        .ledger = kj_enter(), .exec = exec, .node = node, .off = &off, .activity = KJ_ROW_UNKNOWN};
    if (!rc)
        node_changed(&e);
    return kj_counted(KJ_HOOK_cuGraphNodeSetEnabled, rc);
}
