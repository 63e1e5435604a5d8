# SPDX-License-Identifier: Apache-2.0
"""However a run ends, there is a report."""
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import kj


def start(command, folder, env, **kwargs):
    """kjoule with the program's stdout on a pipe; returns the process and the program's pid once it trains."""
    full = [str(kj.KJOULE), "run", "-o", str(folder), "--", *map(str, command)]
    process = subprocess.Popen(full, env=kj.environment(env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)
    return process, kj.wait_for(lambda: kj.children(process.pid), what="the program")[0]


def read_until(process, line):
    for got in process.stdout:
        if got.strip() == line:
            return time.monotonic_ns()
    raise AssertionError(f"the program ended before it said {line}: {process.stderr.read().decode()}")


def forever():
    return [kj.program("cuda_driver"), "--steps", "100000000", "--progress"]


def test_killed_training(sim, folder):
    """kill -9 of the program: 137, and a report of everything up to then."""
    process, child = start(forever(), folder, sim.env)
    read_until(process, b"step 200")
    os.kill(child, signal.SIGKILL)
    steps = 200 + len(process.stdout.read().split(b"\n"))
    assert process.wait(30) == 137, process.stderr.read().decode()
    report = kj.read_report(folder)
    assert report["run"]["exit_status"] == 137
    for kernel in report["kernels"]:
        assert 200 <= kernel["launches"] <= steps + 2
    assert len(report["kernels"]) == 3
    assert report["devices"][0]["energy_uj"] > 1.0e6


def test_killed_recorder(sim, folder):
    """kill -9 of kjoule itself: `kjoule report` makes the report from the folder, all but the last second."""
    process, child = start(forever(), folder, sim.env)
    began = read_until(process, b"step 0")
    killed = read_until(process, b"step 600")
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    assert kj.alive(child), "the program must outlive its recorder"
    os.kill(child, signal.SIGKILL)
    process.stdout.close()
    kj.wait_for(lambda: not kj.alive(child), what="the program's end")
    done = kj.kjoule("report", folder, "--format", "json")
    assert done.status == 0, done.stderr.decode()
    report = kj.check_report(json.loads(done.stdout))
    assert {k["name"] for k in report["kernels"]} == {"train_gemm", "train_softmax", "train_update"}
    assert all(k["launches"] >= 600 for k in report["kernels"])
    covered_s = (killed - began) / 1e9 - 1.0
    assert covered_s > 1
    assert report["devices"][0]["energy_uj"] >= 85e6 * covered_s  # at least its idle power all that time
    assert any("record" in w["text"] if isinstance(w, dict) else "record" in w for w in report["quality"]["warnings"])


def test_terminate_is_forwarded(folder):
    process, _ = start(["sh", "-c", "trap 'echo term; exit 9' TERM; echo ready; while :; do sleep 0.05; done"], folder, {})
    read_until(process, b"ready")
    process.terminate()
    assert process.wait(30) == 9
    assert process.stdout.read() == b"term\n"
    assert kj.read_report(folder)["run"]["exit_status"] == 9


def test_status_of_a_signal(folder):
    run = kj.wrapped(["sh", "-c", "kill -SEGV $$"], folder)
    assert run.status == 128 + signal.SIGSEGV
    assert run.report["run"]["exit_status"] == 139


COUNT_INTERRUPTS = """
import os, signal, sys, time
got = []
signal.signal(signal.SIGINT, lambda *_: (got.append(1), os.write(2, b"INT\\n")))
print("ready", os.isatty(0), os.isatty(1), os.getpgrp() == os.tcgetpgrp(0), flush=True)
end = time.monotonic() + 20
while not got and time.monotonic() < end:
    time.sleep(0.02)
time.sleep(0.5)  # a second one would come now
sys.exit(40 + len(got))
"""


def read_terminal(fd, until, seconds=30):
    data, end = b"", time.monotonic() + seconds
    while until not in data and time.monotonic() < end:
        if not select.select([fd], [], [], 0.1)[0]:
            continue
        try:
            data += os.read(fd, 4096)
        except OSError:
            break
    return data


def test_ctrl_c(folder):
    """Ctrl-C on a terminal: the program gets it once, its status is kept, the report is written."""
    command = [str(kj.KJOULE), "run", "-o", str(folder), "--", sys.executable, "-c", COUNT_INTERRUPTS]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(command[0], command, kj.environment())
    said = read_terminal(terminal, b"True True True")
    assert b"ready True True True" in said
    os.write(terminal, b"\x03")
    said += read_terminal(terminal, b"report.json")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 41, said.decode()
    assert said.count(b"INT") == 1
    assert kj.read_report(folder)["run"]["exit_status"] == 41


def test_ctrl_c_by_default(folder):
    """A program that dies of the interrupt: 130."""
    command = [str(kj.KJOULE), "run", "-o", str(folder), "--", "sh", "-c", "echo ready; exec sleep 20"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(command[0], command, kj.environment())
    read_terminal(terminal, b"ready")
    os.write(terminal, b"\x03")
    read_terminal(terminal, b"report.json")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in (130, -signal.SIGINT)
    assert kj.read_report(folder)["run"]["exit_status"] == 130


def test_ctrl_z(folder):
    """Job control: a shell stops and resumes the job as without kjoule."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve("/bin/bash", ["bash", "--norc", "-i"], kj.environment({"PS1": "$ ", "HISTFILE": "/dev/null"}))
    # No shell's own child here: one that is stopped between its vfork and its exec holds up the shell for good, with and without us.
    program = "import time; print('rea' 'dy', flush=True); time.sleep(1); print('do' 'ne', flush=True); raise SystemExit(6)"
    line = f"{kj.KJOULE} run -q -o {folder} -- {sys.executable} -c \"{program}\"\n"
    os.write(terminal, line.encode())
    assert b"ready" in read_terminal(terminal, b"ready")
    os.write(terminal, b"\x1a")
    assert b"Stopped" in read_terminal(terminal, b"Stopped")
    os.write(terminal, b"fg\n")
    assert b"done" in read_terminal(terminal, b"done")
    os.write(terminal, b"echo status=$?\n")
    assert b"status=6" in read_terminal(terminal, b"status=6")
    os.write(terminal, b"exit\n")
    read_terminal(terminal, b"\0", 10)  # to its end: a shell waits until its last words are read
    os.waitpid(pid, 0)
    assert kj.read_report(folder)["run"]["exit_status"] == 6
