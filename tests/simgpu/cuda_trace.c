/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_trace.c - tells a listener of calls and work (trace.h). Without one it costs a load and a branch.
 */
#include "cuda_sim.h"

static const char *const symbols[] = {
#define EXPORT(symbol, name, version, lane) #symbol,
#include "cuda_exports.def"
#undef EXPORT
};

static _Atomic(const struct sim_tracer *) tracer;
static _Atomic uint32_t last_correlation;
static __thread uint32_t correlation; /* of the call under way */
static __thread const char *name_now;

API void sim_trace_set(const struct sim_tracer *listener)
{
    atomic_store(&tracer, listener);
}

struct sim_call sim_call_begin(int export)
{
    struct sim_call call = {.symbol = NULL, .outer_name = name_now, .outer = correlation};
    name_now = symbols[export];
    const struct sim_tracer *t = atomic_load_explicit(&tracer, memory_order_acquire);
    if (t) {
        call.symbol = symbols[export];
        correlation = atomic_fetch_add(&last_correlation, 1) + 1;
        t->call(call.symbol, correlation, true);
    }
    sim_charge_call(export);
    if (sim_machine()->script.holds)
        call.hold_us = sim_hold_begin(export);
    return call;
}

void sim_call_end(struct sim_call *call)
{
    if (call->hold_us > 0)
        sim_hold_end(call->hold_us);
    const struct sim_tracer *t = atomic_load_explicit(&tracer, memory_order_acquire);
    if (t && call->symbol)
        t->call(call->symbol, correlation, false);
    correlation = call->outer;
    name_now = call->outer_name;
}

const char *sim_call_name(void)
{
    return name_now ? name_now : "a call";
}

void sim_trace(CUstream stream, struct sim_trace_work work)
{
    const struct sim_tracer *t = atomic_load_explicit(&tracer, memory_order_acquire);
    if (!t)
        return;
    work.ordinal = sim_device_to_ordinal(stream->context->device);
    work.stream = (uint32_t)stream->id;
    work.correlation = correlation;
    t->work(&work);
}
