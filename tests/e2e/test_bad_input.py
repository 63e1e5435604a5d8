# SPDX-License-Identifier: Apache-2.0
"""Bad input: one clear line, exit 2 (126, 127 for the command), nothing run, nothing overwritten."""
import json
import shutil

import pytest

import kj


def assert_one_line(done, status, *words):
    text = done.stderr.decode()
    assert done.status == status, text
    assert done.stdout == b""
    assert len(text.splitlines()) == 1 and text.startswith("kjoule: ") and text.endswith("\n"), text
    for word in words:
        assert word.lower() in text.lower(), text


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "the-command-ran"


@pytest.mark.parametrize("options,words", [
    (["--no-such-option"], ["--no-such-option"]),
    (["--ouput", "x"], ["--ouput", "--output"]),
    (["--zone", "FRX"], ["FRX", "FR"]),
    (["--zone", "Frnce"], ["France"]),
    (["--zone", "aws:eu-west-33"], ["eu-west-3"]),
    (["--pue", "-1"], ["pue", "-1"]),
    (["--pue", "0.5"], ["pue"]),
    (["--pue", "much"], ["pue", "much"]),
    (["--pue", "nan"], ["pue"]),
    (["--pue", "inf"], ["pue"]),
    (["--carbon-intensity", "-3"], ["carbon-intensity"]),
    (["--interval", "0"], ["interval"]),
    (["--interval", "1e30"], ["interval"]),
    (["--timing", "often"], ["timing", "often"]),
    (["--phase-walk=often"], ["phase-walk", "often", "0 to 20"]),
    (["--phase-walk=21"], ["phase-walk", "21"]),
    (["--phase-walk=-1"], ["phase-walk", "-1"]),
    (["--phase-walk=nan"], ["phase-walk"]),
    (["--phase-walk=2%"], ["phase-walk", "2%"]),
    (["--phase-walk", "3"], ["--phase-walk=3"]),
    (["--replay-power", "/no/such/file"], ["/no/such/file"]),
    (["--per", "tokens"], ["per"]),
    (["--per", "tokens=-1"], ["per"]),
    (["-o", "/proc/nowhere/run"], ["/proc/nowhere"]),
    (["-o", "/dev/null/run"], ["/dev/null"]),
])
def test_bad_option(tmp_path, marker, options, words):
    done = kj.kjoule("run", *options, "--", "touch", marker, cwd=tmp_path)
    assert_one_line(done, 2, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name,value", [("KJOULE_PUE", "-1"), ("KJOULE_ZONE", "Frnce"), ("KJOULE_INTERVAL", "soon"),
                                        ("KJOULE_PHASE_WALK", "yes")])
def test_bad_environment(tmp_path, marker, name, value):
    done = kj.kjoule("run", "--", "touch", marker, cwd=tmp_path, env={name: value})
    assert_one_line(done, 2, value)
    assert list(tmp_path.iterdir()) == []


def test_unknown_name_in_the_environment_warns(folder):
    run = kj.wrapped(["true"], folder, env={"KJOULE_ZOEN": "FR"})
    assert run.status == 0 and "KJOULE_ZOEN" in run.stderr.decode() and "KJOULE_ZONE" in run.stderr.decode()


@pytest.mark.parametrize("arguments", [["run"], ["run", "--"], ["report"], ["no-such-command-or-program-anywhere", "x"]])
def test_nothing_to_run(tmp_path, arguments):
    done = kj.kjoule(*arguments, cwd=tmp_path)
    assert done.status in (2, 127) and done.stdout == b""
    assert len(done.stderr.decode().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_command_not_found(tmp_path):
    assert_one_line(kj.kjoule("run", "--", "no-such-program", cwd=tmp_path), 127, "no-such-program")
    assert list(tmp_path.iterdir()) == []


def test_command_not_executable(tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text("not a program\n")
    plain.chmod(0o644)
    assert_one_line(kj.kjoule("run", "--", plain, cwd=tmp_path), 126, "plain.txt")
    assert list(tmp_path.iterdir()) == [plain]


def test_folder_in_use_is_not_overwritten(folder):
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    assert_one_line(kj.wrapped(["true"], folder), 2, str(folder))
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    run = kj.wrapped(["true"], folder)
    assert run.report
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def test_report_again(copy):
    (copy / "report.json").unlink()
    done = kj.kjoule("report", copy, "--format", "json")
    assert done.status == 0
    kj.check_report(json.loads(done.stdout))
    assert b"CO2e" in kj.kjoule("report", copy, "--format", "text").stdout


def test_report_of_nothing(tmp_path):
    assert_one_line(kj.kjoule("report", tmp_path / "gone"), 2, "gone")
    assert_one_line(kj.kjoule("report", tmp_path), 2, str(tmp_path))
    (tmp_path / "file").write_text("x")
    assert_one_line(kj.kjoule("report", tmp_path / "file"), 2, "file")


def test_report_of_a_truncated_run(copy):
    text = (copy / "run.json").read_text()
    (copy / "run.json").write_text(text[: len(text) // 2])
    assert_one_line(kj.kjoule("report", copy), 2, "run.json")
    (copy / "run.json").write_text("")
    assert_one_line(kj.kjoule("report", copy), 2, "run.json")


def test_report_of_a_newer_version(copy):
    run = json.loads((copy / "run.json").read_text())
    run["schema"] = "kjoule.run/999"
    (copy / "run.json").write_text(json.dumps(run))
    assert_one_line(kj.kjoule("report", copy), 2, "newer")


def test_report_with_a_broken_ledger(copy):
    """A corrupt ledger is a named error beside the rest of the report."""
    (copy / "ledger.4711.1").write_bytes(b"\xff" * 5000)
    done = kj.kjoule("report", copy, "--format", "json")
    assert done.status == 0, done.stderr
    assert "ledger.4711.1" in json.dumps(kj.check_report(json.loads(done.stdout))["quality"])


def test_report_with_a_truncated_series(copy):
    for series in copy.glob("series.*.csv"):
        data = series.read_bytes()
        series.write_bytes(data[: len(data) * 2 // 3])
    done = kj.kjoule("report", copy, "--format", "json")
    assert done.status == 0, done.stderr
    kj.check_report(json.loads(done.stdout))


def test_report_format_and_zone(copy):
    assert_one_line(kj.kjoule("report", copy, "--format", "tape"), 2, "tape", "json")
    assert_one_line(kj.kjoule("report", copy, "--zone", "Frnce"), 2, "France")


def test_report_to_a_file(copy, tmp_path):
    out = tmp_path / "out.json"
    done = kj.kjoule("report", copy, "--format", "json", "-o", out)
    assert done.status == 0 and done.stdout == b""
    kj.check_report(json.loads(out.read_text()))
    assert_one_line(kj.kjoule("report", copy, "-o", "/proc/nowhere/out"), 2, "/proc/nowhere")
