/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_graph_exec.c - executable graphs: copies of graphs, changed node by node or as a whole, and run node
 * after node. How often the bodies of conditional nodes run is the script's to say, and no call tells it.
 */
#include "cuda_graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    if (!exec || !(exec->graph = sim_graph_copy(graph)))
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
    sim_graph_free(exec->graph);
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
    CUgraph copy = sim_graph_copy(graph);
    /* A node of the executable goes on answering to the node that it was first made of. */
    for (CUgraphNode n = copy->first, old = exec->graph->first; n && old; n = n->next, old = old->next)
        n->origin = old->origin;
    sim_graph_free(exec->graph);
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

/* The executable's own node for one of the graph that it was made of, in any depth. */
static CUgraphNode find_node(CUgraph graph, CUgraphNode origin)
{
    CUgraphNode found = NULL;
    for (CUgraphNode n = graph->first; n && !found; n = n->next)
        found = n->origin == origin ? n : n->type == NODE_GRAPH ? find_node(n->child, origin) : NULL;
    return found;
}

#define EXEC_SET(symbol, kind, params, call)                                                                 \
    API CUresult symbol(CUgraphExec exec, CUgraphNode origin, params)                                        \
    {                                                                                                        \
        CALLED(symbol);                                                                                      \
        NEED(exec, SIM_EXEC);                                                                                \
        CUgraphNode node = find_node(exec->graph, origin);                                                   \
        return node && node->type == (kind) ? call : CUDA_ERROR_INVALID_VALUE;                               \
    }
#define WITH_CONTEXT(params) params, CUcontext context
EXEC_SET(cuGraphExecKernelNodeSetParams_v2, NODE_KERNEL, const CUDA_KERNEL_NODE_PARAMS_v2 *p,
         sim_node_set_kernel(node, *p))
EXEC_SET(cuGraphExecKernelNodeSetParams, NODE_KERNEL, const CUDA_KERNEL_NODE_PARAMS_v1 *p,
         sim_node_set_kernel(node, sim_kernel_from_v1(p)))
EXEC_SET(cuGraphExecMemcpyNodeSetParams, NODE_MEMCPY, WITH_CONTEXT(const CUDA_MEMCPY3D *p),
         ((void)context, sim_node_set_memcpy(node, p)))
EXEC_SET(cuGraphExecMemsetNodeSetParams, NODE_MEMSET, WITH_CONTEXT(const struct sim_memset_params *p),
         ((void)context, sim_node_set_memset(node, p)))
EXEC_SET(cuGraphExecHostNodeSetParams, NODE_HOST, const struct sim_host_params *p, sim_node_set_host(node, p))
EXEC_SET(cuGraphExecChildGraphNodeSetParams, NODE_GRAPH, CUgraph child, sim_node_set_child(node, child))
EXEC_SET(cuGraphExecNodeSetParams, node->type, const void *p, sim_node_set_any(node, p))

API CUresult cuGraphNodeSetEnabled(CUgraphExec exec, CUgraphNode node, unsigned enabled)
{
    CALLED(cuGraphNodeSetEnabled);
    NEED(exec, SIM_EXEC);
    CUgraphNode n = find_node(exec->graph, node);
    if (!n || n->type > NODE_MEMSET)
        return CUDA_ERROR_INVALID_VALUE;
    n->off = !enabled;
    return CUDA_SUCCESS;
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

/* Bodies run 0 to twice as often as the script says, on average as often. */
static CUresult run_conditional(CUgraphNode n, CUstream stream)
{
    static _Atomic uint64_t launches;
    uint64_t draw = (atomic_fetch_add(&launches, 1) + 1) * 0x9e3779b97f4a7c15ULL;
    unsigned runs = (unsigned)((draw >> 40) % (uint64_t)(2 * sim_machine()->script.body_runs + 1));
    CUresult rc = CUDA_SUCCESS;
    switch (n->conditional) {
    case SIM_WHILE:
        for (unsigned i = 0; i < runs && !rc; i++)
            rc = run_graph(n->bodies[0], stream);
        return rc;
    case SIM_IF:
        if (runs % 2)
            return run_graph(n->bodies[0], stream);
        return n->body_count > 1 ? run_graph(n->bodies[1], stream) : CUDA_SUCCESS;
    default:
        return runs < n->body_count ? run_graph(n->bodies[runs], stream) : CUDA_SUCCESS;
    }
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
    case NODE_CONDITIONAL:
        return run_conditional(n, stream);
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
            node->child = sim_graph_copy(exec->graph);
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
