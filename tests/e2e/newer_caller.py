# SPDX-License-Identifier: Apache-2.0
"""What CUDA 13.2 and 13.3 added, each used once or more on a stream of its own, found by dlsym or by cuGetProcAddress (argument:
dlsym, versioned or per-thread). Prints as JSON what it did."""
import ctypes
import json
import sys

DOOR = sys.argv[1]
SIZE = 1 << 16
driver = ctypes.CDLL("libcuda.so.1")
word, handle = ctypes.c_uint64, ctypes.c_void_p


def find(symbol, name, version):
    if DOOR == "dlsym":
        return getattr(driver, symbol)
    pointer = handle()
    get = driver.cuGetProcAddress_v2
    get.argtypes = [ctypes.c_char_p, handle, ctypes.c_int, word, handle]
    assert get(name.encode(), ctypes.addressof(pointer), version, 2 if DOOR == "per-thread" else 0, None) == 0 and pointer.value, name
    return ctypes.CFUNCTYPE(ctypes.c_int)(pointer.value)


def must(rc):
    assert rc == 0, rc


def made(function, *arguments):
    at = word()
    must(function(ctypes.byref(at), *arguments))
    return word(at.value)


must(driver.cuInit(0))
context = made(driver.cuDevicePrimaryCtxRetain, 0)
must(driver.cuCtxSetCurrent(context))
stream = made(driver.cuStreamCreate, 1)
module = made(driver.cuModuleLoadData, b".version 8.0")
kernel = made(driver.cuModuleGetFunction, module, b"newer_kernel")
to, origin = (made(driver.cuMemAlloc_v2, word(SIZE)) for _ in range(2))
attributes = (word * 8)()

copy = find("cuMemcpyWithAttributesAsync", "cuMemcpyWithAttributesAsync", 13020)
for _ in range(5):
    must(copy(to, origin, word(SIZE), attributes, stream))
operation = (word * 16)(1, origin.value, 0, 0, 0, 1, to.value, 0, 0, 0, SIZE, 1, 1)
must(find("cuMemcpy3DWithAttributesAsync", "cuMemcpy3DWithAttributesAsync", 13020)(operation, word(0), stream))
batch = [(word * 3)(v, v, v) for v in (to.value, origin.value, SIZE)]
must(find("cuMemcpyBatchAsync_v2", "cuMemcpyBatchAsync", 13000)(*batch, word(3), attributes, (word * 1)(0), word(1), stream))

called = []
callback = ctypes.CFUNCTYPE(None, handle)(lambda _: called.append(1))
for _ in range(4):
    must(find("cuLaunchHostFunc_v2", "cuLaunchHostFunc", 13020)(stream, callback, None, 1))


def launch(blocks):
    must(driver.cuLaunchKernel(kernel, blocks, 1, 1, 32, 1, 1, 0, stream, None, None))


must(driver.cuStreamBeginCapture_v2(stream, 0))
launch(1)
graph = made(lambda at: driver.cuStreamEndCapture(stream, at))
must(find("cuStreamBeginRecaptureToGraph", "cuStreamBeginRecaptureToGraph", 13030)(stream, 0, graph, None, None))
launch(7)
assert made(lambda at: driver.cuStreamEndCapture(stream, at)).value == graph.value
executable = made(driver.cuGraphInstantiateWithFlags, graph, word(0))
for _ in range(3):
    must(driver.cuGraphLaunch(executable, stream))
must(find("cuStreamBeginCaptureToCig", "cuStreamBeginCaptureToCig", 13020)(stream, (word * 1)(0)))
launch(2)  # a graphics API's to run
must(find("cuStreamEndCaptureToCig", "cuStreamEndCaptureToCig", 13020)(stream))
launch(3)
must(driver.cuStreamSynchronize(stream))
print(json.dumps({"copies": 5 + 1 + 3, "copy_calls": 5 + 1 + 1, "host": len(called), "launches": 3 + 1}))
