/* SPDX-License-Identifier: Apache-2.0
 *
 * graphs.h - between the files that know graphs: what a graph runs is a tally of its nodes, which becomes a
 * content that graphs share; captures and executable graphs refer to contents.
 */
#ifndef KJ_GRAPHS_H
#define KJ_GRAPHS_H

#include "shim.h"

/* How many nodes of which rows of ACTIVITIES, in their order. Whoever has it calls; nothing is locked. */
struct kj_tally {
    struct kj_tally_row {
        uint32_t activity, nodes;
        uint64_t bytes; /* that they move */
    } * rows;
    size_t count, mapped_bytes;
    size_t
        next;  /* where the row after the last one that was added to lies: most captures repeat themselves */
    bool lost; /* something could not be added or taken off: it is no content */
};
/* Adds nodes, or takes off as many as there are; what comes to nothing leaves. */
void kj_tally_add(struct kj_tally *tally, uint32_t activity, int64_t nodes, int64_t bytes);
void kj_tally_add_all(struct kj_tally *to, const struct kj_tally *from, int sign);
void kj_tally_clear(struct kj_tally *tally);
void kj_tally_drop(struct kj_tally *tally);

/* contents.c. A content has a number; 0: not known. All take the cold lock. */
uint32_t kj_content_of(struct kj_ledger_header *ledger, const struct kj_tally *tally, uint16_t device,
                       bool serial);
void kj_content_add_to(uint32_t content, struct kj_tally *tally, int sign);
bool kj_content_is_serial(uint32_t content);
void kj_contents_forget(void);

/* graphs.c: the graph is whole, and so many nodes of it run this. */
void kj_graph_known(CUgraph graph, uint32_t content, size_t nodes);

/* graph_nodes.c: what the driver tells of nodes. The caller's own calls must be marked as the shim's. */
struct kj_reading {
    struct kj_ledger_header *ledger;
    uint16_t device;
    CUgraphExec exec; /* its changes count; NULL: what the graph itself says */
    bool serial;      /* one node after the other, so far */
    bool flat;        /* no graph in it, so far */
    size_t nodes;     /* of the outermost graph */
    size_t asked;     /* nodes that the driver was asked about */
    struct kj_tally tally;
};
void kj_graph_read(struct kj_reading *reading, CUgraph graph);
/* Row of ACTIVITIES of one node, and bytes that it moves; 0: no work, or not to be known. */
uint32_t kj_node_activity(struct kj_ledger_header *ledger, uint16_t device, CUgraphNode node,
                          CUgraphNodeType type, uint64_t *ret_bytes);
struct kj_shape kj_node_shape_v1(const CUDA_KERNEL_NODE_PARAMS_v1 *params);
struct kj_shape kj_node_shape_v2(const CUDA_KERNEL_NODE_PARAMS_v2 *params);
uint8_t kj_node_copy_kind(const CUDA_MEMCPY3D *copy);
uint64_t kj_node_copy_bytes(const CUDA_MEMCPY3D *copy);
uint64_t kj_node_fill_bytes(const CUDA_MEMSET_NODE_PARAMS *fill);

/* graph_changes.c: nodes that an executable graph runs otherwise than the graph that it was made of. */
struct kj_change {
    CUgraphExec exec;
    CUgraphNode node;
    uint32_t activity; /* 0: none */
    uint32_t content;  /* of a node that is a graph */
    uint64_t bytes;
    bool off, gone; /* gone: in a graph that another one has replaced */
    uint32_t next;  /* of the same executable, + 1 */
};
/* Under the cold lock. add: makes it; NULL: none, or no room. first: of the executable's list. */
struct kj_change *kj_change_find(CUgraphExec exec, CUgraphNode node);
struct kj_change *kj_change_add(CUgraphExec exec, CUgraphNode node, uint32_t *first);
void kj_changes_drop(uint32_t *first);
void kj_changes_forget(void);

/* graphs.c: an executable graph, while one of its nodes is changed. */
struct kj_exec {
    _Atomic(CUgraphExec) exec;
    _Atomic uint32_t content;
    uint32_t edits;   /* kj_graph_edits when it was made or updated */
    uint32_t changes; /* the first of them, + 1 */
    CUgraph graph;    /* that it was made of */
    bool foreign;     /* it runs another graph's nodes: those of its own say nothing of them */
};
/* Under the cold lock; NULL: not known. */
struct kj_exec *kj_exec_find(CUgraphExec exec);

/* Open addressing over rows whose first member is the key. Under the cold lock, but for finding: a key's row
 * stays where it is while the key is in use. */
void *kj_handle_find(void *rows, size_t row_bytes, size_t count, const void *key);
void *kj_handle_add(void *rows, size_t row_bytes, size_t count, const void *key);
void kj_handle_remove(void *rows, size_t row_bytes, size_t count, const void *key);

#endif
