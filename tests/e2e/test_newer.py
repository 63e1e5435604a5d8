# SPDX-License-Identifier: Apache-2.0
"""The functions that CUDA 13.1 to 13.3 added do what their older relatives do, and are recorded as those are."""
import json
import pathlib
import subprocess

import pytest

import kj
import ledger

CALLER = pathlib.Path(__file__).with_name("newer_caller.py")


@pytest.mark.parametrize("door", ["dlsym", "versioned", "per-thread"])
def test_what_is_new_is_recorded(tmp_path, door):
    sim = kj.Sim(tmp_path / "sim", "costs 0\nkernel * duration_us=50 power=300\n")
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    env = kj.environment({**sim.env, "LD_PRELOAD": kj.SHIM, "KJOULE_DIR": folder})
    done = subprocess.run([kj.PYTHON, CALLER, door], env=env, capture_output=True, text=True, timeout=kj.TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    did, book = json.loads(done.stdout), ledger.read_one(folder)
    assert did["host"] == 4
    assert sum(c["launches"] for d in sim.truth()["devices"] for c in d["copies"]) == did["copies"]
    assert sum(book.launches(ledger.COPY).values()) == did["copy_calls"]  # a batch is one copy of its whole size
    assert sum(book.launches(ledger.HOST).values()) == did["host"]
    assert sum(sim.kernels().values()) == did["launches"]
    assert book.launches() == {"newer_kernel": 1} and sum(book.launches(ledger.GRAPH).values()) == 3
    rows = book.activities
    assert [rows[node[1]].grid[0] for node in book.graph_nodes] == [7], "the graph runs what was captured last"
    assert [a.grid[0] for a in rows if a.name == "newer_kernel" and a.count] == [3]
    assert book.unhooked == {}
