# SPDX-License-Identifier: Apache-2.0
"""Joules of PyTorch's GPT by phase and by kernel, in real time, against the simulated driver's truth. Kernels of 1.5 ms make steps of a
quarter of a second, as those of a model that fills a card; each has a power of its own, between 150 and 550 W."""
import pathlib

import pytest

import kj

HERE = pathlib.Path(__file__).resolve().parent
SCRIPT = "devices 1\nkernel * duration_us=1500 power=auto\n"
SIM_NAME_BYTES = 239


def true_phases(device):
    """What the driver saw: the engine's thread, the optimizer's mark, the rest."""
    energy_uj = dict.fromkeys(("backward", "optimizer", "rest"), 0)
    for mark in device["marks"]:
        name = mark["mark"]
        energy_uj["backward" if name.startswith("pt_autograd") else "optimizer" if name == "optimizer" else "rest"] += mark["energy_uj"]
    return energy_uj


@pytest.mark.parametrize("steps, arguments, options, script", [
    (100, (), (), ""), (200, ("--graph",), (), ""), (300, (), ("--budget", 0.13), "event host_ns=8000 device_ns=0\n")],
    ids=["eager", "graph", "duty"])
def test_phases_and_kernels(make_sim, torch_python, folder, steps, arguments, options, script):
    sim = make_sim("energy", SCRIPT + script)
    run = kj.wrapped([torch_python, HERE / "marked.py", kj.SOURCES / "train_gpt.py", "--steps", steps, *arguments], folder,
                     options=options, env=sim.env, timeout_s=kj.TIMEOUT_S + steps)
    assert run.status == 0, run.stderr.decode()[-2000:]
    if options:
        timed, launches = (sum(k[name] for k in run.report["kernels"]) for name in ("timed_launches", "launches"))
        assert 0.03 < timed / launches < 0.08
    (device,) = sim.truth()["devices"]
    assert run.device_uj() == pytest.approx(device["energy_uj"], rel=0.03)
    told = dict.fromkeys(("backward", "optimizer", "rest"), 0)
    for phase in run.report["phases"]:
        told[phase["name"] if phase["name"] in told else "rest"] += phase["energy_uj"]
    truth = true_phases(device)
    assert told == {name: pytest.approx(uj, rel=0.05, abs=0.005 * run.device_uj()) for name, uj in truth.items()}
    kernels = {k["name"]: k for k in device["kernels"]}
    inside = [k["low_uj"] <= kernels[k["name"].encode()[:SIM_NAME_BYTES].decode()]["energy_uj"] <= k["high_uj"]
              for k in run.report["kernels"][:10]]
    assert sum(inside) >= 9, "a 90 % interval of ten kernels misses one now and then"
