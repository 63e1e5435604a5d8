# SPDX-License-Identifier: Apache-2.0
"""How closely the recorder's looks at a sensor tell when it was renewed."""
import csv

import kj

PERIOD_NS = 100_000_000  # of the simulated counter and power sensor


def renewals(folder, channel):
    """(last look at the old value, first look at the new one), of each change"""
    before, spans = None, []
    with open(folder / "series.000.csv", newline="") as file:
        for row in csv.reader(file):
            if row[0] == "s" and row[1] == channel:
                t, value = int(row[2]), int(row[3])
                if before and before[1] != value:
                    spans.append((before[0], t))
                before = t, value
    return spans


def test_looks_come_at_all_phases(make_sim, folder):
    """Each look leaves the moment open by the time between two; all together by a small part of it."""
    sim = make_sim("power idle=60 context=85\nkernel * duration_us=3000 power=300\n")
    run = kj.wrapped([kj.program("cuda_driver"), "--steps", "400"], folder, env=sim.env)
    assert run.report["run"]["duration_ns"] > 3e9
    for channel in ("0", "1"):
        spans = [s for s in renewals(folder, channel) if s[1] - s[0] < 60_000_000]
        assert len(spans) > 20
        # at which phases does one fit all, but for a few late looks?
        step = 250_000
        fits = {phase: sum((phase - a) % PERIOD_NS <= b - a for a, b in spans) for phase in range(0, PERIOD_NS, step)}
        good = [phase for phase, count in fits.items() if count >= max(fits.values()) - 1]
        assert max(fits.values()) >= 0.8 * len(spans)
        assert len(good) * step <= 6_000_000, (channel, len(good) * step)


def test_renewals_are_followed(make_sim, folder):
    """Once their period is known, sensors are looked at when they are about to be renewed."""
    sim = make_sim("power idle=60 context=85\nkernel * duration_us=3000 power=300\n")
    kj.wrapped([kj.program("cuda_driver"), "--steps", "600"], folder, env=sim.env)
    for channel in ("0", "1"):
        widths = sorted(b - a for a, b in renewals(folder, channel)[20:])
        assert len(widths) > 20
        assert widths[len(widths) // 2] < 4_000_000, widths  # even looks leave 16 ms


def test_looks_come_closer_to_a_fast_sensor(make_sim, folder):
    """A sensor of 20 ms is new at four of five looks that are 16 ms apart."""
    sim = make_sim("sensor window_ms=10 period_ms=20\npower idle=60 context=85\nkernel * duration_us=3700 power=300\n")
    kj.wrapped([kj.program("cuda_driver"), "--steps", "600"], folder, env=sim.env)
    widths = sorted(b - a for a, b in renewals(folder, "1")[-100:])
    assert len(widths) == 100 and widths[len(widths) // 2] < 8_000_000, widths
