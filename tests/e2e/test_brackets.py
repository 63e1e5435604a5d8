# SPDX-License-Identifier: Apache-2.0
"""How long launches and copies ran, as their events tell it, against what the simulated device did.

The machine may be busy: what the host does late is in no assertion, and the device's own times are computed, not slept.
"""
import pytest

import kj

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
