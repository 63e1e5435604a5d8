# SPDX-License-Identifier: Apache-2.0
"""Trains a small network on the CPU and says, by its own clock, when it was in each phase: a JSON object of spans, in ns of CLOCK_MONOTONIC.
PyTorch's own Python around a phase takes 0.05 to 0.5 ms a call by the machine. So backward is clocked right around the engine's run, and what an
optimizer does is clocked from outside ("optimizer") and inside of what it announces ("body").

    train_phases.py [STEPS [OPTIMIZER [busy|closure|unnamed]]]

busy: with all that people do between the phases, which is none of them, as spans of "between". closure: the optimizer evaluates by itself.
unnamed: what is announced has names of a type of its own, and it announces something until it may start.
Starts when a line comes on standard input, so that whoever looks for the library can have found it.
"""
import json
import logging
import select
import sys
import time

import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 60
OPTIMIZER = sys.argv[2] if len(sys.argv) > 2 else "Adam"
MODE = sys.argv[3] if len(sys.argv) > 3 else ""
torch.manual_seed(0)
torch.set_num_threads(2)
model = torch.nn.Sequential(torch.nn.Linear(512, 3072), torch.nn.ReLU(), torch.nn.Linear(3072, 3072), torch.nn.ReLU(),
                            torch.nn.Linear(3072, 10))
optimizer = getattr(torch.optim, OPTIMIZER)(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)


class Padded(Dataset):
    """Makes zeros, and changes them in place, while the loader's own record is open."""
    def __len__(self):
        return 16 * STEPS

    def __getitem__(self, index):
        return torch.zeros(512).add_(torch.ones(512)), index % 10


data = Padded() if MODE == "busy" else TensorDataset(torch.randn(16 * STEPS, 512), torch.randint(0, 10, (16 * STEPS,)))
loader = DataLoader(data, batch_size=16)


class Name(str):
    """To who looks at the memory, no string."""


def unnamed():
    record, begin = torch.autograd.profiler.record_function, torch.autograd.profiler.record_function.__init__
    record.__init__ = lambda self, name, args=None: begin(self, Name(name), args)
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        with record("still waiting"):
            pass


if MODE == "unnamed":
    unnamed()
sys.stdin.readline()
spans = {"forward": [], "backward": [], "optimizer": [], "body": [], "between": []}


def clocked(phase, function):
    start_ns = time.monotonic_ns()
    result = function()
    spans[phase].append((start_ns, time.monotonic_ns()))
    return result


class Engine:
    """PyTorch's, with a clock around each run."""
    def __init__(self, engine):
        self.engine = engine

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def run_backward(self, *arguments, **options):
        start_ns = time.monotonic_ns()
        try:
            return self.engine.run_backward(*arguments, **options)
        finally:
            spans["backward"].append((start_ns, time.monotonic_ns()))


def clock_phases():
    """Backward right around the engine's run; and what an optimizer does inside the record that it announces, as spans of "body"."""
    record = torch.autograd.profiler.record_function
    enter, leave = record.__enter__, record.__exit__

    def begin(self):
        made = enter(self)
        self.start_ns = time.monotonic_ns()
        return made

    def end(self, *error):
        if self.name.startswith(("Optimizer.step#", "Optimizer.zero_grad#")):
            spans["body"].append((self.start_ns, time.monotonic_ns()))
        return leave(self, *error)

    record.__enter__, record.__exit__ = begin, end
    torch.autograd.Variable._execution_engine = Engine(torch.autograd.Variable._execution_engine)


class Refuses(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x * 2

    @staticmethod
    def backward(context, gradient):
        raise ValueError("refused")


def refused():
    try:
        Refuses.apply(torch.ones(3, requires_grad=True)).sum().backward()
    except ValueError as error:
        assert str(error) == "refused"
        return
    raise AssertionError("nothing was raised")


def between():
    """Python, sleep, operators, the user's own records: all right before and after a phase."""
    logging.getLogger("train").warning("loss %.3f", loss.item())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with torch.autograd.profiler.record_function("Optimizer or not"):
        torch.zeros(1000).add_(torch.ones(1000)).zero_()
    torch.ops.aten.add(torch.zeros(2), torch.ones(2))
    torch.zeros(1)
    time.sleep(0.005)
    sum(range(100000))


def evaluate():
    """Forward and backward for optimizers that ask for it: their step encloses both."""
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss


clock_phases()
for x, y in clocked("between", lambda: list(loader)):
    if MODE == "closure":
        clocked("optimizer", lambda: optimizer.step(evaluate))
        continue
    loss = clocked("forward", lambda: torch.nn.functional.cross_entropy(model(x), y))
    clocked("optimizer", lambda: optimizer.zero_grad())
    if MODE == "busy":
        refused()
        clocked("between", between)
    loss.backward()
    if MODE == "busy":
        clocked("between", between)
    clocked("optimizer", lambda: optimizer.step())
    if MODE == "busy":
        clocked("between", lambda: (scheduler.step(), time.sleep(0.005)))
print(json.dumps({phase: sorted(found) for phase, found in spans.items()}))
