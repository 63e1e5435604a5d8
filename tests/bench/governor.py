# SPDX-License-Identifier: Apache-2.0
"""Does the governor hold its budget? Kernels of 5 us at the highest rate that the program can launch, wrapped against bare, in turn:
the ratio of the launching loop's own time, and apart from it what starting and ending a wrapped process costs. Counts must be exact.

The simulated driver's calls have the price of a real one's, as they have by default (tests/simgpu/costs.def); waiting spins. Two cases,
because events cost a program that waits for its GPU something else than one that waits for its launches: one stream (the GPU is the
limit, 5 us a kernel) and four (launching is, 2 us and what else a launch takes).
"""
import json
import pathlib
import shutil
import statistics
import subprocess
import time

SCRIPT = "kernel * duration_us=5 power=300\nwait spin=1\n"
BATCH = 1000
CASES = [("GPU-bound, 1 stream", 1, 5e-6), ("launch-bound, 4 streams", 4, 2.35e-6)]  # name, streams, about what a launch takes


def launch_counts(rows):
    return {row["name"]: row["launches"] for row in rows if row["launches"]}


def one(bench, work, options, flags):
    """One run: its figures, and for a wrapped one the report's, with the check that it counted what the driver ran."""
    sim = pathlib.Path(work, "governor")
    sim.mkdir()
    (sim / "script").write_text(SCRIPT)
    env = bench.environment({"LD_LIBRARY_PATH": str(bench.BUILD / "simgpu"), "KJ_SIM_SCRIPT": str(sim / "script"),
                             "KJ_SIM_STATE": str(sim / "state"), "KJ_SIM_TRUTH": str(sim / "truth")})
    wrap = [] if options is None else [bench.KJOULE, "run", "-q", "-o", str(sim / "run"), *options, "--"]
    with bench.watched(sim):
        begun_s = time.perf_counter()
        done = subprocess.run([*wrap, bench.LAUNCH, *map(str, flags)], env=env, capture_output=True, text=True)
        wall_s = time.perf_counter() - begun_s
    if done.returncode:
        raise SystemExit(f"bench: status {done.returncode}: {done.stderr.strip()}")
    got = {k: float(v) for k, v in (pair.split("=") for pair in done.stdout.split())}
    got["wall_s"] = wall_s
    if wrap:
        report, truth = (json.loads((sim / name).read_text()) for name in ("run/report.json", "truth"))
        counted, ran = launch_counts(report["kernels"]), launch_counts(truth["devices"][0]["kernels"])
        if counted != ran:
            raise SystemExit(f"bench: launches counted {sum(counted.values())}, of {sum(ran.values())} that ran")
        got["share"] = report["overhead"]["share_of_duration"]
        got["timed"] = sum(k["timed_launches"] for k in report["kernels"])
    shutil.rmtree(sim)
    return got


def pairs(bench, work, streams, launches, repeats, options=()):
    """[(bare, wrapped)], in changing order."""
    flags = ["--streams", streams, "--batch", BATCH, "--batches", max(int(launches) // BATCH, 1)]
    found = []
    for i in range(repeats):
        runs = {kind: one(bench, work, None if kind == "bare" else options, flags)
                for kind in (("bare", "wrapped") if i % 2 else ("wrapped", "bare"))}
        found.append((runs["bare"], runs["wrapped"]))
    return found


def main(bench, work, quick, seconds=4):
    repeats = 3 if quick else 15
    print(f"\ngovernor: 5 us kernels at the highest rate, budget 1 %, median of {repeats} pairs of {seconds} s; counts exact in each")
    print(f"  {'case':26} {'bare':>10} {'slow-down':>10} {'90 % of medians':>18} {'own figure':>11} {'not seen':>9} {'timed':>9} {'start and end':>14}")
    for case, streams, launch_s in CASES:
        found = pairs(bench, work, streams, seconds / launch_s, repeats)
        middle, low, high = bench.median_interval([w["loops_s"] / b["loops_s"] - 1 for b, w in found])
        per_launch_ns = statistics.median(b["loops_s"] / b["launches"] for b, _ in found) * 1e9
        around_s = statistics.median((w["wall_s"] - w["loops_s"]) - (b["wall_s"] - b["loops_s"]) for b, w in found)
        share = statistics.median(w["share"] for _, w in found)
        timed = statistics.median(w["timed"] / w["launches"] for _, w in found)
        print(f"  {case:26} {per_launch_ns:7.0f} ns {middle:10.2%} {low:8.2%} .. {high:6.2%} {share:11.2%} {middle - share:9.2%} {timed:9.2%} {around_s * 1e3:11.1f} ms")
