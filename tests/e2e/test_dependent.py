# SPDX-License-Identifier: Apache-2.0
"""Programmatic dependent launches overlap with the kernel ahead of them, timed or not: no event of ours lies between the two."""
import csv

import pytest

import kj

SCRIPT = """
power idle=60 context=85
kernel ahead duration_us=3000 power=400
kernel follower duration_us=2000 power=300
kernel apart duration_us=1000 power=200
"""
ROUNDS = 60


def run(tmp_path, options, script=SCRIPT, **env):
    sim = kj.Sim(tmp_path / "sim", script)
    timeline = tmp_path / "timeline.csv"
    done = kj.wrapped([kj.program("cuda_dependent"), "--rounds", ROUNDS, "--sync", 20], tmp_path / "run", options=options,
                      env={**sim.env, "KJ_SIM_TIMELINE": timeline, **env})
    assert done.status == 0, done.stderr.decode()
    rows = [(row[2], int(row[0]), int(row[1])) for row in csv.reader(timeline.open()) if row[2] in ("ahead", "follower")]
    assert [row[0] for row in rows] == ["ahead", "follower"] * ROUNDS
    return done, sim, sum(follower[1] < ahead[2] for ahead, follower in zip(rows[::2], rows[1::2]))


def warnings(done):
    return [w for w in done.report["quality"]["warnings"] if "dependent launches" in w]


def test_what_overlaps_is_not_kept_apart_by_timing_it(tmp_path):
    """Every launch is wanted: those two kernels go untimed but for the rounds that taught us, the third one is timed."""
    done, sim, overlapping = run(tmp_path, ["--timing", "events", "--budget", "100"])
    assert overlapping >= ROUNDS - 10
    assert done.kernels() == sim.kernels()
    timed = {k["name"]: k["timed_launches"] for k in done.report["kernels"]}
    assert timed["follower"] == 0 and timed["ahead"] <= 2 and timed["apart"] > ROUNDS / 2, timed
    [warning] = warnings(done)
    assert f"{ROUNDS} programmatic dependent launches" in warning and "--timing cupti" in warning


def test_untimed_is_not_nothing(tmp_path):
    done, sim, _ = run(tmp_path, ["--timing", "events", "--budget", "100"])
    truth = {k["name"]: k["energy_uj"] for k in sim.truth()["devices"][0]["kernels"]}
    for kernel in done.report["kernels"]:
        if kernel["name"] == "follower":
            assert kernel["high_uj"] is None or kernel["low_uj"] <= truth["follower"] <= kernel["high_uj"], kernel
            assert kernel["energy_method"] != "measured"


@pytest.mark.parametrize("options", [["--timing", "count"], ["--timing", "cupti"]])
def test_the_other_ways_need_no_care(tmp_path, options):
    cupti = kj.SIMGPU / "cupti"
    done, sim, overlapping = run(tmp_path, options, LD_LIBRARY_PATH=f"{kj.SIMGPU}:{cupti}")
    assert overlapping >= ROUNDS - 10
    assert done.kernels() == sim.kernels() and warnings(done) == []


def test_a_driver_without_overlap(tmp_path):
    _, _, overlapping = run(tmp_path, ["--timing", "count"], SCRIPT + "dependent overlap=0\n")
    assert overlapping == 0
