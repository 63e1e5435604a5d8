/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_proc.c - cuGetProcAddress: for each name the newest ABI that is not newer than asked for.
 */
#include "cuda_sim.h"

#include <string.h>

enum { FOUND = 0, SYMBOL_NOT_FOUND = 1, VERSION_NOT_SUFFICIENT = 2 }; /* CUdriverProcAddressQueryResult */

/* Of the per-thread lane where that is wanted and there is one. */
static void *find(const char *name, int version, int want_lane, int *ret_status)
{
    const struct sim_entry *best = NULL;
    bool too_new = false;
    for (const struct sim_entry *e = sim_entries; e < sim_entries + SIM_EXPORTS; e++) {
        if (strcmp(e->name, name) || !e->version || e->lane > want_lane)
            continue;
        if (e->version > version || e->version > sim_machine()->script.driver_version)
            too_new = true;
        else if (!best || e->lane > best->lane || (e->lane == best->lane && e->version > best->version))
            best = e;
    }
    *ret_status = best ? FOUND : too_new ? VERSION_NOT_SUFFICIENT : SYMBOL_NOT_FOUND;
    return best ? best->address : NULL;
}

/* Whoever asks for the status gets it there, and success with it. */
static CUresult get(const char *name, void **ret, int version, uint64_t flags, int *ret_status)
{
    int status;
    if (!name || !ret)
        return CUDA_ERROR_INVALID_VALUE;
    *ret = find(name, version, (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0, &status);
    if (ret_status)
        *ret_status = status;
    return *ret || ret_status ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

API CUresult cuGetProcAddress_v2(const char *name, void **ret, int version, uint64_t flags, int *ret_status)
{
    CALLED(cuGetProcAddress_v2);
    return get(name, ret, version, flags, ret_status);
}

API CUresult cuGetProcAddress(const char *name, void **ret, int version, uint64_t flags)
{
    CALLED(cuGetProcAddress);
    return get(name, ret, version, flags, NULL);
}
