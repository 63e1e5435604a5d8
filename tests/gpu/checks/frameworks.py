# SPDX-License-Identifier: Apache-2.0
"""PyTorch, JAX and CuPy beside us, and NVIDIA's own tools."""
import gzip
import json
import re
import shutil
import statistics

from .bench import GPU, PROGRAMS, Skip, alike, launches_of, quality_of, ratio_of_pairs, read_json, said, tail, timing_of
from .timing import cupti_environment

IMPORT_S = 60  # a first import from a cold disk


def training(bench, *arguments):
    return [bench.python, PROGRAMS / "train_gpt.py", *arguments]


def losses_of(done):
    return [line for line in done.stdout.splitlines() if line.startswith(("step", "losses", "evaluation"))]


def check_torch(bench):
    """Unmodified PyTorch, twice bare and once wrapped: the same losses where two bare runs agree, and how long they took."""
    done = bench.run([bench.python, "-c", "import torch; assert torch.cuda.is_available(); print(torch.__version__)"], seconds=IMPORT_S)
    if done.status:
        raise Skip("PyTorch sees no card: " + tail(done.stderr))
    yield "version", {"torch": done.stdout.strip()}
    steps = bench.scaled(100, 10)
    for flags in ([], ["--optimizer", "fused", "--amp"], ["--workers", "2", "--pinned", "--streams"]):
        name, command = " ".join(flags) or "plain", training(bench, "--steps", steps, *flags)
        plain = bench.run(command, seconds=30)
        if plain.status:
            yield name, {"skipped": tail(plain.stderr)}
            continue
        again = plain if flags else bench.run(command, seconds=30)
        yield name, compared(plain, again, *bench.wrapped(command, seconds=30))


def compared(plain, again, done, report):
    """A bare run may differ from a bare one by its own arithmetic; then only the end and the launches can be compared."""
    repeatable = losses_of(plain) == losses_of(again)
    return {"ok": done.status == 0 and report is not None and (not repeatable or losses_of(done) == losses_of(plain)), "repeatable": repeatable,
            "losses": [losses_of(run)[-2:] for run in (plain, again, done)], "seconds": [round(run.seconds, 2) for run in (plain, again, done)],
            "launches": sum((launches_of(report) or {}).values()), "unnamed": sum("unnamed" in name for name in launches_of(report) or {}),
            "overhead": report["overhead"] if report else None, "stderr": tail(done.stderr), **quality_of(report)}


def check_torch_profiler(bench):
    """PyTorch under torch.profiler (CUPTI) and kjoule at once: the same launches by name, and how the times compare."""
    out = bench.work / "kernels.json"
    command = [bench.python, GPU / "profiled.py", out, *training(bench, "--steps", 30)[1:]]
    done, report = bench.wrapped(command, "--budget", "100", seconds=IMPORT_S)
    if done.status or not out.exists():
        raise Skip("torch.profiler did not run: " + tail(done.stderr))
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
    ratios = sorted(ours[plain(name)][1] / row[1] for name, row in theirs.items() if plain(name) in ours and row[1] > 0)
    yield "profiler", {"ok": len(different) <= len(theirs) // 10, "names": len(theirs), "launches_cupti": sum(r[0] for r in theirs.values()),
                       "launches_ours": sum(launches_of(report).values()), "different": dict(list(different.items())[:40]),
                       "time_ours_over_cupti": {"median": statistics.median(ratios), "low": ratios[len(ratios) // 10],
                                                "high": ratios[-1 - len(ratios) // 10]} if ratios else None,
                       "short_kernels": [[name[:80], row[1] / row[0], ours[plain(name)][1] / row[0]] for name, row in theirs.items()
                                         if plain(name) in ours and row[0]][:40]}
    out.unlink()
    done, report = bench.wrapped(command, "--timing", "cupti", seconds=30, env=cupti_environment(bench))
    yield "let in under --timing cupti", {"ok": done.status == 0 and out.exists(), "timing": timing_of(report), "stderr": tail(done.stderr)}


NVTX = """
import torch
a = torch.ones(512, 512, device="cuda")
for step in range(20):
    with torch.cuda.nvtx.range("forward"):
        b = a @ a
    with torch.cuda.nvtx.range("backward"):
        b = b @ a
    torch.cuda.synchronize()
print("done", float(b[0, 0]))
"""


def check_torch_ways(bench):
    """NVTX ranges as phases, CUDA graphs, a bare LD_PRELOAD."""
    for name, command in (("nvtx", [bench.python, "-c", NVTX]), ("graph", training(bench, "--steps", bench.scaled(100, 10), "--graph"))):
        done, report = bench.wrapped(command, seconds=30)
        yield name, {"ok": done.status == 0 and bool(launches_of(report)), "stdout": tail(done.stdout), "phases": [{k: p.get(k) for k in ("name", "launches", "time_ns")} for p in report["phases"]] if report else None,
                     "stderr": tail(done.stderr), **quality_of(report)}
    done, report = bench.preloaded(training(bench, "--steps", bench.scaled(100, 10)), seconds=30)
    yield "bare LD_PRELOAD", {"ok": done.status == 0 and bool(launches_of(report)), "launches": sum((launches_of(report) or {}).values()),
                              "losses": losses_of(done)[-2:], "seconds": round(done.seconds, 2), "stderr": tail(done.stderr)}


def check_torch_compile(bench):
    """torch.compile: kernels that the program makes while it runs."""
    done, report = bench.wrapped(training(bench, "--steps", 20, "--compile"), seconds=70)
    if done.status and not launches_of(report):
        raise Skip("torch.compile: " + tail(done.stderr))
    names = sorted(launches_of(report) or {})
    yield "torch.compile", {"ok": bool(names), "status": done.status, "launches": sum((launches_of(report) or {}).values()),
                            "triton": [name for name in names if "triton" in name][:20], "seconds": round(done.seconds, 1),
                            "stderr": tail(done.stderr), **quality_of(report)}


JAX = """
import jax, jax.numpy as jnp
step = jax.jit(lambda a: jnp.tanh(a @ a) / 512)
a = jnp.ones((512, 512))
for i in range(50):
    a = step(a)
print("done", round(float(a[0, 0]), 6), jax.devices()[0].platform)
"""
CUPY = """
import cupy
a = cupy.ones((512, 512), dtype=cupy.float32)
for i in range(50):
    a = cupy.tanh(a @ a) / 512
print("done", round(float(a[0, 0]), 6))
"""


def other(program):
    def check(bench):
        env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        plain = bench.run([bench.python, "-c", program], seconds=IMPORT_S, env=env)
        if plain.status:
            raise Skip(tail(plain.stderr))
        done, report = bench.wrapped([bench.python, "-c", program], seconds=30, env=env)
        yield "launches", {"ok": alike(plain, done) and bool(launches_of(report)), "stdout": [plain.stdout[-200:], done.stdout[-200:]],
                           "launches": launches_of(report), "stderr": tail(done.stderr), **quality_of(report)}
    return check


check_jax, check_cupy = other(JAX), other(CUPY)
check_jax.__doc__ = check_cupy.__doc__ = "50 small steps: the same result, every kernel."


def beside(*tool):
    def check(bench):
        program = bench.program("gpu/workload", "launches", 50)
        plain = bench.run([*tool, *program], seconds=40)
        if plain.status:
            raise Skip("%s alone ended with %d: %s" % (tool[0], plain.status, tail(plain.stdout + plain.stderr)))
        done, report = bench.wrapped([*tool, *program], seconds=40)
        yield "kjoule around the tool", {"ok": done.status == plain.status, "launches": launches_of(report), "stdout": tail(done.stdout),
                                         "stderr": tail(done.stderr)}
        inner = [bench.build / "kjoule", "run", "-q", "-o", bench.work / "inner", "--", *program]
        done = bench.run([*tool, "--target-processes", "all", *inner], seconds=40)
        yield "the tool around kjoule", {"ok": done.status == plain.status, "launches": launches_of(read_json(bench.work / "inner" / "report.json")),
                                         "stdout": tail(done.stdout), "stderr": tail(done.stderr)}
    return check


check_sanitizer, check_ncu = beside("compute-sanitizer"), beside("ncu", "--launch-count", "5")
check_sanitizer.__doc__ = check_ncu.__doc__ = "One of NVIDIA's tools that hooks the driver, around us and within."


def check_overhead(bench):
    """Wrapped / bare, three pairs: launch-bound (empty kernels) and compute-bound (1 ms kernels)."""
    own = lambda done: said(done)["seconds"]
    for name, command in (("launch-bound", bench.program("gpu/workload", "launches", bench.scaled(300000, 20000))),
                          ("compute-bound", bench.program("gpu/workload", "compute", bench.scaled(800, 50), 1))):
        for mode, options in (("1 % budget", []), ("counted", ["--timing", "count"])):
            yield "%s, %s" % (name, mode), ratio_of_pairs(bench, command, options, 3, own, seconds=5)


def check_nvcc(bench):
    """NVIDIA's runtime as compiled here, shared and per thread."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    kinds = (("shared", ["-cudart", "shared"]), ("per thread", ["-cudart", "static", "--default-stream", "per-thread"]))
    for kind, flags in kinds[: bench.scaled(2, 1)]:
        program = bench.work / kind.replace(" ", "_")
        done = bench.run([nvcc, "-O1", "-std=c++17", "-arch=native", *flags, "-o", program, PROGRAMS / "cuda_runtime.cu"], seconds=40)
        if done.status:
            yield kind, {"skipped": tail(done.stderr)}
            continue
        plain, (done, report) = bench.run([program, 100, 2], seconds=10), bench.wrapped([program, 100, 2], seconds=10)
        if plain.status:
            yield kind, {"skipped": tail(plain.stderr)}
            continue
        yield kind, {"ok": alike(plain, done) and bool(launches_of(report)), "launches": launches_of(report), **quality_of(report)}


def check_gpt(bench):
    """A GPT of a minute, or of what is left, with its report."""
    seconds = int(max(5, min(bench.scaled(60, 5), bench.left_s - 30)))
    done, report = bench.wrapped(training(bench, "--steps", 10 ** 7, "--seconds", seconds), seconds=seconds + 30)
    if report is None:
        raise Skip("no report: " + tail(done.stderr))
    with gzip.open(str(bench.out / "gpt.report.json.gz"), "wt", 9) as out:
        json.dump(report, out)
    device = report["devices"][0]
    yield "gpt", {"ok": done.status == 0 and device["energy_uj"] is not None, "stdout": tail(done.stdout, 100), "seconds": round(done.seconds, 1),
                  "launches": sum(launches_of(report).values()), "device": device, "phases": report["phases"], "overhead": report["overhead"],
                  "kernels": report["kernels"][:30], **quality_of(report)}
