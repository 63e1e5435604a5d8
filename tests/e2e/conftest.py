# SPDX-License-Identifier: Apache-2.0
import pytest

import kj

SCRIPT = """
power idle=60 context=85
kernel train_gemm duration_us=3000 power=400
kernel train_softmax duration_us=1500 power=250
kernel train_update duration_us=500 power=150
"""


def pytest_sessionstart(session):
    missing = [str(p) for p in (kj.KJOULE, kj.SHIM) if not p.exists()]
    if missing:
        pytest.exit(f"not built: {', '.join(missing)} (run `make test-e2e`)", returncode=2)


@pytest.fixture
def folder(tmp_path):
    """Where a run is to leave its folder; does not exist yet."""
    return tmp_path / "run"


@pytest.fixture
def sim(tmp_path):
    """One simulated GPU with three kernels of known duration and power."""
    return kj.Sim(tmp_path / "sim", SCRIPT)


@pytest.fixture
def make_sim(tmp_path):
    def make(script=SCRIPT, name="sim", **options):
        return kj.Sim(tmp_path / name, script, **options)
    return make
