/* SPDX-License-Identifier: Apache-2.0
 *
 * graph_nodes.c - what the driver tells of the nodes of a graph, whichever way it was built.
 */
#include "graphs.h"

#include <string.h>
#include <sys/mman.h>

enum { DEPTH_MOST = 8 };

struct kj_shape kj_node_shape_v1(const CUDA_KERNEL_NODE_PARAMS_v1 *p)
{
    return (struct kj_shape){p->func,
                             {p->gridDimX, p->gridDimY, p->gridDimZ},
                             {p->blockDimX, p->blockDimY, p->blockDimZ},
                             p->sharedMemBytes};
}

struct kj_shape kj_node_shape_v2(const CUDA_KERNEL_NODE_PARAMS_v2 *p)
{
    CUDA_KERNEL_NODE_PARAMS_v1 v1;
    memcpy(&v1, p, sizeof(v1));
    if (!v1.func)
        v1.func = (CUfunction)p->kern;
    return kj_node_shape_v1(&v1);
}

static bool node_shape(CUgraphNode node, struct kj_shape *ret_shape)
{
    CUDA_KERNEL_NODE_PARAMS_v2 v2 = {0};
    CUDA_KERNEL_NODE_PARAMS_v1 v1 = {0};
    if (kj_driver.cuGraphKernelNodeGetParams_v2 && !kj_driver.cuGraphKernelNodeGetParams_v2(node, &v2))
        *ret_shape = kj_node_shape_v2(&v2);
    else if (kj_driver.cuGraphKernelNodeGetParams && !kj_driver.cuGraphKernelNodeGetParams(node, &v1))
        *ret_shape = kj_node_shape_v1(&v1);
    else
        return false;
    return true;
}

uint8_t kj_node_copy_kind(const CUDA_MEMCPY3D *c)
{
    if (c->srcMemoryType == CU_MEMORYTYPE_HOST && c->dstMemoryType == CU_MEMORYTYPE_DEVICE)
        return KJ_ACTIVITY_MEMCPY_HTOD;
    if (c->srcMemoryType == CU_MEMORYTYPE_DEVICE && c->dstMemoryType == CU_MEMORYTYPE_HOST)
        return KJ_ACTIVITY_MEMCPY_DTOH;
    if (c->srcMemoryType == CU_MEMORYTYPE_DEVICE && c->dstMemoryType == CU_MEMORYTYPE_DEVICE)
        return KJ_ACTIVITY_MEMCPY_DTOD;
    return KJ_ACTIVITY_MEMCPY_OTHER;
}

uint64_t kj_node_copy_bytes(const CUDA_MEMCPY3D *c)
{
    return c->WidthInBytes * (c->Height ? c->Height : 1) * (c->Depth ? c->Depth : 1);
}

uint64_t kj_node_fill_bytes(const CUDA_MEMSET_NODE_PARAMS *p)
{
    return p->width * p->elementSize * (p->height ? p->height : 1);
}

/* enum kj_activity_kind of what the node does; 0: nothing that takes time on the device. */
static uint8_t node_kind(CUgraphNode node, CUgraphNodeType type, struct kj_shape *ret_shape,
                         uint64_t *ret_bytes)
{
    CUDA_MEMCPY3D copy;
    CUDA_MEMSET_NODE_PARAMS fill;
    *ret_shape = (struct kj_shape){.function = NULL};
    *ret_bytes = 0;
    switch (type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
        return node_shape(node, ret_shape) ? KJ_ACTIVITY_KERNEL : 0;
    case CU_GRAPH_NODE_TYPE_MEMCPY:
        if (!kj_driver.cuGraphMemcpyNodeGetParams || kj_driver.cuGraphMemcpyNodeGetParams(node, &copy))
            return KJ_ACTIVITY_MEMCPY_OTHER;
        *ret_bytes = kj_node_copy_bytes(&copy);
        return kj_node_copy_kind(&copy);
    case CU_GRAPH_NODE_TYPE_MEMSET:
        if (kj_driver.cuGraphMemsetNodeGetParams && !kj_driver.cuGraphMemsetNodeGetParams(node, &fill))
            *ret_bytes = kj_node_fill_bytes(&fill);
        return KJ_ACTIVITY_MEMSET;
    case CU_GRAPH_NODE_TYPE_CONDITIONAL:
        return KJ_ACTIVITY_BODY;
    case CU_GRAPH_NODE_TYPE_HOST:
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
    case CU_GRAPH_NODE_TYPE_EXT_SEMAS_WAIT:
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
        return KJ_ACTIVITY_HOST; /* no GPU work, but the graph may wait there */
    default:
        return 0;
    }
}

uint32_t kj_node_activity(struct kj_ledger_header *ledger, uint16_t device, CUgraphNode node,
                          CUgraphNodeType type, uint64_t *ret_bytes)
{
    struct kj_shape shape;
    bool unused;
    uint8_t kind = node_kind(node, type, &shape, ret_bytes);
    return kind ? kj_activity_find_as(ledger, kind, device, KJ_ROLE_MAIN, &shape, &unused) : 0;
}

/* ---- order
 * ---------------------------------------------------------------------------------------------------- */

/* Whether no node is twice in the list; places: room for twice as many. */
static bool all_differ(const CUgraphNode *list, size_t count, CUgraphNode *places, size_t place_count)
{
    memset(places, 0, place_count * sizeof(*places));
    for (size_t i = 0; i < count; i++) {
        size_t at = ((uintptr_t)list[i] * 0x9e3779b97f4a7c15ULL) >> 32;
        while (places[at % place_count] && places[at % place_count] != list[i])
            at++;
        if (places[at % place_count])
            return false;
        places[at % place_count] = list[i];
    }
    return true;
}

/* Whether each node but one comes after exactly one other, and no two after the same. */
static bool is_chain(CUgraph graph, size_t nodes)
{
    size_t edges = 0;
    if (nodes < 2)
        return true;
    if (!kj_driver.cuGraphGetEdges || kj_driver.cuGraphGetEdges(graph, NULL, NULL, &edges) ||
        edges != nodes - 1)
        return false;
    size_t bytes = 4 * nodes * sizeof(CUgraphNode);
    CUgraphNode *from = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (from == MAP_FAILED)
        return false;
    CUgraphNode *to = from + nodes, *places = to + nodes;
    bool chain = !kj_driver.cuGraphGetEdges(graph, from, to, &edges) && edges == nodes - 1 &&
                 all_differ(from, edges, places, 2 * nodes) && all_differ(to, edges, places, 2 * nodes);
    munmap(from, bytes);
    return chain;
}

/* ---- reading
 * ---------------------------------------------------------------------------------------------------- */

static void read_graph(struct kj_reading *r, CUgraph graph, int depth);

/* What an executable graph was told to run in the place of the node; false: nothing. */
static bool read_change(struct kj_reading *r, CUgraphNode node)
{
    if (!r->exec)
        return false;
    kj_lock_cold();
    const struct kj_change *change = kj_change_find(r->exec, node);
    const struct kj_change copy = change ? *change : (struct kj_change){.off = false};
    kj_unlock_cold();
    if (!change)
        return false;
    if (copy.gone)
        r->tally.lost = true;
    else if (copy.content)
        kj_content_add_to(copy.content, &r->tally, 1);
    else if (!copy.off && copy.activity)
        kj_tally_add(&r->tally, copy.activity, 1, (int64_t)copy.bytes);
    return true;
}

static void read_node(struct kj_reading *r, CUgraphNode node, int depth)
{
    CUgraphNodeType type;
    CUgraph child;
    uint64_t bytes = 0;
    r->asked++;
    if (kj_driver.cuGraphNodeGetType(node, &type)) {
        r->tally.lost = true;
        return;
    }
    r->flat = r->flat && type != CU_GRAPH_NODE_TYPE_GRAPH && type != CU_GRAPH_NODE_TYPE_CONDITIONAL;
    if (read_change(r, node))
        return;
    if (type == CU_GRAPH_NODE_TYPE_GRAPH) {
        if (kj_driver.cuGraphChildGraphNodeGetGraph && !kj_driver.cuGraphChildGraphNodeGetGraph(node, &child))
            read_graph(r, child, depth + 1);
        else
            r->tally.lost = true;
        return;
    }
    uint32_t activity = kj_node_activity(r->ledger, r->device, node, type, &bytes);
    if (activity)
        kj_tally_add(&r->tally, activity, 1, (int64_t)bytes);
    else if (type == CU_GRAPH_NODE_TYPE_KERNEL)
        r->tally.lost = true;
}

static void read_graph(struct kj_reading *r, CUgraph graph, int depth)
{
    size_t count = 0;
    if (depth > DEPTH_MOST || !kj_driver.cuGraphGetNodes || kj_driver.cuGraphGetNodes(graph, NULL, &count)) {
        r->tally.lost = true;
        return;
    }
    r->nodes = depth ? r->nodes : count;
    if (!count)
        return;
    size_t bytes = count * sizeof(CUgraphNode);
    CUgraphNode *nodes = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (nodes == MAP_FAILED || kj_driver.cuGraphGetNodes(graph, nodes, &count)) {
        r->tally.lost = true;
        count = 0;
    }
    r->serial = r->serial && is_chain(graph, count);
    for (size_t i = 0; i < count; i++)
        read_node(r, nodes[i], depth);
    if (nodes != MAP_FAILED)
        munmap(nodes, bytes);
}

void kj_graph_read(struct kj_reading *reading, CUgraph graph)
{
    reading->serial = reading->flat = true;
    if (kj_driver.cuGraphNodeGetType)
        read_graph(reading, graph, 0);
    else
        reading->tally.lost = true;
}
