# SPDX-License-Identifier: Apache-2.0
"""Speaks to kjoule-probe as the recorder does (probes/probe_stream.h), for tests of the probe alone."""
import collections
import os
import shutil
import socket
import struct
import subprocess
import time

import kj

PROBE = kj.BUILD / "kjoule-probe"
MAGIC, VERSION, RECORD_BYTES = 0x6B6A7062, 3, 184
WATCH, FUNCTION, STOP = 1, 2, 3
HELLO, REFUSED, CHANNEL, READY, TICK, THREAD, READING, LOST, PHASE, WATCHING, NO_PHASES, UNNAMED = range(1, 13)
SO_SNDBUFFORCE = 32
HEAD = struct.Struct("<IIQIiq")

Record = collections.namedtuple("Record", "kind t_ns id pid value body")


def request(kind, pid=0, function=0, offset=0):
    return struct.pack("<IIiIQQ", MAGIC, kind, pid, function, offset, 0)


def parse(message):
    assert len(message) % RECORD_BYTES == 0
    for at in range(0, len(message), RECORD_BYTES):
        magic, kind, t_ns, ident, pid, value = HEAD.unpack_from(message, at)
        assert magic == MAGIC
        yield Record(kind, t_ns, ident, pid, value, message[at + HEAD.size:at + RECORD_BYTES])


def text(record):
    return record.body.split(b"\0")[0].decode()


def tick(record):
    names = "tree_ns others_ns idle_ns tree_cycles tree_instructions all_cycles switches unlisted lost_phases processes threads".split()
    return dict(zip(names, struct.unpack_from("<9Q2I", record.body)))


class Probe:
    def __init__(self, *words, prefix=(), path=PROBE, **popen):
        self.socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        other.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20)  # a test reads nothing while it waits for its child
        self.process = subprocess.Popen([*prefix, str(path), *words], stdin=other, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, **popen)
        other.close()
        self.socket.settimeout(10)
        self.records = []

    def read(self):
        """One message; False at the end."""
        message = self.socket.recv(64 * RECORD_BYTES)
        self.records += parse(message)
        return bool(message)

    def wait(self, kind):
        while not any(r.kind == kind for r in self.records):
            if not self.read():
                return None
        return next(r for r in self.records if r.kind == kind)

    def watch(self, pid):
        self.socket.send(request(WATCH, pid))

    def start(self, command, stdout=subprocess.DEVNULL):
        """A command that runs once it is watched; its standard input stays open."""
        child = subprocess.Popen(["sh", "-c", 'read go; exec "$@"', "sh", *map(str, command)], stdin=subprocess.PIPE, stdout=stdout)
        self.watch(child.pid)
        self.wait(WATCHING)
        child.stdin.write(b"\n")
        child.stdin.flush()
        return child

    def run(self, command):
        """(exit status, what the kernel charged it and its children, ns)"""
        child = self.start(command)
        child.stdin.close()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        return child.returncode, (usage.ru_utime + usage.ru_stime) * 1e9

    def stop(self):
        """Everything that is still to come; the last tick."""
        try:
            self.socket.send(request(STOP))
            while self.read():
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass
        self.process.wait(10)
        self.socket.close()
        ticks = [r for r in self.records if r.kind == TICK]
        return tick(ticks[-1]) if ticks else None

    def dead(self):
        """(pid, tid) of each last number so far."""
        heads = ((r.pid, *struct.unpack_from("<iI", r.body)) for r in self.records if r.kind == THREAD)
        return [(pid, tid) for pid, tid, dead in heads if dead]

    def thread_counters(self):
        """(cpu_ns, cycles, instructions) over all threads."""
        return tuple(sum(numbers) for numbers in zip(*(thread[0] for thread in self.last_numbers().values())))

    def threads(self):
        """The numbers of each thread: {(pid, tid): (cpu_ns, dead, comm, process)}."""
        return {ids: (numbers[0], *rest) for ids, (numbers, *rest) in self.last_numbers().items()}

    def last_numbers(self):
        """{(pid, tid): ((cpu_ns, cycles, instructions), dead, comm, process)}; a number that was a dead thread's goes on from what that one had."""
        threads, past = {}, collections.defaultdict(lambda: (0, 0, 0))
        for r in self.records:
            if r.kind == THREAD:
                tid, dead, *numbers = struct.unpack_from("<iIQQQ", r.body)
                comm, process = (r.body[at:at + 16].split(b"\0")[0].decode() for at in (32, 48))
                numbers = tuple(a + b for a, b in zip(past[(r.pid, tid)], numbers))
                if dead:
                    past[(r.pid, tid)] = numbers
                threads[(r.pid, tid)] = (numbers, dead, comm, process)
        return threads
