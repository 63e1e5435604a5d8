/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_graph.h - between graphs, executable graphs and captures.
 */
#ifndef SIM_CUDA_GRAPH_H
#define SIM_CUDA_GRAPH_H

#include "cuda_sim.h"

#define NEED(handle, kind)                                                                                   \
    do {                                                                                                     \
        if (!sim_valid(handle, kind))                                                                        \
            return CUDA_ERROR_INVALID_HANDLE;                                                                \
    } while (0)

/* CUDA_MEMSET_NODE_PARAMS, CUDA_HOST_NODE_PARAMS, CUDA_MEMCPY_NODE_PARAMS, CUDA_CONDITIONAL_NODE_PARAMS */
struct sim_memset_params {
    CUdeviceptr to;
    size_t pitch;
    unsigned value, element;
    size_t width, height;
};
struct sim_host_params {
    CUhostFn fn;
    void *user_data;
};
struct sim_memcpy_params {
    int flags, reserved;
    CUcontext context;
    CUDA_MEMCPY3D copy;
};
struct sim_conditional_params {
    unsigned long long handle;
    int type; /* enum sim_conditional */
    unsigned size;
    CUgraph *bodies;
    CUcontext context;
};
enum sim_conditional { SIM_IF, SIM_WHILE, SIM_SWITCH };

CUgraph sim_graph_new(void);
CUgraph sim_graph_copy(CUgraph from);
void sim_graph_free(CUgraph graph);
CUgraphNode sim_node_add(CUgraph graph, int type);
bool sim_edge_add(CUgraph graph, CUgraphNode from, CUgraphNode to);
CUDA_KERNEL_NODE_PARAMS_v2 sim_kernel_from_v1(const CUDA_KERNEL_NODE_PARAMS_v1 *v1);
/* What a node does, anew. */
CUresult sim_node_set_kernel(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v2 params);
CUresult sim_node_set_memset(CUgraphNode node, const struct sim_memset_params *params);
CUresult sim_node_set_memcpy(CUgraphNode node, const CUDA_MEMCPY3D *params);
CUresult sim_node_set_host(CUgraphNode node, const struct sim_host_params *params);
CUresult sim_node_set_child(CUgraphNode node, CUgraph child);
/* CUgraphNodeParams, of the node's own type. */
CUresult sim_node_set_any(CUgraphNode node, const void *params);

#endif
