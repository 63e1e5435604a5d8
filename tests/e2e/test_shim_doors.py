# SPDX-License-Identifier: Apache-2.0
"""The doors of libkjoule.so: every hooked ABI, by dlsym and by the requests of three libcudart, reaches the driver's function of that
very ABI with its arguments whole."""
import json
import pathlib
import re
import subprocess

import pytest

import kj
import ledger

HERE = kj.ROOT / "tests" / "e2e"
HOOKS = kj.ROOT / "shim" / "hooks.def"
DATA = HERE / "data"


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("canary")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", f"-I{kj.ROOT / 'tests' / 'simgpu'}", HERE / "canary_driver.c", "-o",
                    folder / "libcuda.so.1", "-Wl,-soname,libcuda.so.1", "-Wl,-Bsymbolic"], check=True)
    return folder


def call(canary, run_folder, door, *requests):
    run_folder.mkdir(mode=0o700)
    env = kj.environment({"LD_PRELOAD": kj.SHIM, "LD_LIBRARY_PATH": canary, "KJOULE_DIR": run_folder})
    done = subprocess.run([kj.PYTHON, HERE / "canary_caller.py", HOOKS, door, *map(str, requests)], env=env, timeout=60,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["wrong"] == []
    return answer, ledger.read_one(run_folder)


def rows():
    text = re.sub(r"/\*.*?\*/", "", HOOKS.read_text(), flags=re.S)
    return {symbol: kind for kind, symbol in re.findall(r"^([A-Z_]+)\((cu\w+),", text, re.M)}


def test_every_hook_by_dlsym(canary, folder):
    answer, book = call(canary, folder, "dlsym")
    hooked = {symbol for symbol, kind in rows().items() if kind != "PASS"}
    assert answer["hooked"] == len(hooked)
    assert answer["called"] == len(hooked) - 2
    wrong = {s: book.calls[s] for s in hooked - {"cuGetProcAddress", "cuGetProcAddress_v2"} if book.calls[s][:2] != (1, 0)}
    assert wrong == {}


@pytest.mark.parametrize("runtime", ["11.8", "12.4", "13.0"])
def test_requests_of_a_runtime(canary, folder, runtime):
    requests = DATA / f"gpa_requests_cudart_{runtime}.txt"
    answer, book = call(canary, folder, "replay", requests)
    assert answer["called"] > 80 and answer["untouched"] > 100
    assert book.gpa_requests >= answer["called"]
    assert book.unhooked == {}


def test_an_abi_of_tomorrow_passes_through(canary, folder):
    _, book = call(canary, folder, "tomorrow")
    assert book.unhooked == {("cuLaunchKernel", 99000): 1}


def test_every_export_has_a_row():
    exports = set((DATA / "driver_exports.txt").read_text().split())
    assert exports - set(rows()) == set()


def test_list_matches_the_installed_header():
    header = next((p for p in (pathlib.Path("/usr/local/cuda/include"), pathlib.Path("/usr/include"))
                   if (p / "cudaTypedefs.h").exists()), None)
    if not header:
        pytest.skip("no CUDA toolkit installed")
    cuda = (header / "cuda.h").read_text()
    if int(re.search(r"#define CUDA_VERSION (\d+)", cuda)[1]) < 13000:
        pytest.skip("the installed toolkit is older than CUDA 13")
    typedefs = set(re.findall(r"\*PFN_(cu\w+)\)", (header / "cudaTypedefs.h").read_text()))
    text = re.sub(r"/\*.*?\*/", "", HOOKS.read_text(), flags=re.S)
    hooks = re.findall(r"^(?!PASS)[A-Z_]+\((cu\w+), \"(cu\w+)\", (\d+), ([01])", text, re.M)
    unknown = []
    for symbol, name, version, lane in hooks:
        names = {f"{name}_v{version}"} if lane == "0" else {f"{name}_v{version}_ptsz", f"{name}_v{version}_ptds"}
        if not names & typedefs and int(version) > 2000 and f"{name}_v{version}" not in typedefs:
            unknown.append((symbol, names))
    assert unknown == []
    ours = {(name, int(version)) for _, name, version, _ in hooks}
    passed = {symbol for symbol, kind in rows().items() if kind == "PASS"}
    missing = []
    for typedef in typedefs:
        name, version = re.match(r"(\w+?)_v(\d+)", typedef).groups()
        if name in {n for n, _ in ours} and (name, int(version)) not in ours and name not in passed:
            missing.append(typedef)
    assert missing == [], "versions of hooked functions without a row"
