# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's own libcudart, unmodified, on the simulated driver: static, shared and per-thread default stream."""
import os
import subprocess

import pytest

import kj

FORWARD = "_ZN5layer7forwardEPfPKfi"
SCALE_FLOAT = "_Z5scaleIfEvPT_S0_i"
SCALE_INT = "_Z5scaleIiEvPT_S0_i"


@pytest.mark.parametrize("kind", ["static", "shared", "per_thread"])
@pytest.mark.parametrize("threads", [1, 4])
def test_every_launch_is_counted(make_sim, folder, kind, threads):
    binary = kj.program(f"cudart_{kind}")
    plain_sim, sim = make_sim(name="plain", tables=True), make_sim(tables=True)
    if kind == "shared":
        cuda_lib = os.path.realpath(os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/lib64")
        if not os.path.isdir(cuda_lib):
            pytest.skip("the toolkit's lib64 was not found (CUDA_HOME)")
        for one in (plain_sim, sim):
            one.env["LD_LIBRARY_PATH"] = f"{kj.SIMGPU}:{cuda_lib}"
    command = [binary, 50, threads, 7]
    plain = kj.bare(command, env=plain_sim.env)
    assert plain.status == 7, plain.stderr.decode()
    run = kj.wrapped(command, folder, env=sim.env)
    assert (run.status, run.stdout) == (plain.status, plain.stdout), run.stderr.decode()
    expected = {FORWARD: 50 * threads, SCALE_FLOAT: 50 * threads, SCALE_INT: 25 * threads}
    assert run.kernels() == sim.kernels() == expected


def test_names_are_demangled_for_people(make_sim, folder):
    sim = make_sim(tables=True)
    run = kj.wrapped([kj.program("cudart_static"), 10], folder, env=sim.env)
    text = subprocess.run([str(kj.KJOULE), "report", str(folder), "--format", "text"], capture_output=True,
                          env=kj.environment(), check=True).stdout.decode()
    assert run.status == 0 and "layer::forward" in text and FORWARD not in text
