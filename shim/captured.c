/* SPDX-License-Identifier: Apache-2.0
 *
 * captured.c - who captured each node of a graph, which the graph itself does not tell: PyTorch's autograd
 * engine, or another thread, and that before, between or after backward passes.
 */
#include "phase_names.h"
#include "shim.h"

#include <string.h>

enum { NODES = 65536, RECORDINGS = 32, PROBES = 64 };

/* A node whose graph is gone may stay; where its handle is captured anew, it is overwritten. */
static struct captured {
    CUgraphNode node;
    uint32_t pass; /* backward passes captured before it, its own included */
    uint8_t role;
} captured[NODES];

/* Captures that go on, or went on of late. */
static struct recording {
    unsigned long long id; /* 0: free */
    uint32_t passes;
    bool in_backward;
} recordings[RECORDINGS];
static unsigned next_recording;

static struct captured *captured_find(CUgraphNode node, bool add)
{
    size_t at = ((uintptr_t)node * 0x9e3779b97f4a7c15ULL) >> 40;
    for (size_t i = 0; i < PROBES; i++) {
        struct captured *c = &captured[(at + i) % NODES];
        if (c->node == node || (add && !c->node))
            return c;
        if (!c->node)
            break;
    }
    return NULL;
}

static struct recording *recording_find(unsigned long long id)
{
    for (unsigned i = 0; i < RECORDINGS; i++)
        if (recordings[i].id == id)
            return &recordings[i];
    struct recording *r = &recordings[next_recording++ % RECORDINGS];
    *r = (struct recording){.id = id};
    return r;
}

void kj_graph_captured(CUstream stream, int lane)
{
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUgraph graph;
    const CUgraphNode *nodes = NULL;
    const CUgraphEdgeData *edges;
    size_t count = 0;
    uint64_t id = 0;
    CUresult rc = CUDA_ERROR_NOT_FOUND;
    if (!stream && lane)
        stream = CU_STREAM_PER_THREAD;
    kj_self.inside = true;
    if (kj_driver.cuStreamGetCaptureInfo_v3)
        rc = kj_driver.cuStreamGetCaptureInfo_v3(stream, &status, &id, &graph, &nodes, &edges, &count);
    else if (kj_driver.cuStreamGetCaptureInfo_v2)
        rc = kj_driver.cuStreamGetCaptureInfo_v2(stream, &status, &id, &graph, &nodes, &count);
    kj_self.inside = false;
    if (rc || !nodes || count != 1)
        return;
    bool autograd = KJ_ROLE_WHO(kj_self.role) == KJ_ROLE_AUTOGRAD;
    kj_lock_cold();
    struct recording *r = recording_find(id);
    r->passes += autograd && !r->in_backward;
    r->in_backward = autograd;
    struct captured *c = captured_find(nodes[0], kj_self.role != KJ_ROLE_MAIN || r->passes);
    if (c)
        *c = (struct captured){nodes[0], r->passes, kj_self.role};
    kj_unlock_cold();
}

uint32_t kj_captured_pass(CUgraphNode node)
{
    kj_lock_cold();
    const struct captured *c = captured_find(node, false);
    uint32_t pass = c ? c->pass : 0;
    kj_unlock_cold();
    return pass;
}

void kj_captured_settle(CUgraphNode node, uint32_t last_pass)
{
    kj_lock_cold();
    struct captured *c = captured_find(node, false);
    if (c && last_pass && c->pass == last_pass && KJ_ROLE_WHO(c->role) != KJ_ROLE_AUTOGRAD)
        c->role = (uint8_t)((c->role & ~15) | KJ_ROLE_AFTER_BACKWARD);
    kj_unlock_cold();
}

uint8_t kj_captured_role(CUgraphNode node)
{
    kj_lock_cold();
    const struct captured *c = captured_find(node, false);
    uint8_t role = c ? c->role : KJ_ROLE_MAIN;
    kj_unlock_cold();
    return role;
}

void kj_captured_forget(void)
{
    memset(captured, 0, sizeof(captured));
    memset(recordings, 0, sizeof(recordings));
}
