# SPDX-License-Identifier: Apache-2.0
"""Phases of a PyTorch training on the CPU, by uprobes, against what the script clocks itself."""
import json
import os
import pathlib
import shutil
import subprocess
import time

import pytest

import kj
import probe

TRAIN = str(kj.SOURCES / "train_phases.py")
NEWER = pathlib.Path(os.environ.get("KJ_TORCH_PYTHON", "/nonexistent"))
PYTHONS = [pytest.param(kj.PYTHON, id="system"),
           pytest.param(str(NEWER), id="newer",
                        marks=pytest.mark.skipif(not NEWER.exists(), reason="a newer PyTorch is what `make test-torch` installs"))]
needs_probe = pytest.mark.skipif(not probe.PROBE.exists() or os.geteuid() != 0, reason="kjoule-probe is not built, or this is no root")


STEPS = 12


def watched(folder):
    """How many functions are watched so far."""
    try:
        return (folder / "phases.cpu.csv").read_text().count("seen,")
    except FileNotFoundError:
        return 0


def train(folder, python, *arguments, kjoule=kj.KJOULE, at_least=1):
    """What the script clocked, and the report. Wrapped; let go when all functions that mark phases are watched: so many, and no more have come for
    three flushes of the file."""
    if python == kj.PYTHON:
        pytest.importorskip("torch", reason="PyTorch is not installed for this python (Debian: python3-torch)")
    command = [kjoule, "run", "-q", "-o", folder, "--probe-phases", "--", python, TRAIN, STEPS, *arguments]
    process = subprocess.Popen(list(map(str, command)), env=kj.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    try:
        count, since = 0, time.monotonic()
        while count < at_least or time.monotonic() < since + 1.5:
            assert process.poll() is None and time.monotonic() < since + kj.TIMEOUT_S, "the functions of PyTorch are not watched"
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


def check_sums(report):
    cpu = report["energy"]["cpu"]
    assert sum(p["time_ns"] for p in cpu["phases"]) == pytest.approx(report["run"]["duration_ns"], rel=1e-6)
    assert sum(p["energy_uj"] for p in cpu["phases"]) == cpu["dynamic_uj"] + cpu["idle_uj"]
    assert cpu["dynamic_uj"] + cpu["idle_uj"] == sum(c["energy_uj"] for c in report["energy"]["components"] if c["kind"] == "cpu")


def check_phases(folder, clocked, report):
    """Every single phase lies inside what the script clocked, which has no other. Backward's sum is the script's within 5 %; an optimizer's phase
    holds all that it does after it has announced itself."""
    seen, phases = events(folder), {p["phase"]: p for p in report["energy"]["cpu"]["phases"]}
    for phase, spans in seen.items():
        assert phases[phase]["count"] == len(spans) == len(clocked[phase]) > 0, phase
        for (start, end), (script_start, script_end) in zip(spans, clocked[phase]):
            assert script_start <= start <= end <= script_end
        assert phases[phase]["time_ns"] == sum(end - start for start, end in spans)
    assert phases["backward"]["time_ns"] == pytest.approx(sum(end - start for start, end in clocked["backward"]), rel=0.05)
    assert len(clocked["body"]) == len(seen["optimizer"])
    for (start, end), (body_start, body_end) in zip(seen["optimizer"], clocked["body"]):
        assert start <= body_start <= body_end <= end


@needs_probe
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_phases_agree_with_the_script(folder, python, optimizer):
    clocked, report = train(folder, python, optimizer)
    assert watched(folder) == 2, "updates were watched, though names can be read"
    assert len(clocked["backward"]) == STEPS and len(clocked["optimizer"]) == 2 * STEPS
    check_phases(folder, clocked, report)
    check_sums(report)


@needs_probe
@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_between_is_no_phase(folder, python):
    """Sleep, logging, clipping, tensors of zeros, records of the user's own, a loader that changes tensors in place: none is taken for a
    phase or adds to the one next to it. And a backward that raises reaches who catches it."""
    clocked, report = train(folder, python, "SGD", "busy")
    assert len(clocked["backward"]) == 2 * STEPS and len(clocked["between"]) == 3 * STEPS + 1
    check_phases(folder, clocked, report)
    check_sums(report)


@needs_probe
@pytest.mark.parametrize("python", PYTHONS)
def test_backward_inside_the_optimizer(folder, python):
    """An optimizer that evaluates by itself: the time of backward inside its step is backward's, once."""
    clocked, report = train(folder, python, "SGD", "closure")
    phases = {p["phase"]: p for p in report["energy"]["cpu"]["phases"]}
    backward, steps = (sum(end - start for start, end in clocked[phase]) for phase in ("backward", "optimizer"))
    assert phases["backward"]["count"] == STEPS and phases["optimizer"]["count"] == 2 * STEPS  # zero_grad inside step
    assert phases["backward"]["time_ns"] == pytest.approx(backward, rel=0.05)
    assert phases["optimizer"]["time_ns"] == pytest.approx(steps - backward, rel=0.05)
    check_sums(report)


@needs_probe
@pytest.mark.parametrize("python", PYTHONS)
def test_names_that_cannot_be_read(folder, python):
    """Where announcements say nothing to us, what updates parameters is the optimizer: watched from the first such on, and only then."""
    clocked, report = train(folder, python, "Adam", "unnamed", at_least=3)  # what updates parameters is watched once a record without a name is seen
    assert watched(folder) > 2, "no updates were watched"
    seen, steps = events(folder)["optimizer"], clocked["body"][1::2]
    assert len(seen) in (STEPS, 2 * STEPS - 1)  # the first zero_grad updates nothing, and since PyTorch 2 none does
    for start, end in seen:
        assert any(script_start <= start <= end <= script_end for script_start, script_end in clocked["optimizer"])
    inside = [(start, end) for start, end in seen if any(start <= b and a <= end for a, b in steps)]
    assert sum(end - start for start, end in inside) == pytest.approx(sum(end - start for start, end in steps), rel=0.05)
    check_sums(report)


def on_an_old_kernel(place, capabilities):
    """A kjoule whose probe finds the kernel to be one before 6.6."""
    for name in ("kjoule", "libkjoule.so"):
        shutil.copy(kj.BUILD / name, place / name)
    script = place / "kjoule-probe"
    script.write_text(f"#!/bin/sh\nexec /usr/bin/setpriv --bounding-set={capabilities} /usr/bin/env "
                      f"LD_PRELOAD={kj.program('old_kernel.so')} {probe.PROBE} \"$@\"\n")
    script.chmod(0o755)
    return place / "kjoule"


@needs_probe
def test_the_kernel_refuses(folder, tmp_path):
    """The report says what the kernel refused, not that there was nothing to see."""
    kjoule = on_an_old_kernel(tmp_path, "-all,+bpf,+perfmon,+dac_read_search")
    subprocess.run([kjoule, "run", "-q", "-o", folder, "--probe-phases", "--", "sleep", "0.3"], env=kj.environment(), check=True)
    report = kj.read_report(folder)
    assert next(s for s in report["provenance"]["sources"] if s["name"] == "probe")["accepted"], "the rest is measured"
    warnings = [w for w in report["quality"]["warnings"] if "--probe-phases" in w]
    assert len(warnings) == 1 and "Linux 6.6" in warnings[0] and "libtorch_cpu.so" not in warnings[0], warnings


@needs_probe
def test_root_on_an_old_kernel(folder, tmp_path):
    clocked, report = train(folder, kj.PYTHON, "SGD", kjoule=on_an_old_kernel(tmp_path, "+all"))
    check_phases(folder, clocked, report)
    check_sums(report)


@needs_probe
def test_nothing_to_see(folder):
    run = kj.wrapped(["sleep", "0.3"], folder, options=["--probe-phases"])
    assert run.report["energy"]["cpu"]["phases"] == []
    assert any("--probe-phases" in w and "libtorch_cpu.so" in w for w in run.report["quality"]["warnings"])


def test_without_probe(folder):
    run = kj.wrapped(["sleep", "0.3"], folder, options=["--probe-phases", "--probe", "off"])
    assert any("--probe-phases" in w for w in run.report["quality"]["warnings"])
