/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_launch.c - kernels and copies onto streams.
 */
#include "cuda_sim.h"

static uint32_t graph_of(CUgraphNode node)
{
    return node ? node->graph->id : 0;
}

/* dependent: it may begin before the kernel ahead of it on the stream has ended, where nothing is between. */
static CUresult run_kernel(CUstream stream, const CUDA_KERNEL_NODE_PARAMS_v2 *p, CUgraphNode node,
                           bool dependent)
{
    CUfunction function = p->func ? p->func : (CUfunction)p->kern;
    int device = stream->context->device;
    uint32_t kernel = atomic_load_explicit(&function->kernel[device], memory_order_relaxed);
    if (!kernel) {
        kernel = sim_kernel_find(device, function->name, false) + 1;
        atomic_store_explicit(&function->kernel[device], kernel, memory_order_relaxed);
    }
    uint64_t blocks = (uint64_t)p->gridDimX * p->gridDimY * p->gridDimZ, start_ns;
    uint64_t from_ns = sim_stream_start(stream);
    uint64_t ahead_ns = dependent && stream->kernel_end_ns == from_ns ? stream->kernel_ns : 0;
    uint64_t end_ns = sim_work(device, kernel - 1, from_ns, ahead_ns, blocks, 0, node != NULL, &start_ns);
    sim_stream_end(stream, end_ns);
    stream->kernel_ns = end_ns - start_ns;
    stream->kernel_end_ns = end_ns;
    sim_trace(stream, (struct sim_trace_work){.name = function->name,
                                              .graph = graph_of(node),
                                              .node = (uintptr_t)node,
                                              .start_ns = start_ns,
                                              .end_ns = end_ns,
                                              .grid = {p->gridDimX, p->gridDimY, p->gridDimZ},
                                              .block = {p->blockDimX, p->blockDimY, p->blockDimZ},
                                              .shared = p->sharedMemBytes});
    return CUDA_SUCCESS;
}

CUresult sim_run_kernel(CUstream stream, const CUDA_KERNEL_NODE_PARAMS_v2 *p, CUgraphNode node)
{
    return run_kernel(stream, p, node, node->dependent);
}

CUresult sim_run_copy(CUstream stream, const char *activity, uint64_t bytes, CUgraphNode node)
{
    int device = stream->context->device;
    uint32_t kernel = sim_kernel_find(device, activity, true);
    uint64_t start_ns,
        end_ns = sim_work(device, kernel, sim_stream_start(stream), 0, 0, bytes, node != NULL, &start_ns);
    sim_stream_end(stream, end_ns);
    sim_trace(stream, (struct sim_trace_work){.name = activity,
                                              .copy = true,
                                              .graph = graph_of(node),
                                              .node = (uintptr_t)node,
                                              .start_ns = start_ns,
                                              .end_ns = end_ns,
                                              .bytes = bytes});
    return CUDA_SUCCESS;
}

/* Not of CUDA: a test's program says what its next launches are for. */
API void simgpu_mark(const char *name);
API void simgpu_mark(const char *name)
{
    sim_mark_set(name);
}

struct shape {
    unsigned grid[3], block[3];
    bool dependent;
};

static bool is_dependent(const CUlaunchConfig *config)
{
    const CUlaunchAttribute *attributes = config->attrs;
    for (unsigned i = 0; i < config->numAttrs; i++)
        if (attributes[i].id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION)
            return attributes[i].value.programmaticStreamSerializationAllowed != 0;
    return false;
}

static CUresult launch(CUfunction function, const struct shape *s, unsigned shared, CUstream handle,
                       void **params, void **extra, int lane)
{
    CUresult rc;
    CUstream stream = sim_stream(handle, lane, &rc);
    if (!stream)
        return rc;
    if (!sim_valid(function, SIM_FUNCTION))
        return CUDA_ERROR_INVALID_HANDLE;
    uint64_t threads = (uint64_t)s->block[0] * s->block[1] * s->block[2];
    uint64_t blocks = (uint64_t)s->grid[0] * s->grid[1] * s->grid[2];
    if (!blocks || !threads || threads > 1024 || shared > 232448)
        return CUDA_ERROR_INVALID_VALUE;
    const CUDA_KERNEL_NODE_PARAMS_v2 kernel = {.func = function,
                                               .gridDimX = s->grid[0],
                                               .gridDimY = s->grid[1],
                                               .gridDimZ = s->grid[2],
                                               .blockDimX = s->block[0],
                                               .blockDimY = s->block[1],
                                               .blockDimZ = s->block[2],
                                               .sharedMemBytes = shared,
                                               .kernelParams = params,
                                               .extra = extra};
    if (sim_capturing(stream, &rc)) {
        CUgraphNode node = rc ? NULL : sim_capture_add(stream, NODE_KERNEL);
        if (node)
            node->kernel = kernel, node->dependent = s->dependent;
        return rc;
    }
    return run_kernel(stream, &kernel, NULL, s->dependent);
}

#define GRID                                                                                                 \
    CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,              \
        unsigned shared, CUstream s, void **params
#define SHAPE                                                                                                \
    &(struct shape)                                                                                          \
    {                                                                                                        \
        {gx, gy, gz},                                                                                        \
        {                                                                                                    \
            bx, by, bz                                                                                       \
        }                                                                                                    \
    }
#define LAUNCH(symbol, lane)                                                                                 \
    API CUresult symbol(GRID, void **extra)                                                                  \
    {                                                                                                        \
        CALLED(symbol);                                                                                      \
        return launch(f, SHAPE, shared, s, params, extra, lane);                                             \
    }
#define LAUNCH_COOPERATIVE(symbol, lane)                                                                     \
    API CUresult symbol(GRID)                                                                                \
    {                                                                                                        \
        CALLED(symbol);                                                                                      \
        return launch(f, SHAPE, shared, s, params, NULL, lane);                                              \
    }
#define LAUNCH_EX(symbol, lane)                                                                              \
    API CUresult symbol(const CUlaunchConfig *c, CUfunction f, void **params, void **extra)                  \
    {                                                                                                        \
        CALLED(symbol);                                                                                      \
        const struct shape shape = {{c->gridDimX, c->gridDimY, c->gridDimZ},                                 \
                                    {c->blockDimX, c->blockDimY, c->blockDimZ},                              \
                                    is_dependent(c)};                                                        \
        return launch(f, &shape, c->sharedMemBytes, c->hStream, params, extra, lane);                        \
    }
LAUNCH(cuLaunchKernel, 0)
LAUNCH(cuLaunchKernel_ptsz, 1)
LAUNCH_COOPERATIVE(cuLaunchCooperativeKernel, 0)
LAUNCH_COOPERATIVE(cuLaunchCooperativeKernel_ptsz, 1)
LAUNCH_EX(cuLaunchKernelEx, 0)
LAUNCH_EX(cuLaunchKernelEx_ptsz, 1)

/* ---- the launches of CUDA 1: the shape is the function's
 * ----------------------------------------------------------------- */

static __thread struct {
    CUfunction function;
    unsigned block[3];
} shaped;

API CUresult cuFuncSetBlockShape(CUfunction f, int x, int y, int z)
{
    shaped.function = f;
    shaped.block[0] = (unsigned)x, shaped.block[1] = (unsigned)y, shaped.block[2] = (unsigned)z;
    return CUDA_SUCCESS;
}

static CUresult launch_old(CUfunction f, int width, int height, CUstream s)
{
    struct shape shape = {{(unsigned)width, (unsigned)height, 1}, {1, 1, 1}};
    for (int i = 0; i < 3 && shaped.function == f; i++)
        shape.block[i] = shaped.block[i];
    return launch(f, &shape, 0, s, NULL, NULL, 0);
}

API CUresult cuLaunch(CUfunction f)
{
    CALLED(cuLaunch);
    return launch_old(f, 1, 1, NULL);
}
API CUresult cuLaunchGrid(CUfunction f, int width, int height)
{
    CALLED(cuLaunchGrid);
    return launch_old(f, width, height, NULL);
}
API CUresult cuLaunchGridAsync(CUfunction f, int width, int height, CUstream s)
{
    CALLED(cuLaunchGridAsync);
    return launch_old(f, width, height, s);
}

API CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *list, unsigned count, unsigned flags)
{
    (void)flags;
    CALLED(cuLaunchCooperativeKernelMultiDevice);
    for (unsigned i = 0; i < count; i++) {
        const CUDA_LAUNCH_PARAMS *p = &list[i];
        const struct shape shape = {{p->gridDimX, p->gridDimY, p->gridDimZ},
                                    {p->blockDimX, p->blockDimY, p->blockDimZ}};
        CUresult rc = launch(p->function, &shape, p->sharedMemBytes, p->hStream, p->kernelParams, NULL, 0);
        if (rc)
            return rc;
    }
    return CUDA_SUCCESS;
}
