#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Links for an older glibc than this machine's, without one at hand.

    old_glibc.py stubs FOLDER VERSION CC    makes FOLDER/libc.so.6, libm.so.6, ...: what a linker has to see of glibc VERSION
    old_glibc.py check VERSION FILE...      fails if a file needs a newer glibc than VERSION, or a library that is not glibc's

A glibc keeps the old versions of every symbol that it ever gave a new one. A stub lists each symbol of this machine's glibc at its
newest version that VERSION has, so a link against the stubs takes that one, and fails by itself where VERSION has none:
old_glibc.c holds those few. Before 2.34 part of the symbols were in libpthread, libdl and librt: a program linked here names
these as needed, too, and the loader finds its symbols in whichever has them.
"""
import pathlib
import re
import subprocess
import sys

LIBRARIES = ("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1")
LOADER = re.compile(r"ld-linux.*\.so\.\d")
LINE = re.compile(r"\s*\d+: \w+\s+(\w+)\s+(TLS|FUNC|OBJECT|IFUNC|NOTYPE)\s+(GLOBAL|WEAK)\s+\w+\s+(\w+) ([^@ ]+)@@?(GLIBC_([\d.]+))(?: |$)")


def number(version):
    return tuple(int(part) for part in version.split("."))


def readelf(*arguments):
    return subprocess.run(["readelf", "-W", *map(str, arguments)], check=True, stdout=subprocess.PIPE, universal_newlines=True).stdout


def symbols(library, newest):
    """{name: (version's name, is it data, its size, is it weak)} of the newest version of each that is not newer."""
    found = {}
    for line in readelf("--dyn-syms", library).splitlines():
        row = LINE.match(line)
        if not row or row.group(4) == "UND" or number(row.group(7)) > newest:
            continue
        size, kind, binding, _, name, version, digits = row.groups()
        if kind == "TLS" or (name in found and number(found[name][0][6:]) > number(digits)):
            continue
        found[name] = (version, kind == "OBJECT", int(size, 0), binding == "WEAK")
    return found


def write_stub(folder, soname, found, compiler):
    """A library of that name whose symbols do nothing; it is linked against and never loaded."""
    text, versions = [".text"], {}
    for i, (name, (version, data, size, weak)) in enumerate(sorted(found.items())):
        versions.setdefault(version, []).append(name)
        text += [".bss" if data else ".text", ".balign 32", ".%s stub%d" % ("weak" if weak else "globl", i),
                 ".type stub%d, %%%s" % (i, "object" if data else "function"), ".size stub%d, %d" % (i, max(size, 1)), "stub%d:" % i,
                 ".zero %d" % max(size, 1), ".symver stub%d, %s@@%s" % (i, name, version)]
    nodes = sorted(versions, key=lambda v: number(v[6:]))
    script = "".join("%s { global: %s; %s};\n" % (v, "; ".join(versions[v]), "" if i else "local: stub*; ") for i, v in enumerate(nodes))
    source, map_file = folder / (soname + ".S"), folder / (soname + ".map")
    source.write_text("\n".join(text + ['.section .note.GNU-stack,"",%progbits', ""]))
    map_file.write_text(script)
    subprocess.run([compiler, "-shared", "-nostdlib", "-o", str(folder / soname), str(source), "-Wl,-soname," + soname]
                   + (["-Wl,--version-script=%s" % map_file] if nodes else []), check=True)


def stubs(folder, newest, compiler):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    where = lambda name: subprocess.run([compiler, "-print-file-name=" + name], check=True, stdout=subprocess.PIPE,
                                        universal_newlines=True).stdout.strip()
    loader = LOADER.search(readelf("-d", where("libc.so.6"))).group()
    for soname in LIBRARIES + (loader,):
        write_stub(folder, soname, symbols(where(soname), number(newest)), compiler)


def check(newest, files):
    wrong = 0
    for file in files:
        dynamic = readelf("-d", file)
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
        for library in needed:
            if library not in LIBRARIES and not LOADER.match(library):
                print("%s needs %s, which is not glibc's" % (file, library), file=sys.stderr)
                wrong += 1
        for version in set(re.findall(r"Name: GLIBC_([\d.]+)", readelf("-V", file))):
            if number(version) > number(newest):
                print("%s needs glibc %s" % (file, version), file=sys.stderr)
                wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] == "stubs":
        sys.exit(stubs(*sys.argv[2:]))
    if len(sys.argv) > 3 and sys.argv[1] == "check":
        sys.exit(check(sys.argv[2], sys.argv[3:]))
    sys.exit(__doc__)
