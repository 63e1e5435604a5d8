/* SPDX-License-Identifier: Apache-2.0
 *
 * driver.c - feeds LLVMFuzzerTestOneInput without libFuzzer: every file that is named, and then, for as many
 * rounds as asked, mutations of them by a fixed sequence of random numbers. With clang -fsanitize=fuzzer it
 * is left out.
 *
 *     fuzz [ROUNDS [SEED_FILE...]]      no file: mutations of nothing
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* The harness's own seeds; returns their number, or the size of seed i in ret_data. */
size_t kj_fuzz_seed(size_t i, uint8_t *ret_data, size_t cap);

enum { CAP = 1 << 16 };

static uint64_t state = 0x9e3779b97f4a7c15u;

static uint64_t next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static size_t mutate(uint8_t *data, size_t size)
{
    static const uint64_t odd[] = {0,          1,          0x7f,       0x80,       0xff,
                                   0x7fffffff, 0x80000000, 0xffffffff, 1ull << 63, ~0ull};
    for (unsigned changes = 1 + next() % 6; changes && size; changes--) {
        size_t at = next() % size;
        switch (next() % 6) {
        case 0:
            data[at] ^= (uint8_t)(1u << next() % 8);
            break;
        case 1:
            data[at] = (uint8_t)next();
            break;
        case 2:
            size = at + 1;
            break;
        case 3: { /* a whole number at an even place */
            size_t width = 1u << next() % 4, place = at / width * width;
            if (place + width <= size)
                memcpy(data + place, &odd[next() % (sizeof(odd) / sizeof(*odd))], width);
            break;
        }
        case 4: /* a piece once more */
            if (size + 64 < CAP) {
                size_t length = 1 + next() % 64;
                length = at + length > size ? size - at : length;
                memmove(data + at + length, data + at, size - at);
                size += length;
            }
            break;
        default: /* a piece less */
            memmove(data + at, data + at + 1, size - at - 1);
            size--;
        }
    }
    return size;
}

int main(int argc, char **argv)
{
    static uint8_t seeds[64][CAP], data[CAP];
    size_t sizes[64], count = 0;
    unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 20000;
    for (int i = 2; i < argc && count < 32; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (!file)
            continue;
        sizes[count] = fread(seeds[count], 1, CAP, file);
        fclose(file);
        count++;
    }
    for (size_t i = 0; count < 64 && (sizes[count] = kj_fuzz_seed(i, seeds[count], CAP)); i++)
        count++;
    for (size_t i = 0; i < count; i++)
        LLVMFuzzerTestOneInput(seeds[i], sizes[i]);
    for (unsigned long round = 0; round < rounds && count; round++) {
        size_t from = next() % count;
        memcpy(data, seeds[from], sizes[from]);
        LLVMFuzzerTestOneInput(data, mutate(data, sizes[from]));
    }
    printf("%s: %lu rounds over %zu seeds, nothing broke\n",
           strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0], rounds, count);
    return 0;
}
