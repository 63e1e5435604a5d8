# SPDX-License-Identifier: Apache-2.0
"""NVML and the driver API by ctypes: what the checks read for themselves, past kjoule."""
import ctypes
import struct
import time

from .bench import Skip


class Field(ctypes.Structure):
    """nvmlFieldValue_t"""
    _fields_ = [("id", ctypes.c_uint), ("scope", ctypes.c_uint), ("timestamp_us", ctypes.c_longlong), ("latency_us", ctypes.c_longlong),
                ("type", ctypes.c_int), ("status", ctypes.c_int), ("bits", ctypes.c_ubyte * 8)]

    def value(self):
        if self.status:
            return None
        return struct.unpack({0: "<d", 1: "<I4x", 2: "<Q", 3: "<Q", 4: "<q", 5: "<i4x"}.get(self.type, "<Q"), bytes(self.bits))[0]


class Sample(ctypes.Structure):
    """nvmlSample_t"""
    _fields_ = [("timestamp_us", ctypes.c_ulonglong), ("bits", ctypes.c_ubyte * 8)]


ENERGY, AVERAGE, INSTANT = 83, 185, 186  # mJ, mW, mW


class Nvml:
    def __init__(self, index=0):
        try:
            self.library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError as error:
            raise Skip(str(error)) from error
        self.device = ctypes.c_void_p()
        if self.library.nvmlInit_v2() or self.library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self.device)):
            raise Skip("NVML does not open device %d" % index)

    def call(self, function, *arguments):
        """The status, None where there is no such function."""
        try:
            return getattr(self.library, function)(*arguments)
        except AttributeError:
            return None

    def text(self, function, *arguments):
        buffer = ctypes.create_string_buffer(96)
        return None if self.call(function, *arguments, buffer, 96) else buffer.value.decode(errors="replace")

    def number(self, function, *before, kind=ctypes.c_uint):
        """(value or None, status)"""
        value = kind()
        status = self.call(function, self.device, *before, ctypes.byref(value))
        return (None if status or status is None else value.value), status

    def energy_mj(self):
        return self.number("nvmlDeviceGetTotalEnergyConsumption", kind=ctypes.c_ulonglong)[0]

    def fields(self, *wanted):
        """[Field] of (id, scope) pairs, in one call; [] where it does not answer"""
        values = (Field * len(wanted))(*[Field(id=i, scope=s) for i, s in wanted])
        return [] if self.call("nvmlDeviceGetFieldValues", self.device, len(wanted), values) else list(values)

    def samples(self, after_us=0, room=2000):
        """[(timestamp_us, mW)] of the power ring (NVML_TOTAL_POWER_SAMPLES), newer than that"""
        kind, count, rows = ctypes.c_int(), ctypes.c_uint(room), (Sample * room)()
        if self.call("nvmlDeviceGetSamples", self.device, 0, ctypes.c_ulonglong(after_us), ctypes.byref(kind), ctypes.byref(count), rows):
            return []
        return [(row.timestamp_us, struct.unpack("<I4x", bytes(row.bits))[0]) for row in rows[: count.value]]


class Pci(ctypes.Structure):
    """nvmlPciInfo_t"""
    _fields_ = [("legacy", ctypes.c_char * 16), ("domain", ctypes.c_uint), ("bus", ctypes.c_uint), ("device", ctypes.c_uint),
                ("id", ctypes.c_uint), ("subsystem", ctypes.c_uint), ("text", ctypes.c_char * 32)]


def cost_ns(call, times=200):
    """Median host time of a call, of five batches."""
    batches = []
    for _ in range(5):
        start = time.perf_counter_ns()
        for _ in range(times // 5):
            call()
        batches.append((time.perf_counter_ns() - start) / (times // 5))
    return sorted(batches)[2]


class Driver:
    def __init__(self):
        try:
            self.library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise Skip(str(error)) from error
        if self.library.cuInit(0):
            raise Skip("cuInit fails")

    def devices(self):
        count = ctypes.c_int()
        return [] if self.library.cuDeviceGetCount(ctypes.byref(count)) else list(range(count.value))

    def uuid(self, function, device):
        raw = ctypes.create_string_buffer(16)
        try:
            status = getattr(self.library, function)(raw, device)
        except AttributeError:
            return None
        text = raw.raw.hex()
        return None if status else "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))

    def text(self, function, device):
        buffer = ctypes.create_string_buffer(96)
        return None if getattr(self.library, function)(buffer, 96, device) else buffer.value.decode(errors="replace")

    def attribute(self, number, device):
        value = ctypes.c_int()
        return None if self.library.cuDeviceGetAttribute(ctypes.byref(value), number, device) else value.value

    def version(self):
        value = ctypes.c_int()
        return None if self.library.cuDriverGetVersion(ctypes.byref(value)) else value.value


def exports(path):
    """Names that a 64-bit ELF library exports."""
    with open(path, "rb") as file:
        data = file.read()
    at, size, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, at + i * size) for i in range(count)]
    names = set()
    for section in sections:
        if section[1] != 11:  # SHT_DYNSYM
            continue
        strings = sections[section[6]][4]
        for entry in range(section[4], section[4] + section[5], 24):
            name, _, _, index = struct.unpack_from("<IBBH", data, entry)
            if index:
                names.add(data[strings + name : data.index(b"\0", strings + name)].decode(errors="replace"))
    return names
