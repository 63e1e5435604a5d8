# SPDX-License-Identifier: Apache-2.0
"""--phase-walk: a training that keeps step with the sensor, whose kernels nothing else tells apart; and where delays are made, how many,
and how they are accounted for."""
import csv
import os
import signal
import statistics
import struct

import pytest

import kj
import ledger
from test_kill import start

HEAD = "power idle=60 context=85\nwait spin=1\n"  # a driver's waits spin: they end on time
NOISY = "sensor window_ms=25 period_ms=100 noise=0.005\n"  # where each reading is as the last, nobody sees when they are renewed
WALK = 9  # enum kj_activity_kind
FIFTH = ["--phase-walk=20", "--budget=100"]  # delays are made while launches are timed: in runs of 2 s a hiccup must not put an end to that
SHORT = HEAD + "kernel beat_0 duration_us=6000 power=200\nkernel beat_1 duration_us=4000 power=600\n"


def beat(*arguments):
    return [kj.program("cuda_beat"), *map(str, arguments)]


def short(*arguments, steps=100):
    """2 s in steps of 20 ms."""
    return beat("--steps", steps, "--step-ms", 20, "--work-ms", 10, *arguments)


def walk_of(run):
    return run.report["overhead"]["phase_walk"]


def delays_of(folder):
    """(start, end) of each delay, in order, over all processes; read from what was drained and what still lies in the rings."""
    found = []
    for book in ledger.read_all(folder):
        rows = [a.row for a in book.activities if a.kind == WALK]
        drained = folder / f"intervals.{book.path.name.removeprefix('ledger.')}"
        data = drained.read_bytes()[8:] if drained.exists() else b""
        intervals = [ledger.Interval(*row) for row in struct.iter_unpack("<QQQIHHIIII", data)]
        _, _, cap, used, _ = book.sections["RING"]
        ring = book.rows("RING", "<QQQIHHIIII")
        intervals += [ledger.Interval(*ring[i % cap]) for i in range(book.ring_tail, used)]
        found += [(i.start_ns, i.end_ns) for i in intervals if i.activity in rows]
    return sorted(found)


def law_ns(n, seed=1):
    """The n-th delay of a run, as shim/walk.c has it."""
    x = (seed + (n + 1) * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    x ^= x >> 31
    octave = 2000000 << x % 4
    return octave + int(octave * (x >> 32) / 2**32)


def check_walk(run, share, at_least):
    """What the report says is what the folder holds, and within what was asked for at every moment."""
    walk, duration_ns = walk_of(run), run.report["run"]["duration_ns"]
    delays = delays_of(run.folder)
    lengths = [end - begin for begin, end in delays]
    assert walk["asked_share"] == pytest.approx(share) and walk["reason"] is None
    assert walk["delays"] == len(delays) >= at_least, (run.report["overhead"], run.report["kernels"])
    assert (walk["delay_ns"], walk["longest_ns"]) == (sum(lengths), max(lengths))
    assert walk["delay_ns"] <= share * duration_ns
    assert walk["share_of_duration"] == pytest.approx(walk["delay_ns"] / duration_ns)
    over_ns = [length - law_ns(i) for i, length in enumerate(lengths)]  # the system may oversleep, but not most of the time
    assert min(over_ns) > -1000 and statistics.median(over_ns) < 5e6, over_ns
    for i, ((begin, _), (following, _)) in enumerate(zip(delays, delays[1:])):  # each is earned before it is made
        assert following - begin >= max(law_ns(i), law_ns(i + 1) / share) - 1000, i
    # The device stands still meanwhile, at its idle power of 85 W: visible, and part of its idle energy.
    idle_uj = sum(d["phase_walk_uj"] for d in run.report["devices"])
    assert walk["device_idle_uj"] == idle_uj <= sum(d["idle_uj"] for d in run.report["devices"])
    assert walk["device_idle_ns"] == sum(d["phase_walk_ns"] for d in run.report["devices"])
    assert f"phase walk: {len(delays)} delays".encode() in run.stderr
    return walk, lengths


def times_dry(run, timeline):
    """How often the device had nothing to do between two kernels. A delay begins then, or when all is done: never beside a kernel."""
    kernels = sorted((int(row["start_ns"]), int(row["end_ns"])) for row in csv.DictReader(timeline.open()) if row["name"].startswith("beat"))
    for begin, _ in delays_of(run.folder):
        assert not [k for k in kernels if k[0] <= begin < k[1]], begin
    return sum(following > end for (_, end), (following, _) in zip(kernels, kernels[1:]))


def check_no_walk(run, said, most):
    assert walk_of(run)["delays"] == len(delays_of(run.folder)) <= most
    assert [w for w in run.report["quality"]["warnings"] if w.startswith("--phase-walk made ") and said in w], run.stderr.decode()


def compare(run, sim):
    """Per kernel: energy, low, high as parts of the truth, identifiability, method."""
    assert run.status == 0, run.stderr.decode()
    assert run.kernels() == sim.kernels()
    truth = {k["name"]: k["energy_uj"] for k in sim.truth()["devices"][0]["kernels"]}
    return {k["name"]: (*(k[f] / truth[k["name"]] for f in ("energy_uj", "low_uj", "high_uj")), k["identifiability"], k["energy_method"])
            for k in run.report["kernels"]}


@pytest.mark.parametrize("sensors, watts", [
    pytest.param("refuse power\nrefuse ring\n", (200, 600), id="counter-alone"),
    pytest.param(NOISY, (200, 600, 300, 500), id="window-and-counter"),
])
def test_kernels_that_keep_step_with_the_sensor_are_told_apart(make_sim, tmp_path, sensors, watts):
    """Steps of 100 ms, sensors renewed every 100 ms. All that is known of the kernels without delays is what few windows see of them."""
    work_ms = 90
    script = HEAD + sensors + "".join(f"kernel beat_{i} duration_us={work_ms * 1000 / len(watts)} power={w}\n" for i, w in enumerate(watts))
    command = beat("--steps", 110, "--kernels", len(watts), "--work-ms", work_ms)
    sims = [make_sim(script, name=name) for name in ("still", "walking")]
    still = kj.wrapped(command, tmp_path / "still-run", env=sims[0].env)
    walking = kj.wrapped(command, tmp_path / "walking-run", options=["--phase-walk"], env=sims[1].env)

    before, after = compare(still, sims[0]), compare(walking, sims[1])
    assert walk_of(still) is None and not (still.folder / "walk").exists()
    # A busy machine makes steps vary: then some kernels are told apart without delays, and there is less to compare.
    lost = [name for name, (_, low, high, r, method) in before.items() if method == "modelled" and r < 0.1]
    warnings = [w for w in still.report["quality"]["warnings"] if "keep step with a sensor" in w]
    assert (warnings or len(lost) < 2) and all("--phase-walk" in w for w in warnings), (before, warnings)

    walk, _ = check_walk(walking, 0.02, at_least=4)
    for name, (energy, low, high, r, method) in after.items():
        assert method == "estimated" and r >= 0.5, (name, after)
        assert energy == pytest.approx(1, abs=0.05) and low <= 1 <= high, (name, after)
    for name in lost:  # what is left is mostly the sensor's gain, which nothing tells
        assert after[name][2] - after[name][1] < 0.4 * max(before[name][2] - before[name][1], 0.5), (name, before, after)
    assert not [w for w in walking.report["quality"]["warnings"] if "keep step with a sensor" in w]
    assert walk["device_idle_ns"] == pytest.approx(walk["delay_ns"], rel=0.02)
    assert walk["device_idle_uj"] == pytest.approx(85e-3 * walk["delay_ns"], rel=0.1)
    assert walk["delay_ns"] > 20 * walking.report["overhead"]["shim_ns"] > 0  # apart from the shim's own time


def test_too_short_a_walk_is_said(make_sim, folder):
    sim = make_sim(HEAD + NOISY + "kernel beat_0 duration_us=45000 power=200\nkernel beat_1 duration_us=45000 power=600\n")
    run = kj.wrapped(beat("--steps", 40), folder, options=["--phase-walk=1"], env=sim.env)
    assert run.kernels() == sim.kernels() == {"beat_0": 40, "beat_1": 40}
    walk, _ = check_walk(run, 0.01, at_least=1)
    assert walk["delay_ns"] < 100e6
    warnings = [w for w in run.report["quality"]["warnings"] if "keep step" in w or "--phase-walk has moved the steps by" in w]
    assert len(warnings) == 2, run.report["quality"]["warnings"]


@pytest.mark.parametrize("arguments", [
    pytest.param((), id="stream"),
    pytest.param(("--wait", "context"), id="context"),
    pytest.param(("--wait", "event"), id="event"),
    pytest.param(("--wait", "copy"), id="copy-to-the-host"),
    pytest.param(("--every", 5), id="now-and-then"),
    pytest.param(("--graph",), id="graph"),
])
def test_delays_after_waits_for_the_device(make_sim, folder, arguments):
    """After whatever tells the program that the device is done; counts and output as without."""
    plain = kj.bare(short(*arguments), env=make_sim(SHORT, name="plain").env)
    sim = make_sim(SHORT)
    run = kj.wrapped(short(*arguments), folder, options=FIFTH, env=sim.env)
    assert (run.status, run.stdout) == (plain.status, plain.stdout) == (0, b"steps 100\n"), run.stderr.decode()
    assert run.kernels() == sim.kernels() == {"beat_0": 100, "beat_1": 100}
    walk, _ = check_walk(run, 0.2, at_least=5)
    assert walk["device_idle_ns"] == pytest.approx(walk["delay_ns"], rel=0.05)


@pytest.mark.parametrize("arguments, options, said, most", [
    pytest.param(("--thread",), (), "first thread", 0, id="not-the-first-thread"),
    pytest.param((), ("--timing=count",), "counted and not timed", 0, id="count"),
    # There is one wait at their end, and that it is the last nobody knows.
    pytest.param(("--ahead",), (), "first thread", 1, id="the-device-never-runs-dry"),
    pytest.param(("--every", 0), (), "first thread", 1, id="no-wait-at-all"),
])
def test_no_delay_elsewhere(make_sim, folder, tmp_path, arguments, options, said, most):
    """A host that is late by more than it is ahead leaves the device without work: that is a place for a delay, and the device tells how often."""
    sim, timeline = make_sim(SHORT), tmp_path / "timeline.csv"
    run = kj.wrapped(short(*arguments, steps=120), folder, options=[*FIFTH, *options], env={**sim.env, "KJ_SIM_TIMELINE": timeline})
    assert (run.status, run.stdout) == (0, b"steps 120\n"), run.stderr.decode()
    assert run.kernels() == sim.kernels() == {"beat_0": 120, "beat_1": 120}
    dry = times_dry(run, timeline) if "--ahead" in arguments else 0
    if dry:  # there was a place for delays, and maybe for enough of them that nothing need be said
        assert walk_of(run)["delays"] == len(delays_of(run.folder)) <= most + dry
    else:
        check_no_walk(run, said, most)


def test_cupti(make_sim, folder):
    """CUPTI's records come later than the wait: delays after waits for all of a stream alone."""
    sim = make_sim(SHORT)
    sim.env["LD_LIBRARY_PATH"] = f"{kj.SIMGPU}:{kj.SIMGPU / 'cupti'}"
    run = kj.wrapped(short(), folder, options=[*FIFTH, "--timing=cupti"], env=sim.env)
    assert run.kernels() == sim.kernels() == {"beat_0": 100, "beat_1": 100}
    assert [p["timing"]["backend"] for p in run.report["processes"]] == ["cupti"]
    check_walk(run, 0.2, at_least=5)


def test_processes_share_the_budget(make_sim, folder):
    """Forked workers, each of which waits: all together hold up the run by no more than was asked for."""
    sim = make_sim(SHORT)
    run = kj.wrapped(short("--processes", 3), folder, options=FIFTH, env=sim.env)
    assert run.status == 0, run.stderr.decode()
    assert run.kernels() == sim.kernels() == {"beat_0": 300, "beat_1": 300}
    walk, _ = check_walk(run, 0.2, at_least=5)
    assert len(run.report["processes"]) == 3 and walk["hosts"] == 1


def test_hosts_share_the_budget(make_sim, folder):
    """Ranks elsewhere wait for this one: each of four hosts has a quarter."""
    sim = make_sim(SHORT)
    run = kj.wrapped(short(), folder, options=FIFTH, env={**sim.env, "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2", "RANK": "0"})
    walk = walk_of(run)
    assert walk["hosts"] == 4 and 0 < walk["delay_ns"] <= 0.05 * run.report["run"]["duration_ns"]


def test_bare_preload(make_sim, tmp_path):
    for name, share, value in (("on", 0.1, "10"), ("off", 0, "0")):
        sim = make_sim(SHORT, name=name)
        run = kj.preloaded(short(), tmp_path / f"{name}-run", env={**sim.env, "KJOULE_PHASE_WALK": value, "KJOULE_BUDGET": "100"})
        assert (run.status, run.stdout) == (0, b"steps 100\n"), run.stderr.decode()
        assert run.kernels() == sim.kernels() == {"beat_0": 100, "beat_1": 100}
        if share:
            check_walk(run, share, at_least=3)
        else:
            assert walk_of(run) is None


def test_the_command_line_wins(make_sim, folder):
    """An option of 0 turns off what the environment asks for; without a number it is 2 %."""
    sim = make_sim(SHORT)
    run = kj.wrapped(short(steps=20), folder, options=["--phase-walk=0"], env={**sim.env, "KJOULE_PHASE_WALK": "20"})
    assert run.status == 0 and walk_of(run) is None
    folder = folder.with_name("given")
    run = kj.wrapped(short(steps=20), folder, options=["--phase-walk"], env={**make_sim(SHORT, name="other").env, "KJOULE_PHASE_WALK": "20"})
    assert run.status == 0 and walk_of(run)["asked_share"] == 0.02


def test_killed(make_sim, folder):
    """kill -9: the delays so far are in the report."""
    sim = make_sim(SHORT)
    process, child = start(short(steps=100000), folder, {**sim.env, "KJOULE_PHASE_WALK": "20", "KJOULE_BUDGET": "100"})
    kj.wait_for(lambda: list(folder.glob("intervals.*")) and len(delays_of(folder)) > 4, what="five delays")
    os.kill(child, signal.SIGKILL)
    assert process.wait(30) == 137, process.stderr.read().decode()
    report = kj.read_report(folder)
    assert report["overhead"]["phase_walk"]["delays"] == len(delays_of(folder)) > 4
