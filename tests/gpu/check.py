# SPDX-License-Identifier: Apache-2.0
"""What only a real card can show. Needs a driver, a build of kjoule, and for some checks nvcc's programs and PyTorch; no network,
nothing but the standard library. Prints a line a check, and writes one JSON with the card, the driver, the versions and the
figures. A check that cannot be made says why; one that fails makes the exit status 1.

    check.py --build DIR [--torch PYTHON] [--out FILE] [--quick] [--only NAME,...]
"""
import argparse
import ctypes
import datetime
import json
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "tests" / "programs"
TIMEOUT_S = 240


class Skip(Exception):
    """The check cannot be made here, for this reason."""


class Bench:
    """Where things are, and how to run them bare and wrapped."""

    def __init__(self, options):
        self.build, self.python, self.quick = pathlib.Path(options.build).resolve(), options.torch, options.quick
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="kjoule-gpu."))
        self.number = 0

    def program(self, name):
        path = self.build / ("gpu/workload" if name == "workload" else f"programs/{name}")
        if not path.exists():
            raise Skip(f"{path.name} is not built")
        return str(path)

    def torch(self):
        done = subprocess.run([self.python, "-c", "import torch; assert torch.cuda.is_available(); print(torch.__version__)"],
                              capture_output=True, text=True, timeout=TIMEOUT_S)
        if done.returncode:
            raise Skip(f"{self.python} has no PyTorch that sees a card: {done.stderr.strip().splitlines()[-1:]}")
        return done.stdout.strip()

    def bare(self, command, **kwargs):
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=TIMEOUT_S, **kwargs)

    def wrapped(self, command, *options, **kwargs):
        """(finished process, report)"""
        self.number += 1
        folder = self.work / f"run.{self.number}"
        done = self.bare([self.build / "kjoule", "run", "-q", "-o", folder, *options, "--", *command], **kwargs)
        report = folder / "report.json"
        return done, json.loads(report.read_text()) if report.exists() else None


def launches_of(report):
    counts = {}
    for kernel in report["kernels"]:
        counts[kernel["name"]] = counts.get(kernel["name"], 0) + kernel["launches"]
    return counts


def alike(plain, wrapped):
    return plain.returncode == wrapped.returncode and plain.stdout == wrapped.stdout


def median_ratio(bench, command, options, pairs, seconds_of, **kwargs):
    """Paired runs in changing order: median of wrapped / bare."""
    ratios = []
    for i in range(pairs + 1):
        took = {}
        for kind in ("bare", "wrapped") if i % 2 else ("wrapped", "bare"):
            done = bench.bare(command, **kwargs) if kind == "bare" else bench.wrapped(command, *options, **kwargs)[0]
            assert done.returncode == 0, done.stderr[-500:]
            took[kind] = seconds_of(done)
        if i:
            ratios.append(took["wrapped"] / took["bare"])
    ratios.sort()
    return {"median": statistics.median(ratios), "low": ratios[len(ratios) // 10], "high": ratios[-1 - len(ratios) // 10],
            "pairs": pairs}


# ---- checks: each returns its figures, with "ok"

def check_doctor(bench):
    done = bench.bare([bench.build / "kjoule", "doctor"])
    return {"ok": done.returncode == 0 and bool(re.search(r"nvml\s.*accepted|accepted.*nvml", done.stdout)), "text": done.stdout}


def check_driver_programs(bench):
    """The driver API by every door: the program says the same, and every launch is counted."""
    rows = {}
    for flags in ([], ["--door", "versioned"], ["--stream", "legacy"], ["--stream", "per-thread"], ["--graph"], ["--library"],
                  ["--async"], ["--threads", "4"], ["--processes", "3"]):
        command = [bench.program("cuda_driver"), "--steps", "200", *flags]
        plain = bench.bare(command)
        done, report = bench.wrapped(command)
        said = sum(int(n) for n in re.findall(r"launches (\d+)", plain.stdout))
        seen = sum(launches_of(report).values()) if report else None
        rows[" ".join(flags) or "plain"] = {"ok": alike(plain, done) and seen == said, "said": said, "seen": seen,
                                            "stderr": "" if alike(plain, done) else done.stderr[-300:]}
    return {"ok": all(r["ok"] for r in rows.values()), "rows": rows}


def check_capture(bench):
    """Graphs made, changed and captured in every way: what is legal alone is legal beside us, and only that."""
    rows = {}
    for way in ("capture", "threads", "build", "update", "change", "large", "churn", "forbidden", "elsewhere"):
        plain = bench.bare([bench.program("cuda_graphs"), way])
        done, report = bench.wrapped([bench.program("cuda_graphs"), way])
        rows[way] = {"ok": alike(plain, done) and report is not None, "plain": plain.stdout, "wrapped": done.stdout,
                     "status": [plain.returncode, done.returncode], "launches": launches_of(report) if report else None}
    return {"ok": all(r["ok"] for r in rows.values()), "rows": rows}


def check_runtime(bench):
    """NVIDIA's own runtime, static, shared and per-thread."""
    rows = {}
    for kind in ("static", "shared", "per_thread"):
        command = [bench.program(f"cudart_{kind}"), "100", "2"]
        plain = bench.bare(command)
        done, report = bench.wrapped(command)
        rows[kind] = {"ok": alike(plain, done) and bool(report["kernels"]), "stdout": done.stdout, "launches": launches_of(report),
                      "unhooked": report["quality"]["unhooked"]}
    return {"ok": all(r["ok"] for r in rows.values()), "rows": rows}


def check_timing(bench):
    """Durations by our event pairs against the program's own events around the same kernels."""
    rows = {}
    for ms, count in ((0.05, 400), (1, 300), (20, 40)):
        done, report = bench.wrapped([bench.program("workload"), "compute", count, ms], "--budget", "100")
        said = json.loads(done.stdout)
        (kernel,) = [k for k in report["kernels"] if k["name"] == "burn"]
        ours_ms = kernel["time_ns"] / 1e6 / kernel["launches"]
        rows[f"{ms} ms"] = {"ours_ms": ours_ms, "own_ms": said["events_ms"] / count, "timed": kernel["timed_launches"],
                            "ok": kernel["launches"] == said["launches"]["burn"] and
                            abs(ours_ms / (said["events_ms"] / count) - 1) < (0.5 if ms < 0.1 else 0.15)}
    return {"ok": all(r["ok"] for r in rows.values()), "rows": rows}


def cupti_environment(bench):
    """os.environ with a libcupti on the loader's path: the system's, the toolkit's, PyTorch's."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    folders = [f"{home}/extras/CUPTI/lib64", f"{home}/lib64", f"{home}/lib"]
    done = bench.bare([bench.python, "-c", "import nvidia; print(*nvidia.__path__, sep='\\n')"])
    for root in done.stdout.split() if done.returncode == 0 else []:
        folders += [str(p.parent) for p in pathlib.Path(root).glob("*/lib/libcupti.so.1*")]
    found = [f for f in folders if list(pathlib.Path(f).glob("libcupti.so.1*"))][:1]
    return os.environ | {"LD_LIBRARY_PATH": ":".join(filter(None, [os.environ.get("LD_LIBRARY_PATH"), *found]))}


def timing_of(report):
    """How the one process that launched something was timed."""
    return next((p["timing"] for p in report["processes"] if p["launches"]), {"backend": None, "reason": "no launch was seen"})


def check_cupti(bench):
    """--timing cupti against --timing events and the program's own events; each node of a graph; how many records found their launch by
    correlation; ends of a process; that torch.profiler is let in; what it costs."""
    env, rows = cupti_environment(bench), {}
    cupti = lambda command: bench.wrapped(command, "--timing", "cupti", env=env)
    for ms, count in ((0.01, 2000), (0.05, 400), (1, 300), (20, 40)):
        command = [bench.program("workload"), "compute", count, ms]
        done, report = cupti(command)
        said, how = json.loads(done.stdout), timing_of(report)
        if how["backend"] != "cupti":
            raise Skip(f"CUPTI was not attached: {how['reason']}")
        events = bench.wrapped(command, "--budget", "100")[1]
        mean_ms = lambda r: next(k["time_ns"] / 1e6 / k["launches"] for k in r["kernels"] if k["name"] == "burn")
        (kernel,) = [k for k in report["kernels"] if k["name"] == "burn"]
        own_ms = said["events_ms"] / count
        # Events bracket a kernel, so CUPTI's time is not longer, but for the clock's resolution.
        rows[f"{ms} ms"] = {"cupti_ms": mean_ms(report), "events_ms": mean_ms(events), "own_ms": own_ms, "timing": how,
                            "ok": kernel["launches"] == said["launches"]["burn"] == kernel["timed_launches"] and
                            kernel["time_method"] == "measured" and how["unmatched"] == how["dropped"] == 0 and
                            mean_ms(report) < own_ms * 1.02 + 0.001 and (ms < 1 or mean_ms(report) > own_ms * 0.95)}
    for way in ("capture", "threads", "build", "update", "change", "large", "churn", "forbidden", "elsewhere"):
        plain = bench.bare([bench.program("cuda_graphs"), way])
        done, report = cupti([bench.program("cuda_graphs"), way])
        methods = {k["name"]: [k["time_method"], k["launches"], k["timed_launches"], k["time_ns"]] for k in report["kernels"]}
        rows[f"graph {way}"] = {"ok": alike(plain, done) and all(m[0] == "measured" for m in methods.values()), "kernels": methods,
                                "timing": timing_of(report)}
    for kind in ("static", "shared", "per_thread"):
        try:
            command = [bench.program(f"cudart_{kind}"), "100", "2"]
        except Skip:
            continue
        plain = bench.bare(command)
        if plain.returncode:
            rows[f"runtime {kind}"] = {"ok": True, "skipped": plain.stderr.strip()[-200:]}
            continue
        done, report = cupti(command)
        how = timing_of(report)
        rows[f"runtime {kind}"] = {"ok": alike(plain, done) and how["backend"] == "cupti" and how["unmatched"] == 0 and
                                   all(k["timed_launches"] == k["launches"] for k in report["kernels"]), "timing": how}
    for how_it_ends in ("return", "_exit", "abort", "reset", "destroy", "thread", "segv"):
        command = [bench.program("workload"), "end", how_it_ends]
        plain, start = bench.bare(command), time.monotonic()
        done, report = cupti(command)
        status = plain.returncode if plain.returncode >= 0 else 128 - plain.returncode
        rows[f"end {how_it_ends}"] = {"ok": done.returncode == status and done.stdout == plain.stdout and report is not None and
                                      time.monotonic() - start < 60, "status": [plain.returncode, done.returncode],
                                      "timing": timing_of(report) if report else None}
    pairs, own = 5 if bench.quick else 11, lambda done: json.loads(done.stdout)["seconds"]
    for name, command in (("launch-bound", ["launches", "20000"]), ("compute-bound", ["compute", "500", "1"])):
        rows[f"cost, {name}"] = median_ratio(bench, [bench.program("workload"), *command], ["--timing", "cupti"], pairs, own, env=env)
    try:
        bench.torch()
        out = bench.work / "let_in.json"
        done, report = cupti([bench.python, ROOT / "tests/gpu/profiled.py", out, PROGRAMS / "train_gpt.py", "--steps", "30"])
        theirs = json.loads(out.read_text()) if out.exists() else {}
        rows["torch.profiler is let in"] = {"ok": done.returncode == 0 and sum(r[0] for r in theirs.values()) > 0, "names": len(theirs),
                                            "timing": timing_of(report), "stderr": done.stderr[-300:]}
    except Skip as reason:
        rows["torch.profiler is let in"] = {"ok": True, "skipped": str(reason)}
    return {"ok": all(r.get("ok", True) for r in rows.values()), "rows": rows}


def check_profiler(bench):
    """PyTorch under torch.profiler (CUPTI) and kjoule at once: the same launches by name, and how the times compare."""
    bench.torch()
    out = bench.work / "kernels.json"
    done, report = bench.wrapped([bench.python, ROOT / "tests/gpu/profiled.py", out, PROGRAMS / "train_gpt.py", "--steps", "30"],
                                 "--budget", "100")
    if done.returncode or not out.exists():
        raise Skip(f"torch.profiler did not run: {done.stderr.strip()[-400:]}")
    theirs = json.loads(out.read_text())
    if not theirs:
        raise Skip("torch.profiler saw no kernel: no CUPTI for this driver")
    plain = lambda name: re.sub(r"\s+", "", name)
    ours = {}
    for kernel in report["kernels"]:
        for name in {kernel["name"], kernel["demangled"]}:
            row = ours.setdefault(plain(name), [0, 0.0])
            row[0] += kernel["launches"]
            row[1] += (kernel["time_ns"] or 0) / 1e3
    different = {name: [row[0], ours.get(plain(name), [0])[0]] for name, row in theirs.items() if row[0] != ours.get(plain(name), [0])[0]}
    ratios = [ours[plain(name)][1] / row[1] for name, row in theirs.items() if plain(name) in ours and row[1] > 0]
    return {"ok": sum(row[0] for row in theirs.values()) <= sum(launches_of(report).values()) and len(different) <= len(theirs) // 10,
            "names": len(theirs), "launches_cupti": sum(row[0] for row in theirs.values()), "launches_ours": sum(launches_of(report).values()),
            "different": dict(list(different.items())[:40]), "time_ratio_median": statistics.median(ratios) if ratios else None,
            "time_ratio_total": sum(ours[plain(n)][1] for n in theirs if plain(n) in ours) / sum(r[1] for r in theirs.values())}


def check_training(bench):
    """Unmodified PyTorch: the same losses, the same end."""
    rows = {}
    for program in (["train_gpt.py"], ["train_gpt.py", "--optimizer", "fused", "--amp"], ["train_gpt.py", "--graph"],
                    ["train_gpt.py", "--workers", "2", "--pinned", "--streams"], ["train_hf.py", "classification"]):
        version = bench.torch()
        command = [bench.python, PROGRAMS / program[0], *program[1:], "--steps", "30"]
        plain = bench.bare(command)
        if plain.returncode:
            rows[" ".join(program)] = {"ok": True, "skipped": plain.stderr.strip()[-200:]}
            continue
        done, report = bench.wrapped(command)
        losses = [[line for line in d.stdout.splitlines() if line.startswith(("step", "losses"))] for d in (plain, done)]
        rows[" ".join(program)] = {"ok": done.returncode == 0 and losses[0] == losses[1], "torch": version,
                                   "launches": sum(launches_of(report).values()), "unhooked": report["quality"]["unhooked"],
                                   "warnings": report["quality"]["warnings"],
                                   "differs": [] if losses[0] == losses[1] else [losses[0][-1:], losses[1][-1:]]}
    return {"ok": all(r["ok"] for r in rows.values()), "rows": rows}


def check_overhead(bench):
    """Wrapped / bare, paired: launch-bound (empty kernels) and compute-bound (1 ms kernels)."""
    pairs = 5 if bench.quick else 15
    own = lambda done: json.loads(done.stdout)["seconds"]
    launch_bound = [bench.program("workload"), "launches", "20000" if bench.quick else "200000"]
    compute_bound = [bench.program("workload"), "compute", "500", "1"]
    rows = {}
    for name, command in (("launch-bound", launch_bound), ("compute-bound", compute_bound)):
        for mode, options in (("counted", ["--timing", "count"]), ("budget 1 %", []), ("every launch", ["--budget", "100"])):
            rows[f"{name}, {mode}"] = median_ratio(bench, command, options, pairs, own)
    return {"ok": rows["compute-bound, budget 1 %"]["median"] < 1.02 and rows["launch-bound, budget 1 %"]["median"] < 1.05, "rows": rows}


class Nvml:
    """What the checks read of NVML for themselves, past kjoule."""

    def __init__(self):
        try:
            self.library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError as error:
            raise Skip(str(error)) from error
        self.device = ctypes.c_void_p()
        if self.library.nvmlInit_v2() or self.library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self.device)):
            raise Skip("NVML does not open device 0")

    def energy_mj(self):
        value = ctypes.c_ulonglong()
        return value.value if not self.library.nvmlDeviceGetTotalEnergyConsumption(self.device, ctypes.byref(value)) else None

    def text(self, function, *arguments):
        buffer = ctypes.create_string_buffer(96)
        done = getattr(self.library, function)(*arguments, buffer, 96)
        return None if done else buffer.value.decode()


def check_energy(bench):
    """The report's joules of the device against the counter, read by ourselves around the run."""
    nvml = Nvml()
    if nvml.energy_mj() is None:
        raise Skip("the card has no energy counter")
    before, start = nvml.energy_mj(), time.monotonic()
    done, report = bench.wrapped([bench.program("workload"), "compute", "100" if bench.quick else "400", "20"])
    energy_mj, seconds = nvml.energy_mj() - before, time.monotonic() - start
    if seconds < 1.5:
        raise Skip(f"the run took {seconds:.2f} s, which is short beside the counter's period")
    (device,) = report["devices"]
    covered = report["run"]["duration_ns"] / 1e9 / seconds
    return {"ok": done.returncode == 0 and 0.85 < device["energy_uj"] / (energy_mj * 1e3) < 1.05, "ours_j": device["energy_uj"] / 1e6,
            "counter_j": energy_mj / 1e3, "covered": covered, "kernels_j": device["kernels_uj"] / 1e6, "idle_j": device["idle_uj"] / 1e6,
            "low_j": device.get("low_uj", 0) and device["low_uj"] / 1e6, "high_j": device.get("high_uj", 0) and device["high_uj"] / 1e6,
            "warnings": report["quality"]["warnings"]}


def check_sensor(bench):
    """The shape of the card's sensors by kjoule calibrate, twice: it agrees with itself, and a run then uses it. What was switched and
    read goes into the results."""
    out, raw = bench.work / "sensor.json", bench.work / "wave.json"
    env = {**os.environ, "XDG_CACHE_HOME": str(bench.work / "cache")}
    found = []
    for i in range(2):
        done = bench.bare([bench.build / "kjoule", "calibrate", "-q", "--seconds", "15" if bench.quick else "60", "-o", out, "--raw", raw],
                          env=env)
        if done.returncode:
            raise Skip(done.stderr.strip()[-300:])
        found.append({s["channel"]: s for s in json.loads(out.read_text())["sensors"]})
        if not i:
            bench.raw = json.loads(raw.read_text())
    rows = {}
    for name, sensor in found[0].items():
        again = found[1].get(name)
        apart = lambda key: abs(again[key]["value"] - sensor[key]["value"]) / max(sensor[key]["value"], 1e6)
        rows[name] = {"first": sensor, "again": again,
                      "ok": again is not None and again["kernel"] == sensor["kernel"] and apart("window_ns") < 0.15 and apart("period_ns") < 0.02}
    _, report = bench.wrapped([bench.program("workload"), "compute", "50", "20"], env=env)
    shapes = {s["channel"]: s["shape"] for s in report["energy"]["sensors"]} if report else {}
    rows["a run uses it"] = {"shapes": shapes, "ok": bool(rows) and all(shapes.get(name) == "calibrated" for name in found[1])}
    return {"ok": all(r["ok"] for r in rows.values()), "rows": rows}


def check_ends(bench):
    """Every end of a process: status and output as alone, and a report with every launch."""
    rows = {}
    for how in ("return", "_exit", "abort", "reset", "destroy", "thread", "segv"):
        command = [bench.program("workload"), "end", how]
        plain = bench.bare(command)
        done, report = bench.wrapped(command)
        status = plain.returncode if plain.returncode >= 0 else 128 - plain.returncode
        rows[how] = {"ok": done.returncode == status and done.stdout == plain.stdout and report is not None and
                     launches_of(report).get("burn", 0) >= 100, "status": [plain.returncode, done.returncode],
                     "launches": launches_of(report) if report else None}
    return {"ok": all(r["ok"] for r in rows.values()), "rows": rows}


CHECKS = [check_doctor, check_driver_programs, check_capture, check_runtime, check_timing, check_cupti, check_ends, check_energy, check_overhead,
          check_sensor, check_training, check_profiler]


def machine():
    facts = {"host": platform.platform(), "cpu": next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if "model name" in l), None),
             "cpus": os.cpu_count(), "python": platform.python_version()}
    try:
        nvml = Nvml()
        facts |= {"card": nvml.text("nvmlDeviceGetName", nvml.device), "driver": nvml.text("nvmlSystemGetDriverVersion"),
                  "vbios": nvml.text("nvmlDeviceGetVbiosVersion", nvml.device)}
    except (Skip, AttributeError) as error:
        facts["card"] = f"unknown: {error}"
    return facts


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default=os.environ.get("KJ_BUILD", str(ROOT / "build")))
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--out", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    bench, started = Bench(options), time.monotonic()
    results = {"schema": "kjoule.check-gpu/1", "date": datetime.date.today().isoformat(), "machine": machine(), "checks": {}}
    failed = 0
    for check in CHECKS:
        name = check.__name__.removeprefix("check_")
        if options.only and name not in options.only.split(","):
            continue
        start = time.monotonic()
        try:
            figures = check(bench)
        except Skip as reason:
            figures = {"ok": None, "skipped": str(reason)}
        except Exception as error:  # a check that breaks is a result, and the others still count
            figures = {"ok": False, "broke": f"{type(error).__name__}: {error}"}
        figures["seconds"] = round(time.monotonic() - start, 1)
        results["checks"][name] = figures
        failed += figures["ok"] is False
        word = {True: "ok", False: "FAILED", None: "skipped"}[figures["ok"]]
        print(f"  {word:8} {name:16} {figures['seconds']:6.1f} s  {figures.get('skipped', figures.get('broke', ''))}", flush=True)
        for row, value in figures.get("rows", {}).items():
            if value.get("ok") is False:
                print(f"           {row}: {json.dumps(value)[:300]}")
    name = re.sub(r"\W+", "-", f"{results['date']}-{results['machine'].get('card')}-{results['machine'].get('driver')}").strip("-")
    out = pathlib.Path(options.out or f"{name}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1))
    if hasattr(bench, "raw"):
        out.with_suffix(".sensor.json").write_text(json.dumps(bench.raw))
    shutil.rmtree(bench.work, ignore_errors=True)
    print(f"{len(results['checks']) - failed} of {len(results['checks'])} checks held or were skipped in "
          f"{time.monotonic() - started:.0f} s; figures: {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
