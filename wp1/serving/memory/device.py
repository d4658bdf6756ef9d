"""This process's memory on its GPU, as reported by torch's allocator, CUDA and NVML.

Sources: torch.cuda.memory_stats (allocated_bytes, reserved_bytes), torch.cuda.memory_snapshot (segment_pool_id, which
is (0, 0) except for the private pools of CUDA graphs), nvmlDeviceGetComputeRunningProcesses (usedGpuMemory).
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pynvml
import torch

from wp1.serving.memory import tensors


class DeviceMeter:
    """Implements `wp1.serving.memory.accounting.Meter` for a GPU. Does not initialise CUDA before vLLM does."""

    def __init__(self, local_rank: int) -> None:
        pynvml.nvmlInit()
        self._handle = _handle(local_rank)
        self._before = 0

    def note(self) -> dict[str, Any]:
        note: dict[str, Any] = {"process": self._process(), "device": self._device()}
        if torch.cuda.is_initialized():
            note |= {"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved()}
        return note

    def _process(self) -> int | None:
        """This process's bytes on the GPU by NVML; None if the driver does not report them, as in many containers."""
        with suppress(pynvml.NVMLError):
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
                if process.pid == os.getpid() and process.usedGpuMemory is not None:
                    return int(process.usedGpuMemory)
        return None

    def _device(self) -> int:
        return int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def kv_is_there(self, kv: Sequence[Any]) -> None:
        pass

    def begin(self) -> None:
        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()

    def end(self) -> int | None:
        return torch.cuda.max_memory_allocated() - self._before

    def account(self, weights: Sequence[Any], kv: Sequence[Any]) -> dict[str, Any]:
        # Kernels that are launched but have not run yet may still load code.
        torch.cuda.synchronize()
        in_pools = [segment for segment in torch.cuda.memory_snapshot() if tuple(segment["segment_pool_id"]) != (0, 0)]
        return {
            **self.note(),
            "weights": tensors.nbytes(weights),
            "kv": tensors.nbytes(kv),
            "graph_pools": sum(segment["total_size"] for segment in in_pools),
            "graph_pools_allocated": sum(segment["allocated_size"] for segment in in_pools),
            "limit": torch.cuda.mem_get_info()[1],
        }


def _handle(local_rank: int) -> Any:
    """NVML's handle for this worker's GPU. wp1 uses NVML's own indices in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    name = visible.split(",")[local_rank].strip() if visible else str(local_rank)
    if name.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)
