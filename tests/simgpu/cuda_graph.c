/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_graph.c - graphs: made by hand or by capture (cuda_capture.c), copied when instantiated, run node
 * after node.
 */
#include "cuda_graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

CUgraphNode sim_node_add(CUgraph graph, int type)
{
    CUgraphNode node = sim_handle_make(SIM_NODE, sizeof(*node));
    if (!node)
        return NULL;
    node->type = type;
    node->graph = graph;
    pthread_mutex_lock(&sim_lock);
    if (graph->last_added)
        graph->last_added->next = node;
    else
        graph->first = node;
    graph->last_added = node;
    graph->nodes++;
    pthread_mutex_unlock(&sim_lock);
    return node;
}

CUgraph sim_graph_new(void)
{
    static _Atomic uint32_t last_id;
    CUgraph graph = sim_handle_make(SIM_GRAPH, sizeof(*graph));
    if (graph)
        graph->id = atomic_fetch_add(&last_id, 1) + 1;
    return graph;
}

bool sim_edge_add(CUgraph graph, CUgraphNode from, CUgraphNode to)
{
    pthread_mutex_lock(&sim_lock);
    void *grown = realloc(graph->edges, (graph->edge_count + 1) * sizeof(*graph->edges));
    if (grown) {
        graph->edges = grown;
        graph->edges[graph->edge_count++] = (struct sim_edge){from, to};
    }
    pthread_mutex_unlock(&sim_lock);
    return grown != NULL;
}

CUgraph sim_graph_copy(CUgraph from)
{
    CUgraph to = sim_graph_new();
    for (CUgraphNode n = from->first; to && n; n = n->next) {
        CUgraphNode node = sim_node_add(to, n->type);
        if (!node)
            return NULL;
        CUgraphNode next = node->next;
        struct sim_head head = node->head;
        *node = *n;
        node->head = head;
        node->graph = to;
        node->next = next;
        node->origin = n;
        n->twin = node;
        if (n->type == NODE_GRAPH)
            node->child = sim_graph_copy(n->child);
        for (unsigned b = 0; n->type == NODE_CONDITIONAL && b < n->body_count; b++)
            node->bodies[b] = sim_graph_copy(n->bodies[b]);
    }
    for (size_t i = 0; to && i < from->edge_count; i++)
        if (!sim_edge_add(to, from->edges[i].from->twin, from->edges[i].to->twin))
            return NULL;
    return to;
}

void sim_graph_free(CUgraph graph)
{
    for (CUgraphNode n = graph->first; n;) {
        CUgraphNode next = n->next;
        if (n->type == NODE_GRAPH)
            sim_graph_free(n->child);
        for (unsigned b = 0; n->type == NODE_CONDITIONAL && b < n->body_count; b++)
            sim_graph_free(n->bodies[b]);
        sim_handle_destroy(n);
        n = next;
    }
    free(graph->edges);
    sim_handle_destroy(graph);
}

/* ---- construction
 * -------------------------------------------------------------------------------------------------- */

API CUresult cuGraphCreate(CUgraph *ret, unsigned flags)
{
    CALLED(cuGraphCreate);
    (void)flags;
    *ret = sim_graph_new();
    return *ret ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
API CUresult cuGraphDestroy(CUgraph graph)
{
    CALLED(cuGraphDestroy);
    NEED(graph, SIM_GRAPH);
    sim_charge_items(SIM_cuGraphDestroy, graph->nodes);
    sim_graph_free(graph);
    return CUDA_SUCCESS;
}
API CUresult cuGraphClone(CUgraph *ret, CUgraph graph)
{
    NEED(graph, SIM_GRAPH);
    *ret = sim_graph_copy(graph);
    return CUDA_SUCCESS;
}

static CUresult add(CUgraphNode *ret, CUgraph graph, int type, const CUgraphNode *deps, size_t count)
{
    NEED(graph, SIM_GRAPH);
    *ret = sim_node_add(graph, type);
    for (size_t i = 0; *ret && i < count; i++)
        if (!sim_edge_add(graph, deps[i], *ret))
            return CUDA_ERROR_OUT_OF_MEMORY;
    return *ret ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult check_kernel(const CUDA_KERNEL_NODE_PARAMS_v2 *p)
{
    CUfunction f = p->func ? p->func : (CUfunction)p->kern;
    NEED(f, SIM_FUNCTION);
    return p->gridDimX && p->gridDimY && p->gridDimZ && p->blockDimX ? CUDA_SUCCESS
                                                                     : CUDA_ERROR_INVALID_VALUE;
}

CUDA_KERNEL_NODE_PARAMS_v2 sim_kernel_from_v1(const CUDA_KERNEL_NODE_PARAMS_v1 *v1)
{
    CUDA_KERNEL_NODE_PARAMS_v2 v2 = {0};
    memcpy(&v2, v1, sizeof(*v1));
    return v2;
}

static CUresult add_kernel(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count,
                           CUDA_KERNEL_NODE_PARAMS_v2 params)
{
    CUresult rc = check_kernel(&params);
    rc = rc ? rc : add(ret, graph, NODE_KERNEL, deps, count);
    if (!rc)
        (*ret)->kernel = params;
    return rc;
}

API CUresult cuGraphAddKernelNode(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count,
                                  const CUDA_KERNEL_NODE_PARAMS_v1 *params)
{
    CALLED(cuGraphAddKernelNode);
    return add_kernel(ret, graph, deps, count, sim_kernel_from_v1(params));
}
API CUresult cuGraphAddKernelNode_v2(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count,
                                     const CUDA_KERNEL_NODE_PARAMS_v2 *params)
{
    CALLED(cuGraphAddKernelNode_v2);
    return add_kernel(ret, graph, deps, count, *params);
}

API CUresult cuGraphAddChildGraphNode(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count,
                                      CUgraph child)
{
    CALLED(cuGraphAddChildGraphNode);
    NEED(child, SIM_GRAPH);
    CUresult rc = add(ret, graph, NODE_GRAPH, deps, count);
    return rc ? rc : sim_node_set_child(*ret, child);
}
API CUresult cuGraphAddEmptyNode(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count)
{
    return add(ret, graph, NODE_EMPTY, deps, count);
}

API CUresult cuGraphAddHostNode(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count,
                                const struct sim_host_params *params)
{
    CUresult rc = add(ret, graph, NODE_HOST, deps, count);
    return rc ? rc : sim_node_set_host(*ret, params);
}
API CUresult cuGraphAddMemsetNode(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count,
                                  const struct sim_memset_params *params, CUcontext context)
{
    (void)context;
    CUresult rc = add(ret, graph, NODE_MEMSET, deps, count);
    return rc ? rc : sim_node_set_memset(*ret, params);
}
API CUresult cuGraphAddMemcpyNode(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count,
                                  const CUDA_MEMCPY3D *params, CUcontext context)
{
    (void)context;
    CUresult rc = add(ret, graph, NODE_MEMCPY, deps, count);
    return rc ? rc : sim_node_set_memcpy(*ret, params);
}

/* Its bodies are the node's, empty at first; the caller fills them. */
static CUresult add_conditional(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count,
                                struct sim_conditional_params *params)
{
    if (!params->size || params->size > SIM_BODIES || params->type > SIM_SWITCH)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult rc = add(ret, graph, NODE_CONDITIONAL, deps, count);
    if (rc)
        return rc;
    (*ret)->conditional = params->type;
    (*ret)->body_count = params->size;
    for (unsigned b = 0; b < params->size; b++)
        (*ret)->bodies[b] = sim_graph_new();
    params->bodies = (*ret)->bodies;
    return CUDA_SUCCESS;
}
API CUresult cuGraphConditionalHandleCreate(unsigned long long *ret, CUgraph graph, CUcontext context,
                                            unsigned value, unsigned flags)
{
    static _Atomic unsigned long long last;
    (void)context, (void)value, (void)flags;
    NEED(graph, SIM_GRAPH);
    *ret = atomic_fetch_add(&last, 1) + 1;
    return CUDA_SUCCESS;
}

/* CUgraphNodeParams: its type, then a union at byte 16. */
static CUresult add_any(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count, void *params)
{
    int type = *(const int *)params;
    if (type == NODE_CONDITIONAL)
        return add_conditional(ret, graph, deps, count, (void *)((char *)params + 16));
    if (type > NODE_EMPTY)
        return CUDA_ERROR_NOT_SUPPORTED;
    CUresult rc = add(ret, graph, type, deps, count);
    return rc || type == NODE_EMPTY ? rc : sim_node_set_any(*ret, params);
}
API CUresult cuGraphAddNode(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count,
                            void *params)
{
    CALLED(cuGraphAddNode);
    return add_any(ret, graph, deps, count, params);
}
API CUresult cuGraphAddNode_v2(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, const void *edges,
                               size_t count, void *params)
{
    CALLED(cuGraphAddNode_v2);
    (void)edges;
    return add_any(ret, graph, deps, count, params);
}
API CUresult cuGraphAddDependencies(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to,
                                    size_t count)
{
    NEED(graph, SIM_GRAPH);
    for (size_t i = 0; i < count; i++)
        if (!sim_edge_add(graph, from[i], to[i]))
            return CUDA_ERROR_OUT_OF_MEMORY;
    return CUDA_SUCCESS;
}
API CUresult cuGraphAddDependencies_v2(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to,
                                       const void *edges, size_t count)
{
    (void)edges;
    return cuGraphAddDependencies(graph, from, to, count);
}

/* ---- what a node does
 * ----------------------------------------------------------------------------------------------------- */

CUresult sim_node_set_kernel(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v2 params)
{
    CUresult rc = check_kernel(&params);
    if (!rc)
        node->kernel = params;
    return rc;
}

CUresult sim_node_set_memset(CUgraphNode node, const struct sim_memset_params *params)
{
    node->activity = "[memset]";
    node->bytes = params->width * params->element * (params->height ? params->height : 1);
    node->copy[0] = (void *)(uintptr_t)params->to;
    node->value = params->value;
    node->element = params->element;
    return CUDA_SUCCESS;
}

CUresult sim_node_set_memcpy(CUgraphNode node, const CUDA_MEMCPY3D *c)
{
    bool from_host = c->srcMemoryType == 1, to_host = c->dstMemoryType == 1;
    node->activity = from_host ? "[memcpy HtoD]" : to_host ? "[memcpy DtoH]" : "[memcpy DtoD]";
    node->bytes = c->WidthInBytes * (c->Height ? c->Height : 1) * (c->Depth ? c->Depth : 1);
    node->copy[0] = to_host ? c->dstHost : (void *)(uintptr_t)c->dstDevice;
    node->copy[1] = from_host ? (void *)(uintptr_t)c->srcHost : (void *)(uintptr_t)c->srcDevice;
    return CUDA_SUCCESS;
}

CUresult sim_node_set_host(CUgraphNode node, const struct sim_host_params *params)
{
    node->host = params->fn;
    node->user_data = params->user_data;
    return CUDA_SUCCESS;
}

CUresult sim_node_set_child(CUgraphNode node, CUgraph child)
{
    NEED(child, SIM_GRAPH);
    if (node->child)
        sim_graph_free(node->child);
    node->child = sim_graph_copy(child);
    return CUDA_SUCCESS;
}

CUresult sim_node_set_any(CUgraphNode node, const void *params)
{
    const char *payload = (const char *)params + 16;
    if (*(const int *)params != node->type)
        return CUDA_ERROR_INVALID_VALUE;
    switch (node->type) {
    case NODE_KERNEL:
        return sim_node_set_kernel(node, *(const CUDA_KERNEL_NODE_PARAMS_v2 *)payload);
    case NODE_MEMCPY:
        return sim_node_set_memcpy(node, &((const struct sim_memcpy_params *)payload)->copy);
    case NODE_MEMSET:
        return sim_node_set_memset(node, (const struct sim_memset_params *)payload);
    case NODE_HOST:
        return sim_node_set_host(node, (const struct sim_host_params *)payload);
    case NODE_GRAPH:
        return sim_node_set_child(node, *(const CUgraph *)payload);
    default:
        return CUDA_ERROR_NOT_SUPPORTED;
    }
}

/* ---- looking in
 * ----------------------------------------------------------------------------------------------------- */

API CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode *ret_nodes, size_t *count)
{
    CALLED(cuGraphGetNodes);
    NEED(graph, SIM_GRAPH);
    sim_charge_items(SIM_cuGraphGetNodes, graph->nodes);
    size_t room = ret_nodes ? *count : 0, i = 0;
    for (CUgraphNode n = graph->first; n && i < room; n = n->next)
        ret_nodes[i++] = n;
    *count = ret_nodes ? i : graph->nodes;
    return CUDA_SUCCESS;
}
API CUresult cuGraphGetRootNodes(CUgraph graph, CUgraphNode *ret_nodes, size_t *count)
{
    NEED(graph, SIM_GRAPH);
    if (ret_nodes && *count && graph->first)
        ret_nodes[0] = graph->first;
    *count = graph->first ? 1 : 0;
    return CUDA_SUCCESS;
}
API CUresult cuGraphNodeGetType(CUgraphNode node, int *ret_type)
{
    CALLED(cuGraphNodeGetType);
    NEED(node, SIM_NODE);
    *ret_type = node->type;
    return CUDA_SUCCESS;
}
API CUresult cuGraphChildGraphNodeGetGraph(CUgraphNode node, CUgraph *ret)
{
    CALLED(cuGraphChildGraphNodeGetGraph);
    NEED(node, SIM_NODE);
    *ret = node->child;
    return node->type == NODE_GRAPH ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
API CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v2 *ret)
{
    CALLED(cuGraphKernelNodeGetParams_v2);
    NEED(node, SIM_NODE);
    *ret = node->kernel;
    return node->type == NODE_KERNEL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
API CUresult cuGraphKernelNodeGetParams(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v1 *ret)
{
    CALLED(cuGraphKernelNodeGetParams);
    NEED(node, SIM_NODE);
    memcpy(ret, &node->kernel, sizeof(*ret));
    return node->type == NODE_KERNEL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API CUresult cuGraphMemcpyNodeGetParams(CUgraphNode node, CUDA_MEMCPY3D *ret)
{
    CALLED(cuGraphMemcpyNodeGetParams);
    NEED(node, SIM_NODE);
    if (node->type != NODE_MEMCPY)
        return CUDA_ERROR_INVALID_VALUE;
    const char *what = node->activity;
    bool plain = !strcmp(what, "[memcpy]"); /* unified addresses */
    *ret = (CUDA_MEMCPY3D){.WidthInBytes = node->bytes,
                           .Height = 1,
                           .Depth = 1,
                           .srcMemoryType = plain                  ? 4
                                            : strstr(what, " Hto") ? 1
                                                                   : 2,
                           .dstMemoryType = plain                 ? 4
                                            : strstr(what, "toH") ? 1
                                                                  : 2,
                           .srcHost = node->copy[1],
                           .srcDevice = (uintptr_t)node->copy[1],
                           .dstHost = node->copy[0],
                           .dstDevice = (uintptr_t)node->copy[0]};
    return CUDA_SUCCESS;
}

API CUresult cuGraphMemsetNodeGetParams(CUgraphNode node, struct sim_memset_params *ret)
{
    CALLED(cuGraphMemsetNodeGetParams);
    NEED(node, SIM_NODE);
    if (node->type != NODE_MEMSET)
        return CUDA_ERROR_INVALID_VALUE;
    unsigned element = node->element ? node->element : 1;
    *ret = (struct sim_memset_params){.to = (uintptr_t)node->copy[0],
                                      .value = node->value,
                                      .element = element,
                                      .width = node->bytes / element,
                                      .height = 1};
    return CUDA_SUCCESS;
}

API CUresult cuGraphGetEdges(CUgraph graph, CUgraphNode *ret_from, CUgraphNode *ret_to, size_t *count)
{
    CALLED(cuGraphGetEdges);
    NEED(graph, SIM_GRAPH);
    for (size_t i = 0; ret_from && ret_to && i < *count && i < graph->edge_count; i++) {
        ret_from[i] = graph->edges[i].from;
        ret_to[i] = graph->edges[i].to;
    }
    *count = ret_from && *count < graph->edge_count ? *count : graph->edge_count;
    return CUDA_SUCCESS;
}

#define SET(symbol, kind, params, call)                                                                      \
    API CUresult symbol(CUgraphNode node, params)                                                            \
    {                                                                                                        \
        CALLED(symbol);                                                                                      \
        NEED(node, SIM_NODE);                                                                                \
        return node->type == (kind) ? call : CUDA_ERROR_INVALID_VALUE;                                       \
    }
SET(cuGraphKernelNodeSetParams_v2, NODE_KERNEL, const CUDA_KERNEL_NODE_PARAMS_v2 *p,
    sim_node_set_kernel(node, *p))
SET(cuGraphKernelNodeSetParams, NODE_KERNEL, const CUDA_KERNEL_NODE_PARAMS_v1 *p,
    sim_node_set_kernel(node, sim_kernel_from_v1(p)))
SET(cuGraphMemsetNodeSetParams, NODE_MEMSET, const struct sim_memset_params *p, sim_node_set_memset(node, p))
SET(cuGraphMemcpyNodeSetParams, NODE_MEMCPY, const CUDA_MEMCPY3D *p, sim_node_set_memcpy(node, p))
SET(cuGraphHostNodeSetParams, NODE_HOST, const struct sim_host_params *p, sim_node_set_host(node, p))
SET(cuGraphNodeSetParams, node->type, const void *p, sim_node_set_any(node, p))
