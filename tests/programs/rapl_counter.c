/* SPDX-License-Identifier: Apache-2.0
 *
 * rapl_counter.c - moves the energy counters of a laid powercap tree, as the hardware does: every
 * millisecond, at a power that is known, starting anew past its range.
 *
 *     rapl_counter FILE START_UJ RANGE_UJ WATTS LOST_AFTER_MS [FILE ...]     LOST_AFTER_MS 0: never
 *
 * A counter that is lost leaves an empty file. Prints a line once all stand, then runs until it is killed.
 */
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { COUNTERS = 16, DIGITS = 15 };

static struct counter {
    int fd;
    uint64_t start_uj, range_uj, lost_ms;
    double watts;
} counters[COUNTERS];

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void show(struct counter *counter, uint64_t elapsed_ns)
{
    char text[32];
    if (counter->lost_ms && elapsed_ns > counter->lost_ms * 1000000u) {
        if (ftruncate(counter->fd, 0))
            exit(3);
        return;
    }
    uint64_t uj = counter->start_uj + (uint64_t)(counter->watts * (double)elapsed_ns * 1e-3);
    /* One width, so that a reader never sees half of two numbers. */
    snprintf(text, sizeof(text), "%0*llu\n", DIGITS, (unsigned long long)(uj % (counter->range_uj + 1)));
    if (pwrite(counter->fd, text, DIGITS + 1, 0) != DIGITS + 1)
        exit(3);
}

int main(int argc, char **argv)
{
    int count = 0;
    const struct sched_param first = {.sched_priority = 10};
    for (int i = 1; i + 4 < argc && count < COUNTERS; i += 5, count++)
        counters[count] = (struct counter){.fd = open(argv[i], O_WRONLY | O_CREAT, 0644),
                                           .start_uj = strtoull(argv[i + 1], NULL, 10),
                                           .range_uj = strtoull(argv[i + 2], NULL, 10),
                                           .watts = strtod(argv[i + 3], NULL),
                                           .lost_ms = strtoull(argv[i + 4], NULL, 10)};
    sched_setscheduler(0, SCHED_FIFO, &first); /* as punctual as we may be */
    uint64_t start_ns = now_ns();
    for (uint64_t tick = 0;; tick++) {
        for (int i = 0; i < count; i++)
            show(&counters[i], now_ns() - start_ns);
        if (tick == 0) {
            puts("counting");
            fflush(stdout);
        }
        usleep(1000);
        if (getppid() == 1)
            return 0;
    }
}
