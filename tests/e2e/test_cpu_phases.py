# SPDX-License-Identifier: Apache-2.0
"""Phases of a PyTorch training on the CPU, by uprobes, against what the script clocks itself."""
import json
import os
import statistics
import subprocess
import time

import pytest

import kj
import probe

TRAIN = [kj.PYTHON, str(kj.SOURCES / "train_phases.py")]
needs_probe = pytest.mark.skipif(not probe.PROBE.exists() or os.geteuid() != 0, reason="kjoule-probe is not built, or this is no root")


STEPS = 12


def watched(folder):
    """How many functions are watched so far."""
    try:
        return (folder / "phases.cpu.csv").read_text().count("seen,")
    except FileNotFoundError:
        return 0


def train(folder, optimizer):
    """Wrapped; let go when all functions that mark phases are watched: no more have come for three flushes of the file."""
    command = [kj.KJOULE, "run", "-q", "-o", folder, "--probe-phases", "--", *TRAIN, STEPS, optimizer]
    process = subprocess.Popen(list(map(str, command)), env=kj.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    try:
        count, since = 0, time.monotonic()
        while not count or time.monotonic() < since + 1.5:
            assert process.poll() is None and time.monotonic() < since + 30, "the functions of PyTorch are not watched"
            if watched(folder) != count:
                count, since = watched(folder), time.monotonic()
            time.sleep(0.05)
        stdout, stderr = process.communicate(b"go\n", timeout=kj.TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 0, stderr.decode()
    return json.loads(stdout), kj.read_report(folder)


def events(folder):
    """{phase: [(start, end)]} as the probe saw them."""
    found = {"backward": [], "optimizer": []}
    for line in (folder / "phases.cpu.csv").read_text().splitlines():
        if line.startswith("p,"):
            _, _, _, phase, start, end = line.split(",")
            found[phase].append((int(start), int(end)))
    return {phase: sorted(spans) for phase, spans in found.items()}


@needs_probe
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_phases_agree_with_the_script(folder, optimizer):
    pytest.importorskip("torch", reason="PyTorch is not installed for this python (Debian: python3-torch)")
    clocked, report = train(folder, optimizer)
    seen, cpu = events(folder), report["energy"]["cpu"]
    phases = {p["phase"]: p for p in cpu["phases"]}
    clocked["optimizer"] = [span for i, span in enumerate(clocked["optimizer"]) if i]  # the first zero_grad finds nothing
    for phase, count in (("backward", STEPS), ("optimizer", 2 * STEPS - 1)):
        assert phases[phase]["count"] == len(seen[phase]) == len(clocked[phase]) == count
        assert phases[phase]["time_ns"] == sum(end - start for start, end in seen[phase])
        for (start, end), (script_start, script_end) in zip(seen[phase], clocked[phase]):
            assert script_start <= start <= end <= script_end
    # The step's own Python, before and after, is in the script's time alone: some 50 us. By the median: a step in which somebody else
    # had the CPU meanwhile says nothing.
    for phase in seen:
        missing = [1 - (end - start + 1e5) / (b - a) for (start, end), (a, b) in zip(seen[phase], clocked[phase])]
        assert statistics.median(missing) < 0.05, phase
    assert sum(p["time_ns"] for p in cpu["phases"]) == pytest.approx(report["run"]["duration_ns"], rel=1e-6)
    assert sum(p["energy_uj"] for p in cpu["phases"]) == cpu["dynamic_uj"] + cpu["idle_uj"]
    assert cpu["dynamic_uj"] + cpu["idle_uj"] == sum(c["energy_uj"] for c in report["energy"]["components"] if c["kind"] == "cpu")
    print({phase: (phases[phase]["time_ns"] / sum(b - a for a, b in clocked[phase])) for phase in seen})


@needs_probe
def test_nothing_to_see(folder):
    run = kj.wrapped(["sleep", "0.3"], folder, options=["--probe-phases"])
    assert run.report["energy"]["cpu"]["phases"] == []
    assert any("--probe-phases" in w and "libtorch_cpu.so" in w for w in run.report["quality"]["warnings"])


def test_without_probe(folder):
    run = kj.wrapped(["sleep", "0.3"], folder, options=["--probe-phases", "--probe", "off"])
    assert any("--probe-phases" in w for w in run.report["quality"]["warnings"])
