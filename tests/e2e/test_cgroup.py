# SPDX-License-Identifier: Apache-2.0
"""Control groups without the probe: CPU time that only the group remembers, and a quota beside a host that is busy."""
import json
import os
import pathlib
import subprocess
import tempfile
import time

import pytest

import kj

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making a control group wants root")
MOUNT = pathlib.Path("/sys/fs/cgroup")
CPUACCT = [MOUNT / "cpuacct", MOUNT / "cpu,cpuacct"]
UNIFIED = [MOUNT, MOUNT / "unified"]
LOST = ("ignored", 60, 5)  # 60 children of 5 ms that nobody waits for
LOST_NS = 60 * 5e6


@pytest.fixture
def group():
    """Makes a control group, and takes it away when whoever was in it has gone."""
    made = []

    def make(mounts, file):
        for mount in mounts:
            try:
                path = pathlib.Path(tempfile.mkdtemp(prefix="kj_test.", dir=mount))
            except OSError:
                continue
            if not (path / "cgroup.procs").exists():
                path.rmdir()  # a plain folder where mounts lie
                continue
            made.append(path)
            if (path / file).exists():
                return path
        pytest.skip(f"no control group with {file} can be made here")
    yield make
    for path in made:
        kj.wait_for(lambda: not (path / "cgroup.procs").read_text(), what="the control group to be empty")
        path.rmdir()


def run_in(groups, folder, *words, options=(), joins=()):
    """kjoule as a process of those groups, started by a shell that is in them too."""
    join = "; ".join(f"echo $$ > {path}/cgroup.procs" for path in groups)
    command = [kj.KJOULE, "run", "-q", "-o", folder, "--probe", "off", *options, "--", *words]
    script = f"{join}; {'; '.join(joins)}{';' if joins else ''} {' '.join(map(str, command))}; exit $?"
    done = subprocess.run(["sh", "-c", script], env=kj.environment(), capture_output=True, timeout=kj.TIMEOUT_S)
    assert done.returncode == 0, done.stderr.decode()
    return kj.Run(done, folder)


def source(run):
    return next(s for s in run.report["provenance"]["sources"] if s["name"] == "cgroup")


@pytest.mark.parametrize("mounts,file", [(CPUACCT, "cpuacct.usage"), (UNIFIED, "cpu.stat")], ids=["v1", "v2"])
def test_children_that_nobody_waits_for(folder, group, mounts, file):
    path = group(mounts, file)
    run = run_in([path], folder, kj.program("cpu_load"), *LOST)
    own_ns = json.loads(run.stdout)["cpu_s"] * 1e9
    assert source(run)["accepted"], source(run)
    # their births and ends cost too, and are told to nobody else
    assert LOST_NS + own_ns <= run.report["run"]["cpu_time_ns"] <= 1.1 * (LOST_NS + own_ns) + 20e6


def test_exact_where_it_is_alone(folder, group):
    run = run_in([group(CPUACCT, "cpuacct.usage")], folder, kj.program("cpu_load"), "children", 200, 4000)
    truth_ns = json.loads(run.stdout)["cpu_s"] * 1e9
    assert source(run)["accepted"]
    assert run.report["run"]["cpu_time_ns"] == pytest.approx(truth_ns, rel=0.03, abs=5e6)


def test_others_in_the_group_are_not_ours(folder, group):
    path = group(CPUACCT, "cpuacct.usage")
    run = run_in([path], folder, "sleep", "0.5", joins=[f"{kj.program('cpu_load')} spin 400 > /dev/null & :"])
    assert not source(run)["accepted"]
    assert run.report["run"]["cpu_time_ns"] < 100e6


def test_a_quota_beside_a_busy_host(folder, group):
    """What the host burns is not the container's: of the dynamic energy it gets by its own CPU time, of the idle by its quota."""
    path = group([MOUNT / "cpu", MOUNT / "cpu,cpuacct", MOUNT], "cpu.cfs_quota_us")
    (path / "cpu.cfs_quota_us").write_text("50000")
    host = subprocess.Popen([kj.program("cpu_load"), "spin", "60000"], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.1)
        run = run_in([path], folder, "sleep", "1.5")
    finally:
        host.kill()
        host.wait()
    cpu, cores = run.report["energy"]["cpu"], os.cpu_count()
    assert run.report["run"]["cores_quota"] == 0.5
    assert cpu["idle_rule"] == "cores" and cpu["reserved_share"] == pytest.approx(0.5 / cores)
    assert run.report["run"]["cpu_time_ns"] < 100e6
    device_uj = sum(c["device_energy_uj"] for c in run.component("cpu"))
    assert cpu["dynamic_uj"] < 0.1 * device_uj
    assert cpu["idle_uj"] < 0.5 / cores * device_uj
