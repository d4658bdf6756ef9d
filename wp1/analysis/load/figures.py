"""Figures by context length and load: latency, throughput, MFU, MBU, KV use and preemptions of every cell. Pure."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from wp1.analysis.base import aggregates, cells, metrics
from wp1.analysis.base.markdown import share
from wp1.analysis.device import roofline
from wp1.analysis.device.figures import load_window
from wp1.stats import spans

# If the KV cache is this full while requests wait, they wait for KV blocks.
FULL = 0.9


def by_load(
    requests: pl.DataFrame,
    stats: pl.DataFrame,
    metadata: Mapping[str, Any],
    slo: Mapping[str, Any],
    profile: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """A row for every cell of every arm; None if the run sent one request at a time only.

    requests: `tables.requests`; stats: `tables.engine_stats`; slo: the limits; profile: the device collector's figures.
    Figures are {n, value, low, high} with 95 % intervals (`intervals`), times in ms; rates' intervals are over repeats.
    """
    measured = requests.filter(~pl.col("warmup"))
    names = [cells.parse(name) for name in cells.ordered(measured["cell"])]
    if not any(cell.rate > 0 or (cell.concurrency or 0) > 1 for cell in names):
        return None
    shape, _ = roofline.shape_of(metadata)
    rows = []
    for (arm,), of_arm in measured.group_by("arm", maintain_order=True):
        device = roofline.device_of(metadata, str(arm))
        chunk = roofline.chunk_of(metadata, str(arm))
        for cell in names:
            sent = of_arm.filter(pl.col("cell") == cell.name)
            if sent.height:
                row = _row(cell, sent, slo, roofline.devices_of(metadata["pools"], str(arm)))
                roof = roofline.roofline(sent.filter(pl.col("status") == "ok"), shape, device, chunk)
                kv = kv_use(stats.filter(pl.col("arm") == arm), sent)
                phrases = [roofline.words(roof, _queue_share(sent)), _kv_words(kv, sent)]
                shown = {key: roof[key] for key in ("mfu", "mbu", "batch", "shared")}
                limited = "; ".join(phrase for phrase in phrases if phrase) or None
                energy = (profile or {}).get("cells", {}).get(f"{arm}/{cell.name}", {}).get("energy") or {}
                joules = {"joules_per_output_token": energy.get("joules_per_output_token")}
                rows.append({"arm": str(arm), **row, **shown, **kv, **joules, "limited_by": limited})
    return {"rows": rows, "why_no_mfu": roofline.why_not(metadata)}


def _row(cell: cells.CellName, sent: pl.DataFrame, slo: Mapping[str, Any], devices: int) -> dict[str, Any]:
    answered = sent.filter(pl.col("status") == "ok")
    limits = aggregates.limits(slo)
    attained = aggregates.attainment(sent, limits)
    return {
        "cell": cell.name,
        "prompt": cell.prompt,
        "prompt_len": cell.prompt_len,
        "concurrency": cell.concurrency,
        "request_rate": cell.rate or None,
        "sent": sent.height,
        "ok": answered.height,
        "repeats": sent["repeat"].n_unique(),
        "devices": devices,
        **aggregates.figures(sent, metrics.shown_in("load"), limits, devices),
        "attainment": attained,
        "attainment_interval": None if attained is None else list(aggregates.attainment_interval(sent, limits) or ()),
    }


def _queue_share(sent: pl.DataFrame) -> float | None:
    answered = sent.filter(pl.col("status") == "ok")
    queue, ttft = answered["queue_ms"].mean(), answered["ttft_ms"].mean()
    return float(queue) / float(ttft) if queue is not None and ttft else None  # pyright: ignore[reportArgumentType]


def kv_use(stats: pl.DataFrame, sent: pl.DataFrame) -> dict[str, Any]:
    """Mean and peak share of the KV cache in use while the cell's requests were in flight, and preemptions.

    From the engines' own statistics: the mean over all engines, the peak of the fullest one. Null without samples.
    """
    windows = load_window(sent.filter(pl.col("t_sent").is_not_null()))
    rows = stats.filter(pl.Series(spans.inside(stats["t"].to_numpy(), windows), dtype=pl.Boolean))
    if rows.is_empty():
        return {"kv_use_mean": None, "kv_use_peak": None, "preemptions": None, "waiting_peak": None}
    mean, peak = rows["kv_use"].mean(), rows["kv_use_peak"].max()
    return {
        "kv_use_mean": round(float(mean), 4),  # pyright: ignore[reportArgumentType]
        "kv_use_peak": round(float(peak), 4),  # pyright: ignore[reportArgumentType]
        "preemptions": int(rows["preemptions"].sum()),
        "waiting_peak": int(rows["waiting"].max()),  # pyright: ignore[reportArgumentType]
    }


def _kv_words(kv: Mapping[str, Any], sent: pl.DataFrame) -> str:
    if kv["preemptions"]:
        return f"the KV cache is full: {kv['preemptions']} preemptions of {sent.height} requests"
    if kv["waiting_peak"] and kv["kv_use_peak"] >= FULL:
        return f"the KV cache is full ({share(kv['kv_use_peak'])}): requests wait for room"
    return ""
