# SPDX-License-Identifier: Apache-2.0
"""Trains a small network on the CPU and says, by its own clock, when it was in each phase: a JSON object of spans, in ns of CLOCK_MONOTONIC.

Starts when a line comes on standard input, so that whoever looks for the library can have found it.
"""
import json
import sys
import time

import torch
from torch.utils.data import DataLoader, TensorDataset

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 60
OPTIMIZER = sys.argv[2] if len(sys.argv) > 2 else "Adam"
torch.manual_seed(0)
torch.set_num_threads(2)
model = torch.nn.Sequential(torch.nn.Linear(512, 3072), torch.nn.ReLU(), torch.nn.Linear(3072, 3072), torch.nn.ReLU(),
                            torch.nn.Linear(3072, 10))
optimizer = getattr(torch.optim, OPTIMIZER)(model.parameters(), lr=1e-3)
loader = DataLoader(TensorDataset(torch.randn(16 * STEPS, 512), torch.randint(0, 10, (16 * STEPS,))), batch_size=16)
sys.stdin.readline()
spans = {"forward": [], "backward": [], "optimizer": []}


def clocked(phase, function):
    start_ns = time.monotonic_ns()
    result = function()
    spans[phase].append((start_ns, time.monotonic_ns()))
    return result


for x, y in loader:
    loss = clocked("forward", lambda: torch.nn.functional.cross_entropy(model(x), y))
    clocked("optimizer", lambda: optimizer.zero_grad())
    clocked("backward", lambda: loss.backward())
    clocked("optimizer", lambda: optimizer.step())
print(json.dumps(spans))
