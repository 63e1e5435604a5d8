/* SPDX-License-Identifier: Apache-2.0
 *
 * graphs.c - what graphs run. A graph's nodes are read from it when it is instantiated or updated, whichever
 * way it was built, and followed when single nodes of the executable are changed. Each launch is one
 * activity; GRAPH_NODES says what one launch runs.
 */
#include "shim.h"

#include <string.h>
#include <sys/mman.h>

/* What one launch of a graph runs. Graphs that run the same share it, and with it their row of kind GRAPH: a
 * program that updates its graph at every step goes back and forth between a few of them. */
struct content {
    uint64_t hash;
    uint64_t first; /* in GRAPH_NODES */
    uint32_t count;
    uint16_t device;
    bool written;
};
enum { EXECS = 8192, CONTENTS = 8192, CHANGES = 4096, PROBES = 256 };
static struct content contents[CONTENTS];
static uint32_t contents_used = 1; /* 0: not known */
static struct exec {
    CUgraphExec exec;
    uint32_t content;
} execs[EXECS];
/* Nodes that an executable graph runs otherwise than the graph it was made of. */
static struct change {
    CUgraphExec exec;
    CUgraphNode node;
    uint32_t activity;
    bool off;
} changes[CHANGES];
#define GONE ((CUgraphExec)1)

/* Rows of ACTIVITIES with their number, in order: on its way to be a content. */
struct tally {
    struct tally_row {
        uint32_t activity, nodes;
    } * rows;
    size_t count, bytes;
};

static size_t slot_of(const void *a, const void *b)
{
    return (((uintptr_t)a ^ (uintptr_t)b << 7) * 0x9e3779b97f4a7c15ULL) >> 40;
}

/* Under the cold lock, as all that touches the tables. */
static struct exec *exec_find(CUgraphExec exec, bool add)
{
    struct exec *free = NULL;
    for (size_t i = 0, at = slot_of(exec, NULL); i < PROBES; i++) {
        struct exec *e = &execs[(at + i) % EXECS];
        if (e->exec == exec)
            return e;
        if ((e->exec == GONE || !e->exec) && !free)
            free = e;
        if (!e->exec)
            break;
    }
    if (!add || !free)
        return NULL;
    *free = (struct exec){.exec = exec};
    return free;
}

static struct change *change_find(CUgraphExec exec, CUgraphNode node, bool add)
{
    struct change *free = NULL;
    for (size_t i = 0, at = slot_of(exec, node); i < PROBES; i++) {
        struct change *c = &changes[(at + i) % CHANGES];
        if (c->exec == exec && c->node == node)
            return c;
        if ((c->exec == GONE || !c->exec) && !free)
            free = c;
        if (!c->exec)
            break;
    }
    return add ? free : NULL;
}

static void exec_forget(CUgraphExec exec, bool changes_only)
{
    struct exec *e = exec_find(exec, false);
    if (e && !changes_only)
        *e = (struct exec){.exec = GONE};
    for (size_t i = 0; i < CHANGES; i++)
        if (changes[i].exec == exec)
            changes[i] = (struct change){.exec = GONE};
}

/* A graph's launch is keyed by what it runs; that sits in the shape's place. */
struct kj_shape kj_graph_shape(CUgraphExec exec)
{
    struct kj_shape shape = {.function = exec, .grid = {1, 1, 1}};
    kj_lock_cold();
    struct exec *e = exec_find(exec, false);
    if (e)
        shape.grid[1] = e->content;
    kj_unlock_cold();
    return shape;
}

void kj_graphs_forget(void)
{
    atomic_store(&kj_captures, 0);
    memset(execs, 0, sizeof(execs));
    memset(changes, 0, sizeof(changes));
    kj_captured_forget();
    contents_used = 1;
}

/* ---- tallies
 * ----------------------------------------------------------------------------------------------- */

static bool tally_grow(struct tally *tally)
{
    size_t bytes = tally->bytes ? tally->bytes * 2 : 4096;
    void *rows = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (rows == MAP_FAILED)
        return false;
    if (tally->rows) {
        memcpy(rows, tally->rows, tally->bytes);
        munmap(tally->rows, tally->bytes);
    }
    tally->rows = rows;
    tally->bytes = bytes;
    return true;
}

/* Adds `nodes` of an activity, which may be negative; what comes to nothing leaves. */
static void tally_add(struct tally *tally, uint32_t activity, int64_t nodes)
{
    size_t lo = 0, hi = tally->count;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (tally->rows[mid].activity < activity)
            lo = mid + 1;
        else
            hi = mid;
    }
    struct tally_row *row = tally->rows + lo;
    bool there = lo < tally->count && row->activity == activity;
    if (there && row->nodes + nodes > 0) {
        row->nodes = (uint32_t)(row->nodes + nodes);
    } else if (there) {
        memmove(row, row + 1, (--tally->count - lo) * sizeof(*row));
    } else if (nodes > 0) {
        if ((tally->count + 1) * sizeof(*row) > tally->bytes && !tally_grow(tally))
            return;
        row = tally->rows + lo;
        memmove(row + 1, row, (tally->count++ - lo) * sizeof(*row));
        *row = (struct tally_row){activity, (uint32_t)nodes};
    }
}

static bool tally_has(const struct tally *tally, uint32_t activity)
{
    for (size_t i = 0; i < tally->count; i++)
        if (tally->rows[i].activity == activity)
            return true;
    return false;
}

static void tally_drop(struct tally *tally)
{
    if (tally->rows)
        munmap(tally->rows, tally->bytes);
}

static uint64_t tally_hash(const struct tally *tally, uint16_t device)
{
    uint64_t h = device + 1;
    for (size_t i = 0; i < tally->count; i++)
        h = (h ^ ((uint64_t)tally->rows[i].activity << 32 | tally->rows[i].nodes)) * 0x9e3779b97f4a7c15ULL,
        h ^= h >> 29;
    return h;
}

static bool content_is(const struct kj_ledger_header *ledger, const struct content *content,
                       const struct tally *tally)
{
    const struct kj_ledger_graph_node *nodes =
        (const struct kj_ledger_graph_node *)kj_section((void *)ledger, KJ_SECTION_GRAPH_NODES) +
        content->first;
    if (!content->written || content->count != tally->count)
        return false;
    for (uint32_t i = 0; i < content->count; i++)
        if (nodes[i].activity != tally->rows[i].activity || nodes[i].nodes != tally->rows[i].nodes)
            return false;
    return true;
}

/* Writes the rows of a new content, whose graph has the row `graph`. Under the cold lock. */
static void content_write(struct kj_ledger_header *ledger, struct content *content, uint32_t graph,
                          const struct tally *tally)
{
    struct kj_ledger_graph_node *nodes = kj_section(ledger, KJ_SECTION_GRAPH_NODES);
    content->first = ledger->sections[KJ_SECTION_GRAPH_NODES].used;
    for (size_t i = 0; i < tally->count; i++) {
        int64_t row = kj_row_reserve(ledger, KJ_SECTION_GRAPH_NODES);
        if (row < 0)
            return; /* counted as dropped; the report says that names are missing */
        nodes[row] = (struct kj_ledger_graph_node){
            .graph = graph, .activity = tally->rows[i].activity, .nodes = tally->rows[i].nodes};
        kj_row_publish(ledger, KJ_SECTION_GRAPH_NODES);
    }
    content->count = (uint32_t)tally->count;
    content->written = true;
}

/* The executable graph runs what the tally says, from its next launch on. */
static void exec_runs(struct kj_ledger_header *ledger, uint16_t device, CUgraphExec exec,
                      const struct tally *tally)
{
    uint64_t hash = tally_hash(tally, device);
    bool found = false;
    kj_lock_cold();
    struct exec *e = exec_find(exec, true);
    uint32_t index = 1;
    for (; e && index < contents_used && !found; index += !found)
        found = contents[index].hash == hash && contents[index].device == device &&
                content_is(ledger, &contents[index], tally);
    if (!found)
        index = contents_used < CONTENTS ? contents_used++ : 0;
    if (!found && index)
        contents[index] = (struct content){.hash = hash, .device = device};
    if (e)
        e->content = index;
    kj_unlock_cold();
    if (!index) {
        __atomic_fetch_or(&ledger->flags, KJ_LEDGER_PARTIAL, __ATOMIC_RELAXED);
        return;
    }
    if (found || !e)
        return;
    bool unused;
    struct kj_shape shape = kj_graph_shape(exec);
    uint32_t row = kj_activity_find(ledger, KJ_ACTIVITY_GRAPH, device, &shape, &unused);
    kj_lock_cold();
    content_write(ledger, &contents[index], row, tally);
    kj_unlock_cold();
}

/* The same graph may be launched by several roles, each of which has a row of its own. */
void kj_graph_row_added(struct kj_ledger_header *ledger, CUgraphExec exec, uint32_t row)
{
    struct tally tally = {0};
    kj_lock_cold();
    struct exec *e = exec_find(exec, false);
    struct content *content = e && e->content ? &contents[e->content] : NULL;
    if (content && content->written) {
        struct content copy = *content;
        const struct kj_ledger_graph_node *nodes = kj_section(ledger, KJ_SECTION_GRAPH_NODES);
        for (uint32_t i = 0; i < content->count && nodes[content->first].graph != row; i++)
            tally_add(&tally, nodes[content->first + i].activity, nodes[content->first + i].nodes);
        if (tally.count)
            content_write(ledger, &copy, row, &tally);
    }
    kj_unlock_cold();
    tally_drop(&tally);
}

/* ---- nodes
 * ------------------------------------------------------------------------------------------------- */

static struct kj_shape shape_of_v1(const CUDA_KERNEL_NODE_PARAMS_v1 *p)
{
    return (struct kj_shape){p->func,
                             {p->gridDimX, p->gridDimY, p->gridDimZ},
                             {p->blockDimX, p->blockDimY, p->blockDimZ},
                             p->sharedMemBytes};
}

static struct kj_shape shape_of_v2(const CUDA_KERNEL_NODE_PARAMS_v2 *p)
{
    CUDA_KERNEL_NODE_PARAMS_v1 v1;
    memcpy(&v1, p, sizeof(v1));
    if (!v1.func)
        v1.func = (CUfunction)p->kern;
    return shape_of_v1(&v1);
}

static bool node_shape(CUgraphNode node, struct kj_shape *ret_shape)
{
    CUDA_KERNEL_NODE_PARAMS_v2 v2 = {0};
    CUDA_KERNEL_NODE_PARAMS_v1 v1 = {0};
    if (kj_driver.cuGraphKernelNodeGetParams_v2 && !kj_driver.cuGraphKernelNodeGetParams_v2(node, &v2))
        *ret_shape = shape_of_v2(&v2);
    else if (kj_driver.cuGraphKernelNodeGetParams && !kj_driver.cuGraphKernelNodeGetParams(node, &v1))
        *ret_shape = shape_of_v1(&v1);
    else
        return false;
    return true;
}

static uint8_t copy_kind(CUgraphNode node)
{
    CUDA_MEMCPY3D c;
    if (!kj_driver.cuGraphMemcpyNodeGetParams || kj_driver.cuGraphMemcpyNodeGetParams(node, &c))
        return KJ_ACTIVITY_MEMCPY_OTHER;
    if (c.srcMemoryType == CU_MEMORYTYPE_HOST && c.dstMemoryType == CU_MEMORYTYPE_DEVICE)
        return KJ_ACTIVITY_MEMCPY_HTOD;
    if (c.srcMemoryType == CU_MEMORYTYPE_DEVICE && c.dstMemoryType == CU_MEMORYTYPE_HOST)
        return KJ_ACTIVITY_MEMCPY_DTOH;
    if (c.srcMemoryType == CU_MEMORYTYPE_DEVICE && c.dstMemoryType == CU_MEMORYTYPE_DEVICE)
        return KJ_ACTIVITY_MEMCPY_DTOD;
    return KJ_ACTIVITY_MEMCPY_OTHER;
}

/* enum kj_activity_kind of what the node does on the device; 0: nothing, or not to be known. */
static uint8_t node_kind(CUgraphNode node, CUgraphNodeType type, struct kj_shape *ret_shape)
{
    *ret_shape = (struct kj_shape){.function = NULL};
    switch (type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
        return node_shape(node, ret_shape) ? KJ_ACTIVITY_KERNEL : 0;
    case CU_GRAPH_NODE_TYPE_MEMCPY:
        return copy_kind(node);
    case CU_GRAPH_NODE_TYPE_MEMSET:
        return KJ_ACTIVITY_MEMSET;
    default:
        return 0;
    }
}

/* Calls `visit` for each node of the graph and of the graphs in it. */
static void walk(CUgraph graph, void (*visit)(CUgraphNode, CUgraphNodeType, void *), void *argument,
                 int depth)
{
    size_t count = 0;
    if (depth > 8 || !kj_driver.cuGraphGetNodes || kj_driver.cuGraphGetNodes(graph, NULL, &count) || !count)
        return;
    size_t size = count * sizeof(CUgraphNode);
    CUgraphNode *nodes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (nodes == MAP_FAILED)
        return;
    if (kj_driver.cuGraphGetNodes(graph, nodes, &count))
        count = 0;
    for (size_t i = 0; i < count; i++) {
        CUgraphNodeType type;
        CUgraph child;
        if (kj_driver.cuGraphNodeGetType(nodes[i], &type))
            continue;
        if (type == CU_GRAPH_NODE_TYPE_GRAPH && kj_driver.cuGraphChildGraphNodeGetGraph &&
            !kj_driver.cuGraphChildGraphNodeGetGraph(nodes[i], &child))
            walk(child, visit, argument, depth + 1);
        visit(nodes[i], type, argument);
    }
    munmap(nodes, size);
}

static void find_last_pass(CUgraphNode node, CUgraphNodeType type, void *last)
{
    (void)type;
    uint32_t pass = kj_captured_pass(node), *highest = last;
    *highest = pass > *highest ? pass : *highest;
}

struct reading {
    struct kj_ledger_header *ledger;
    uint16_t device;
    uint32_t last_pass;
    struct tally tally;
};

static void read_node(CUgraphNode node, CUgraphNodeType type, void *argument)
{
    struct reading *r = argument;
    struct kj_shape shape;
    bool unused;
    uint8_t kind = node_kind(node, type, &shape);
    if (!kind)
        return;
    kj_captured_settle(node, r->last_pass);
    uint8_t role = kj_captured_role(node);
    tally_add(&r->tally, kj_activity_find_as(r->ledger, kind, r->device, role, &shape, &unused), 1);
}

void kj_graph_instantiated(CUgraphExec exec, CUgraph graph)
{
    struct kj_ledger_header *ledger = kj_enter();
    struct kj_context *context = ledger ? kj_context_current(ledger) : NULL;
    if (!context || !kj_driver.cuGraphNodeGetType)
        return;
    struct reading r = {.ledger = ledger, .device = kj_context_device(context)};
    kj_lock_cold();
    exec_forget(exec, true);
    kj_unlock_cold();
    kj_self.inside = true;
    walk(graph, find_last_pass, &r.last_pass, 0);
    walk(graph, read_node, &r, 0);
    exec_runs(ledger, r.device, exec, &r.tally);
    tally_drop(&r.tally);
    kj_self.inside = false;
}

/* One node of the executable graph changed: it runs another activity, or is switched off or on. `node` is of
 * the graph that the executable was made of, and still tells what it ran at first. */
static void node_changed(CUgraphExec exec, CUgraphNode node, const struct kj_shape *shape, const bool *off)
{
    struct kj_ledger_header *ledger = kj_enter();
    struct kj_context *context = ledger ? kj_context_current(ledger) : NULL;
    CUgraphNodeType type;
    struct kj_shape first;
    if (!context || !kj_driver.cuGraphNodeGetType)
        return;
    kj_self.inside = true;
    uint16_t device = kj_context_device(context);
    uint8_t kind = kj_driver.cuGraphNodeGetType(node, &type) ? 0 : node_kind(node, type, &first);
    bool unused;
    uint8_t role = kj_captured_role(node);
    uint32_t was = kind ? kj_activity_find_as(ledger, kind, device, role, &first, &unused) : 0;
    uint32_t is = shape ? kj_activity_find_as(ledger, KJ_ACTIVITY_KERNEL, device, role, shape, &unused) : 0;
    struct tally tally = {0};
    kj_lock_cold();
    struct exec *e = kind ? exec_find(exec, false) : NULL;
    struct change *change = e && e->content ? change_find(exec, node, true) : NULL;
    if (change) {
        if (change->exec != exec)
            *change = (struct change){.exec = exec, .node = node, .activity = was};
        const struct kj_ledger_graph_node *nodes = kj_section(ledger, KJ_SECTION_GRAPH_NODES);
        const struct content *content = &contents[e->content];
        for (uint32_t i = 0; i < content->count; i++)
            tally_add(&tally, nodes[content->first + i].activity, nodes[content->first + i].nodes);
        /* After an update the node may run what nobody told us: then it is left out of the names. */
        if (!change->off && !tally_has(&tally, change->activity))
            change->off = true;
        if (!change->off)
            tally_add(&tally, change->activity, -1);
        change->activity = is ? is : change->activity;
        change->off = off ? *off : change->off;
        if (!change->off)
            tally_add(&tally, change->activity, 1);
    }
    kj_unlock_cold();
    if (change)
        exec_runs(ledger, device, exec, &tally);
    tally_drop(&tally);
    kj_self.inside = false;
}

CUresult cuGraphExecDestroy(CUgraphExec exec)
{
    CUresult rc = REAL(cuGraphExecDestroy)(exec);
    if (!rc) {
        kj_lock_cold();
        exec_forget(exec, false);
        kj_unlock_cold();
        kj_activities_forget(exec);
    }
    return kj_counted(KJ_HOOK_cuGraphExecDestroy, rc);
}

CUresult cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                        const CUDA_KERNEL_NODE_PARAMS_v1 *params)
{
    CUresult rc = REAL(cuGraphExecKernelNodeSetParams)(exec, node, params);
    if (!rc) {
        struct kj_shape shape = shape_of_v1(params);
        node_changed(exec, node, &shape, NULL);
    }
    return kj_counted(KJ_HOOK_cuGraphExecKernelNodeSetParams, rc);
}

CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                           const CUDA_KERNEL_NODE_PARAMS_v2 *params)
{
    CUresult rc = REAL(cuGraphExecKernelNodeSetParams_v2)(exec, node, params);
    if (!rc) {
        struct kj_shape shape = shape_of_v2(params);
        node_changed(exec, node, &shape, NULL);
    }
    return kj_counted(KJ_HOOK_cuGraphExecKernelNodeSetParams_v2, rc);
}

CUresult cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraphNodeParams *params)
{
    CUresult rc = REAL(cuGraphExecNodeSetParams)(exec, node, params);
    if (!rc && params->type == CU_GRAPH_NODE_TYPE_KERNEL) {
        struct kj_shape shape = shape_of_v2(&params->kernel);
        node_changed(exec, node, &shape, NULL);
    }
    return kj_counted(KJ_HOOK_cuGraphExecNodeSetParams, rc);
}

CUresult cuGraphNodeSetEnabled(CUgraphExec exec, CUgraphNode node, unsigned enabled)
{
    CUresult rc = REAL(cuGraphNodeSetEnabled)(exec, node, enabled);
    if (!rc)
        node_changed(exec, node, NULL, &(bool){!enabled});
    return kj_counted(KJ_HOOK_cuGraphNodeSetEnabled, rc);
}
