/* SPDX-License-Identifier: Apache-2.0
 *
 * captured.c - what captures hold, by the launches and copies that the shim sees on their streams: so a graph
 * that was captured is known without asking the driver for its nodes; and who launched them, which the graph
 * does not tell: PyTorch's autograd engine, or another thread, and that before, between or after backward
 * passes.
 */
#include "graphs.h"
#include "phase_names.h"

#include <string.h>

enum { LOGS = 32 };
#define ENDING UINT64_MAX

static struct log {
    uint64_t id; /* the driver's, of the capture; 0: free */
    struct kj_tally before,
        after; /* the newest backward pass began between them; those of autograd are before */
    size_t nodes;
    uint16_t device;
    CUstream first;
    const struct kj_context *context;
    bool any, backward, in_backward, serial;
} logs[LOGS];
static unsigned next_log;
static _Atomic uint32_t epoch; /* of what threads remember of streams */

/* Stream 0 of either lane, and the handles that stand for it. */
static CUstream named(CUstream stream, int lane)
{
    return stream ? stream : lane ? CU_STREAM_PER_THREAD : CU_STREAM_LEGACY;
}

uint64_t kj_capture_id(CUstream stream, int lane)
{
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUgraph graph;
    const CUgraphNode *nodes;
    const CUgraphEdgeData *edges;
    size_t count;
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
    return rc || status == CU_STREAM_CAPTURE_STATUS_NONE ? 0 : id;
}

static struct log *find(uint64_t id, bool add)
{
    static unsigned last;
    if (id && likely(logs[last].id == id))
        return &logs[last];
    for (unsigned i = 0; id && i < LOGS; i++)
        if (logs[i].id == id)
            return &logs[last = i];
    for (unsigned i = 0; id && add && i < LOGS; i++) {
        struct log *log = &logs[next_log++ % LOGS];
        if (log->id == ENDING || (log->id && i + 1 < LOGS))
            continue;
        kj_tally_clear(&log->before);
        kj_tally_clear(&log->after);
        *log = (struct log){.id = id, .before = log->before, .after = log->after, .serial = true};
        return log;
    }
    return NULL;
}

void kj_captures_changed(void)
{
    atomic_fetch_add(&epoch, 1);
}

/* A stream that captures does so until the capture ends, so that the driver is asked once. One that does not
 * may be drawn into a capture at any time. */
bool kj_capture_holds(const struct kj_context *context, CUstream stream, int lane, uint64_t *ret_id)
{
    uint32_t now = atomic_load_explicit(&epoch, memory_order_acquire);
    CUstream name = named(stream, lane);
    for (int i = 0; i < KJ_CAPTURED_STREAMS; i++) {
        const struct kj_captured_stream *known = &kj_self.captured[i];
        if (known->stream == name && known->epoch == now && known->context == context && known->id) {
            *ret_id = known->id;
            return true;
        }
    }
    kj_self.inside = true;
    bool captures = kj_stream_captures(stream, lane);
    kj_self.inside = false;
    *ret_id = captures ? kj_capture_id(stream, lane) : 0;
    if (captures)
        kj_self.captured[kj_self.next_captured++ % KJ_CAPTURED_STREAMS] =
            (struct kj_captured_stream){.stream = name, .context = context, .epoch = now, .id = *ret_id};
    return captures;
}

static void add(struct log *log, uint32_t activity, uint32_t content, uint64_t bytes)
{
    bool autograd = KJ_ROLE_WHO(kj_self.place.role) == KJ_ROLE_AUTOGRAD;
    if (autograd && !log->in_backward) {
        kj_tally_add_all(&log->before, &log->after, 1);
        kj_tally_clear(&log->after);
        log->backward = true;
    }
    log->in_backward = autograd;
    struct kj_tally *tally = autograd ? &log->before : &log->after;
    if (activity)
        kj_tally_add(tally, activity, 1, (int64_t)bytes);
    else
        tally->lost = tally->lost || !content;
    log->nodes++;
}

void kj_capture_add(const struct kj_context *context, CUstream stream, int lane, uint64_t id,
                    uint32_t activity, uint32_t content, uint64_t bytes, bool overlaps)
{
    kj_lock_cold();
    struct log *log = find(id, true);
    if (log) {
        CUstream name = named(stream, lane);
        log->serial = log->serial && !overlaps &&
                      (!log->any || (log->first == name && log->context == context)) &&
                      (activity || kj_content_is_serial(content));
        log->first = name;
        log->context = context;
        log->device = kj_context_device(context);
        log->any = true;
        add(log, activity, content, bytes);
    }
    kj_unlock_cold();
    if (!log || activity || !content)
        return;
    struct kj_tally child = {0};
    kj_content_add_to(content, &child, 1);
    kj_lock_cold();
    if ((log = find(id, false)))
        kj_tally_add_all(log->in_backward ? &log->before : &log->after, &child, 1);
    kj_unlock_cold();
    kj_tally_drop(&child);
}

/* What another thread than autograd's launched after the last backward pass began is of a role of its own. */
static void settle(struct kj_ledger_header *ledger, struct log *log)
{
    const struct kj_ledger_activity *rows = kj_section(ledger, KJ_SECTION_ACTIVITIES);
    for (size_t i = 0; i < log->after.count; i++) {
        const struct kj_tally_row *row = &log->after.rows[i];
        uint8_t role = (uint8_t)((rows[row->activity].role & ~15) | KJ_ROLE_AFTER_BACKWARD);
        uint32_t activity = log->backward ? kj_activity_in_role(ledger, row->activity, role) : row->activity;
        kj_tally_add(&log->before, activity, row->nodes, (int64_t)row->bytes);
    }
    log->before.lost = log->before.lost || log->after.lost;
}

void kj_capture_whole(struct kj_ledger_header *ledger, uint64_t id, CUgraph graph)
{
    kj_lock_cold();
    struct log *log = find(id, false);
    if (log)
        log->id = ENDING;
    kj_unlock_cold();
    if (log && graph) {
        settle(ledger, log);
        kj_graph_known(graph, kj_content_of(ledger, &log->before, log->device, log->serial), log->nodes);
    } else if (graph) {
        kj_graph_known(graph, 0, 0);
    }
    if (log)
        log->id = 0;
}

void kj_captured_forget(void)
{
    for (unsigned i = 0; i < LOGS; i++)
        logs[i].id = 0;
    kj_captures_changed();
}
