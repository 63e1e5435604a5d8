# SPDX-License-Identifier: Apache-2.0
"""What the checks share. A check is a generator of (row, figures): each row is kept as soon as it is yielded, so a check that hangs
afterwards, or breaks, loses none. figures["ok"] is True, False, or absent where there is nothing to hold."""
import collections
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
GPU = ROOT / "tests" / "gpu"
PROGRAMS = ROOT / "tests" / "programs"

# A check: what it may take in all, and what the machine must have for it (names of NEEDS).
Check = collections.namedtuple("Check", "name limit_s needs run")
Done = collections.namedtuple("Done", "status stdout stderr seconds")


class Skip(Exception):
    """The check, or a row of it, cannot be made here, for this reason."""


class Bench:
    """Where things are, and how to run them bare and wrapped."""

    def __init__(self, options, say):
        self.build, self.python, self.quick, self.left_s = pathlib.Path(options.build), options.python, options.quick, options.left_s
        self.out, self.say = pathlib.Path(options.out), say
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="kjoule-gpu."))
        self.number = 0

    def scaled(self, value, quick):
        return quick if self.quick else value

    def program(self, name, *arguments):
        path = self.build / name
        if not path.exists():
            raise Skip("%s is not built" % name)
        return [str(path), *map(str, arguments)]

    def expect(self, seconds, what=""):
        """The next step may stay silent for so long, and as much again as any step may."""
        self.say({"expect_s": seconds, "step": what})

    def run(self, command, seconds=0, env=None, **kwargs):
        """Runs a command that takes about `seconds`. One that hangs is ended with its whole check."""
        command = list(map(str, command))
        self.expect(seconds, " ".join(command)[-200:])
        start = time.monotonic()
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env={**os.environ, **(env or {})}, **kwargs)
        return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"), time.monotonic() - start)

    def wrapped(self, command, *options, **kwargs):
        """(what `kjoule run` of it did, its report or None)"""
        self.number += 1
        folder = self.work / ("run.%d" % self.number)
        done = self.run([self.build / "kjoule", "run", "-q", "-o", folder, *options, "--", *command], **kwargs)
        return done, read_json(folder / "report.json")

    def preloaded(self, command, **kwargs):
        """The same by a bare LD_PRELOAD."""
        self.number += 1
        folder = self.work / ("run.%d" % self.number)
        done = self.run(command, env={**preload(self.build / "libkjoule.so"), "KJOULE_OUTPUT": str(folder)}, **kwargs)
        return done, read_json(folder / "report.json")


def preload(library):
    """LD_PRELOAD with that library before the caller's."""
    return {"LD_PRELOAD": ":".join(filter(None, [str(library), os.environ.get("LD_PRELOAD")]))}


def read_json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def said(done):
    """What one of our programs printed: one JSON object."""
    if done.status:
        raise RuntimeError("ended with %d: %s" % (done.status, tail(done.stderr)))
    values = json.loads(done.stdout.strip().splitlines()[-1])
    if "skipped" in values:
        raise Skip(values["skipped"])
    return values


def lines_of(done):
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def tail(text, length=300):
    return text.strip()[-length:]


def alike(plain, wrapped):
    return plain.status == wrapped.status and plain.stdout == wrapped.stdout


def launches_of(report):
    """launches by mangled name, None without a report"""
    if report is None:
        return None
    counts = {}
    for kernel in report["kernels"]:
        counts[kernel["name"]] = counts.get(kernel["name"], 0) + kernel["launches"]
    return counts


def kernel_of(report, name):
    """What a report says of one kernel, and what that is per launch."""
    for kernel in report["kernels"] if report else []:
        if kernel["name"] == name:
            figures = {key: value for key, value in kernel.items() if value is not None and key not in ("name", "demangled", "device")}
            if kernel.get("time_ns") and kernel["launches"]:
                figures["us_each"] = round(kernel["time_ns"] / 1e3 / kernel["launches"], 4)
            return figures
    return {}


def timing_of(report):
    """How the one process that launched something was timed."""
    for process in report["processes"] if report else []:
        if process["launches"]:
            return process["timing"]
    return {"backend": None, "reason": "no launch was seen"}


def quality_of(report):
    if report is None:
        return {"report": None}
    return {"warnings": [str(w)[:300] for w in report["quality"]["warnings"]][:20], "unhooked": report["quality"]["unhooked"][:40]}


def within(value, truth, share, least=0):
    return value is not None and abs(value - truth) <= max(share * truth, least)


def ratio_of_pairs(bench, command, options, pairs, seconds_of, **kwargs):
    """Paired runs in changing order: wrapped / bare, and beside it what kjoule itself says that it cost."""
    ratios, seconds, own = [], {"bare": [], "wrapped": []}, []
    for i in range(pairs):
        took = {}
        for kind in ("bare", "wrapped") if i % 2 else ("wrapped", "bare"):
            done, report = (bench.run(command, **kwargs), None) if kind == "bare" else bench.wrapped(command, *options, **kwargs)
            if done.status:
                raise RuntimeError("%s ended with %d: %s" % (kind, done.status, tail(done.stderr)))
            took[kind] = seconds_of(done)
            seconds[kind].append(round(took[kind], 5))
            own += [report["overhead"]["share_of_duration"]] if report else []
        ratios.append(took["wrapped"] / took["bare"])
    return {"median": round(statistics.median(ratios), 5), "low": round(min(ratios), 5), "high": round(max(ratios), 5), "pairs": pairs,
            "own_share": own, "seconds": seconds}
