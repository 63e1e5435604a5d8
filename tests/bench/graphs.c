/* SPDX-License-Identifier: Apache-2.0
 *
 * graphs - what a program's own calls about graphs cost it, in microseconds a call, by medians of rounds.
 * Knows nothing of kjoule; run.py runs it bare and wrapped, in turn. Each round captures a graph of kernels,
 * instantiates it, launches it, captures the same once more and updates the executable by it, launches that,
 * and destroys all of it. Prints one line of name=value; round_us is all of a round but its waits.
 *
 *     graphs [--nodes N] [--kernels N] [--rounds N] [--slices 1]
 *
 * slices: for each line of stdin, the rounds twice, the first time untimed; one line of output for each
 */
#include "../programs/driver.h"

#include <malloc.h>
#include <string.h>
#include <time.h>

enum { KERNELS_CAP = 64, ROUNDS_CAP = 10000 };
enum step { CAPTURE, INSTANTIATE, UPDATE, LAUNCH, DESTROY, ROUND, STEPS };
static const char *const step_names[STEPS] = {"capture_us", "instantiate_us", "update_us",
                                              "launch_us",  "destroy_us",     "round_us"};
static double taken_us[STEPS][ROUNDS_CAP];
static int nodes = 2000, kernels = 20, rounds = 50, slices;
static handle functions[KERNELS_CAP], stream;

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static handle capture(void)
{
    handle graph;
    MUST(cuStreamBeginCapture_v2(stream, 1));
    for (int i = 0; i < nodes; i++)
        MUST(cuLaunchKernel(functions[i % kernels], 8, 1, 1, 64, 1, 1, 0, stream, NULL, NULL));
    MUST(cuStreamEndCapture(stream, &graph));
    return graph;
}

static void one_round(int round)
{
    double at[STEPS + 4], none_us = 0;
    handle exec;
    long long info[4] = {0};
    at[0] = now_us();
    handle first = capture();
    at[1] = now_us();
    MUST(cuGraphInstantiateWithFlags(&exec, first, 0));
    at[2] = now_us();
    MUST(cuGraphLaunch(exec, stream));
    at[3] = now_us();
    MUST(cuStreamSynchronize(stream));
    none_us = now_us();
    handle second = capture();
    at[4] = now_us();
    MUST(cuGraphExecUpdate_v2(exec, second, info));
    at[5] = now_us();
    MUST(cuGraphLaunch(exec, stream));
    at[6] = now_us();
    MUST(cuStreamSynchronize(stream));
    at[7] = now_us();
    MUST(cuGraphDestroy(first));
    MUST(cuGraphDestroy(second));
    MUST(cuGraphExecDestroy(exec));
    at[8] = now_us();
    taken_us[CAPTURE][round] = (at[1] - at[0] + at[4] - none_us) / 2;
    taken_us[INSTANTIATE][round] = at[2] - at[1];
    taken_us[UPDATE][round] = at[5] - at[4];
    taken_us[LAUNCH][round] = (at[3] - at[2] + at[6] - at[5]) / 2;
    taken_us[DESTROY][round] = at[8] - at[7];
    taken_us[ROUND][round] = at[3] - at[0] + at[6] - none_us + at[8] - at[7];
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run_rounds(void)
{
    for (int r = 0; r < rounds; r++)
        one_round(r);
}

static void print_medians(void)
{
    for (int s = 0; s < STEPS; s++) {
        qsort(taken_us[s], (size_t)rounds, sizeof(double), by_value);
        printf("%s=%.2f%s", step_names[s], taken_us[s][rounds / 2], s + 1 < STEPS ? " " : "\n");
    }
    fflush(stdout);
}

static void load(void)
{
    char image[KERNELS_CAP * 64 + 64], name[32];
    size_t at = (size_t)snprintf(image, sizeof(image), ".version 8.0\n.target sm_80\n.address_size 64\n");
    handle module;
    for (int k = 0; k < kernels; k++)
        at += (size_t)snprintf(image + at, sizeof(image) - at, ".visible .entry bench_%06d() { ret; }\n", k);
    MUST(cuModuleLoadData(&module, image));
    for (int k = 0; k < kernels; k++) {
        snprintf(name, sizeof(name), "bench_%06d", k);
        MUST(cuModuleGetFunction(&functions[k], module, name));
    }
}

int main(int argc, char **argv)
{
    handle context;
    for (int i = 1; i + 1 < argc; i += 2)
        *(!strcmp(argv[i], "--nodes")     ? &nodes
          : !strcmp(argv[i], "--kernels") ? &kernels
          : !strcmp(argv[i], "--slices")  ? &slices
                                          : &rounds) = atoi(argv[i + 1]);
    if (nodes < 1 || kernels < 1 || kernels > KERNELS_CAP || rounds < 1 || rounds > ROUNDS_CAP)
        return 2;
    driver_find();
    MUST(cuInit(0));
    MUST(cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cuCtxSetCurrent(context));
    MUST(cuStreamCreate(&stream, 1));
    load();
    /* What a simulated driver does to the heap is not what is measured: it gives no memory back. */
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    mallopt(M_TOP_PAD, 64 << 20);
    for (char line[16]; slices && fgets(line, sizeof(line), stdin);) {
        run_rounds();
        run_rounds();
        print_medians();
    }
    if (!slices) {
        run_rounds();
        print_medians();
    }
    return 0;
}
