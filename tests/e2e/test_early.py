# SPDX-License-Identifier: Apache-2.0
"""The driver is used before main: by constructors that run before the preloaded library's own, by threads that they start."""
import pytest

import kj

SCRIPT = "kernel early_kernel duration_us=20 power=300\n"
EARLY = {"ask": 0, "launch": 20, "thread": 2000, "object": 20, "ask,thread,launch,object": 2040}


def check(run, sim, does):
    assert run.status == 0 and run.stdout == b"early_main: 0\n", run.stderr.decode()
    assert b"not recording" not in run.stderr
    expected = {"early_kernel": 100 + EARLY[does]}
    assert sim.kernels() == expected
    assert run.kernels() == expected


@pytest.mark.parametrize("bind_now", [None, "1"], ids=["lazy", "bind-now"])
@pytest.mark.parametrize("program", ["early_main", "early_main_linked"])
@pytest.mark.parametrize("does", EARLY)
def test_constructors_and_threads(make_sim, folder, does, program, bind_now):
    sim = make_sim(SCRIPT)
    run = kj.wrapped([kj.program(program)], folder, env={**sim.env, "EARLY_DOES": does, "LD_BIND_NOW": bind_now})
    check(run, sim, does)


@pytest.mark.parametrize("program", ["early_main", "early_main_linked"])
@pytest.mark.parametrize("does", EARLY)
def test_without_a_wrapper(make_sim, folder, does, program):
    """The recorder is started by whichever call comes first; threads that launch meanwhile are recorded all the same."""
    sim = make_sim(SCRIPT)
    check(kj.preloaded([kj.program(program)], folder, env={**sim.env, "EARLY_DOES": does}), sim, does)


@pytest.mark.parametrize("flags", ["lazy", "now", "lazy,global", "now,global"])
def test_flags_of_dlopen(make_sim, folder, flags):
    sim = make_sim(SCRIPT)
    env = {**sim.env, "EARLY_DOES": "ask,thread,launch,object", "EARLY_FLAGS": flags}
    check(kj.wrapped([kj.program("early_main")], folder, env=env), sim, env["EARLY_DOES"])


@pytest.mark.parametrize("timing", ["count", "events", "cupti"])
def test_every_kind_of_timing(make_sim, folder, timing):
    sim = make_sim(SCRIPT)
    env = {**sim.env, "EARLY_DOES": "ask,launch", "LD_LIBRARY_PATH": f"{kj.SIMGPU}:{kj.SIMGPU}/cupti"}
    run = kj.wrapped([kj.program("early_main")], folder, options=["--timing", timing], env=env)
    assert run.kernels() == sim.kernels() == {"early_kernel": 120}


def test_switched_off_before_main(make_sim, folder):
    sim = make_sim(SCRIPT)
    env = {**sim.env, "EARLY_DOES": "ask,launch", "KJOULE_DISABLE": "1"}
    run = kj.preloaded([kj.program("early_main")], folder, env=env)
    assert run.status == 0 and run.stderr == b"" and not folder.exists()
