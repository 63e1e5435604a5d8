# SPDX-License-Identifier: Apache-2.0
"""Rest: a context is alive and nothing is left to run. Idle power is measured there, before, between and after launches, and nowhere else.

A busy machine may make a rest shorter, as the recorder sees it, and never longer; the device's times and powers are computed, not slept.
"""
import csv
import json
import struct

import pytest

import kj

# Steps in order, each a list of a word and its arguments; "in" runs the steps after its first argument in another thread, which goes on beside.
PROGRAM = """
import ctypes, json, sys, threading, time; C = ctypes; d = C.CDLL('libcuda.so.1'); V = C.c_void_p; ok = lambda rc: rc and sys.exit(rc)
context, module, own, other, event, kernels, block, threads = V(), V(), V(), V(), V(), {}, V(), []
STREAMS = {'own': own, 'other': other, 'legacy': V(1), 'default': V(), 'per-thread': V(2)}
def launch(name, count, stream='own'):
    for _ in range(count):
        ok(d.cuLaunchKernel(kernels[name], 1, 1, 1, 32, 1, 1, 0, STREAMS[stream], None, None))
def one_by_one(name, count, stream='own'):
    for _ in range(count):
        launch(name, 1, stream); ok(d.cuStreamSynchronize(STREAMS[stream]))
def beside(*steps):
    threads.append(threading.Thread(target=lambda: (ok(d.cuCtxSetCurrent(context)), run(steps)))); threads[-1].start()
def release():
    ok(d.cuDevicePrimaryCtxRelease_v2(0))
def wait_event():
    ok(d.cuEventRecord(event, own)); ok(d.cuEventSynchronize(event))
DO = {'launch': launch, 'one by one': one_by_one, 'in': beside, 'join': lambda: [t.join() for t in threads], 'release': release, 'sleep': time.sleep,
      'context': lambda: ok(d.cuCtxSynchronize()), 'stream': lambda name: ok(d.cuStreamSynchronize(STREAMS[name])), 'event': wait_event,
      'dtoh': lambda: ok(d.cuMemcpyDtoH_v2(C.create_string_buffer(64), address, 64)),
      'htod': lambda size: ok(d.cuMemcpyHtoD_v2(address, C.create_string_buffer(size), C.c_size_t(size)))}
def run(steps):
    for word, *arguments in steps:
        DO[word](*arguments)
names = ('short', 'long')
ptx = '.version 8.0\\n.target sm_80\\n.address_size 64\\n' + ''.join(f'.visible .entry {n}()\\n{{\\n ret;\\n}}\\n' for n in names)
ok(d.cuInit(0)); ok(d.cuDevicePrimaryCtxRetain(C.byref(context), 0)); ok(d.cuCtxSetCurrent(context))
ok(d.cuModuleLoadData(C.byref(module), ptx.encode())); ok(d.cuStreamCreate(C.byref(own), 1)); ok(d.cuStreamCreate(C.byref(other), 1))
ok(d.cuEventCreate(C.byref(event), 0)); ok(d.cuMemAlloc_v2(C.byref(block), C.c_size_t(1 << 22))); address = C.c_ulonglong(block.value)
for name in names:
    kernels[name] = V(); ok(d.cuModuleGetFunction(C.byref(kernels[name]), module, name.encode()))
run(json.loads(sys.argv[1]))
"""
SCRIPT = "power idle=60 context=85\nkernel short duration_us=3 power=400\nkernel long duration_us=300000 power=250\n" \
         "copy bandwidth_gbs=0.002 power=110\n"  # copies of 1 MiB take half a second
LEAST_S = 0.25  # of a rest of a second; a busy machine looks seldom


def rests_of(folder):
    rests = []
    for path in folder.glob("rests.*"):
        data = path.read_bytes()
        assert data[:8] == b"kjrests1"
        rests += struct.iter_unpack("<QQ", data[8:])
    return rests


class Rested:
    def __init__(self, sim, folder, steps, options=(), env=None):
        timeline = folder.parent / "timeline.csv"
        self.done = kj.wrapped([kj.PYTHON, "-c", PROGRAM, json.dumps(steps)], folder, options=options,
                               env={**sim.env, "KJ_SIM_TIMELINE": timeline, **(env or {})})
        assert self.done.status == 0, self.done.stderr.decode()
        self.report, self.truth = self.done.report, sim.truth()["devices"][0]
        (self.device,) = self.report["devices"]
        self.ran = [(int(row["start_ns"]), int(row["end_ns"])) for row in csv.DictReader(timeline.open())]
        self.rests = rests_of(folder)
        for start_ns, end_ns in self.rests:
            assert start_ns < end_ns
            for ran_ns, until_ns in self.ran:
                assert until_ns <= start_ns or end_ns <= ran_ns, "something ran in a rest"

    def rest_s(self, from_ns=0, until_ns=2**63):
        return sum(max(min(end, until_ns) - max(start, from_ns), 0) for start, end in self.rests) / 1e9


SHORT = ["one by one", "short", 30000]
RESTS = {"before": [["sleep", 1.2], SHORT], "between": [SHORT, ["context"], ["sleep", 1.2], SHORT],
         "after": [SHORT, ["context"], ["sleep", 1.2]], "both": [["sleep", 1], SHORT, ["context"], ["sleep", 1]]}


TIMINGS = {"default": (), "all timed": ("--budget", 100), "cupti": ("--timing", "cupti")}


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("where", RESTS)
def test_idle_power_is_measured_at_rest(make_sim, folder, where, timing):
    """Of kernels of 3 us, at the default budget, no sensor's window shows what the device draws between them."""
    cupti = {"LD_LIBRARY_PATH": f"{kj.SIMGPU}:{kj.SIMGPU / 'cupti'}"} if timing == "cupti" else {}
    run = Rested(make_sim(SCRIPT), folder, RESTS[where], TIMINGS[timing], cupti)
    assert run.rest_s() > LEAST_S, run.rests
    (kernel,), (truth,) = run.report["kernels"], run.truth["kernels"]
    assert run.device["idle_mw"] == pytest.approx(85000, rel=0.02), run.device
    assert kernel["low_uj"] <= truth["energy_uj"] <= kernel["high_uj"], (kernel, truth)


@pytest.mark.parametrize("us, rhythm", [(3, ("--batch", 1)), (3, ("--batch", 500)), (10, ("--gap-us", 15)), (50, ("--batch", 1))])
def test_energy_of_short_kernels(make_sim, folder, us, rhythm):
    """Idle stream and backlogged one, at the default budget, with half a second of rest before and after."""
    sim = make_sim(f"power idle=60 context=85\nkernel * duration_us={us} power=400\n")
    done = kj.wrapped([kj.program("cuda_rhythm"), "--launches", 1_200_000 // us, "--rest-ms", 600, *rhythm], folder, env=sim.env)
    (kernel,), (truth,) = done.report["kernels"], sim.truth()["devices"][0]["kernels"]
    assert kernel["low_uj"] <= truth["energy_uj"] <= kernel["high_uj"], (kernel, truth)
    assert kernel["energy_uj"] == pytest.approx(truth["energy_uj"], rel=0.03), (kernel, truth)
    assert done.report["devices"][0]["idle_mw"] == pytest.approx(85000, rel=0.02)


@pytest.mark.parametrize("us", [2, 5, 50])
@pytest.mark.parametrize("batch", [1, 500])
def test_without_rest_the_truth_is_inside(make_sim, folder, us, batch):
    """Idle power was never seen: it is more than without a context, which was seen, and no more than the least seen with one."""
    sim = make_sim(f"power idle=60 context=85\nkernel * duration_us={us} power=400\n")
    done = kj.wrapped([kj.program("cuda_rhythm"), "--launches", 900_000 // us, "--batch", batch], folder, env=sim.env)
    (kernel,), (truth,) = done.report["kernels"], sim.truth()["devices"][0]["kernels"]
    assert kernel["low_uj"] <= truth["energy_uj"] <= kernel["high_uj"], (kernel, truth)
    assert done.report["devices"][0]["idle_mw"] > 55000, done.report["devices"]


def test_idle_power_is_measured_where_nothing_is_timed(make_sim, folder):
    run = Rested(make_sim(SCRIPT), folder, RESTS["both"], ("--timing", "count"))
    assert run.device["idle_mw"] == pytest.approx(85000, rel=0.02), run.device
    assert run.device["idle_uj"] == pytest.approx(85 * run.report["run"]["duration_ns"] / 1e3, rel=0.1), run.device


# How the wait before the rest is made, and on which stream the kernels are.
WAITS = {"stream, legacy": ("legacy", ["stream", "legacy"]), "stream 0": ("default", ["stream", "default"]),
         "stream, per-thread": ("per-thread", ["stream", "per-thread"]), "copy to the host": ("legacy", ["dtoh"]),
         "context, own stream": ("own", ["context"])}


@pytest.mark.parametrize("wait", WAITS)
def test_any_wait_for_all_begins_a_rest(make_sim, folder, wait):
    stream, step = WAITS[wait]
    run = Rested(make_sim(SCRIPT), folder, [["launch", "long", 3, stream], step, ["sleep", 1]])
    assert run.rest_s(max(end for _, end in run.ran)) > LEAST_S, run.rests


# While each of these sleeps or waits, something runs, or may run for all that the calls tell.
NO_RESTS = {
    "not waited for": [["launch", "long", 4], ["sleep", 1.5]],
    "waited for, and more launched": [["launch", "long", 1], ["context"], ["launch", "long", 4], ["sleep", 1.5], ["context"]],
    "another stream waited for": [["launch", "long", 4], ["stream", "other"], ["sleep", 1.5]],
    "the legacy stream waited for": [["launch", "long", 4], ["stream", "legacy"], ["sleep", 1.5]],
    "an event waited for": [["launch", "long", 1], ["event"], ["launch", "long", 1, "other"], ["launch", "long", 4], ["event"], ["sleep", 1]],
    "another thread launches": [["in", ["launch", "long", 4, "other"]], ["join"], ["stream", "own"], ["sleep", 1.5]],
    "another thread's default stream": [["in", ["launch", "long", 4, "per-thread"], ["sleep", 1]], ["sleep", 0.1], ["stream", "per-thread"],
                                        ["sleep", 1], ["join"]],
    "the other default stream": [["launch", "long", 1, "per-thread"], ["launch", "long", 4, "legacy"], ["stream", "per-thread"], ["sleep", 1.5]],
    "a copy that takes long": [["sleep", 0.1], ["htod", 1 << 21], ["htod", 1 << 21]],
    "copies of another thread": [["in", ["htod", 1 << 21]], ["sleep", 0.1], ["context"], ["sleep", 0.5], ["join"]],
}


@pytest.mark.parametrize("what", NO_RESTS)
def test_what_may_run_is_no_rest(make_sim, folder, what):
    """Rested has compared each rest with all that ran; what is idle is told as no more than it was."""
    run = Rested(make_sim(SCRIPT), folder, NO_RESTS[what])
    for row in run.report["kernels"]:
        (truth,) = [k for k in run.truth["kernels"] if k["name"] == row["name"]]
        assert row["energy_uj"] is None or row["low_uj"] <= truth["energy_uj"] <= row["high_uj"], (row, truth)


NO_CONTEXT = {"released": ([["release"], ["sleep", 1.2]], '"$@"'), "ended": ([], '"$@"; sleep 1.2'),
              "killed": ([["sleep", 100]], 'timeout -s KILL 2 "$@"; sleep 1.2')}


@pytest.mark.parametrize("how", NO_CONTEXT)
def test_without_a_context_is_no_rest(make_sim, folder, how):
    """The board draws less once the context has gone: that the process, or the run, goes on without it is no rest."""
    steps, shell = NO_CONTEXT[how]
    steps = json.dumps([["launch", "long", 1], ["context"], *steps])
    done = kj.wrapped(["sh", "-c", shell, "sh", kj.PYTHON, "-c", PROGRAM, steps], folder, env=make_sim(SCRIPT).env)
    assert done.report["run"]["duration_ns"] > 1.2e9
    end_ns = json.loads((folder / "run.json").read_text())["end_mono_ns"]
    assert all(end < end_ns - 1.1e9 for _, end in rests_of(folder)), (rests_of(folder), end_ns)


def test_the_context_begins_when_it_is_made(make_sim, folder):
    """What the board draws before, and what the context draws before the first launch, are two levels."""
    run = Rested(make_sim(SCRIPT + "power idle=20 context=90\n"), folder, [["sleep", 1.5], ["launch", "long", 5], ["context"]])
    assert run.device["idle_uj"] == pytest.approx(run.truth["idle_uj"], rel=0.15), (run.device, run.truth)


@pytest.mark.parametrize("how", ["released", "ended"])
def test_the_context_ends_when_it_does(make_sim, folder, how):
    """What the board draws after it, while the process or the run goes on, is of the level without a context."""
    sim = make_sim(SCRIPT + "power idle=20 context=90\n")
    steps, shell = NO_CONTEXT[how]
    steps = json.dumps([["launch", "long", 5], ["context"], ["sleep", 0.5], *steps])
    done = kj.wrapped(["sh", "-c", shell, "sh", kj.PYTHON, "-c", PROGRAM, steps], folder, env=sim.env)
    (device,), truth = done.report["devices"], sim.truth()["devices"][0]
    ran_uj = sum(k["energy_uj"] for k in truth["kernels"])
    assert device["kernels_uj"] == pytest.approx(ran_uj, rel=0.04), (device, ran_uj)
    assert device["idle_mw"] == pytest.approx(90000, rel=0.03), device


def test_several_processes_rest_only_together(make_sim, folder):
    """One of the two launches while the other one rests: their rests are of no use to the device, and none is used."""
    sim = make_sim(SCRIPT)
    one, two = (json.dumps(s) for s in ([["launch", "long", 2], ["context"], ["sleep", 1.5]],
                                        [["sleep", 0.2], ["launch", "long", 4], ["context"]]))
    done = kj.wrapped(["sh", "-c", '"$0" -c "$1" "$2" & "$0" -c "$1" "$3"; wait', kj.PYTHON, PROGRAM, one, two], folder, env=sim.env)
    assert done.status == 0, done.stderr.decode()
    (kernel,), (truth,) = done.report["kernels"], sim.truth()["devices"][0]["kernels"]
    assert kernel["low_uj"] <= truth["energy_uj"] <= kernel["high_uj"], (kernel, truth)


def test_a_rest_of_one_process_is_none_where_another_computes(make_sim, folder):
    """The other process has no span of its own: nothing of it is timed, and it never waits for all. The rest of the one shows what its kernels draw."""
    sim = make_sim(SCRIPT)
    one, two = (json.dumps(s) for s in ([["sleep", 0.3], ["launch", "short", 1], ["context"], ["sleep", 1.2]],
                                        [["launch", "long", 6, "other"], ["launch", "long", 1], ["event"]]))
    done = kj.wrapped(["sh", "-c", '"$0" -c "$1" "$2" & "$0" -c "$1" "$3"; wait', kj.PYTHON, PROGRAM, one, two], folder,
                      options=("--timing", "count"), env=sim.env)
    assert done.status == 0, done.stderr.decode()
    (device,), truth = done.report["devices"], sim.truth()["devices"][0]
    for row in done.report["kernels"]:
        (ran,) = [k for k in truth["kernels"] if k["name"] == row["name"]]
        assert row["energy_uj"] is None or row["low_uj"] <= ran["energy_uj"] <= row["high_uj"], (row, ran)
    assert device["idle_mw"] < 100000, device
