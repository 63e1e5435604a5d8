# SPDX-License-Identifier: Apache-2.0
"""What is there: the card, its driver and NVML, what the hooks meet, what the driver's calls cost."""
import os
import platform
import re
import shutil
import time

from . import nvidia
from .bench import ROOT, lines_of, quality_of, tail

# NVML's fields around energy and power, and their scopes: board, memory, module (0 to 2 where a scope counts)
FIELDS = [(nvidia.ENERGY, 0), (nvidia.AVERAGE, 0), (nvidia.AVERAGE, 1), (nvidia.INSTANT, 0), (nvidia.INSTANT, 1), (nvidia.INSTANT, 2),
          (187, 0), (188, 0), (189, 0), (190, 0), (191, 0), (192, 0)]
ATTRIBUTES = {"multiprocessors": 16, "clock_khz": 13, "major": 75, "minor": 76, "memory_clock_khz": 36, "async_engines": 40, "integrated": 18,
              "concurrent_kernels": 31, "compute_mode": 20, "pageable_memory": 88, "mps": 133}


def machine():
    """Of the computer, and the versions; no driver is asked."""
    cpu = ""
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            cpu = line.split(":")[1].strip()
            break
    return {"system": platform.platform(), "glibc": platform.libc_ver()[1], "cpu": cpu, "cpus": os.cpu_count(),
            "python": platform.python_version(), "clock_ticks": os.sysconf("SC_CLK_TCK"), "uid": os.getuid()}


def mapped(name):
    """The file of a loaded library."""
    for line in open("/proc/self/maps"):
        if name in line:
            return line.split()[-1]
    return None


def check_card(bench):
    """The card as NVML and the driver name it: a wrong match of the two is a wrong device in every report."""
    yield "machine", machine()
    nvml = nvidia.Nvml()
    pci = nvidia.Pci()
    nvml.call("nvmlDeviceGetPciInfo_v3", nvml.device, nvidia.ctypes.byref(pci))
    mig = (nvidia.ctypes.c_uint(), nvidia.ctypes.c_uint())
    mig_status = nvml.call("nvmlDeviceGetMigMode", nvml.device, *map(nvidia.ctypes.byref, mig))
    board = {"name": nvml.text("nvmlDeviceGetName", nvml.device), "uuid": nvml.text("nvmlDeviceGetUUID", nvml.device),
             "driver": nvml.text("nvmlSystemGetDriverVersion"), "nvml": nvml.text("nvmlSystemGetNVMLVersion"),
             "vbios": nvml.text("nvmlDeviceGetVbiosVersion", nvml.device), "pci": pci.text.decode(), "mig_status": mig_status,
             "mig": mig[0].value}
    for what in ("Architecture", "EnforcedPowerLimit", "PowerManagementLimit", "PowerManagementDefaultLimit", "PersistenceMode", "PowerUsage",
                 "PerformanceState", "Temperature"):
        before = (0,) if what == "Temperature" else ()
        board[what], status = nvml.number("nvmlDeviceGet" + what, *before)
        if board[what] is None:
            board[what] = "status %s" % status
    yield "nvml", board
    driver = nvidia.Driver()
    for device in driver.devices():
        facts = {"name": driver.text("cuDeviceGetName", device), "uuid": driver.uuid("cuDeviceGetUuid", device),
                 "uuid_v2": driver.uuid("cuDeviceGetUuid_v2", device), "pci": driver.text("cuDeviceGetPCIBusId", device),
                 "version": driver.version(), "library": os.path.realpath(mapped("libcuda.so") or "")}
        facts.update({name: driver.attribute(number, device) for name, number in ATTRIBUTES.items()})
        if device == 0 and not board["mig"]:
            facts["ok"] = board["uuid"] in ("GPU-%s" % facts["uuid"], "GPU-%s" % facts["uuid_v2"])
        yield "driver, device %d" % device, facts
    yield "nvml fields", nvml_fields(nvml)
    smi = shutil.which("nvidia-smi")
    if smi:
        yield "nvidia-smi", {"text": bench.run([smi, "-q", "-i", "0"], seconds=10).stdout[:16000]}


def nvml_fields(nvml):
    """Which answer, with what type and age, and what asking costs."""
    figures = {}
    for identifier, scope in FIELDS:
        found = nvml.fields((identifier, scope))
        figures["%d, scope %d" % (identifier, scope)] = "no answer" if not found else {
            "status": found[0].status, "type": found[0].type, "value": found[0].value(), "timestamp_us": found[0].timestamp_us,
            "realtime_us": time.time_ns() // 1000, "latency_us": found[0].latency_us,
            "call_ns": round(nvidia.cost_ns(lambda: nvml.fields((identifier, scope))))}
    figures["counter, call_ns"] = round(nvidia.cost_ns(nvml.energy_mj))
    figures["usage, call_ns"] = round(nvidia.cost_ns(lambda: nvml.number("nvmlDeviceGetPowerUsage")))
    ring = nvml.samples()
    figures["ring"] = {"samples": len(ring), "call_ns": round(nvidia.cost_ns(nvml.samples, 20)), "newest_us": ring[-1][0] if ring else None,
                       "realtime_us": time.time_ns() // 1000, "monotonic_us": time.monotonic_ns() // 1000,
                       "periods_us": sorted({b[0] - a[0] for a, b in zip(ring, ring[1:])})[:20]}
    return figures


def check_doctor(bench):
    """What kjoule itself says of the machine."""
    done = bench.run([bench.build / "kjoule", "doctor"], seconds=5)
    yield "doctor", {"ok": done.status == 0 and bool(re.search(r"nvml\s.*accepted|accepted.*nvml", done.stdout)), "text": done.stdout[:6000],
                     "stderr": tail(done.stderr)}


def rows_of(name, folder):
    """The symbols of a table of the project, as the bundle or the tree has it."""
    for path in (ROOT / "build" / name, ROOT / folder / name):
        if path.exists():
            return set(re.findall(r"^[A-Z_]+\((cu\w+),", path.read_text(), re.M))
    return set()


def check_hooks(bench):
    """Every row of hooks.def, by name and by symbol, alone and under kjoule; and what the driver has that we never heard of."""
    command = bench.program("gpu/hooks")
    for how, done in (("alone", bench.run(command, seconds=10)), ("under kjoule", bench.wrapped(command, seconds=10)[0])):
        lines = lines_of(done)
        counts = lines.pop() if lines and "hooks" in lines[-1] else {}
        wrong = [row for row in lines if "hook" in row and not row["newer_than_driver"]]
        yield how, {**counts, "ok": done.status == 0 and bool(counts) and not wrong, "different": lines[:60], "stderr": tail(done.stderr)}
    nvidia.Driver()
    hooks = rows_of("hooks.def", "shim")
    known = hooks | rows_of("cuda_exports.def", "tests/simgpu")
    names = {name for name in nvidia.exports(mapped("libcuda.so")) if re.match(r"cu[A-Z]", name)}
    yield "exports", {"count": len(names), "known to neither hooks.def nor cuda_exports.def": sorted(names - known)[:300],
                      "hooked and not exported": sorted(hooks - names)[:100], "known and not exported": len(known - names)}


def check_calls(bench):
    """What the driver's calls cost, which wait for the device, how events behave: the constants of tests/simgpu."""
    done = bench.run(bench.program("gpu/calls", bench.scaled(15, 3)), seconds=30)
    rows = lines_of(done)
    yield "calls", {"ok": done.status == 0, "stderr": tail(done.stderr), "table": [row for row in rows if "call" in row]}
    waits = {}
    for row in rows:
        if "waits" in row:
            waits.setdefault(", ".join(filter(None, (row["waits"], row["variant"]))), {})[row["behind"] + ", ms"] = row["ms"]
    yield "waits for the device", waits
    yield "events", {row["fact"]: row["value"] for row in rows if "fact" in row}
    yield "report of it", quality_of(bench.wrapped(bench.program("gpu/calls", 3), seconds=30)[1])
