# SPDX-License-Identifier: Apache-2.0
"""kjoule calibrate on simulated boards whose sensors are scripted: it finds what the script says, later runs use it, and what is not
to be trusted is not."""
import json
import os
import subprocess
import time

import pytest

import kj

KERNEL = "kernel kjoule_calibrate duration_us=500 power=420\npower idle=60 context=85\n"
UUID = "GPU-5eed0000-6b6a-4075-806c-6573696d7500"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def calibrate(sim, cache, *arguments, **env):
    return kj.kjoule("calibrate", "-q", "--seconds", "10", "-o", "-", *arguments, env={**sim.env, "XDG_CACHE_HOME": cache, **env})


def found(run):
    assert run.status == 0, run.stderr.decode()
    result = json.loads(run.stdout)
    assert result["schema"] == "kjoule.sensor/1" and result["uuid"] == UUID
    return {sensor["channel"]: sensor for sensor in result["sensors"]}, result


def near(got, truth, within):
    assert got["low"] <= got["value"] <= got["high"]
    return abs(got["value"] - truth) <= within


def test_box_sensor_counter_and_ring(make_sim, cache, folder):
    sim = make_sim(KERNEL + "sensor window_ms=25 period_ms=100 delay_ms=8 noise=0.005\nring period_ms=20 window_ms=20 clock=boottime\n")
    sensors, result = found(calibrate(sim, cache, "--gain", "0.954,0.015"))
    power, counter, ring = (sensors[n] for n in ("power_instant", "energy_counter", "power_samples"))
    assert power["kernel"] == "box" and near(power["window_ns"], 25e6, 2.5e6)
    assert near(power["period_ns"], 100e6, 1e6) and near(power["delay_ns"], 8e6, 3e6)
    assert near(power["on_mw"], 420e3, 8e3) and near(power["off_mw"], 85e3, 8e3)
    assert near(result["steady_on_mw"], 420e3, 8e3) and near(result["steady_off_mw"], 85e3, 3e3)
    assert counter["sub_sampled"] is False and counter["window_ns"]["value"] == 0 and near(counter["period_ns"], 100e6, 1e6)
    assert near(counter["on_mw"], 420e3, 8e3) and counter["wander"] < 0.03
    assert ring["kernel"] == "box" and near(ring["window_ns"], 20e6, 3e6) and near(ring["period_ns"], 20e6, 0.4e6)

    # the next run knows it by itself, and takes the user's gain off
    env = {**sim.env, "XDG_CACHE_HOME": cache}
    run = kj.wrapped([kj.program("cuda_driver"), "--steps", "100"], folder, env=env)
    shapes = {s["channel"]: s for s in run.report["energy"]["sensors"]}
    assert {s["shape"] for s in shapes.values()} == {"calibrated"}
    assert abs(shapes["power_instant"]["window_ns"] - power["window_ns"]["value"]) <= 1
    assert shapes["power_instant"]["gain"] == 0.954 and abs(shapes["power_instant"]["gain_sd"] - 0.015 / 0.954) < 1e-4
    assert b"(25" in run.stderr and b"calibrated" in run.stderr
    doctor = kj.kjoule("doctor", env=env)
    assert b"better: kjoule calibrate" not in doctor.stdout and b"1 calibrated" in doctor.stdout

    # a second calibration keeps the gain; a broken file, or one of somebody else's, is refused in one line
    (file,) = (cache / "kjoule").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    run = kj.wrapped([kj.program("cuda_driver"), "--steps", "100"], folder.with_name("broken"), env=env)
    (warning,) = [w for w in run.report["quality"]["warnings"] if "calibration not used" in w]
    assert "no JSON" in warning and "\n" not in warning
    assert {s["channel"]: s["shape"] for s in run.report["energy"]["sensors"]}["power_instant"] == "table"
    file.write_text(whole)
    if os.geteuid() == 0:
        os.chown(file, 65534, 65534)
        run = kj.wrapped([kj.program("cuda_driver"), "--steps", "100"], folder.with_name("foreign"), env=env)
        (warning,) = [w for w in run.report["quality"]["warnings"] if "calibration not used" in w]
        assert "belongs to another user" in warning


def test_counter_that_samples(make_sim, cache):
    sim = make_sim(KERNEL + "board name=Tesla_V100-SXM2-32GB architecture=5 driver=535.104.05\n"
                   "sensor window_ms=10 period_ms=20\ncounter window_ms=25 period_ms=100\nrefuse ring\n")
    sensors, result = found(calibrate(sim, cache))
    assert result["driver"] == "535.104.05" and result["gain"] is None and "power_samples" not in sensors
    assert near(sensors["power_instant"]["window_ns"], 10e6, 1.5e6) and near(sensors["power_instant"]["period_ns"], 20e6, 0.4e6)
    counter = sensors["energy_counter"]
    assert counter["sub_sampled"] is True and near(counter["window_ns"], 25e6, 3.5e6) and counter["wander"] > 0.05


def test_lagged_sensor(make_sim, cache):
    sim = make_sim(KERNEL + "board name=Tesla_M40 architecture=3 driver=470.10\nsensor lag_ms=100 period_ms=50\nrefuse counter\nrefuse ring\n")
    sensors, _ = found(calibrate(sim, cache))
    power = sensors["power_instant"]
    assert power["kernel"] == "lag" and near(power["window_ns"], 100e6, 12e6) and near(power["period_ns"], 50e6, 1e6)
    assert near(power["delay_ns"], 0, 5e6)


def refused(run, *words, status=125):
    lines = run.stderr.decode().strip().splitlines()
    assert run.status == status and len(lines) == 1, (run.status, lines)
    for word in words:
        assert word in lines[0], lines
    assert run.stdout == b""


def test_refusals(make_sim, cache, tmp_path):
    sim = make_sim(KERNEL)
    refused(calibrate(sim, cache, LD_LIBRARY_PATH=str(tmp_path)), "libnvidia-ml.so.1")
    refused(calibrate(sim, cache, "--device", "7"), "no such GPU")
    refused(calibrate(sim, cache, "--device", "GPU-12"), "no such GPU")
    refused(calibrate(sim, cache, "--seconds", "3"), "10 to 600", status=2)
    refused(calibrate(sim, cache, "--gain", "7"), "--gain", status=2)
    refused(calibrate(sim, cache, "--gain"), "needs a value", status=2)
    refused(calibrate(sim, cache, "--frobnicate"), "--frobnicate", status=2)
    busy = subprocess.Popen([kj.program("cuda_driver"), "--steps", "1000000"], env=kj.environment(sim.env), stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        refused(calibrate(sim, cache), "in use by 1 process", str(busy.pid))
    finally:
        busy.kill()
        busy.wait()
    only_nvml = tmp_path / "nvml"
    only_nvml.mkdir()
    (only_nvml / "libnvidia-ml.so.1").symlink_to(kj.SIMGPU / "libnvidia-ml.so.1")
    refused(calibrate(sim, cache, LD_LIBRARY_PATH=str(only_nvml)), "libcuda.so.1")
    assert not cache.exists()
