# SPDX-License-Identifier: Apache-2.0
"""What libkjoule.so may need, call and say; and what `make install` puts where."""
import re
import subprocess

import kj

LIBC = {"libc.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


def output(*command, **kwargs):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, **kwargs).stdout


def undefined_symbols():
    return {line.split()[-1].split("@")[0] for line in output("nm", "-D", "-u", kj.SHIM).splitlines()}


def test_needs_libc_alone():
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "-d", kj.SHIM)))
    assert needed <= LIBC, needed


def test_cannot_exit_abort_or_print():
    forbidden = {"exit", "abort", "quick_exit", "printf", "puts", "putchar", "stdout", "fwrite", "system", "signal", "sigaction",
                 "__assert_fail", "__stack_chk_fail"}
    assert not forbidden & undefined_symbols()


def lines_of_the_shim(word):
    return [(path.name, line) for path in (kj.ROOT / "shim").glob("*.c") for line in path.read_text().splitlines() if word in line]


def test_loads_libcupti_alone_and_has_no_thread():
    """What --timing=cupti needs stands in one file: the program's libcupti, and a thread that bounds the wait for it at exit."""
    loads = [row for row in lines_of_the_shim("dlopen(") if "RTLD_NOLOAD" not in row[1]]
    assert loads and {name for name, _ in loads} == {"cupti.c"}, loads
    assert {name for name, _ in lines_of_the_shim("pthread_create")} == {"cupti.c"}
    assert len(lines_of_the_shim("pthread_create(")) == 1


def test_exports_doors_and_cuda_names_only():
    defined = [line.split()[-1].split("@")[0] for line in output("nm", "-D", "--defined-only", kj.SHIM).splitlines()]
    others = [name for name in defined if not re.match(r"cu[A-Z]\w+$", name)]
    assert set(others) <= {"dlsym", "InitializeInjectionNvtx2", "KJOULE", "cuptiSubscribe", "cuptiSubscribe_v2",
                           "cuptiActivityRegisterCallbacks"}, others
    assert "cuLaunchKernel_ptsz" in defined and "cuGetProcAddress_v2" in defined


def test_stays_for_good():
    flags = output("readelf", "-d", kj.SHIM)
    assert "NODELETE" in flags


def test_silent_without_cuda(tmp_path):
    """Any program under the bare library: same output, nothing left, nothing said."""
    for command in (["ls", "/"], ["sh", "-c", "echo out; echo err >&2; exit 3"], [kj.PYTHON, "-c", "print('hello')"]):
        plain = kj.bare(command, cwd=tmp_path)
        run = kj.preloaded(command, tmp_path / "run", cwd=tmp_path)
        assert (run.status, run.stdout, run.stderr) == (plain.status, plain.stdout, plain.stderr)
    assert list(tmp_path.iterdir()) == []


def test_switched_off(make_sim, tmp_path):
    """KJOULE_DISABLE=1: the library is there and does nothing."""
    sim = make_sim()
    run = kj.preloaded([kj.program("cuda_driver"), "--steps", 5], tmp_path / "run", env={**sim.env, "KJOULE_DISABLE": "1"})
    assert run.status == 0 and run.stderr == b""
    assert not (tmp_path / "run").exists()


def test_start_that_fails_costs_one_line(make_sim, tmp_path):
    """A run folder that cannot be written: the program runs on, one line says why."""
    sim = make_sim()
    env = {**sim.env, "LD_PRELOAD": kj.SHIM, "KJOULE_DIR": "/proc/nowhere"}
    run = kj.bare([kj.program("cuda_driver"), "--steps", 5], env=env)
    assert run.status == 0 and b"launches 15" in run.stdout
    lines = run.stderr.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("kjoule: "), lines


def test_install_and_uninstall(tmp_path):
    dest = tmp_path / "dest" / "opt" / "kj"
    make = ["make", "-s", "-C", kj.ROOT, f"BUILD={kj.BUILD}", "PREFIX=/opt/kj", f"DESTDIR={tmp_path / 'dest'}"]
    output(*make, "install")
    for path in ("bin/kjoule", "lib/kjoule/libkjoule.so", "share/kjoule/kjoule.report.1.json", "share/man/man1/kjoule.1"):
        assert (dest / path).is_file(), path
    done = subprocess.run([str(dest / "bin" / "kjoule"), "-o", str(tmp_path / "run"), "sh", "-c", "echo $LD_PRELOAD"],
                          capture_output=True, text=True, env=kj.environment())
    assert done.returncode == 0 and str(dest / "lib" / "kjoule" / "libkjoule.so") in done.stdout, done.stderr
    output(*make, "uninstall")
    assert not [p for p in dest.rglob("*") if p.is_file()]


def test_help_and_version():
    done = kj.kjoule("--help")
    assert done.status == 0 and done.stderr == b""
    text = done.stdout.decode()
    for word in ("run", "report", "doctor", "--zone", "--pue", "KJOULE_ZONE"):
        assert word in text, word
    version = kj.kjoule("--version")
    assert version.status == 0 and (kj.ROOT / "VERSION").read_text().strip() in version.stdout.decode()


def test_doctor(make_sim):
    """Every source with accepted or refused, and a reason; with the simulated GPU, NVML is accepted."""
    text = kj.kjoule("doctor", env=make_sim().env).stdout.decode()
    for source in ("nvml", "rapl_perf", "rapl_powercap", "cpu_model"):
        assert source in text, text
    (nvml,) = [line for line in text.splitlines() if re.search(r"\bnvml\b", line)][:1]
    assert "accepted" in nvml
    simulated = kj.kjoule("doctor", env=make_sim(name="cupti").env | {"LD_LIBRARY_PATH": f"{kj.SIMGPU}:{kj.SIMGPU}/cupti"})
    assert re.search(r"CUPTI\s+found, libcupti.so.13, version 130001: for --timing cupti", simulated.stdout.decode())
    without = kj.kjoule("doctor", env={"LD_LIBRARY_PATH": None})
    assert without.status == 0
