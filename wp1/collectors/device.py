"""Memory, load, power and energy of the devices while engines live, sampled beside the run into device.jsonl.

On GPUs through NVML. Without one, the same samples are of the host: resident memory of the engines' processes and
their CPU load, labelled "host" wherever they appear.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.device.figures import _figures, _inside, energy, idle_windows, load_window
from wp1.collectors.sampling import Sample, gpu_reader, host_reader, note
from wp1.core import files
from wp1.core.run_files import DEVICE
from wp1.stats import spans


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
        read, self._close = gpu_reader(gpus) if gpus else host_reader()
        self._thread = threading.Thread(target=self._loop, args=(read, DEVICE.at(run_dir)), daemon=True)
        self._thread.start()

    def _loop(self, read: Callable[[], list[Sample]], path: Path) -> None:
        with files.appended(path) as out:
            due = time.monotonic()
            while not self._stop.is_set():
                try:
                    samples = read()
                except Exception as error:  # whatever it is, the run goes on without device figures, and says so
                    samples = [note("device", f"sampling ended early ({type(error).__name__}: {error})")]
                    self._stop.set()
                for sample in samples:
                    out.write(f"{files.json_text(sample)}\n".encode())
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

    def profile(self, run: RunTables, requests: pl.DataFrame) -> dict[str, Any]:
        """`devices` while measured requests were in flight, with `idle` apart; the same by cell; energy; notes."""
        samples = run.device_samples
        measured = requests.filter(~pl.col("warmup") & pl.col("t_sent").is_not_null())
        window = load_window(measured)
        idle = idle_windows(run)
        figures = samples.filter(pl.col("note").is_null())
        devices = {}
        for (device,), rows in figures.group_by("device", maintain_order=True):
            devices[str(device)] = {
                "kind": "host" if device == "host" else "gpu",
                **_figures(_inside(rows, window)),
                "idle": _figures(_inside(rows, idle)) if len(idle) else None,
            }
        cells = {}
        for (arm, cell), rows in measured.group_by("arm", "cell", maintain_order=True):
            inside = load_window(rows)
            cells[f"{arm}/{cell}"] = {
                "devices": {
                    str(device): _figures(_inside(of_device, inside))
                    for (device,), of_device in figures.group_by("device", maintain_order=True)
                },
                "energy": energy(figures, inside, rows),
            }
        return {
            "window_s": round(spans.length(window), 3) if len(window) else None,
            "devices": devices,
            "energy": energy(figures, window, measured),
            "cells": cells,
            "notes": samples["note"].drop_nulls().unique(maintain_order=True).to_list(),
        }
