# SPDX-License-Identifier: Apache-2.0
"""Launches, times and joules against the truth of the simulated GPU."""
import json
import os
import random
import struct
import subprocess

import pytest

import kj

KERNELS = ("train_gemm", "train_softmax", "train_update")
DURATION_US = {"train_gemm": 3000, "train_softmax": 1500, "train_update": 500}


def driver(*flags):
    return [kj.program("cuda_driver"), *map(str, flags)]


def assert_counts(run, sim, each):
    assert run.status == 0, run.stderr.decode()
    assert run.kernels() == dict.fromkeys(KERNELS, each)
    assert sim.kernels() == dict.fromkeys(KERNELS, each)


def test_three_kernels_five_seconds(sim, folder):
    """Launches exact, kernel time within 2 % of the script, device energy within 2 % of truth, sums to the microjoule."""
    run = kj.wrapped(driver("--steps", 950, "--gap-us", 300), folder, env=sim.env)
    assert_counts(run, sim, 950)
    assert run.report["run"]["duration_ns"] >= 4.9e9
    for kernel in run.report["kernels"]:
        script_ns = DURATION_US[kernel["name"]] * 1000 * 950
        assert kernel["time_ns"] == pytest.approx(script_ns, rel=0.02), kernel["name"]
    assert run.device_uj() == pytest.approx(sim.energy_uj(), rel=0.02)
    (device,) = run.report["devices"]
    assert device["kernels_uj"] + device["idle_uj"] + device["unattributed_uj"] == device["energy_uj"]
    assert device["idle_uj"] > 0
    (gpu,) = run.component("gpu")
    assert gpu["method"] == "measured"


def test_energy_knows_the_power_limit(sim, folder):
    """The board's limit is kept with its sensors, and holds the kernels' powers; a folder of before it was kept has none."""
    run = kj.wrapped(driver("--steps", 200, "--gap-us", 300), folder, env=sim.env)
    assert_counts(run, sim, 200)
    # no longer, or the sensors know the powers without it
    series = folder / "series.000.csv"
    lines = series.read_text().splitlines(keepends=True)
    shapes = [i for i, line in enumerate(lines) if line.startswith("shape,")]
    assert shapes and all(lines[i].split(",")[8] == "700000" for i in shapes)

    def highest_w(last_field):
        for i in shapes:
            lines[i] = ",".join(lines[i].rstrip().split(",")[:8]) + last_field + "\n"
        series.write_text("".join(lines))
        again = kj.kjoule("report", folder, "--format", "json")
        report = kj.check_report(json.loads(again.stdout))
        (device,) = report["devices"]
        whole = device["high_uj"] / device["energy_uj"]  # what is not known of the sensor's scale widens every interval
        return max(k["high_uj"] / whole / (k["time_high_ns"] / 1e3) for k in report["kernels"])

    unknown, low = highest_w(""), highest_w(",450000")
    # No kernel draws 450 W, so that limit contradicts nothing; what is not known of the total comes on top.
    assert low < 500 < unknown, (low, unknown)


@pytest.mark.parametrize("flags", [
    pytest.param((), id="looked-up"),
    pytest.param(("--door", "versioned"), id="versioned"),
    pytest.param(("--stream", "legacy"), id="legacy-stream"),
    pytest.param(("--stream", "per-thread"), id="per-thread-stream"),
    pytest.param(("--stream", "per-thread", "--door", "versioned"), id="per-thread-versioned"),
    pytest.param(("--library",), id="library-kernels"),
    pytest.param(("--library", "--unload", "--door", "versioned"), id="library-versioned"),
    pytest.param(("--unload",), id="unload"),
    pytest.param(("--async",), id="never-synchronised"),
])
def test_counts_and_behaviour(make_sim, folder, flags):
    """However the driver is reached, each launch is counted once and the program says the same."""
    plain = kj.bare(driver("--steps", 60, *flags, "--exit", 5), env=make_sim(name="plain").env)
    sim = make_sim()
    run = kj.wrapped(driver("--steps", 60, *flags, "--exit", 5), folder, env=sim.env)
    assert (run.status, run.stdout) == (plain.status, plain.stdout) and plain.status == 5, run.stderr.decode()
    assert run.kernels() == sim.kernels() == dict.fromkeys(KERNELS, 60)


def test_linked_program(sim, folder):
    run = kj.wrapped([kj.program("cuda_linked"), "--steps", 60], folder, env=sim.env)
    assert_counts(run, sim, 60)


def test_threads(sim, folder):
    run = kj.wrapped(driver("--steps", 40, "--threads", 4), folder, env=sim.env)
    assert_counts(run, sim, 160)


def test_processes(sim, folder):
    """Forked workers share the device; each process's launches are counted, the device's energy once."""
    run = kj.wrapped(driver("--steps", 40, "--processes", 3), folder, env=sim.env)
    assert_counts(run, sim, 120)
    assert len(run.report["devices"]) == 1
    assert run.device_uj() == pytest.approx(sim.energy_uj(), rel=0.15)


def test_two_devices(make_sim, folder):
    sim = make_sim("devices 2\nkernel * duration_us=500 power=300\n")
    run = kj.wrapped(driver("--steps", 200, "--threads", 2, "--devices", 2), folder, env=sim.env)
    assert_counts(run, sim, 400)
    assert len(run.report["devices"]) == 2
    per_device = {(k["device"], k["name"]): k["launches"] for k in run.report["kernels"]}
    assert sorted(per_device.values()) == [200] * 6


@pytest.mark.parametrize("flags", [(), ("--graph",), ("--stream", "per-thread"), ("--async", "--library")])
def test_eight_threads_four_processes_two_devices(make_sim, folder, flags):
    """Nothing is lost and nothing counted twice: 32 threads of 4 processes on 2 devices, each with its own count."""
    sim = make_sim("devices 2\nkernel * duration_us=20 power=300\n")
    run = kj.wrapped(driver("--steps", 500, "--threads", 8, "--processes", 4, "--devices", 2, *flags), folder, env=sim.env)
    assert_counts(run, sim, 500 * 8 * 4)
    truth = {(d["uuid"], k["name"]): k["launches"] for d in sim.truth()["devices"] for k in d["kernels"]}
    assert len(truth) == 6 and set(truth.values()) == {8000}
    assert {(k["device"], k["name"]): k["launches"] for k in run.report["kernels"]} == truth
    copies = {(c["device"], c["kind"]): c["count"] for c in run.report["copies"]}
    assert copies == {(d["uuid"], kj.COPY_KINDS[c["name"]]): c["launches"] for d in sim.truth()["devices"] for c in d["copies"]}
    assert len(run.report["processes"]) == 4


def test_one_launch_on_many_devices(make_sim, folder):
    """cuLaunchCooperativeKernelMultiDevice: each device is given its own launch."""
    code = ("import ctypes, sys; C = ctypes; d = C.CDLL('libcuda.so.1'); V = C.c_void_p; ok = lambda rc: rc and sys.exit(rc)\n"
            "class P(C.Structure): _fields_ = [('f', V), ('g', C.c_uint * 3), ('b', C.c_uint * 3), ('s', C.c_uint), ('h', V), ('p', V)]\n"
            "ptx = b'.version 8.0\\n.target sm_80\\n.address_size 64\\n.visible .entry together()\\n{\\n ret;\\n}\\n'\n"
            "ok(d.cuInit(0)); params = (P * 2)()\n"
            "for i in range(2):\n"
            "    c, m, f, s = V(), V(), V(), V()\n"
            "    ok(d.cuDevicePrimaryCtxRetain(C.byref(c), i)); ok(d.cuCtxSetCurrent(c)); ok(d.cuModuleLoadData(C.byref(m), ptx))\n"
            "    ok(d.cuModuleGetFunction(C.byref(f), m, b'together')); ok(d.cuStreamCreate(C.byref(s), 1))\n"
            "    ok(d.cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, s, None, None))\n"
            "    params[i] = P(f, (1, 1, 1), (32, 1, 1), 0, s, None)\n"
            "for _ in range(10 if d.cuLaunchCooperativeKernelMultiDevice(params, 2, 0) == 0 else 0):\n"
            "    ok(d.cuLaunchCooperativeKernelMultiDevice(params, 2, 0))\n"
            "ok(d.cuCtxSynchronize()); print('done')\n")
    sim = make_sim("devices 2\nkernel * duration_us=20 power=300\n")
    run = kj.wrapped([kj.PYTHON, "-c", code], folder, env=sim.env)
    assert (run.status, run.stdout) == (0, b"done\n"), run.stderr.decode()
    truth = {(d["uuid"], k["name"]): k["launches"] for d in sim.truth()["devices"] for k in d["kernels"]}
    assert set(truth.values()) == {12} and len(truth) == 2
    assert {(k["device"], k["name"]): k["launches"] for k in run.report["kernels"]} == truth


def test_graph(make_sim, folder):
    """A graph's kernels are counted by name at each of its launches; nothing of ours lands in the capture."""
    plain = kj.bare(driver("--steps", 60, "--graph"), env=make_sim(name="plain").env)
    sim = make_sim()
    run = kj.wrapped(driver("--steps", 60, "--graph"), folder, env=sim.env)
    assert (run.status, run.stdout) == (plain.status, plain.stdout) and plain.status == 0, run.stderr.decode()
    assert run.kernels() == sim.kernels() == dict.fromkeys(KERNELS, 60)


def test_no_launch(sim, folder):
    """A program that opens the device and launches nothing: idle energy, no kernel, no fault."""
    run = kj.wrapped(driver("--steps", 0, "--gap-us", 0), folder, env=sim.env)
    assert run.status == 0 and run.kernels() == {}


def test_count_only(sim, folder):
    """--timing=count: exact launches without event pairs; kernel time is unknown, not zero."""
    run = kj.wrapped(driver("--steps", 60), folder, options=["--timing", "count"], env=sim.env)
    assert_counts(run, sim, 60)
    for kernel in run.report["kernels"]:
        assert kernel["time_ns"] is None or kernel["time_method"] != "measured", kernel


def test_refusing_counter(make_sim, folder):
    """Without the energy counter the instant power carries the total, and the refusal keeps its reason."""
    sim = make_sim("refuse counter\nkernel * duration_us=2000 power=300\n")
    run = kj.wrapped(driver("--steps", 300), folder, env=sim.env)
    assert run.status == 0
    assert run.device_uj() == pytest.approx(sim.energy_uj(), rel=0.15)
    assert run.component("gpu")[0]["method"] in ("measured", "estimated")


def test_refusing_everything(make_sim, folder):
    """Neither counter nor power: a modelled or unknown GPU, never a measured zero."""
    sim = make_sim("refuse counter\nrefuse power\nkernel * duration_us=2000 power=300\n")
    run = kj.wrapped(driver("--steps", 50), folder, env=sim.env)
    assert run.status == 0
    for device in run.report["devices"]:
        assert device["energy_uj"] is None or device["energy_uj"] > 0
    assert all(c["method"] != "measured" for c in run.component("gpu"))
    assert run.kernels() == dict.fromkeys(KERNELS, 50)


def test_preload_agrees_with_wrapper(make_sim, tmp_path):
    """Bare LD_PRELOAD and the wrapper: same kernels, same launches, energy within the interval."""
    one = kj.wrapped(driver("--steps", 400), tmp_path / "one", env=make_sim(name="a").env)
    two = kj.preloaded(driver("--steps", 400), tmp_path / "two", env=make_sim(name="b").env)
    assert one.status == two.status == 0
    assert one.stdout == two.stdout
    assert one.kernels() == two.kernels() == dict.fromkeys(KERNELS, 400)
    (a,), (b,) = one.component("gpu"), two.component("gpu")
    assert a["low_uj"] <= b["high_uj"] and b["low_uj"] <= a["high_uj"]
    assert a["energy_uj"] == pytest.approx(b["energy_uj"], rel=0.15)


def spoil(state, how):
    """Of a good state file: what another build, a reboot or an accident would leave. The first word is the layout, the second time zero."""
    whole = state.stat().st_size
    with state.open("r+b") as file:
        (layout,) = struct.unpack("<Q", file.read(8))
        file.seek(0)
        if how == "another build":
            file.write(struct.pack("<Q", layout ^ 1))
        elif how == "an earlier build":
            file.write(struct.pack("<Q", 0x73696D6770753031))
        elif how == "another size":
            file.truncate(whole + 4096)
        elif how == "cut short":
            file.truncate(whole // 2)
        elif how == "garbage":
            file.write(random.Random(7).randbytes(1 << 20))
        elif how == "text":
            file.truncate(0)
            file.write(b"not a machine\n")
        elif how == "before a reboot":
            file.seek(8)
            file.write(struct.pack("<Q", 1 << 62))


@pytest.mark.parametrize("how", ("another build", "an earlier build", "another size", "cut short", "garbage", "text", "before a reboot"))
def test_state_of_something_else(sim, how):
    """A state file that is not of this build is refused in one line by all that would use it, at once, and left as it is."""
    assert kj.bare(driver("--steps", 5), env=sim.env).status == 0
    spoil(sim.state, how)
    before = os.stat(sim.state)
    truth = kj.SIMGPU / "simgpu-truth"
    for command in (driver("--steps", 5), [truth, sim.state], [truth, "--at", 1, sim.state], [truth, "--watch", 5, sim.state]):
        done = subprocess.run(list(map(str, command)), env=kj.environment(sim.env), capture_output=True, timeout=60)
        assert done.returncode != 0 and done.stdout == b""
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith(f"simgpu: {sim.state}: ") and "remove it" in line
    assert os.stat(sim.state).st_size == before.st_size and os.stat(sim.state).st_mtime_ns == before.st_mtime_ns


def test_state_in_the_making(sim):
    """An empty file becomes a machine; so does one whose maker died before it was made."""
    size = 0
    for _ in range(2):
        with sim.state.open("wb") as file:
            file.truncate(size)
        run = kj.bare(driver("--steps", 5), env=sim.env)
        assert run.status == 0 and sim.kernels() == dict.fromkeys(KERNELS, 5)
        size = sim.state.stat().st_size
