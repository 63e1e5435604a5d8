# SPDX-License-Identifier: Apache-2.0
"""The card's sensors: a raw trace of a square wave, kjoule's calibration, joules of a run against the counter."""
import gzip
import json
import shutil
import subprocess
import time

from . import nvidia
from .bench import Skip, quality_of, said, tail


POLL_LEAST_NS = 50000  # so that the file stays small where NVML answers at once; sensors change every millisecond at most


def polled(nvml, process, out):
    """[(ns of CLOCK_MONOTONIC, counter mJ, instant mW, average mW)] until the process has ended, as fast as NVML answers. All goes into the
    file as it is read, so that a driver that hangs leaves what was read before; the number of samples."""
    rows, samples, newest, last = [], 0, 0, 0.0
    while process.poll() is None:
        now_ns = time.monotonic_ns()
        if rows and now_ns - rows[-1][0] < POLL_LEAST_NS:
            continue
        fields = nvml.fields((nvidia.ENERGY, 0), (nvidia.INSTANT, 0), (nvidia.AVERAGE, 0))
        values = [field.value() for field in fields] or [None] * 3
        if values[0] is None:
            values[0] = nvml.energy_mj()
        if values[1] is None:
            values[1] = nvml.number("nvmlDeviceGetPowerUsage")[0]
        rows.append((now_ns, *values))
        out.write("poll," + ",".join("" if v is None else str(v) for v in rows[-1]) + "\n")
        if time.monotonic() - last > 0.2:
            last, fresh = time.monotonic(), nvml.samples(newest)
            newest = fresh[-1][0] if fresh else newest
            samples += len(fresh)
            out.writelines("sample,%d,%d,%d\n" % (now_ns, *sample) for sample in fresh)
            out.flush()
    return rows, samples


def changes(rows, column):
    """How often a channel changed, and the usual time between two changes."""
    moments = [b[0] for a, b in zip(rows, rows[1:]) if a[column] != b[column]]
    gaps = sorted(b - a for a, b in zip(moments, moments[1:]))
    return {"changes": len(moments), "median_ms_between": gaps[len(gaps) // 2] / 1e6 if gaps else None}


def check_wave(bench):
    """A square wave of 52 ms on and 52 ms off for 20 s, read as fast as NVML answers; all of it in wave.csv.gz."""
    nvml, seconds = nvidia.Nvml(), bench.scaled(20, 2)
    bench.expect(seconds + 5, "square wave")
    process = subprocess.Popen(bench.program("gpu/workload", "square", seconds, 52, 52), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=open(str(bench.work / "wave"), "w"))
    file = bench.out / "wave.csv.gz"
    with gzip.open(str(file), "wt", 6) as out:
        out.write("# kind,CLOCK_MONOTONIC ns,...: poll,counter mJ,instant mW,average mW | sample,NVML's us,mW | on,until ns\n")
        rows, samples = polled(nvml, process, out)
        switched = (bench.work / "wave").read_text().splitlines()
        for line in switched[1:] if process.returncode == 0 else []:
            begin, end = (round(float(moment) * 1e9) for moment in line.split(","))
            out.write("on,%d,%d\n" % (begin, end))
    if process.returncode:
        raise RuntimeError("the wave ended with %d: %s" % (process.returncode, switched[-1:]))
    on_ms = [1e3 * (float(b) - float(a)) for a, b in (line.split(",") for line in switched[1:])]
    yield "wave", {"ok": len(rows) > 10 and file.stat().st_size < 16 << 20, "polls": len(rows),
                   "us_between_polls": (rows[-1][0] - rows[0][0]) / 1e3 / max(1, len(rows) - 1), "samples": samples, "waves": len(on_ms),
                   "on_ms": sorted(on_ms)[len(on_ms) // 2] if on_ms else None, "bytes": file.stat().st_size, "counter": changes(rows, 1),
                   "instant": changes(rows, 2), "average": changes(rows, 3)}


def check_calibrate(bench):
    """kjoule calibrate for 20 s: the shape of each sensor, in the words of gpu_sensors.def; all that was read in calibrate.json.gz."""
    result, raw = bench.work / "sensor.json", bench.work / "raw.json"
    done = bench.run([bench.build / "kjoule", "calibrate", "-q", "--seconds", bench.scaled(20, 10), "-o", result, "--raw", raw], seconds=30,
                     env={"XDG_CACHE_HOME": str(bench.work / "cache")})
    if raw.exists():
        with raw.open("rb") as source, gzip.open(str(bench.out / "calibrate.json.gz"), "wb", 9) as out:
            shutil.copyfileobj(source, out)
    if done.status:
        raise RuntimeError(tail(done.stderr))
    yield "sensors", {"ok": True, **json.loads(result.read_text())}


def check_energy(bench):
    """The report's joules of the device against the counter, read by ourselves around the run."""
    nvml = nvidia.Nvml()
    if nvml.energy_mj() is None:
        raise Skip("the card has no energy counter")
    seconds = bench.scaled(5, 2)
    before_mj, start = nvml.energy_mj(), time.monotonic()
    done, report = bench.wrapped(bench.program("gpu/workload", "square", seconds, 20, 1), seconds=seconds + 5)
    energy_mj, seconds = nvml.energy_mj() - before_mj, time.monotonic() - start
    said(done)
    device = report["devices"][0]
    ratio = device["energy_uj"] / (energy_mj * 1e3) if energy_mj else None
    yield "energy", {"ok": 0.85 < ratio < 1.05 if ratio else None, "ours_over_counter": ratio, "counter_j": energy_mj / 1e3,
                     "seconds": seconds, "device": device, **quality_of(report)}
