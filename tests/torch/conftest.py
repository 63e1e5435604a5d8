# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
import kj  # noqa: E402

PYTHON = os.environ.get("KJ_TORCH_PYTHON", "")


def pytest_sessionstart(session):
    missing = [str(p) for p in (kj.KJOULE, kj.SHIM, kj.SIMGPU / "libcuda.so.1") if not p.exists()]
    if missing:
        pytest.exit(f"not built: {', '.join(missing)} (run `make test-torch`)", returncode=2)
    if not os.access(PYTHON, os.X_OK):
        pytest.exit("no Python with PyTorch's CUDA build (run `make test-torch`)", returncode=2)


@pytest.fixture
def torch_python():
    return PYTHON


@pytest.fixture
def make_sim(tmp_path):
    """A simulated GPU on which NVIDIA's libraries start, and whose matrix products are the stand-in's."""
    def make(name, script="devices 1\n"):
        sim = kj.Sim(tmp_path / name, script, tables=True)
        sim.env |= {"LD_PRELOAD": kj.SIMGPU / "libsimblas.so", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0",
                    # torch.compile: where Triton finds the driver to link to, and caches that no other test has filled
                    "TRITON_LIBCUDA_PATH": kj.SIMGPU, "TRITON_CACHE_DIR": tmp_path / "triton",
                    "TORCHINDUCTOR_CACHE_DIR": tmp_path / "inductor", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        return sim
    return make


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"
