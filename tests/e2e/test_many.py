# SPDX-License-Identifier: Apache-2.0
"""Programs of many kernels, many launch shapes and many modules: no table runs out for good, no launch stays dear, no kernel loses
its name or a launch."""
import collections
import subprocess

import kj
import ledger

SCRIPT = "kernel * duration_us=0.01 power=300\n"


def many(tmp_path, *options, timing="count"):
    """What the shim recorded of cuda_many, and the launches that the program made."""
    sim = kj.Sim(tmp_path / "sim", SCRIPT)
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    env = kj.environment({**sim.env, "LD_PRELOAD": kj.SHIM, "KJOULE_DIR": run, "KJOULE_TIMING": timing})
    done = subprocess.run([kj.program("cuda_many"), *map(str, options)], env=env, capture_output=True, text=True,
                          timeout=kj.TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return ledger.read_one(run), int(done.stdout.split()[1])


def names(prefix, count):
    return {f"{prefix}_{i:06}" for i in range(count)}


def test_ever_new_shapes_of_a_kernel_are_folded(tmp_path):
    book, launches = many(tmp_path, "--shapes", 200000)
    assert book.launches() == {"many_000000": launches}
    assert any(a.grid[0] == 0 and a.count > 190000 for a in book.activities), "no row of any shape"
    assert book.slow_finds < 1000, "new shapes of a folded kernel are looked for under the lock"


def test_every_kernel_keeps_its_name_where_shapes_are_many(tmp_path):
    """20,000 kernels in 20 shapes are more keys than any table has rows: the kernels stay apart, their shapes do not."""
    book, launches = many(tmp_path, "--kernels", 20000, "--shapes", 20)
    counted = book.launches()
    assert set(counted) == names("many", 20000)
    assert sum(counted.values()) == launches and counted["many_000000"] == 21
    assert set(counted.values()) == {20, 21}
    assert book.slow_finds < launches / 5


def test_timing_of_new_kernels_ends_where_shapes_never_repeat(tmp_path):
    """Outside bursts kernels that were hardly timed are timed alone: a folded kernel counts as one, whatever its shapes."""
    book, launches = many(tmp_path, "--shapes", 100000, timing="events")
    assert book.launches() == {"many_000000": launches}
    assert book.slow_finds < 1000


def test_more_kernels_than_rows(tmp_path):
    book, launches = many(tmp_path, "--kernels", 40000, "--shapes", 3)
    counted = book.launches()
    assert sum(counted.values()) == launches
    others = counted.pop("(other kernels: table full)")
    assert others < launches / 2 and set(counted) <= names("many", 40000) and len(counted) > 30000
    assert all(count >= 3 for count in counted.values())


def test_modules_that_come_and_go_take_no_room(tmp_path):
    """Long names, as templates have them: what one module's kernels needed is there for the next ones."""
    book, launches = many(tmp_path, "--reloads", 20000, "--names", 10, "--name-bytes", 4000)
    counted = book.launches()
    assert sum(counted.values()) == launches and len(counted) == 11
    assert {name[:15]: count for name, count in counted.items() if name.startswith("reloaded")} == \
        {f"reloaded_{i:06}": 2000 for i in range(10)}
    assert book.dropped("NAMES") == 0


def test_places_of_handles_are_used_again(tmp_path):
    """More modules than any table of handles has places. The kernel that was there before and is there after is still itself."""
    book, launches = many(tmp_path, "--reloads", 300000, "--names", 100)
    counted = book.launches()
    assert sum(counted.values()) == launches and counted["many_000000"] == 2
    assert collections.Counter(counted.values()) == {3000: 100, 2: 1}
