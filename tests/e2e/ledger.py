# SPDX-License-Identifier: Apache-2.0
"""Reads a ledger (shim/ledger.h) for tests of the shim alone, which have no report."""
import collections
import pathlib
import re
import struct

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECTIONS = re.findall(r"^ *X\((\w+), ", (ROOT / "shim" / "ledger.h").read_text(), re.M)
SHARDS, COUNTS_CAP, CALLS_BASE = 16, 32768, 32256
KERNEL, HTOD, DTOH, DTOD, COPY, MEMSET, GRAPH, HOST = range(1, 9)
OPEN, CLOSED, DISABLED = 1, 2, 3
FIRST, GAP_BEFORE = 1, 2

Activity = collections.namedtuple(
    "Activity", "row name device kind role grid block shared_bytes module_hash bytes timed sum_ns min_ns max_ns first_ns taken count")
Interval = collections.namedtuple("Interval", "start_ns end_ns launch_ns activity stream thread flags context taken_ns unsure_ns")
Call = collections.namedtuple("Call", "count failed host_ns")


class Ledger:
    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.data = data = self.path.read_bytes()
        magic, self.version, _, self.file_size = struct.unpack_from("<8sIIQ", data)
        assert magic == b"kledger1" and self.file_size == len(data)
        self.sections = {name: struct.unpack_from("<QIIQQ", data, 24 + 32 * i) for i, name in enumerate(SECTIONS)}
        (self.pid, self.ppid, _, self.start_ns, _, self.end_ns, self.state, self.flags, self.driver_version, self.rank,
         self.local_rank, self.world_size) = struct.unpack_from("<iiQQQQIIiiii", data, 24 + 32 * 16)
        (self.ring_tail, self.self_ns, self.timed_pairs, self.untimed_no_event, self.untimed_capture, self.harvest_errors,
         self.failed_launches, self.gpa_requests, self.slow_finds) = struct.unpack_from("<9Q", data, 24 + 32 * 16 + 64 + 256)

    def rows(self, name, layout):
        offset, row_size, cap, used, _ = self.sections[name]
        assert struct.calcsize(layout) <= row_size
        return [struct.unpack_from(layout, self.data, offset + i * row_size) for i in range(min(used, cap))]

    def dropped(self, name):
        return self.sections[name][4]

    def text(self, offset):
        start = self.sections["NAMES"][0] + offset
        return self.data[start:self.data.index(b"\0", start)].decode()

    def count(self, cell):
        offset = self.sections["COUNTS"][0]
        return sum(struct.unpack_from("<Q", self.data, offset + 8 * (shard * COUNTS_CAP + cell))[0] for shard in range(SHARDS))

    @property
    def activities(self):
        found = []
        for row, a in enumerate(self.rows("ACTIVITIES", "<IHBB3I3IIIQQQdQQQQQQ")):
            found.append(Activity(row, self.text(a[0]), a[1], a[2], a[3], a[4:7], a[7:10], a[10], a[11], a[12], a[13], a[14],
                                  *a[16:19], a[19:22], self.count(row)))
        return found

    def launches(self, kind=KERNEL):
        """Launches of a kind by name, over all shapes, roles and devices."""
        total = collections.Counter()
        for a in self.activities:
            if a.kind == kind and a.count:
                total[a.name] += a.count
        return total

    @property
    def calls(self):
        return {self.text(c[0]): Call(self.count(CALLS_BASE + i), c[2], c[3])
                for i, c in enumerate(self.rows("CALLS", "<IIQQ"))}

    @property
    def intervals(self):
        return [Interval(*row) for row in self.rows("RING", "<QQQIHHIIII")]

    @property
    def unhooked(self):
        return {(self.text(u[0]), u[1]): u[3] for u in self.rows("UNHOOKED", "<IiII")}

    @property
    def graph_nodes(self):
        return self.rows("GRAPH_NODES", "<IIII")

    @property
    def devices(self):
        return self.rows("DEVICES", "<16siI64siiii")

    @property
    def threads(self):
        return self.rows("THREADS", "<iI16s")


def read_all(folder):
    """Every ledger in a run folder."""
    return [Ledger(path) for path in sorted(pathlib.Path(folder).glob("ledger.*"))]


def read_one(folder):
    ledgers = read_all(folder)
    assert len(ledgers) == 1, [l.path.name for l in ledgers]
    return ledgers[0]
