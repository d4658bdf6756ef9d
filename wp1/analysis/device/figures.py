"""What the device did, from device.jsonl: utilisation, memory and energy."""

from typing import Any

import numpy as np
import polars as pl

from wp1.core.errors import ConfigError
from wp1.core.run_folder import RunFolder
from wp1.machine import hardware
from wp1.stats import spans


def load_window(measured: pl.DataFrame) -> np.ndarray:
    """When requests were in flight: the union of their times from sent to end, in seconds (n x 2)."""
    return spans.merged([measured.select("t_sent", pl.col("t_end").fill_null(pl.col("t_sent"))).to_numpy()])


def idle_windows(run: RunFolder) -> np.ndarray:
    """When engines were up and had nothing to do, as the run noted it (n x 2, seconds)."""
    try:
        # Engines of a sweep may be up from the job before.
        starts = [*run.metadata["starts"], *run.metadata.get("taken_over", [])]
    except ConfigError:
        return np.empty((0, 2))
    return np.array([start["idle"] for start in starts if start.get("idle")]).reshape(-1, 2)


def _inside(rows: pl.DataFrame, windows: np.ndarray) -> pl.DataFrame:
    """The samples within any of the windows, which do not meet and ascend."""
    return rows.filter(pl.Series(spans.inside(rows["t"].to_numpy(), windows), dtype=pl.Boolean))


def _figures(rows: pl.DataFrame) -> dict[str, Any]:
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
    """Joules of all GPUs within the windows, and by output token of the answered requests; None without figures.

    From the cards' energy counters where they have them, else from power, linear between samples that follow each
    other: nothing is known of a time in which nobody looked, as between two sessions of a run. A device that was not
    looked at in any of the windows has no part in it.
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
        of_device = [taken for begin, end in windows if (taken := _between(begin, end, times, total)) is not None]
        if of_device:
            sources.add("counter" if counted.height > 1 else "power")
            joules += float(sum(of_device))
    if not sources or not len(windows):
        return None
    tokens = int(requests.filter(pl.col("status") == "ok")["output_tokens"].sum())
    return {
        "joules": round(joules, 2),
        "joules_per_output_token": round(joules / tokens, 4) if tokens else None,
        "from": " and ".join(sorted(sources)),
    }


def _between(begin: float, end: float, times: np.ndarray, total: np.ndarray) -> float | None:
    """Joules from a counter's samples between two moments; None where none of them is of that time."""
    gaps = np.diff(times)
    sessions = np.split(np.arange(times.size), np.flatnonzero(gaps > max(SILENT_S, 10 * float(np.median(gaps)))) + 1)
    found = None
    for session in sessions:
        own, counted = times[session], total[session]
        if own.size > 1 and end >= own[0] and begin <= own[-1]:
            found = (found or 0.0) + float(np.interp(end, own, counted) - np.interp(begin, own, counted))
    return found


# Samples that are further apart than this, and than ten times the usual, are of two sessions; seconds.
SILENT_S = 5.0
