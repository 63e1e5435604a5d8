#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs all that the bundle holds:  bash run OUTDIR [options of tests/gpu/check.py]
here=$(cd "${0%/*}" && pwd)
exec python3 "$here/tests/gpu/check.py" "$@"
