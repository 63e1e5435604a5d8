# SPDX-License-Identifier: Apache-2.0
"""On-CPU time of a run's process tree against what the kernel charged it, with kjoule-probe and without."""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

import kj
import probe

LOAD = "cpu_load"
WORKLOADS = {
    "one spinner": ("spin", 1200),
    "four spinners": ("spin", 400, 4),
    "1,000 short-lived children": ("children", 1000, 1000),
    "threads that come and go": ("threads", 80, 15),
    "23 forks of forks": ("forks", 23, 60),
    "exec from a second thread": ("exec", 800),
}
HAVE_PROBE = probe.PROBE.exists() and os.geteuid() == 0


def with_probe(run):
    return next((s for s in run.report["provenance"]["sources"] if s["name"] == "probe"), None)


def run_load(folder, *arguments, options=()):
    run = kj.wrapped([kj.program(LOAD), *arguments], folder, options=options)
    assert run.status == 0, run.stderr.decode()
    return run, json.loads(run.stdout.decode().splitlines()[-1])["cpu_s"] * 1e9


@pytest.mark.parametrize("workload", WORKLOADS)
def test_without_probe(folder, workload):
    run, truth_ns = run_load(folder, *WORKLOADS[workload], options=["--probe", "off"])
    assert with_probe(run) is None
    # what the program still does after it has looked at its clock, its end above all, is its own too
    assert run.report["run"]["cpu_time_ns"] == pytest.approx(truth_ns, rel=0.03, abs=5e6)


@pytest.mark.skipif(not HAVE_PROBE, reason="kjoule-probe is not built, or this is no root")
@pytest.mark.parametrize("workload", WORKLOADS)
def test_with_probe(folder, workload):
    """The load waits until the recorder has said what it measures by. Where that is not the probe, its time is known as without it."""
    command = [kj.KJOULE, "run", "-q", "-o", folder, "--", "sh", "-c", 'read go; exec "$@"', "sh", kj.program(LOAD), *WORKLOADS[workload]]
    process = subprocess.Popen(list(map(str, command)), env=kj.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    said, until = folder / "run.json", time.monotonic() + kj.TIMEOUT_S
    while not (said.exists() and '"probe"' in said.read_text()):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    stdout, _ = process.communicate(b"go\n", timeout=kj.TIMEOUT_S)
    report, truth_ns = kj.read_report(folder), json.loads(stdout)["cpu_s"] * 1e9
    (source,) = [s for s in report["provenance"]["sources"] if s["name"] == "probe"]
    assert source["accepted"] or source["reason"] == "kjoule-probe did not answer in time", source
    off = {"rel": 0.01, "abs": 3e6} if source["accepted"] else {"rel": 0.03, "abs": 5e6}
    assert report["run"]["cpu_time_ns"] == pytest.approx(truth_ns, **off)


@pytest.mark.skipif(not HAVE_PROBE, reason="kjoule-probe is not built, or this is no root")
@pytest.mark.parametrize("ms, said", [(3000, "kjoule-probe did not answer in time"), (100, "the run ended before kjoule-probe measured")])
def test_a_probe_that_is_late_is_said(folder, tmp_path, ms, said):
    """And time is as without it."""
    for name in ("kjoule", "libkjoule.so"):
        shutil.copy(kj.BUILD / name, tmp_path / name)
    slow = tmp_path / "kjoule-probe"
    slow.write_text(f"#!/bin/sh\n/bin/sleep 4\nexec {probe.PROBE} \"$@\"\n")
    slow.chmod(0o755)
    done = subprocess.run([tmp_path / "kjoule", "run", "-q", "-o", folder, "--", kj.program(LOAD), "spin", str(ms)], env=kj.environment(),
                          capture_output=True, timeout=kj.TIMEOUT_S)
    assert done.returncode == 0, done.stderr.decode()
    run, truth_ns = kj.Run(done, folder), json.loads(done.stdout)["cpu_s"] * 1e9
    source = with_probe(run)
    assert not source["accepted"] and source["reason"] == said, source
    assert run.report["run"]["cpu_time_ns"] == pytest.approx(truth_ns, rel=0.03, abs=5e6)


@pytest.mark.parametrize("words", [(), ("raw",)], ids=["btf", "raw"])
@pytest.mark.skipif(not HAVE_PROBE, reason="kjoule-probe is not built, or this is no root")
@pytest.mark.parametrize("workload", WORKLOADS)
def test_probe_alone(workload, words):
    """The probe's own sum, with nothing of /proc to lean on; and its threads add up to it."""
    p = probe.Probe(*words)
    assert p.wait(probe.READY), [probe.text(r) for r in p.records]
    _, truth_ns = p.run([kj.program(LOAD), *WORKLOADS[workload]])
    last = p.stop()
    assert last["tree_ns"] == pytest.approx(truth_ns, rel=0.01)
    assert last["unlisted"] == 0
    assert sum(t[0] for t in p.threads().values()) == pytest.approx(last["tree_ns"], rel=0.005)


def charged_ns(pid, field=0):
    """The scheduler's own sum for each thread, exact while it is blocked; field 2: in how many slices."""
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return {(pid, int(task.name)): int((task / "schedstat").read_text().split()[field]) for task in tasks}


@pytest.mark.parametrize("words", [(), ("raw",), ("raw", "wall")], ids=["btf", "raw", "by the clock"])
@pytest.mark.skipif(not HAVE_PROBE, reason="kjoule-probe is not built, or this is no root")
def test_time_is_what_the_scheduler_charged(words):
    """To the nanosecond, thread by thread, over hundreds of switches; and where it is by the clock, it says so and is not."""
    p = probe.Probe(*words)
    ready = p.wait(probe.READY)
    assert ready, [probe.text(r) for r in p.records]
    child = p.start([kj.program(LOAD), "rest", 60, 3], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"resting\n"
    time.sleep(0.1)
    charged, slices = charged_ns(child.pid), charged_ns(child.pid, 2)
    p.stop()
    assert charged_ns(child.pid) == charged, "they did not rest"
    child.communicate()
    counted = {ids: thread[0] for ids, thread in p.threads().items()}
    assert len(charged) == 4
    if "wall" not in words:
        assert "time by the scheduler's own sum" in probe.text(ready)
        assert counted == charged
        return
    assert "time by the clock, with what the host of a virtual machine steals" in probe.text(ready)
    workers = [ids for ids in charged if ids[0] != ids[1]]  # the first one ran before we looked
    assert not [ids for ids in workers if counted[ids] == charged[ids]]
    # each slice is charged from a little before its tracepoint: in these of 0.3 ms, 1 to 4 % of them
    assert all(counted[ids] > charged[ids] - 20e3 * slices[ids] for ids in workers), (counted, charged, slices)


@pytest.mark.parametrize("words", [(), ("raw",), ("raw", "wall"), ("raw", "unfreed")], ids=["btf", "raw", "by the clock", "unheard"])
@pytest.mark.skipif(not HAVE_PROBE, reason="kjoule-probe is not built, or this is no root")
def test_who_is_gone_is_forgotten(words):
    """Rows are given back, and not made anew at a last switch: each thread's last numbers come once, also where the kernel says nothing of its end."""
    p = probe.Probe(*words)
    assert p.wait(probe.READY), [probe.text(r) for r in p.records]
    child = p.start(["sh", "-c", f"{kj.program(LOAD)} children 300 200; {kj.program(LOAD)} threads 40 1; read go"], stdout=subprocess.PIPE)
    for _ in range(2):
        assert child.stdout.readline().startswith(b"{")
    end = time.monotonic() + kj.TIMEOUT_S
    while time.monotonic() < end:
        assert p.read()
        if len(p.dead()) >= 342:
            break
    last = p.stop()
    child.communicate(b"\n")
    assert len(p.dead()) == len(set(p.dead())) == 342, "300 children, 40 threads, the two that had them"
    assert last["threads"] == 1, "the shell that waits"


RING = """
import ctypes, os, sys, time
def burn(s):
    end = time.thread_time() + s
    while time.thread_time() < end:
        pass
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
ring = ctypes.CDLL(None).syscall(425, 8, (ctypes.c_uint32 * 30)(0, 0, 2))  # io_uring_setup, with a thread that polls
if ring < 0:
    sys.exit(77)
burn(.05)
os.close(ring)
time.sleep(.1)
burn(.3)
"""


@pytest.mark.parametrize("words", [(), ("raw",)], ids=["btf", "raw"])
@pytest.mark.skipif(not HAVE_PROBE, reason="kjoule-probe is not built, or this is no root")
def test_a_thread_that_no_fork_tells_of(words):
    """The kernel's own in a process of the tree, as for io_uring: its end is not the process's."""
    p = probe.Probe(*words)
    assert p.wait(probe.READY), [probe.text(r) for r in p.records]
    status, truth_ns = p.run([sys.executable, "-c", RING])
    last = p.stop()
    if status == 77:
        pytest.skip("the kernel lets nobody set up an io_uring")
    assert status == 0
    assert last["tree_ns"] == pytest.approx(truth_ns, rel=0.01)


@pytest.mark.parametrize("words", [(), ("raw",)], ids=["btf", "raw"])
@pytest.mark.skipif(not HAVE_PROBE, reason="kjoule-probe is not built, or this is no root")
def test_exec_that_waits_for_the_disk(words, tmp_path):
    """A second thread has the first one's number, and is switched out, before its exec is told: its past counts once."""
    program = tmp_path / "program"
    shutil.copy(os.path.realpath(sys.executable), program)
    with open(program) as file:
        os.fsync(file.fileno())
    p = probe.Probe(*words)
    assert p.wait(probe.READY), [probe.text(r) for r in p.records]
    status, truth_ns = p.run([kj.program(LOAD), "exec", 400, program])
    assert status == 0
    assert p.stop()["tree_ns"] == pytest.approx(truth_ns, rel=0.01)
    assert sum(t[0] for t in p.threads().values()) == pytest.approx(truth_ns, rel=0.01)


@pytest.mark.parametrize("words", [(), ("raw",)], ids=["btf", "raw"])
@pytest.mark.skipif(not HAVE_PROBE, reason="kjoule-probe is not built, or this is no root")
def test_numbers_that_change_hands(words):
    """Many execs from second threads while the first ones burn: nothing is lost, counted twice, or to the other's sum."""
    p = probe.Probe(*words)
    assert p.wait(probe.READY), [probe.text(r) for r in p.records]
    _, truth_ns = p.run(["sh", "-c", f"i=0; while [ $i -lt 60 ]; do {kj.program(LOAD)} exec 20; i=$((i+1)); done"])
    last = p.stop()
    assert last["tree_ns"] == pytest.approx(truth_ns, rel=0.01)
    assert sum(t[0] for t in p.threads().values()) == pytest.approx(last["tree_ns"], rel=0.005)


@pytest.mark.parametrize("words", [(), ("raw",)], ids=["btf", "raw"])
@pytest.mark.skipif(not HAVE_PROBE, reason="kjoule-probe is not built, or this is no root")
def test_a_first_switch_that_is_the_last(words):
    """A process that is watched while it is blocked and then ends at once: what it burnt before is its own too."""
    p = probe.Probe(*words)
    assert p.wait(probe.READY), [probe.text(r) for r in p.records]
    child = subprocess.Popen(["sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo burnt; read go"], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"burnt\n"
    time.sleep(0.1)
    p.watch(child.pid)
    p.wait(probe.WATCHING)
    child.stdin.write(b"\n")
    child.stdin.close()
    _, _, usage = os.wait4(child.pid, 0)
    child.returncode = 0
    time.sleep(0.3)  # without BTF it is forgotten once the kernel lets go of it
    last = p.stop()
    assert last["tree_ns"] == pytest.approx((usage.ru_utime + usage.ru_stime) * 1e9, rel=0.01)
    assert last["unlisted"] == 0
    assert p.dead() == [(child.pid, child.pid)]


@pytest.mark.parametrize("words", [("clock",), ("clock", "raw")], ids=["btf", "raw"])
@pytest.mark.skipif(not HAVE_PROBE, reason="kjoule-probe is not built, or this is no root")
def test_counters_follow_the_tree(words):
    """The programs with counting in them, on a counter that every machine has: nanoseconds of the CPUs in place of cycles."""
    p = probe.Probe(*words)
    ready = p.wait(probe.READY)
    assert ready and ready.value == 1, [probe.text(r) for r in p.records]
    other = subprocess.Popen([kj.program(LOAD), "spin", "100000"], stdout=subprocess.DEVNULL)
    p.run([kj.program(LOAD), "threads", 40, 20])
    last = p.stop()
    other.kill()
    other.wait()
    # of a slice that began before the program was in the tree, the counters know nothing; the interrupts' time is in the counters alone
    assert last["tree_cycles"] == pytest.approx(last["tree_ns"], rel=0.05)
    assert last["tree_instructions"] == pytest.approx(last["tree_cycles"], rel=0.02)
    assert last["all_cycles"] > 1.3 * last["tree_cycles"]
    _, cycles, instructions = p.thread_counters()
    assert cycles == pytest.approx(last["tree_cycles"], rel=0.02) and instructions == pytest.approx(last["tree_instructions"], rel=0.02)


@pytest.mark.skipif(not HAVE_PROBE, reason="kjoule-probe is not built, or this is no root")
def test_a_kernel_without_btf(folder):
    """Where the kernel shows no type information, by raw tracepoints: hidden here in a mount namespace."""
    words = [kj.KJOULE, "run", "-q", "-o", folder, "--", kj.program(LOAD), *WORKLOADS["23 forks of forks"]]
    script = f"mount -t tmpfs none /sys/kernel/btf && exec {' '.join(map(str, words))}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], env=kj.environment(), capture_output=True, timeout=kj.TIMEOUT_S)
    assert done.returncode == 0, done.stderr.decode()
    truth_ns, run = json.loads(done.stdout)["cpu_s"] * 1e9, kj.Run(done, folder)
    assert with_probe(run)["accepted"] and "raw tracepoint" in with_probe(run)["reason"], with_probe(run)
    assert run.report["run"]["cpu_time_ns"] == pytest.approx(truth_ns, rel=0.01, abs=3e6)


@pytest.mark.skipif(not HAVE_PROBE, reason="kjoule-probe is not built, or this is no root")
def test_orphans_are_not_lost(folder):
    run, own_ns = run_load(folder, "orphans", 10, 80)
    burnt_ns = 800e6 + own_ns
    assert burnt_ns <= run.report["run"]["cpu_time_ns"] <= 1.1 * burnt_ns  # the orphans' own births and ends cost too


def test_two_trees_at_once(tmp_path):
    """Each gets its own, with the probe where there is one."""
    loads = {"a": 700, "b": 1400}
    started = {name: subprocess.Popen([str(kj.KJOULE), "run", "-q", "-o", str(tmp_path / name), "--", kj.program(LOAD), "spin", str(ms)],
                                      env=kj.environment(), stdout=subprocess.PIPE) for name, ms in loads.items()}
    for name, process in started.items():
        out, _ = process.communicate(timeout=kj.TIMEOUT_S)
        truth_ns = json.loads(out)["cpu_s"] * 1e9
        report = kj.read_report(tmp_path / name)
        assert report["run"]["cpu_time_ns"] == pytest.approx(truth_ns, rel=0.01, abs=3e6)
        assert report["run"]["cpu_time_ns"] == pytest.approx(loads[name] * 1e6, rel=0.05)
