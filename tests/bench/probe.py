#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What kjoule-probe costs a scheduler switch, by the kernel's own BPF statistics, at a known rate of switches. Needs root."""
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import time

BUILD = pathlib.Path(os.environ.get("KJ_BUILD", "build"))
RATE, SECONDS = 20000, 4
MAGIC, WATCH, STOP, READY, REFUSED, RECORD = 0x6B6A7062, 1, 3, 4, 2, 184
STATISTICS = pathlib.Path("/proc/sys/kernel/bpf_stats_enabled")


def bpftool():
    return shutil.which("bpftool") or "/usr/sbin/bpftool"


def programs(known=()):
    """{id: (name, ns, calls)} of all BPF programs but the known."""
    listed = json.loads(subprocess.run([bpftool(), "-j", "prog", "show"], capture_output=True, check=True).stdout)
    return {p["id"]: (p.get("name", ""), p.get("run_time_ns", 0), p.get("run_cnt", 0)) for p in listed if p["id"] not in known}


def start(words):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    probe = subprocess.Popen([BUILD / "kjoule-probe", *words], stdin=theirs)
    theirs.close()
    kind = 0
    while kind not in (READY, REFUSED):
        message = ours.recv(64 * RECORD)
        kinds = [struct.unpack_from("<I", message, at + 4)[0] for at in range(0, len(message), RECORD)]
        kind = next((k for k in kinds if k in (READY, REFUSED)), REFUSED if not message else 0)
    if kind == REFUSED:
        raise SystemExit("bench: kjoule-probe refuses; see `kjoule doctor`")
    return ours, probe


def measure(words, in_tree, seconds):
    """(switches a second, ns a switch, share of one core) of the switch program."""
    others = programs()
    ours, probe = start(words)
    load = subprocess.Popen([BUILD / "programs" / "cpu_load", "switches", str(seconds + 2), str(RATE // 2)], stdout=subprocess.DEVNULL)
    if in_tree:
        ours.send(struct.pack("<IIiIQQ", MAGIC, WATCH, load.pid, 0, 0, 0))
    ours.setblocking(False)
    time.sleep(0.5)
    before, began = programs(others), time.monotonic()
    while time.monotonic() < began + seconds:
        time.sleep(0.05)
        try:
            while ours.recv(64 * RECORD):
                pass
        except BlockingIOError:
            pass
    after, took = programs(others), time.monotonic() - began
    load.kill()
    load.wait()
    ours.close()
    probe.wait(20)
    ns, calls = (sum(after[n][i] - before[n][i] for n in before if n in after and after[n][0].endswith("on_switch")) for i in (1, 2))
    return calls / took, ns / max(calls, 1), ns / took / 1e9


def main(quick=False):
    if os.geteuid() or not (BUILD / "kjoule-probe").exists() or not STATISTICS.exists():
        print("\nkjoule-probe: left out (needs root, a built kjoule-probe and kernel.bpf_stats_enabled)")
        return
    kept = STATISTICS.read_text()
    print(f"\nkjoule-probe by the kernel's BPF statistics, at about {RATE:,} switches a second of two threads, to a task and to idle; the statistics themselves cost "
          "some 20 ns a call")
    print(f"  {'program':34} {'switches/s':>12} {'ns a switch':>12} {'of one core':>12}")
    try:
        STATISTICS.write_text("1")
        for name, words, in_tree in (("BTF tracepoint, our own tree", [], True), ("BTF tracepoint, somebody else's", [], False),
                                     ("raw tracepoint, our own tree", ["raw"], True)):
            rate, ns, share = measure(words, in_tree, 1 if quick else SECONDS)
            print(f"  {name:34} {rate:12,.0f} {ns:12.0f} {100 * share:10.2f} %")
    finally:
        STATISTICS.write_text(kept)


if __name__ == "__main__":
    main("--quick" in sys.argv)
