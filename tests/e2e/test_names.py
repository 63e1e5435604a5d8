# SPDX-License-Identifier: Apache-2.0
"""Kernels have their names, whichever way the program came by their handles: as far as a driver can tell, and else it is said."""
import pathlib

import pytest

import kj

CALLER = pathlib.Path(__file__).with_name("unseen_caller.py")
SCRIPT = "kernel * duration_us=100 power=300\n"


def run(tmp_path, way, script=SCRIPT):
    sim = kj.Sim(tmp_path / "sim", script)
    done = kj.wrapped([kj.PYTHON, CALLER, way], tmp_path / "run", env=sim.env)
    assert done.status == 0, done.stderr.decode()
    return done, sim


@pytest.mark.parametrize("way", ["launch", "graph"])
def test_a_handle_that_was_never_looked_up(tmp_path, way):
    """The driver is asked, as of a kernel and then as of a function, also while something captures."""
    done, sim = run(tmp_path, way)
    assert done.kernels() == sim.kernels() == {"unseen_kernel": 10, "unseen_function": 10}
    assert not any("no name" in w for w in done.report["quality"]["warnings"])


def test_a_driver_that_cannot_tell(tmp_path):
    done, _ = run(tmp_path, "launch", SCRIPT + "driver_version 12020\n")
    counts = done.kernels()
    assert sorted(counts.values()) == [10, 10] and all(name.startswith("(unnamed kernel") for name in counts)
    [warning] = [w for w in done.report["quality"]["warnings"] if "no name" in w]
    assert "20 launches" in warning and "CUDA 12.2" in warning and "12.3" in warning
