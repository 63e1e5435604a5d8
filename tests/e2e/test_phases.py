# SPDX-License-Identifier: Apache-2.0
"""Phases and steps of trainings on the GPU: the program tells the simulated driver what each launch is for, kjoule has to find it out."""
import re

import pytest

import kj

# Steps of some 12 ms: their launches are counted, and their energy is nobody's question.
QUICK = """
power idle=60 context=85
copy bandwidth_gbs=50 power=130
kernel layer_kernel duration_us=300 power=420
kernel vectorized_elementwise_kernel duration_us=100 power=240
kernel gradient_kernel duration_us=600 power=560
kernel clip_norm_kernel duration_us=200 power=200
kernel *multi_tensor* duration_us=700 power=330
kernel addcdiv_kernel duration_us=700 power=330
kernel nccl* duration_us=900 power=170
"""
# Steps of half a second, in which each phase is long beside the sensor's window.
SLOW = re.sub(r"duration_us=(\d+)", lambda match: f"duration_us={int(match[1]) * 40}", QUICK)
ALIKE = "\n".join(line.split("power=")[0] + "power=320" if "kernel" in line else line for line in SLOW.splitlines())
OF_STEPS = ("data", "forward", "backward", "optimizer", "communication")


def training(*arguments):
    return [kj.program("cuda_training"), *map(str, arguments)]


def wrapped(make_sim, folder, script, *arguments, options=(), devices=1):
    sim = make_sim(f"devices {devices}\n{script}")
    run = kj.wrapped(training(*arguments), folder, options=options, env=sim.env)
    if run.status == 77:
        pytest.skip("built without nvtx3/nvToolsExt.h")
    assert run.status == 0, run.stderr.decode()
    truth = {(d["uuid"], m["mark"]): m for d in sim.truth()["devices"] for m in d["marks"]}
    return run, truth


def counts(run):
    return {(p["device"], p["name"]): (p["launches"], p["copies"]) for p in run.report["phases"]}


def true_counts(truth):
    return {key: (m["launches"], m["copies"]) for key, m in truth.items() if m["launches"] + m["copies"]}


@pytest.mark.parametrize("arguments,steps", [
    pytest.param((), 16, id="plain-sailing"),
    pytest.param(("--accumulate", 3), 16, id="gradient-accumulation"),
    pytest.param(("--loop",), 16, id="optimizer-without-a-name"),
    pytest.param(("--no-copy",), 16, id="data-on-the-device"),
    pytest.param(("--every", 1, "--batches", 3, "--ranges"), 16, id="nvtx-ranges"),
    pytest.param(("--devices", 2, "--every", 0), 16, id="two-devices"),
    pytest.param(("--graph",), 18, id="a-graph-a-step"),  # two eager ones first
    pytest.param(("--graph", "--loop"), 18, id="a-graph-a-step-optimizer-without-a-name"),
    pytest.param(("--graph", "--accumulate", 3), 18, id="a-graph-a-step-with-accumulation"),
    pytest.param(("--plain",), None, id="no-training"),
])
def test_every_launch_finds_its_phase(make_sim, folder, arguments, steps):
    run, truth = wrapped(make_sim, folder, QUICK, "--steps", 16, *arguments, options=["--budget", 100],
                         devices=2 if "--devices" in arguments else 1)
    assert counts(run) == true_counts(truth)
    assert all(p["launches_method"] == "measured" for p in run.report["phases"])
    if steps is None:
        assert run.report["steps"] is None
        assert {p["name"] for p in run.report["phases"]} == {"data", "unattributed"}
        assert b"\n  phase " not in run.stderr
    else:
        assert (run.report["steps"]["count"], run.report["steps"]["count_method"]) == (steps, "measured")
        between = 1 if {"--graph", "--loop"} <= set(arguments) else 0  # steps ended by a copy, and by a graph
        assert run.report["steps"]["period"]["steps"] == steps - 1 - between
        assert b"\n  phase " in run.stderr and f"steps: {steps} of".encode() in run.stderr


def test_ranges_without_the_wrapper(make_sim, folder):
    """Bare LD_PRELOAD: the program's NVTX finds us too."""
    sim = make_sim(QUICK)
    env = {**sim.env, "KJOULE_BUDGET": "100"}
    run = kj.preloaded(training("--steps", 8, "--ranges"), folder, env=env)
    if run.status == 77:
        pytest.skip("built without nvtx3/nvToolsExt.h")
    (device,) = sim.truth()["devices"]
    assert counts(run) == true_counts({(device["uuid"], m["mark"]): m for m in device["marks"]})


def test_the_users_own_nvtx_tool_stays(folder, tmp_path):
    command = ["sh", "-c", "echo $NVTX_INJECTION64_PATH"]
    assert kj.wrapped(command, folder, env={"NVTX_INJECTION64_PATH": "/own/tool.so"}).stdout == b"/own/tool.so\n"
    assert kj.wrapped(command, tmp_path / "other").stdout.decode() == f"{kj.SHIM}\n"


def check_energy(run, truth, within):
    """Every interval holds the truth; where the sensors told, the numbers are near it. A thousandth of the device's energy is left
    open: an event pair around a copy of microseconds holds more than the copy."""
    slack_uj = 0.001 * run.device_uj()
    for phase in run.report["phases"]:
        true_uj = truth[phase["device"], phase["name"]]["energy_uj"]
        assert phase["low_uj"] - slack_uj <= true_uj <= phase["high_uj"] + slack_uj, phase
        if within(phase):
            assert phase["energy_uj"] == pytest.approx(true_uj, rel=0.05, abs=0.01 * run.device_uj()), phase
        assert phase["time_ns"] == pytest.approx(truth[phase["device"], phase["name"]]["time_ns"], rel=0.05, abs=20e6)


def test_energy_of_phases(make_sim, folder):
    """All kernels draw the same: what is asked is whether each phase has its time, and what it takes from the whole."""
    run, truth = wrapped(make_sim, folder, ALIKE, "--steps", 12, "--sync", "--copy-kib", 1024, options=["--per", "tokens=12288"])
    assert counts(run) == true_counts(truth)
    check_energy(run, truth, lambda phase: phase["name"] != "data")
    report = run.report
    steps = report["steps"]
    assert steps["count"] == 12
    assert steps["energy_uj"] == sum(p["energy_uj"] for p in report["phases"] if p["name"] in OF_STEPS)
    assert steps["energy_per_step_uj"] == pytest.approx(steps["energy_uj"] / 12)
    for phase in report["phases"]:
        assert phase["energy_per_step_uj"] == pytest.approx(phase["energy_uj"] / 12)
        assert phase["share"] == pytest.approx(phase["energy_uj"] / run.device_uj())
    (tokens,) = report["per"]
    assert tokens["per_step"] == 1024
    assert {p["name"]: p["joules_each"] for p in tokens["phases"]} == pytest.approx(
        {p["name"]: p["energy_uj"] / 1e6 / 12288 for p in report["phases"]})


def test_energy_of_phases_by_regression(make_sim, folder):
    """Kernels of different powers, one of which runs in three phases."""
    run, truth = wrapped(make_sim, folder, SLOW, "--steps", 16, "--sync", "--copy-kib", 1024)
    assert counts(run) == true_counts(truth)
    told = [p for p in run.report["phases"] if p["identifiability"] >= 0.5]
    check_energy(run, truth, lambda phase: phase in told and len(told) >= 5)


def test_bursts(make_sim, folder):
    """Where the budget allows for bursts only: exact where the launch itself tells, near where its order does."""
    run, truth = wrapped(make_sim, folder, QUICK.replace("00 power", " power"), "--steps", 6000, "--every", 20,
                         options=["--budget", 3])
    seen, wanted = ({name: c for (_, name), c in some.items()} for some in (counts(run), true_counts(truth)))
    assert any(p["launches_method"] == "estimated" for p in run.report["phases"])
    for name in ("data", "backward", "communication"):
        assert seen[name] == wanted[name]
    assert [sum(c[i] for c in seen.values()) for i in (0, 1)] == [sum(c[i] for c in wanted.values()) for i in (0, 1)]
    for name in ("forward", "optimizer"):  # by the steps that bursts saw whole
        assert seen[name][0] == pytest.approx(wanted[name][0], rel=0.002), name
    assert seen["evaluation"][0] == pytest.approx(wanted["evaluation"][0], rel=0.05)
    assert (run.report["steps"]["count"], run.report["steps"]["count_method"]) == (6000, "estimated")


def test_counting_alone(make_sim, folder):
    """Without any timing, what launches tell of themselves stays exact, and the rest is not guessed."""
    run, truth = wrapped(make_sim, folder, QUICK, "--steps", 10, options=["--timing", "count"])
    seen, wanted = counts(run), true_counts(truth)
    device = next(iter(seen))[0]
    for name in ("data", "backward", "communication"):
        assert seen[device, name] == wanted[device, name]
    assert (device, "forward") not in seen and (device, "evaluation") not in seen
    assert seen[device, "unattributed"][0] + seen[device, "optimizer"][0] == sum(
        wanted[device, name][0] for name in ("forward", "evaluation", "optimizer"))
