#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What only a real card can show: runs the checks of checks/table.py, one process each, and writes OUTDIR/results.json after every row of
figures. Needs a driver and Python 3.8; more is checked where nvcc, PyTorch, JAX, CuPy or NVIDIA's tools are.

    check.py OUTDIR [--build DIR] [--python PYTHON] [--only NAME,...] [--seconds 480] [--hang 20] [--quick]
    check.py --name       prints a name for the results: card, driver, date

A check is ended, with all processes it started, when a step of it is silent for --hang seconds longer than it said it may take, or when
the check's own limit is reached; its rows so far, and all other checks, are kept. At --seconds what is left is skipped, and said.
The exit status is 1 if a check failed, broke or hung.
"""
import argparse
import ctypes
import datetime
import json
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from checks.bench import ROOT, Bench, Check, Skip  # noqa: E402
from checks.table import CHECKS, NEEDS  # noqa: E402

PR_SET_CHILD_SUBREAPER = 36
FIND_MODULES = """
import importlib.util, os, re
for name in %r:
    spec = importlib.util.find_spec(name)
    version = spec and spec.origin and os.path.join(os.path.dirname(spec.origin), "version.py")
    if spec and (name != "torch" or re.search(r"^cuda\\b.*= '", open(version).read(), re.M)):
        print(name)
"""
ROW_BYTES_CAP = 40000


# ---- one check, in a process of its own: what it finds goes to descriptor RESULTS, one JSON object a line

def hangs(bench):
    """For the tests: figures, and then nothing more, while a process of its own goes on."""
    yield "before", {"ok": True}
    bench.run([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)


def one_check(options):
    results = os.fdopen(int(os.environ["KJ_CHECK_RESULTS"]), "w")

    def say(value):
        results.write(json.dumps(value, default=str) + "\n")
        results.flush()

    bench = Bench(options, say)
    try:
        for row, figures in {**{c.name: c.run for c in CHECKS}, "hang": hangs}[options.one](bench):
            text = json.dumps(figures, default=str)
            say({"row": row, "figures": figures if len(text) < ROW_BYTES_CAP else {"ok": figures.get("ok"), "cut": text[:ROW_BYTES_CAP]}})
        say({"end": {}})
    except Skip as reason:
        say({"end": {"skipped": str(reason)}})
    except Exception as error:  # a check that breaks is a result, and the others still count
        import traceback
        traceback.print_exc()
        say({"end": {"broke": "%s: %s" % (type(error).__name__, error)}})
    shutil.rmtree(str(bench.work), ignore_errors=True)


# ---- the runner

def descendants(pid):
    """All processes below that one; we are asked to adopt those whose parents have ended."""
    found = []
    try:
        for task in os.listdir("/proc/%d/task" % pid):
            with open("/proc/%d/task/%s/children" % (pid, task)) as file:
                for child in map(int, file.read().split()):
                    found += [child] + descendants(child)
    except OSError:
        pass
    return found


def end_all():
    for _ in range(3):  # one that is being forked meanwhile is met next time
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.02)


class Runner:
    def __init__(self, options):
        self.options, self.start = options, time.monotonic()
        self.out = pathlib.Path(options.out).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.log = open(str(self.out / "log.txt"), "a")
        self.results = {"schema": "kjoule.check-gpu/2", "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                        "kjoule": self.version(), "quick": options.quick, "finished": False, "checks": {}}

    @staticmethod
    def version():
        for path in (ROOT / "VERSION", ROOT / "build" / "VERSION"):
            if path.exists():
                return path.read_text().strip()
        return None

    def left_s(self):
        return self.start + self.options.seconds - time.monotonic()

    def write(self):
        """All figures so far; whoever reads the file, or ends us, finds it whole."""
        self.results["seconds"] = round(time.monotonic() - self.start, 1)
        file = self.out / "results.json.new"
        file.write_text(json.dumps(self.results, indent=1))
        os.replace(str(file), str(self.out / "results.json"))

    def run(self, check):
        figures = self.results["checks"][check.name] = {"ok": None, "rows": {}}
        start = time.monotonic()
        seen = self.results["checks"]
        missing = [need for need in check.needs.split()
                   if not NEEDS[need](self.modules) or (need != check.name and "skipped" in seen.get(need, {}))]
        if missing:
            figures["skipped"] = "no %s here" % ", ".join(missing)
        elif self.left_s() < 3:
            figures["skipped"] = "the time is up: %g s in all" % self.options.seconds
        else:
            self.watch(check, figures)
            end_all()
        figures["seconds"] = round(time.monotonic() - start, 1)
        held = [row.get("ok") for row in figures["rows"].values()]
        if any(key in figures for key in ("broke", "hung")) or False in held:
            figures["ok"] = False
        elif True in held:
            figures["ok"] = True
        self.write()
        self.tell(check.name, figures)

    def watch(self, check, figures):
        """Starts the check and reads what it says, until its end or ours for it."""
        reading, writing = os.pipe()
        command = [sys.executable, __file__, str(self.out), "--one", check.name, "--build", self.options.build, "--python", self.options.python,
                   "--left", str(min(check.limit_s, self.left_s()))] + (["--quick"] if self.options.quick else [])
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
                                   pass_fds=[writing], env={**os.environ, "KJ_CHECK_RESULTS": str(writing)})
        os.close(writing)
        limit = time.monotonic() + min(check.limit_s, self.left_s())
        silent, step, text, ended = time.monotonic() + self.options.hang, "its start", b"", False
        while not ended:
            wait_s = min(silent, limit) - time.monotonic()
            if wait_s <= 0:
                break
            if not select.select([reading], [], [], wait_s)[0]:
                continue
            data = os.read(reading, 1 << 16)
            if not data:
                ended = True
            *lines, text = (text + data).split(b"\n")
            for line in lines:
                said = json.loads(line.decode())
                silent = time.monotonic() + self.options.hang + said.get("expect_s", 0)
                step = said.get("step", step)
                if "row" in said:
                    figures["rows"][said["row"]] = said["figures"]
                    self.write()
                elif "end" in said:
                    figures.update(said["end"])
                    ended = True
        os.close(reading)
        if not ended:
            what = ("silent for %g s longer than it may be" % self.options.hang if silent <= limit else
                    "over its limit of %g s" % check.limit_s if self.left_s() > 0 else "the time is up: %g s in all" % self.options.seconds)
            figures["hung" if self.left_s() > 0 else "cut"] = "%s; ended in: %s" % (what, step)
        elif "skipped" not in figures and "broke" not in figures and process.poll():
            figures["broke"] = "ended with %d" % process.returncode
        try:
            process.wait(2 if ended else 0)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except OSError:
            pass

    @staticmethod
    def tell(name, figures):
        word = {True: "ok", False: "FAILED", None: "skipped" if "skipped" in figures else "seen"}[figures["ok"]]
        why = next((figures[key] for key in ("hung", "broke", "cut", "skipped") if key in figures), "")
        print("  %-8s %-18s %6.1f s  %s" % (word, name, figures["seconds"], why.strip().split("\n")[-1]), flush=True)
        for row, values in figures["rows"].items():
            if values.get("ok") is False:
                print("           %s: %s" % (row, json.dumps(values, default=str)[:400]), flush=True)

    def find_modules(self):
        """Which of the modules that checks need the other Python has, without importing them; a PyTorch without CUDA is none."""
        code = FIND_MODULES % ([name for name in sorted(NEEDS) if name.isidentifier()],)
        try:
            done = subprocess.run([self.options.python, "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=30)
            return done.stdout.decode().split()
        except (OSError, subprocess.TimeoutExpired):
            return []

    def run_all(self):
        self.modules = self.results["modules"] = self.find_modules()
        only = [name for name in self.options.only.split(",") if name]
        checks = [c for c in CHECKS if not only or c.name in only]
        if self.options.make_hang:
            checks.insert(1, Check("hang", 3 * self.options.hang, "", hangs))
        for check in checks:
            self.run(check)
        self.results["finished"] = True
        self.write()
        failed = [name for name, figures in self.results["checks"].items() if figures["ok"] is False]
        print("%d of %d checks held, were seen or skipped in %.0f s; figures: %s" % (len(checks) - len(failed), len(checks),
                                                                                     time.monotonic() - self.start, self.out / "results.json"))
        return 1 if failed else 0


def arguments():
    parser = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1].strip())
    parser.add_argument("out", metavar="OUTDIR", nargs="?")
    parser.add_argument("--name", action="store_true")
    parser.add_argument("--build", default=str(ROOT / "build"))
    parser.add_argument("--python", default=os.environ.get("KJ_TORCH_PYTHON") or shutil.which("python3") or sys.executable)
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--hang", type=float, default=20)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--left", dest="left_s", type=float, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--make-hang", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def name_of_results():
    from checks.nvidia import Nvml
    nvml = Nvml()
    parts = (nvml.text("nvmlDeviceGetName", nvml.device), nvml.text("nvmlSystemGetDriverVersion"), datetime.date.today().isoformat())
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", str(part)) for part in parts)


def main():
    options = arguments()
    if options.name:
        try:
            return print(name_of_results())
        except Skip as reason:
            sys.exit("check.py: no card: %s" % reason)
    if not options.out:
        sys.exit(__doc__)
    options.build = str(pathlib.Path(options.build).resolve())
    if options.one:
        return one_check(options)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: (end_all(), sys.exit(143)))
    return Runner(options).run_all()


if __name__ == "__main__":
    sys.exit(main())
