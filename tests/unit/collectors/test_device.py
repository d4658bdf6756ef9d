"""Sampling the host's engines, and figures over the measured window only."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from wp1.analysis.base import tables
from wp1.analysis.base.run_tables import RunTables
from wp1.collectors.device import GPUStatsCollector
from wp1.machine.hardware import GIB


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
    found = GPUStatsCollector().profile(RunTables(tmp_path), _requests(1.0, 3.0))
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
            "idle": None,
        }
    }


def test_without_samples_there_are_no_devices(tmp_path: Path) -> None:
    assert GPUStatsCollector().profile(RunTables(tmp_path), _requests(1.0, 3.0))["devices"] == {}


def test_a_torn_last_sample_is_left_out(tmp_path: Path) -> None:
    _write(tmp_path / "device.jsonl", (1.0, "host", 1, 2.0, None))
    with (tmp_path / "device.jsonl").open("a") as out:
        out.write('{"t": 2.0, "dev')
    assert tables.device_samples(tmp_path / "device.jsonl").height == 1


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
    found = collector.profile(RunTables(tmp_path), _requests(start, time.monotonic()))["devices"]["host"]
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

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        raise self.NVMLError("not supported")

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:  # noqa: N802
        return [1, 1]


def test_gpus_are_sampled_through_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    collector = GPUStatsCollector(hz=50)
    collector.start(tmp_path, [1])
    start = time.monotonic()
    time.sleep(0.2)
    collector.stop()
    found = collector.profile(RunTables(tmp_path), _requests(start, time.monotonic()))["devices"]["cuda:1"]
    assert found["kind"] == "gpu"
    assert found["memory_gib_mean"] == 30.0
    assert found["utilisation_percent_peak"] == 87.0
    assert found["power_w_peak"] is None
    assert 5 <= found["samples"] <= 12
    assert nvml.up == 0
    # Each thing it does not say is told once, and that it is split.
    assert len(tables.device_samples(tmp_path / "device.jsonl")["note"].drop_nulls()) == 3


def test_what_nvml_refuses_is_a_line_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(FakeNvml):
        def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
            if index == 2:
                raise self.NVMLError("Insufficient Permissions")
            return index

    monkeypatch.setitem(sys.modules, "pynvml", Refuses())  # type: ignore[arg-type]
    collector = GPUStatsCollector(hz=50)
    collector.start(tmp_path, [0, 2])
    start = time.monotonic()
    time.sleep(0.1)
    collector.stop()
    found = collector.profile(RunTables(tmp_path), _requests(start, time.monotonic()))
    assert list(found["devices"]) == ["cuda:0"]
    assert "cuda:2 was not sampled: NVML denies access (Insufficient Permissions); ask for permission" in found["notes"]
    assert "cuda:0: NVML does not report power (not supported)" in found["notes"]
    assert found["energy"] is None


def test_no_driver_is_a_line_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent(FakeNvml):
        def nvmlInit(self) -> None:  # noqa: N802
            raise self.NVMLError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", Absent())  # type: ignore[arg-type]
    collector = GPUStatsCollector(hz=50)
    collector.start(tmp_path, [0])
    time.sleep(0.05)
    collector.stop()
    assert collector.profile(RunTables(tmp_path), _requests(0, 1))["notes"] == [
        "no GPU was sampled, because NVML cannot be used (Driver Not Loaded)"
    ]


def _gpu(t: float, watts: float | None, joules: float | None, device: str = "cuda:0") -> str:
    sample = {"t": t, "device": device, "memory_bytes": GIB, "utilisation": 1.0, "power_w": watts, "energy_j": joules}
    return json.dumps(sample | {"note": None}) + "\n"


def _two(*spans: tuple[float, float]) -> pl.DataFrame:
    rows = [
        {"warmup": False, "status": "ok", "arm": "agg", "cell": f"c{n}", "t_sent": a, "t_end": b, "output_tokens": 10}
        for n, (a, b) in enumerate(spans)
    ]
    return pl.DataFrame(rows, schema=tables.RECORD_SCHEMA)


@pytest.mark.parametrize("counter", [True, False])
def test_energy_is_of_the_time_with_requests_and_all_cards(tmp_path: Path, counter: bool) -> None:
    lines = [
        _gpu(t, None if counter else 100.0, 100.0 * t if counter else None, device)
        for t in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
        for device in ("cuda:0", "cuda:1")
    ]
    (tmp_path / "device.jsonl").write_text("".join(lines))
    found = GPUStatsCollector().profile(RunTables(tmp_path), _two((0.5, 1.5), (3.0, 4.5)))
    # 100 W on each of two cards, for 1 s and for 1.5 s; the pause between is nobody's.
    assert found["energy"]["joules"] == pytest.approx(500)
    assert found["energy"]["joules_per_output_token"] == pytest.approx(25)
    assert found["energy"]["from"] == ("counter" if counter else "power")
    assert found["cells"]["agg/c0"]["energy"]["joules"] == pytest.approx(200)
    assert found["window_s"] == 2.5


def test_idle_is_apart_from_load(tmp_path: Path) -> None:
    lines = [_gpu(t, 100.0 if t < 2 else 300.0, None) for t in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)]
    (tmp_path / "device.jsonl").write_text("".join(lines))
    metadata = {"run_id": "run", "experiment": "e0", "starts": [{"arm": "agg", "idle": [0.4, 1.6]}]}
    (tmp_path / "run_metadata.json").write_text(json.dumps(metadata))
    found = GPUStatsCollector().profile(RunTables(tmp_path), _two((2.0, 4.0)))["devices"]["cuda:0"]
    assert (found["power_w_mean"], found["samples"]) == (300, 3)
    assert (found["idle"]["power_w_mean"], found["idle"]["samples"]) == (100, 3)
