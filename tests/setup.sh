#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what building (`setup.sh demo`) or building and testing (`setup.sh`) need and what is missing, after saying what.
# Debian and Ubuntu; root or sudo.
set -eu
packages="gcc make libc6-dev libjansson-dev zlib1g-dev python3 python3-jsonschema"
[ "${1:-}" = demo ] || packages="$packages binutils libcmocka-dev python3-pytest python3-torch procps clang-format \
                                libjemalloc2 libtcmalloc-minimal4 musl-tools"
# kjoule-probe and its tests; it is left out where they are missing
[ "${1:-}" = demo ] || packages="$packages clang bpftool libbpf-dev libcap2-bin strace"
missing=""
for p in $packages; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null; then
    echo "kjoule: no apt-get here to install what may be missing; the Debian names are:$missing" >&2
    exit 0
fi
if [ "$(id -u)" = 0 ]; then as_root=""; elif command -v sudo >/dev/null; then as_root=sudo; else
    echo "kjoule: these packages are missing and there is neither root nor sudo to install them:$missing" >&2
    exit 1
fi
echo "kjoule: installing with apt-get:$missing" >&2
$as_root apt-get update -qq
# shellcheck disable=SC2086
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing </dev/null >/dev/null
