/* SPDX-License-Identifier: Apache-2.0
 *
 * calls - what calls of the driver cost: host time of the caller, and time of the stream; which of them wait
 * for the device; how events behave. Knows nothing of kjoule. One JSON object a line, each printed as soon as
 * it is known:
 *
 *     {"call": symbol, "variant": text, "host_ns": median, "host_p90_ns": ..., "device_ns": ... or null}
 *     {"waits": symbol, "variant": text, "own_ms": behind nothing, "legacy_ms": behind a kernel of 20 ms on
 * the legacy stream, "other_ms": on a stream that does not wait for it}
 *     {"fact": name, "value": number}
 *
 *     calls [BATCHES]
 */
#include "card.h"

#include <string.h>
#include <unistd.h>

enum { CALLS = 200, NODES = 500, SMALL = 4096, LARGE = 1 << 20 };
static int batches = 15;
static handle objects[CALLS], pair[2], graph, graph_nodes[NODES], exec, other_stream, library, kernel;
static address memory, memory_to;
static int capture_mode = 2; /* relaxed */
static void *pageable, *pinned;
static unsigned blocker_rounds, wait_rounds;

/* ---- what the rows do around their calls */

static void make_events(void)
{
    for (int i = 0; i < CALLS; i++)
        MUST(cu.EventCreate(&objects[i], 0));
}
static void end_events(void)
{
    for (int i = 0; i < CALLS; i++)
        MUST(cu.EventDestroy_v2(objects[i]));
}
static void make_streams(void)
{
    for (int i = 0; i < CALLS; i++)
        MUST(cu.StreamCreate(&objects[i], 1));
}
static void end_streams(void)
{
    for (int i = 0; i < CALLS; i++)
        MUST(cu.StreamDestroy_v2(objects[i]));
}
static void record_pair(void)
{
    MUST(cu.EventRecord(pair[0], card.stream));
    MUST(cu.EventRecord(pair[1], card.stream));
    MUST(cu.StreamSynchronize(card.stream));
}
static void busy_pair(void)
{
    card_launch(KERNEL_burn, 1, blocker_rounds);
    MUST(cu.EventRecord(pair[1], card.stream));
}
static void begin_capture(void)
{
    MUST(cu.StreamBeginCapture_v2(card.stream, 2));
}
static void end_capture(void)
{
    MUST(cu.StreamEndCapture(card.stream, &graph));
}
static void capture_nothing(int count)
{
    begin_capture();
    for (int i = 0; i < count; i++)
        MUST(cu.LaunchKernel(card.nothing, 1, 1, 1, 32, 1, 1, 0, card.stream, NULL, NULL));
    end_capture();
}
static void end_graph(void)
{
    MUST(cu.GraphDestroy(graph));
}
static void make_graph(void)
{
    capture_nothing(NODES);
    size_t count = NODES;
    MUST(cu.GraphGetNodes(graph, graph_nodes, &count));
}
static void make_graph_of_one(void)
{
    capture_nothing(1);
}
static void make_exec(void)
{
    make_graph();
    MUST(cu.GraphInstantiateWithFlags(&exec, graph, 0));
    MUST(cu.GraphLaunch(exec, card.stream));
    MUST(cu.StreamSynchronize(card.stream));
}
static void end_exec(void)
{
    MUST(cu.GraphExecDestroy(exec));
    end_graph();
}
static void make_exec_of_one(void)
{
    capture_nothing(1);
    MUST(cu.GraphInstantiateWithFlags(&exec, graph, 0));
    MUST(cu.GraphLaunch(exec, card.stream));
    MUST(cu.StreamSynchronize(card.stream));
}
static void begin_captures(void)
{
    make_streams();
    for (int i = 0; i < CALLS; i++)
        MUST(cu.StreamBeginCapture_v2(objects[i], 2));
}
static void end_captures(void)
{
    for (int i = 0; i < CALLS; i++) {
        MUST(cu.StreamEndCapture(objects[i], &graph));
        end_graph();
    }
    end_streams();
}
static void drop_extra_references(void)
{
    for (int i = 0; i < CALLS; i++)
        MUST(cu.DevicePrimaryCtxRelease_v2(0));
}
static void take_extra_references(void)
{
    for (int i = 0; i < CALLS; i++)
        MUST(cu.DevicePrimaryCtxRetain(&objects[i], 0));
}
static void host_function(void *unused)
{
    (void)unused;
}

static void end_graph_of_capture(void)
{
    end_capture();
    end_graph();
}

/* ---- the rows
 *
 * CALL(row, symbol without cu, variant, prepare, finish, calls a batch, counted as, on the stream, call)
 *   counted as: how many one call stands for, as nodes of a graph. on the stream: its device time is
 * measured, too. */
#define NOTHING NULL
#define CALL_ROWS(CALL)                                                                                      \
    CALL(row_LaunchKernel, LaunchKernel, "", NOTHING, NOTHING, CALLS, 1,                                     \
         cu.LaunchKernel(card.nothing, 1, 1, 1, 32, 1, 1, 0, card.stream, NULL, NULL))                       \
    CALL(row_LaunchKernelEx, LaunchKernelEx, "", NOTHING, NOTHING, CALLS, 1,                                 \
         cu.LaunchKernelEx(                                                                                  \
             &(struct launch_config){.grid = {1, 1, 1}, .block = {32, 1, 1}, .stream = card.stream},         \
             card.nothing, NULL, NULL))                                                                      \
    CALL(row_LaunchHostFunc, LaunchHostFunc, "", NOTHING, NOTHING, 50, 1,                                    \
         cu.LaunchHostFunc(card.stream, host_function, NULL))                                                \
    CALL(row_EventRecord, EventRecord, "", make_events, end_events, CALLS, 1,                                \
         cu.EventRecord(objects[i], card.stream))                                                            \
    CALL(row_EventRecordWithFlags, EventRecordWithFlags, "", make_events, end_events, CALLS, 1,              \
         cu.EventRecordWithFlags(objects[i], card.stream, 0))                                                \
    CALL(row_EventQuery_done, EventQuery, "done", record_pair, NOTHING, CALLS, 0, cu.EventQuery(pair[1]))    \
    CALL(row_EventQuery_pending, EventQuery, "pending", busy_pair, NOTHING, 50, 0,                           \
         (cu.EventQuery(pair[1]), 0))                                                                        \
    CALL(row_EventElapsedTime, EventElapsedTime, "", record_pair, NOTHING, CALLS, 0,                         \
         cu.EventElapsedTime(&(float){0}, pair[0], pair[1]))                                                 \
    CALL(row_EventSynchronize_done, EventSynchronize, "done", record_pair, NOTHING, CALLS, 0,                \
         cu.EventSynchronize(pair[1]))                                                                       \
    CALL(row_EventCreate, EventCreate, "", NOTHING, end_events, CALLS, 0, cu.EventCreate(&objects[i], 0))    \
    CALL(row_EventDestroy_v2, EventDestroy_v2, "", make_events, NOTHING, CALLS, 0,                           \
         cu.EventDestroy_v2(objects[i]))                                                                     \
    CALL(row_StreamCreate, StreamCreate, "", NOTHING, end_streams, CALLS, 0,                                 \
         cu.StreamCreate(&objects[i], 1))                                                                    \
    CALL(row_StreamDestroy_v2, StreamDestroy_v2, "", make_streams, NOTHING, CALLS, 0,                        \
         cu.StreamDestroy_v2(objects[i]))                                                                    \
    CALL(row_StreamQuery_idle, StreamQuery, "idle", NOTHING, NOTHING, CALLS, 0, cu.StreamQuery(card.stream)) \
    CALL(row_StreamSynchronize_idle, StreamSynchronize, "idle", NOTHING, NOTHING, CALLS, 0,                  \
         cu.StreamSynchronize(card.stream))                                                                  \
    CALL(row_StreamWaitEvent, StreamWaitEvent, "", record_pair, NOTHING, CALLS, 1,                           \
         cu.StreamWaitEvent(card.stream, pair[1], 0))                                                        \
    CALL(row_StreamGetCtx, StreamGetCtx, "", NOTHING, NOTHING, CALLS, 0,                                     \
         cu.StreamGetCtx(card.stream, &(handle){0}))                                                         \
    CALL(row_StreamGetId, StreamGetId, "", NOTHING, NOTHING, CALLS, 0,                                       \
         cu.StreamGetId(card.stream, &(address){0}))                                                         \
    CALL(row_StreamIsCapturing, StreamIsCapturing, "", NOTHING, NOTHING, CALLS, 0,                           \
         cu.StreamIsCapturing(card.stream, &(int){0}))                                                       \
    CALL(row_StreamBeginCapture, StreamBeginCapture_v2, "", make_streams, end_captures, CALLS, 0,            \
         cu.StreamBeginCapture_v2(objects[i], 2))                                                            \
    CALL(row_StreamEndCapture, StreamEndCapture, "empty", begin_captures, end_streams, CALLS, 0,             \
         cu.StreamEndCapture(objects[i], &graph))                                                            \
    CALL(row_ThreadExchangeStreamCaptureMode, ThreadExchangeStreamCaptureMode, "", NOTHING, NOTHING, CALLS,  \
         0, cu.ThreadExchangeStreamCaptureMode(&capture_mode))                                               \
    CALL(row_StreamGetCaptureInfo_v2_not_capturing, StreamGetCaptureInfo_v2, "not capturing", NOTHING,       \
         NOTHING, CALLS, 0,                                                                                  \
         cu.StreamGetCaptureInfo_v2(card.stream, &(int){0}, &(address){0}, NULL, NULL, NULL))                \
    CALL(row_LaunchKernel_captured, LaunchKernel, "captured", begin_capture, end_graph_of_capture, CALLS, 0, \
         cu.LaunchKernel(card.nothing, 1, 1, 1, 32, 1, 1, 0, card.stream, NULL, NULL))                       \
    CALL(row_CtxGetCurrent, CtxGetCurrent, "", NOTHING, NOTHING, CALLS, 0, cu.CtxGetCurrent(&(handle){0}))   \
    CALL(row_CtxGetDevice, CtxGetDevice, "", NOTHING, NOTHING, CALLS, 0, cu.CtxGetDevice(&(int){0}))         \
    CALL(row_CtxGetId, CtxGetId, "", NOTHING, NOTHING, CALLS, 0, cu.CtxGetId(card.context, &(address){0}))   \
    CALL(row_CtxSetCurrent, CtxSetCurrent, "", NOTHING, NOTHING, CALLS, 0, cu.CtxSetCurrent(card.context))   \
    CALL(row_CtxSynchronize_idle, CtxSynchronize, "idle", NOTHING, NOTHING, CALLS, 0, cu.CtxSynchronize())   \
    CALL(row_DevicePrimaryCtxRetain, DevicePrimaryCtxRetain, "", NOTHING, drop_extra_references, CALLS, 0,   \
         cu.DevicePrimaryCtxRetain(&objects[i], 0))                                                          \
    CALL(row_DevicePrimaryCtxRelease_v2_not_the_last, DevicePrimaryCtxRelease_v2, "not the last",            \
         take_extra_references, NOTHING, CALLS, 0, cu.DevicePrimaryCtxRelease_v2(0))                         \
    CALL(row_FuncGetName, FuncGetName, "", NOTHING, NOTHING, CALLS, 0,                                       \
         cu.FuncGetName(&(const char *){0}, card.nothing))                                                   \
    CALL(row_KernelGetName, KernelGetName, "", NOTHING, NOTHING, CALLS, 0,                                   \
         cu.KernelGetName(&(const char *){0}, kernel))                                                       \
    CALL(row_KernelGetFunction, KernelGetFunction, "", NOTHING, NOTHING, CALLS, 0,                           \
         cu.KernelGetFunction(&objects[i], kernel))                                                          \
    CALL(row_ModuleGetFunction, ModuleGetFunction, "", NOTHING, NOTHING, CALLS, 0,                           \
         cu.ModuleGetFunction(&objects[i], card.module, "nothing"))                                          \
    CALL(row_GetProcAddress_v2, GetProcAddress_v2, "", NOTHING, NOTHING, CALLS, 0,                           \
         cu.GetProcAddress_v2("cuLaunchKernel", &(void *){0}, 12000, 0, NULL))                               \
    CALL(row_MemcpyHtoD_v2_4_KiB_pageable, MemcpyHtoD_v2, "4 KiB pageable", NOTHING, NOTHING, 50, 0,         \
         cu.MemcpyHtoD_v2(memory, pageable, SMALL))                                                          \
    CALL(row_MemcpyDtoH_v2_4_KiB_pageable, MemcpyDtoH_v2, "4 KiB pageable", NOTHING, NOTHING, 50, 0,         \
         cu.MemcpyDtoH_v2(pageable, memory, SMALL))                                                          \
    CALL(row_MemcpyHtoDAsync_v2_4_KiB_pinned, MemcpyHtoDAsync_v2, "4 KiB pinned", NOTHING, NOTHING, CALLS,   \
         1, cu.MemcpyHtoDAsync_v2(memory, pinned, SMALL, card.stream))                                       \
    CALL(row_MemcpyDtoHAsync_v2_4_KiB_pinned, MemcpyDtoHAsync_v2, "4 KiB pinned", NOTHING, NOTHING, CALLS,   \
         1, cu.MemcpyDtoHAsync_v2(pinned, memory, SMALL, card.stream))                                       \
    CALL(row_MemcpyDtoDAsync_v2_4_KiB, MemcpyDtoDAsync_v2, "4 KiB", NOTHING, NOTHING, CALLS, 1,              \
         cu.MemcpyDtoDAsync_v2(memory_to, memory, SMALL, card.stream))                                       \
    CALL(row_MemsetD8Async_4_KiB, MemsetD8Async, "4 KiB", NOTHING, NOTHING, CALLS, 1,                        \
         cu.MemsetD8Async(memory, 1, SMALL, card.stream))                                                    \
    CALL(row_MemsetD8, MemsetD8_v2, "4 KiB", NOTHING, NOTHING, 50, 0, cu.MemsetD8_v2(memory, 1, SMALL))      \
    CALL(row_MemcpyDtoD, MemcpyDtoD_v2, "4 KiB", NOTHING, NOTHING, 50, 0,                                    \
         cu.MemcpyDtoD_v2(memory_to, memory, SMALL))                                                         \
    CALL(row_GraphLaunch_1_node, GraphLaunch, "1 node", make_exec_of_one, end_exec, 50, 1,                   \
         cu.GraphLaunch(exec, card.stream))                                                                  \
    CALL(row_GraphLaunch_nodes, GraphLaunch, "500 nodes", make_exec, end_exec, 4, 1,                         \
         cu.GraphLaunch(exec, card.stream))                                                                  \
    CALL(row_GraphGetNodes_1_node, GraphGetNodes, "1 node", make_graph_of_one, end_graph, 1, 0,              \
         cu.GraphGetNodes(graph, graph_nodes, &(size_t){NODES}))                                             \
    CALL(row_GraphGetNodes_nodes, GraphGetNodes, "500 nodes", make_graph, end_graph, 1, 0,                   \
         cu.GraphGetNodes(graph, graph_nodes, &(size_t){NODES}))                                             \
    CALL(row_GraphNodeGetType, GraphNodeGetType, "", make_graph, end_graph, CALLS, 0,                        \
         cu.GraphNodeGetType(graph_nodes[i], &(int){0}))                                                     \
    CALL(row_GraphKernelNodeGetParams_v2, GraphKernelNodeGetParams_v2, "", make_graph, end_graph, CALLS, 0,  \
         cu.GraphKernelNodeGetParams_v2(graph_nodes[i], &(struct kernel_node){0}))                           \
    CALL(row_GraphInstantiateWithFlags_1_node, GraphInstantiateWithFlags, "1 node", make_graph_of_one,       \
         end_exec, 1, 0, cu.GraphInstantiateWithFlags(&exec, graph, 0))                                      \
    CALL(row_GraphInstantiateWithFlags_nodes, GraphInstantiateWithFlags, "500 nodes", make_graph, end_exec,  \
         1, 0, cu.GraphInstantiateWithFlags(&exec, graph, 0))                                                \
    CALL(row_GraphExecUpdate_v2_1_node, GraphExecUpdate_v2, "1 node", make_exec_of_one, end_exec, 1, 0,      \
         cu.GraphExecUpdate_v2(exec, graph, (long long[4]){0}))                                              \
    CALL(row_GraphExecUpdate_v2_nodes, GraphExecUpdate_v2, "500 nodes", make_exec, end_exec, 1, 0,           \
         cu.GraphExecUpdate_v2(exec, graph, (long long[4]){0}))                                              \
    CALL(row_GraphExecDestroy_1_node, GraphExecDestroy, "1 node", make_exec_of_one, end_graph, 1, 0,         \
         cu.GraphExecDestroy(exec))                                                                          \
    CALL(row_GraphExecDestroy_nodes, GraphExecDestroy, "500 nodes", make_exec, end_graph, 1, 0,              \
         cu.GraphExecDestroy(exec))                                                                          \
    CALL(row_GraphDestroy_1_node, GraphDestroy, "1 node", make_graph_of_one, NOTHING, 1, 0,                  \
         cu.GraphDestroy(graph))                                                                             \
    CALL(row_GraphDestroy_nodes, GraphDestroy, "500 nodes", make_graph, NOTHING, 1, 0, cu.GraphDestroy(graph))

enum row {
#define CALL(row, ...) row,
    CALL_ROWS(CALL)
#undef CALL
        ROW_COUNT
};
static const struct {
    const char *symbol, *variant;
    void (*prepare)(void), (*finish)(void);
    int count;
    bool on_stream;
    const void *needs; /* where the function's address is */
} rows[] = {
#define CALL(row, symbol, variant, prepare, finish, count, on_stream, call)                                  \
    {"cu" #symbol, variant, prepare, finish, count, on_stream, &cu.symbol},
    CALL_ROWS(CALL)
#undef CALL
};

static int make_call(enum row row, int i)
{
    switch (row) {
#define CALL(row, symbol, variant, prepare, finish, count, on_stream, call)                                  \
    case row:                                                                                                \
        return call;
        CALL_ROWS(CALL)
#undef CALL
    default:
        return 0;
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The stream's time for each of `count` calls that all stood behind a long kernel before it ended; -1: that
 * did not come about. */
static double device_ns(enum row row)
{
    float ms;
    if (rows[row].prepare)
        rows[row].prepare();
    MUST(cu.StreamSynchronize(card.stream));
    card_launch(KERNEL_burn, 1, wait_rounds);
    MUST(cu.EventRecord(card.begin, card.stream));
    for (int i = 0; i < rows[row].count; i++)
        make_call(row, i);
    bool in_time = cu.EventQuery(card.begin) != 0;
    MUST(cu.EventRecord(card.end, card.stream));
    MUST(cu.StreamSynchronize(card.stream));
    MUST(cu.EventElapsedTime(&ms, card.begin, card.end));
    if (rows[row].finish)
        rows[row].finish();
    return in_time ? (double)ms * 1e6 / rows[row].count : -1;
}

static void measure(enum row row)
{
    double ns[256], stream_ns[5], own;
    if (!*(void *const *)rows[row].needs) {
        printf("{\"call\": \"%s\", \"variant\": \"%s\", \"missing\": true}\n", rows[row].symbol,
               rows[row].variant);
        return;
    }
    for (int b = 0; b <= batches; b++) { /* the first warms up */
        if (rows[row].prepare)
            rows[row].prepare();
        int rc = 0;
        double start_s = card_now_s();
        for (int i = 0; i < rows[row].count; i++)
            rc |= make_call(row, i);
        own = (card_now_s() - start_s) * 1e9 / rows[row].count;
        MUST(rc);
        ns[b ? b - 1 : 0] = own;
        if (rows[row].finish)
            rows[row].finish();
        MUST(cu.CtxSynchronize());
    }
    qsort(ns, (size_t)batches, sizeof(ns[0]), by_value);
    printf(
        "{\"call\": \"%s\", \"variant\": \"%s\", \"host_ns\": %.1f, \"host_p90_ns\": %.1f, \"device_ns\": ",
        rows[row].symbol, rows[row].variant, ns[batches / 2], ns[batches * 9 / 10]);
    for (int i = 0; i < 5 && rows[row].on_stream; i++)
        stream_ns[i] = device_ns(row);
    qsort(stream_ns, 5, sizeof(double), by_value);
    printf(rows[row].on_stream && stream_ns[2] >= 0 ? "%.1f}\n" : "null}\n", stream_ns[2]);
    fflush(stdout);
}

/* ---- which calls wait for the device */

#define WAIT_ROWS(WAIT)                                                                                      \
    WAIT(MemcpyDtoH_v2, "4 KiB pageable", cu.MemcpyDtoH_v2(pageable, memory, SMALL))                         \
    WAIT(MemcpyHtoD_v2, "4 KiB pageable", cu.MemcpyHtoD_v2(memory, pageable, SMALL))                         \
    WAIT(MemcpyHtoD_v2, "1 MiB pageable", cu.MemcpyHtoD_v2(memory, pageable, LARGE))                         \
    WAIT(MemcpyHtoD_v2, "4 KiB pinned", cu.MemcpyHtoD_v2(memory, pinned, SMALL))                             \
    WAIT(MemcpyDtoD_v2, "4 KiB", cu.MemcpyDtoD_v2(memory_to, memory, SMALL))                                 \
    WAIT(MemsetD8_v2, "4 KiB", cu.MemsetD8_v2(memory, 1, SMALL))                                             \
    WAIT(MemcpyHtoDAsync_v2, "4 KiB pageable", cu.MemcpyHtoDAsync_v2(memory, pageable, SMALL, at))           \
    WAIT(MemcpyHtoDAsync_v2, "1 MiB pageable", cu.MemcpyHtoDAsync_v2(memory, pageable, LARGE, at))           \
    WAIT(MemcpyDtoHAsync_v2, "4 KiB pageable", cu.MemcpyDtoHAsync_v2(pageable, memory, SMALL, at))           \
    WAIT(MemcpyDtoHAsync_v2, "4 KiB pinned", cu.MemcpyDtoHAsync_v2(pinned, memory, SMALL, at))               \
    WAIT(MemAlloc_v2, "64 MiB", cu.MemAlloc_v2(&fresh, 64 << 20))                                            \
    WAIT(MemFree_v2, "64 MiB", cu.MemFree_v2(fresh))                                                         \
    WAIT(EventCreate, "", cu.EventCreate(&object, 0))                                                        \
    WAIT(EventDestroy_v2, "", cu.EventDestroy_v2(object))                                                    \
    WAIT(StreamCreate, "", cu.StreamCreate(&object, 1))                                                      \
    WAIT(StreamDestroy_v2, "of another", cu.StreamDestroy_v2(object))                                        \
    WAIT(GraphInstantiateWithFlags, "500 nodes", cu.GraphInstantiateWithFlags(&exec, graph, 0))              \
    WAIT(GraphExecDestroy, "500 nodes", cu.GraphExecDestroy(exec))                                           \
    WAIT(CtxSynchronize, "", cu.CtxSynchronize())

/* A kernel of 20 ms on `stream`, NULL the legacy one; not waited for. */
static void hold(handle stream)
{
    void *arguments[] = {&wait_rounds};
    MUST(cu.LaunchKernel(card.kernels[KERNEL_burn], card.multiprocessors, 1, 1, 256, 1, 1, 0, stream,
                         arguments, NULL));
}

static void measure_waits(void)
{
    handle object = NULL, at = NULL;
    address fresh = 0;
    double ms[3];
    make_graph();
    enum { NOT_HELD, LEGACY, OTHER };
    /* What a call made in one round is undone by the row after it in the same round, so rounds are the outer
     * loop. */
    for (int round = NOT_HELD; round <= OTHER; round++) {
#define WAIT(symbol, variant, call)                                                                          \
    if (round != NOT_HELD)                                                                                   \
        hold(round == LEGACY ? NULL : other_stream);                                                         \
    at = round == LEGACY ? NULL : card.stream;                                                               \
    ms[0] = card_now_s();                                                                                    \
    MUST(call);                                                                                              \
    ms[1] = (card_now_s() - ms[0]) * 1e3;                                                                    \
    printf("{\"waits\": \"cu" #symbol "\", \"variant\": \"%s\", \"behind\": \"%s\", \"ms\": %.4f}\n",        \
           variant, (const char *[]){"nothing", "legacy stream", "other stream"}[round], ms[1]);             \
    fflush(stdout);                                                                                          \
    MUST(cu.CtxSynchronize());
        WAIT_ROWS(WAIT)
#undef WAIT
    }
    end_graph();
}

/* ---- events, and how much can be queued */

static void fact(const char *name, double value)
{
    printf("{\"fact\": \"%s\", \"value\": %.4f}\n", name, value);
    fflush(stdout);
}

static void measure_facts(void)
{
    double us[3][31], first_us = 1e9;
    float ms;
    for (int i = 0; i < 31; i++) {
        for (int kernels = 0; kernels < 3; kernels++) {
            MUST(cu.EventRecord(card.begin, card.stream));
            for (int k = 0; k < kernels; k++)
                MUST(cu.LaunchKernel(card.nothing, 1, 1, 1, 32, 1, 1, 0, card.stream, NULL, NULL));
            MUST(cu.EventRecord(card.end, card.stream));
            MUST(cu.StreamSynchronize(card.stream));
            MUST(cu.EventElapsedTime(&ms, card.begin, card.end));
            us[kernels][i] = (double)ms * 1e3;
            if (ms > 0 && us[kernels][i] < first_us)
                first_us = us[kernels][i];
        }
    }
    for (int kernels = 0; kernels < 3; kernels++)
        qsort(us[kernels], 31, sizeof(double), by_value);
    fact("event pair on an idle stream around nothing, us", us[0][15]);
    fact("event pair on an idle stream around an empty kernel, us", us[1][15]);
    fact("event pair on an idle stream around two empty kernels, us", us[2][15]);
    fact("shortest event pair that is not 0, us", first_us);
    hold(card.stream);
    int queued = 0;
    for (double start_s = card_now_s(); queued < 20000 && card_now_s() - start_s < 0.002; queued++) {
        start_s = card_now_s();
        MUST(cu.LaunchKernel(card.nothing, 1, 1, 1, 32, 1, 1, 0, card.stream, NULL, NULL));
    }
    fact("launches queued behind a kernel of 20 ms until one takes over 2 ms (20000: none)", queued);
    MUST(cu.StreamSynchronize(card.stream));
}

int main(int argc, char **argv)
{
    int unused;
    if (argc > 1)
        batches = atoi(argv[1]);
    if (batches < 3 || batches > 255)
        return 2;
    card_open();
    MUST(cu.EventCreate(&pair[0], 0));
    MUST(cu.EventCreate(&pair[1], 0));
    MUST(cu.StreamCreate(&other_stream, 1));
    MUST(cu.MemAlloc_v2(&memory, LARGE));
    MUST(cu.MemAlloc_v2(&memory_to, LARGE));
    MUST(cu.MemAllocHost_v2(&pinned, LARGE));
    pageable = calloc(1, LARGE);
    if (cu.LibraryLoadData && cu.LibraryGetKernel &&
        !cu.LibraryLoadData(&library, card_image, NULL, NULL, 0, NULL, NULL, 0))
        MUST(cu.LibraryGetKernel(&kernel, library, "nothing"));
    blocker_rounds = card_rounds(KERNEL_burn, 1, 2000, 1, &unused);
    wait_rounds = card_rounds(KERNEL_burn, 1, 20000, 1, &unused);
    for (enum row row = 0; row < ROW_COUNT; row++)
        measure(row);
    measure_waits();
    measure_facts();
    return 0;
}
