# SPDX-License-Identifier: Apache-2.0
"""Contexts and streams that come and go: whatever ends, is counted down, is used again or was never current, each launch is counted on
the device that ran it, and timed where its stream's own context lets it."""
import pytest

import kj
import ledger

FIRST_US, SECOND_US = 40, 25
SCRIPT = f"devices 2\nkernel on_first duration_us={FIRST_US} power=400\nkernel on_second duration_us={SECOND_US} power=250\n"


def by_device(devices, key, kernels):
    return {(d[key], k["name"]): k["launches"] for d in devices for k in kernels(d)}


def run(make_sim, folder, case, count=None, options=("--budget", 100), script=SCRIPT, status=0):
    """Every launch is on its own device, and none is missing or has come from nowhere."""
    sim = make_sim(script)
    command = [kj.program("cuda_contexts"), case] + ([] if count is None else [count])
    done = kj.wrapped(command, folder, options=options, env=sim.env)
    assert done.status == status, done.stderr.decode()
    truth = {(d["uuid"], k["name"]): k["launches"] for d in sim.truth()["devices"] for k in d["kernels"]}
    report = done.report
    seen = {(k["device"], k["name"]): k["launches"] for k in report["kernels"]}
    assert seen == truth
    assert done.stdout == f"launches {sum(truth.values())}\n".encode()
    assert report["quality"]["harvest_errors"] == report["quality"]["contextless_launches"] == 0
    book = ledger.read_one(folder)
    assert book.dropped("STREAMS") == 0
    return done, book


def is_said(done, text):
    return any(text in warning for warning in done.report["quality"]["warnings"])


def timed_share(done, name):
    kernels = [k for k in done.report["kernels"] if k["name"] == name]
    return sum(k["timed_launches"] for k in kernels) / sum(k["launches"] for k in kernels)


@pytest.mark.parametrize("case, count", [("retained", 2000), ("renewed", 200), ("referenced", 50000), ("attached", 500), ("destroyed", 300),
                                         ("one_by_one", 1000), ("in_threads", 40), ("pushed", 300), ("green_last", 100)])
def test_contexts_end_when_they_end(make_sim, folder, case, count):
    """More of each than there are places, and nothing destroyed is used: the simulated driver would end the program."""
    done, book = run(make_sim, folder, case, count)
    assert book.dropped("CONTEXTS") == 0 and book.sections["CONTEXTS"][3] <= 8
    assert not is_said(done, "contexts") and not is_said(done, "kinds of kernels")
    assert done.report["quality"]["context_repairs"] == 0


@pytest.mark.parametrize("case", ["retained", "attached", "destroyed"])
def test_a_context_that_lives_is_timed_on(make_sim, folder, case):
    done, _ = run(make_sim, folder, case)
    assert timed_share(done, "on_first") > 0.9


def test_a_hundred_thousand_references(make_sim, folder):
    run(make_sim, folder, "retained", 100000, script=SCRIPT + "costs 0\n", options=())


def test_more_contexts_than_places(make_sim, folder):
    done, book = run(make_sim, folder, "at_once", 70)
    assert book.sections["CONTEXTS"][3] == 64 and book.dropped("CONTEXTS") > 0
    assert is_said(done, "more than 64 CUDA contexts at once") and not is_said(done, "kinds of kernels")


@pytest.mark.parametrize("case, count", [("streams", 5000), ("many_streams", 9000), ("threads", 5000)])
def test_streams_come_and_go(make_sim, folder, case, count):
    done, book = run(make_sim, folder, case, count)
    assert book.untimed_no_event == 0  # one thread launches: nobody is in its way
    for name in {k["name"] for k in done.report["kernels"]}:
        assert timed_share(done, name) > 0.98


def test_a_hundred_thousand_streams(make_sim, folder):
    _, book = run(make_sim, folder, "streams", 100000, script=SCRIPT + "costs 0\n", options=())
    assert book.sections["STREAMS"][3] <= book.sections["STREAMS"][2]


@pytest.mark.parametrize("case", ["away", "green"])
def test_a_stream_is_of_its_own_context(make_sim, folder, case):
    """Launched to while another context is current: events of that one would be refused."""
    done, book = run(make_sim, folder, case)
    assert book.untimed_no_event == 0
    for kernel in done.report["kernels"]:
        assert kernel["timed_launches"] > 0.95 * kernel["launches"]


def test_a_stream_is_met_beside_a_capture(make_sim, folder):
    done, book = run(make_sim, folder, "captured")
    assert book.calls["cuStreamEndCapture"][:2] == (100, 0)


def test_the_driver_is_not_asked_at_each_launch(make_sim, folder):
    sim = make_sim(SCRIPT)
    done = kj.wrapped([kj.program("cuda_contexts"), "away", 1000], folder, env=sim.env)
    calls = sim.truth()["calls"]
    assert done.status == 0 and calls["cuLaunchKernel"] == 3000
    assert calls["cuStreamGetCtx"] <= 2


def test_an_unseen_switch_is_repaired(make_sim, folder):
    done, _ = run(make_sim, folder, "unseen", 10)
    assert done.report["quality"]["context_repairs"] >= 5


def test_an_unseen_switch_is_found_by_samples(make_sim, folder):
    """Without events nothing else tells; each switch costs what lies between two samples at most."""
    sim = make_sim(SCRIPT)
    done = kj.wrapped([kj.program("cuda_contexts"), "unseen", 10], folder, options=["--timing", "count"], env=sim.env)
    assert done.status == 0 and done.report["quality"]["context_repairs"] >= 9
    truth = {(d["uuid"], k["name"]): k["launches"] for d in sim.truth()["devices"] for k in d["kernels"]}
    seen = {(k["device"], k["name"]): k["launches"] for k in done.report["kernels"]}
    assert sum(seen.values()) == sum(truth.values()) == 10000
    assert sum(count for key, count in seen.items() if key not in truth) <= 10 * 96


@pytest.mark.parametrize("which, what", [(0, "a destroyed event"), (1, "a destroyed stream"), (2, "a destroyed stream")])
def test_the_simulated_driver_names_what_is_used_too_late(make_sim, which, what):
    strict, lenient = make_sim(SCRIPT), make_sim(SCRIPT + "handles abort=0\n", name="lenient")
    command = [kj.program("cuda_contexts"), "misuse", which]
    done = kj.bare(command, env=strict.env)
    assert done.status == -6 and f"simgpu: cuEventRecord: used {what}".encode() in done.stderr
    done = kj.bare(command, env=lenient.env)
    assert done.status == 0 and done.stdout.startswith(b"returned 400\n")


BOARDS = ["GPU-5eed0000-6b6a-4075-806c-6573696d7500", "GPU-5eed0000-6b6a-4075-806c-6573696d7501"]


def instance(board, index):
    """The UUID that the simulated driver gives to a MIG instance."""
    return f"MIG-4ded0000-6b6a-4075-806c-6573696d{index + 1:02x}{board:02x}"


def mig(make_sim, folder, words, visible=None, copies=1):
    sim = make_sim(f"devices 2\nmig {words}\n" + SCRIPT.split("\n", 1)[1])
    command = [kj.program("cuda_driver"), "--steps", 200, "--processes", copies]
    env = {**sim.env, "CUDA_VISIBLE_DEVICES": visible}
    done = kj.wrapped(command, folder, options=["--budget", 100], env=env)
    assert done.status == 0, done.stderr.decode()
    return sim, done


@pytest.mark.parametrize("words", ["instances=4", "instances=4 board_uuid=0"])
@pytest.mark.parametrize("board, index", [(0, 0), (0, 2), (1, 3)])
def test_a_mig_instance_is_of_its_board(make_sim, folder, words, board, index):
    """By the board's UUID, or where the driver tells none by its place on the bus."""
    sim, done = mig(make_sim, folder, words, visible=instance(board, index))
    [device] = done.report["devices"]
    assert device["device"] == BOARDS[board] and device["instances"] == [instance(board, index)]
    assert device["launches"] == 600 == sum(sim.kernels().values())
    assert device["energy_uj"] > 0 and device["kernels_uj"] > 0
    assert is_said(done, f"{BOARDS[board]}: the run had {instance(board, index)} of this board, whose energy is the whole board's")
    assert f"the run had {instance(board, index)}; its energy is the whole board's".encode() in done.stderr


def test_a_mig_instance_by_default(make_sim, folder):
    _, done = mig(make_sim, folder, "instances=7", copies=2)
    [device] = done.report["devices"]
    assert device["device"] == BOARDS[0] and device["instances"] == [instance(0, 0)] and device["launches"] == 1200


def test_a_board_has_no_instances(make_sim, folder):
    _, done = mig(make_sim, folder, "instances=0")
    assert [d["instances"] for d in done.report["devices"]] == [[]]
    assert not is_said(done, "of this board")


def test_two_instances_of_one_board(make_sim, folder):
    sim = make_sim("mig instances=4\n")
    program, instances = kj.program("cuda_driver"), [instance(0, 1), instance(0, 3)]
    script = " & ".join(f"CUDA_VISIBLE_DEVICES={i} {program} --steps 100" for i in instances) + " & wait"
    done = kj.wrapped(["sh", "-c", script], folder, env=sim.env)
    [device] = done.report["devices"]
    assert device["device"] == BOARDS[0] and sorted(device["instances"]) == instances and device["launches"] == 600
