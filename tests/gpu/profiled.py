# SPDX-License-Identifier: Apache-2.0
"""Runs a Python program under torch.profiler, and writes what CUPTI saw of its kernels: {name: [count, microseconds]}.

    profiled.py OUT.json PROGRAM [ARGUMENTS]
"""
import json
import runpy
import sys

import torch
from torch.profiler import ProfilerActivity, profile

out, sys.argv = sys.argv[1], sys.argv[2:]
torch.ones(1, device="cuda")
with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, end
    torch.cuda.synchronize()
kernels = {}
for event in profiler.profiler.kineto_results.events():
    if event.device_type() != torch.autograd.DeviceType.CUDA or event.name().startswith(("Memcpy", "Memset")):
        continue
    row = kernels.setdefault(event.name(), [0, 0.0])
    row[0] += 1
    row[1] += event.duration_ns() / 1e3 if hasattr(event, "duration_ns") else event.duration_us()
with open(out, "w") as file:
    json.dump(kernels, file)
