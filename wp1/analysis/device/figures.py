"""What the device did, from device.jsonl: utilisation, memory and energy."""

from typing import Any

import numpy as np
import polars as pl

from wp1.core.errors import ConfigError
from wp1.core.run_folder import RunFolder
from wp1.machine import hardware
from wp1.stats import spans


def profile(requests: pl.DataFrame, samples: pl.DataFrame, idle: np.ndarray) -> dict[str, Any]:
    """Figures of the devices while measured requests were in flight, overall and by cell (arm/cell).

    Each device's idle figures stand apart, under `idle`. Also energy, and the sampler's notes.

    samples: `tables.device_samples`. idle: `idle_windows`.
    """
    measured = requests.filter(~pl.col("warmup") & pl.col("t_sent").is_not_null())
    window = load_window(measured)
    figures = samples.filter(pl.col("note").is_null())
    devices = {}
    for (device,), rows in figures.group_by("device", maintain_order=True):
        devices[str(device)] = {
            "kind": "host" if device == "host" else "gpu",
            **_averages_and_peaks(_within(rows, window)),
            "idle": _averages_and_peaks(_within(rows, idle)) if len(idle) else None,
        }
    cells = {}
    for (arm, cell), rows in measured.group_by("arm", "cell", maintain_order=True):
        inside = load_window(rows)
        cells[f"{arm}/{cell}"] = {
            "devices": {
                str(device): _averages_and_peaks(_within(of_device, inside))
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


def load_window(measured: pl.DataFrame) -> np.ndarray:
    """When requests were in flight: the union of their spans from sent to end, in seconds (n x 2)."""
    return spans.merged([measured.select("t_sent", pl.col("t_end").fill_null(pl.col("t_sent"))).to_numpy()])


def idle_windows(run: RunFolder) -> np.ndarray:
    """When engines were up and idle, as noted by the run, in seconds (n x 2)."""
    try:
        # A sweep's engines may have been started by an earlier job.
        starts = [*run.metadata["starts"], *run.metadata.get("taken_over", [])]
    except ConfigError:
        return np.empty((0, 2))
    return np.array([start["idle"] for start in starts if start.get("idle")]).reshape(-1, 2)


def _within(rows: pl.DataFrame, windows: np.ndarray) -> pl.DataFrame:
    """The samples within any of the windows, which are disjoint and ascending."""
    return rows.filter(pl.Series(spans.inside(rows["t"].to_numpy(), windows), dtype=pl.Boolean))


def _averages_and_peaks(rows: pl.DataFrame) -> dict[str, Any]:
    """Mean and peak of memory (GiB), utilisation (percent) and power (W) over the samples; None if none has a value."""
    return {
        "samples": rows.height,
        **_average_and_peak(rows, "memory_bytes", "memory_gib", 1 / hardware.GIB),
        **_average_and_peak(rows, "utilisation", "utilisation_percent", 1),
        **_average_and_peak(rows, "power_w", "power_w", 1),
    }


def _average_and_peak(rows: pl.DataFrame, column: str, name: str, scale: float) -> dict[str, float | None]:
    values = rows[column].drop_nulls()
    if values.is_empty():
        return {f"{name}_mean": None, f"{name}_peak": None}
    mean, peak = float(values.mean()), float(values.max())  # pyright: ignore[reportArgumentType]
    return {f"{name}_mean": round(mean * scale, 3), f"{name}_peak": round(peak * scale, 3)}


def energy(samples: pl.DataFrame, windows: np.ndarray, requests: pl.DataFrame) -> dict[str, Any] | None:
    """Joules of all GPUs within the windows, total and per output token of the answered requests; None if unknown.

    Taken from a card's energy counter if it has one, else integrated from power, linear between consecutive samples.
    Times without samples, such as between two sessions of a run, add nothing. A device that was not sampled in any of
    the windows is left out.
    """
    joules, sources = 0.0, set()
    for _, rows in samples.group_by("device", maintain_order=True):
        counted = rows.drop_nulls("energy_j")
        powered = rows.drop_nulls("power_w")
        if counted.height > 1:
            times, total = counted["t"].to_numpy(), counted["energy_j"].to_numpy()
        elif powered.height > 1:
            times, watts = powered["t"].to_numpy(), powered["power_w"].to_numpy()
            total = np.concatenate([[0.0], np.cumsum(np.diff(times) * (watts[1:] + watts[:-1]) / 2)])
        else:
            continue
        consumed = [used for begin, end in windows if (used := _between(begin, end, times, total)) is not None]
        if consumed:
            sources.add("counter" if counted.height > 1 else "power")
            joules += float(sum(consumed))
    if not sources or not len(windows):
        return None
    tokens = int(requests.filter(pl.col("status") == "ok")["output_tokens"].sum())
    return {
        "joules": round(joules, 2),
        "joules_per_output_token": round(joules / tokens, 4) if tokens else None,
        "from": " and ".join(sorted(sources)),
    }


def _between(begin: float, end: float, times: np.ndarray, total: np.ndarray) -> float | None:
    """Joules between two moments, from a counter's samples; None if no samples cover any of that time."""
    gaps = np.diff(times)
    sessions = np.split(np.arange(times.size), np.flatnonzero(gaps > max(SILENT_S, 10 * float(np.median(gaps)))) + 1)
    joules = None
    for session in sessions:
        own, counted = times[session], total[session]
        if own.size > 1 and end >= own[0] and begin <= own[-1]:
            joules = (joules or 0.0) + float(np.interp(end, own, counted) - np.interp(begin, own, counted))
    return joules


# Samples further apart than this (seconds), and than ten times the median gap, belong to two sessions.
SILENT_S = 5.0
