# SPDX-License-Identifier: Apache-2.0
"""On-CPU time of a run's process tree against what the kernel charged it, with kjoule-probe and without."""
import json
import os
import subprocess

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
    run, truth_ns = run_load(folder, *WORKLOADS[workload])
    assert with_probe(run)["accepted"], with_probe(run)
    assert run.report["run"]["cpu_time_ns"] == pytest.approx(truth_ns, rel=0.01, abs=3e6)


@pytest.mark.parametrize("words", [(), ("raw",)], ids=["btf", "raw"])
@pytest.mark.skipif(not HAVE_PROBE, reason="kjoule-probe is not built, or this is no root")
@pytest.mark.parametrize("workload", WORKLOADS)
def test_probe_alone(workload, words):
    """The probe's own sum, with nothing of /proc to lean on; and its threads add up to it."""
    p = probe.Probe(*words)
    assert p.wait(probe.READY), [probe.text(r) for r in p.records]
    command = ["sh", "-c", 'read go; exec "$@"', "sh", kj.program(LOAD), *map(str, WORKLOADS[workload])]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    p.watch(child.pid)
    p.wait(probe.WATCHING)
    child.stdin.write(b"\n")
    child.stdin.close()
    _, _, usage = os.wait4(child.pid, 0)
    child.returncode = 0
    last = p.stop()
    truth_ns = (usage.ru_utime + usage.ru_stime) * 1e9
    assert last["tree_ns"] == pytest.approx(truth_ns, rel=0.01)
    assert last["unlisted"] == 0
    assert sum(t[0] for t in p.threads().values()) == pytest.approx(last["tree_ns"], rel=0.005)


@pytest.mark.parametrize("words", [("clock",), ("clock", "raw")], ids=["btf", "raw"])
@pytest.mark.skipif(not HAVE_PROBE, reason="kjoule-probe is not built, or this is no root")
def test_counters_follow_the_tree(words):
    """The programs with counting in them, on a counter that every machine has: nanoseconds of the CPUs in place of cycles."""
    p = probe.Probe(*words)
    ready = p.wait(probe.READY)
    assert ready and ready.value == 1, [probe.text(r) for r in p.records]
    other = subprocess.Popen([kj.program(LOAD), "spin", "100000"], stdout=subprocess.DEVNULL)
    child = subprocess.Popen(["sh", "-c", 'read go; exec "$@"', "sh", kj.program(LOAD), "threads", "40", "20"], stdin=subprocess.PIPE,
                             stdout=subprocess.DEVNULL)
    p.watch(child.pid)
    p.wait(probe.WATCHING)
    child.communicate(b"\n")
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
