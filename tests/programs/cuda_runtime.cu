/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_runtime - the same kind of program on the CUDA runtime, compiled by nvcc: static cudart, shared
 * cudart, and with
 * --default-stream per-thread. Knows nothing of kjoule. Prints how often it launched each kernel.
 *
 *     cuda_runtime [STEPS [THREADS [EXIT_STATUS]]]
 */
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

template <typename T> __global__ void scale(T *values, T by, int count)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count)
        values[i] *= by;
}

namespace layer
{
__global__ void forward(float *out, const float *in, int count)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count)
        out[i] += in[i];
}
} // namespace layer

static void must(cudaError_t rc, const char *what)
{
    if (rc != cudaSuccess) {
        std::fprintf(stderr, "cuda_runtime: %s: %s\n", what, cudaGetErrorString(rc));
        std::_Exit(3);
    }
}

static void train(int steps)
{
    const int count = 1 << 16;
    std::vector<float> host(count, 1.0f);
    float *in, *out;
    cudaStream_t stream;
    must(cudaMalloc(&in, count * sizeof(float)), "cudaMalloc");
    must(cudaMalloc(&out, count * sizeof(float)), "cudaMalloc");
    must(cudaStreamCreate(&stream), "cudaStreamCreate");
    for (int step = 0; step < steps; step++) {
        must(cudaMemcpyAsync(in, host.data(), count * sizeof(float), cudaMemcpyHostToDevice, stream),
             "cudaMemcpyAsync");
        layer::forward<<<count / 256, 256, 0, stream>>>(out, in, count);
        scale<float><<<count / 256, 256, 0, stream>>>(out, 0.5f, count);
        if (step % 2 == 0)
            scale<int><<<8, 128>>>(reinterpret_cast<int *>(out), 3, 1024); /* the default stream */
        must(cudaGetLastError(), "launch");
        must(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    }
    must(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    must(cudaFree(in), "cudaFree");
    must(cudaFree(out), "cudaFree");
    must(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

int main(int argc, char **argv)
{
    int steps = argc > 1 ? std::atoi(argv[1]) : 50, threads = argc > 2 ? std::atoi(argv[2]) : 1;
    int devices = 0;
    must(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
    std::vector<std::thread> workers;
    for (int t = 1; t < threads; t++)
        workers.emplace_back(train, steps);
    train(steps);
    for (std::thread &worker : workers)
        worker.join();
    std::printf("devices %d forward %d scale_float %d scale_int %d\n", devices, steps * threads,
                steps * threads, (steps + 1) / 2 * threads);
    return argc > 3 ? std::atoi(argv[3]) : 0;
}
