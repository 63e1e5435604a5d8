/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_entry.c - every export of a driver. What no other file defines answers NOT_SUPPORTED: here are weak
 * definitions of all, without their parameters, which is why this file must see no prototype.
 */
#include "cuda_sim.h"

#define EXPORT(symbol, name, version, lane)                                                                  \
    API __attribute__((weak)) CUresult symbol(void)                                                          \
    {                                                                                                        \
        CALLED(symbol);                                                                                      \
        return CUDA_ERROR_NOT_SUPPORTED;                                                                     \
    }
#include "cuda_exports.def"
#undef EXPORT

const struct sim_entry sim_entries[SIM_EXPORTS] = {
#define EXPORT(symbol, name, version, lane) {name, (void *)(uintptr_t)symbol, version, lane},
#include "cuda_exports.def"
#undef EXPORT
};
