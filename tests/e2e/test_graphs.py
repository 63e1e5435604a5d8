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
WAYS = ("capture", "threads", "build", "update", "change", "large", "churn", "forbidden", "elsewhere", "children", "many")
CUPTI = ("--timing", "cupti")


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
    run = kj.wrapped(program("capture", 200), folder, env=sim.env)
    assert run.status == 0 and run.kernels() == sim.kernels()
    truth = {k["name"]: k for k in sim.truth()["devices"][0]["kernels"]}
    for kernel in run.report["kernels"]:
        assert kernel["energy_method"] in ("estimated", "modelled"), kernel
        assert kernel["low_uj"] <= truth[kernel["name"]]["energy_uj"] <= kernel["high_uj"], kernel


LONG_AND_SHORT = """
power idle=60 context=85
kernel graph_a duration_us=4000 power=500
kernel graph_b duration_us=50 power=250
kernel graph_c duration_us=500 power=150
"""


def run_of(make_sim, folder, way, repeats=150, script=LONG_AND_SHORT, options=(), env=()):
    sim = make_sim(script, name=way)
    run = kj.wrapped(program(way, repeats), folder, options=options, env={**sim.env, **dict(env)})
    assert run.status == 0, run.stderr.decode()
    (device,) = sim.truth()["devices"]
    return sim, run, {k["name"]: k for k in run.report["kernels"]}, {k["name"]: k for k in device["kernels"]}


def assert_holds(told, truth, doubled=()):
    """doubled: of these kernels the energy may lie in an interval twice as wide, as a 90 % one may miss."""
    for name, kernel in truth.items():
        middle, low, high = (told[name][field] for field in ("energy_uj", "low_uj", "high_uj"))
        more = 1 if name in doubled else 0
        assert low - more * (middle - low) <= kernel["energy_uj"] <= high + more * (high - middle), told[name]
        assert told[name]["time_low_ns"] <= kernel["time_ns"] * 1.03 + 1e6, told[name]
        assert told[name]["time_high_ns"] >= kernel["time_ns"] * 0.97 - 1e6, told[name]


def test_kernels_that_run_inside_one_graph_alone_are_a_group(make_sim, folder):
    """Only the time of all of them together is known: each has anything from 0 to all of their energy, and the way out is said."""
    _, run, told, truth = run_of(make_sim, folder, "alone")
    (group,) = run.report["groups"]
    both_uj = sum(k["energy_uj"] for k in truth.values())
    assert (group["unknown"], group["kernels"]) == ("times", 2)
    assert group["low_uj"] <= both_uj <= group["high_uj"] and group["low_uj"] > 0.5 * both_uj, group
    for kernel in told.values():
        assert (kernel["group"], kernel["energy_method"], kernel["time_method"]) == (group["group"], "modelled", "modelled")
        assert kernel["low_uj"] == 0 and kernel["high_uj"] >= group["high_uj"], kernel
        assert kernel["identifiability"] == 0
    assert any("--timing cupti" in w for w in run.report["quality"]["warnings"])
    assert_holds(told, truth)


def test_the_way_out_of_a_group_is_one(make_sim, folder):
    env = {"LD_LIBRARY_PATH": f"{kj.SIMGPU}:{kj.SIMGPU}/cupti"}
    _, run, told, truth = run_of(make_sim, folder, "alone", options=CUPTI, env=env)
    assert run.report["groups"] == [] or run.report["groups"][0]["unknown"] == "powers"
    for name, kernel in truth.items():
        assert told[name]["time_ns"] == pytest.approx(kernel["time_ns"], rel=0.01), told[name]
    assert_holds(told, truth)


def test_graphs_that_differ_tell_their_kernels_apart(make_sim, folder):
    """a + b, a + 6 b and 2 a + b: three times of graphs, and so two of kernels."""
    _, run, told, truth = run_of(make_sim, folder, "differ")
    assert all(g["unknown"] == "powers" for g in run.report["groups"])
    assert told["graph_a"]["time_ns"] == pytest.approx(truth["graph_a"]["time_ns"], rel=0.05)
    assert_holds(told, truth)


def test_what_is_left_of_a_graph_is_its_unknown_kernels(make_sim, folder):
    """c runs outside of the graph too, so the rest of the graph's time is a's."""
    _, run, told, truth = run_of(make_sim, folder, "beside")
    assert all(g["unknown"] == "powers" for g in run.report["groups"])
    for name, kernel in truth.items():
        assert told[name]["time_ns"] == pytest.approx(kernel["time_ns"], rel=0.05), told[name]
    # c draws much less than the others: its interval missed in one run of five to ten, which METHOD.md says.
    assert_holds(told, truth, doubled=["graph_c"])


def test_another_shape_says_nothing_of_a_kernel_in_a_graph(make_sim, folder):
    """4 us outside of the graph, 4 ms inside."""
    _, run, told, truth = run_of(make_sim, folder, "shapes", script=LONG_AND_SHORT.replace("us=4000", "us=auto"))
    assert told["graph_a"]["energy_method"] == "modelled"
    assert_holds(told, truth)


@pytest.mark.parametrize("timing", ["events", "count"])
def test_conditional_bodies_are_a_line_of_their_own(make_sim, folder, timing):
    """What runs once a launch is counted; how often bodies ran nobody knows, and their kernels are not said to have run less."""
    repeats = 150
    sim, run, told, truth = run_of(make_sim, folder, "conditional", repeats, options=("--timing", timing))
    bodies = told["[conditional nodes]"]
    assert {n: told[n]["launches"] for n in ("graph_a", "graph_c")} == {"graph_a": 2 * repeats, "graph_c": 2 * repeats}
    assert bodies["launches"] == 3 * repeats and "graph_b" not in told
    assert truth["graph_b"]["launches"] not in (0, 3 * repeats)
    assert any("conditional" in w and "--timing cupti" in w for w in run.report["quality"]["warnings"])
    if timing == "events":
        assert_holds({**told, "graph_b": bodies}, truth)


@pytest.mark.parametrize("timing", ["events", "count"])
def test_copies_and_fills_of_an_executable_are_followed(make_sim, folder, timing):
    sim, run, _, _ = run_of(make_sim, folder, "copies", 50, options=("--timing", timing))
    truth = {kj.COPY_KINDS[c["name"]]: c["launches"] for c in sim.truth()["devices"][0]["copies"]}
    assert {c["kind"]: c["count"] for c in run.report["copies"]} == truth
    assert {c["kind"]: c["bytes"] for c in run.report["copies"]} == {
        "HtoD": 50 * 4096, "DtoH": 50 * 8192, "DtoD": 50 * 65536, "memset": 50 * (4096 + (1 << 20) + 4096)}


@pytest.mark.parametrize("timing", ["events", "count"])
def test_a_graph_that_no_longer_tells_is_not_split(make_sim, folder, timing):
    """Of the launches after the edit nobody knows what they ran: one line for them, and the reason."""
    repeats = 50
    sim, run, told, truth = run_of(make_sim, folder, "edited", repeats, options=("--timing", timing))
    assert told["[graph]"]["launches"] == repeats
    # a b a b, and after it b b a b of another executable; c b a b is in the line
    assert told["graph_a"]["launches"] == 2 * repeats + repeats and told["graph_b"]["launches"] == 2 * repeats + 3 * repeats
    assert "graph_c" not in told and truth["graph_c"]["launches"] == repeats
    assert any("not split" in w for w in run.report["quality"]["warnings"])


def test_graphs_are_read_once(make_sim, folder):
    """A captured graph is never read, another one when it is first met; not at each of a thousand updates."""
    sim, run, _, _ = run_of(make_sim, folder, "update", 50)
    assert sim.truth()["calls"].get("cuGraphNodeGetType", 0) <= 8 + 8 + 9
    sim, run, _, _ = run_of(make_sim, folder.with_name("captured"), "capture", 50)
    calls = sim.truth()["calls"]
    assert calls.get("cuGraphNodeGetType", 0) == calls.get("cuGraphKernelNodeGetParams_v2", 0) == 0
    captured = 3 * 2 * 5
    assert calls["cuStreamIsCapturing"] + calls["cuStreamGetCaptureInfo_v3"] < captured


def test_reading_graphs_is_in_the_shims_own_time(make_sim, folder):
    """5,000 nodes, each of which takes 15 us to ask about."""
    script = SCRIPT + "cost cuGraphNodeGetType host_ns=15000\n"
    _, run, _, _ = run_of(make_sim, folder, "large", 2, script=script)
    assert run.report["overhead"]["shim_ns"] > 0.9 * 5000 * 15000
