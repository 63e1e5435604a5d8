# SPDX-License-Identifier: Apache-2.0
"""Launches two kernels whose handles no public function of the driver handed out, a CUkernel and a CUfunction, straight or from a
graph that is captured while another capture goes on (argument: launch or graph)."""
import ctypes
import sys

driver = ctypes.CDLL("libcuda.so.1")
word = ctypes.c_uint64


def must(rc):
    assert rc == 0, rc


def made(function, *arguments):
    at = word()
    must(function(ctypes.byref(at), *arguments))
    return word(at.value)


must(driver.cuInit(0))
must(driver.cuCtxSetCurrent(made(driver.cuDevicePrimaryCtxRetain, 0)))
stream, other = (made(driver.cuStreamCreate, 1) for _ in range(2))
kernels = [made(driver.simgpu_unseen, name, kind) for name, kind in ((b"unseen_kernel", 1), (b"unseen_function", 0))]


def launch():
    for kernel in kernels:
        must(driver.cuLaunchKernel(kernel, 4, 1, 1, 32, 1, 1, 0, stream, None, None))


if sys.argv[1] == "graph":
    must(driver.cuStreamBeginCapture_v2(other, 1))  # of this thread alone: instantiating in the middle of it is forbidden to no one
    must(driver.cuStreamBeginCapture_v2(stream, 1))
    launch()
    graph = made(lambda at: driver.cuStreamEndCapture(stream, at))
    executable = made(driver.cuGraphInstantiateWithFlags, graph, word(0))
    made(lambda at: driver.cuStreamEndCapture(other, at))
    for _ in range(10):
        must(driver.cuGraphLaunch(executable, stream))
else:
    for _ in range(10):
        launch()
must(driver.cuStreamSynchronize(stream))
