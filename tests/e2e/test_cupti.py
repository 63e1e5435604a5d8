# SPDX-License-Identifier: Apache-2.0
"""--timing=cupti: every launch and every node of a graph timed by CUPTI's records, which the simulated libcupti makes from the truth;
and event pairs in its place, with the reason in the report, whenever CUPTI is missing, strange, refused or somebody else's."""
import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

import kj
from ledger import Ledger

CUPTI = kj.SIMGPU / "cupti"
GRAPHS = """
power idle=60 context=85
kernel graph_a duration_us=40 sd_us=4 power=400
kernel graph_b duration_us=30 sd_us=3 power=250
kernel graph_c duration_us=20 sd_us=2 power=150
"""
QUICK = """
power idle=60 context=85
kernel train_gemm duration_us=300 sd_us=40 power=400
kernel train_softmax duration_us=150 sd_us=20 power=250
kernel train_update duration_us=50 sd_us=5 power=150
"""


def driver(*arguments):
    return [kj.program("cuda_driver"), *map(str, arguments)]


@pytest.fixture
def cupti(make_sim):
    """A simulated GPU with a libcupti on the loader's path; odd: what is strange about it."""
    def make(script=QUICK, name="sim", odd=None, version=None, path=CUPTI, **extra):
        sim = make_sim(script, name=name)
        sim.env |= {"LD_LIBRARY_PATH": f"{kj.SIMGPU}:{path}", "KJ_SIM_CUPTI": odd, "KJ_SIM_CUPTI_VERSION": version, **extra}
        return sim
    return make


def timed(command, folder, sim, **kwargs):
    return kj.wrapped(command, folder, options=["--timing", "cupti"], env=sim.env, **kwargs)


def timing(run):
    (row,) = [p["timing"] for p in run.report["processes"] if p["launches"]]
    return row


def check_times(run, sim, within=0.001):
    """Each name's launches are the truth's, each launch was timed, and the sum is the truth's."""
    truth = {k["name"]: k for k in sim.truth()["devices"][0]["kernels"]}
    assert run.kernels() == sim.kernels() and truth
    for kernel in run.report["kernels"]:
        assert kernel["time_method"] == "measured" and kernel["timed_launches"] == kernel["launches"], kernel
        assert abs(kernel["time_ns"] / truth[kernel["name"]]["time_ns"] - 1) < within, (kernel, truth[kernel["name"]])
    copies = {kj.COPY_KINDS[c["name"]]: c for c in sim.truth()["devices"][0]["copies"]}
    assert {c["kind"] for c in run.report["copies"]} == set(copies)
    for copy in run.report["copies"]:
        assert copy["count"] == copies[copy["kind"]]["launches"]
        assert abs(copy["time_ns"] / copies[copy["kind"]]["time_ns"] - 1) < within, copy


def check_stepped_aside(run, sim, reason):
    """Events took over, the report says why, and the counts are whole."""
    assert run.kernels() == sim.kernels()
    row = timing(run)
    assert (row["asked"], row["backend"]) == ("cupti", "events") and re.search(reason, row["reason"]), row
    warnings = [w for w in run.report["quality"]["warnings"] if re.search(reason, w)]
    assert len(warnings) == 1 and "--timing cupti" in warnings[0], run.report["quality"]["warnings"]
    assert all(k["time_ns"] for k in run.report["kernels"])
    assert warnings[0][:60] in run.stderr.decode()


@pytest.mark.parametrize("flags", [[], ["--stream", "legacy"], ["--stream", "per-thread", "--threads", 4], ["--door", "versioned"],
                                   ["--graph"], ["--library"], ["--async"], ["--unload"], ["--exit", 7]],
                         ids=lambda f: " ".join(map(str, f)) or "plain")
def test_times_are_the_truth(cupti, folder, flags):
    plain = kj.bare(driver("--steps", 150, *flags), env=cupti(name="plain").env)
    sim = cupti()
    run = timed(driver("--steps", 150, *flags), folder, sim)
    assert (run.status, run.stdout) == (plain.status, plain.stdout), run.stderr.decode()
    check_times(run, sim)
    row = timing(run)
    assert row["backend"] == "cupti" and row["reason"] is None and row["cupti_version"] == 130001
    assert (row["unmatched"], row["dropped"], row["incomplete"], row["matched_by_name"]) == (0, 0, 0, 0)


def test_linked_program(cupti, folder):
    sim = cupti()
    run = timed([kj.program("cuda_linked"), "--steps", "150"], folder, sim)
    assert run.status == 0
    check_times(run, sim)


@pytest.mark.parametrize("kind", ["static", "per_thread"])
def test_programs_of_the_runtime(make_sim, folder, kind):
    sim = make_sim(QUICK, tables=True)
    sim.env["LD_LIBRARY_PATH"] = f"{kj.SIMGPU}:{CUPTI}"
    run = timed([kj.program(f"cudart_{kind}"), 50, 4, 7], folder, sim)
    assert run.status == 7, run.stderr.decode()
    check_times(run, sim)


@pytest.mark.parametrize("way", ["capture", "threads", "build", "update", "change", "large", "churn", "forbidden", "elsewhere"])
def test_nodes_of_graphs_are_measured(cupti, folder, way):
    """However the graph is made or changed, each node has its own time: measured, not shared out."""
    command = [kj.program("cuda_graphs"), way]
    plain = kj.bare(command, env=cupti(GRAPHS, name="plain").env)
    sim = cupti(GRAPHS)
    run = timed(command, folder, sim)
    assert (run.status, run.stdout) == (plain.status, plain.stdout) and plain.status == 0, run.stderr.decode()
    check_times(run, sim)


@pytest.mark.parametrize("version", [17, 18, 22, 24, 28, 130000, 130101, 130301, 130500])
def test_versions_with_longer_records(cupti, folder, version):
    sim = cupti(version=version)
    run = timed(driver("--steps", 60, "--graph"), folder, sim)
    check_times(run, sim)
    assert timing(run)["cupti_version"] == version


def test_without_correlation_names_do(cupti, folder):
    sim = cupti(odd="nocorrelation")
    run = timed(driver("--steps", 60, "--graph"), folder, sim)
    check_times(run, sim)
    assert timing(run)["matched_by_name"] == timing(run)["records"] > 0


def test_intervals_lie_where_the_work_was(cupti, folder):
    """CUPTI's clock is the wall's and runs 200 ppm fast: on ours, each interval follows its launch within the error that is stated."""
    sim = cupti(KJ_SIM_CUPTI_DRIFT_PPM=200)
    run = timed(driver("--steps", 1500), folder, sim)
    check_times(run, sim)
    row = timing(run)
    assert 0 < row["clock_error_ns"] < 500_000, row
    (path,) = folder.glob("ledger.*[0-9]")
    book = Ledger(path)
    intervals = book.intervals if not callable(book.intervals) else book.intervals()
    inside = [i for i in intervals if i.end_ns]
    assert inside and all(i.start_ns >= i.launch_ns - row["clock_error_ns"] for i in inside)
    on_one = sorted((i for i in inside if i.stream == inside[0].stream), key=lambda i: i.start_ns)
    assert all(b.start_ns >= a.end_ns - row["clock_error_ns"] for a, b in zip(on_one, on_one[1:]))


# ---- stepping aside

def test_somebody_else_has_subscribed(cupti, folder):
    sim = cupti(odd="other")
    check_stepped_aside(timed(driver("--steps", 60), folder, sim), sim, "another tool uses CUPTI .*39.*somebody")


def test_no_libcupti(cupti, folder, tmp_path):
    """Files that are no libraries hide one that the loader may know of."""
    for name in ("libcupti.so.13", "libcupti.so.12", "libcupti.so.11.8", "libcupti.so.11.7"):
        (tmp_path / name).write_text("")
    sim = cupti(path=tmp_path)
    check_stepped_aside(timed(driver("--steps", 60), folder, sim), sim, "libcupti was not found")


@pytest.mark.parametrize("version", [16, 29, 130600, 140000])
def test_unknown_version(cupti, folder, version):
    sim = cupti(version=version)
    check_stepped_aside(timed(driver("--steps", 60), folder, sim), sim, f"version {version}")


def test_refused(cupti, folder):
    sim = cupti(odd="refuse")
    check_stepped_aside(timed(driver("--steps", 60), folder, sim), sim, "error 35.*administrators")


def test_told_of_nothing(cupti, folder):
    """Attached, no error, and no record ever: that is not zero time, and not silence."""
    sim = cupti(odd="never")
    run = timed(driver("--steps", 2000), folder, sim)
    check_stepped_aside(run, sim, "told of nothing")


def test_told_of_nothing_in_a_short_run(cupti, folder):
    sim = cupti(odd="never")
    run = timed(driver("--steps", 20), folder, sim)
    assert run.kernels() == sim.kernels() and "told of nothing" in timing(run)["reason"]
    assert all(k["time_ns"] is None and k["time_method"] == "unknown" for k in run.report["kernels"])


def test_too_many_records(cupti, folder):
    """A CUPTI that hands its buffers back at the waits alone: 32 MiB of them fill up, the rest is dropped, counted and said."""
    sim = cupti(GRAPHS, odd="lazy")
    run = timed([kj.program("cuda_graphs"), "large"], folder, sim)
    assert run.status == 0
    check_stepped_aside(run, sim, "were lost")
    row = timing(run)
    assert row["dropped"] > 0 and row["records"] + row["dropped"] == sum(sim.kernels().values())
    truth = {k["name"]: k for k in sim.truth()["devices"][0]["kernels"]}
    for kernel in run.report["kernels"]:
        assert kernel["time_method"] == "estimated" and kernel["timed_launches"] < kernel["launches"]
        assert abs(kernel["time_ns"] / truth[kernel["name"]]["time_ns"] - 1) < 0.01


@pytest.mark.parametrize("when", ["never", "early", "late"])
def test_the_programs_own_profiler_comes_first(cupti, folder, when):
    """A profiler linked with libcupti finds it as if we had never been there, whenever it comes, and gets none of our buffers."""
    plain = kj.bare([kj.program("profiler"), when, 300], env=cupti(name="plain").env)
    sim = cupti()
    run = timed([kj.program("profiler"), when, 300], folder, sim)
    assert plain.status == 0 and (run.status, run.stdout) == (plain.status, plain.stdout), run.stdout
    if when == "never":
        check_times(run, sim)
    else:
        assert b"300 records, 0 buffers kept, 0 of somebody" in run.stdout
        check_stepped_aside(run, sim, "another tool subscribed")


@pytest.mark.parametrize("when", ["early", "late"])
def test_the_programs_own_profiler_comes_while_graphs_exist(cupti, folder, when):
    """We cannot leave then, and the profiler works all the same."""
    command = [kj.program("profiler"), when, 300, "graph"]
    plain = kj.bare(command, env=cupti(name="plain").env)
    sim = cupti()
    run = timed(command, folder, sim)
    assert plain.status == 0 and b"300 records, 0 buffers kept, 0 of somebody" in plain.stdout
    assert (run.status, run.stdout) == (plain.status, plain.stdout), run.stdout + run.stderr
    assert run.kernels() == sim.kernels()
    row = timing(run)
    assert row["backend"] == "events" and "another tool subscribed" in row["reason"] and "stays attached" in row["reason"]


@pytest.mark.parametrize("odd", ["lazy", "zero"])
def test_graphs_that_exist_are_not_left_alone(cupti, folder, odd):
    """Given up in mid-run, for one reason or another: CUPTI stays, idle, as leaving it would end the program."""
    sim = cupti(GRAPHS, odd=odd)
    run = timed([kj.program("cuda_graphs"), "large"], folder, sim)
    assert run.status == 0, run.stderr.decode()
    assert run.kernels() == sim.kernels()
    row = timing(run)
    assert row["backend"] == "events" and "stays attached and idle" in row["reason"], row


@pytest.mark.parametrize("odd", ["zero", "instant", "backwards", "wild", "ancient"])
def test_records_with_times_of_no_use(cupti, folder, odd):
    """One in five: such a CUPTI is not believed, and not in silence."""
    sim = cupti(odd=odd)
    run = timed(driver("--steps", 1500), folder, sim)
    assert run.status == 0, run.stderr.decode()
    check_stepped_aside(run, sim, "had no time, or one that cannot be")
    row = timing(run)
    assert row["incomplete"] >= 50 / 20 and row["incomplete"] * 3 <= row["records"] * 2
    truth = {k["name"]: k for k in sim.truth()["devices"][0]["kernels"]}
    for kernel in run.report["kernels"]:
        mean_ns = truth[kernel["name"]]["time_ns"] / kernel["launches"]
        assert kernel["time_low_ns"] <= truth[kernel["name"]]["time_ns"] * 1.02, (kernel, mean_ns)
        assert kernel["time_high_ns"] >= truth[kernel["name"]]["time_ns"] * 0.98, (kernel, mean_ns)


def test_records_with_times_of_no_use_in_a_short_run(cupti, folder):
    """Nobody waits for long: it is said at the end."""
    sim = cupti(odd="zero")
    run = timed(driver("--steps", 30, "--async"), folder, sim)
    assert run.kernels() == sim.kernels() and "had no time" in timing(run)["reason"]


def test_profiler_without_us_asking_for_cupti(cupti, folder):
    for options in ([], ["--timing", "count"]):
        sim = cupti(name="sim" + "".join(options))
        run = kj.wrapped([kj.program("profiler"), "late", 300], pathlib.Path(f"{folder}{len(options)}"), options=options, env=sim.env)
        assert run.status == 0 and b"300 records, 0 buffers kept, 0 of somebody" in run.stdout
        assert run.kernels() == sim.kernels() and timing(run)["reason"] is None


def test_real_libcupti_on_a_driver_that_is_none(cupti, folder):
    """NVIDIA's own library wants more of a driver than the public API: it refuses, and we step aside."""
    libraries = [p for p in (pathlib.Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")).resolve() / d
                             for d in ("lib64", "lib", "extras/CUPTI/lib64")) if list(p.glob("libcupti.so.1*"))]
    if not libraries:
        pytest.skip("no libcupti of NVIDIA's (CUDA_HOME)")
    sim = cupti(path=libraries[0])
    run = timed(driver("--steps", 60), folder, sim)
    assert run.status == 0
    check_stepped_aside(run, sim, "CUPTI refused a subscriber|CUPTI's records are known of")


# ---- ends

def test_wait_at_the_end_is_bounded(cupti, folder):
    """A CUPTI that never returns at exit: the program ends with its own status all the same."""
    sim = cupti(odd="hang")
    start = time.monotonic()
    run = timed(driver("--steps", 60, "--exit", 7), folder, sim)
    assert run.status == 7 and time.monotonic() - start < 8
    assert run.kernels() == sim.kernels() and "within 2 s" in timing(run)["reason"]


def test_killed(cupti, folder):
    """kill -9: what CUPTI had handed over, a second ago at most, is in the report."""
    sim = cupti()
    full = [kj.KJOULE, "run", "-o", folder, "--timing", "cupti", "--", *driver("--steps", 10**8, "--progress")]
    process = subprocess.Popen(list(map(str, full)), env=kj.environment(sim.env), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in process.stdout:
        if line.strip() == b"step 4000":
            break
    (child,) = kj.children(process.pid)
    os.kill(child, signal.SIGKILL)
    process.stdout.read()
    assert process.wait(30) == 137
    report = kj.read_report(folder)
    assert len(report["kernels"]) == 3 and report["processes"][0]["timing"]["backend"] == "cupti"
    for kernel in report["kernels"]:
        assert kernel["launches"] >= 4000 and kernel["timed_launches"] > kernel["launches"] - 1.5 / 500e-6
        true_ns = {"train_gemm": 300e3, "train_softmax": 150e3, "train_update": 50e3}[kernel["name"]]
        assert abs(kernel["time_ns"] / kernel["launches"] / true_ns - 1) < 0.02


RAW_END = r"""
import ctypes, os
cuda = ctypes.CDLL("libcuda.so.1")
lookup = ctypes.CDLL(None).dlsym
lookup.restype, lookup.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]
def call(name, *arguments):
    f = ctypes.CFUNCTYPE(ctypes.c_int, *[type(a) for a in arguments])(lookup(cuda._handle, name))
    assert f(*arguments) == 0, name
handle, u, null = ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p()
context, module, kernel = handle(), handle(), handle()
call(b"cuInit", u(0))
call(b"cuDevicePrimaryCtxRetain", handle(ctypes.addressof(context)), ctypes.c_int(0))
call(b"cuCtxSetCurrent", context)
image = ctypes.create_string_buffer(b".version 8.0\n.target sm_80\n.visible .entry train_gemm()\n{\n ret;\n}\n")
call(b"cuModuleLoadData", handle(ctypes.addressof(module)), handle(ctypes.addressof(image)))
call(b"cuModuleGetFunction", handle(ctypes.addressof(kernel)), module, ctypes.c_char_p(b"train_gemm"))
for _ in range(50):
    call(b"cuLaunchKernel", kernel, u(8), u(1), u(1), u(64), u(1), u(1), u(0), null, null, null)
os._exit(4)
"""


def test_end_without_handlers(cupti, folder):
    """_exit before any wait: counts are whole, times are unknown and said to be."""
    sim = cupti()
    run = timed([kj.PYTHON, "-c", RAW_END], folder, sim)
    assert run.status == 4, run.stderr.decode()
    assert run.kernels() == {"train_gemm": 50}
    assert all(k["time_ns"] is None and k["time_method"] == "unknown" for k in run.report["kernels"])
    assert any("ended before it had CUPTI's records" in w for w in run.report["quality"]["warnings"])


def test_processes(cupti, folder):
    """Children of a fork that happened before CUDA was touched: each has a CUPTI of its own."""
    sim = cupti()
    run = timed(driver("--steps", 100, "--processes", 3), folder, sim)
    assert run.status == 0
    check_times(run, sim)
    rows = [p["timing"] for p in run.report["processes"] if p["launches"]]
    assert len(rows) == 3 and all(r["backend"] == "cupti" and r["reason"] is None for r in rows)


FORKER = """
import ctypes, os, sys
cuda = ctypes.CDLL("libcuda.so.1")
lookup = ctypes.CDLL(None).dlsym
lookup.restype, lookup.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]
init = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint)(lookup(cuda._handle, b"cuInit"))
assert init(0) == 0
pid = os.fork()
if pid == 0:
    init(0)
    sys.exit(5)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_child_of_an_attached_process_ends(cupti, folder):
    """It runs the parent's exit handlers, and leaves CUPTI alone in them."""
    sim = cupti(odd="hang")
    start = time.monotonic()
    run = timed([kj.PYTHON, "-c", FORKER], folder, sim)
    assert run.status == 5, run.stderr.decode()
    assert time.monotonic() - start < 10


def test_preloaded(cupti, folder):
    sim = cupti()
    sim.env["KJOULE_TIMING"] = "cupti"
    run = kj.preloaded(driver("--steps", 150), folder, env=sim.env)
    assert run.status == 0
    check_times(run, sim)
