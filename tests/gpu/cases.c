/* SPDX-License-Identifier: Apache-2.0
 *
 * cases - small programs of the kinds that are easily recorded wrongly, each with what it knows of itself:
 * one JSON object, by its own events and its own clock. Knows nothing of kjoule.
 *
 *     cases copies ROUNDS       blocking copies behind kernels: the copy waits for them, and its own time is
 * short cases releases COUNT      primary context retained and released, another context made and destroyed,
 * as libraries do; launches before, between and after cases streams COUNT       as many streams, each with a
 * launch and an end; then launches on a last one cases shapes COUNT        as many launches of ever new
 * shapes, and as many of one, by turns cases dependent COUNT     programmatic dependent launches, which may
 * overlap, and the same without cases green               launches on a stream of a green context cases graph
 * LAUNCHES      kernels of 5 and 50 us that are in a graph alone: ten short ones for a long one cases rounds
 * COUNT        capture, instantiate, update and destroy of 2000 nodes cases once                one kernel,
 * launched once
 */
#include "card.h"

#include <string.h>

static unsigned rounds_of(enum kernel kernel, double us, int batch, int *ret_launches)
{
    return card_rounds(kernel, 1, us, batch, ret_launches);
}

static int run_copies(int count)
{
    enum { KERNELS = 10, SMALL = 4096 };
    int first;
    unsigned rounds = rounds_of(KERNEL_burn, 1000, 1, &first);
    static char host[SMALL];
    address memory;
    float ms;
    MUST(cu.MemAlloc_v2(&memory, SMALL));
    MUST(cu.MemcpyDtoH_v2(host, memory, SMALL));
    double copy_s = 0, kernels_ms = 0, start_s = card_now_s();
    handle own = card.stream;
    card.stream = NULL; /* the legacy stream: what a blocking copy waits for */
    for (int i = 0; i < count; i++) {
        MUST(cu.EventRecord(card.begin, NULL));
        for (int k = 0; k < KERNELS; k++)
            card_launch(KERNEL_burn, 1, rounds);
        MUST(cu.EventRecord(card.end, NULL));
        double before_s = card_now_s();
        MUST(cu.MemcpyDtoH_v2(host, memory, SMALL));
        copy_s += card_now_s() - before_s;
        MUST(cu.EventElapsedTime(&ms, card.begin, card.end));
        kernels_ms += (double)ms;
    }
    card.stream = own;
    printf("{\"seconds\": %.6f, \"launches\": {\"burn\": %d}, \"copies\": %d, \"kernels_ms\": %.4f, "
           "\"launches_timed\": %d, "
           "\"host_in_copies_ms\": %.4f}\n",
           card_now_s() - start_s, first + count * KERNELS, count + 1, kernels_ms, count * KERNELS,
           copy_s * 1e3);
    return 0;
}

static void launch_some(int count)
{
    for (int i = 0; i < count; i++)
        MUST(cu.LaunchKernel(card.nothing, 1, 1, 1, 32, 1, 1, 0, card.stream, NULL, NULL));
}

static int run_releases(int count)
{
    handle context, second;
    launch_some(500);
    for (int i = 0; i < count; i++) {
        MUST(cu.DevicePrimaryCtxRetain(&context, 0));
        launch_some(1);
        MUST(cu.DevicePrimaryCtxRelease_v2(0));
    }
    for (int i = 0; i < 8; i++) {
        MUST(cu.CtxCreate_v2(&second, 0, 0));
        MUST(cu.CtxSetCurrent(card.context));
        launch_some(100);
        MUST(cu.CtxDestroy_v2(second));
        launch_some(100);
    }
    launch_some(500);
    MUST(cu.StreamSynchronize(card.stream));
    printf("{\"launches\": {\"nothing\": %d}}\n", 500 + count + 8 * 200 + 500);
    return 0;
}

static int run_streams(int count)
{
    int first;
    unsigned rounds = rounds_of(KERNEL_burn_50us, 50, 20, &first);
    for (int i = 0; i < count; i++) {
        MUST(cu.StreamCreate(&card.stream, 1));
        launch_some(1);
        MUST(cu.StreamSynchronize(card.stream));
        MUST(cu.StreamDestroy_v2(card.stream));
    }
    MUST(cu.StreamCreate(&card.stream, 1));
    double ms = card_timed_ms(KERNEL_burn_50us, 1, rounds, 500);
    printf("{\"launches\": {\"nothing\": %d, \"burn_50us\": %d}, \"burn_50us_ms\": %.4f}\n", count,
           first + 500, ms);
    return 0;
}

static int run_shapes(int count)
{
    double ns[2] = {0};
    enum { TURNS = 10 };
    for (int turn = 0; turn < TURNS; turn++)
        for (int fresh = 0; fresh < 2; fresh++) {
            double start_s = card_now_s();
            for (int i = 0; i < count / TURNS; i++) {
                unsigned n = (unsigned)(turn * (count / TURNS) + i);
                MUST(cu.LaunchKernel(card.nothing, fresh ? 1 + n % 1000 : 1, fresh ? 1 + n / 1000 : 1, 1, 32,
                                     1, 1, 0, card.stream, NULL, NULL));
            }
            MUST(cu.StreamSynchronize(card.stream));
            ns[fresh] = (card_now_s() - start_s) * 1e9 / (count / TURNS); /* of the last turn */
        }
    printf("{\"launches\": {\"nothing\": %d}, \"one_shape_ns\": %.1f, \"new_shapes_ns\": %.1f}\n",
           count / TURNS * TURNS * 2, ns[0], ns[1]);
    return 0;
}

/* Lets its dependents start at once, then works for `rounds`: two of a chain overlap where the driver lets
 * them. */
static const char dependent_image[] = ".version 7.8\n.target sm_90\n.address_size 64\n"
                                      ".visible .entry dependent(.param .u32 rounds)\n{\n"
                                      " .reg .u32 %n;\n .reg .f32 %a, %b;\n .reg .pred %p;\n"
                                      " griddepcontrol.launch_dependents;\n"
                                      " ld.param.u32 %n, [rounds];\n"
                                      " mov.f32 %a, 0f3F800001;\n mov.f32 %b, 0f3F7FFFFF;\n"
                                      "again:\n"
                                      " fma.rn.f32 %a, %a, %b, %b;\n fma.rn.f32 %b, %b, %a, %a;\n"
                                      " sub.u32 %n, %n, 1;\n setp.ne.u32 %p, %n, 0;\n @%p bra again;\n"
                                      " setp.eq.f32 %p, %a, 0f12345678;\n @%p trap;\n ret;\n}\n";

static int run_dependent(int count)
{
    enum { SERIALIZATION = 6 /* CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION */ };
    int major, first;
    handle module, dependent;
    MUST(cu.DeviceGetAttribute(&major, 75, 0));
    if (major < 9 || !cu.LaunchKernelEx) {
        printf("{\"skipped\": \"no programmatic dependent launch: compute capability %d\"}\n", major);
        return 0;
    }
    MUST(cu.ModuleLoadData(&module, dependent_image));
    MUST(cu.ModuleGetFunction(&dependent, module, "dependent"));
    unsigned rounds = 2 * rounds_of(KERNEL_burn_50us, 50, 20, &first);
    struct launch_attribute attribute = {.id = SERIALIZATION, .number = 1};
    struct launch_config config = {
        .grid = {card.multiprocessors / 4 + 1, 1, 1}, .block = {128, 1, 1}, .stream = card.stream};
    void *arguments[] = {&rounds};
    double us[2];
    config.attributes = &attribute;
    for (int overlapping = 0; overlapping < 2; overlapping++) {
        config.attribute_count = (unsigned)overlapping;
        double start_s = card_now_s();
        for (int i = 0; i < count; i++)
            MUST(cu.LaunchKernelEx(&config, dependent, arguments, NULL));
        MUST(cu.StreamSynchronize(card.stream));
        us[overlapping] = (card_now_s() - start_s) * 1e6 / count;
    }
    printf("{\"launches\": {\"dependent\": %d, \"burn_50us\": %d}, \"us_each\": %.3f, "
           "\"us_each_overlapping\": %.3f}\n",
           count * 2, first, us[0], us[1]);
    return 0;
}

/* CUdevResource is an opaque block of 144 bytes or less; its first word is the type, 1 for multiprocessors.
 */
static int run_green(int unused)
{
    int (*get_resource)(int, void *, int),
        (*split)(void *, unsigned *, const void *, void *, unsigned, unsigned);
    int (*describe)(handle *, void *, unsigned), (*create)(handle *, handle, int, unsigned);
    int (*create_stream)(handle *, handle, unsigned, int), (*to_context)(handle *, handle);
    static char all[256], parts[4][256], rest[256];
    unsigned groups = 1;
    handle description, green;
    (void)unused;
    *(void **)&get_resource = card_symbol("cuDeviceGetDevResource");
    *(void **)&split = card_symbol("cuDevSmResourceSplitByCount");
    *(void **)&describe = card_symbol("cuDevResourceGenerateDesc");
    *(void **)&create = card_symbol("cuGreenCtxCreate");
    *(void **)&create_stream = card_symbol("cuGreenCtxStreamCreate");
    *(void **)&to_context = card_symbol("cuCtxFromGreenCtx");
    if (!to_context || !get_resource || !split || !describe || !create || !create_stream ||
        get_resource(0, all, 1)) {
        printf("{\"skipped\": \"the driver has no green contexts\"}\n");
        return 0;
    }
    MUST(split(parts[0], &groups, all, rest, 0, card.multiprocessors / 2));
    MUST(describe(&description, parts[0], 1));
    MUST(create(&green, description, 0, 1));
    MUST(to_context(&card.context, green));
    MUST(cu.CtxSetCurrent(card.context));
    card_load(); /* a kernel or an event of one context is of no use in another */
    MUST(create_stream(&card.stream, green, 1, 0));
    int first;
    unsigned rounds = rounds_of(KERNEL_burn_50us, 50, 20, &first);
    double ms = card_timed_ms(KERNEL_burn_50us, 1, rounds, 500);
    printf("{\"launches\": {\"burn_50us\": %d}, \"burn_50us_ms\": %.4f}\n", first + 500, ms);
    return 0;
}

static void add_kernel(handle graph, handle *node, enum kernel kernel, unsigned *rounds)
{
    void *arguments[] = {rounds};
    handle before = *node;
    struct kernel_node params = {.function = card.kernels[kernel],
                                 .grid = {card.multiprocessors, 1, 1},
                                 .block = {256, 1, 1},
                                 .arguments = arguments};
    MUST(cu.GraphAddKernelNode_v2(node, graph, before ? &before : NULL, before != NULL, &params));
}

static int run_graph(int count)
{
    enum { GROUPS = 5, SHORT = 10 };
    int unused;
    unsigned rounds_short = rounds_of(KERNEL_burn_5us, 5, 100, &unused);
    unsigned rounds_long = rounds_of(KERNEL_burn_50us, 50, 20, &unused);
    double short_ms = card_timed_ms(KERNEL_burn_5us, 1, rounds_short, 200) / 200;
    double long_ms = card_timed_ms(KERNEL_burn_50us, 1, rounds_long, 200) / 200;
    handle graph, exec, node = NULL;
    MUST(cu.GraphCreate(&graph, 0));
    for (int g = 0; g < GROUPS; g++) {
        add_kernel(graph, &node, KERNEL_in_graph_50us, &rounds_long);
        for (int i = 0; i < SHORT; i++)
            add_kernel(graph, &node, KERNEL_in_graph_5us, &rounds_short);
    }
    MUST(cu.GraphInstantiateWithFlags(&exec, graph, 0));
    double start_s = card_now_s();
    for (int i = 0; i < count; i++) {
        MUST(cu.GraphLaunch(exec, card.stream));
        if (i % 16 == 15)
            MUST(cu.StreamSynchronize(card.stream));
    }
    MUST(cu.StreamSynchronize(card.stream));
    printf("{\"seconds\": %.6f, \"launches\": {\"in_graph_5us\": %d, \"in_graph_50us\": %d}, \"ms_alone\": "
           "{\"in_graph_5us\": "
           "%.5f, \"in_graph_50us\": %.5f}}\n",
           card_now_s() - start_s, count * GROUPS * SHORT, count * GROUPS, short_ms, long_ms);
    return 0;
}

static handle captured(int nodes)
{
    handle graph;
    MUST(cu.StreamBeginCapture_v2(card.stream, 2));
    launch_some(nodes);
    MUST(cu.StreamEndCapture(card.stream, &graph));
    return graph;
}

static int run_rounds(int count)
{
    enum { NODES = 2000 };
    double start_s = 0;
    for (int i = 0; i <= count; i++) { /* the first warms up */
        if (i == 1)
            start_s = card_now_s();
        long long info[4] = {0};
        handle graph = captured(NODES), again = captured(NODES), exec;
        MUST(cu.GraphInstantiateWithFlags(&exec, graph, 0));
        MUST(cu.GraphExecUpdate_v2(exec, again, info));
        MUST(cu.GraphLaunch(exec, card.stream));
        MUST(cu.StreamSynchronize(card.stream));
        MUST(cu.GraphExecDestroy(exec));
        MUST(cu.GraphDestroy(again));
        MUST(cu.GraphDestroy(graph));
    }
    printf("{\"launches\": {\"nothing\": %d}, \"ms_each_round\": %.4f}\n", (count + 1) * NODES,
           (card_now_s() - start_s) * 1e3 / count);
    return 0;
}

static int run_once(int unused)
{
    int first;
    unsigned rounds = rounds_of(KERNEL_burn_5us, 5, 100, &first);
    (void)unused;
    double us = card_timed_ms(KERNEL_burn_5us, 1, rounds, 200) * 5;
    MUST(cu.StreamSynchronize(card.stream));
    void *arguments[] = {&rounds};
    MUST(cu.LaunchKernel(card.kernels[KERNEL_once], card.multiprocessors, 1, 1, 256, 1, 1, 0, card.stream,
                         arguments, NULL));
    MUST(cu.StreamSynchronize(card.stream));
    printf("{\"launches\": {\"once\": 1, \"burn_5us\": %d}, \"once_us_about\": %.3f}\n", first + 200, us);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int count);
    } ways[] = {{"copies", run_copies}, {"releases", run_releases},   {"streams", run_streams},
                {"shapes", run_shapes}, {"dependent", run_dependent}, {"green", run_green},
                {"graph", run_graph},   {"rounds", run_rounds},       {"once", run_once}};
    for (size_t i = 0; argc > 1 && i < sizeof(ways) / sizeof(ways[0]); i++)
        if (!strcmp(argv[1], ways[i].name)) {
            card_open();
            return ways[i].run(argc > 2 && atoi(argv[2]) > 0 ? atoi(argv[2]) : 100);
        }
    fprintf(stderr, "cases: copies|releases|streams|shapes|dependent|green|graph|rounds|once?\n");
    return 2;
}
