# SPDX-License-Identifier: Apache-2.0
"""Beside others: preloaded allocators and wrappers, sanitizers, other libcs, set-uid, fork servers, exec chains. Both live."""
import glob
import os
import shutil
import subprocess

import pytest

import kj

KERNELS = ("train_gemm", "train_softmax", "train_update")
ALLOCATORS = {"jemalloc": "libjemalloc.so.2", "tcmalloc": "libtcmalloc_minimal.so.4"}


def driver(*flags):
    return [kj.program("cuda_driver"), "--steps", "40", *map(str, flags)]


def shared_library(name):
    found = sorted(glob.glob(f"/usr/lib/*/{name}") + glob.glob(f"/usr/lib64/{name}"))
    if not found:
        pytest.skip(f"no {name} on this machine (tests/setup.sh installs it)")
    return found[0]


def assert_alike(run, plain, sim, steps=40):
    assert (run.status, run.stdout) == (plain.status, plain.stdout), run.stderr.decode()
    assert run.kernels() == sim.kernels() == dict.fromkeys(KERNELS, steps)


def blind_warnings(run):
    return [w for w in run.report["quality"]["warnings"] if "cannot see" in w or "cannot be seen" in w]


@pytest.mark.parametrize("first", ["shim", "neighbour"])
@pytest.mark.parametrize("name", [*ALLOCATORS, "wrapper", "wrapper by handle"])
def test_preloads_in_both_orders(make_sim, folder, name, first):
    """An allocator, and a library that wraps launches and malloc by RTLD_NEXT: each sees what it sees alone."""
    wrapper = name.startswith("wrapper")
    other = kj.program("neighbour.so") if wrapper else shared_library(ALLOCATORS[name])
    handle = {"NEIGHBOUR_HANDLE": "1"} if "handle" in name else {}
    command = [kj.program("cuda_linked"), "--steps", "40"]
    plain = kj.bare(command, env={**make_sim(name="plain").env, **handle, "LD_PRELOAD": other})
    sim = make_sim()
    order = f"{kj.SHIM}:{other}" if first == "shim" else f"{other}:{kj.SHIM}"
    run = kj.preloaded(command, folder, env={**sim.env, **handle, "LD_PRELOAD": order})
    assert_alike(run, plain, sim)
    if wrapper:
        assert b"neighbour saw 120 launches, and malloc" in run.stdout


@pytest.mark.parametrize("first", ["shim", "asan"])
def test_address_sanitizer_in_both_orders(make_sim, folder, first):
    """ASan wants to be first, and says so when it is not; then it is told not to mind. A program built with it just runs."""
    asan = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    library = os.path.realpath(asan)
    order = f"{kj.SHIM}:{library}" if first == "shim" else f"{library}:{kj.SHIM}"
    options = "detect_leaks=0:verify_asan_link_order=0"
    sim = make_sim()
    plain = kj.bare(driver(), env={**make_sim(name="plain").env, "LD_PRELOAD": library, "ASAN_OPTIONS": options})
    run = kj.preloaded(driver(), folder, env={**sim.env, "LD_PRELOAD": order, "ASAN_OPTIONS": options})
    assert_alike(run, plain, sim)
    assert b"AddressSanitizer" not in run.stderr


def test_program_built_with_asan(make_sim, folder):
    options = {"ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0"}
    command = [kj.program("cuda_asan"), "--steps", "40"]
    plain = kj.bare(command, env={**make_sim(name="plain").env, **options})
    sim = make_sim()
    run = kj.wrapped(command, folder, env={**sim.env, **options})
    assert_alike(run, plain, sim)
    assert b"AddressSanitizer" not in run.stderr


def test_program_that_sets_its_own_preload(make_sim, folder):
    """A launcher that sets LD_PRELOAD for its child: both libraries, if it appends; if it replaces, the report says so."""
    sim = make_sim()
    inner = " ".join(map(str, driver()))
    appended = f'LD_PRELOAD="$LD_PRELOAD:{kj.program("neighbour.so")}" exec {inner}'
    run = kj.wrapped(["sh", "-c", appended], folder, env=sim.env)
    assert run.status == 0 and run.kernels() == dict.fromkeys(KERNELS, 40), run.stderr.decode()


def test_program_that_drops_the_preload(make_sim, folder):
    """env -i: the child runs as ever; the report says that it could not be watched, and how to mend that."""
    sim = make_sim("kernel * duration_us=1000 power=300\n")
    names = ("LD_LIBRARY_PATH", "KJ_SIM_SCRIPT", "KJ_SIM_STATE", "KJ_SIM_TRUTH")
    kept = [f"{name}={sim.env[name]}" for name in names]
    run = kj.wrapped(["env", "-i", *kept, *driver("--steps", 1000)], folder, env=sim.env)
    assert run.status == 0 and run.kernels() == {}
    (warning,) = blind_warnings(run)
    assert "LD_PRELOAD was taken out of its environment" in warning and "cuda_driver" in warning


def test_cuda_without_a_launch_is_diagnosed(sim, folder):
    run = kj.wrapped([kj.program("cuda_driver"), "--steps", "0"], folder, env=sim.env)
    (warning,) = [w for w in run.report["quality"]["warnings"] if "no kernel launch was seen" in w]
    assert "unhooked" in warning


def test_driver_by_absolute_path(make_sim, folder):
    """dlopen("/.../libcuda.so.1"), with nothing to find it by name."""
    code = ("import ctypes, sys; d = ctypes.CDLL(sys.argv[1]); n = ctypes.c_int(); c = ctypes.c_void_p()\n"
            "assert d.cuInit(0) == 0 and d.cuDevicePrimaryCtxRetain(ctypes.byref(c), 0) == 0 and d.cuCtxSetCurrent(c) == 0\n"
            "ptx = b'.version 8.0\\n.target sm_80\\n.address_size 64\\n.visible .entry by_path()\\n{\\n ret;\\n}\\n'\n"
            "m, f = ctypes.c_void_p(), ctypes.c_void_p()\n"
            "assert d.cuModuleLoadData(ctypes.byref(m), ptx) == 0 and d.cuModuleGetFunction(ctypes.byref(f), m, b'by_path') == 0\n"
            "for _ in range(25): assert d.cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, None, None, None) == 0\n"
            "assert d.cuCtxSynchronize() == 0; print('done')\n")
    sim = make_sim()
    env = {k: v for k, v in sim.env.items() if k != "LD_LIBRARY_PATH"}
    run = kj.wrapped([kj.PYTHON, "-c", code, kj.SIMGPU / "libcuda.so.1"], folder, env={**env, "LD_LIBRARY_PATH": None})
    assert (run.status, run.stdout) == (0, b"done\n"), run.stderr.decode()
    assert run.kernels() == sim.kernels() == {"by_path": 25}


def test_fork_server(make_sim, folder):
    """multiprocessing's fork server: workers are forked from a process that never used CUDA, and each is counted."""
    code = ("import multiprocessing as mp, subprocess, sys\n"
            "def work(i): return subprocess.run(sys.argv[1:], capture_output=True).returncode\n"
            "if __name__ == '__main__':\n"
            "    with mp.get_context('forkserver').Pool(3) as pool: print(pool.map(work, range(3)))\n")
    script = folder.parent / "server.py"
    script.write_text(code)
    sim = make_sim()
    run = kj.wrapped([kj.PYTHON, script, *driver()], folder, env=sim.env)
    assert (run.status, run.stdout) == (0, b"[0, 0, 0]\n"), run.stderr.decode()
    assert run.kernels() == sim.kernels() == dict.fromkeys(KERNELS, 120)


def test_exec_chain(make_sim, folder):
    """Shells and interpreters that exec one another end in the training: one process, its status and output."""
    sim = make_sim()
    last = " ".join(map(str, driver("--exit", 6)))
    code = f"import os; os.execv('/bin/sh', ['sh', '-c', 'exec {last}'])"
    run = kj.wrapped(["sh", "-c", f'exec env {kj.PYTHON} -c "{code}"'], folder, env=sim.env)
    assert run.status == 6 and b"launches 120" in run.stdout
    assert run.kernels() == sim.kernels() == dict.fromkeys(KERNELS, 40)
    assert run.report["run"]["exit_status"] == 6


def musl_hello(tmp_path):
    if not shutil.which("musl-gcc"):
        pytest.skip("no musl-gcc on this machine (tests/setup.sh installs it)")
    program = tmp_path / "hello_musl"
    subprocess.run(["musl-gcc", "-o", program, kj.ROOT / "tests/programs/hello.c"], check=True)
    return program


@pytest.mark.parametrize("kind", ["static", "musl"])
@pytest.mark.parametrize("how", ["wrapped", "wrapped in a shell", "preloaded"])
def test_programs_of_another_libc(tmp_path, kind, how):
    """Static and musl binaries run as ever, and the report of a wrapped one says that kjoule is blind in it."""
    program = kj.program("hello_static") if kind == "static" else musl_hello(tmp_path)
    folder = tmp_path / "run"
    if how == "preloaded":
        run = kj.preloaded([program], folder)
        assert run.stderr == b""
    else:
        run = kj.wrapped(["sh", "-c", f"{program}; exit $?"] if "shell" in how else [program], folder)
        assert run.report["run"]["exit_status"] == 7
        if how == "wrapped":
            (warning,) = blind_warnings(run)
            assert ("statically linked" if kind == "static" else "musl") in warning
    assert (run.status, run.stdout) == (7, b"hello\n"), run.stderr.decode()


def test_set_uid_program(tmp_path):
    """Nothing is loaded into a set-uid program, and nothing changes for it."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a program that is set-uid to somebody else")
    program = tmp_path / "hello"
    shutil.copy(kj.program("hello"), program)
    os.chown(program, 65534, 65534)
    program.chmod(0o4755)
    tmp_path.chmod(0o755)
    run = kj.wrapped([program], tmp_path / "run")
    assert (run.status, run.stdout) == (7, b"hello\n")
    (warning,) = blind_warnings(run)
    assert "set-uid" in warning
