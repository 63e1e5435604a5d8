# SPDX-License-Identifier: Apache-2.0
"""Runs a training program and tells the simulated driver which launches of the main thread are the optimizer's, by PyTorch's own hooks;
backward passes have a thread of their own. So the driver's truth is by phase.

    marked.py PROGRAM [ARGUMENTS]
"""
import ctypes
import runpy
import sys

from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

mark = ctypes.CDLL("libcuda.so.1").simgpu_mark
mark.restype = None  # a hook that returns something replaces what the step is given
register_optimizer_step_pre_hook(lambda *_: mark(b"optimizer"))
register_optimizer_step_post_hook(lambda *_: mark(b"rest"))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
