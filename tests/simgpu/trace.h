/* SPDX-License-Identifier: Apache-2.0
 *
 * trace.h - what the simulated driver tells the simulated libcupti: its calls, with an id each, and the work
 * that they start. One listener, set by sim_trace_set, which the driver exports.
 */
#ifndef SIM_TRACE_H
#define SIM_TRACE_H

#include <stdbool.h>
#include <stdint.h>

/* Work on a device, known to the nanosecond when it is enqueued. Times are CLOCK_MONOTONIC. */
struct sim_trace_work {
    const char *name; /* mangled, or "[memcpy HtoD]" and the like */
    bool copy;
    int ordinal;
    uint32_t stream, correlation;
    uint32_t graph; /* 0: not of a graph */
    uint64_t node;
    uint64_t start_ns, end_ns, bytes;
    unsigned grid[3], block[3], shared;
};

struct sim_tracer {
    void (*call)(const char *symbol, uint32_t correlation, bool begins);
    void (*work)(const struct sim_trace_work *work);
};

#endif
