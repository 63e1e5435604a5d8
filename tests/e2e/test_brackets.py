# SPDX-License-Identifier: Apache-2.0
"""How long launches and copies ran, as their events tell it, against what the simulated device did.

The machine may be busy: what the host does late is in no assertion, and the device's own times are computed, not slept.
"""
import pytest

import kj
import ledger

EVERY = ["--budget", 100]  # each launch is timed


def times(sim):
    """{name: (launches, time_ns)} that the device ran; copies under the report's names."""
    device = sim.truth()["devices"][0]
    return {**{k["name"]: (k["launches"], k["time_ns"]) for k in device["kernels"]},
            **{kj.COPY_KINDS[c["name"]]: (c["launches"], c["time_ns"]) for c in device["copies"]}}


def told(report):
    return {**{k["name"]: (k["launches"], k["time_ns"]) for k in report["kernels"]},
            **{c["kind"]: (c["count"], c["time_ns"]) for c in report["copies"]}}


def rhythm(folder, sim, *arguments, options=EVERY):
    done = kj.wrapped([kj.program("cuda_rhythm"), *arguments], folder, options=options, env=sim.env)
    assert done.status == 0, done.stderr.decode()
    return done


@pytest.mark.parametrize("stream", ["own", "legacy", "per-thread"])
@pytest.mark.parametrize("copy, kind", [("dtoh", "DtoH"), ("dtoh-lane", "DtoH"), ("htod", "HtoD"), ("big", "HtoD"), ("pinned", "HtoD"),
                                        ("dtod", "DtoD"), ("memset", "memset"), ("2d", "other"), ("async", "DtoH")])
def test_a_copy_has_its_own_time(make_sim, folder, copy, kind, stream):
    """Not that of the work it waits for, nor that of its call: kernels of 20 ms are queued before each."""
    sim = make_sim("kernel * duration_us=5000 power=400\n")
    done = rhythm(folder, sim, "--launches", 120, "--batch", 4, "--copy", copy, "--stream", stream)
    ran, reported = times(sim), told(done.report)
    (copies, copy_ns), (launches, kernel_ns) = ran.get(kind) or ran["DtoH"], ran["rhythm_0"]
    assert reported["rhythm_0"] == (launches, pytest.approx(kernel_ns, rel=0.01))
    assert reported[kind][0] == copies == 30
    assert 0.95 * copy_ns <= reported[kind][1] <= copy_ns + 0.05 * kernel_ns, (reported, ran)
    wall_ns = done.report["run"]["duration_ns"]
    assert all(p["time_ns"] <= wall_ns for p in done.report["phases"]), done.report["phases"]


CALLS = {"dtoh": "cuMemcpyDtoH", "dtoh-lane": "cuMemcpyDtoH", "htod": "cuMemcpyHtoD", "big": "cuMemcpyHtoD", "pinned": "cuMemcpyHtoD",
         "dtod": "cuMemcpyDtoD", "memset": "cuMemsetD8", "2d": "cuMemcpy2D", "async": "cuMemcpyDtoHAsync"}


@pytest.mark.parametrize("copy, kind", [("dtoh", "DtoH"), ("dtoh-lane", "DtoH"), ("htod", "HtoD"), ("big", "HtoD"), ("pinned", "HtoD"),
                                        ("dtod", "DtoD"), ("memset", "memset"), ("2d", "other"), ("async", "DtoH")])
def test_a_late_host_makes_no_copy_longer(make_sim, folder, copy, kind):
    """Half of all returns from a copy, and a quarter of all second records, come 1.2 ms late: the host's delay is no time of the copies'.

    How late they were is not known, so the interval holds it; the fastest of the copies tells what they take. A busy machine delays some
    more, by far less than a quarter of that. Kernels vary, so that no delay keeps step with the copies."""
    sim = make_sim("kernel rhythm_0 duration_us=1000 sd_us=200 power=400\n"
                   f"hold {CALLS[copy]} us=1200 every=2 after=1\nhold cuEventRecord us=1200 from=17 every=32\n")
    done = rhythm(folder, sim, "--launches", 360, "--batch", 3, "--copy", copy, "--stream", "legacy")
    ran = times(sim)
    copies, copy_ns = ran.get(kind) or ran["DtoH"]
    (told_,) = [c for c in done.report["copies"] if c["kind"] == kind]
    assert told_["count"] == copies == 120
    assert told_["time_low_ns"] <= copy_ns * 1.01 and copy_ns <= 1.01 * told_["time_high_ns"], (told_, ran)
    assert told_["time_ns"] <= copy_ns + copies / 2 * 1200e3 / 4, (told_, ran)
    kernels_ns, (kernel,) = ran["rhythm_0"][1], done.report["kernels"]
    assert 0.99 * kernel["time_low_ns"] <= kernels_ns <= 1.01 * kernel["time_high_ns"], kernel
    assert kernel["time_ns"] == pytest.approx(kernels_ns, rel=0.03), kernel


# The thread sleeps in these calls, or in some of them, before it has submitted or afterwards. The first record is the base's, then each launch has two.
HOLDS = {"no call": "",
         "records, after": "hold cuEventRecord us=3000 after=1\n",
         "records, before": "hold cuEventRecord us=3000\n",
         "records, equally": "hold cuEventRecord us=3 after=1\n",
         "first records, after": "hold cuEventRecord us=20000 after=1 times=6\nhold cuEventRecord us=3000 from=7 every=2\n",
         "start records, after": "hold cuEventRecord us=3000 after=1 from=2 every=2\n",
         "start records, before": "hold cuEventRecord us=3000 from=2 every=2\n",
         "end records, after": "hold cuEventRecord us=3000 after=1 from=3 every=2\n",
         "end records, before": "hold cuEventRecord us=3000 from=3 every=2\n",
         "launches, after": "hold cuLaunchKernel us=3000 after=1\n",
         "launches, before": "hold cuLaunchKernel us=3000\n",
         "all, after": "hold cuEventRecord us=2000 after=1\nhold cuLaunchKernel us=3000 after=1\n",
         "all, before": "hold cuEventRecord us=2000\nhold cuLaunchKernel us=3000\n",
         "dear records": "event host_ns=400000\n",
         "dear records, and some after": "event host_ns=400000\nhold cuEventRecord us=300 from=2 every=3 after=1\n"
                                         "hold cuEventRecord us=5000 from=3 every=2\n",
         "some start records, after": "hold cuEventRecord us=3000 after=1 from=2 every=6\n",
         "some end records, after": "hold cuEventRecord us=3000 after=1 from=3 every=6\n",
         "some end records, before": "hold cuEventRecord us=3000 from=3 every=6\n",
         "some launches, after": "hold cuLaunchKernel us=3000 after=1 from=2 every=3\n"}


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("us, sd_us, batch", [(200, 0, 1), (200, 0, 10), (300, 250, 1), (2900, 0, 10)])
def test_no_bound_is_beyond_the_truth(make_sim, folder, us, sd_us, batch, hold):
    """Wherever a thread is held up, the time of a kernel lies within its interval; where only some launches are, it is that of the others."""
    sim = make_sim(f"kernel * duration_us={us} sd_us={sd_us} power=400\n" + HOLDS[hold])
    done = rhythm(folder, sim, "--launches", 100, "--batch", batch)
    _, time_ns = times(sim)["rhythm_0"]
    (kernel,) = done.report["kernels"]
    assert 0.99 * kernel["time_low_ns"] <= time_ns <= 1.01 * kernel["time_high_ns"], (kernel, time_ns)
    if hold.startswith("some") and not sd_us:
        assert kernel["time_ns"] == pytest.approx(time_ns, rel=0.05), (kernel, time_ns)


RHYTHMS = {"idle": ("--batch", 1), "backlogged": ("--batch", 400), "spaced": ("--gap-us", 60, "--batch", 10), "hiccups": ("--hiccups",),
           "graphs": ("--graph", 4, "--gap-us", 20), "two threads": ("--threads", 2, "--gap-us", 20)}


@pytest.mark.parametrize("rhythm_name", RHYTHMS)
@pytest.mark.parametrize("us", [2, 5, 10, 50])
def test_a_kernel_has_its_own_time(make_sim, folder, us, rhythm_name):
    """Not that of events, nor of what the host did between them. A graph is one launch: its nodes share what is off."""
    sim = make_sim(f"kernel * duration_us={us} power=400\n")
    done = rhythm(folder, sim, "--launches", 5000, *RHYTHMS[rhythm_name])
    for name, (launches, time_ns) in times(sim).items():
        (kernel,) = [k for k in done.report["kernels"] if k["name"] == name]
        mean_ns = kernel["time_ns"] / launches
        assert kernel["launches"] == launches and time_ns == launches * us * 1000
        disturbed = rhythm_name in ("hiccups", "two threads")  # and there, what the mean of the others is worth
        assert abs(mean_ns - us * 1000) <= (max(500, 0.05 * us * 1000) if disturbed else max(300, 0.03 * us * 1000)), kernel
        assert 0.97 * kernel["time_low_ns"] <= time_ns <= 1.03 * kernel["time_high_ns"], kernel


def test_what_was_taken_off_is_in_the_ledger(make_sim, folder):
    """Time and what was taken off it are what the events showed: here two of 4 us of the stream, and the call of 20 us."""
    sim = make_sim("kernel * duration_us=50 power=400\nevent host_ns=1000 device_ns=4000\nlaunch_cost_ns 20000\n")
    rhythm(folder, sim, "--launches", 400, "--gap-us", 100)
    one = ledger.read_one(folder)
    (kernel,) = [a for a in one.activities if a.name == "rhythm_0"]
    taken_ns, over_ns, under_ns = kernel.taken
    assert kernel.timed == 399 and kernel.sum_ns / kernel.timed == pytest.approx(50000, rel=0.03)
    assert taken_ns / kernel.timed >= 18000  # the call is longer than an event that runs meanwhile
    assert over_ns >= 0 and under_ns / kernel.timed >= 1000
