"""Memory, load and power of the devices while engines live, sampled beside the run into device.jsonl.

On GPUs through NVML. Without one, the same samples are of the host: resident memory of the engines' processes and
their CPU load, labelled "host" wherever they appear.
"""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from wp1 import hardware

Sample = dict[str, Any]
SCHEMA = {
    "t": pl.Float64,  # seconds, monotonic: the records' clock
    "device": pl.String,  # "cuda:0", or "host"
    "memory_bytes": pl.Int64,  # in use on the GPU by all processes; resident, of the engines' processes
    "utilisation": pl.Float64,  # percent: of time with a kernel running; of one core, summed over processes
    "power_w": pl.Float64,  # null on a host
}

# Listing all processes of a host costs milliseconds, reading one of them microseconds.
LIST_PERIOD_S = 5.0


class GPUStatsCollector:
    """Samples at `hz` between start and stop; `profiling.device` has average and peak over the measured window."""

    name = "device"

    def __init__(self, hz: float = 10.0) -> None:
        if not (isinstance(hz, int | float) and 0 < hz <= 1000):
            raise ValueError(f"hz={hz} is no rate: set it above 0, at most 1000")
        self._period = 1.0 / hz
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._close: Callable[[], None] = lambda: None

    def start(self, run_dir: Path, gpus: list[int]) -> None:
        read, self._close = _gpu_reader(gpus) if gpus else _host_reader()
        self._thread = threading.Thread(target=self._loop, args=(read, run_dir / "device.jsonl"), daemon=True)
        self._thread.start()

    def _loop(self, read: Callable[[], list[Sample]], path: Path) -> None:
        with path.open("a") as out:
            due = time.monotonic()
            while not self._stop.is_set():
                for sample in read():
                    out.write(json.dumps(sample) + "\n")
                out.flush()
                # An absolute schedule: a late sample does not push back the next.
                due = max(due + self._period, time.monotonic())
                self._stop.wait(due - time.monotonic())

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            self._thread = None
            self._close()

    def profile(self, run_dir: Path, requests: pl.DataFrame) -> dict[str, Any]:
        samples = read_samples(run_dir)
        window = measured_window(requests)
        inside = samples if window is None else samples.filter(pl.col("t").is_between(*window))
        devices = {}
        for (device,), rows in inside.group_by("device", maintain_order=True):
            devices[str(device)] = {
                "kind": "host" if device == "host" else "gpu",
                "samples": rows.height,
                **_average_and_peak(rows, "memory_bytes", "memory_gib", 1 / hardware.GIB),
                **_average_and_peak(rows, "utilisation", "utilisation_percent", 1),
                **_average_and_peak(rows, "power_w", "power_w", 1),
            }
        return {"window_s": None if window is None else round(window[1] - window[0], 3), "devices": devices}


def read_samples(run_dir: Path) -> pl.DataFrame:
    """device.jsonl as a table (SCHEMA); empty where there is none. A last line torn by a crash is left out."""
    path = run_dir / "device.jsonl"
    text = path.read_bytes() if path.is_file() else b""
    whole = text[: text.rfind(b"\n") + 1]
    return pl.read_ndjson(whole, schema=SCHEMA) if whole else pl.DataFrame(schema=SCHEMA)


def measured_window(requests: pl.DataFrame) -> tuple[float, float] | None:
    """From the first measured request's send to the last one's end, seconds; None where none was sent."""
    measured = requests.filter(~pl.col("warmup") & pl.col("t_sent").is_not_null())
    if measured.is_empty():
        return None
    start, end = measured.select(pl.min("t_sent"), pl.max("t_end").alias("end")).row(0)
    return float(start), float(end if end is not None else start)


def _average_and_peak(rows: pl.DataFrame, column: str, name: str, scale: float) -> dict[str, float | None]:
    values = rows[column].drop_nulls()
    if values.is_empty():
        return {f"{name}_mean": None, f"{name}_peak": None}
    mean, peak = float(values.mean()), float(values.max())  # pyright: ignore[reportArgumentType]
    return {f"{name}_mean": round(mean * scale, 3), f"{name}_peak": round(peak * scale, 3)}


def _gpu_reader(gpus: list[int]) -> tuple[Callable[[], list[Sample]], Callable[[], None]]:
    import pynvml

    pynvml.nvmlInit()
    handles = {f"cuda:{index}": pynvml.nvmlDeviceGetHandleByIndex(index) for index in gpus}

    def optional(call: Callable[[], float]) -> float | None:
        try:
            return call()
        except pynvml.NVMLError:  # MIG slices and some cards do not say
            return None

    def read() -> list[Sample]:
        return [
            {
                "t": round(time.monotonic(), 4),
                "device": device,
                "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).used),
                "utilisation": optional(lambda h=handle: float(pynvml.nvmlDeviceGetUtilizationRates(h).gpu)),
                "power_w": optional(lambda h=handle: pynvml.nvmlDeviceGetPowerUsage(h) / 1000),
            }
            for device, handle in handles.items()
        ]

    return read, pynvml.nvmlShutdown


def _host_reader() -> tuple[Callable[[], list[Sample]], Callable[[], None]]:
    """Resident memory and CPU load of this process's descendants: the engines."""
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
            # Known processes are kept: psutil measures CPU load from one call to the next of the same object.
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
            }
        ]

    return read, lambda: None
