# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs, however they are made and changed: the program notices nothing, and every node that runs is counted by name."""
import pytest

import kj

SCRIPT = """
power idle=60 context=85
kernel graph_a duration_us=4 power=400
kernel graph_b duration_us=3 power=250
kernel graph_c duration_us=2 power=150
"""
WAYS = ("capture", "threads", "build", "update", "change", "large", "churn", "forbidden", "elsewhere")


def program(way, *more):
    return [kj.program("cuda_graphs"), way, *map(str, more)]


@pytest.mark.parametrize("timing", ["events", "count"])
@pytest.mark.parametrize("way", WAYS)
def test_graphs(make_sim, folder, way, timing):
    plain = kj.bare(program(way), env=make_sim(SCRIPT, name="plain").env)
    sim = make_sim(SCRIPT)
    run = kj.wrapped(program(way), folder, options=["--timing", timing], env=sim.env)
    assert (run.status, run.stdout) == (plain.status, plain.stdout) and plain.status == 0, run.stderr.decode()
    assert run.kernels() == sim.kernels()
    assert sum(sim.kernels().values()) > 0
    for device in sim.truth()["devices"]:
        fills = sum(c["launches"] for c in device["copies"])
        assert fills == (50 if way == "build" else 0)
    assert not any("more kinds of kernels" in w for w in run.report["quality"]["warnings"])


def test_energy_of_a_graphs_nodes_is_estimated(make_sim, folder):
    """Weights share the graph's measured time; the tag says so, and the interval holds the truth."""
    sim = make_sim(SCRIPT.replace("us=4", "us=400").replace("us=3", "us=300").replace("us=2", "us=200"))
    run = kj.wrapped(program("capture", 60), folder, env=sim.env)
    assert run.status == 0 and run.kernels() == sim.kernels()
    truth = {k["name"]: k for k in sim.truth()["devices"][0]["kernels"]}
    for kernel in run.report["kernels"]:
        assert kernel["energy_method"] in ("estimated", "modelled"), kernel
        assert kernel["low_uj"] <= truth[kernel["name"]]["energy_uj"] <= kernel["high_uj"], kernel
