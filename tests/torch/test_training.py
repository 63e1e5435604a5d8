# SPDX-License-Identifier: Apache-2.0
"""PyTorch's CUDA build, unmodified, on the simulated driver: what the report counts is what the driver counted, name by name."""
import collections
import json

import pytest

import kj

STEPS = 100
SYNCS = ("cuCtxSynchronize", "cuStreamSynchronize", "cuEventSynchronize", "cuStreamQuery", "cuGraphLaunch", "cuLaunchKernel",
         "cuLaunchKernelEx")
SIM_NAME_BYTES = 239  # the simulated driver keeps no more of a name

PROGRAMS = [
    pytest.param(["train_gpt.py"], id="gpt"),
    pytest.param(["train_gpt.py", "--optimizer", "fused", "--amp"], id="gpt-fused-amp"),
    pytest.param(["train_gpt.py", "--graph"], id="gpt-cuda-graph"),
    pytest.param(["train_gpt.py", "--workers", 2, "--pinned", "--streams"], id="gpt-workers-pinned-two-streams"),
    pytest.param(["train_gpt.py", "--checkpoint"], id="gpt-gradient-checkpointing"),
    pytest.param(["train_gpt.py", "--compile"], id="gpt-compiled-by-triton"),
    pytest.param(["train_text.py", "gpt", "--device", "cuda"], id="transformer-layers"),
    pytest.param(["train_hf.py", "classification"], id="hf-bert-classification"),
    pytest.param(["train_hf.py", "sentiment"], id="hf-bert-sentiment"),
    pytest.param(["train_hf.py", "translation"], id="hf-t5-translation"),
    pytest.param(["train_hf.py", "summarisation"], id="hf-bart-summarisation"),
]


def losses(run):
    """What the program says of its training; Trainer's own log also has times in it."""
    return [line for line in run.stdout.decode().splitlines() if line.startswith(("step", "losses", "evaluation", "gpt"))]


def launches(report):
    counts = collections.Counter()
    for kernel in report["kernels"]:
        counts[kernel["name"].encode()[:SIM_NAME_BYTES].decode(errors="replace")] += kernel["launches"]
    return dict(counts)


@pytest.mark.parametrize("program", PROGRAMS)
def test_counts_are_the_drivers(make_sim, torch_python, folder, program):
    command = [torch_python, kj.SOURCES / program[0], *program[1:], "--steps", STEPS]
    plain = kj.bare(command, env=make_sim("plain").env)
    assert plain.status == 0, plain.stderr.decode()[-2000:]
    sim = make_sim("wrapped")
    run = kj.wrapped(command, folder, env=sim.env)
    assert run.status == 0, run.stderr.decode()[-2000:]
    assert losses(run) == losses(plain) and losses(run)
    (device,) = sim.truth()["devices"]
    assert launches(run.report) == {k["name"]: k["launches"] for k in device["kernels"]}
    assert {c["kind"]: c["count"] for c in run.report["copies"]} == {kj.COPY_KINDS[c["name"]]: c["launches"] for c in device["copies"]}
    counted = {call["name"]: call["count"] + call["failed"] for call in run.report["calls"]}
    calls = sim.truth()["calls"]
    for name in (s + lane for s in SYNCS for lane in ("", "_ptsz")):
        assert counted.get(name, 0) == calls.get(name, 0), name
    assert run.report["quality"]["unhooked"] == []
    assert run.report["quality"]["harvest_errors"] == 0
    assert sum(k["launches"] for k in run.report["kernels"]) > 40 * STEPS
    ended_ns = json.loads((folder / "run.json").read_text())["end_mono_ns"]
    assert run.device_uj() == pytest.approx(sim.energy_uj(ended_ns), rel=0.05)


@pytest.mark.parametrize("program", [
    pytest.param(["train_gpt.py"], id="gpt"),
    pytest.param(["train_gpt.py", "--optimizer", "fused", "--amp"], id="gpt-fused-amp"),
    pytest.param(["train_gpt.py", "--checkpoint"], id="gpt-gradient-checkpointing"),
    pytest.param(["train_gpt.py", "--graph"], id="gpt-cuda-graph"),
    pytest.param(["train_hf.py", "sentiment"], id="hf-bert-sentiment"),
])
def test_phases(make_sim, torch_python, folder, program):
    """The driver knows each launch's thread and name; a step each for every update of the program's."""
    sim = make_sim("phases")
    run = kj.wrapped([torch_python, kj.SOURCES / program[0], *program[1:], "--steps", STEPS], folder, options=["--budget", 100],
                     env=sim.env)
    assert run.status == 0, run.stderr.decode()[-2000:]
    (device,) = sim.truth()["devices"]
    phases = {p["name"]: p for p in run.report["phases"]}
    engine = sum(m["launches"] for m in device["marks"] if m["mark"].startswith("pt_autograd"))
    named = sum(k["launches"] for k in device["kernels"] if "multi_tensor_apply" in k["name"])
    nameless = 2 * 53 * STEPS if "--graph" in program else 0  # a capturable optimizer's, two for each parameter
    assert phases["backward"]["launches"] == engine > 0
    assert named + nameless <= phases["optimizer"]["launches"] <= 1.5 * named + 1.01 * nameless + 10 * STEPS
    assert phases["data"]["copies"] == sum(c["launches"] for c in device["copies"] if c["name"] == "[memcpy HtoD]")
    assert sum(p["launches"] for p in phases.values()) == sum(k["launches"] for k in device["kernels"])
    assert phases["forward"]["launches"] > 0.2 * engine
    assert run.report["steps"]["count"] == pytest.approx(STEPS, abs=4)  # a warm-up before a capture is steps too
    assert phases.get("unattributed", {"launches": 0})["launches"] < 0.05 * engine


def test_preload_agrees(make_sim, torch_python, folder):
    """Without the wrapper: the same counts, and the process ends as before."""
    command = [torch_python, kj.SOURCES / "train_gpt.py", "--steps", 30]
    plain = kj.bare(command, env=make_sim("plain").env)
    sim = make_sim("preloaded")
    env = {**sim.env, "LD_PRELOAD": f"{sim.env['LD_PRELOAD']}:{kj.SHIM}"}
    run = kj.preloaded(command, folder, env=env)
    assert (run.status, losses(run)) == (plain.status, losses(plain))
    (device,) = sim.truth()["devices"]
    assert launches(run.report) == {k["name"]: k["launches"] for k in device["kernels"]}


def test_profiler_beside_us(make_sim, torch_python, folder):
    """torch.profiler without a device to trace: neither gets in the other's way."""
    code = ("import torch; from torch.profiler import profile, ProfilerActivity\n"
            "x = torch.ones(64, 64, device='cuda')\n"
            "with profile(activities=[ProfilerActivity.CPU]) as p:\n"
            "    for _ in range(20): x = x + 1\n"
            "torch.cuda.synchronize(); print(sum(e.count for e in p.key_averages() if e.key == 'aten::add'))\n")
    sim = make_sim("profiled")
    run = kj.wrapped([torch_python, "-c", code], folder, env=sim.env)
    assert (run.status, run.stdout) == (0, b"20\n"), run.stderr.decode()[-2000:]
    (device,) = sim.truth()["devices"]
    assert launches(run.report) == {k["name"]: k["launches"] for k in device["kernels"]}
