# SPDX-License-Identifier: Apache-2.0
"""What kjoule costs, side by side in one run: bare and wrapped runs alternate, medians and their spread are printed, nothing is
remembered from other machines. Run it on an idle machine; `make bench` does.

    run.py [--quick]       KJ_BUILD names the build folder
"""
import argparse
import contextlib
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import tempfile
import sys
import time

import governor
import probe

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("KJ_BUILD", ROOT / "build")).resolve()
KJOULE, LAUNCH, GRAPHS, TRAIN = (str(BUILD / p) for p in ("kjoule", "bench/launch", "bench/graphs", "programs/lm_train"))
SCRIPT = "costs 0\nkernel * duration_us=1 power=300\n"  # the shim's nanoseconds, beside a driver that takes next to nothing
QUICK_KERNELS = "costs 0\nkernel * duration_us=0.01 power=300\n"  # so that 100 million do not take the simulated device long
# name, options of `kjoule run`; None: not wrapped
MODES = [("off", None), ("counted", ["--timing", "count"]), ("timed, 1 % budget", ["--timing", "events"]),
         ("timed, every launch", ["--timing", "events", "--budget", "100"])]


def environment(extra=None):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("KJOULE_", "KJ_SIM_")) and k != "LD_PRELOAD"}
    return {**env, **(extra or {})}


def median_interval(values, rounds=400):
    """Median with a 90 % bootstrap interval."""
    rng = random.Random(1)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(rounds))
    return statistics.median(values), medians[rounds // 20], medians[-rounds // 20 - 1]


def wall_s(command, env):
    start = time.perf_counter()
    pid = os.posix_spawn(command[0], command, env, file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                                                                  (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)])
    os.waitpid(pid, 0)
    return time.perf_counter() - start


def paired(title, command, repeats, work, unit=1e3, unit_name="ms"):
    """command and `kjoule command`, in turn and in changing order."""
    env, times = environment(), {"bare": [], "wrapped": []}
    for i in range(repeats + 1):
        for kind in ("bare", "wrapped") if i % 2 else ("wrapped", "bare"):
            folder = f"{work}/paired.{i}"
            full = command if kind == "bare" else [KJOULE, "run", "-q", "-o", folder, "--", *command]
            seconds = wall_s(full, env)
            shutil.rmtree(folder, ignore_errors=True)
            if i:  # the first pair warms the caches
                times[kind].append(seconds)
    added = [b - a for a, b in zip(times["bare"], times["wrapped"])]
    ratio = [b / a for a, b in zip(times["bare"], times["wrapped"])]
    print(f"\n{title} ({repeats} pairs)")
    for name, values in (*times.items(), ("added", added)):
        middle, low, high = (v * unit for v in median_interval(values))
        print(f"  {name:10} {middle:10.2f} {unit_name}   90 % of medians {low:.2f} .. {high:.2f}")
    middle, low, high = median_interval(ratio)
    print(f"  {'ratio':10} {middle:10.3f}      90 % of medians {low:.3f} .. {high:.3f}")


@contextlib.contextmanager
def watched(sim):
    """Whoever reads the GPU's sensor first integrates the simulated past: with a reader beside it, that is not left to a bare program."""
    reader = subprocess.Popen([str(BUILD / "simgpu" / "simgpu-truth"), "--watch", "20", f"{sim}/state"])
    try:
        yield
    finally:
        reader.kill()
        reader.wait()


def simulated(options, program, flags, sim, script):
    """Command and environment of a run on a simulated machine of its own."""
    os.mkdir(sim)
    pathlib.Path(sim, "script").write_text(script)
    env = environment({"LD_LIBRARY_PATH": str(BUILD / "simgpu"), "KJ_SIM_SCRIPT": f"{sim}/script", "KJ_SIM_STATE": f"{sim}/state"})
    wrap = [] if options is None else [KJOULE, "run", "-q", "-o", f"{sim}/run", *options, "--"]
    return [*wrap, program, *map(str, flags)], env


def figures(line):
    return {k: float(v) for k, v in (pair.split("=") for pair in line.split())}


def launch(options, flags, work, number, script):
    sim = f"{work}/sim.{number}"
    command, env = simulated(options, LAUNCH, flags, sim, script)
    with watched(sim):
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    shutil.rmtree(sim, ignore_errors=True)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(command)}: status {done.returncode}: {done.stderr.strip()}")
    return figures(done.stdout)


def in_slices(commands, rounds, work, script):
    """Figures of each round of each of {key: (options, program, flags)}. All programs live side by side, and in each round each one runs
    a slice of some 10 ms, after as much to warm up, in an order of the round's own: what the machine does to one slice it does to its
    neighbours. So differences and ratios are taken within a round."""
    rng, programs, got = random.Random(1), {}, {key: [] for key in commands}
    with contextlib.ExitStack() as readers:
        for key, (options, program, flags) in commands.items():
            sim = f"{work}/slices.{len(programs)}"
            command, env = simulated(options, program, flags, sim, script)
            readers.enter_context(watched(sim))
            programs[key] = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(rounds + 1):
            for key in rng.sample(list(programs), len(programs)):
                programs[key].stdin.write("\n")
                programs[key].stdin.flush()
                got[key].append(figures(programs[key].stdout.readline()))
        for program in programs.values():
            program.stdin.close()
            program.wait()
    for number in range(len(programs)):
        shutil.rmtree(f"{work}/slices.{number}")
    return {key: runs[1:] for key, runs in got.items()}


def over_starts(starts, figure):
    """Median of what `figure` gives of the rounds of each start, with a 90 % interval. Where its memory lies costs a program some 10 ns a
    launch of one of 20,000 kernels, for as long as it lives: rounds of one start would not tell, so the interval is over starts."""
    return median_interval([statistics.median(figure({key: runs[r] for key, runs in got.items()}) for r in range(len(next(iter(got.values())))))
                            for got in starts])


def many(cases, rounds, repeats, work):
    """What many kernels and shapes add to a counted launch, apart from what they cost the program alone, which has as many."""
    commands = {(case, name): (options, LAUNCH, [*flags, "--slices", "--batches", 80]) for case, flags in cases for name, options in MODES[:2]}
    starts = [in_slices(commands, rounds, work, QUICK_KERNELS) for _ in range(repeats)]

    def added(got, case):
        return got[case, "counted"]["launch_ns"] - got[case, "off"]["launch_ns"]

    print(f"\nmany kernels, many shapes: nanoseconds per launch, median of {repeats} starts of {rounds} rounds, and 90 % of medians of starts;"
          " `+` is what counting adds, `beside the first` what it adds more than in the first case")
    print(f"  {'case':28} {'off':>24} {'+':>24} {'beside the first':>24}")
    for case, _ in cases:
        cells = (lambda got: got[case, "off"]["launch_ns"], lambda got: added(got, case), lambda got: added(got, case) - added(got, cases[0][0]))
        print(f"  {case:28}" + "".join(" {:8.1f} ({:5.1f} .. {:5.1f})".format(*over_starts(starts, cell)) for cell in cells))


def graphs(nodes, rounds, repeats, work):
    """The program's own calls about graphs; each call of the simulated driver takes what costs.def says."""
    commands = {name: (options, GRAPHS, ["--nodes", nodes, "--rounds", 1, "--slices", 1]) for name, options in MODES[:3]}
    starts = [in_slices(commands, rounds, work, "kernel * duration_us=1 power=300\n") for _ in range(repeats)]
    print(f"\ngraphs of {nodes} captured nodes: microseconds a call, medians of {repeats} starts of {rounds} rounds; and as parts of the"
          " program's own, of the same round, with 90 % of medians of starts")
    print(f"  {'call':14}" + "".join(f"{name:>{10 if name == 'off' else 36}}" for name in commands))
    for key in starts[0]["off"][0]:
        cells = f"{over_starts(starts, lambda got: got['off'][key])[0]:10.1f}"
        for name, _ in MODES[1:3]:
            middle, low, high = over_starts(starts, lambda got: got[name][key] / got["off"][key])
            cells += f"{over_starts(starts, lambda got: got[name][key])[0]:10.1f} {middle:7.3f}x ({low:.3f} .. {high:.3f})"
        print(f"  {key.removesuffix('_us'):14}" + cells)


def floors():
    print("\nfloor of counting a launch: one hash probe, one atomic add for the kernel and one for the call, alone in a loop")
    for kernels in (20, 20000):
        done = subprocess.run([str(BUILD / "bench" / "floor"), str(kernels)], capture_output=True, text=True, check=True)
        print(f"  {kernels:6} kernels {float(done.stdout.split('=')[1]):6.1f} ns")


def launches(rows, repeats, work, modes=MODES, script=SCRIPT):
    print("\nnanoseconds per launch on the simulated driver: median of runs; `+` is what the shim adds; sync is spread over its launches")
    print(f"  {'case':28} {'mode':20} {'launch':>8} {'+':>7} {'sync':>8} {'+':>7} {'grown KiB':>10} {'launches':>10}")
    number = 0
    for case, flags in rows:
        results = {name: [] for name, _ in modes}
        for _ in range(repeats):
            for name, options in modes:
                number += 1
                results[name].append(launch(options, flags, work, number, script))
        middle = {name: {k: statistics.median(r[k] for r in runs) for k in runs[0]} for name, runs in results.items()}
        off = middle["off"]
        for name, got in middle.items():
            print(f"  {case:28} {name:20} {got['launch_ns']:8.1f} {got['launch_ns'] - off['launch_ns']:7.1f} {got['sync_ns']:8.1f} "
                  f"{got['sync_ns'] - off['sync_ns']:7.1f} {got['grown_kib']:10.0f} {got['launches']:10.0f}")
            case = ""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: that it runs, not what it costs")
    quick = parser.parse_args().quick
    scale = 10 if quick else 1
    with tempfile.TemporaryDirectory(prefix="kjoule-bench.") as work:
        cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "unknown CPU")
        print(f"machine: {cpu}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
        paired("start-up: `true` and `kjoule true`", ["/bin/true"], 300 // scale, work)
        text = str(ROOT / "tests" / "programs" / "data" / "work_and_heat.txt")
        paired("CPU training: lm_train, 20 steps", [TRAIN, "--steps", "20", "--text", text], max(15 // scale, 3), work)
        batches = 1000 // scale
        rows = [(f"{n} thread{'s' * (n > 1)}, own stream{'s' * (n > 1)}", ["--threads", n, "--batches", batches]) for n in (1, 2, 4)]
        rows += [(f"{n} threads, one stream", ["--threads", n, "--one-stream", "--batches", batches]) for n in (2, 4)]
        rows += [("1 thread, 20,000 kernels", ["--kernels", 20000, "--batches", batches]),
                 ("a module to each launch", ["--reload", "--batches", batches]),
                 ("20,000 in the same order", ["--kernels", 20000, "--ordered", "--batches", batches])]
        floors()
        launches(rows, 1 if quick else 3, work)
        many([("1 kernel, 1 shape", ["--kernels", 1]), ("1 kernel, 1,000,000 shapes", ["--kernels", 1, "--shapes", 1000000]),
              ("20,000 kernels, 1 shape", ["--kernels", 20000]), ("20,000 kernels, 50 shapes", ["--kernels", 20000, "--shapes", 50])],
             *((5, 2) if quick else (25, 8)), work)
        launches([("100 million launches", ["--batches", 390625 // scale])], 1, work, MODES[:3], QUICK_KERNELS)
        graphs(2000, *((5, 2) if quick else (25, 8)), work)
        governor.main(sys.modules[__name__], work, quick)
        probe.main(quick)


if __name__ == "__main__":
    main()
