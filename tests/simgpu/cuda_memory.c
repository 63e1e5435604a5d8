/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_memory.c - device memory is host memory, so copies really copy; the bytes move at the call, the time
 * passes on the stream. Kernels compute nothing, so nobody can tell.
 */
#include "cuda_sim.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct allocation {
    char *start;
    size_t size;
    int device;
    int kind;        /* CUmemorytype: 1 host, pinned; 2 device */
    bool registered; /* pinned where it was: the program's own */
    struct allocation *next;
};
enum { BUCKETS = 4096 };
static struct allocation *buckets[BUCKETS]; /* by start address */
static uint64_t filled[BUCKETS / 64];       /* one bit a bucket that ever held something */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t bucket_of(const void *start)
{
    return ((uintptr_t)start * 0x9e3779b97f4a7c15ULL) >> 52;
}

static bool remember(struct allocation what)
{
    struct allocation *a = malloc(sizeof(*a));
    if (!a)
        return false;
    *a = what;
    pthread_mutex_lock(&lock);
    a->next = buckets[bucket_of(a->start)];
    buckets[bucket_of(a->start)] = a;
    filled[bucket_of(a->start) / 64] |= 1ULL << bucket_of(a->start) % 64;
    pthread_mutex_unlock(&lock);
    return true;
}

static void *allocate(size_t size, int kind)
{
    CUcontext context = sim_current();
    size_t rounded = (size + 4095) & ~(size_t)4095;
    void *map = mmap(NULL, rounded ? rounded : 4096, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    const struct allocation made = {.start = map,
                                    .size = rounded ? rounded : 4096,
                                    .device = context ? context->device : 0,
                                    .kind = kind};
    if (!remember(made)) {
        munmap(map, made.size);
        return NULL;
    }
    if (kind == 2)
        __atomic_fetch_add(&sim_machine()->device[made.device].memory_used, made.size, __ATOMIC_RELAXED);
    return map;
}

static CUresult release(void *start)
{
    if (!start)
        return CUDA_SUCCESS;
    struct allocation *found = NULL;
    pthread_mutex_lock(&lock);
    for (struct allocation **p = &buckets[bucket_of(start)]; *p; p = &(*p)->next)
        if ((*p)->start == start) {
            found = *p;
            *p = found->next;
            break;
        }
    pthread_mutex_unlock(&lock);
    if (!found)
        return CUDA_ERROR_INVALID_VALUE;
    if (!found->registered)
        munmap(found->start, found->size);
    if (found->kind == 2)
        __atomic_fetch_sub(&sim_machine()->device[found->device].memory_used, found->size, __ATOMIC_RELAXED);
    free(found);
    return CUDA_SUCCESS;
}

static bool find(const void *address, struct allocation *ret)
{
    bool known = false;
    pthread_mutex_lock(&lock);
    for (size_t b = 0; b < BUCKETS && !known; b++) {
        if (!(filled[b / 64] >> b % 64)) { /* nor the rest of these 64 */
            b |= 63;
            continue;
        }
        for (struct allocation *a = buckets[b]; a && !known; a = a->next)
            if ((const char *)address >= a->start && (const char *)address < a->start + a->size) {
                *ret = *a;
                known = true;
            }
    }
    pthread_mutex_unlock(&lock);
    return known;
}

static CUresult device_allocate(CUdeviceptr *ret, size_t size)
{
    NEED_READY();
    if (!sim_valid(sim_current(), SIM_CONTEXT))
        return CUDA_ERROR_INVALID_CONTEXT;
    *ret = (CUdeviceptr)(uintptr_t)allocate(size, 2);
    return *ret ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

API CUresult cuMemAlloc_v2(CUdeviceptr *ret, size_t size)
{
    CALLED(cuMemAlloc_v2);
    CUresult rc = sim_unsafe();
    if (rc)
        return rc;
    return size ? device_allocate(ret, size) : CUDA_ERROR_INVALID_VALUE;
}

API CUresult cuMemAllocPitch_v2(CUdeviceptr *ret, size_t *pitch, size_t width, size_t height,
                                unsigned element)
{
    (void)element;
    *pitch = (width + 511) & ~(size_t)511;
    return device_allocate(ret, *pitch * height);
}

API CUresult cuMemAllocManaged(CUdeviceptr *ret, size_t size, unsigned flags)
{
    (void)flags;
    return device_allocate(ret, size);
}

API CUresult cuMemFree_v2(CUdeviceptr pointer)
{
    CALLED(cuMemFree_v2);
    if (atomic_load(&sim_torn_down))
        return CUDA_ERROR_DEINITIALIZED;
    return release((void *)(uintptr_t)pointer);
}

API CUresult cuMemHostAlloc(void **ret, size_t size, unsigned flags)
{
    (void)flags;
    *ret = allocate(size, 1);
    return *ret ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
API CUresult cuMemAllocHost_v2(void **ret, size_t size)
{
    return cuMemHostAlloc(ret, size, 0);
}
API CUresult cuMemFreeHost(void *pointer)
{
    return release(pointer);
}
API CUresult cuMemHostRegister_v2(void *pointer, size_t size, unsigned flags)
{
    (void)flags;
    const struct allocation made = {.start = pointer, .size = size, .kind = 1, .registered = true};
    return remember(made) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
API CUresult cuMemHostUnregister(void *pointer)
{
    release(pointer);
    return CUDA_SUCCESS;
}
API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *ret, void *pointer, unsigned flags)
{
    (void)flags;
    *ret = (CUdeviceptr)(uintptr_t)pointer;
    return CUDA_SUCCESS;
}
API CUresult cuMemHostGetFlags(unsigned *flags, void *pointer)
{
    (void)pointer;
    *flags = 0;
    return CUDA_SUCCESS;
}

API CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    CUcontext context = sim_current();
    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    *total = (size_t)80 << 30;
    *free_bytes = *total - sim_machine()->device[context->device].memory_used;
    return CUDA_SUCCESS;
}

API CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr pointer)
{
    struct allocation a;
    if (!find((void *)(uintptr_t)pointer, &a))
        return CUDA_ERROR_INVALID_VALUE;
    if (base)
        *base = (CUdeviceptr)(uintptr_t)a.start;
    if (size)
        *size = a.size;
    return CUDA_SUCCESS;
}

static CUresult pointer_attribute(void *value, int attribute, CUdeviceptr pointer)
{
    struct allocation a;
    bool known = find((void *)(uintptr_t)pointer, &a);
    switch (attribute) {
    case 1: { /* context */
        void *context = NULL;
        if (known && a.kind == 2)
            sim_primary((CUcontext *)&context, a.device, false);
        *(void **)value = context;
        break;
    }
    case 2: /* memory type */
        if (!known)
            return CUDA_ERROR_INVALID_VALUE;
        *(unsigned *)value = (unsigned)a.kind;
        break;
    case 3:
    case 4: /* device, host pointer */
        *(void **)value = (void *)(uintptr_t)pointer;
        break;
    case 7: /* buffer id */
        *(uint64_t *)value = known ? (uintptr_t)a.start >> 12 : 0;
        break;
    case 8: /* managed */
        *(int *)value = 0;
        break;
    case 9: /* device ordinal */
        *(int *)value = known ? a.device : -2;
        break;
    case 11: /* range start */
        *(void **)value = known ? a.start : NULL;
        break;
    case 12: /* range size */
        *(size_t *)value = known ? a.size : 0;
        break;
    default:
        *(int *)value = 0;
    }
    return CUDA_SUCCESS;
}

API CUresult cuPointerGetAttribute(void *value, int attribute, CUdeviceptr pointer)
{
    return pointer_attribute(value, attribute, pointer);
}

API CUresult cuPointerGetAttributes(unsigned count, int *attributes, void **values, CUdeviceptr pointer)
{
    for (unsigned i = 0; i < count; i++)
        if (pointer_attribute(values[i], attributes[i], pointer))
            *(unsigned *)values[i] = 0;
    return CUDA_SUCCESS;
}

API CUresult cuPointerSetAttribute(const void *value, int attribute, CUdeviceptr pointer)
{
    (void)value, (void)attribute, (void)pointer;
    return CUDA_SUCCESS;
}

/* ---- stream-ordered allocation
 * ------------------------------------------------------------------------------------------ */

static CUresult alloc_async(CUdeviceptr *ret, size_t size, CUstream handle, int lane)
{
    CUresult rc;
    CUstream stream = sim_stream(handle, lane, &rc);
    return stream ? device_allocate(ret, size ? size : 1) : rc;
}

static char the_pool[64] = "pool";
API CUresult cuDeviceGetDefaultMemPool(void **pool, CUdevice device)
{
    (void)device;
    *pool = the_pool;
    return CUDA_SUCCESS;
}
API CUresult cuDeviceGetMemPool(void **pool, CUdevice device)
{
    return cuDeviceGetDefaultMemPool(pool, device);
}
API CUresult cuDeviceSetMemPool(CUdevice device, void *pool)
{
    (void)device, (void)pool;
    return CUDA_SUCCESS;
}
API CUresult cuMemPoolCreate(void **pool, const void *properties)
{
    (void)properties;
    *pool = the_pool;
    return CUDA_SUCCESS;
}
API CUresult cuMemPoolDestroy(void *pool)
{
    (void)pool;
    return CUDA_SUCCESS;
}
API CUresult cuMemPoolSetAttribute(void *pool, int attribute, void *value)
{
    (void)pool, (void)attribute, (void)value;
    return CUDA_SUCCESS;
}
API CUresult cuMemPoolGetAttribute(void *pool, int attribute, void *value)
{
    (void)pool, (void)attribute;
    *(uint64_t *)value = 0;
    return CUDA_SUCCESS;
}
API CUresult cuMemPoolSetAccess(void *pool, const void *map, size_t count)
{
    (void)pool, (void)map, (void)count;
    return CUDA_SUCCESS;
}
API CUresult cuMemPoolTrimTo(void *pool, size_t keep)
{
    (void)pool, (void)keep;
    return CUDA_SUCCESS;
}

/* ---- copies and fills
 * ------------------------------------------------------------------------------------------------------ */

void sim_copy_bytes(void *to, const void *from, size_t bytes)
{
    memmove(to, from, bytes);
}

struct copy {
    void *to;
    const void *from;
    uint64_t bytes;
    const char *activity;
    uint32_t value, element; /* fill: element bytes, 0 for a copy */
    bool moved;              /* the bytes are where they belong */
};

static void perform(const struct copy *c)
{
    if (c->moved)
        return;
    if (!c->element)
        memmove(c->to, c->from, c->bytes);
    else if (c->element == 1)
        memset(c->to, (int)c->value, c->bytes);
    else
        for (uint64_t i = 0; i < c->bytes; i += c->element)
            memcpy((char *)c->to + i, &c->value, c->element);
}

/* What the host waits for: CUDA Driver API, "API synchronization behavior". Where the text says "may", it
 * does. */
#define STAGED_BYTES (64 << 10)
enum wait { WAIT_NOT, WAIT_BEFORE /* what was queued before the copy */, WAIT_DONE };

static enum wait copy_waits(const struct copy *c, bool sync)
{
    if (sim_machine()->script.copies_wait > 0)
        return sync ? WAIT_DONE : WAIT_NOT;
    struct allocation to, from;
    bool to_known = find(c->to, &to), from_known = c->element || find(c->from, &from);
    bool to_device = to_known && to.kind == 2, from_device = !c->element && from_known && from.kind == 2;
    if (c->element) /* a fill: of device memory, asynchronous even where it has no stream */
        return sync && to_known && to.kind == 1 ? WAIT_DONE : WAIT_NOT;
    if (to_device && from_device)
        return WAIT_NOT;
    if (to_device && !from_known) /* pageable: staged first, the rest of it when there is room */
        return c->bytes <= STAGED_BYTES ? WAIT_NOT : sync ? WAIT_DONE : WAIT_BEFORE;
    return sync || !to_known || !from_known ? WAIT_DONE : WAIT_NOT;
}

static CUresult enqueue(const struct copy *c, CUstream handle, int lane, bool sync)
{
    CUresult rc;
    CUstream stream = sim_stream(handle, lane, &rc);
    if (!stream)
        return rc;
    if (c->bytes && !c->to)
        return CUDA_ERROR_INVALID_VALUE;
    if (sim_capturing(stream, &rc)) {
        CUgraphNode node = rc ? NULL : sim_capture_add(stream, c->element ? NODE_MEMSET : NODE_MEMCPY);
        if (node) {
            node->bytes = c->bytes;
            node->activity = c->activity;
            node->copy[0] = c->to;
            node->copy[1] = (void *)(uintptr_t)c->from;
            node->value = c->value;
            node->element = c->element;
        }
        return rc;
    }
    enum wait wait = copy_waits(c, sync);
    if (wait == WAIT_BEFORE)
        sim_stream_wait(stream);
    perform(c);
    rc = sim_run_copy(stream, c->activity, c->bytes, NULL);
    return !rc && wait == WAIT_DONE ? sim_stream_wait(stream) : rc;
}

static CUresult copy_now(const struct copy *c, int lane)
{
    CUresult rc = sim_unsafe();
    return rc ? rc : enqueue(c, NULL, lane, true);
}

#define HTOD "[memcpy HtoD]"
#define DTOH "[memcpy DtoH]"
#define DTOD "[memcpy DtoD]"
#define ANY  "[memcpy]"
#define FILL "[memset]"
#define P(x) ((void *)(uintptr_t)(x))

/* name, suffixes of both lanes, parameters, what is copied; async ones end in (.., s) */
#define COPY_SYNC(name, v, params, ...)                                                                      \
    API CUresult name##v params                                                                              \
    {                                                                                                        \
        CALLED(name##v);                                                                                     \
        return copy_now(&(struct copy)__VA_ARGS__, 0);                                                       \
    }                                                                                                        \
    API CUresult name##v##_ptds params                                                                       \
    {                                                                                                        \
        CALLED(name##v##_ptds);                                                                              \
        return copy_now(&(struct copy)__VA_ARGS__, 1);                                                       \
    }
#define COPY_ASYNC(name, v, params, ...)                                                                     \
    API CUresult name##v params                                                                              \
    {                                                                                                        \
        CALLED(name##v);                                                                                     \
        return enqueue(&(struct copy)__VA_ARGS__, s, 0, false);                                              \
    }                                                                                                        \
    API CUresult name##v##_ptsz params                                                                       \
    {                                                                                                        \
        CALLED(name##v##_ptsz);                                                                              \
        return enqueue(&(struct copy)__VA_ARGS__, s, 1, false);                                              \
    }

COPY_SYNC(cuMemcpy, , (CUdeviceptr d, CUdeviceptr f, size_t n), {P(d), P(f), n, ANY, 0, 0, false})
COPY_SYNC(cuMemcpyHtoD, _v2, (CUdeviceptr d, const void *f, size_t n), {P(d), f, n, HTOD, 0, 0, false})
COPY_SYNC(cuMemcpyDtoH, _v2, (void *d, CUdeviceptr f, size_t n), {d, P(f), n, DTOH, 0, 0, false})
COPY_SYNC(cuMemcpyDtoD, _v2, (CUdeviceptr d, CUdeviceptr f, size_t n), {P(d), P(f), n, DTOD, 0, 0, false})
COPY_SYNC(cuMemsetD8, _v2, (CUdeviceptr d, unsigned char v, size_t n), {P(d), NULL, n, FILL, v, 1, false})
COPY_SYNC(cuMemsetD16, _v2, (CUdeviceptr d, unsigned short v, size_t n),
          {P(d), NULL, n * 2, FILL, v, 2, false})
COPY_SYNC(cuMemsetD32, _v2, (CUdeviceptr d, unsigned v, size_t n), {P(d), NULL, n * 4, FILL, v, 4, false})
COPY_ASYNC(cuMemcpyAsync, , (CUdeviceptr d, CUdeviceptr f, size_t n, CUstream s),
           {P(d), P(f), n, ANY, 0, 0, false})
COPY_ASYNC(cuMemcpyHtoDAsync, _v2, (CUdeviceptr d, const void *f, size_t n, CUstream s),
           {P(d), f, n, HTOD, 0, 0, false})
COPY_ASYNC(cuMemcpyDtoHAsync, _v2, (void *d, CUdeviceptr f, size_t n, CUstream s),
           {d, P(f), n, DTOH, 0, 0, false})
COPY_ASYNC(cuMemcpyDtoDAsync, _v2, (CUdeviceptr d, CUdeviceptr f, size_t n, CUstream s),
           {P(d), P(f), n, DTOD, 0, 0, false})
COPY_ASYNC(cuMemcpyPeerAsync, ,
           (CUdeviceptr d, CUcontext dc, CUdeviceptr f, CUcontext fc, size_t n, CUstream s),
           {((void)dc, (void)fc, P(d)), P(f), n, ANY, 0, 0, false})
COPY_ASYNC(cuMemsetD8Async, , (CUdeviceptr d, unsigned char v, size_t n, CUstream s),
           {P(d), NULL, n, FILL, v, 1, false})
COPY_ASYNC(cuMemsetD16Async, , (CUdeviceptr d, unsigned short v, size_t n, CUstream s),
           {P(d), NULL, n * 2, FILL, v, 2, false})
COPY_ASYNC(cuMemsetD32Async, , (CUdeviceptr d, unsigned v, size_t n, CUstream s),
           {P(d), NULL, n * 4, FILL, v, 4, false})

LANES(cuMemAllocAsync, _ptsz, (CUdeviceptr * p, size_t n, CUstream s), alloc_async(p, n, s, 0),
      alloc_async(p, n, s, 1))
LANES(cuMemAllocFromPoolAsync, _ptsz, (CUdeviceptr * p, size_t n, void *pool, CUstream s),
      ((void)pool, alloc_async(p, n, s, 0)), ((void)pool, alloc_async(p, n, s, 1)))
LANES(cuMemFreeAsync, _ptsz, (CUdeviceptr p, CUstream s), ((void)s, release(P(p))), ((void)s, release(P(p))))
LANES(cuMemPrefetchAsync_v2, _ptsz, (CUdeviceptr p, size_t n, CUmemLocation_v1 l, unsigned f, CUstream s),
      ((void)l, (void)f, enqueue(&(struct copy){P(p), P(p), n, ANY, 0, 0, false}, s, 0, false)),
      ((void)l, (void)f, enqueue(&(struct copy){P(p), P(p), n, ANY, 0, 0, false}, s, 1, false)))

/* Copies with attributes, which change where they may be served from and not what they do. */
COPY_ASYNC(cuMemcpyWithAttributesAsync, ,
           (CUdeviceptr d, CUdeviceptr f, size_t n, CUmemcpyAttributes *a, CUstream s),
           {((void)a, P(d)), P(f), n, ANY, 0, 0, false})

/* As cuda.h has it, for operands that are pointers, of rows without gaps. */
struct batch_op {
    struct {
        uint64_t type;
        CUdeviceptr at;
        size_t row, layer;
        CUmemLocation_v1 where;
    } from, to;
    size_t width, height, depth;
};
static CUresult copy_3d(const void *op, unsigned long long flags, CUstream s, int lane)
{
    const struct batch_op *o = op;
    if (!o || flags || !o->width || !o->height || !o->depth)
        return CUDA_ERROR_INVALID_VALUE;
    return enqueue(
        &(struct copy){P(o->to.at), P(o->from.at), o->width * o->height * o->depth, ANY, 0, 0, false}, s,
        lane, false);
}
LANES(cuMemcpy3DWithAttributesAsync, _ptsz, (CUDA_MEMCPY3D_BATCH_OP * op, unsigned long long f, CUstream s),
      copy_3d(op, f, s, 0), copy_3d(op, f, s, 1))

static CUresult copy_batch(CUdeviceptr *to, CUdeviceptr *from, size_t *sizes, size_t count, CUstream s,
                           int lane)
{
    CUresult rc = (uintptr_t)s <= 1 && !lane ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; /* no legacy stream */
    for (size_t i = 0; i < count && !rc; i++)
        rc = enqueue(&(struct copy){P(to[i]), P(from[i]), sizes[i], ANY, 0, 0, false}, s, lane, false);
    return rc;
}
LANES(cuMemcpyBatchAsync_v2, _ptsz,
      (CUdeviceptr * d, CUdeviceptr *f, size_t *n, size_t c, CUmemcpyAttributes *a, size_t *i, size_t k,
       CUstream s),
      ((void)a, (void)i, (void)k, copy_batch(d, f, n, c, s, 0)),
      ((void)a, (void)i, (void)k, copy_batch(d, f, n, c, s, 1)))

static CUresult copy_2d(const CUDA_MEMCPY2D *c, CUstream handle, int lane, bool wait)
{
    const char *from = c->srcMemoryType == 1 ? c->srcHost : P(c->srcDevice);
    char *to = c->dstMemoryType == 1 ? c->dstHost : P(c->dstDevice);
    if (!from || !to)
        return CUDA_ERROR_INVALID_VALUE;
    from += c->srcY * c->srcPitch + c->srcXInBytes;
    to += c->dstY * c->dstPitch + c->dstXInBytes;
    for (size_t y = 0; y < c->Height; y++)
        memmove(to + y * c->dstPitch, from + y * c->srcPitch, c->WidthInBytes);
    const struct copy rest = {.to = to,
                              .from = from,
                              .bytes = c->WidthInBytes * c->Height,
                              .activity = c->srcMemoryType == 1   ? HTOD
                                          : c->dstMemoryType == 1 ? DTOH
                                                                  : DTOD,
                              .moved = true};
    return wait ? copy_now(&rest, lane) : enqueue(&rest, handle, lane, false);
}

API CUresult cuMemcpy2D_v2(const CUDA_MEMCPY2D *c)
{
    CALLED(cuMemcpy2D_v2);
    return copy_2d(c, NULL, 0, true);
}
API CUresult cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D *c)
{
    CALLED(cuMemcpy2DUnaligned_v2);
    return copy_2d(c, NULL, 0, true);
}
LANES(cuMemcpy2DAsync_v2, _ptsz, (const CUDA_MEMCPY2D *c, CUstream s), copy_2d(c, s, 0, false),
      copy_2d(c, s, 1, false))
