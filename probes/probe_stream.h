/* SPDX-License-Identifier: Apache-2.0
 *
 * probe_stream.h - what kjoule-probe and the recorder say to each other: records of one fixed size over a
 * SOCK_SEQPACKET pair that the probe inherits as descriptor 0, whole records in each message. Neither side
 * trusts the other.
 *
 * Recorder to probe: requests. Probe to recorder: HELLO, then REFUSED and its end, or CHANNEL for each
 * sensor, NO_PHASES where they were asked for in vain, and READY, then until the socket is closed TICK,
 * THREAD, READING, LOST, PHASE and UNNAMED. Numbers are cumulative, so that a message less loses no time.
 */
#ifndef KJ_PROBE_STREAM_H
#define KJ_PROBE_STREAM_H

#include <stdint.h>

#define KJ_PROBE_MAGIC   0x6b6a7062u
#define KJ_PROBE_VERSION 3
enum { KJ_PROBE_BATCH = 64, KJ_PROBE_NAME_BYTES = 16, KJ_PROBE_TEXT_BYTES = 152 };

enum kj_probe_request_kind {
    KJ_PROBE_WATCH = 1, /* pid: the root of a tree; of the same user */
    KJ_PROBE_FUNCTION,  /* a function of PyTorch in a file that came along as a descriptor, in the process pid
                         */
    KJ_PROBE_STOP,      /* say the last numbers and end */
};

/* The functions that phases are seen by. */
enum kj_probe_function {
    KJ_FUNCTION_ENGINE,     /* torch::autograd::Engine::execute */
    KJ_FUNCTION_RECORD,     /* at::RecordFunction::RecordFunction(RecordScope) */
    KJ_FUNCTION_RECORD_END, /* at::RecordFunction::end */
    KJ_FUNCTION_UPDATE,     /* an operator that optimizers update parameters with: where there are no names */
    KJ_FUNCTION_ENGINE_END, /* c10::IValue::toTensorVector, which the engine calls last */
    KJ_FUNCTION_ENGINE_FAIL, /* torch::autograd::Engine::thread_on_exception */
    KJ_FUNCTION_CALL,        /* torch::jit::_get_operation_for_overload_or_packet, in libtorch_python.so */
    KJ_FUNCTION_HANDLE,      /* at::_ops::zeros::call */
    KJ_FUNCTION_RECORD_NEW,  /* torch::autograd::profiler::record_function_enter_new */
    KJ_FUNCTIONS
};

struct kj_probe_request {
    uint32_t magic, kind;
    int32_t pid;
    uint32_t function;
    uint64_t offset; /* in the file */
    uint64_t reserved;
};

enum kj_probe_record_kind {
    KJ_PROBE_HELLO = 1, /* value: KJ_PROBE_VERSION */
    KJ_PROBE_REFUSED,   /* text: why, one line */
    KJ_PROBE_CHANNEL,
    KJ_PROBE_READY, /* text: what is measured and how; value: 1 when cycles are counted */
    KJ_PROBE_TICK,
    KJ_PROBE_THREAD,
    KJ_PROBE_READING, /* id: channel; value */
    KJ_PROBE_LOST,    /* id: channel; text: why */
    KJ_PROBE_PHASE,
    KJ_PROBE_WATCHING,  /* pid; id: 1 + function, 0 for a tree; value: negative errno, or 0; text: why not */
    KJ_PROBE_NO_PHASES, /* text: why the kernel takes none of their programs */
    KJ_PROBE_UNNAMED,   /* pid: a process whose records' names cannot be read: updates would tell */
};

struct kj_probe_record {
    uint32_t magic, kind;
    uint64_t t_ns; /* CLOCK_MONOTONIC */
    uint32_t id;
    int32_t pid;
    int64_t value;
    union {
        char text[KJ_PROBE_TEXT_BYTES];
        struct { /* a sensor, in the terms of struct kj_channel */
            uint32_t component, quantity;
            double gain_sd;
            uint64_t period_ns;
            char source[24], name[32], device[64];
        } channel;
        struct { /* since the probe began; the tree's since each of its tasks began */
            uint64_t tree_ns, others_ns, idle_ns;
            uint64_t tree_cycles, tree_instructions, all_cycles;
            uint64_t switches, unlisted, lost_phases;
            uint32_t processes, threads;
        } tick;
        struct {
            int32_t tid;
            uint32_t dead; /* 1: these are its last numbers */
            uint64_t cpu_ns, cycles, instructions;
            char comm[KJ_PROBE_NAME_BYTES], process[KJ_PROBE_NAME_BYTES];
        } thread;
        struct {
            int32_t tid;
            uint32_t mark; /* enum kj_phase_mark of probes/maps.h */
            uint64_t start_ns, end_ns;
        } phase;
    };
};

_Static_assert(sizeof(struct kj_probe_request) == 32, "requests have one size on every machine");
_Static_assert(sizeof(struct kj_probe_record) == 184, "records have one size on every machine");

#endif
