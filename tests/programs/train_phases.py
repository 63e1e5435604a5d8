# SPDX-License-Identifier: Apache-2.0
"""Trains a small network on the CPU and says, by its own clock, how long it was in each phase: a JSON object of seconds."""
import json
import sys
import time

import torch
from torch.utils.data import DataLoader, TensorDataset

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 60
OPTIMIZER = sys.argv[2] if len(sys.argv) > 2 else "Adam"
torch.manual_seed(0)
torch.set_num_threads(2)
model = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 2048), torch.nn.ReLU(),
                            torch.nn.Linear(2048, 10))
optimizer = getattr(torch.optim, OPTIMIZER)(model.parameters(), lr=1e-3)
loader = DataLoader(TensorDataset(torch.randn(16 * STEPS, 512), torch.randint(0, 10, (16 * STEPS,))), batch_size=16)
time.sleep(0.6)  # until whoever looks for the library has found it
spent = dict.fromkeys(("forward", "backward", "optimizer"), 0.0)


def clocked(phase, function):
    start = time.monotonic()
    result = function()
    spent[phase] += time.monotonic() - start
    return result


for x, y in loader:
    loss = clocked("forward", lambda: torch.nn.functional.cross_entropy(model(x), y))
    clocked("optimizer", lambda: optimizer.zero_grad())
    clocked("backward", lambda: loss.backward())
    clocked("optimizer", lambda: optimizer.step())
print(json.dumps(spent))
