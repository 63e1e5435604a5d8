# SPDX-License-Identifier: Apache-2.0
"""Durations: short kernels on idle and on backlogged streams, graphs, copies, by events and by CUPTI."""
import glob
import os
import pathlib

from .bench import (Skip, alike, kernel_of, launches_of, quality_of, said, tail, timing_of, within)

SIZES_US = (2, 5, 10, 50)
# Ways of tests/programs/cuda_graphs.c to make, change and launch a graph.
WAYS = ("capture", "threads", "build", "update", "change", "large", "churn", "forbidden", "elsewhere", "alone", "differ", "beside", "shapes",
        "conditional", "children", "copies", "edited", "many")


def cupti_environment(bench):
    """LD_LIBRARY_PATH with a libcupti on it: the caller's, the toolkit's, PyTorch's."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    own = os.environ.get("LD_LIBRARY_PATH", "")
    folders = [f for f in own.split(":") if f] + [home + "/extras/CUPTI/lib64", home + "/lib64", home + "/lib"]
    folders += [folder + "/cupti" for folder in own.split(":") if folder]
    done = bench.run([bench.python, "-c", "import nvidia; print(*nvidia.__path__, sep='\\n')"])
    for root in done.stdout.split() if done.status == 0 else []:
        folders += sorted({str(p.parent) for p in pathlib.Path(root).glob("**/libcupti.so.1*")})
    found = [f for f in folders if glob.glob(f + "/libcupti.so.1*")][:1]
    return {"LD_LIBRARY_PATH": ":".join(filter(None, [own, *found]))}


def check_short_kernels(bench):
    """Kernels of 2, 5, 10 and 50 us, each on an idle stream and behind others: events beside CUPTI beside the program's own events."""
    count = bench.scaled(2000, 400)
    rounds = said(bench.run(bench.program("gpu/workload", "short", count), seconds=10))["rounds"]
    command = bench.program("gpu/workload", "short", count, *rounds)
    env = cupti_environment(bench)
    runs = {"events": bench.wrapped(command, "--budget", "100", seconds=10), "1 % budget": bench.wrapped(command, seconds=10),
            "cupti": bench.wrapped(command, "--timing", "cupti", seconds=15, env=env)}
    own = {how: said(done) for how, (done, _) in runs.items()}
    with_cupti = timing_of(runs["cupti"][1])["backend"] == "cupti"
    yield "timing", {how: timing_of(report) for how, (_, report) in runs.items()}
    for kind in ("burn", "queued"):
        for us in SIZES_US:
            name = "%s_%dus" % (kind, us)
            figures = {how: kernel_of(report, name) for how, (_, report) in runs.items()}
            truth = figures["cupti"].get("us_each") if with_cupti else None
            if kind == "queued":
                figures["us_each_by_own_events"] = own["events"]["queued_us_by_own_events"][str(us)]
                truth = truth or figures["us_each_by_own_events"]
            figures["ok"] = all(f.get("launches") == own[how]["launches"][name] for how, f in figures.items() if how in runs)
            if truth:
                figures["ok"] = figures["ok"] and within(figures["events"].get("us_each"), truth, 0.03, 0.3)
            yield "%d us, %s stream" % (us, "idle" if kind == "burn" else "backlogged"), figures


def check_long_kernels(bench):
    """1 and 20 ms: ours beside the program's own events."""
    for ms, count in ((1, bench.scaled(300, 50)), (20, bench.scaled(40, 5))):
        done, report = bench.wrapped(bench.program("gpu/workload", "compute", count, ms), "--budget", "100", seconds=15)
        own, kernel = said(done), kernel_of(report, "burn")
        own_us = own["events_ms"] * 1e3 / count
        yield "%d ms" % ms, {**kernel, "us_each_by_own_events": own_us,
                             "ok": kernel.get("launches") == own["launches"]["burn"] and within(kernel.get("us_each"), own_us, 0.1)}


def check_cupti(bench):
    """--timing cupti: each node of a graph, how many records found their launch, ends of a process, what it costs."""
    env = cupti_environment(bench)
    done, report = bench.wrapped(bench.program("gpu/workload", "compute", 20, 1), "--timing", "cupti", env=env, seconds=10)
    how = timing_of(report)
    yield "attached", {**how, "ok": how["backend"] == "cupti" or None, "stderr": tail(done.stderr)}
    if how["backend"] != "cupti":
        raise Skip("CUPTI was not attached: %s" % how["reason"])
    for way in WAYS:
        command = bench.program("programs/cuda_graphs", way, bench.scaled(50, 5))
        plain, (done, report) = bench.run(command, seconds=5), bench.wrapped(command, "--timing", "cupti", env=env, seconds=10)
        yield "graph " + way, {"ok": alike(plain, done) and report is not None, "timing": timing_of(report),
                               "kernels": {k["name"]: kernel_of(report, k["name"]) for k in report["kernels"]} if report else None,
                               "stderr": tail(done.stderr)}
    for end in ("return", "_exit", "reset", "segv"):
        command = bench.program("gpu/workload", "end", end)
        plain, (done, report) = bench.run(command, seconds=5), bench.wrapped(command, "--timing", "cupti", env=env, seconds=10)
        yield "end " + end, {"ok": done.status == shell_status(plain.status) and report is not None, "status": [plain.status, done.status],
                             "timing": timing_of(report)}


def shell_status(status):
    return status if status >= 0 else 128 - status


def check_graphs(bench):
    """Graphs made, changed and captured in every way: what is legal alone is legal beside us, and only that."""
    for way in WAYS:
        command = bench.program("programs/cuda_graphs", way, bench.scaled(50, 5))
        plain = bench.run(command, seconds=5)
        done, report = bench.wrapped(command, seconds=5)
        yield way, {"ok": alike(plain, done) and report is not None, "status": [plain.status, done.status],
                    "differs": "" if plain.stdout == done.stdout else [tail(plain.stdout), tail(done.stdout)], "launches": launches_of(report),
                    "seconds": [round(plain.seconds, 3), round(done.seconds, 3)], **quality_of(report)}
