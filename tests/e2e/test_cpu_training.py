# SPDX-License-Identifier: Apache-2.0
"""Training on the CPU, and things that are no training: each leaves a report, and says the same as without kjoule."""
import pytest

import kj

TORCH = [kj.PYTHON, str(kj.SOURCES / "train_text.py")]


def assert_cpu_energy(run):
    cpu = run.component("cpu")
    assert cpu, run.report["energy"]
    for part in cpu:
        assert part["method"] in ("measured", "modelled")
        assert part["energy_uj"] > 0 and part["low_uj"] <= part["energy_uj"] <= part["high_uj"]
        assert part["source"]
    assert run.report["energy"]["total_uj"] >= sum(part["energy_uj"] for part in cpu) > 0
    assert run.report["carbon"]["total_g"] > 0


def assert_same(run, plain):
    """stdout and status the same; kjoule's lines come after the program's own on stderr."""
    assert (run.status, run.stdout) == (plain.status, plain.stdout), run.stderr.decode()
    assert run.stderr.startswith(plain.stderr)
    summary = run.stderr[len(plain.stderr):].decode()
    assert "CO2e" in summary and str(run.folder) in summary
    assert len(summary.splitlines()) <= 40


def test_openmp_language_model(folder):
    command = kj.lm_train("--steps", 30, "--exit", 3)
    plain = kj.bare(command)
    assert plain.status == 3
    run = kj.wrapped(command, folder)
    assert_same(run, plain)
    assert_cpu_energy(run)
    assert run.report["run"]["exit_status"] == 3
    assert run.report["kernels"] == [] and run.report["devices"] == []


@pytest.mark.parametrize("task,steps", [("classification", 20), ("sentiment", 20), ("translation", 20), ("summarisation", 20),
                                        ("gpt", 6)])
def test_pytorch(folder, task, steps):
    pytest.importorskip("torch", reason="PyTorch is not installed for this python (Debian: python3-torch)")
    command = [*TORCH, task, "--steps", str(steps)]
    plain = kj.bare(command)
    assert plain.status == 0, plain.stderr.decode()
    run = kj.wrapped(command, folder)
    assert_same(run, plain)
    assert_cpu_energy(run)


def test_shell_pipeline(folder):
    command = ["sh", "-c", "seq 1 300000 | sort -rn | tee /dev/stderr | tail -3 | md5sum; exit 4"]
    plain = kj.bare(command)
    run = kj.wrapped(command, folder)
    assert_same(run, plain)
    assert_cpu_energy(run)


def test_standard_input_reaches_the_program(folder):
    run = kj.wrapped(["wc", "-c"], folder, input=b"x" * 100000)
    assert run.stdout.split() == [b"100000"]


def test_preload_without_wrapper(folder):
    """A program that never touches CUDA but runs for over a second gets its report from bare LD_PRELOAD too."""
    command = kj.lm_train("--steps", 100)
    plain = kj.bare(command)
    run = kj.preloaded(command, folder)
    assert (run.status, run.stdout) == (plain.status, plain.stdout)
    assert_cpu_energy(run)


def test_short_helper_leaves_nothing_when_not_wrapped(tmp_path):
    run = kj.preloaded(["true"], tmp_path / "run")
    assert run.status == 0 and run.stdout == run.stderr == b""
    assert list(tmp_path.iterdir()) == []


def test_existing_preload_is_kept(folder, tmp_path):
    library = tmp_path / "libnothing.so"
    kj.subprocess.run(["cc", "-shared", "-o", str(library), "-x", "c", "/dev/null"], check=True)
    run = kj.wrapped(["sh", "-c", "echo $LD_PRELOAD"], folder, env={"LD_PRELOAD": library})
    assert str(library) in run.stdout.decode()


def test_default_folder(tmp_path):
    """Without -o the run folder is ./kjoule.<run-id>."""
    done = kj.kjoule("true", cwd=tmp_path)
    assert done.status == 0, done.stderr
    (made,) = tmp_path.iterdir()
    assert made.name.startswith("kjoule.") and (made.stat().st_mode & 0o777) == 0o700
    kj.read_report(made)


def test_zone_pue_and_factors(folder):
    """E x T x R: each factor is in the report, and the product is right."""
    run = kj.wrapped(kj.lm_train("--steps", 10), folder, options=["--zone", "FR", "--pue", "1.5"])
    carbon, energy = run.report["carbon"], run.report["energy"]
    assert carbon["factor"]["zone"] == "FRA" and carbon["pue"] == 1.5
    assert carbon["factor"]["year"] >= 2020 and carbon["factor"]["source"] and carbon["factor"]["licence"]
    expected = energy["total_uj"] / 3.6e12 * 1.5 * carbon["factor"]["g_per_kwh"]
    assert carbon["total_g"] == pytest.approx(expected, rel=1e-6)


def test_own_factor(folder):
    run = kj.wrapped(["true"], folder, options=["--carbon-intensity", "123"])
    assert run.report["carbon"]["factor"]["g_per_kwh"] == 123


def test_unknown_place_is_the_world(folder):
    run = kj.wrapped(["true"], folder, env={"TZ": "UTC"})
    factor = run.report["carbon"]["factor"]
    if factor["zone"] == "WORLD":
        assert run.report["quality"]["warnings"], "an unknown place must be flagged"
