#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What a stranger sees first: a small language model trained on this machine's CPU, wrapped; then its report, checked.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build}
python=${PYTHON:-/usr/bin/python3}
folder=$(mktemp -d "${TMPDIR:-/tmp}/kjoule-demo.XXXXXX")/run

echo "\$ kjoule lm_train          # an unmodified C program; kjoule writes to $folder"
"$build/kjoule" run -o "$folder" -- "$build/programs/lm_train" --steps "${STEPS:-80}" --text tests/programs/data/work_and_heat.txt

"$python" - tools/report/schema/kjoule.report.1.json "$folder/report.json" <<'PY'
import json, sys, jsonschema
schema, report = (json.load(open(path)) for path in sys.argv[1:])
jsonschema.validate(report, schema)
print(f"{sys.argv[2]}: valid {report['schema']}")
PY
echo "next: $build/kjoule report $folder --format json | less        $build/kjoule doctor"
