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


WORK = {"cuLaunchTomorrow", "cuMemcpyTomorrowAsync", "cuMemsetTomorrowD64", "cuGraphTomorrowLaunch", "cuStreamBeginTomorrowCapture",
        "cuMemPrefetchTomorrowAsync", "cuMemTomorrowBatchAsync"}
NO_WORK = {"cuTomorrowGetAttribute", "cuGraphAddTomorrowNode", "cuStreamTomorrowGetId", "cuLaunchNever", "cuStreamWaitValue32",
           "cuStreamGetCaptureInfo", "cuMemDiscardBatchAsync", "cuLaunchKernel", "cuMemcpyHtoD"}


def test_an_unknown_name_that_sounds_like_work_is_noted(canary, folder):
    """Whichever way it was asked for; not what is known, not what is no work, not what the driver does not have."""
    _, book = call(canary, folder, "names", *(f"{name}@14000" for name in sorted(WORK | NO_WORK - {"cuLaunchKernel"})))
    assert book.unhooked == {**{(name, 14000): 1 for name in WORK}, ("cuLaunchTomorrow", 0): 1}


def test_the_report_says_what_was_asked_for(canary, folder):
    env = {"LD_LIBRARY_PATH": canary}
    run = kj.wrapped([kj.PYTHON, HERE / "canary_caller.py", HOOKS, "names", "cuLaunchTomorrow@14010", "cuMemcpyTomorrowAsync@14000",
                      "cuTomorrowGetAttribute@14000"], folder, env=env)
    assert run.status == 0, run.stderr
    assert {(u["name"], u["version"]) for u in run.report["quality"]["unhooked"]} == \
        {("cuLaunchTomorrow", 0), ("cuLaunchTomorrow", 14010), ("cuMemcpyTomorrowAsync", 14000)}
    warning = next(w for w in run.report["quality"]["warnings"] if "newer than this kjoule" in w)
    assert "cuLaunchTomorrow" in warning and "cuMemcpyTomorrowAsync (at CUDA 14.0)" in warning and "not known" in warning
    assert "cuTomorrowGetAttribute" not in warning and warning.count("cuLaunchTomorrow") == 1


def test_an_abi_that_goes_by_a_name_of_its_own(canary, folder):
    answer, book = call(canary, folder, "renamed")
    assert answer["called"] == 4 and book.unhooked == {}
    assert all(book.calls[s][0] == 1 for s in ("cuLaunchHostFunc", "cuLaunchHostFunc_ptsz", "cuLaunchHostFunc_v2", "cuLaunchHostFunc_v2_ptsz"))


def test_what_cuda_13_1_to_13_3_added_is_hooked():
    added = {"cuStreamBeginRecaptureToGraph", "cuStreamBeginCaptureToCig", "cuStreamEndCaptureToCig", "cuMemcpyWithAttributesAsync",
             "cuMemcpy3DWithAttributesAsync", "cuMemcpyBatchAsync_v2", "cuLaunchHostFunc_v2"}
    assert {symbol for name in added for symbol in (name, f"{name}_ptsz")} <= {s for s, kind in rows().items() if kind != "PASS"}


def test_every_export_has_a_row():
    exports = set((DATA / "driver_exports.txt").read_text().split())
    assert exports - set(rows()) == set()


def test_list_matches_the_installed_header():
    header = next((p for p in (pathlib.Path("/usr/local/cuda/include"), pathlib.Path("/usr/include"))
                   if (p / "cudaTypedefs.h").exists()), None)
    if not header:
        pytest.skip("no CUDA toolkit installed")
    cuda = (header / "cuda.h").read_text()
    newest = int(re.search(r"#define CUDA_VERSION (\d+)", cuda)[1])
    if newest < 13000:
        pytest.skip("the installed toolkit is older than CUDA 13")
    typedefs = set(re.findall(r"\*PFN_(cu\w+)\)", (header / "cudaTypedefs.h").read_text()))
    text = re.sub(r"/\*.*?\*/", "", HOOKS.read_text(), flags=re.S)
    hooks = re.findall(r"^(?!PASS)[A-Z_]+\((cu\w+), \"(cu\w+)\", (\d+), ([01])", text, re.M)
    unknown = []
    for symbol, name, version, lane in hooks:
        if int(version) > newest:
            continue
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
