# SPDX-License-Identifier: Apache-2.0
"""What end-to-end tests share: run programs bare, wrapped or preloaded, check every report that comes out, script the simulated GPU.

Every report read here is validated against the shipped JSON Schema and must conserve energy to the microjoule.
"""
import functools
import json
import os
import pathlib
import subprocess
import time

import jsonschema
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("KJ_BUILD", ROOT / "build")).resolve()
KJOULE = BUILD / "kjoule"
SHIM = BUILD / "libkjoule.so"
SIMGPU = BUILD / "simgpu"
PROGRAMS = BUILD / "programs"
SOURCES = ROOT / "tests" / "programs"
SCHEMA = ROOT / "tools" / "report" / "schema" / "kjoule.report.1.json"
LAB_TABLES = BUILD / "lab" / "libprivate_tables.so"
PYTHON = os.environ.get("KJ_PYTHON", "/usr/bin/python3")
TIMEOUT_S = 60

METHODS = {"measured", "estimated", "modelled"}


def program(name):
    path = PROGRAMS / name
    if not path.exists():
        pytest.skip(f"{name} was not built (programs for the CUDA runtime need nvcc)")
    return str(path)


def lm_train(*arguments):
    return [program("lm_train"), "--text", str(SOURCES / "data" / "work_and_heat.txt"), *map(str, arguments)]


def environment(extra=None):
    """The caller's environment without anything of kjoule's, plus extra; a None value removes a name."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("KJOULE_", "KJ_SIM_")) and k != "LD_PRELOAD"}
    for name, value in (extra or {}).items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = str(value)
    return env


# what the simulated driver calls a copy: what the report calls it
COPY_KINDS = {"[memcpy HtoD]": "HtoD", "[memcpy DtoH]": "DtoH", "[memcpy DtoD]": "DtoD", "[memcpy]": "other", "[memset]": "memset"}


@functools.lru_cache(maxsize=None)
def validator():
    schema = json.loads(SCHEMA.read_text())
    cls = jsonschema.validators.validator_for(schema)
    cls.check_schema(schema)
    return cls(schema)


def check_interval(row):
    """A figure lies in its interval, is told with its method, and unknown is never 0."""
    if row["time_ns"] is None:
        assert row["time_low_ns"] is row["time_high_ns"] is None and row["time_method"] == "unknown", row
        assert row.get("name") == "unattributed" or row.get("energy_uj") is None or row["high_uj"] > row["energy_uj"], row
    else:
        assert row["time_low_ns"] <= row["time_ns"] <= row["time_high_ns"] and row["time_method"] in METHODS, row
    if row.get("energy_uj") is not None:
        assert row["low_uj"] <= row["energy_uj"] <= row["high_uj"] and row["energy_method"] in METHODS, row


def check_report(report):
    """Schema, and the sums that must hold in every report."""
    errors = sorted(validator().iter_errors(report), key=lambda e: list(e.path))
    assert not errors, "\n".join(f"{'/'.join(map(str, e.path))}: {e.message[:200]}" for e in errors[:8])
    for device in report["devices"]:
        if device.get("energy_uj") is None:
            continue
        kernels = [k for k in report["kernels"] if k["device"] == device["device"]]
        known = [k["energy_uj"] for k in kernels if k["energy_uj"] is not None]
        assert device["kernels_uj"] == (sum(known) if known or not kernels else None), device
        assert sum(k["energy_uj"] is None for k in kernels) == device["kernels_unknown"], device
        assert (device["kernels_uj"] or 0) + device["idle_uj"] + device["unattributed_uj"] == device["energy_uj"], device
        phases = sum(p["energy_uj"] or 0 for p in report["phases"] if p["device"] == device["device"])
        assert phases + device["idle_uj"] == device["energy_uj"], device
    for row in report["kernels"] + report["phases"] + report["copies"]:
        check_interval(row)
    for device in report["devices"]:
        launches = sum(p["launches"] for p in report["phases"] if p["device"] == device["device"])
        assert launches >= device["launches"], device  # a graph whose nodes are not known is one, too
    for component in report["energy"]["components"]:
        assert component["method"] in METHODS
    energies = [c["energy_uj"] for c in report["energy"]["components"]]
    known = [e for e in energies if e is not None]
    assert report["energy"]["components_unknown"] >= len(energies) - len(known), report["energy"]
    assert report["energy"]["total_uj"] in (sum(known), None), report["energy"]
    check_cpu(report)
    return report


def check_cpu(report):
    """Packages, and every way in which their energy is told apart, to the microjoule."""
    cpu = report["energy"].get("cpu")
    packages = [c["energy_uj"] for c in report["energy"]["components"] if c["kind"] == "cpu" and c["energy_uj"] is not None]
    if not cpu or not packages:
        return
    assert cpu["dynamic_uj"] + cpu["idle_uj"] == sum(packages)
    kinds = [c["energy_uj"] for c in report["energy"]["components"] if c["kind"] == "cpu"]
    assert cpu["packages_unknown"] == sum(e is None for e in kinds), cpu
    for lines in ("threads", "processes"):
        if cpu[lines] and report["run"]["cpu_time_ns"]:
            assert sum(line["energy_uj"] for line in cpu[lines]) == cpu["dynamic_uj"], lines
    if cpu["phases"]:
        assert sum(p["energy_uj"] for p in cpu["phases"]) == sum(packages)


def read_report(folder):
    return check_report(json.loads((folder / "report.json").read_text()))


class Run:
    """One finished run: what the program said and what kjoule left."""

    def __init__(self, done, folder):
        self.status, self.stdout, self.stderr, self.folder = done.returncode, done.stdout, done.stderr, folder

    @functools.cached_property
    def report(self):
        assert (self.folder / "report.json").exists(), f"no report; status {self.status}, stderr:\n{self.stderr.decode()}"
        return read_report(self.folder)

    def kernels(self):
        """launches by mangled name, over all devices"""
        counts = {}
        for kernel in self.report["kernels"]:
            counts[kernel["name"]] = counts.get(kernel["name"], 0) + kernel["launches"]
        return counts

    def device_uj(self):
        return sum(d["energy_uj"] for d in self.report["devices"])

    def component(self, kind):
        return [c for c in self.report["energy"]["components"] if c["kind"] == kind]


def bare(command, env=None, cwd=None, **kwargs):
    return Run(subprocess.run(list(map(str, command)), env=environment(env), cwd=cwd, capture_output=True, timeout=TIMEOUT_S,
                              **kwargs), None)


def wrapped(command, folder, options=(), env=None, cwd=None, timeout_s=TIMEOUT_S, **kwargs):
    """kjoule -o folder [options] -- command"""
    full = [KJOULE, "run", "-o", folder, *options, "--", *command]
    return Run(subprocess.run(list(map(str, full)), env=environment(env), cwd=cwd, capture_output=True, timeout=timeout_s,
                              **kwargs), folder)


def preloaded(command, folder, env=None, cwd=None, **kwargs):
    """LD_PRELOAD=libkjoule.so command, and no wrapper"""
    env = {"LD_PRELOAD": SHIM, "KJOULE_OUTPUT": folder, **(env or {})}
    run = Run(subprocess.run(list(map(str, command)), env=environment(env), cwd=cwd, capture_output=True, timeout=TIMEOUT_S,
                             **kwargs), folder)
    return run


def kjoule(*arguments, env=None, cwd=None):
    """a kjoule command that wraps nothing"""
    return Run(subprocess.run([str(KJOULE), *map(str, arguments)], env=environment(env), cwd=cwd, capture_output=True,
                              timeout=TIMEOUT_S), None)


def wait_for(condition, seconds=30, what="it"):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)
    return value


def is_probe(pid):
    """kjoule's own helper is no part of the program's tree."""
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip() in ("kjoule-probe", "kjoule")  # the second: not yet exec'd
    except FileNotFoundError:
        return False


def children(pid):
    try:
        pids = map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return [p for p in pids if not is_probe(p)]
    except FileNotFoundError:
        return []


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Sim:
    """A simulated machine of its own: script in, truth out."""

    def __init__(self, folder, script, tables=False):
        folder.mkdir(exist_ok=True)
        self.script, self.state, self.truth_file = folder / "script", folder / "state", folder / "truth.json"
        self.script.write_text(script)
        self.env = {"KJ_SIM_SCRIPT": self.script, "KJ_SIM_STATE": self.state, "KJ_SIM_TRUTH": self.truth_file,
                    "LD_LIBRARY_PATH": SIMGPU}
        if tables:
            if not LAB_TABLES.exists():
                pytest.skip("no ../shared/lab/private_tables.c: NVIDIA's own libcudart cannot start on the simulated driver")
            self.env["KJ_SIM_TABLES"] = LAB_TABLES

    def truth(self):
        return json.loads(self.truth_file.read_text())

    def kernels(self):
        counts = {}
        for device in self.truth()["devices"]:
            for kernel in device["kernels"]:
                counts[kernel["name"]] = counts.get(kernel["name"], 0) + kernel["launches"]
        return counts

    def energy_uj(self, until_ns=None):
        """Of all devices; up to a moment of CLOCK_MONOTONIC, or up to when the truth was written: that is after kjoule's report."""
        if until_ns is None:
            return sum(d["energy_uj"] for d in self.truth()["devices"])
        told = subprocess.run([SIMGPU / "simgpu-truth", "--at", str(until_ns), self.state], capture_output=True, check=True)
        return sum(map(int, told.stdout.split()))
