"""Cost of moving KV caches between engines, from handoffs.jsonl and queues.jsonl."""

from typing import Any

import polars as pl

from wp1.analysis.base import aggregates, tables
from wp1.stats import spans

TIMES = ("transfer_ms", "handoff_ms", "decode_queue_ms", "copy_ms", "wait_ms")


def profile(handoffs: pl.DataFrame, requests: pl.DataFrame, queues: pl.DataFrame) -> dict[str, Any]:
    """The handoffs' bytes, times (ms), rates and shares of latency (`figures`), overall and by cell (arm/cell).

    {} if no measured request was handed over, as in aggregated serving.
    """
    handed = handoffs.filter(~pl.col("warmup"))
    if handed.is_empty():
        return {}
    measured = requests.filter(~pl.col("warmup"))
    cells = {}
    for (arm, cell), rows in handed.group_by("arm", "cell", maintain_order=True):
        of_cell = measured.filter((pl.col("arm") == arm) & (pl.col("cell") == cell))
        cells[f"{arm}/{cell}"] = figures(rows, of_cell, queues)
    of_arms = measured.filter(pl.col("arm").is_in(handed["arm"].unique().to_list()))
    return {"overall": figures(handed, of_arms, queues), "cells": cells}


def figures(handoffs: pl.DataFrame, requests: pl.DataFrame, queues: pl.DataFrame) -> dict[str, Any]:
    """Figures of some measured handoffs and the requests of the same cells (`tables.handoffs`, `.requests`, `.queues`).

    tokens          tokens whose KV had to move
    bytes           as measured, over the handoffs that report them
    copy_gb_per_s   bytes / seconds in which they were copied (1e9 bytes/s), by the connector's own clock if it has one
    overlapped      handoffs whose transfer began before the prompt was computed, and so waited for the rest of it
    gb_per_s        bytes / union of the transfers' intervals (1e9 bytes/s), so that simultaneous transfers count once;
                    None if any overlapped, as it would then be the prefill's rate
    runs            mean number of contiguous runs of blocks that a handoff was copied in
    stall_ratio     sum of handoff times / sum of E2E of the same requests
    share_of_ttft   sum of handoff times within TTFT / sum of TTFT; 0 if the prefill engine streams the first token
    queues          requests in each place while these cells were measured, mean and max

    A transfer without bytes, or whose clock shows no time, is in neither rate.
    """
    ok = handoffs.filter(pl.col("status") == "ok")
    units = aggregates.units_of(ok)
    failed = handoffs.filter(pl.col("status") != "ok")
    moved = ok.filter((pl.col("bytes") > 0) & (pl.col("t_transfer_end") > pl.col("t_transfer_begin")))
    seconds = spans.length(spans.merged([moved.select("t_transfer_begin", "t_transfer_end").to_numpy()]))
    overlapped = moved.filter(pl.col("t_transfer_begin") < pl.col("t_prefill_done")).height
    copied = ok.filter((pl.col("bytes") > 0) & (pl.col("copy_ms") > 0))
    copy_s = float(copied["copy_ms"].sum()) / 1e3
    delayed = ok.drop_nulls("handoff_ms").join(
        requests.filter(pl.col("status") == "ok").select("arm", "request_id", "e2e_ms", "ttft_ms", "first_by_decode"),
        on=["arm", "request_id"],
        how="inner",
    )
    within = pl.when("first_by_decode").then("handoff_ms").otherwise(0.0)
    return {
        "handoffs": handoffs.height,
        "ok": ok.height,
        "failed": failed.height,
        "failed_by_phase": {
            str(phase or "unknown"): int(n) for phase, n in failed.group_by("phase").len().sort("phase").iter_rows()
        },
        "tokens": int((ok["tokens"] - ok["tokens_kept"].fill_null(0)).sum()),
        "bytes": _total(ok["bytes"]),
        "bytes_expected": _total(ok["bytes_expected"]),
        "bytes_unreported": int(ok["bytes"].null_count()),
        "bytes_a_handoff": aggregates.distribution(ok["bytes"].cast(pl.Float64).to_numpy(), units),
        **{name: aggregates.distribution(ok[name].to_numpy(), units) for name in TIMES},
        "transfer_s": round(seconds, 6),
        "overlapped": overlapped,
        "gb_per_s": round(int(moved["bytes"].sum()) / seconds / 1e9, 4) if seconds > 0 and not overlapped else None,
        "copy_gb_per_s": round(int(copied["bytes"].sum()) / copy_s / 1e9, 4) if copy_s > 0 else None,
        "blocks": _total(ok["blocks"]),
        "runs": aggregates.distribution(ok["runs"].cast(pl.Float64).to_numpy()).get("mean"),
        "stall_ratio": _ratio(delayed["handoff_ms"], delayed["e2e_ms"]),
        "share_of_ttft": _ratio(delayed.select(within.alias("t"))["t"], delayed["ttft_ms"]),
        "queues": _queue_lengths(queues, requests),
    }


def _total(values: pl.Series) -> int | None:
    return int(values.sum()) if values.drop_nulls().len() else None


def _ratio(part: pl.Series, whole: pl.Series) -> float | None:
    total = float(whole.sum())
    return round(float(part.sum()) / total, 6) if total > 0 else None


def _queue_lengths(queues: pl.DataFrame, requests: pl.DataFrame) -> dict[str, Any]:
    """Mean and max of each queue's length over the samples taken while a repeat of these cells ran."""
    windows = (
        requests.group_by("arm", "cell", "repeat")
        .agg(begin=pl.min("t_sent"), end=pl.max("t_end"))
        .drop_nulls(["begin", "end"])
    )
    inside = pl.lit(False)
    for arm, begin, end in windows.select("arm", "begin", "end").sort("begin").iter_rows():
        inside |= (pl.col("arm") == arm) & pl.col("t").is_between(begin, end)
    samples = queues.filter(inside)
    return {
        "samples": samples.height,
        **{
            name: {
                "mean": round(float(samples[name].mean()), 3),  # pyright: ignore[reportArgumentType]
                "max": int(samples[name].max()),  # pyright: ignore[reportArgumentType]
            }
            for name in tables.QUEUES
            if samples.height
        },
    }
