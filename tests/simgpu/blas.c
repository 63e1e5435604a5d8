/* SPDX-License-Identifier: Apache-2.0
 *
 * blas.c - libsimblas.so, to be preloaded where NVIDIA's cuBLAS refuses the simulated device (its heuristics
 * do, see
 * ../shared/lab): the products of matrices, each of which launches one kernel of a telling name on the
 * caller's stream. Everything else stays NVIDIA's. Public ABI of cublas_v2.h and cublasLt.h; types that only
 * pass through are pointers and ints.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
typedef struct handle *handle;
enum { SUCCESS = 0, EXECUTION_FAILED = 13, TILE = 128 };

static int (*load)(handle *module, const void *image);
static int (*get_function)(handle *function, handle module, const char *name);
static int (*launch)(handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                     unsigned bz, unsigned shared, handle stream, void **params, void **extra);
static int (*get_stream)(handle blas, handle *ret_stream);
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct kernel {
    const char *name;
    handle function;
} kernels[64];
static handle module;

static void find_driver(void)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    *(void **)&load = dlsym(driver, "cuModuleLoadData");
    *(void **)&get_function = dlsym(driver, "cuModuleGetFunction");
    *(void **)&launch = dlsym(driver, "cuLaunchKernel");
    *(void **)&get_stream = dlsym(RTLD_DEFAULT, "cublasGetStream_v2");
    if (!get_stream) { /* loaded by a library with a scope of its own */
        void *blas = dlopen("libcublas.so.12", RTLD_LAZY | RTLD_NOLOAD);
        *(void **)&get_stream = blas ? dlsym(blas, "cublasGetStream_v2") : NULL;
    }
}

static handle kernel_of(const char *name)
{
    handle function = NULL;
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < 64 && kernels[i].name && strcmp(kernels[i].name, name))
        i++;
    if (i < 64 && !kernels[i].name && (module || !load(&module, "one kernel a call")) &&
        !get_function(&kernels[i].function, module, name))
        kernels[i].name = name;
    if (i < 64)
        function = kernels[i].function;
    pthread_mutex_unlock(&lock);
    return function;
}

static int product_on(handle stream, const char *name, int64_t m, int64_t n, int64_t batch)
{
    pthread_once(&once, find_driver);
    handle function = kernel_of(name);
    if (m <= 0 || n <= 0 || batch <= 0)
        return SUCCESS;
    unsigned gx = (unsigned)((m + TILE - 1) / TILE), gy = (unsigned)((n + TILE - 1) / TILE);
    return function && !launch(function, gx, gy, (unsigned)batch, 256, 1, 1, 0, stream, NULL, NULL)
               ? SUCCESS
               : EXECUTION_FAILED;
}

static int product(handle blas, const char *name, int64_t m, int64_t n, int64_t batch)
{
    handle stream = NULL;
    pthread_once(&once, find_driver);
    if (!get_stream || get_stream(blas, &stream))
        return EXECUTION_FAILED;
    return product_on(stream, name, m, n, batch);
}

typedef const void *in;
typedef void *out;
#define GEMM(T, letter)                                                                                      \
    API int cublas##T##gemm_v2(handle h, int ta, int tb, int m, int n, int k, in alpha, in a, int lda, in b, \
                               int ldb, in beta, out c, int ldc)                                             \
    {                                                                                                        \
        (void)ta, (void)tb, (void)k, (void)alpha, (void)a, (void)lda, (void)b, (void)ldb, (void)beta,        \
            (void)c, (void)ldc;                                                                              \
        return product(h, "simblas_" letter "gemm", m, n, 1);                                                \
    }                                                                                                        \
    API int cublas##T##gemmStridedBatched(handle h, int ta, int tb, int m, int n, int k, in alpha, in a,     \
                                          int lda, long long sa, in b, int ldb, long long sb, in beta,       \
                                          out c, int ldc, long long sc, int batch)                           \
    {                                                                                                        \
        (void)ta, (void)tb, (void)k, (void)alpha, (void)a, (void)lda, (void)sa, (void)b, (void)ldb,          \
            (void)sb;                                                                                        \
        (void)beta, (void)c, (void)ldc, (void)sc;                                                            \
        return product(h, "simblas_" letter "gemm_strided", m, n, batch);                                    \
    }                                                                                                        \
    API int cublas##T##gemmBatched(handle h, int ta, int tb, int m, int n, int k, in alpha, in a, int lda,   \
                                   in b, int ldb, in beta, out c, int ldc, int batch)                        \
    {                                                                                                        \
        (void)ta, (void)tb, (void)k, (void)alpha, (void)a, (void)lda, (void)b, (void)ldb, (void)beta,        \
            (void)c, (void)ldc;                                                                              \
        return product(h, "simblas_" letter "gemm_batched", m, n, batch);                                    \
    }                                                                                                        \
    API int cublas##T##gemv_v2(handle h, int t, int m, int n, in alpha, in a, int lda, in x, int incx,       \
                               in beta, out y, int incy)                                                     \
    {                                                                                                        \
        (void)t, (void)alpha, (void)a, (void)lda, (void)x, (void)incx, (void)beta, (void)y, (void)incy;      \
        return product(h, "simblas_" letter "gemv", m, n, 1);                                                \
    }
GEMM(S, "s")
GEMM(D, "d")
GEMM(C, "c")
GEMM(Z, "z")

API int cublasGemmEx(handle h, int ta, int tb, int m, int n, int k, in alpha, in a, int atype, int lda, in b,
                     int btype, int ldb, in beta, out c, int ctype, int ldc, int compute, int algo)
{
    (void)ta, (void)tb, (void)k, (void)alpha, (void)a, (void)atype, (void)lda, (void)b, (void)btype,
        (void)ldb;
    (void)beta, (void)c, (void)ctype, (void)ldc, (void)compute, (void)algo;
    return product(h, "simblas_gemm_ex", m, n, 1);
}
API int cublasSgemmEx(handle h, int ta, int tb, int m, int n, int k, in alpha, in a, int atype, int lda, in b,
                      int btype, int ldb, in beta, out c, int ctype, int ldc)
{
    (void)ta, (void)tb, (void)k, (void)alpha, (void)a, (void)atype, (void)lda, (void)b, (void)btype,
        (void)ldb;
    (void)beta, (void)c, (void)ctype, (void)ldc;
    return product(h, "simblas_sgemm_ex", m, n, 1);
}
API int cublasGemmStridedBatchedEx(handle h, int ta, int tb, int m, int n, int k, in alpha, in a, int atype,
                                   int lda, long long sa, in b, int btype, int ldb, long long sb, in beta,
                                   out c, int ctype, int ldc, long long sc, int batch, int compute, int algo)
{
    (void)ta, (void)tb, (void)k, (void)alpha, (void)a, (void)atype, (void)lda, (void)sa, (void)b, (void)btype,
        (void)ldb, (void)sb;
    (void)beta, (void)c, (void)ctype, (void)ldc, (void)sc, (void)compute, (void)algo;
    return product(h, "simblas_gemm_ex_strided", m, n, batch);
}

/* cublasLt: a layout's rows and columns are not looked at; the grid is that of one tile a hundred. */
struct heuristic { /* cublasLtMatmulHeuristicResult_t */
    uint64_t algo[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
API int cublasLtMatmulAlgoGetHeuristic(handle h, in desc, in a, in b, in c, in d, in preference, int wanted,
                                       struct heuristic *ret, int *ret_count)
{
    (void)h, (void)desc, (void)a, (void)b, (void)c, (void)d, (void)preference;
    *ret_count = wanted > 0;
    if (wanted > 0)
        memset(ret, 0, sizeof(*ret));
    return SUCCESS;
}
API int cublasLtMatmul(handle h, in desc, in alpha, in a, in alayout, in b, in blayout, in beta, in c,
                       in clayout, out d, in dlayout, in algo, out workspace, size_t bytes, handle stream)
{
    (void)h, (void)desc, (void)alpha, (void)a, (void)alayout, (void)b, (void)blayout, (void)beta, (void)c,
        (void)clayout;
    (void)d, (void)dlayout, (void)algo, (void)workspace, (void)bytes;
    return product_on(stream, "simblas_lt_matmul", 10 * TILE, 10 * TILE, 1);
}
