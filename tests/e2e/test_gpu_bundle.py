# SPDX-License-Identifier: Apache-2.0
"""The folder of `make gpu-bundle` on the simulated GPU. What is tested are the checks: that each ends, says what it found and loses no
figure, whatever happens to it. What they find of a simulated card is no news, and how fast it was found depends on this machine."""
import ast
import contextlib
import gzip
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

import kj

BUNDLE = kj.BUILD / "gpu-bundle"
GPU = kj.ROOT / "tests" / "gpu"
SCRIPT = (GPU / "simgpu.script").read_text()
# Checks whose "ok" is about counts and results; that of the others is about times, which need a quiet machine.
EXACT = ("card", "doctor", "hooks", "early", "names", "ends", "driver programs", "graphs")
FILES_CAP, FILE_BYTES_CAP, RESULTS_BYTES_CAP = 8, 16 << 20, 1 << 20

pytestmark = pytest.mark.skipif(not (BUNDLE / "complete").exists(), reason="not built: make gpu-bundle")


def start(sim, out, *options):
    env = {**sim.env, "LD_LIBRARY_PATH": "%s:%s/cupti" % (kj.SIMGPU, kj.SIMGPU)}
    return subprocess.Popen(["bash", str(BUNDLE / "run"), str(out), "--python", kj.PYTHON, *map(str, options)], env=kj.environment(env),
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture
def sim(make_sim):
    return make_sim(SCRIPT)


def run(sim, out, *options):
    process = start(sim, out, *options)
    text = process.communicate(timeout=500)[0].decode()
    return process.returncode, text, json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All checks, with little work each."""
    folder = tmp_path_factory.mktemp("bundle")
    sim = kj.Sim(folder / "sim", SCRIPT)
    status, text, results = run(sim, folder / "out", "--quick")
    return folder / "out", text, results


def test_all_checks(whole):
    out, text, results = whole
    assert results["finished"] and results["checks"], text
    for name, figures in results["checks"].items():
        assert "hung" not in figures and "broke" not in figures, (name, figures, (out / "log.txt").read_text()[-2000:])
        assert figures["rows"] or figures["skipped"], name
    wrong = {name: results["checks"][name] for name in EXACT if results["checks"][name]["ok"] is not True}
    assert not wrong, json.dumps(wrong, indent=1)
    counts = [(row["seen"], row["launches"]) for figures in results["checks"].values() for row in figures["rows"].values()
              if isinstance(row.get("seen"), dict)]
    assert len(counts) > 12
    for seen, launches in counts:
        assert launches.items() <= seen.items()
    assert len(results["checks"]["calls"]["rows"]["calls"]["table"]) > 40
    with gzip.open(out / "wave.csv.gz", "rt") as wave:
        kinds = {line.split(",")[0] for line in wave}
    assert {"on", "poll", "sample"} <= kinds
    files = list(out.iterdir())
    assert len(files) <= FILES_CAP and all(f.stat().st_size < FILE_BYTES_CAP for f in files)
    assert (out / "results.json").stat().st_size < RESULTS_BYTES_CAP


def test_figures_become_constants(whole, tmp_path):
    """The tables of costs and sensors are written from the results by a command each."""
    out, _, _ = whole
    costs = tmp_path / "costs.def"
    before = (kj.ROOT / "tests" / "simgpu" / "costs.def").read_text()
    costs.write_text(before)
    done = subprocess.run([sys.executable, GPU / "apply_costs.py", out / "results.json", costs], capture_output=True, check=True)
    changed = [(a, b) for a, b in zip(before.splitlines(), costs.read_text().splitlines()) if a != b]
    assert len(changed) > 25 and b"cuEventRecord: " in done.stderr
    for old, new in changed:
        assert new.split("(")[1].split(",")[0] == old.split("(")[1].split(",")[0] and "H100" in new
    assert len(costs.read_text().splitlines()) == len(before.splitlines())
    rows = subprocess.run([sys.executable, GPU / "apply_sensors.py", out / "results.json"], capture_output=True, check=True).stdout.decode()
    assert 'GPU_SENSOR(HOPPER, "H100 80GB HBM3", 580, 0, INSTANT, BOX, ' in rows and "counter period_ms=" in rows


def test_results_are_named_after_the_card(sim):
    done = subprocess.run([sys.executable, GPU / "check.py", "--name"], env=kj.environment(sim.env), capture_output=True, check=True)
    assert re.fullmatch(rb"NVIDIA-H100-80GB-HBM3-580.65.06-\d{4}-\d\d-\d\d\n", done.stdout)


def sleepers():
    """Processes of the check that hangs."""
    found = []
    for folder in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and b"time.sleep(1000)" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def test_a_hanging_check_costs_its_time_and_no_figure(sim, tmp_path):
    before, hang_s = sleepers(), 3
    status, text, results = run(sim, tmp_path / "out", "--only", "card,names", "--make-hang", "--hang", hang_s)
    checks = results["checks"]
    assert list(checks) == ["card", "hang", "names"] and status == 1 and results["finished"], text
    assert "silent for 3 s" in checks["hang"]["hung"] and checks["hang"]["rows"] == {"before": {"ok": True}}
    assert checks["hang"]["seconds"] >= hang_s
    assert checks["card"]["ok"] and checks["names"]["ok"]
    assert sleepers() == before, "a process of the check, in a session of its own, was left running"


def test_figures_are_kept_when_the_run_is_ended(sim, tmp_path):
    """As a lent machine ends it: the file is whole at any moment."""
    out = tmp_path / "out"
    process = start(sim, out, "--only", "card,names", "--make-hang", "--hang", 30)
    kj.wait_for(lambda: "hang" in json.loads((out / "results.json").read_text())["checks"] if (out / "results.json").exists() else False)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(20) == 143
    results = json.loads((out / "results.json").read_text())
    assert not results["finished"] and results["checks"]["card"]["ok"]
    kj.wait_for(lambda: not sleepers(), what="the end of what the check had started")


def test_what_there_is_no_time_for_is_said(sim, tmp_path):
    start_s = time.monotonic()
    status, _, results = run(sim, tmp_path / "out", "--seconds", 2)
    assert status == 0 and time.monotonic() - start_s < 30
    assert all(c["skipped"].startswith(("the time is up", "no ")) for c in results["checks"].values())


def test_needs_an_old_glibc_alone():
    check = [sys.executable, GPU / "old_glibc.py", "check"]
    elf = [f for f in (BUNDLE / "build").rglob("*") if f.is_file() and f.read_bytes()[:4] == b"\x7fELF"]
    assert {"kjoule", "libkjoule.so", "calls", "cases", "hooks", "workload"} <= {f.name for f in elf}
    assert subprocess.run([*check, "2.31", *elf]).returncode == 0
    refused = subprocess.run([*check, "2.31", kj.KJOULE], capture_output=True)
    assert refused.returncode == 1 and b"libjansson" in refused.stderr
    assert sum(f.stat().st_size for f in BUNDLE.rglob("*") if f.is_file()) < 40 << 20


def test_is_python_of_3_8():
    for file in (BUNDLE / "tests" / "gpu").rglob("*.py"):
        tree = ast.parse(file.read_text(), feature_version=(3, 8))
        newer = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in ("removeprefix", "removesuffix")]
        assert not newer, file
