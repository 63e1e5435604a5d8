#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes the virtual environment of `make test-torch` once: PyTorch's CUDA build and transformers from PyPI, some 7 GB, kept in a cache.
#     venv.sh FOLDER
set -eu
folder=$1
[ -e "$folder/complete" ] && exit 0
free_mib=$(df -Pm "$(dirname "$folder")" 2>/dev/null | awk 'NR==2{print $4}')
if [ "${free_mib:-16000}" -lt 15000 ]; then
    echo "kjoule: PyTorch's CUDA build takes some 7 GB and as much again while it is unpacked; only $free_mib MiB are free at $folder" >&2
    exit 1
fi
echo "kjoule: installing PyTorch's CUDA build with pip, some 7 GB, into $folder" >&2
rm -rf "$folder"
python3 -m venv "$folder"
"$folder/bin/pip" install -q --disable-pip-version-check --no-cache-dir torch==2.9.1 transformers==5.24.0 accelerate==1.15.0 numpy
touch "$folder/complete"
