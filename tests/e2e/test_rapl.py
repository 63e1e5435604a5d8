# SPDX-License-Identifier: Apache-2.0
"""RAPL zones of known power in a mount namespace of their own: layouts as machines have them, wrapping, falling silent.

The trees are laid over /sys/class, where no other program of the machine sees them.
"""
import json
import os
import subprocess

import pytest

import kj
import probe

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace wants root")
RANGE_UJ = 262143328850

# folder: (name, watts); as /sys/class/powercap lists them on each machine
INTEL_SERVER = {  # two sockets, memory, platform: the layout of Sapphire Rapids
    "intel-rapl": (None, 0),
    "intel-rapl:0": ("package-0", 181.0), "intel-rapl:0:0": ("dram", 21.0),
    "intel-rapl:1": ("package-1", 97.0), "intel-rapl:1:0": ("dram", 17.0),
    "intel-rapl:2": ("psys", 402.0),
}
INTEL_LAPTOP = {  # one package with its parts, platform, and the package a second time by MMIO
    "intel-rapl": (None, 0), "intel-rapl-mmio": (None, 0),
    "intel-rapl:0": ("package-0", 28.0), "intel-rapl:0:0": ("core", 19.0), "intel-rapl:0:1": ("uncore", 2.0),
    "intel-rapl:1": ("psys", 41.0),
    "intel-rapl-mmio:0": ("package-0", 28.0),
}
AMD_SERVER = {  # packages and their cores, no memory
    "intel-rapl": (None, 0),
    "intel-rapl:0": ("package-0", 141.0), "intel-rapl:0:0": ("core", 11.0),
    "intel-rapl:1": ("package-1", 128.0), "intel-rapl:1:0": ("core", 9.0),
}
DIES = {  # two dies a package, as Cascade Lake AP names them
    "intel-rapl": (None, 0),
    "intel-rapl:0": ("package-0-die-0", 100.0), "intel-rapl:0:0": ("dram", 8.0),
    "intel-rapl:1": ("package-0-die-1", 80.0), "intel-rapl:1:0": ("dram", 6.0),
}


def run_with(zones, folder, tmp_path, command, start_uj=(), lost_ms=(), options=(), uid=0, env=None):
    """kjoule over a laid tree whose counters move; energies of each device as the tree drew them."""
    lines, counters = ["set -e", "mount -t tmpfs none /sys/class", "mkdir /sys/class/powercap"], []
    for zone, (name, watts) in zones.items():
        path = f"/sys/class/powercap/{zone}"
        lines.append(f"mkdir {path}")
        if name is None:
            continue
        lines += [f"echo {name} > {path}/name", f"echo {RANGE_UJ} > {path}/max_energy_range_uj"]
        counters += [f"{path}/energy_uj", dict(start_uj).get(zone, 1000), RANGE_UJ, watts, dict(lost_ms).get(zone, 0)]
    fifo = tmp_path / "counting"
    lines += [f"mkfifo {fifo}", f"{kj.program('rapl_counter')} {' '.join(map(str, counters))} > {fifo} &", "counter=$!",
              f"read line < {fifo}"]
    if uid:
        lines.append("chmod 400 /sys/class/powercap/*/energy_uj")
    words = [kj.KJOULE, "run", "-q", "-o", folder, *options, "--", *command]
    as_user = f"setpriv --reuid {uid} --clear-groups " if uid else ""
    lines += ["status=0", f"{as_user}{' '.join(map(str, words))} || status=$?", "kill $counter", "exit $status"]
    done = subprocess.run(["unshare", "-m", "sh", "-c", "\n".join(lines)], env=kj.environment(env), capture_output=True,
                          timeout=kj.TIMEOUT_S)
    run = kj.Run(done, folder)
    assert done.returncode == 0, done.stderr.decode()
    return run


def device_uj(run):
    return {c["device"]: c["device_energy_uj"] for c in run.report["energy"]["components"] if c["kind"] != "gpu"}


def expected_uj(run, watts):
    return watts * run.report["run"]["duration_ns"] * 1e-3


LOAD = ["spin", "1500"]


def load(*words):
    return [kj.program("cpu_load"), *words]


@pytest.mark.parametrize("source", ["auto", "off"])
def test_server_with_a_wrap_and_a_lost_zone(folder, tmp_path, source):
    run = run_with(INTEL_SERVER, folder, tmp_path, load("spin", "4000"), options=["--probe", source],
                   start_uj={"intel-rapl:0": RANGE_UJ - 300_000_000}, lost_ms={"intel-rapl:1:0": 2200})
    found = device_uj(run)
    assert sorted(found) == ["dram-0", "dram-1", "package-0", "package-1"]  # psys holds these, and is in no sum
    assert found["package-0"] == pytest.approx(expected_uj(run, 181.0), rel=0.005)  # wrapped 1.7 s into the run
    assert found["package-1"] == pytest.approx(expected_uj(run, 97.0), rel=0.005)
    assert found["dram-0"] == pytest.approx(expected_uj(run, 21.0), rel=0.005)
    assert found["dram-1"] == pytest.approx(expected_uj(run, 17.0), rel=0.02)  # extended past its end
    lost = next(c for c in run.report["energy"]["components"] if c["device"] == "dram-1")
    assert lost["coverage"] < 0.7
    assert any("dram-1" in w and "stopped answering" in w for w in run.report["quality"]["warnings"])
    (psys,) = run.report["energy"]["beside"]
    assert psys["device"] == "node" and psys["energy_uj"] == pytest.approx(expected_uj(run, 402.0), rel=0.005)
    assert run.report["energy"]["total_uj"] == sum(c["energy_uj"] for c in run.report["energy"]["components"])
    assert all(c["method"] == "measured" for c in run.report["energy"]["components"])


@pytest.mark.parametrize("zones,expected", [
    (INTEL_SERVER, {"package-0": 181.0, "package-1": 97.0, "dram-0": 21.0, "dram-1": 17.0}),
    (INTEL_LAPTOP, {"package-0": 28.0}),
    (AMD_SERVER, {"package-0": 141.0, "package-1": 128.0}),
    (DIES, {"package-0": 100.0, "package-0-die-1": 80.0, "dram-0": 8.0, "dram-0-die-1": 6.0}),
], ids=["intel-server", "intel-laptop", "amd-server", "dies"])
def test_layouts(folder, tmp_path, zones, expected):
    run = run_with(zones, folder, tmp_path, load(*LOAD), options=["--probe", "off"])
    found = {device: uj for device, uj in device_uj(run).items()
             if next(c for c in run.report["energy"]["components"] if c["device"] == device)["method"] == "measured"}
    assert sorted(found) == sorted(expected)
    for device, watts in expected.items():
        assert found[device] == pytest.approx(expected_uj(run, watts), rel=0.01), device
    shares = {c["device"]: c["share"] for c in run.component("cpu")}
    assert len(set(shares.values())) == 1 and all(0 <= s <= 1 for s in shares.values())


@pytest.mark.skipif(not probe.PROBE.exists(), reason="kjoule-probe is not built")
def test_zones_for_root_alone_are_read_by_the_probe(folder, tmp_path):
    """An ordinary user: without the probe the package is modelled, with it measured. Here it gets its capabilities by setcap."""
    place = tmp_path / "bin"
    place.mkdir()
    os.chmod(tmp_path, 0o755)
    for parent in (tmp_path.parent, tmp_path.parent.parent):
        os.chmod(parent, 0o755)
    for name in ("kjoule", "libkjoule.so", "kjoule-probe"):
        subprocess.run(["cp", kj.BUILD / name, place], check=True)
    subprocess.run(["setcap", "cap_bpf,cap_perfmon,cap_dac_read_search=ep", place / "kjoule-probe"], check=True)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    before = kj.KJOULE
    try:
        kj.KJOULE = place / "kjoule"
        reports = {}
        for mode in ("off", "auto"):
            (tmp_path / mode).mkdir()
            run = run_with(INTEL_SERVER, home / mode, tmp_path / mode, ["sh", "-c", "'i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done'"],
                           options=["--probe", mode], uid=65534)
            reports[mode] = run.report
    finally:
        kj.KJOULE = before
    off, on = reports["off"], reports["auto"]
    assert all(c["method"] == "modelled" for c in off["energy"]["components"])
    refused = next(s for s in off["provenance"]["sources"] if s["name"] == "rapl_powercap")
    assert not refused["accepted"] and "permission" in refused["reason"] and refused["remedy"]
    source = next(s for s in on["provenance"]["sources"] if s["name"] == "probe")
    assert source["accepted"], source
    packages = [c for c in on["energy"]["components"] if c["kind"] == "cpu"]
    assert sorted(c["device"] for c in packages) == ["package-0", "package-1"]
    assert all(c["method"] == "measured" for c in packages)
    assert on["energy"]["cpu"]["cpu_time_source"] == "probe"
    for c in packages:
        watts = dict(INTEL_SERVER.values())[c["device"]]
        assert c["device_energy_uj"] == pytest.approx(watts * on["run"]["duration_ns"] * 1e-3, rel=0.02)
