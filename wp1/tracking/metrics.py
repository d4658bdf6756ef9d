"""The figures of a whole run under their names in MLflow."""

import math
from collections.abc import Iterator
from typing import Any

from wp1.analysis.base import metrics
from wp1.tracking.entry import named

# Endings of distributions that are not in `METRICS` and are published only by mean and p99.
BRIEF = ("decode_queue_ms", "bytes_a_handoff", "loop_lag_ms")
# Group of the metrics that MLflow's comparison pages should open with; they start with the first logged metric or with
# the first in alphabetical order.
FIRST = "_latency"
# Figures of a cell at a load, in addition to metrics.
LOAD_FIGURES = ("mfu", "mbu", "kv_use_peak", "preemptions", "attainment", "joules_per_output_token")
# Not figures of the whole run, or shown elsewhere on the page; stall_ms duplicates handoff_ms in older summaries.
NOT_METRICS = ("cells", "samples", "statuses", "window_s", "stall_ms")


def metrics_of(summary: dict[str, Any], compared: dict[str, Any] | None = None) -> dict[str, float]:
    """The figures of a whole run, such as `latency/ttft_ms/p50` or `device/cuda_0/memory_gib_peak`.

    The main latencies for comparing runs come first, as `_latency/ttft_ms_mean`, or `_latency/ttft_ms_mean.disagg` for
    each arm.
    compared: the comparison of a run with several arms (`arms.contents`). It adds the figures of each arm, such as
    `disagg/latency/ttft_ms/p50` and `disagg/goodput/1024`, and the difference of the arms in each cell, such as
    `comparison/1024-rate0.5/ttft_ms/mean/ratio`.
    """
    figures = list(_headlines(summary, compared))
    figures += [number for name, profile in summary["profiling"].items() for number in numbers(name, profile)]
    if summary["slo"]["attainment"] is not None:
        figures.append(("slo/attainment", float(summary["slo"]["attainment"])))
    figures += _beside_latency(summary)
    figures += _scores(summary.get("quality"))
    if compared is not None:
        figures += _compared(compared)
    return named(figures)


def _headlines(summary: dict[str, Any], compared: dict[str, Any] | None) -> Iterator[tuple[str, float]]:
    if compared is None:
        of = {"": summary["profiling"].get("latency", {}).get("overall", {})}
    else:
        of = {f".{arm}": compared["overall"][arm] for arm in compared["arms"]}
    for figure in metrics.shown_in("mlflow_first"):
        for arm, figures in of.items():
            value = figure.value_in(figures)
            if value is not None and math.isfinite(value):
                yield f"{FIRST}/{figure.column}{arm}", float(value)


def _beside_latency(summary: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The fit over the prompt length, as `length/agg/quadratic_share`, and the goodput found, as `goodput/agg/1024`.

    Also, by cell, MFU and MBU, as `length/agg/1024-conc1/mfu` and `load/agg/1024-conc4/mbu`, with output and KV use.
    """
    lengths, loads = summary.get("by_length"), summary.get("by_load")
    # Metrics of single requests are published with each cell.
    of_load = [figure.short_column for figure in metrics.shown_in("load") if not figure.metric.of_one_request]
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
    """The scores of a run in percent.

    By task, benchmark and overall, as `score/agg/longbench/hotpotqa`, `score/agg/ruler` and `score/agg`; by length, as
    `score/agg/length/1024`; perplexity by position, as `perplexity/agg/1024`; and the difference between two arms.
    """
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
        for mean in metrics.means_in("overview"):
            yield from numbers(f"comparison/{cell}/{mean.name}/ratio", (figures.get(mean.name) or {}).get("ratio"))
    parity = compared["parity"]
    if parity["compared"]:
        yield "comparison/same_tokens_share", parity["same"] / parity["compared"]


def numbers(path: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yields every number in a profile with its path; for a distribution, only those that `_statistics` selects."""
    if isinstance(value, dict):
        # A distribution; an empty one has only n.
        if "n" in value:
            value = {key: value[key] for key in _statistics(path) if key in value}
        for key, part in value.items():
            if key not in NOT_METRICS:
                # cuda_0 for "cuda:0": MLflow on Windows does not accept colons.
                step = "" if key in ("overall", "devices") else "/" + str(key).replace(":", "_")
                yield from numbers(path + step, part)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield path, float(value)


def _statistics(path: str) -> metrics.Statistics:
    """The statistics of a distribution to publish. Interval, extremes and n are in the report and summary.json."""
    metric = metrics.find(path.rpartition("/")[2])
    if metric is not None:
        return metric.shown.mlflow
    return ("mean", "p99") if path.endswith(BRIEF) else metrics.ALL_OF_A_DISTRIBUTION
