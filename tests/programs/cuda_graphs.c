/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_graphs - CUDA graphs in every way that a program can make and change them, on the driver API alone.
 * Prints the result code of each call that may fail, so that a run beside somebody's tool can be compared
 * with a run without.
 *
 *     cuda_graphs capture|threads|build|update|change|large|churn|forbidden|elsewhere [REPEATS]
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct handle *handle;
typedef unsigned long long address;

/* CUDA_KERNEL_NODE_PARAMS_v2, CUDA_MEMSET_NODE_PARAMS and CUgraphNodeParams of CUDA 12 */
struct kernel_node {
    handle function;
    unsigned grid[3], block[3], shared;
    void **arguments, **extra;
    handle kernel, context;
};
struct memset_node {
    address to;
    size_t pitch;
    unsigned value, element;
    size_t width, height;
};
struct any_node {
    int type, reserved0[3];
    union {
        long long reserved1[29];
        struct kernel_node kernel;
    };
    long long reserved2;
};

/* symbol, parameters */
#define FUNCTIONS(X)                                                                                         \
    X(cuInit, (unsigned flags))                                                                              \
    X(cuDevicePrimaryCtxRetain, (handle * context, int device))                                              \
    X(cuDevicePrimaryCtxRelease_v2, (int device))                                                            \
    X(cuCtxSetCurrent, (handle context))                                                                     \
    X(cuCtxSynchronize, (void))                                                                              \
    X(cuModuleLoadData, (handle * module, const void *image))                                                \
    X(cuModuleGetFunction, (handle * function, handle module, const char *name))                             \
    X(cuStreamCreate, (handle * stream, unsigned flags))                                                     \
    X(cuStreamSynchronize, (handle stream))                                                                  \
    X(cuStreamWaitEvent, (handle stream, handle event, unsigned flags))                                      \
    X(cuStreamIsCapturing, (handle stream, int *status))                                                     \
    X(cuStreamBeginCapture_v2, (handle stream, int mode))                                                    \
    X(cuStreamEndCapture, (handle stream, handle * graph))                                                   \
    X(cuEventCreate, (handle * event, unsigned flags))                                                       \
    X(cuEventRecord, (handle event, handle stream))                                                          \
    X(cuEventQuery, (handle event))                                                                          \
    X(cuGraphCreate, (handle * graph, unsigned flags))                                                       \
    X(cuGraphAddKernelNode_v2,                                                                               \
      (handle * node, handle graph, const handle *after, size_t count, const struct kernel_node *kernel))    \
    X(cuGraphAddMemsetNode, (handle * node, handle graph, const handle *after, size_t count,                 \
                             const struct memset_node *fill, handle context))                                \
    X(cuGraphAddChildGraphNode,                                                                              \
      (handle * node, handle graph, const handle *after, size_t count, handle child))                        \
    X(cuGraphGetNodes, (handle graph, handle * nodes, size_t * count))                                       \
    X(cuGraphInstantiateWithFlags, (handle * exec, handle graph, address flags))                             \
    X(cuGraphExecUpdate_v2, (handle exec, handle graph, void *info))                                         \
    X(cuGraphExecKernelNodeSetParams_v2, (handle exec, handle node, const struct kernel_node *kernel))       \
    X(cuGraphExecNodeSetParams, (handle exec, handle node, struct any_node * params))                        \
    X(cuGraphNodeSetEnabled, (handle exec, handle node, unsigned enabled))                                   \
    X(cuGraphLaunch, (handle exec, handle stream))                                                           \
    X(cuGraphExecDestroy, (handle exec))                                                                     \
    X(cuGraphDestroy, (handle graph))                                                                        \
    X(cuMemAlloc_v2, (address * at, size_t bytes))                                                           \
    X(cuLaunchKernel, (handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,     \
                       unsigned bz, unsigned shared, handle stream, void **arguments, void **extra))
#define X(symbol, parameters) static int(*symbol) parameters;
FUNCTIONS(X)
#undef X

static const char *const names[] = {"graph_a", "graph_b", "graph_c"};
static const char image[] = ".version 8.0\n.target sm_80\n.address_size 64\n"
                            ".visible .entry graph_a()\n{\n ret;\n}\n"
                            ".visible .entry graph_b()\n{\n ret;\n}\n"
                            ".visible .entry graph_c()\n{\n ret;\n}\n";
static handle context, kernels[3];
static int repeats = 50;

#define MUST(call)                                                                                           \
    do {                                                                                                     \
        int rc_ = (call);                                                                                    \
        if (rc_) {                                                                                           \
            fprintf(stderr, "cuda_graphs: %s returned %d\n", #call, rc_);                                    \
            exit(3);                                                                                         \
        }                                                                                                    \
    } while (0)

static int launch(int kernel, handle stream)
{
    return cuLaunchKernel(kernels[kernel], 16, 1, 1, 64, 1, 1, 0, stream, NULL, NULL);
}

static struct kernel_node node_of(int kernel, unsigned blocks)
{
    return (struct kernel_node){.function = kernels[kernel], .grid = {blocks, 1, 1}, .block = {64, 1, 1}};
}

static handle new_stream(void)
{
    handle stream;
    MUST(cuStreamCreate(&stream, 1));
    return stream;
}

static handle instantiate(handle graph)
{
    handle exec;
    MUST(cuGraphInstantiateWithFlags(&exec, graph, 0));
    return exec;
}

static void print_nodes(const char *what, handle graph)
{
    size_t count = 0;
    MUST(cuGraphGetNodes(graph, NULL, &count));
    printf("%s: %zu nodes\n", what, count);
}

/* One capture over two streams, joined by events, in the mode given. */
static handle capture(handle stream, handle side, int mode, int pairs)
{
    handle graph, fork, join;
    MUST(cuEventCreate(&fork, 2));
    MUST(cuEventCreate(&join, 2));
    MUST(cuStreamBeginCapture_v2(stream, mode));
    for (int i = 0; i < pairs; i++) {
        MUST(launch(0, stream));
        MUST(cuEventRecord(fork, stream));
        MUST(cuStreamWaitEvent(side, fork, 0));
        MUST(launch(1, side));
        MUST(cuEventRecord(join, side));
        MUST(cuStreamWaitEvent(stream, join, 0));
    }
    MUST(cuStreamEndCapture(stream, &graph));
    return graph;
}

static void run_capture(void)
{
    handle stream = new_stream(), side = new_stream();
    for (int mode = 0; mode < 3; mode++) {
        for (int i = 0; i < repeats; i++)
            MUST(launch(2, stream)); /* work under way when the capture begins */
        handle graph = capture(stream, side, mode, 5), exec = instantiate(graph);
        print_nodes("capture", graph);
        MUST(cuGraphDestroy(graph));
        for (int i = 0; i < repeats; i++) {
            MUST(cuGraphLaunch(exec, stream));
            MUST(launch(2, stream));
        }
        MUST(cuStreamSynchronize(stream));
        MUST(cuGraphExecDestroy(exec));
    }
}

/* Threads capture, replay and launch eagerly at the same time, each on its own streams. */
static void *one_thread(void *argument)
{
    long self = (long)argument;
    MUST(cuCtxSetCurrent(context));
    handle stream = new_stream(), side = new_stream();
    for (int round = 0; round < 10; round++) {
        handle graph = capture(stream, side, 1 + (int)(self & 1), 20), exec = instantiate(graph);
        MUST(cuGraphDestroy(graph));
        for (int i = 0; i < repeats; i++) {
            MUST(cuGraphLaunch(exec, stream));
            MUST(launch(2, i & 1 ? stream : side));
            if (i % 8 == 0)
                MUST(cuStreamSynchronize(stream));
        }
        MUST(cuStreamSynchronize(side));
        MUST(cuGraphExecDestroy(exec));
    }
    return NULL;
}

static void run_threads(void)
{
    pthread_t threads[4];
    for (long t = 0; t < 4; t++)
        pthread_create(&threads[t], NULL, one_thread, (void *)t);
    for (int t = 0; t < 4; t++)
        pthread_join(threads[t], NULL);
}

static handle build(int first, int second, int nodes, handle *ret_nodes)
{
    handle graph, node = NULL;
    MUST(cuGraphCreate(&graph, 0));
    for (int i = 0; i < nodes; i++) {
        struct kernel_node kernel = node_of(i % 2 ? second : first, 8u + (unsigned)(i % 7));
        handle before = node;
        MUST(cuGraphAddKernelNode_v2(&node, graph, before ? &before : NULL, before != NULL, &kernel));
        if (ret_nodes)
            ret_nodes[i] = node;
    }
    return graph;
}

static void replay(handle exec, handle stream, int times)
{
    for (int i = 0; i < times; i++)
        MUST(cuGraphLaunch(exec, stream));
    MUST(cuStreamSynchronize(stream));
}

/* Explicit construction: kernels, a fill, and another graph as a child. */
static void run_build(void)
{
    handle stream = new_stream(), node, child = build(1, 2, 6, NULL), graph = build(0, 1, 10, NULL);
    address memory;
    MUST(cuMemAlloc_v2(&memory, 4096));
    struct memset_node fill = {.to = memory, .value = 7, .element = 1, .width = 4096, .height = 1};
    MUST(cuGraphAddMemsetNode(&node, graph, NULL, 0, &fill, context));
    MUST(cuGraphAddChildGraphNode(&node, graph, NULL, 0, child));
    print_nodes("built", graph);
    handle exec = instantiate(graph);
    replay(exec, stream, repeats);
}

/* The way of an inference engine: another graph into the same executable at every step. */
static void run_update(void)
{
    handle stream = new_stream(), one = build(0, 1, 8, NULL), two = build(2, 1, 8, NULL),
           longer = build(0, 1, 9, NULL), exec = instantiate(one);
    long long info[4] = {0};
    for (int i = 0; i < repeats * 20; i++) {
        MUST(cuGraphExecUpdate_v2(exec, i & 1 ? one : two, info));
        MUST(cuGraphLaunch(exec, stream));
    }
    printf("another topology: %d\n", cuGraphExecUpdate_v2(exec, longer, info));
    replay(exec, stream, repeats);
}

/* Single nodes of an executable are given other kernels, switched off and on again. */
static void run_change(void)
{
    handle nodes[4], stream = new_stream(), graph = build(0, 1, 4, nodes), exec = instantiate(graph);
    struct kernel_node c = node_of(2, 40), a = node_of(0, 8);
    struct any_node any = {.type = 0, .kernel = node_of(2, 3)};
    replay(exec, stream, repeats);
    MUST(cuGraphExecKernelNodeSetParams_v2(exec, nodes[1], &c)); /* a c a b */
    replay(exec, stream, repeats);
    MUST(cuGraphNodeSetEnabled(exec, nodes[0], 0)); /* - c a b */
    replay(exec, stream, repeats);
    MUST(cuGraphNodeSetEnabled(exec, nodes[1], 0));       /* - - a b */
    MUST(cuGraphExecNodeSetParams(exec, nodes[2], &any)); /* - - c b */
    replay(exec, stream, repeats);
    MUST(cuGraphNodeSetEnabled(exec, nodes[0], 1)); /* a - c b */
    MUST(cuGraphNodeSetEnabled(exec, nodes[1], 1)); /* a c c b */
    replay(exec, stream, repeats);
    for (int i = 0; i < repeats * 20; i++) { /* there and back, a thousand times */
        MUST(cuGraphExecKernelNodeSetParams_v2(exec, nodes[3], i & 1 ? &c : &a));
        MUST(cuGraphLaunch(exec, stream));
    }
    MUST(cuStreamSynchronize(stream));
}

static void run_large(void)
{
    handle stream = new_stream(), graph = build(0, 1, 5000, NULL), exec = instantiate(graph);
    replay(exec, stream, repeats);
}

/* Executables come and go, at the addresses of those before them. */
static void run_churn(void)
{
    handle stream = new_stream(),
           graphs[3] = {build(0, 1, 3, NULL), build(1, 2, 5, NULL), build(2, 0, 4, NULL)};
    for (int i = 0; i < repeats * 200; i++) {
        handle exec = instantiate(graphs[i % 3]);
        MUST(cuGraphLaunch(exec, stream));
        if (i % 16 == 0)
            MUST(cuStreamSynchronize(stream));
        MUST(cuGraphExecDestroy(exec));
    }
}

/* What a capture forbids must fail as it does alone, and nothing else may. */
static void run_forbidden(void)
{
    handle stream = new_stream(), other = new_stream(), graph = NULL, event;
    address memory;
    int status = -1;
    MUST(cuEventCreate(&event, 0));
    for (int mode = 0; mode < 3; mode++) {
        MUST(launch(0, other));
        MUST(cuStreamBeginCapture_v2(stream, mode));
        printf("mode %d: launch %d", mode, launch(0, stream));
        printf(" allocate %d", cuMemAlloc_v2(&memory, 256));
        printf(" query %d", cuEventQuery(event));
        printf(" synchronize %d", cuStreamSynchronize(stream));
        printf(" capturing %d", cuStreamIsCapturing(stream, &status));
        printf(" %d", status);
        printf(" end %d\n", cuStreamEndCapture(stream, &graph));
        printf("again %d", cuStreamEndCapture(stream, &graph));
        printf(" synchronize %d\n", cuStreamSynchronize(other));
    }
}

static void *launch_elsewhere(void *argument)
{
    MUST(cuCtxSetCurrent(context));
    replay(argument, new_stream(), repeats);
    return NULL;
}

/* Made in one thread, launched in another. */
static void run_elsewhere(void)
{
    handle graph = build(0, 1, 8, NULL), exec = instantiate(graph), stream = new_stream();
    pthread_t thread;
    replay(exec, stream, repeats);
    pthread_create(&thread, NULL, launch_elsewhere, exec);
    pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } ways[] = {{"capture", run_capture}, {"threads", run_threads},     {"build", run_build},
                {"update", run_update},   {"change", run_change},       {"large", run_large},
                {"churn", run_churn},     {"forbidden", run_forbidden}, {"elsewhere", run_elsewhere}};
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (argc < 2 || !library) {
        fprintf(stderr, "cuda_graphs: %s\n", library ? "which way?" : dlerror());
        return 2;
    }
    if (argc > 2)
        repeats = atoi(argv[2]);
#define X(symbol, parameters)                                                                                \
    {                                                                                                        \
        void *found = dlsym(library, #symbol);                                                               \
        if (!found) {                                                                                        \
            fprintf(stderr, "cuda_graphs: no %s\n", #symbol);                                                \
            return 4;                                                                                        \
        }                                                                                                    \
        memcpy(&symbol, &found, sizeof(found));                                                              \
    }
    FUNCTIONS(X)
#undef X
    handle module;
    MUST(cuInit(0));
    MUST(cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cuCtxSetCurrent(context));
    MUST(cuModuleLoadData(&module, image));
    for (int k = 0; k < 3; k++)
        MUST(cuModuleGetFunction(&kernels[k], module, names[k]));
    int status = 2;
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++)
        if (!strcmp(argv[1], ways[i].name))
            ways[i].run(), status = 0;
    MUST(cuCtxSynchronize());
    MUST(cuDevicePrimaryCtxRelease_v2(0));
    printf("%s %d\n", argv[1], status);
    return status;
}
