/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_graph.h - between graphs and captures.
 */
#ifndef SIM_CUDA_GRAPH_H
#define SIM_CUDA_GRAPH_H

#include "cuda_sim.h"

CUgraph sim_graph_new(void);
CUgraphNode sim_node_add(CUgraph graph, int type);

#endif
