#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints what a run of the checks found of the card's sensors as rows for tools/power/gpu_sensors.def, and as lines for a script of simgpu.

    apply_sensors.py RESULTS.json

A row counts for one board and one driver: put it above the rows of the architecture, and let a second board agree before it stands for a family.
"""
import json
import pathlib
import re
import sys

ARCHITECTURES = {2: "KEPLER", 3: "MAXWELL", 4: "PASCAL", 5: "VOLTA", 6: "TURING", 7: "AMPERE", 8: "ADA", 9: "HOPPER", 10: "BLACKWELL"}
FIELDS = {"power_usage": "USAGE", "power_average": "AVERAGE", "power_instant": "INSTANT"}


def number(sensor, key):
    value = sensor.get(key)
    value = value.get("value") if isinstance(value, dict) else value
    return value


def rows(results):
    """(rows of the table, lines of a script)"""
    board, sensors = results["checks"]["card"]["rows"]["nvml"], results["checks"]["calibrate"]["rows"]["sensors"]["sensors"]
    name = re.sub(r"^NVIDIA ", "", board["name"])
    table, script = [], []
    for sensor in sensors:
        field, window, period, delay = sensor["channel"], *(number(sensor, key) for key in ("window_ns", "period_ns", "delay_ns"))
        shown = ["%.3g" % ((value or 0) / 1e6) for value in (window, period, delay)]
        if field in FIELDS:
            kernel = "LAG" if "lag" in str(sensor.get("kernel", "")).lower() else "BOX"
            table.append('GPU_SENSOR(%s, "%s", %s, 0, %s, %s, %s, %s, %s, "measured, %s")' % (
                ARCHITECTURES.get(board["Architecture"], "?"), name, board["driver"].split(".")[0], FIELDS[field], kernel, *shown,
                results["date"][:10]))
        if field == "power_instant":
            script.append("sensor window_ms=%s period_ms=%s delay_ms=%s" % tuple(shown))
        elif field == "energy_counter":
            script.append("counter period_ms=%s" % shown[1])
    return table, script


def main():
    table, script = rows(json.loads(pathlib.Path(sys.argv[1]).read_text()))
    print("\n".join(table + ["# simgpu:"] + script))


if __name__ == "__main__":
    main() if len(sys.argv) == 2 else sys.exit(__doc__)
