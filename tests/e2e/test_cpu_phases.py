# SPDX-License-Identifier: Apache-2.0
"""Phases of a PyTorch training on the CPU, by uprobes, against what the script clocks itself."""
import json
import os

import pytest

import kj
import probe

TRAIN = [kj.PYTHON, str(kj.SOURCES / "train_phases.py")]
needs_probe = pytest.mark.skipif(not probe.PROBE.exists() or os.geteuid() != 0, reason="kjoule-probe is not built, or this is no root")


@needs_probe
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_phases_agree_with_the_script(folder, optimizer):
    pytest.importorskip("torch", reason="PyTorch is not installed for this python (Debian: python3-torch)")
    run = kj.wrapped([*TRAIN, "40", optimizer], folder, options=["--probe-phases"])
    assert run.status == 0, run.stderr.decode()
    clocked = json.loads(run.stdout)
    cpu = run.report["energy"]["cpu"]
    phases = {p["phase"]: p for p in cpu["phases"]}
    assert phases["backward"]["count"] == 40
    assert phases["backward"]["time_ns"] == pytest.approx(clocked["backward"] * 1e9, rel=0.05)
    # its own Python, before and after the record, is in the script's time: that counts for a small step
    assert phases["optimizer"]["count"] in (79, 80)  # step and zero_grad, of which the first finds nothing
    assert phases["optimizer"]["time_ns"] == pytest.approx(clocked["optimizer"] * 1e9, rel=0.05, abs=0.4e6 * 40)
    assert sum(p["time_ns"] for p in cpu["phases"]) == pytest.approx(run.report["run"]["duration_ns"], rel=1e-6)
    assert sum(p["energy_uj"] for p in cpu["phases"]) == cpu["dynamic_uj"] + cpu["idle_uj"]


@needs_probe
def test_nothing_to_see(folder):
    run = kj.wrapped(["sleep", "0.3"], folder, options=["--probe-phases"])
    assert run.report["energy"]["cpu"]["phases"] == []
    assert any("--probe-phases" in w and "libtorch_cpu.so" in w for w in run.report["quality"]["warnings"])


def test_without_probe(folder):
    run = kj.wrapped(["sleep", "0.3"], folder, options=["--probe-phases", "--probe", "off"])
    assert any("--probe-phases" in w for w in run.report["quality"]["warnings"])
