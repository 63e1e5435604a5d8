/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_graphs - CUDA graphs in every way that a program can make and change them, on the driver API alone.
 * Prints the result code of each call that may fail, so that a run beside somebody's tool can be compared
 * with a run without.
 *
 *     cuda_graphs WAY [REPEATS]      the ways are at the end
 */
#include "driver.h"

#include <pthread.h>
#include <string.h>

/* CUDA_MEMSET_NODE_PARAMS and CUgraphNodeParams of CUDA 12 */
struct memset_node {
    address to;
    size_t pitch;
    unsigned value, element;
    size_t width, height;
};
/* CUDA_MEMCPY3D */
struct copy_side {
    size_t x, y, z, lod;
    int type; /* 1 host, 2 device */
    void *host;
    address device;
    handle array, context;
    size_t pitch, height;
};
struct copy_node {
    struct copy_side from, to;
    size_t width, height, depth;
};
/* CUDA_MEMCPY_NODE_PARAMS and CUDA_CONDITIONAL_NODE_PARAMS */
struct any_node {
    int type, reserved0[3];
    union {
        long long reserved1[29];
        struct kernel_node kernel;
        struct memset_node fill;
        struct {
            int flags, reserved;
            handle context;
            struct copy_node copy;
        } memcpy;
        handle child;
        struct {
            address condition;
            int type;
            unsigned size;
            handle *bodies;
            handle context;
        } conditional;
    };
    long long reserved2;
};

static const char *const names[] = {"graph_a", "graph_b", "graph_c"};
static const char image[] = ".version 8.0\n.target sm_80\n.address_size 64\n"
                            ".visible .entry graph_a()\n{\n ret;\n}\n"
                            ".visible .entry graph_b()\n{\n ret;\n}\n"
                            ".visible .entry graph_c()\n{\n ret;\n}\n";
static handle context, kernels[3];
static int repeats = 50;

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

/* A capture on one stream: kernels by their letters. */
static handle record(handle stream, const char *letters)
{
    handle graph;
    MUST(cuStreamBeginCapture_v2(stream, 1));
    for (; *letters; letters++)
        MUST(launch(*letters - 'a', stream));
    MUST(cuStreamEndCapture(stream, &graph));
    return instantiate(graph);
}

static void replay_and_wait(handle exec, handle stream, int times)
{
    for (int i = 0; i < times; i++)
        replay(exec, stream, 1);
}

/* Kernels that never run outside of one graph. */
static void run_alone(void)
{
    handle stream = new_stream();
    replay_and_wait(record(stream, "abb"), stream, repeats);
}

/* The same in graphs that differ in how many of each they hold. */
static void run_differ(void)
{
    handle stream = new_stream(), one = record(stream, "ab"), two = record(stream, "abbbbbb"),
           more = record(stream, "aab");
    for (int i = 0; i < repeats; i++) {
        replay(one, stream, 1);
        replay(two, stream, 1);
        replay(more, stream, 1);
    }
}

/* One kernel of the graph runs outside of it, too. */
static void run_beside(void)
{
    handle stream = new_stream(), exec = record(stream, "acc");
    for (int i = 0; i < repeats; i++) {
        MUST(launch(2, stream));
        replay(exec, stream, 1);
    }
}

/* Outside of the graph the kernel is a small one. */
static void run_shapes(void)
{
    handle stream = new_stream(), node, after, graph;
    struct kernel_node large = node_of(0, 200000), other = node_of(1, 8);
    MUST(cuGraphCreate(&graph, 0));
    MUST(cuGraphAddKernelNode_v2(&after, graph, NULL, 0, &large));
    MUST(cuGraphAddKernelNode_v2(&node, graph, &after, 1, &other));
    handle exec = instantiate(graph);
    for (int i = 0; i < repeats; i++) {
        MUST(launch(0, stream));
        replay(exec, stream, 1);
    }
}

/* A kernel before and after bodies of kernel b, which run a number of times that the host does not see. */
static void run_conditional(void)
{
    handle stream = new_stream(), nodes[5], inner;
    struct kernel_node a = node_of(0, 16), b = node_of(1, 16), c = node_of(2, 16);
    handle graph;
    MUST(cuGraphCreate(&graph, 0));
    MUST(cuGraphAddKernelNode_v2(&nodes[0], graph, NULL, 0, &a));
    for (int type = 0; type < 3; type++) {
        struct any_node any = {.type = 13,
                               .conditional = {.type = type, .size = type == 1 ? 1 : 2, .context = context}};
        MUST(cuGraphConditionalHandleCreate(&any.conditional.condition, graph, context, 1, 1));
        MUST(cuGraphAddNode(&nodes[type + 1], graph, &nodes[type], 1, &any));
        for (unsigned body = 0; body < any.conditional.size; body++)
            MUST(cuGraphAddKernelNode_v2(&inner, any.conditional.bodies[body], NULL, 0, &b));
    }
    MUST(cuGraphAddKernelNode_v2(&nodes[4], graph, &nodes[3], 1, &c));
    handle exec = instantiate(graph);
    for (int i = 0; i < repeats; i++) {
        MUST(launch(0, stream));
        MUST(launch(2, stream));
        replay(exec, stream, 1);
    }
}

/* A graph in a graph: its nodes are changed one by one, then all of it, there and back. */
static void run_children(void)
{
    handle stream = new_stream(), graph = build(0, 1, 4, NULL), node, inside, own[8];
    handle first = build(1, 2, 6, NULL), second = build(2, 0, 5, NULL);
    struct kernel_node a = node_of(0, 8);
    size_t count = 8;
    MUST(cuGraphAddChildGraphNode(&node, graph, NULL, 0, first));
    MUST(cuGraphChildGraphNodeGetGraph(node, &inside));
    MUST(cuGraphGetNodes(inside, own, &count));
    handle exec = instantiate(graph);
    replay(exec, stream, repeats);
    MUST(cuGraphExecKernelNodeSetParams_v2(exec, own[1], &a));
    MUST(cuGraphNodeSetEnabled(exec, own[2], 0));
    replay(exec, stream, repeats);
    for (int i = 0; i < 20; i++) {
        struct any_node any = {.type = 4, .child = i & 1 ? first : second};
        if (i % 4 < 2)
            MUST(cuGraphExecChildGraphNodeSetParams(exec, node, any.child));
        else
            MUST(cuGraphExecNodeSetParams(exec, node, &any));
        replay(exec, stream, repeats);
    }
}

/* Copies and fills become others. */
static void run_copies(void)
{
    handle stream = new_stream(), graph, copy, fill;
    address here, there;
    void *host;
    MUST(cuMemAlloc_v2(&here, 1 << 20));
    MUST(cuMemAlloc_v2(&there, 1 << 20));
    MUST(cuMemAllocHost_v2(&host, 1 << 20));
    struct memset_node small = {.to = here, .element = 1, .width = 4096, .height = 1}, large = small;
    struct copy_node up = {.from = {.type = 1, .host = host}, .to = {.type = 2, .device = here}, 4096, 1, 1};
    struct copy_node down = {
        .from = {.type = 2, .device = here}, .to = {.type = 1, .host = host}, 8192, 1, 1};
    struct any_node across = {.type = 1}, wide = {.type = 2};
    across.memcpy.copy = (struct copy_node){
        .from = {.type = 2, .device = here}, .to = {.type = 2, .device = there}, 65536, 1, 1};
    large.width = 1 << 20;
    MUST(cuGraphCreate(&graph, 0));
    MUST(cuGraphAddMemcpyNode(&copy, graph, NULL, 0, &up, context));
    MUST(cuGraphAddMemsetNode(&fill, graph, &copy, 1, &small, context));
    handle exec = instantiate(graph);
    replay(exec, stream, repeats);
    MUST(cuGraphExecMemcpyNodeSetParams(exec, copy, &down, context));
    MUST(cuGraphExecMemsetNodeSetParams(exec, fill, &large, context));
    replay(exec, stream, repeats);
    wide.fill = small;
    MUST(cuGraphExecNodeSetParams(exec, copy, &across));
    MUST(cuGraphExecNodeSetParams(exec, fill, &wide));
    replay(exec, stream, repeats);
}

/* The graph is edited after the executable was made of it, so that it no longer tells what that runs. */
static void run_edited(void)
{
    handle nodes[4], stream = new_stream(), graph = build(0, 1, 4, nodes), exec = instantiate(graph);
    struct kernel_node b = node_of(1, 9), c = node_of(2, 8);
    replay(exec, stream, repeats);
    MUST(cuGraphKernelNodeSetParams_v2(nodes[0], &b));           /* of the graph: b b a b */
    MUST(cuGraphExecKernelNodeSetParams_v2(exec, nodes[0], &c)); /* of the executable: c b a b */
    replay(exec, stream, repeats);
    handle other = instantiate(graph);
    replay(other, stream, repeats);
}

/* Each round another graph: more of them than a kernel has shapes of its own. */
static void run_many(void)
{
    handle stream = new_stream();
    for (int i = 0; i < repeats * 20; i++) {
        struct kernel_node kernel = node_of(0, 8u + (unsigned)i);
        handle graph, node;
        MUST(cuGraphCreate(&graph, 0));
        MUST(cuGraphAddKernelNode_v2(&node, graph, NULL, 0, &kernel));
        handle exec = instantiate(graph);
        replay(exec, stream, 2);
        MUST(cuGraphExecDestroy(exec));
        MUST(cuGraphDestroy(graph));
    }
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } ways[] = {{"capture", run_capture}, {"threads", run_threads},         {"build", run_build},
                {"update", run_update},   {"change", run_change},           {"large", run_large},
                {"churn", run_churn},     {"forbidden", run_forbidden},     {"elsewhere", run_elsewhere},
                {"alone", run_alone},     {"differ", run_differ},           {"beside", run_beside},
                {"shapes", run_shapes},   {"conditional", run_conditional}, {"children", run_children},
                {"copies", run_copies},   {"edited", run_edited},           {"many", run_many}};
    if (argc < 2) {
        fprintf(stderr, "cuda_graphs: which way?\n");
        return 2;
    }
    if (argc > 2)
        repeats = atoi(argv[2]);
    driver_find();
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
