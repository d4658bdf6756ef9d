"""Scores from a run's folder: examples.jsonl and records.jsonl, nothing else. Pure.

A failed request scores zero, like an unanswered question; every score comes with their number. An example that was
asked in several repeats, or under several loads, counts once (`scoring.by_example`).
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis.base import cells, metrics
from wp1.analysis.base.aggregates import distribution
from wp1.analysis.quality import answers, perplexity
from wp1.core.run_folder import RunFolder
from wp1.quality import benchmarks, scoring
from wp1.quality.tasks import Reporting
from wp1.stats import intervals

# Number of bins of needle depths in the heatmap.
DEPTH_BINS = 5


def scored(run: RunFolder, requests: pl.DataFrame) -> pl.DataFrame:
    """One row for each measured request whose answer is scored: its example, score in 0..1, and how fast it was.

    requests: `tables.requests`. `score` is null for perplexity tasks. Empty for a run without scores.
    Raises ConfigError if examples.jsonl is broken.
    """
    if not run.examples:
        return pl.DataFrame()
    examples, scores = answers.examples(run), answers.Scores(run)
    timed = [metric.key for metric in metrics.of_kind("request") if metric.shown.overview or metric.shown.scores]
    rows = []
    for record in requests.filter(~pl.col("warmup")).iter_rows(named=True):
        example = examples.get((record["cell"], record["example"]))
        if example is None:
            continue
        score, odd = scores.of(example, record) or (None, False)
        benchmark, _, task = example["task"].partition("/")
        rows.append(
            {
                **{key: record[key] for key in ("arm", "cell", "repeat", "status", "prompt_tokens", "output_tokens")},
                **{key: record[key] for key in (*timed, "nll_window", "nll")},
                **{key: example[key] for key in ("example", "category", "metric", "length", "label")},
                "depth": None if example["depth"] is None else float(example["depth"]),
                "groups": answers.groups(example),
                "benchmark": benchmark,
                "task": task,
                "bucket": perplexity.bucket(record["prompt_tokens"] or example["prompt_tokens"]),
                "cut": example["tokens_before"] > example["prompt_tokens"],
                "score": score,
                "odd": odd,
                "expected": " / ".join(map(str, example["answers"])),
                "said": record["text"] or "",
            }
        )
    return pl.DataFrame(rows, infer_schema_length=None, schema_overrides={"groups": pl.List(pl.String)})


def summarise(rows: pl.DataFrame, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scores for summary.json; None for a run without scores.

    rows: from `scored`. source: run_metadata.json's `dataset`.
    """
    if rows.is_empty():
        return None
    arms = rows["arm"].unique(maintain_order=True).to_list()
    shown = reporting(rows, source)
    found = {arm: _of_arm(rows.filter(pl.col("arm") == arm), shown) for arm in arms}
    compared = differences(*(rows.filter(pl.col("arm") == arm) for arm in arms[:2])) if len(arms) > 1 else None
    return {"dataset": dict(source), "arms": found, "differences": compared}


def reporting(rows: pl.DataFrame, source: Mapping[str, Any]) -> dict[str, Reporting]:
    """How the scores of each benchmark are aggregated, by its name. source: run_metadata.json's `dataset`."""
    names = rows["benchmark"].unique(maintain_order=True).to_list()
    outside = source.get("reporting") or {}
    return {
        name: own.reporting if (own := benchmarks.own().get(name)) is not None else _saved(outside.get(name, {}))
        for name in names
    }


def _saved(saved: Mapping[str, Any]) -> Reporting:
    return Reporting(**{key.name: saved[key.name] for key in fields(Reporting) if key.name in saved})


def _of_arm(rows: pl.DataFrame, shown: Mapping[str, Reporting]) -> dict[str, Any]:
    answered = rows.filter(pl.col("score").is_not_null())
    of_benchmarks = {
        str(name): _overall(part, shown[str(name)])
        for (name,), part in answered.group_by("benchmark", maintain_order=True)
    }
    return {
        "tasks": [_task(part) for _, part in answered.group_by("benchmark", "task", maintain_order=True)],
        "benchmarks": of_benchmarks,
        "overall": scoring.mean_of(_by_task(answered)),
        "groups": _groups(answered, shown),
        "by_length": by_length(answered),
        "needles": needles(answered, shown),
        "effective_length": effective_length(answered, shown),
        "perplexity": perplexity.by_position(rows),
        "cut": int(rows["cut"].sum()),
        "odd": int(rows["odd"].sum()),
    }


def _asked(rows: pl.DataFrame) -> list[tuple[str, str]]:
    """What identifies each row's example: the cell's prompt and the id, as ids are unique within one length only."""
    return [(cells.parse(cell).prompt, example) for cell, example in rows.select("cell", "example").iter_rows()]


def _units(rows: pl.DataFrame) -> intervals.Units:
    """The independent units of latencies: repeats, or examples if there are fewer than three repeats."""
    _, examples = np.unique([f"{prompt} {example}" for prompt, example in _asked(rows)], return_inverse=True)
    return intervals.units(rows["repeat"].to_numpy(), examples)


def _by_task(rows: pl.DataFrame) -> dict[str, np.ndarray]:
    return {
        f"{benchmark}/{task}": scoring.by_example(part["score"].to_list(), _asked(part))
        for (benchmark, task), part in rows.group_by("benchmark", "task", maintain_order=True)
    }


def _overall(rows: pl.DataFrame, shown: Reporting) -> dict[str, Any]:
    """The benchmark's score by its own rule: LongBench's is the mean of categories, LongBench v2's of all rows."""
    groups = _by_task(rows)
    if shown.by_category:
        categories = {f"{b}/{t}": c for b, t, c in rows.select("benchmark", "task", "category").iter_rows()}
        return scoring.mean_of(groups, categories)
    return scoring.mean_of(groups)


def _task(rows: pl.DataFrame) -> dict[str, Any]:
    first = rows.row(0, named=True)
    return {
        **{key: first[key] for key in ("benchmark", "task", "category", "metric")},
        "failed": rows.filter(pl.col("status") != "ok").height,
        **scoring.of_task(rows["score"].to_list(), _asked(rows)),
        **_speed(rows),
        "prompt_tokens": round(float(rows["prompt_tokens"].fill_null(0).mean() or 0)),  # type: ignore[arg-type]
    }


def _speed(rows: pl.DataFrame) -> dict[str, Any]:
    units = _units(rows)
    return {
        metric.key: distribution(rows[metric.key].cast(pl.Float64).to_numpy(), units, metric.digits)
        for metric in metrics.of_kind("request")
        if metric.shown.scores
    }


def _groups(rows: pl.DataFrame, shown: Mapping[str, Reporting]) -> dict[str, Any]:
    """Mean of the tasks' scores in each group of a benchmark, such as LongBench v2's difficulties and lengths."""
    found = {}
    for benchmark, of in shown.items():
        for name in of.groups:
            part = rows.filter((pl.col("benchmark") == benchmark) & pl.col("groups").list.contains(name))
            if not part.is_empty():
                found[f"{benchmark}, {name}"] = scoring.mean_of(_by_task(part))
    return found


def by_length(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Mean of the tasks' scores in each bucket of prompt lengths, and the latency of the same requests."""
    found = []
    for (size,), part in rows.sort("bucket").group_by("bucket", maintain_order=True):
        found.append(
            {
                "bucket": size,
                **scoring.mean_of(_by_task(part)),
                "failed": part.filter(pl.col("status") != "ok").height,
                **_speed(part),
            }
        )
    return found


def needles(rows: pl.DataFrame, shown: Mapping[str, Reporting]) -> list[dict[str, Any]]:
    """Scores of needle tasks, such as RULER's, by length and by depth of the needle asked for (percent)."""
    names = [name for name, of in shown.items() if of.depths]
    part = rows.filter(pl.col("benchmark").is_in(names) & pl.col("depth").is_not_null())
    if part.is_empty():
        return []
    depths = sorted(set(part["depth"].to_list()))
    if len(depths) > 2 * DEPTH_BINS:
        width = 100 / DEPTH_BINS
        binned = ((pl.col("depth") / width).floor().clip(upper_bound=DEPTH_BINS - 1) + 0.5) * width
        part = part.with_columns(depth=binned)
    found = []
    for (length, depth), of in part.sort("length", "depth").group_by("length", "depth", maintain_order=True):
        found.append({"length": length, "depth": depth, **scoring.of_task(of["score"].to_list(), _asked(of))})
    return found


def effective_length(rows: pl.DataFrame, shown: Mapping[str, Reporting]) -> dict[str, Any] | None:
    """The longest length up to which a benchmark's tasks reach its threshold at every length.

    absolute: a score of at least the threshold, which is 85.6 % for RULER; relative: at least that share of the score
    at the shortest length, for models below the threshold everywhere. Null if even the shortest length fails. None if
    no benchmark has a threshold; if several have, the first one's.
    """
    rows = rows.filter(pl.col("length").is_not_null())
    there = set(rows["benchmark"])
    of = next((of for name, of in shown.items() if of.threshold is not None and name in there), None)
    if of is None or of.threshold is None:
        return None
    part = rows.filter(pl.col("benchmark") == next(name for name, one in shown.items() if one is of))
    means = [
        (int(length), scoring.mean_of(_by_task(rows))["mean"])  # type: ignore[call-overload]
        for (length,), rows in part.sort("length").group_by("length", maintain_order=True)
    ]
    first = means[0][1]
    return {
        "of": of.title,
        "threshold": of.threshold,
        "absolute": _reached(means, of.threshold),
        "relative": _reached(means, of.threshold / 100 * first) if first > 0 else None,
        "scores": {str(length): mean for length, mean in means},
    }


def _reached(means: Sequence[tuple[int, float]], enough: float) -> int | None:
    reached = None
    for length, mean in means:
        if mean < enough:
            break
        reached = length
    return reached


def differences(a: pl.DataFrame, b: pl.DataFrame) -> dict[str, Any]:
    """Second minus first in percentage points, over the same examples, by task and overall, with 95 % intervals.

    a, b: rows of `scored`. n: examples; identical: share of answers with the same text; shown: whether a task's
    difference is significant among those of all tasks (`intervals.false_discovery`), null with fewer than six
    examples, which are too few to tell; perplexity: `perplexity.of_both`.
    """
    keys = ["cell", "repeat", "example"]
    pairs = a.filter(pl.col("score").is_not_null()).join(b.select(*keys, "score", "said"), on=keys, suffix="_b")
    if pairs.is_empty():
        return {"n": 0, "identical": None, "tasks": [], "overall": None, "perplexity": perplexity.of_both(a, b)}
    pairs = pairs.with_columns(delta=100 * (pl.col("score_b") - pl.col("score")))
    tasks = [
        {"benchmark": benchmark, "task": task, **_delta(part["delta"].to_numpy(), _asked(part))}
        for (benchmark, task), part in pairs.group_by("benchmark", "task", maintain_order=True)
    ]
    for row, shown in zip(tasks, intervals.false_discovery([_p_of(row) for row in tasks]), strict=True):
        row["shown"] = shown
    overall = _delta(pairs["delta"].to_numpy(), _asked(pairs))
    return {
        "n": overall["n"],
        "identical": round(float((pairs["said"] == pairs["said_b"]).mean()), 4),  # type: ignore[arg-type]
        "tasks": tasks,
        "overall": overall,
        "perplexity": perplexity.of_both(a, b),
    }


def _p_of(row: Mapping[str, Any]) -> float | None:
    return row["p"] if row["n"] >= scoring.MIN_EXAMPLES else None


def _delta(values: np.ndarray, examples: Sequence[Hashable] | None = None) -> dict[str, Any]:
    """n, delta, low, high and p of differences in percentage points.

    examples: the example of each value; each example counts once. The interval is Student's t, or that of
    `intervals.paired` if all values are 0, 100 or -100, or too few differ from 0 to show their spread.
    """
    of = scoring.by_example(values.tolist(), examples) / 100
    found = intervals.around(intervals.Parts(float(of.mean()), of))
    if np.isin(of, (-1.0, 0.0, 1.0)).all() or of.size < scoring.ENOUGH or (of != 0).sum() < scoring.ENOUGH_APART:
        found = intervals.paired(of)
    assert found is not None
    return {
        "n": int(of.size),
        "delta": round(100 * float(of.mean()), 3),
        "low": round(100 * found.low, 3),
        "high": round(100 * found.high, 3),
        "p": float(f"{found.p:.6g}"),
    }


def table(rows: pl.DataFrame, labels: Sequence[str]) -> pl.DataFrame:
    """artifacts/scores.csv: a row per request, without the log-likelihoods of its text's windows."""
    groups = pl.when(pl.col("groups").list.len() > 0).then(pl.col("groups").list.join(", "))
    return rows.drop("nll").with_columns(groups=groups, labels=pl.lit(", ".join(labels)))
