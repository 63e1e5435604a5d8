/* SPDX-License-Identifier: Apache-2.0
 *
 * walk.c - --phase-walk, which the user has to ask for: short delays, so that the sensor's windows come to
 * lie elsewhere in the training's step. Where steps and windows keep time, each window sees the same mixture
 * of kernels, and no arithmetic takes it apart.
 *
 * Where: after a wait for the GPU has returned, on the process's first thread, while every launch is timed
 * and the shim's own events say that nothing is left on the device. So the device really stands still for as
 * long, all that follows comes later for good, and the timeline shows both. Not after a wait that had nothing
 * to wait for, nor with a capture under way. A program that never waits for an empty device on that thread is
 * never delayed, and the report says so.
 *
 * How long: drawn, each of four octaves from 2 to 32 ms as often. Short ones shift the phase often, which a
 * window shorter than the step needs. Long ones are holes in which a window as long as the step misses a
 * piece of it, and the energy of that piece is what it tells. (Of the laws that were tried by the bench of
 * accuracy, 4 to 64 ms leaves a fifth more error where kernels are many, 5 ms always up to twice as much
 * where they are few.)
 *
 * How often: all processes of a run draw on one account, a file in the run folder, for in a training of many
 * ranks each waits for the others. Before a delay of d is due, d / share has to pass since the last one
 * began: at no moment have the delays had more than the share of the time so far, but for what the system
 * oversleeps in the last of them, which is put on the account afterwards. Nothing is saved up.
 */
#include "shim.h"

#include "phase_names.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    SHORTEST_NS = 2000000,
    OCTAVES = 4,
    WAITED_LEAST_NS = 5000, /* less is the call itself: there was nothing to wait for */
    EVENT_MOST_NS = 20000,
    ACCOUNT_BYTES = 4096,
};
#define SEED 1

static struct account {
    _Atomic uint64_t due_ns; /* CLOCK_MONOTONIC; 0: just made */
    _Atomic uint64_t drawn;  /* delays so far */
} * account;
static double share; /* of the time, for this process; 0: it does not walk */

/* By number: what the n-th delay of a run is depends on nothing else. The mixer is splitmix64's. */
static uint64_t delay_ns(uint64_t n)
{
    uint64_t x = SEED + (n + 1) * 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    x ^= x >> 31;
    uint64_t octave_ns = (uint64_t)SHORTEST_NS << (x % OCTAVES);
    return octave_ns + (uint64_t)((double)octave_ns * (double)(x >> 32) / 4294967296.0);
}

static uint64_t earned_after_ns(uint64_t n)
{
    return (uint64_t)((double)delay_ns(n) / share);
}

static long number_of(const char *const *names)
{
    for (; *names; names++) {
        const char *text = getenv(*names);
        if (text && *text)
            return strtol(text, NULL, 10);
    }
    return 0;
}

/* Other hosts have accounts of their own, and a training waits for the slowest. Unknown how many of its ranks
 * are here: as if it were one. */
static uint32_t count_hosts(void)
{
    static const char *const of_hosts[] = {"SLURM_NNODES", NULL};
    static const char *const of_ranks[] = {"WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", NULL};
    static const char *const of_local[] = {"LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", NULL};
    long ranks = number_of(of_ranks), local = number_of(of_local), hosts = number_of(of_hosts);
    if (ranks > 0 && (local > 0 || hosts <= 0))
        hosts = (ranks + (local > 0 ? local : 1) - 1) / (local > 0 ? local : 1);
    return hosts > 1 && hosts < 1000000 ? (uint32_t)hosts : 1;
}

static struct account *open_account(void)
{
    int dir_fd = open(kj_config.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = dir_fd < 0 ? -1 : openat(dir_fd, "walk", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    void *map = MAP_FAILED;
    if (fd >= 0 && (fallocate(fd, 0, 0, ACCOUNT_BYTES) == 0 || ftruncate(fd, ACCOUNT_BYTES) == 0))
        map = mmap(NULL, ACCOUNT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0)
        close(fd);
    if (dir_fd >= 0)
        close(dir_fd);
    return map == MAP_FAILED ? NULL : map;
}

void kj_walk_start(struct kj_ledger_header *ledger)
{
    share = 0;
    if (kj_config.walk <= 0)
        return;
    ledger->walk_ppm = (uint32_t)(kj_config.walk * 1e6 + 0.5);
    ledger->walk_seed = SEED;
    ledger->walk_hosts = count_hosts();
    if (!kj_config.events) {
        strcpy(ledger->walk_reason, "launches are counted and not timed, so no delay would tell them apart");
        return;
    }
    if (!account) /* a fork's child has its parent's */
        account = open_account();
    if (!account) {
        strcpy(ledger->walk_reason, "the account of delays cannot be made in the run folder");
        return;
    }
    share = kj_config.walk / ledger->walk_hosts;
    uint64_t none = 0;
    atomic_compare_exchange_strong(&account->due_ns, &none, kj_now_ns() + earned_after_ns(0));
}

/* A system call and not nanosleep(), which is a place where a thread may be cancelled; the driver's waits are
 * none. Signals are handled meanwhile, as in those. */
static void sleep_until(uint64_t end_ns)
{
    const struct timespec end = {(time_t)(end_ns / 1000000000u), (long)(end_ns % 1000000000u)};
    int before = errno;
    while (syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL) && errno == EINTR)
        ;
    errno = before;
}

static void keep(struct kj_ledger_header *ledger, struct kj_context *context, uint64_t start_ns,
                 uint64_t end_ns)
{
    uint64_t took_ns = end_ns - start_ns;
    __atomic_fetch_add(&ledger->walk_ns, took_ns, __ATOMIC_RELAXED);
    if (took_ns > ledger->walk_most_ns)
        ledger->walk_most_ns = took_ns;
    __atomic_fetch_add(&ledger->walk_delays, 1, __ATOMIC_RELAXED);
    bool first;
    const struct kj_shape shape = {.function = NULL};
    uint32_t row = kj_activity_find(ledger, KJ_ACTIVITY_WALK, kj_context_device(context), &shape, &first);
    if (!row) /* the table is full: the sums above have it */
        return;
    kj_count(&kj_self.counts[row], 1);
    kj_activity_timed(ledger, row, &(struct kj_duration){.ns = took_ns}, false);
    const struct kj_ledger_interval interval = {.start_ns = start_ns,
                                                .end_ns = end_ns,
                                                .launch_ns = start_ns,
                                                .activity = row,
                                                .thread = kj_self.row,
                                                .flags = KJ_INTERVAL_ALONE,
                                                .context = kj_context_row(context)};
    kj_interval_publish(ledger, &interval);
}

/* Is every launch timed just now, and all that was launched through? CUPTI's records come too late to ask:
 * then it is the wait that has to be for a whole stream or context. */
static bool device_stands_still(struct kj_ledger_header *ledger, struct kj_context *context, bool whole)
{
    if (atomic_load_explicit(&kj_cupti_on, memory_order_relaxed))
        return whole;
    if (atomic_load_explicit(&kj_timing_on, memory_order_relaxed) != KJ_TIME_ALL)
        return false;
    /* The event behind a synchronous copy may take the device a moment yet. */
    uint64_t until_ns = kj_now_ns() + EVENT_MOST_NS;
    do
        kj_timing_harvest(ledger, context, 0);
    while (!kj_timing_is_idle(context) && !whole && kj_now_ns() < until_ns);
    return kj_timing_is_idle(context);
}

void kj_walk(struct kj_ledger_header *ledger, bool whole, uint64_t waited_ns)
{
    if (share <= 0 || waited_ns < WAITED_LEAST_NS || KJ_ROLE_WHO(kj_self.place.role) != KJ_ROLE_MAIN ||
        atomic_load(&kj_captures))
        return;
    uint64_t due_ns = atomic_load(&account->due_ns);
    struct kj_context *context = kj_now_ns() < due_ns ? NULL : kj_context_current(ledger);
    if (!context || !device_stands_still(ledger, context, whole))
        return;
    uint64_t n = atomic_load(&account->drawn), start_ns = kj_now_ns(), end_ns = start_ns + delay_ns(n);
    uint64_t next_ns = start_ns + earned_after_ns(n + 1);
    if (!atomic_compare_exchange_strong(&account->due_ns, &due_ns, next_ns > end_ns ? next_ns : end_ns))
        return; /* another process was faster */
    atomic_store(&account->drawn, n + 1);
    sleep_until(end_ns);
    uint64_t now_ns = kj_now_ns();
    if (now_ns > end_ns)
        atomic_fetch_add(&account->due_ns, (uint64_t)((double)(now_ns - end_ns) / share));
    keep(ledger, context, start_ns, now_ns);
}
