# SPDX-License-Identifier: Apache-2.0
"""What kjoule-probe may do and what it does with it: what it opens, what it keeps, whom it serves."""
import os
import pathlib
import re
import shutil
import subprocess

import pytest

import kj
import probe

pytestmark = pytest.mark.skipif(not probe.PROBE.exists() or os.geteuid() != 0, reason="kjoule-probe is not built, or this is no root")
NOBODY = 65534
CAPS = "cap_bpf,cap_perfmon,cap_dac_read_search=ep"
CAP_PERFMON, CAP_BPF = 38, 39

# Places that are fixed: the dynamic loader's, libbpf's, the sensors' and those of the processes that it is asked about.
OPENS = re.compile(r"""^(/etc/ld\.so\.(cache|preload)|/(usr/)?lib(64|exec)?/.*\.so[.0-9]*|/dev/null
    |/sys/kernel/btf/vmlinux|/proc/version_signature|/proc/(cpuinfo|meminfo|stat|self/[a-z/]*|\d+|\d+/comm)
    |/sys/(bus/event_source/devices|class/(powercap|hwmon)|devices/(system/cpu|virtual|power|uprobe))(/.*)?
    |/proc/sys/kernel/[a-z_]*|/proc/self/fd/\d+|/sys/fs/bpf)$""", re.X)


def opened(trace):
    """Every path that a call of the traced process named, in order."""
    calls = re.compile(r'\b(?:open|openat|openat2|access|faccessat2?|stat|lstat|newfstatat|statx|readlink|readlinkat|execve)\([^"]*"([^"]*)"')
    return [m.group(1) for line in pathlib.Path(trace).read_text().splitlines() for m in calls.finditer(line) if m.group(1)]


@pytest.fixture
def installed(tmp_path):
    """A kjoule with its probe, for users who may not enter the build folder."""
    place = pathlib.Path(subprocess.run(["mktemp", "-d", "/tmp/kj_probe.XXXXXX"], capture_output=True, text=True).stdout.strip())
    os.chmod(place, 0o755)
    subprocess.run(["make", "-s", "-C", kj.ROOT, f"BUILD={kj.BUILD}", f"PREFIX={place}", "install", "install-probe"], check=True,
                   stdout=subprocess.DEVNULL)
    home = place / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    yield place
    shutil.rmtree(place)


def as_nobody(*command, cwd="/"):
    return subprocess.run(["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", *map(str, command)], cwd=cwd,
                          env=kj.environment(), capture_output=True, text=True, timeout=kj.TIMEOUT_S)


def capabilities(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return {name: int(value, 16) for name, value in re.findall(r"^(Cap\w+|NoNewPrivs):\s*([0-9a-f]+)$", status, re.M)}


def test_opens_nothing_that_the_user_names(tmp_path):
    """With all capabilities of root, and names of files in every place that a user can reach."""
    secret = tmp_path / "named-by-the-user"
    secret.write_bytes(pathlib.Path("/bin/true").read_bytes())
    trace = tmp_path / "trace"
    words = [str(secret), f"--output={secret}", f"@{secret}"]
    env = {**kj.environment(), "LIBBPF_STRICT_MODE": str(secret), "KJOULE_OUTPUT": str(secret), "TMPDIR": str(secret), "HOME": str(secret),
           "LD_LIBRARY_PATH": str(secret), "BTF_PATH": str(secret)}
    p = probe.Probe("phases", *words, prefix=["strace", "-f", "-o", str(trace)], env=env)
    assert p.wait(probe.READY), [probe.text(r) for r in p.records]
    sleeper = subprocess.Popen(["sleep", "30"])
    descriptor = os.open(secret, os.O_RDONLY)
    try:
        p.watch(sleeper.pid)
        for function in range(4):
            probe.socket.send_fds(p.socket, [probe.request(probe.FUNCTION, sleeper.pid, function, 0x1000)], [descriptor])
        p.socket.send(str(secret).encode())  # no request at all: ends it
        while p.read():
            pass
    finally:
        os.close(descriptor)
        sleeper.kill()
        sleeper.wait()
        p.process.wait(20)
    paths = opened(trace)
    assert len(paths) > 20, "strace saw nothing"
    # strace itself and the loader's search of LD_LIBRARY_PATH end with the program's own start
    own = paths[next(i for i, path in enumerate(paths) if path == "/dev/null"):]
    assert not [path for path in own if "named-by-the-user" in path]
    assert not [path for path in own if not OPENS.match(path)], "places that are not on the list"
    assert "execve(" not in "\n".join(pathlib.Path(trace).read_text().splitlines()[2:]), "it starts no program"


def test_gives_up_what_it_does_not_need():
    for words, kept in (((), 0), (("phases",), 1 << CAP_BPF | 1 << CAP_PERFMON)):
        p = probe.Probe(*words)
        assert p.wait(probe.READY)
        caps = capabilities(p.process.pid)
        assert caps["CapEff"] | caps["CapPrm"] == caps["CapPrm"] and caps["CapPrm"] & ~kept == 0, (words, caps)
        assert caps["CapAmb"] == 0 and caps["NoNewPrivs"] == 1
        fds = {os.readlink(f"/proc/{p.process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{p.process.pid}/fd")}
        assert not [path for path in fds if path.startswith("/") and not path.startswith(("/dev/null", "/sys/"))]
        p.stop()


def test_serves_only_the_user_s_own_processes(installed):
    path = installed / "libexec/kjoule/kjoule-probe"
    p = probe.Probe(path=path, user=NOBODY, group=NOBODY, extra_groups=[])
    assert p.wait(probe.READY), [probe.text(r) for r in p.records]
    other = subprocess.Popen(["sleep", "30"])
    own = subprocess.Popen(["sleep", "30"], user=NOBODY)
    for pid in (other.pid, own.pid, 1, 0, -5, 2 ** 31 - 1):
        p.watch(pid)
    p.stop()
    answers = {r.pid: r.value for r in p.records if r.kind == probe.WATCHING}
    for process in (other, own):
        process.kill()
        process.wait()
    assert answers[own.pid] == 0
    assert answers[other.pid] < 0 and answers[1] < 0 and answers[0] < 0 and answers[-5] < 0 and answers[2 ** 31 - 1] < 0


def test_started_by_hand_it_says_who_starts_it():
    done = subprocess.run([probe.PROBE], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "kjoule doctor" in done.stderr


def test_ordinary_user_gets_the_better_numbers(installed):
    """Installed by `make install-probe`, with nothing else changed."""
    run = as_nobody(installed / "bin/kjoule", "run", "-o", installed / "home/with", "--", "sh", "-c", "i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done")
    assert run.returncode == 0, run.stderr
    report = kj.read_report(installed / "home/with")
    source = next(s for s in report["provenance"]["sources"] if s["name"] == "probe")
    assert source["accepted"] and report["energy"]["cpu"]["cpu_time_source"] == "probe", source
    doctor = as_nobody(installed / "bin/kjoule", "doctor").stdout
    assert re.search(r"probe\s+accepted", doctor), doctor


def test_ordinary_user_without_capabilities(installed):
    """Everything works, and says what is missing and the one command for it."""
    path = installed / "libexec/kjoule/kjoule-probe"
    subprocess.run(["setcap", "-r", path], check=True)
    run = as_nobody(installed / "bin/kjoule", "run", "-o", installed / "home/without", "--", "sh", "-c", "exit 7")
    assert run.returncode == 7
    report = kj.read_report(installed / "home/without")
    source = next(s for s in report["provenance"]["sources"] if s["name"] == "probe")
    assert not source["accepted"]
    assert report["energy"]["total_uj"] > 0
    doctor = as_nobody(installed / "bin/kjoule", "doctor").stdout
    assert re.search(r"probe\s+refused\s+it holds no capabilities", doctor), doctor
    assert f"mend: sudo setcap {CAPS} {path}" in doctor
    path.unlink()
    doctor = as_nobody(installed / "bin/kjoule", "doctor").stdout
    assert re.search(r"probe\s+refused\s+kjoule-probe is not installed", doctor) and "sudo make install-probe" in doctor


@pytest.mark.parametrize("held,words", [("+perfmon", ()), ("+bpf", ()), ("+bpf", ("raw",))])
def test_a_load_that_is_refused_is_one_line(held, words):
    p = probe.Probe(*words, prefix=["setpriv", f"--bounding-set=-all,{held}"])
    refused = p.wait(probe.REFUSED)
    assert refused and probe.text(refused) and "\n" not in probe.text(refused)
    p.process.wait(20)
