/* SPDX-License-Identifier: Apache-2.0
 *
 * captures.c - while anything captures, the shim stands still: no event, no query, no record call.
 */
#include "shim.h"

KJ_EACH_LAUNCH atomic_int kj_captures;

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
    kj_captures_changed();
    if (rc) /* the wrapper raised the count before the call, so that no other thread slips in */
        atomic_fetch_sub(&kj_captures, 1);
}

/* A refused end leaves the capture as it was: ended by another thread than began it, or on a stream of the
 * fork. Whatever else came back, an invalidated or unjoined capture is over. */
void kj_capture_ended(struct kj_ledger_header *ledger, CUresult rc, uint64_t id, CUgraph graph)
{
    kj_captures_changed();
    if (rc && rc != CUDA_ERROR_STREAM_CAPTURE_INVALIDATED && rc != CUDA_ERROR_STREAM_CAPTURE_UNJOINED)
        return;
    /* An end without a begin that we saw (a capture older than the shim's view) must not count below zero. */
    int count = atomic_load(&kj_captures);
    while (count > 0 && !atomic_compare_exchange_weak(&kj_captures, &count, count - 1))
        ;
    uint64_t begun_ns = kj_now_ns();
    kj_capture_whole(ledger, id, rc ? NULL : graph);
    kj_governor_read(ledger, kj_now_ns() - begun_ns, 0);
}
