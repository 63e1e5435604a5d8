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
        """(cpu_ns, cycles, instructions) over all threads, by their last numbers."""
        last = {(r.pid, struct.unpack_from("<i", r.body)[0]): struct.unpack_from("<QQQ", r.body, 8) for r in self.records if r.kind == THREAD}
        return tuple(sum(numbers) for numbers in zip(*last.values()))

    def threads(self):
        """The last numbers of each thread: {(pid, tid): (cpu_ns, dead, comm, process)}, dead ones added up."""
        threads = {}
        for r in self.records:
            if r.kind == THREAD:
                tid, dead, cpu_ns, _, _ = struct.unpack_from("<iIQQQ", r.body)
                comm, process = (r.body[at:at + 16].split(b"\0")[0].decode() for at in (32, 48))
                threads[(r.pid, tid)] = (cpu_ns, dead, comm, process)
        return threads
