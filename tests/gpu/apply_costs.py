#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes what a run of the checks measured of the driver's calls into a table of simgpu's costs, and says what it changed.

    apply_costs.py RESULTS.json [COSTS.def]      tests/simgpu/costs.def when not given; - prints instead of writing

A row that the results have no figure for keeps its own. Figures are rounded to two digits: more is not known of the next driver.
"""
import json
import pathlib
import re
import sys

COSTS = pathlib.Path(__file__).resolve().parents[1] / "simgpu" / "costs.def"
ROW = re.compile(r"^COST\((\w+), (\d+), (\d+), (\d+)\)(.*)$")
NODES = 500
# Variants that are about something else than the call alone: it waits, or goes into a capture.
APART = ("captured", "pending", "%d nodes" % NODES)
WAITS = ("cuMemcpyDtoH",)
# The only calls whose own time on the stream is no kernel's and no copy's.
ON_STREAM = ("cuEventRecord", "cuEventRecordWithFlags", "cuStreamWaitEvent")


def two_digits(value):
    return int(float("%.1e" % max(0.0, value)))


def measured(results):
    """{call: (host_ns, item_ns, device_ns)} as cuGetProcAddress names the calls"""
    alone, many, device = {}, {}, {}
    for row in results["checks"]["calls"]["rows"]["calls"]["table"]:
        call = re.sub(r"_v\d+$", "", row["call"])
        if "host_ns" not in row or call in WAITS:
            continue
        if row["variant"] == "%d nodes" % NODES:
            many[call] = row["host_ns"]
        elif row["variant"] not in APART:
            alone.setdefault(call, row["host_ns"])
            device.setdefault(call, row["device_ns"] or 0.0)
    found = {}
    for call, host_ns in alone.items():
        item_ns = max(0.0, (many[call] - host_ns) / (NODES - 1)) if call in many else 0.0
        found[call] = (two_digits(host_ns - item_ns), two_digits(item_ns), two_digits(device[call]) if call in ON_STREAM else 0)
    return found


def applied(text, found, source):
    """(the table's new text, what changed)"""
    lines, changes = [], []
    for line in text.splitlines():
        row = ROW.match(line)
        if row and row.group(1) in found:
            call, old, new = row.group(1), tuple(map(int, row.groups()[1:4])), found[row.group(1)]
            line = "COST(%s, %d, %d, %d) /* %s */" % (call, *new, source)
            changes.append("%s: %d, %d, %d -> %d, %d, %d" % (call, *old, *new))
        lines.append(line)
    return "\n".join(lines) + "\n", changes


def main():
    results = json.loads(pathlib.Path(sys.argv[1]).read_text())
    file = COSTS if len(sys.argv) < 3 or sys.argv[2] == "-" else pathlib.Path(sys.argv[2])
    board = results["checks"]["card"]["rows"]["nvml"]
    source = "%s, %s, %s" % (board["name"], board["driver"], results["date"][:10])
    text, changes = applied(file.read_text(), measured(results), source)
    print("\n".join(changes), file=sys.stderr)
    if sys.argv[2:3] == ["-"]:
        print(text, end="")
    else:
        file.write_text(text)


if __name__ == "__main__":
    main() if len(sys.argv) in (2, 3) else sys.exit(__doc__)
