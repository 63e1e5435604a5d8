/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_handles.c - the memory behind handles. A real driver hands a destroyed handle's memory out again soon,
 * and a call that still uses it crashes or answers for somebody else's object: here the memory of the one
 * destroyed last is the next one's, and a use in between ends the program with a line. Script: `handles
 * reuse=0 abort=0`.
 */
#include "cuda_sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct free_handle {
    struct sim_head head;
    struct free_handle *next;
};
static struct free_handle *unused[SIM_KINDS_END - SIM_CONTEXT];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint32_t last_serial;

static const char *const names[] = {"context",          "stream",      "event",        "module",
                                    "library",          "function",    "graph",        "graph node",
                                    "executable graph", "memory pool", "green context"};
_Static_assert(sizeof(names) / sizeof(names[0]) == SIM_KINDS_END - SIM_CONTEXT, "a name for every kind");

void sim_handle_begin(void *handle, enum sim_magic kind)
{
    *(struct sim_head *)handle = (struct sim_head){(uint32_t)kind, atomic_fetch_add(&last_serial, 1) + 1};
}

void *sim_handle_make(enum sim_magic kind, size_t size)
{
    pthread_mutex_lock(&lock);
    struct free_handle *made = unused[kind - SIM_CONTEXT];
    if (made)
        unused[kind - SIM_CONTEXT] = made->next;
    pthread_mutex_unlock(&lock);
    if (made)
        memset(made, 0, size);
    else if (!(made = calloc(1, size)))
        return NULL;
    sim_handle_begin(made, kind);
    return made;
}

void sim_handle_end(void *handle)
{
    struct sim_head *head = handle;
    *head = (struct sim_head){~head->magic, 0};
}

void sim_handle_destroy(void *handle)
{
    struct free_handle *gone = handle;
    unsigned kind = gone->head.magic - SIM_CONTEXT;
    sim_handle_end(handle);
    if (sim_machine()->script.handles_reuse <= 0)
        return;
    pthread_mutex_lock(&lock);
    gone->next = unused[kind];
    unused[kind] = gone;
    pthread_mutex_unlock(&lock);
}

void sim_destroyed(const void *handle, const char *what)
{
    if (atomic_load(&sim_torn_down) || sim_machine()->script.handles_abort <= 0)
        return;
    fprintf(stderr, "simgpu: %s: used %s (%p)\n", sim_call_name(), what, handle);
    abort();
}

bool sim_valid(const void *handle, enum sim_magic kind)
{
    char what[64];
    if (!handle || (uintptr_t)handle <= 4096)
        return false;
    uint32_t magic = ((const struct sim_head *)handle)->magic;
    if (magic == ~(uint32_t)kind) {
        snprintf(what, sizeof(what), "a destroyed %s", names[kind - SIM_CONTEXT]);
        sim_destroyed(handle, what);
    }
    return magic == (uint32_t)kind;
}

bool sim_owner_alive(const struct sim_owner *owner)
{
    return owner->context->head.serial == owner->serial;
}
