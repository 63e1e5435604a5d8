# SPDX-License-Identifier: Apache-2.0
"""What was not timed, or by few brackets: an interval that holds, and unknown is never 0."""
import json

import pytest

import kj

# A list of (kernel, how often), in order; each launch is waited for.
LAUNCHER = """
import ctypes, json, sys; C = ctypes; d = C.CDLL('libcuda.so.1'); V = C.c_void_p; ok = lambda rc: rc and sys.exit(rc)
c, m, s, functions = V(), V(), V(), {}
names = dict.fromkeys(name for name, _ in json.loads(sys.argv[1]))
ptx = '.version 8.0\\n.target sm_80\\n.address_size 64\\n' + ''.join(f'.visible .entry {n}()\\n{{\\n ret;\\n}}\\n' for n in names)
ok(d.cuInit(0)); ok(d.cuDevicePrimaryCtxRetain(C.byref(c), 0)); ok(d.cuCtxSetCurrent(c)); ok(d.cuModuleLoadData(C.byref(m), ptx.encode()))
ok(d.cuStreamCreate(C.byref(s), 1))
for name, count in json.loads(sys.argv[1]):
    if name not in functions:
        functions[name] = V(); ok(d.cuModuleGetFunction(C.byref(functions[name]), m, name.encode()))
    for _ in range(count):
        ok(d.cuLaunchKernel(functions[name], 1, 1, 1, 32, 1, 1, 0, s, None, None)); ok(d.cuStreamSynchronize(s))
ok(d.cuCtxSynchronize())
"""


def launched(sim, folder, *launches, options=()):
    run = kj.wrapped([kj.PYTHON, "-c", LAUNCHER, json.dumps(launches)], folder, options=options, env=sim.env)
    assert run.status == 0, run.stderr.decode()
    assert run.kernels() == sim.kernels()
    (device,) = sim.truth()["devices"]
    return run, {k["name"]: k for k in device["kernels"]}


def assert_holds(kernel, truth):
    assert kernel["time_low_ns"] <= truth["time_ns"] <= kernel["time_high_ns"], (kernel, truth)
    assert kernel["low_uj"] <= truth["energy_uj"] <= kernel["high_uj"], (kernel, truth)


@pytest.mark.parametrize("us", [5, 50, 2000, 400_000])
def test_launched_once(make_sim, folder, us):
    """One launch has one bracket, which may hold what came before it ran: no measurement, and the truth is in its interval."""
    run, truth = launched(make_sim(f"kernel * duration_us={us} power=300\n"), folder, ("once", 1), ("often", 400_000 // us + 50))
    once, often = (next(k for k in run.report["kernels"] if k["name"] == name) for name in ("once", "often"))
    assert_holds(once, truth["once"])
    assert once["time_method"] != "measured" and once["energy_method"] != "measured"
    if us == 5:
        assert once["time_method"] == once["energy_method"] == "modelled" and once["time_low_ns"] == 0, once
    if us == 400_000:
        assert once["time_method"] == "estimated" and once["time_high_ns"] < 1.05 * once["time_low_ns"], once
    assert often["time_method"] != "modelled", often


@pytest.mark.parametrize("launches", [2, 3, 5])
def test_launched_a_few_times(make_sim, folder, launches):
    """The fewer brackets, the wider the interval."""
    run, truth = launched(make_sim("kernel * duration_us=300 sd_us=60 power=300\n"), folder, ("few", launches), ("rest", 400))
    few = next(k for k in run.report["kernels"] if k["name"] == "few")
    assert_holds(few, truth["few"])
    assert few["time_method"] == ("modelled" if launches == 2 else "estimated") or launches > 2, few
    width = (few["time_high_ns"] - few["time_low_ns"]) / few["time_ns"]
    assert width > {2: 1, 3: 0.3, 5: 0.1}[launches], (width, few)


def test_nothing_timed(make_sim, folder):
    """--timing count: no energy of a kernel, a copy or a phase is known, none is 0, and the device's energy still adds up."""
    sim = make_sim("kernel * duration_us=2000 power=400\n")
    run, truth = launched(sim, folder, ("work", 600), ("more", 100), options=["--timing", "count"])
    (device,) = run.report["devices"]
    for kernel in run.report["kernels"]:
        assert kernel["energy_uj"] is kernel["low_uj"] is kernel["high_uj"] is None and kernel["energy_method"] == "unknown", kernel
    assert device["kernels_unknown"] == 2 and device["kernels_uj"] is None and device["busy_ns"] is None
    assert device["unattributed_uj"] > 0.5 * truth["work"]["energy_uj"]
    for phase in run.report["phases"]:
        assert phase["time_ns"] is None, phase
    assert any("no launch was timed" in w for w in run.report["quality"]["warnings"])
    text = run.stderr.decode()
    assert "kernels unknown" in text and "kernels 0" not in text
    (line,) = [line for line in text.splitlines() if line.split()[:1] == ["work"]]
    assert line.split()[1:] == ["600", "unknown", "unknown"]


def test_some_timed(make_sim, folder):
    """No budget beyond the first moment: of what comes later nothing is known but that it is at most what the others left."""
    sim = make_sim("kernel early duration_us=1000 power=250\nkernel late* duration_us=1500 power=500\n")
    run, truth = launched(sim, folder, ("early", 500), ("late_a", 300), ("late_b", 200), options=["--budget", "0"])
    kernels = {k["name"]: k for k in run.report["kernels"]}
    assert_holds(kernels["early"], truth["early"])
    for name in ("late_a", "late_b"):
        kernel = kernels[name]
        assert kernel["time_ns"] is kernel["energy_uj"] is None and kernel["energy_method"] == "modelled", kernel
        assert kernel["low_uj"] == 0 < truth[name]["energy_uj"] <= kernel["high_uj"], kernel
    assert kernels["late_a"]["group"] == kernels["late_b"]["group"] is not None
    both = truth["late_a"]["energy_uj"] + truth["late_b"]["energy_uj"]
    assert both <= kernels["late_a"]["high_uj"]
    (device,) = run.report["devices"]
    assert device["kernels_unknown"] == 2 and device["kernels_uj"] == kernels["early"]["energy_uj"]
    assert device["unattributed_uj"] > 0.3 * both
    assert "(without 2 unknown)" in run.stderr.decode()
    assert any("never timed" in w for w in run.report["quality"]["warnings"])


def test_a_device_without_energy_is_in_no_total(make_sim, folder):
    """A sum of what is known says what it is without, wherever it is shown."""
    sim = make_sim("kernel * duration_us=2000 power=400\n" + "refuse counter\nrefuse power\nrefuse ring\n")
    run, _ = launched(sim, folder, ("work", 50))
    (device,) = run.report["devices"]
    assert device["energy_uj"] is device["kernels_uj"] is device["kernels_unknown"] is None, device
    energy = run.report["energy"]
    assert energy["components_unknown"] == 1
    assert energy["total_uj"] is None or "without 1 device of unknown energy" in run.stderr.decode()
