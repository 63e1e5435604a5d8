# SPDX-License-Identifier: Apache-2.0
"""The one list of checks, the dearest knowledge first: when the time is up, the rest is left out."""
import glob
import shutil

from . import card, cases, frameworks, sensors, timing
from .bench import Check

# What a check may need, and whether it is here, without starting it. Modules are those of the Python that --python names.
NEEDS = {"nvcc": lambda modules: shutil.which("nvcc") or glob.glob("/usr/local/cuda/bin/nvcc"),
         "compute-sanitizer": lambda modules: shutil.which("compute-sanitizer"), "ncu": lambda modules: shutil.which("ncu"),
         **{name: lambda modules, name=name: name in modules for name in ("torch", "jax", "cupy")}}

CHECKS = [Check(*row) for row in (
    # name              limit_s  needs     function
    ("card",                 20, "",       card.check_card),
    ("doctor",               15, "",       card.check_doctor),
    ("hooks",                20, "",       card.check_hooks),
    ("calls",                45, "",       card.check_calls),
    ("short kernels",        45, "",       timing.check_short_kernels),
    ("early",                40, "",       cases.check_early),
    ("copies",               20, "",       cases.check_copies),
    ("contexts",             30, "",       cases.check_contexts),
    ("graph rows",           45, "",       cases.check_graph_rows),
    ("shapes",               30, "",       cases.check_shapes),
    ("dependent",            20, "",       cases.check_dependent),
    ("names",                20, "",       cases.check_names),
    ("once",                 15, "",       cases.check_once),
    ("wave",                 35, "",       sensors.check_wave),
    ("torch",               100, "torch",  frameworks.check_torch),
    ("torch profiler",       60, "torch",  frameworks.check_torch_profiler),
    ("torch ways",           60, "torch",  frameworks.check_torch_ways),
    ("torch compile",        90, "torch",  frameworks.check_torch_compile),
    ("jax",                  60, "jax",    frameworks.check_jax),
    ("cupy",                 40, "cupy",   frameworks.check_cupy),
    ("compute-sanitizer",    40, "compute-sanitizer", frameworks.check_sanitizer),
    ("ncu",                  40, "ncu",    frameworks.check_ncu),
    ("overhead",             60, "",       frameworks.check_overhead),
    ("ends",                 45, "",       cases.check_ends),
    ("calibrate",            45, "",       sensors.check_calibrate),
    ("gpt",                 120, "torch",  frameworks.check_gpt),
    ("driver programs",      40, "",       cases.check_driver_programs),
    ("graphs",               40, "",       timing.check_graphs),
    ("cupti",                60, "",       timing.check_cupti),
    ("long kernels",         20, "",       timing.check_long_kernels),
    ("energy",               25, "",       sensors.check_energy),
    ("nvcc",                 60, "nvcc",   frameworks.check_nvcc))]
