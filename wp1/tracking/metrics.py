"""The figures of a run as a whole, by the names that MLflow has them under."""

import math
from collections.abc import Iterator
from typing import Any

from wp1.analysis.base import metric_table
from wp1.tracking.entry import named

# Of distributions that are no metric of `metric_table`, by the end of their names, what one compares runs by.
BRIEF = ("decode_queue_ms", "bytes_a_handoff", "loop_lag_ms")
# What MLflow's pages for comparing runs open on: one begins with the first metric, one with what its name sorts first.
FIRST = "_latency"
# Of a cell at a load, beside metrics.
LOAD_FIGURES = ("mfu", "mbu", "kv_use_peak", "preemptions", "attainment", "joules_per_output_token")
# Not of the run as a whole, or said elsewhere on the page; stall_ms is what older summaries call handoff_ms once more.
NOT_METRICS = ("cells", "samples", "statuses", "window_s", "stall_ms")


def metrics_of(summary: dict[str, Any], compared: dict[str, Any] | None = None) -> dict[str, float]:
    """The figures of the run as a whole, as `latency/ttft_ms/p50`, `device/cuda_0/memory_gib_peak` and the like.

    First the latencies that one compares runs by, as `_latency/ttft_ms_mean`, or of each arm as
    `_latency/ttft_ms_mean.disagg`.
    compared: of a run with several arms (`arms.contents`), which adds each arm's as `disagg/latency/ttft_ms/p50` and
    `disagg/goodput/1024`, and of each cell how the arms differ as `comparison/1024-rate0.5/ttft_ms/mean/ratio`.
    """
    found = list(_headlines(summary, compared))
    found += [number for name, profile in summary["profiling"].items() for number in numbers(name, profile)]
    if summary["slo"]["attainment"] is not None:
        found.append(("slo/attainment", float(summary["slo"]["attainment"])))
    found += _beside_latency(summary)
    found += _scores(summary.get("quality"))
    if compared is not None:
        found += _compared(compared)
    return named(found)


def _headlines(summary: dict[str, Any], compared: dict[str, Any] | None) -> Iterator[tuple[str, float]]:
    if compared is None:
        of = {"": summary["profiling"].get("latency", {}).get("overall", {})}
    else:
        of = {f".{arm}": compared["overall"][arm] for arm in compared["arms"]}
    for figure in metric_table.shown_in("mlflow_first"):
        for arm, figures in of.items():
            value = figure.value_in(figures)
            if value is not None and math.isfinite(value):
                yield f"{FIRST}/{figure.column}{arm}", float(value)


def _beside_latency(summary: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Of E1 the curve, as `length/agg/quadratic_share`; of searches what they found, as `goodput/agg/1024`.

    By cell, MFU and MBU as `length/agg/1024-conc1/mfu` and `load/agg/1024-conc4/mbu`, with output and KV use.
    """
    lengths, loads = summary.get("by_length"), summary.get("by_load")
    # Metrics of single requests are among the figures of each cell.
    of_load = [figure.short_column for figure in metric_table.shown_in("load") if not figure.metric.of_one_request]
    for arm, fit in (lengths or {"fits": {}})["fits"].items():
        for key in ("a", "b", "c", "quadratic_share") if fit else ():
            yield f"length/{arm}/{key}", fit[key]["value"]
    for group, part, keys in (
        ("length", lengths, ("prefill_tokens_per_s", "mfu", "mbu", "memory_gib_peak")),
        ("load", loads, (*of_load, *LOAD_FIGURES)),
    ):
        for row in (part or {"rows": []})["rows"]:
            for key in keys:
                value = row.get(key)
                value = value["value"] if isinstance(value, dict) else value
                if value is not None:
                    yield f"{group}/{row['arm']}/{row['cell']}/{key}", float(value)
    for search in summary.get("goodput") or ():
        if search["goodput_per_device"] is not None:
            yield f"goodput/{search['arm']}/{search['prompt_len']}", search["goodput_per_device"]


def _scores(quality: dict[str, Any] | None) -> Iterator[tuple[str, float]]:
    """Of a judged run, in percent: `score/agg/longbench/hotpotqa`, `score/agg/ruler` and `score/agg`, by length as
    `score/agg/length/1024`; perplexity by position as `perplexity/agg/1024`; the difference of two arms."""
    for arm, of in (quality or {"arms": {}})["arms"].items():
        for task in of["tasks"]:
            yield f"score/{arm}/{task['benchmark']}/{task['task']}", task["mean"]
        for benchmark, score in of["benchmarks"].items():
            yield f"score/{arm}/{benchmark}", score["mean"]
        if of["overall"]["mean"] is not None:
            yield f"score/{arm}", of["overall"]["mean"]
        for row in of["by_length"]:
            yield f"score/{arm}/length/{row['bucket']}", row["mean"]
        for row in of["perplexity"]:
            yield f"perplexity/{arm}/{row['to']}", row["mean"]
        reached = (of["effective_length"] or {}).get("absolute")
        if reached is not None:
            yield f"score/{arm}/effective_length", float(reached)
    if quality and quality["differences"] and quality["differences"]["n"]:
        yield "comparison/score/delta", quality["differences"]["overall"]["delta"]


def _compared(compared: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for arm in compared["arms"]:
        yield from numbers(f"{arm}/latency", compared["overall"][arm])
        for row in compared["goodput"][arm]:
            yield from numbers(f"{arm}/goodput/{row['prompt']}", row["goodput_per_device"])
    for cell, figures in compared["cells"].items():
        for mean in metric_table.means_in("overview"):
            yield from numbers(f"comparison/{cell}/{mean.name}/ratio", (figures.get(mean.name) or {}).get("ratio"))
    parity = compared["parity"]
    if parity["compared"]:
        yield "comparison/same_tokens_share", parity["same"] / parity["compared"]


def numbers(path: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number within a profile by its path; of a distribution, what `_statistics` says."""
    if isinstance(value, dict):
        # A distribution, and an empty one has its n alone.
        if "n" in value:
            value = {key: value[key] for key in _statistics(path) if key in value}
        for key, part in value.items():
            if key not in NOT_METRICS:
                # "cuda:0" is written cuda_0: MLflow on Windows takes no colon.
                step = "" if key in ("overall", "devices") else "/" + str(key).replace(":", "_")
                yield from numbers(path + step, part)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield path, float(value)


def _statistics(path: str) -> metric_table.Statistics:
    """What one compares runs by, of a distribution; its interval, extremes and n are in the report and summary.json."""
    metric = metric_table.find(path.rpartition("/")[2])
    if metric is not None:
        return metric.shown.mlflow
    return ("mean", "p99") if path.endswith(BRIEF) else metric_table.ALL_OF_A_DISTRIBUTION
