/* SPDX-License-Identifier: Apache-2.0 */
#include "card.h"

#include <string.h>
#include <time.h>

struct driver cu;
struct card card;

/* The branch on the sum keeps the compiler from dropping the work. */
#define K(name)                                                                                              \
    ".visible .entry " #name "(.param .u32 rounds)\n{\n"                                                     \
    " .reg .u32 %n;\n .reg .f32 %a, %b, %c;\n .reg .pred %p;\n"                                              \
    " ld.param.u32 %n, [rounds];\n"                                                                          \
    " mov.f32 %a, 0f3F800001;\n mov.f32 %b, 0f3F7FFFFF;\n mov.f32 %c, 0f00000000;\n"                         \
    "again:\n"                                                                                               \
    " fma.rn.f32 %a, %a, %b, %c;\n fma.rn.f32 %b, %b, %a, %c;\n"                                             \
    " fma.rn.f32 %a, %a, %b, %c;\n fma.rn.f32 %b, %b, %a, %c;\n"                                             \
    " sub.u32 %n, %n, 1;\n setp.ne.u32 %p, %n, 0;\n @%p bra again;\n"                                        \
    " setp.eq.f32 %p, %a, 0f7F800000;\n @%p trap;\n ret;\n}\n"
const char card_image[] = ".version 7.0\n.target sm_70\n.address_size 64\n"
                          ".visible .entry nothing()\n{\n ret;\n}\n" CARD_KERNELS(K);
#undef K
#define K(name) #name,
static const char *const kernel_names[] = {CARD_KERNELS(K)};
#undef K

double card_now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void card_find_driver(void)
{
    card.library = driver_open();
#define X(name, parameters) cu.name = (int(*) parameters)dlsym(card.library, "cu" #name);
    DRIVER_FUNCTIONS(X)
#undef X
}

void *card_symbol(const char *name)
{
    return dlsym(card.library, name);
}

void card_open(void)
{
    int multiprocessors;
    card_find_driver();
    MUST(cu.Init(0));
    MUST(cu.DevicePrimaryCtxRetain(&card.context, 0));
    MUST(cu.CtxSetCurrent(card.context));
    MUST(cu.DeviceGetAttribute(&multiprocessors, 16, 0));
    card.multiprocessors = (unsigned)multiprocessors;
    card_load();
}

void card_load(void)
{
    MUST(cu.ModuleLoadData(&card.module, card_image));
    MUST(cu.ModuleGetFunction(&card.nothing, card.module, "nothing"));
    for (int i = 0; i < KERNEL_COUNT; i++)
        MUST(cu.ModuleGetFunction(&card.kernels[i], card.module, kernel_names[i]));
    MUST(cu.StreamCreate(&card.stream, 1));
    MUST(cu.EventCreate(&card.begin, 0));
    MUST(cu.EventCreate(&card.end, 0));
}

void card_launch(enum kernel kernel, unsigned blocks_each, unsigned rounds)
{
    void *arguments[] = {&rounds};
    MUST(cu.LaunchKernel(card.kernels[kernel], card.multiprocessors * blocks_each, 1, 1, 256, 1, 1, 0,
                         card.stream, arguments, NULL));
}

double card_timed_ms(enum kernel kernel, unsigned blocks_each, unsigned rounds, int count)
{
    float ms;
    MUST(cu.EventRecord(card.begin, card.stream));
    for (int i = 0; i < count; i++)
        card_launch(kernel, blocks_each, rounds);
    MUST(cu.EventRecord(card.end, card.stream));
    MUST(cu.StreamSynchronize(card.stream));
    MUST(cu.EventElapsedTime(&ms, card.begin, card.end));
    return (double)ms;
}

unsigned card_rounds(enum kernel kernel, unsigned blocks_each, double us, int batch, int *ret_launches)
{
    unsigned rounds = us < 1000 ? 10 : 1000;
    double wanted_ms = us / 1000 * batch;
    double start_s = card_now_s();
    int tries = 0;
    while (tries < 30 && card_now_s() - start_s < 1) {
        double took_ms = card_timed_ms(kernel, blocks_each, rounds, batch);
        double factor = took_ms > 0.0001 ? wanted_ms / took_ms : 10;
        if (++tries > 5 && factor > 0.97 && factor < 1.03)
            break;
        double next = rounds * (factor > 10 ? 10 : factor < 0.1 ? 0.1 : factor);
        rounds = next < 1 ? 1 : next > 4e9 ? 4000000000u : (unsigned)next;
    }
    *ret_launches = tries * batch;
    return rounds;
}
