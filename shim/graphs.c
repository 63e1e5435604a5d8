/* SPDX-License-Identifier: Apache-2.0
 *
 * graphs.c - captures and graphs. While anything captures, the shim stands still: no event, no query, no
 * record call. A graph's kernels are read from the graph when it is instantiated, whichever way it was built;
 * each launch of it is one activity, and GRAPH_NODES says what one launch runs.
 */
#include "shim.h"

#include <string.h>
#include <sys/mman.h>

atomic_int kj_captures;

enum { EXECS = 8192 };
static struct {
    CUgraphExec exec;
    uint32_t version; /* the shape that makes its row of ACTIVITIES its own: raised at each update */
} execs[EXECS];
static uint32_t versions;

bool kj_stream_captures(CUstream stream, int lane)
{
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    __typeof__(kj_driver.cuStreamIsCapturing) ask = lane && kj_driver.cuStreamIsCapturing_ptsz
                                                        ? kj_driver.cuStreamIsCapturing_ptsz
                                                        : kj_driver.cuStreamIsCapturing;
    if (!ask)
        return true;
    return ask(stream, &status) || status != CU_STREAM_CAPTURE_STATUS_NONE;
}

void kj_capture_begun(CUresult rc)
{
    if (rc) /* the wrapper raised the count before the call, so that no other thread slips in */
        atomic_fetch_sub(&kj_captures, 1);
}

void kj_capture_ended(void)
{
    /* An end without a begin that we saw (a capture older than the shim's view) must not count below zero. */
    int count = atomic_load(&kj_captures);
    while (count > 0 && !atomic_compare_exchange_weak(&kj_captures, &count, count - 1))
        ;
}

static uint32_t *exec_version(CUgraphExec exec, bool add)
{
    size_t at = ((uintptr_t)exec * 0x9e3779b97f4a7c15ULL) >> 40;
    for (size_t i = 0; i < 256; i++) {
        size_t slot = (at + i) % EXECS;
        if (execs[slot].exec == exec)
            return &execs[slot].version;
        if (!execs[slot].exec && add) {
            execs[slot].exec = exec;
            return &execs[slot].version;
        }
    }
    return NULL;
}

/* A graph's launch is keyed by its handle and version; the version sits in the shape's place. */
struct kj_shape kj_graph_shape(CUgraphExec exec)
{
    struct kj_shape shape = {.function = exec, .grid = {1, 1, 1}};
    kj_lock_cold();
    uint32_t *version = exec_version(exec, false);
    if (version)
        shape.grid[1] = *version;
    kj_unlock_cold();
    return shape;
}

static bool node_shape(CUgraphNode node, struct kj_shape *ret_shape)
{
    CUDA_KERNEL_NODE_PARAMS_v2 v2 = {0};
    CUDA_KERNEL_NODE_PARAMS_v1 v1 = {0};
    if (kj_driver.cuGraphKernelNodeGetParams_v2 && !kj_driver.cuGraphKernelNodeGetParams_v2(node, &v2)) {
        memcpy(&v1, &v2, sizeof(v1));
        if (!v1.func)
            v1.func = (CUfunction)v2.kern;
    } else if (!kj_driver.cuGraphKernelNodeGetParams || kj_driver.cuGraphKernelNodeGetParams(node, &v1)) {
        return false;
    }
    *ret_shape = (struct kj_shape){v1.func,
                                   {v1.gridDimX, v1.gridDimY, v1.gridDimZ},
                                   {v1.blockDimX, v1.blockDimY, v1.blockDimZ},
                                   v1.sharedMemBytes};
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

/* Adds one node to the graph's rows, which begin at `first`. Under the cold lock. */
static void node_add(struct kj_ledger_header *ledger, uint64_t first, uint32_t graph_row, uint32_t node_row)
{
    struct kj_ledger_graph_node *rows = kj_section(ledger, KJ_SECTION_GRAPH_NODES);
    for (uint64_t i = first; i < ledger->sections[KJ_SECTION_GRAPH_NODES].used; i++)
        if (rows[i].graph == graph_row && rows[i].activity == node_row) {
            rows[i].nodes++;
            return;
        }
    int64_t row = kj_row_reserve(ledger, KJ_SECTION_GRAPH_NODES);
    if (row < 0)
        return;
    rows[row] = (struct kj_ledger_graph_node){.graph = graph_row, .activity = node_row, .nodes = 1};
    kj_row_publish(ledger, KJ_SECTION_GRAPH_NODES);
}

static void walk(struct kj_ledger_header *ledger, uint16_t device, CUgraph graph, uint64_t first,
                 uint32_t graph_row, int depth)
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
        struct kj_shape shape;
        if (kj_driver.cuGraphNodeGetType(nodes[i], &type))
            continue;
        if (type == CU_GRAPH_NODE_TYPE_GRAPH && kj_driver.cuGraphChildGraphNodeGetGraph &&
            !kj_driver.cuGraphChildGraphNodeGetGraph(nodes[i], &child))
            walk(ledger, device, child, first, graph_row, depth + 1);
        uint8_t kind = node_kind(nodes[i], type, &shape);
        if (!kind)
            continue;
        bool unused;
        uint32_t row = kj_activity_find(ledger, kind, device, &shape, &unused);
        kj_lock_cold();
        node_add(ledger, first, graph_row, row);
        kj_unlock_cold();
    }
    munmap(nodes, size);
}

static void graph_met(CUgraphExec exec, CUgraph graph)
{
    struct kj_ledger_header *ledger = kj_enter();
    struct kj_context *context = ledger ? kj_context_current(ledger) : NULL;
    if (!context || !kj_driver.cuGraphNodeGetType)
        return;
    kj_lock_cold();
    uint32_t *version = exec_version(exec, true);
    if (version)
        *version = ++versions;
    uint64_t first = ledger->sections[KJ_SECTION_GRAPH_NODES].used;
    kj_unlock_cold();
    if (!version)
        return;
    kj_self.inside = true;
    bool unused;
    struct kj_shape shape = kj_graph_shape(exec);
    uint16_t device = kj_context_device(context);
    uint32_t graph_row = kj_activity_find(ledger, KJ_ACTIVITY_GRAPH, device, &shape, &unused);
    walk(ledger, device, graph, first, graph_row, 0);
    kj_self.inside = false;
}

void kj_graph_instantiated(CUgraphExec exec, CUgraph graph)
{
    graph_met(exec, graph);
}

void kj_graph_updated(CUgraphExec exec, CUgraph graph)
{
    graph_met(exec, graph);
}

void kj_graphs_forget(void)
{
    atomic_store(&kj_captures, 0);
    memset(execs, 0, sizeof(execs));
}

CUresult cuGraphExecDestroy(CUgraphExec exec)
{
    CUresult rc = REAL(cuGraphExecDestroy)(exec);
    if (!rc)
        kj_activities_forget(exec);
    return kj_counted(KJ_HOOK_cuGraphExecDestroy, rc);
}

/* Another kernel in one node: the counts per name would need the whole graph again, which the call does not
 * give. Said as a partial view by the report when it happens; the graph's own launches stay exact. */
CUresult cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode h_node,
                                        const CUDA_KERNEL_NODE_PARAMS_v1 *node_params)
{
    CUresult rc = REAL(cuGraphExecKernelNodeSetParams)(exec, h_node, node_params);
    return kj_counted(KJ_HOOK_cuGraphExecKernelNodeSetParams, rc);
}

CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode h_node,
                                           const CUDA_KERNEL_NODE_PARAMS_v2 *node_params)
{
    CUresult rc = REAL(cuGraphExecKernelNodeSetParams_v2)(exec, h_node, node_params);
    return kj_counted(KJ_HOOK_cuGraphExecKernelNodeSetParams_v2, rc);
}
