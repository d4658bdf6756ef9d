"""Sampling the host's engines, and figures over the measured window only."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from wp1.analysis import tables
from wp1.collectors.device import GPUStatsCollector, read_samples
from wp1.hardware import GIB


def _requests(start: float, end: float) -> pl.DataFrame:
    rows = [{"warmup": False, "t_sent": start, "t_end": end}, {"warmup": True, "t_sent": 0.0, "t_end": 0.5}]
    return pl.DataFrame(rows, schema=tables.RECORD_SCHEMA)


def _write(path: Path, *samples: tuple[float, str, float | None, float | None, float | None]) -> None:
    names = ("t", "device", "memory_bytes", "utilisation", "power_w")
    path.write_text("".join(json.dumps(dict(zip(names, sample, strict=True))) + "\n" for sample in samples))


def test_average_and_peak_are_of_the_measured_window(tmp_path: Path) -> None:
    _write(
        tmp_path / "device.jsonl",
        (0.2, "cuda:0", 70 * GIB, 100.0, 700.0),
        (1.0, "cuda:0", 10 * GIB, 40.0, 100.0),
        (2.0, "cuda:0", 20 * GIB, 60.0, None),
        (3.1, "cuda:0", 70 * GIB, 100.0, 700.0),
    )
    found = GPUStatsCollector().profile(tmp_path, _requests(1.0, 3.0))
    assert found["window_s"] == 2.0
    assert found["devices"] == {
        "cuda:0": {
            "kind": "gpu",
            "samples": 2,
            "memory_gib_mean": 15.0,
            "memory_gib_peak": 20.0,
            "utilisation_percent_mean": 50.0,
            "utilisation_percent_peak": 60.0,
            "power_w_mean": 100.0,
            "power_w_peak": 100.0,
        }
    }


def test_without_samples_there_are_no_devices(tmp_path: Path) -> None:
    assert GPUStatsCollector().profile(tmp_path, _requests(1.0, 3.0))["devices"] == {}


def test_a_torn_last_sample_is_left_out(tmp_path: Path) -> None:
    _write(tmp_path / "device.jsonl", (1.0, "host", 1, 2.0, None))
    with (tmp_path / "device.jsonl").open("a") as out:
        out.write('{"t": 2.0, "dev')
    assert read_samples(tmp_path).height == 1


def test_the_host_is_sampled_where_engines_use_no_gpu(tmp_path: Path) -> None:
    work = "x = bytearray(200 << 20)\nwhile True: pass"
    child = subprocess.Popen([sys.executable, "-c", work])
    time.sleep(0.5)
    collector = GPUStatsCollector(hz=20)
    collector.start(tmp_path, [])
    start = time.monotonic()
    time.sleep(1.5)
    collector.stop()
    child.kill()
    child.wait()
    found = collector.profile(tmp_path, _requests(start, time.monotonic()))["devices"]["host"]
    assert found["kind"] == "host"
    assert found["samples"] >= 10
    assert found["memory_gib_peak"] > 200 / 1024
    assert found["utilisation_percent_peak"] > 30
    assert found["power_w_mean"] is None


class FakeNvml:
    """NVML of one card that does not say its power, as MIG slices do not."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.up = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.up += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.up -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=30 * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=87)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        raise self.NVMLError("not supported")


def test_gpus_are_sampled_through_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    collector = GPUStatsCollector(hz=50)
    collector.start(tmp_path, [1])
    start = time.monotonic()
    time.sleep(0.2)
    collector.stop()
    found = collector.profile(tmp_path, _requests(start, time.monotonic()))["devices"]["cuda:1"]
    assert found["kind"] == "gpu"
    assert found["memory_gib_mean"] == 30.0
    assert found["utilisation_percent_peak"] == 87.0
    assert found["power_w_peak"] is None
    assert 5 <= found["samples"] <= 12
    assert nvml.up == 0
