/* SPDX-License-Identifier: Apache-2.0
 *
 * floor - what counting a launch cannot cost less than: one hash of what is launched, one probe of a table,
 * one add to a counter, and a second add for the call. Knows nothing of kjoule. Each probe waits for the one
 * before, as between launches there is a driver. Prints one line of name=value.
 *
 *     floor KERNELS
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { SLOTS = 65536, ROUNDS = 201, ROUND = 4096 };
static struct {
    uint64_t tag;
    uint64_t row;
} slots[SLOTS];
static uint64_t counts[SLOTS], calls;

static uint64_t hash_of(uint64_t function)
{
    uint64_t h = function * 0x9e3779b97f4a7c15ULL;
    return (h ^ h >> 29) | 1;
}

static uint64_t row_of(uint64_t function)
{
    uint64_t hash = hash_of(function), i = hash >> 16;
    while (slots[i % SLOTS].tag && slots[i % SLOTS].tag != hash)
        i++;
    slots[i % SLOTS].tag = hash;
    return slots[i % SLOTS].row;
}

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double round_ns(unsigned kernels, unsigned *next, int counting)
{
    uint64_t before = 0;
    double start = now_ns();
    for (int i = 0; i < ROUND; i++) {
        *next = *next * 1103515245u + 12345u + (unsigned)before;
        uint64_t function = 0x5500000000 + 64 * (uint64_t)((*next >> 8) % kernels);
        if (counting) {
            uint64_t row = row_of(function);
            __atomic_fetch_add(&counts[row], 1, __ATOMIC_RELAXED);
            __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
            before = row >> 32; /* 0, which the compiler does not know */
        }
    }
    return (now_ns() - start) / ROUND;
}

int main(int argc, char **argv)
{
    unsigned kernels = argc > 1 ? (unsigned)atoi(argv[1]) : 20, next = 1;
    double with[ROUNDS], without[ROUNDS];
    if (kernels < 1 || kernels > SLOTS / 2)
        return 2;
    for (unsigned k = 0; k < kernels; k++) {
        uint64_t hash = hash_of(0x5500000000 + 64 * (uint64_t)k), i = hash >> 16;
        while (slots[i % SLOTS].tag)
            i++;
        slots[i % SLOTS].tag = hash;
        slots[i % SLOTS].row = k;
    }
    for (int r = 0; r < ROUNDS; r++) {
        without[r] = round_ns(kernels, &next, 0);
        with[r] = round_ns(kernels, &next, 1);
    }
    qsort(with, ROUNDS, sizeof(double), by_value);
    qsort(without, ROUNDS, sizeof(double), by_value);
    printf("floor_ns=%.1f\n", with[ROUNDS / 2] - without[ROUNDS / 2]);
    return 0;
}
