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

static CUgraph copy_graph(CUgraph from)
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
        if (n->type == NODE_GRAPH)
            node->child = copy_graph(n->child);
    }
    return to;
}

static void free_graph(CUgraph graph)
{
    for (CUgraphNode n = graph->first; n;) {
        CUgraphNode next = n->next;
        if (n->type == NODE_GRAPH)
            free_graph(n->child);
        sim_handle_destroy(n);
        n = next;
    }
    sim_handle_destroy(graph);
}

#define NEED(handle, kind)                                                                                   \
    do {                                                                                                     \
        if (!sim_valid(handle, kind))                                                                        \
            return CUDA_ERROR_INVALID_HANDLE;                                                                \
    } while (0)

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
    free_graph(graph);
    return CUDA_SUCCESS;
}
API CUresult cuGraphClone(CUgraph *ret, CUgraph graph)
{
    NEED(graph, SIM_GRAPH);
    *ret = copy_graph(graph);
    return CUDA_SUCCESS;
}

static CUresult add(CUgraphNode *ret, CUgraph graph, int type)
{
    NEED(graph, SIM_GRAPH);
    *ret = sim_node_add(graph, type);
    return *ret ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult check_kernel(const CUDA_KERNEL_NODE_PARAMS_v2 *p)
{
    CUfunction f = p->func ? p->func : (CUfunction)p->kern;
    NEED(f, SIM_FUNCTION);
    return p->gridDimX && p->gridDimY && p->gridDimZ && p->blockDimX ? CUDA_SUCCESS
                                                                     : CUDA_ERROR_INVALID_VALUE;
}

static CUDA_KERNEL_NODE_PARAMS_v2 from_v1(const CUDA_KERNEL_NODE_PARAMS_v1 *v1)
{
    CUDA_KERNEL_NODE_PARAMS_v2 v2 = {0};
    memcpy(&v2, v1, sizeof(*v1));
    return v2;
}

static CUresult add_kernel(CUgraphNode *ret, CUgraph graph, CUDA_KERNEL_NODE_PARAMS_v2 params)
{
    CUresult rc = check_kernel(&params);
    rc = rc ? rc : add(ret, graph, NODE_KERNEL);
    if (!rc)
        (*ret)->kernel = params;
    return rc;
}

API CUresult cuGraphAddKernelNode(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count,
                                  const CUDA_KERNEL_NODE_PARAMS_v1 *params)
{
    CALLED(cuGraphAddKernelNode);
    (void)deps, (void)count;
    return add_kernel(ret, graph, from_v1(params));
}
API CUresult cuGraphAddKernelNode_v2(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count,
                                     const CUDA_KERNEL_NODE_PARAMS_v2 *params)
{
    CALLED(cuGraphAddKernelNode_v2);
    (void)deps, (void)count;
    return add_kernel(ret, graph, *params);
}

static CUresult add_child(CUgraphNode *ret, CUgraph graph, CUgraph child)
{
    NEED(child, SIM_GRAPH);
    CUresult rc = add(ret, graph, NODE_GRAPH);
    if (!rc)
        (*ret)->child = copy_graph(child);
    return rc;
}
API CUresult cuGraphAddChildGraphNode(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count,
                                      CUgraph child)
{
    CALLED(cuGraphAddChildGraphNode);
    (void)deps, (void)count;
    return add_child(ret, graph, child);
}
API CUresult cuGraphAddEmptyNode(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count)
{
    (void)deps, (void)count;
    return add(ret, graph, NODE_EMPTY);
}

struct host_params {
    CUhostFn fn;
    void *user_data;
};
API CUresult cuGraphAddHostNode(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count,
                                const struct host_params *params)
{
    (void)deps, (void)count;
    CUresult rc = add(ret, graph, NODE_HOST);
    if (!rc)
        (*ret)->host = params->fn, (*ret)->user_data = params->user_data;
    return rc;
}

/* CUDA_MEMSET_NODE_PARAMS */
struct memset_params {
    CUdeviceptr to;
    size_t pitch;
    unsigned value, element;
    size_t width, height;
};
API CUresult cuGraphAddMemsetNode(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count,
                                  const struct memset_params *params, CUcontext context)
{
    (void)deps, (void)count, (void)context;
    CUresult rc = add(ret, graph, NODE_MEMSET);
    if (rc)
        return rc;
    (*ret)->activity = "[memset]";
    (*ret)->bytes = params->width * params->element * (params->height ? params->height : 1);
    (*ret)->copy[0] = (void *)(uintptr_t)params->to;
    (*ret)->value = params->value;
    (*ret)->element = params->element;
    return CUDA_SUCCESS;
}

API CUresult cuGraphAddMemcpyNode(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count,
                                  const CUDA_MEMCPY3D *c, CUcontext context)
{
    (void)deps, (void)count, (void)context;
    CUresult rc = add(ret, graph, NODE_MEMCPY);
    if (rc)
        return rc;
    bool from_host = c->srcMemoryType == 1, to_host = c->dstMemoryType == 1;
    (*ret)->activity = from_host ? "[memcpy HtoD]" : to_host ? "[memcpy DtoH]" : "[memcpy DtoD]";
    (*ret)->bytes = c->WidthInBytes * (c->Height ? c->Height : 1) * (c->Depth ? c->Depth : 1);
    (*ret)->copy[0] = to_host ? c->dstHost : (void *)(uintptr_t)c->dstDevice;
    (*ret)->copy[1] = from_host ? (void *)(uintptr_t)c->srcHost : (void *)(uintptr_t)c->srcDevice;
    return CUDA_SUCCESS;
}

/* CUgraphNodeParams: its type, then a union at byte 16, of which kernels, hosts and children are understood.
 */
static CUresult add_any(CUgraphNode *ret, CUgraph graph, const void *params)
{
    const char *payload = (const char *)params + 16;
    int type = *(const int *)params;
    if (type == NODE_KERNEL)
        return add_kernel(ret, graph, *(const CUDA_KERNEL_NODE_PARAMS_v2 *)payload);
    if (type == NODE_GRAPH)
        return add_child(ret, graph, *(const CUgraph *)payload);
    if (type == NODE_HOST)
        return cuGraphAddHostNode(ret, graph, NULL, 0, (const struct host_params *)payload);
    return type == NODE_EMPTY ? add(ret, graph, NODE_EMPTY) : CUDA_ERROR_NOT_SUPPORTED;
}
API CUresult cuGraphAddNode(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, size_t count,
                            const void *params)
{
    CALLED(cuGraphAddNode);
    (void)deps, (void)count;
    return add_any(ret, graph, params);
}
API CUresult cuGraphAddNode_v2(CUgraphNode *ret, CUgraph graph, const CUgraphNode *deps, const void *edges,
                               size_t count, const void *params)
{
    CALLED(cuGraphAddNode_v2);
    (void)deps, (void)edges, (void)count;
    return add_any(ret, graph, params);
}
API CUresult cuGraphAddDependencies(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to,
                                    size_t count)
{
    (void)from, (void)to, (void)count;
    NEED(graph, SIM_GRAPH);
    return CUDA_SUCCESS;
}
API CUresult cuGraphAddDependencies_v2(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to,
                                       const void *edges, size_t count)
{
    (void)edges;
    return cuGraphAddDependencies(graph, from, to, count);
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

static CUresult set_kernel(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v2 params)
{
    NEED(node, SIM_NODE);
    CUresult rc = check_kernel(&params);
    if (!rc)
        node->kernel = params;
    return rc;
}
API CUresult cuGraphKernelNodeSetParams_v2(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v2 *params)
{
    return set_kernel(node, *params);
}
API CUresult cuGraphKernelNodeSetParams(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v1 *params)
{
    return set_kernel(node, from_v1(params));
}

/* ---- executable graphs
 * ---------------------------------------------------------------------------------------------- */

static atomic_int executables;

/* For the simulated libcupti. */
API int sim_executables(void);
int sim_executables(void)
{
    return atomic_load(&executables);
}

static CUresult instantiate(CUgraphExec *ret, CUgraph graph)
{
    NEED(graph, SIM_GRAPH);
    sim_charge_items(SIM_cuGraphInstantiate, graph->nodes);
    CUgraphExec exec = sim_handle_make(SIM_EXEC, sizeof(*exec));
    if (!exec || !(exec->graph = copy_graph(graph)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    atomic_fetch_add(&executables, 1);
    *ret = exec;
    return CUDA_SUCCESS;
}
API CUresult cuGraphInstantiateWithFlags(CUgraphExec *ret, CUgraph graph, unsigned long long flags)
{
    CALLED(cuGraphInstantiateWithFlags);
    (void)flags;
    return instantiate(ret, graph);
}
API CUresult cuGraphInstantiate_v2(CUgraphExec *ret, CUgraph graph, CUgraphNode *node, char *log, size_t size)
{
    CALLED(cuGraphInstantiate_v2);
    (void)node, (void)log, (void)size;
    return instantiate(ret, graph);
}
API CUresult cuGraphInstantiate(CUgraphExec *ret, CUgraph graph, CUgraphNode *node, char *log, size_t size)
{
    CALLED(cuGraphInstantiate);
    (void)node, (void)log, (void)size;
    return instantiate(ret, graph);
}
API CUresult cuGraphInstantiateWithParams(CUgraphExec *ret, CUgraph graph, void *params)
{
    CALLED(cuGraphInstantiateWithParams);
    (void)params;
    return instantiate(ret, graph);
}
API CUresult cuGraphInstantiateWithParams_ptsz(CUgraphExec *ret, CUgraph graph, void *params)
{
    CALLED(cuGraphInstantiateWithParams_ptsz);
    (void)params;
    return instantiate(ret, graph);
}
API CUresult cuGraphExecDestroy(CUgraphExec exec)
{
    CALLED(cuGraphExecDestroy);
    NEED(exec, SIM_EXEC);
    sim_charge_items(SIM_cuGraphExecDestroy, exec->graph->nodes);
    atomic_fetch_sub(&executables, 1);
    free_graph(exec->graph);
    sim_handle_destroy(exec);
    return CUDA_SUCCESS;
}

static CUresult update(CUgraphExec exec, CUgraph graph)
{
    NEED(exec, SIM_EXEC);
    NEED(graph, SIM_GRAPH);
    sim_charge_items(SIM_cuGraphExecUpdate, graph->nodes);
    if (exec->graph->nodes != graph->nodes)
        return 910; /* CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE: the topology changed */
    CUgraph copy = copy_graph(graph);
    /* A node of the executable goes on answering to the node that it was first made of. */
    for (CUgraphNode n = copy->first, old = exec->graph->first; n && old; n = n->next, old = old->next)
        n->origin = old->origin;
    free_graph(exec->graph);
    exec->graph = copy;
    return CUDA_SUCCESS;
}
API CUresult cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode *ret_node, int *ret_result)
{
    CALLED(cuGraphExecUpdate);
    CUresult rc = update(exec, graph);
    *ret_node = NULL;
    *ret_result = rc ? 2 : 0;
    return rc;
}
API CUresult cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph, int *ret_info)
{
    CALLED(cuGraphExecUpdate_v2);
    CUresult rc = update(exec, graph);
    *ret_info = rc ? 2 : 0;
    return rc;
}

static CUresult exec_set_kernel(CUgraphExec exec, CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v2 params)
{
    NEED(exec, SIM_EXEC);
    for (CUgraphNode n = exec->graph->first; n; n = n->next)
        if (n->origin == node)
            return set_kernel(n, params);
    return CUDA_ERROR_INVALID_VALUE;
}
API CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                               const CUDA_KERNEL_NODE_PARAMS_v2 *params)
{
    CALLED(cuGraphExecKernelNodeSetParams_v2);
    return exec_set_kernel(exec, node, *params);
}
API CUresult cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                            const CUDA_KERNEL_NODE_PARAMS_v1 *params)
{
    CALLED(cuGraphExecKernelNodeSetParams);
    return exec_set_kernel(exec, node, from_v1(params));
}

API CUresult cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, const void *params)
{
    CALLED(cuGraphExecNodeSetParams);
    if (*(const int *)params != NODE_KERNEL)
        return CUDA_ERROR_NOT_SUPPORTED;
    return exec_set_kernel(exec, node, *(const CUDA_KERNEL_NODE_PARAMS_v2 *)((const char *)params + 16));
}
API CUresult cuGraphNodeSetEnabled(CUgraphExec exec, CUgraphNode node, unsigned enabled)
{
    CALLED(cuGraphNodeSetEnabled);
    NEED(exec, SIM_EXEC);
    for (CUgraphNode n = exec->graph->first; n; n = n->next)
        if (n->origin == node &&
            (n->type == NODE_KERNEL || n->type == NODE_MEMCPY || n->type == NODE_MEMSET)) {
            n->off = !enabled;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_VALUE;
}

static CUresult run_node(CUgraphNode n, CUstream stream);
static CUresult run_graph(CUgraph graph, CUstream stream)
{
    CUresult rc = CUDA_SUCCESS;
    char own[SIM_MARK_BYTES];
    snprintf(own, sizeof(own), "%s", sim_mark_now());
    for (CUgraphNode n = graph->first; n && !rc; n = n->next) {
        sim_mark_set(*n->mark ? n->mark : own);
        rc = run_node(n, stream);
    }
    sim_mark_set(own);
    return rc;
}

static CUresult run_node(CUgraphNode n, CUstream stream)
{
    if (n->off)
        return CUDA_SUCCESS;
    switch (n->type) {
    case NODE_KERNEL:
        return sim_run_kernel(stream, &n->kernel, n);
    case NODE_MEMCPY:
        sim_copy_bytes(n->copy[0], n->copy[1], n->bytes);
        return sim_run_copy(stream, n->activity, n->bytes, n);
    case NODE_MEMSET:
        if (n->element)
            for (uint64_t i = 0; i + n->element <= n->bytes; i += n->element)
                memcpy((char *)n->copy[0] + i, &n->value, n->element);
        return sim_run_copy(stream, n->activity, n->bytes, n);
    case NODE_HOST:
        return sim_host_call(stream, n->host, n->user_data);
    case NODE_GRAPH:
        return run_graph(n->child, stream);
    default:
        return CUDA_SUCCESS;
    }
}

static CUresult graph_launch(CUgraphExec exec, CUstream handle, int lane)
{
    CUresult rc;
    CUstream stream = sim_stream(handle, lane, &rc);
    if (!stream)
        return rc;
    NEED(exec, SIM_EXEC);
    if (sim_capturing(stream, &rc)) {
        CUgraphNode node = rc ? NULL : sim_capture_add(stream, NODE_GRAPH);
        if (node)
            node->child = copy_graph(exec->graph);
        return rc;
    }
    sim_charge_items(SIM_cuGraphLaunch, exec->graph->nodes);
    return run_graph(exec->graph, stream);
}
API CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream)
{
    CALLED(cuGraphLaunch);
    return graph_launch(exec, stream, 0);
}
API CUresult cuGraphLaunch_ptsz(CUgraphExec exec, CUstream stream)
{
    CALLED(cuGraphLaunch_ptsz);
    return graph_launch(exec, stream, 1);
}
API CUresult cuGraphUpload(CUgraphExec exec, CUstream stream)
{
    (void)stream;
    NEED(exec, SIM_EXEC);
    return CUDA_SUCCESS;
}
API CUresult cuGraphUpload_ptsz(CUgraphExec exec, CUstream stream)
{
    return cuGraphUpload(exec, stream);
}
