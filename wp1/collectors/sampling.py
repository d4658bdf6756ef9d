"""Reads one sample of each device: of GPUs through NVML, or of this process's descendants on a host without GPUs."""

import time
from collections.abc import Callable
from typing import Any

Sample = dict[str, Any]
Reader = tuple[Callable[[], list[Sample]], Callable[[], None]]  # reads samples; closes the reader

# Listing all processes of a host takes milliseconds, reading one of them microseconds.
LIST_PERIOD_S = 5.0
# Keys of a sample, and their names in notes on what NVML does not report.
FIGURES = {
    "memory_bytes": "memory in use",
    "utilisation": "utilisation",
    "power_w": "power",
    "energy_j": "energy",
}


def note(device: str, words: str) -> Sample:
    """A sample without figures, with the reason why there are none."""
    return {"t": round(time.monotonic(), 4), "device": device, **dict.fromkeys(FIGURES), "note": words}


def gpu_reader(gpus: list[int]) -> Reader:
    """Samples these GPUs through NVML. A value that NVML refuses becomes a note, written once, not an error."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return _once([note("gpu", f"no GPU was sampled, because NVML cannot be used ({error})")]), lambda: None
    handles, notes = {}, []
    for index in gpus:
        device = f"cuda:{index}"
        try:
            handles[device] = pynvml.nvmlDeviceGetHandleByIndex(index)
            if _is_split(handles[device]):
                notes.append(
                    note(device, f"{device} is split by MIG: its figures cover the whole GPU, all slices together")
                )
        except pynvml.NVMLError as error:
            notes.append(note(device, f"{device} was not sampled: NVML denies access ({error}); ask for permission"))
    reported: set[tuple[str, str]] = set()

    def read() -> list[Sample]:
        samples = [*notes]
        notes.clear()
        for device, handle in handles.items():
            sample: Sample = {"t": round(time.monotonic(), 4), "device": device, "note": None}
            for key, call in _calls(handle).items():
                try:
                    sample[key] = call()
                except pynvml.NVMLError as error:  # MIG slices, some cards and some containers
                    sample[key] = None
                    if (device, key) not in reported:
                        reported.add((device, key))
                        samples.append(note(device, f"{device}: NVML does not report {FIGURES[key]} ({error})"))
            samples.append(sample)
        return samples

    return read, pynvml.nvmlShutdown


def _calls(handle: Any) -> dict[str, Callable[[], float]]:
    import pynvml

    return {
        "memory_bytes": lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used),
        "utilisation": lambda: float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        # Since the driver was loaded; from Volta on.
        "energy_j": lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
    }


def _is_split(handle: Any) -> bool:
    import pynvml

    try:
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
    except pynvml.NVMLError:  # a card that cannot be split
        return False


def _once(samples: list[Sample]) -> Callable[[], list[Sample]]:
    def read() -> list[Sample]:
        first = [*samples]
        samples.clear()
        return first

    return read


def host_reader() -> Reader:
    """Samples resident memory and CPU load of this process's descendants: the engines."""
    import psutil

    parent = psutil.Process()
    tree: dict[int, psutil.Process] = {}
    renewed = [-LIST_PERIOD_S]

    def read() -> list[Sample]:
        now = time.monotonic()
        if now - renewed[0] > LIST_PERIOD_S:
            renewed[0] = now
            alive = {process.pid: process for process in parent.children(recursive=True)}
            for pid in set(tree) - set(alive):
                del tree[pid]
            # Keep known process objects: psutil measures CPU load between two calls on the same object.
            for pid, process in alive.items():
                tree.setdefault(pid, process)
        memory, load = 0, 0.0
        for pid, process in list(tree.items()):
            try:
                with process.oneshot():
                    memory += process.memory_info().rss
                    load += process.cpu_percent()
            except psutil.Error:
                del tree[pid]
        return [
            {
                "t": round(now, 4),
                "device": "host",
                "memory_bytes": memory,
                "utilisation": round(load, 1),
                "power_w": None,
                "energy_j": None,
                "note": None,
            }
        ]

    return read, lambda: None
