# SPDX-License-Identifier: Apache-2.0
"""Programs of the kinds that are easily recorded wrongly, each beside what it knows of itself."""
from .bench import Skip, alike, kernel_of, launches_of, lines_of, preload, quality_of, said, tail, timing_of, within
from .timing import cupti_environment, shell_status


def recorded(bench, command, *options, seconds=5, **kwargs):
    """(what it said of itself when wrapped, its report, figures that every such row has)"""
    plain = said(bench.run(command, seconds=seconds, **kwargs))
    done, report = bench.wrapped(command, *options, seconds=seconds, **kwargs)
    own = said(done)
    seen = launches_of(report) or {}
    figures = {"ok": all(seen.get(name) == count for name, count in own["launches"].items()), "launches": own["launches"], "seen": seen,
               "alone": {k: v for k, v in plain.items() if k != "launches"}, "wrapped": {k: v for k, v in own.items() if k != "launches"},
               **quality_of(report)}
    return own, report, figures


def check_driver_programs(bench):
    """The driver API in every way to its functions: the program says the same, and every launch is counted."""
    steps = bench.scaled(200, 50)
    for flags in ([], ["--door", "versioned"], ["--stream", "legacy"], ["--stream", "per-thread"], ["--graph"], ["--library"], ["--async"],
                  ["--threads", "4"], ["--processes", "3"]):
        command = bench.program("programs/cuda_driver", "--steps", steps, *flags)
        plain = bench.run(command, seconds=5)
        own = sum(int(word) for word in launches_said(plain.stdout))
        for how, (done, report) in (("wrapped", bench.wrapped(command, seconds=5)),
                                    *([("preloaded", bench.preloaded(command, seconds=5))] if not flags else [])):
            seen = sum((launches_of(report) or {}).values())
            yield "%s %s" % (how, " ".join(flags) or "plain"), {"ok": plain.status == 0 and alike(plain, done) and seen == own, "said": own, "seen": seen,
                                                                 "stderr": "" if alike(plain, done) else tail(done.stderr)}


def holds(kernel, us_each):
    """Is that time of a launch within what the report says of the kernel's? None where it says no time, which is no lie."""
    if kernel.get("time_ns") is None or us_each is None:
        return None
    truth_ns = us_each * 1e3 * kernel["launches"]
    return kernel.get("time_low_ns", kernel["time_ns"]) <= truth_ns <= kernel.get("time_high_ns", kernel["time_ns"])


def launches_said(text):
    words = text.split()
    return [count for word, count in zip(words, words[1:]) if word == "launches"]


def check_early(bench):
    """Row 0: a library that asks for the driver in its constructor, before a preloaded library's own has run."""
    early = bench.program("gpu/early.so")[0]
    command = bench.program("gpu/workload", "launches", 500)
    for how, (done, report) in (("wrapped", bench.wrapped(command, env=preload(early), seconds=5)),
                                ("bind now", bench.wrapped(command, env={**preload(early), "LD_BIND_NOW": "1"}, seconds=5))):
        seen = launches_of(report) or {}
        yield how, {"ok": seen == said(done)["launches"], "launches": said(done)["launches"], "seen": seen, "stderr": tail(done.stderr)}
    for name in ("cudart_static", "cudart_per_thread"):
        try:
            command = bench.program("programs/" + name, 100, 2)
        except Skip as reason:
            yield name, {"skipped": str(reason)}
            continue
        plain, (done, report) = bench.run(command, seconds=10), bench.wrapped(command, seconds=10)
        if plain.status:
            yield name, {"skipped": tail(plain.stderr)}
            continue
        yield name, {"ok": alike(plain, done) and bool(launches_of(report)), "stdout": done.stdout[:500], "launches": launches_of(report),
                     **quality_of(report)}


def check_copies(bench):
    """Row 1: blocking copies behind kernels. A copy's time is its own, the kernels' is theirs."""
    own, report, figures = recorded(bench, bench.program("gpu/cases", "copies", bench.scaled(60, 20)), "--budget", "100", seconds=5)
    kernel = kernel_of(report, "burn")
    copies = [c for c in report["copies"] if c["kind"] == "DtoH"] if report else []
    copies_ms = sum(c["time_ns"] or 0 for c in copies) / 1e6
    own_us = own["kernels_ms"] * 1e3 / own["launches_timed"]
    yield "copies", {**figures, "kernel": kernel, "own_us_each": own_us, "copies_ms": copies_ms, "copies": copies[:4],
                     "ok": figures["ok"] and within(kernel.get("us_each"), own_us, 0.03, 3) and copies_ms < 0.1 * own["kernels_ms"]}


def check_contexts(bench):
    """Rows 3, 10 and 11: releases of contexts, green contexts, streams that come and go."""
    yield "releases", recorded(bench, bench.program("gpu/cases", "releases", bench.scaled(1000, 200)))[2]
    for name in ("streams", "green"):
        try:
            own, report, figures = recorded(bench, bench.program("gpu/cases", name, bench.scaled(3000, 1500)), "--budget", "100", seconds=5)
        except Skip as reason:
            yield name, {"skipped": str(reason)}
            continue
        kernel, own_us = kernel_of(report, "burn_50us"), own["burn_50us_ms"] * 1e3 / 500
        yield name, {**figures, "kernel": kernel, "own_us_each": own_us,
                     "ok": figures["ok"] and kernel.get("timed_launches", 0) > 0.9 * kernel["launches"] and within(kernel.get("us_each"), own_us, 0.05)}


def check_graph_rows(bench):
    """Rows 4, 9 and 15: what graph calls cost beside us, and how kernels that are in a graph alone are told apart."""
    own, report, figures = recorded(bench, bench.program("gpu/cases", "rounds", bench.scaled(30, 5)), seconds=10)
    alone, wrapped = figures["alone"]["ms_each_round"], figures["wrapped"]["ms_each_round"]
    yield "rounds", {**figures, "ratio": wrapped / alone, "overhead": report["overhead"] if report else None}
    command, env = bench.program("gpu/cases", "graph", bench.scaled(2000, 200)), cupti_environment(bench)
    by_cupti = None
    for how, options in (("cupti", ["--timing", "cupti"]), ("events", []), ("every launch", ["--budget", "100"])):
        own, report, figures = recorded(bench, command, *options, seconds=5, **({"env": env} if how == "cupti" else {}))
        kernels = {name: kernel_of(report, name) for name in ("in_graph_5us", "in_graph_50us")}
        if how == "cupti" and timing_of(report)["backend"] == "cupti":
            by_cupti = {name: kernel.get("us_each") for name, kernel in kernels.items()}
        held = [holds(kernel, by_cupti[name]) for name, kernel in kernels.items()] if by_cupti and how != "cupti" else []
        yield "kernels in a graph alone, " + how, {**figures, "kernels": kernels, "us_each_by_cupti": by_cupti, "timing": timing_of(report),
                                                   "holds": held, "ok": figures["ok"] and False not in held}


def check_shapes(bench):
    """Row 5: a launch of an ever new shape costs what one of a known shape costs."""
    command = bench.program("gpu/cases", "shapes", bench.scaled(400000, 20000))
    for how, options in (("counted", ["--timing", "count"]), ("1 % budget", [])):
        yield how, recorded(bench, command, *options, seconds=10)[2]


def check_dependent(bench):
    """Row 7: programmatic dependent launches overlap beside us as they do alone."""
    for how, options in (("1 % budget", []), ("every launch", ["--budget", "100"])):
        own, report, figures = recorded(bench, bench.program("gpu/cases", "dependent", bench.scaled(3000, 500)), *options, seconds=5)
        alone, wrapped = (figures[way].get("us_each_overlapping") for way in ("alone", "wrapped"))
        yield how, {**figures, "kernel": kernel_of(report, "dependent"), "overlapping, wrapped over alone": wrapped / alone}


def check_names(bench):
    """Rows 12 and 13: names that nobody asked for, kernels without one."""
    done, report = bench.wrapped(bench.program("gpu/calls", 3), seconds=20)
    kernels = [k["name"] for k in report["kernels"]] if report else []
    yield "names", {"ok": bool(kernels) and not any("unnamed" in name for name in kernels), "kernels": kernels[:40], **quality_of(report),
                    "answers": [row for row in lines_of(done) if "Name" in row.get("call", "")]}


def check_once(bench):
    """Row 16: one kernel, launched once: its interval holds its time; counted alone, it has no joules, which is not 0."""
    own, report, figures = recorded(bench, bench.program("gpu/cases", "once"))
    kernel = kernel_of(report, "once")
    yield "timed", {**figures, "kernel": kernel, "own_us_about": own["once_us_about"],
                    "ok": figures["ok"] and holds(kernel, own["once_us_about"]) is not False}
    own, report, figures = recorded(bench, bench.program("gpu/cases", "once"), "--timing", "count")
    kernel = kernel_of(report, "once")
    yield "counted", {**figures, "kernel": kernel, "ok": figures["ok"] and kernel.get("energy_uj") != 0}


def check_ends(bench):
    """Teardown in every order: the program's status, no hang, every launch."""
    for how in ("return", "_exit", "abort", "reset", "destroy", "thread", "segv"):
        command = bench.program("gpu/workload", "end", how)
        plain = bench.run(command, seconds=5)
        for way, (done, report) in (("wrapped", bench.wrapped(command, seconds=5)), ("preloaded", bench.preloaded(command, seconds=5))):
            status = shell_status(plain.status) if way == "wrapped" else plain.status
            yield "%s, %s" % (how, way), {"ok": done.status == status and done.stdout == plain.stdout and
                                          (way == "preloaded" or (launches_of(report) or {}).get("burn", 0) >= 100),
                                          "status": [plain.status, done.status], "launches": launches_of(report), "seconds": round(done.seconds, 2)}
