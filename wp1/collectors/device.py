"""Samples memory, load, power and energy of the devices into device.jsonl while engines are up.

GPUs are sampled through NVML. Without a GPU, samples show the host: resident memory and CPU load of the engines'
processes, labelled "host" everywhere.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import polars as pl

from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.device import figures
from wp1.collectors import Collector
from wp1.collectors.sampling import Sample, gpu_reader, host_reader, note
from wp1.core import files
from wp1.core.parts import Within
from wp1.core.run_files import DEVICE


class GPUStatsCollector(Collector):
    """Samples at `hz` between start and stop; `wp1.analysis.device.figures.profile` makes `profiling.device`."""

    name = "device"

    def __init__(self, hz: Annotated[float, Within(0.001, 1000)] = 10.0) -> None:
        self._period = 1.0 / hz
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._close: Callable[[], None] = lambda: None

    def start(self, run_dir: Path, gpus: list[int]) -> None:
        read, self._close = gpu_reader(gpus) if gpus else host_reader()
        self._thread = threading.Thread(target=self._loop, args=(read, DEVICE.at(run_dir)), daemon=True)
        self._thread.start()

    def _loop(self, read: Callable[[], list[Sample]], path: Path) -> None:
        with files.appended(path) as out:
            due = time.monotonic()
            while not self._stop.is_set():
                try:
                    samples = read()
                except Exception as error:  # the run continues without device figures, and the report says so
                    samples = [note("device", f"sampling of the devices ended early ({type(error).__name__}: {error})")]
                    self._stop.set()
                for sample in samples:
                    out.write(f"{files.json_text(sample)}\n".encode())
                out.flush()
                # The schedule is absolute: a late sample does not delay the next.
                due = max(due + self._period, time.monotonic())
                self._stop.wait(due - time.monotonic())

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            self._thread = None
            self._close()

    def profile(self, run: RunTables, requests: pl.DataFrame) -> dict[str, Any]:
        return figures.profile(requests, run.device_samples, figures.idle_windows(run))
