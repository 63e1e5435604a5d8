# SPDX-License-Identifier: Apache-2.0
"""Run under the shim over canary_driver.c by test_shim_doors.py: gets entry points by a door, calls the hooked ones with arguments that
tell each other apart, and checks that the driver saw them in the entry point of the ABI that was asked for. Prints JSON."""
import ctypes
import json
import re
import sys

HOOKS_DEF, DOOR, *REQUESTS = sys.argv[1:]
WORDS = 12
BUFFER = ctypes.create_string_buffer(1 << 16)  # zeroes: what pointers point to


class Record(ctypes.Structure):
    _fields_ = [("symbol", ctypes.c_char_p), ("calls", ctypes.c_uint64), ("words", ctypes.c_uint64 * WORDS)]


driver = ctypes.CDLL("libcuda.so.1")
driver.canary_record.restype = ctypes.POINTER(Record)
driver.canary_owner.restype = driver.canary_expected.restype = ctypes.c_char_p
driver.canary_owner.argtypes = [ctypes.c_void_p]
driver.canary_record.argtypes = [ctypes.c_char_p]
driver.canary_expected.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64]


def signatures():
    """symbol -> list of parameter declarations, of every hooked row."""
    text = re.sub(r"/\*.*?\*/", "", open(HOOKS_DEF).read(), flags=re.S)
    found = {}
    for row in re.finditer(r"^(?!PASS)[A-Z_]+\((cu\w+), (.*?)\)\n(?=[A-Z#\n]|\Z)", text, re.M | re.S):
        # the last two groups in parentheses are the parameters and the arguments
        groups, depth, start = [], 0, 0
        for at, char in enumerate(row[2]):
            if char == "(":
                depth += 1
                start = at + 1 if depth == 1 else start
            elif char == ")":
                depth -= 1
                if depth == 0:
                    groups.append(row[2][start:at])
        found[row[1]] = [] if groups[-2].strip() == "void" else [p.strip() for p in groups[-2].split(",")]
    return found


def canary(index, declaration):
    """(ctypes value, word that the driver must see, bytes of it that count)"""
    base = re.sub(r"\bconst\b", "", declaration).strip()
    if "*" in base:
        value = ctypes.addressof(BUFFER) + 4096 * (index + 1)
        return ctypes.c_void_p(value), value, 8
    kind, name = base.rsplit(" ", 1)
    kind = kind.strip()
    if name == "count" or name.startswith("num_"):  # the shim looks at that many elements
        return ctypes.c_size_t(2), 2, 8 if kind == "size_t" else 4
    if kind == "unsigned char":
        return ctypes.c_ubyte(0xA0 + index), 0xA0 + index, 1
    if kind == "unsigned short":
        return ctypes.c_ushort(0xBE00 + index), 0xBE00 + index, 2
    if kind in ("unsigned", "int", "CUdevice", "CUstreamCaptureMode"):
        return ctypes.c_uint(0xC0DE00 + index), 0xC0DE00 + index, 4
    # size_t, device pointers, handles, function pointers, and CUmemLocation, a pair of ints in one register
    value = 0xFEED00000000 + (index << 20) + 0xF00 + index
    return ctypes.c_uint64(value), value, 8


def call(pointer, symbol, declarations):
    """None, or what was wrong."""
    values = [canary(i, d) for i, d in enumerate(declarations)]
    before = driver.canary_record(symbol.encode())[0].calls
    rc = ctypes.CFUNCTYPE(ctypes.c_int)(pointer)(*[v[0] for v in values])
    record = driver.canary_record(symbol.encode())[0]
    if rc != 0:
        return f"{symbol}: rc {rc}"
    if record.calls != before + 1:
        return f"{symbol}: the driver's function was called {record.calls - before} times"
    for i, (_, wanted, size) in enumerate(values):
        seen = record.words[i] & ((1 << (8 * size)) - 1)
        if seen != wanted:
            return f"{symbol}: argument {i} ({declarations[i]}) arrived as {seen:#x}, not {wanted:#x}"
    return None


def get_proc_address(version):
    """By dlsym, as each runtime does it."""
    if version == 1:
        get = driver.cuGetProcAddress
        get.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64]
        return lambda name, at, flags, ret: get(name, ctypes.addressof(ret), at, flags)
    get = driver.cuGetProcAddress_v2
    get.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p]
    return lambda name, at, flags, ret: get(name, ctypes.addressof(ret), at, flags, None)


def replay(hooked, path):
    """The requests of a runtime: `name version flags` a line. Those of 11.8 came through the four-argument form."""
    get = get_proc_address(1 if "11.8" in path else 2)
    wrong, called, untouched = [], 0, 0
    for line in open(path):
        name, version, flags = line.split()
        pointer = ctypes.c_void_p()
        rc = get(name.encode(), int(version), int(flags), pointer)
        expected = driver.canary_expected(name.encode(), int(version), int(flags))
        if expected is None:
            if pointer.value:
                wrong.append(f"{line.strip()}: a pointer where the driver has none")
            continue
        expected, owner = expected.decode(), driver.canary_owner(pointer)
        if rc != 0 or not pointer.value:
            wrong.append(f"{line.strip()}: rc {rc}, pointer {pointer.value}")
        elif expected not in hooked:
            untouched += 1
            if owner is None or owner.decode() != expected:
                wrong.append(f"{line.strip()}: not hooked, yet the pointer is not the driver's {expected}")
        elif owner is not None:
            wrong.append(f"{line.strip()}: {expected} is hooked, yet the driver's own pointer came back")
        elif not expected.startswith("cuGetProcAddress"):
            called += 1
            problem = call(pointer.value, expected, hooked[expected])
            wrong += [f"{line.strip()}: {problem}"] if problem else []
    return wrong, called, untouched


def main():
    hooked = signatures()
    wrong, called, untouched = [], 0, 0
    if DOOR == "dlsym":
        for symbol, declarations in hooked.items():
            if symbol.startswith("cuGetProcAddress"):
                continue
            pointer = ctypes.cast(getattr(driver, symbol), ctypes.c_void_p).value
            called += 1
            if driver.canary_owner(pointer) is not None:
                wrong.append(f"{symbol}: dlsym gave the driver's own pointer")
            else:
                problem = call(pointer, symbol, declarations)
                wrong += [problem] if problem else []
    elif DOOR == "replay":
        for path in REQUESTS:
            more, some, others = replay(hooked, path)
            wrong, called, untouched = wrong + more, called + some, untouched + others
    elif DOOR == "tomorrow":
        pointer = ctypes.c_void_p()
        get_proc_address(2)(b"cuLaunchKernel", 99000, 0, pointer)
        called = 1
        if driver.canary_owner(pointer) != b"tomorrow":
            wrong.append("an ABI newer than the shim was not passed through")
        pointer = ctypes.c_void_p()
        get_proc_address(2)(b"cuLaunchKernelEx", 99000, 0, pointer)
        if driver.canary_owner(pointer) is not None:
            wrong.append("an ABI asked for at a newer version, but unchanged, was not hooked")
    elif DOOR == "names":
        ctypes.cast(driver.cuLaunchTomorrow, ctypes.c_void_p)
        for name, version in (request.split("@") for request in REQUESTS):
            pointer = ctypes.c_void_p()
            get_proc_address(2)(name.encode(), int(version), 0, pointer)
            if pointer.value and driver.canary_owner(pointer) != b"tomorrow" and "Tomorrow" in name:
                wrong.append(f"{name}: not passed through")
            called += 1
    elif DOOR == "renamed":  # which ABI goes by which name is the driver's to say
        for name, expected in (("cuLaunchHostFunc", "cuLaunchHostFunc"), ("cuLaunchHostFunc_v2", "cuLaunchHostFunc_v2")):
            for flags, lane in ((0, ""), (2, "_ptsz")):
                pointer = ctypes.c_void_p()
                get_proc_address(2)(name.encode(), 13030, flags, pointer)
                if driver.canary_owner(pointer) is not None:
                    wrong.append(f"{name}: not hooked")
                else:
                    problem = call(pointer.value, expected + lane, hooked[expected + lane])
                    wrong += [problem] if problem else []
                called += 1
    print(json.dumps({"wrong": wrong, "called": called, "untouched": untouched, "hooked": len(hooked)}))


main()
