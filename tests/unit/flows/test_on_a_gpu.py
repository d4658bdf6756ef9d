"""The files of a run on a machine with a GPU, with doubles of NVML and the engine: stated peaks, idle power, energy."""

import itertools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import Compose
from tests.double import TINY
from wp1.core.run_folder import read_json
from wp1.machine import hardware
from wp1.runner import run as run_module
from wp1.runner.console import Screen

RUN_ID = "run-20260101T000000Z-00000000"


class Nvml:
    """One H100 that draws 100 W more at every look."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self._watts = itertools.count(100, 100)
        self._joules = itertools.count(0, 50_000)

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:  # noqa: N802
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=70 << 30)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=90)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return next(self._watts) * 1000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        return next(self._joules)


@pytest.mark.painted
def test_e2_on_a_gpu(config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = hardware.Gpu(0, "NVIDIA H100 80GB HBM3", 80 << 30)
    monkeypatch.setattr(hardware, "gpus", lambda: (card,))
    monkeypatch.setattr(hardware, "vllm_version", lambda: ("vllm", "0.26.0"))
    monkeypatch.setattr(hardware, "driver_version", lambda: "570.1")
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())  # type: ignore[arg-type]
    lists = ("experiment.prompt_lens=[16]", "experiment.concurrencies=[1,4]", "experiment.goodput_budget_s=null")
    cfg = config(*TINY, "experiment=e2", *lists, "workload.output_len=20", "collectors.device.hz=200")
    with Screen() as screen:
        outcome = run_module.run(cfg, tmp_path / "outputs" / RUN_ID, RUN_ID, screen)
    assert (outcome.status, outcome.reason) == ("completed", None)
    metadata = read_json(outcome.run_dir / "run_metadata.json")
    assert (metadata["peaks"]["kind"], metadata["peaks"]["flops"]) == ("stated", 989.4e12)
    begin, end = metadata["starts"][0]["idle"]
    assert 0.9 < end - begin < 2
    assert outcome.summary is not None
    device = outcome.summary["profiling"]["device"]
    idle, load = device["devices"]["cuda:0"]["idle"], device["devices"]["cuda:0"]
    assert idle["samples"] > 20
    assert idle["power_w_mean"] < load["power_w_mean"]
    assert device["energy"]["joules_per_output_token"] > 0
    assert device["notes"] == []
    row = outcome.summary["by_load"]["rows"][0]
    assert row["joules_per_output_token"] > 0
    assert row["mfu"]["value"] > 0
    page = outcome.report.read_text()  # type: ignore[union-attr]
    assert "| cuda:0, idle |" in page
    assert "J per output token (from NVML's energy counter)" in page
    assert "989 TFLOP/s, 3,350 GB/s (stated: NVIDIA H100 Tensor Core GPU data sheet, SXM)" in page
    assert "| J per token |" in page
