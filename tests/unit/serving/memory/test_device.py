"""A GPU's figures, from fakes of NVML and torch's CUDA."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

from wp1.serving.memory import device


def fake_nvml(silent: bool = False) -> SimpleNamespace:
    """NVML with this process on GPU 3, and without a figure elsewhere. silent: no processes, as in a container."""

    def processes(handle: str) -> list[Any]:
        if silent:
            raise RuntimeError("not supported")
        mine = SimpleNamespace(pid=os.getpid(), usedGpuMemory=700 if handle == "index 3" else None)
        return [SimpleNamespace(pid=1, usedGpuMemory=5), mine]

    return SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: f"index {index}",
        nvmlDeviceGetHandleByUUID=lambda uuid: f"uuid {uuid}",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=900),
        nvmlDeviceGetComputeRunningProcesses=processes,
    )


class FakeCuda:
    def __init__(self) -> None:
        self.peak = self.now = 100

    def is_initialized(self) -> bool:
        return True

    def memory_allocated(self) -> int:
        return self.now

    def memory_reserved(self) -> int:
        return 500

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.now

    def max_memory_allocated(self) -> int:
        return self.peak

    def synchronize(self) -> None:
        pass

    def memory_snapshot(self) -> list[dict[str, Any]]:
        return [
            {"segment_pool_id": (0, 0), "total_size": 300, "allocated_size": 100},
            {"segment_pool_id": (0, 1), "total_size": 40, "allocated_size": 8},
            {"segment_pool_id": [2, 0], "total_size": 2, "allocated_size": 1},
        ]

    def mem_get_info(self) -> tuple[int, int]:
        return 100, 1000


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(device.torch, "cuda", fake)
    monkeypatch.setattr(device, "pynvml", fake_nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    return fake


def test_a_worker_reads_its_own_gpu_and_process(cuda: FakeCuda) -> None:
    assert device.DeviceMeter(0).note() == {"process": 700, "device": 900, "allocated": 100, "reserved": 500}
    # The other GPU lists the process without a figure.
    assert device.DeviceMeter(1).note()["process"] is None


def test_without_a_process_in_nvml_only_the_device_is_reported(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "pynvml", fake_nvml(silent=True))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-abc")
    meter = device.DeviceMeter(0)
    assert meter._handle == "uuid GPU-abc"
    assert meter.note()["process"] is None
    assert meter.note()["device"] == 900


def test_a_steps_peak_is_relative_to_its_beginning(cuda: FakeCuda) -> None:
    meter = device.DeviceMeter(0)
    cuda.peak = 450
    meter.begin()
    cuda.peak = 175
    assert meter.end() == 75


def test_pools_of_graphs_are_counted_separately(cuda: FakeCuda) -> None:
    found = device.DeviceMeter(0).account([], [])
    assert (found["graph_pools"], found["graph_pools_allocated"]) == (42, 9)
    assert (found["weights"], found["kv"], found["limit"]) == (0, 0, 1000)
