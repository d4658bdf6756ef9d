"""Scores from a run's folder: examples.jsonl and records.jsonl, nothing else. Pure.

A request that failed scores zero, as a question that was not answered; how many is said beside every score. An example
that was asked in several repeats, or under several loads, counts once (`scoring.by_example`).
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis.base import cells, metric_table
from wp1.analysis.base.metrics import distribution
from wp1.analysis.quality import perplexity
from wp1.core.run_folder import RunFolder
from wp1.quality import scoring
from wp1.quality.benchmarks import find, longbench, longbench_v2, ruler
from wp1.quality.tasks import Row
from wp1.stats import intervals

# Depths are put together into so many bins for the heatmap.
DEPTH_BINS = 5


def scored(run: RunFolder, requests: pl.DataFrame) -> pl.DataFrame:
    """One row a measured request of a judged run: its example, score in 0..1, and how fast it was.

    requests: `tables.requests`. Of perplexity tasks `score` is null. Empty for a run that judged nothing.
    Raises ConfigError where examples.jsonl is broken.
    """
    if not run.examples:
        return pl.DataFrame()
    examples = {(line["cell"], line["example"]): line for line in run.examples}
    timed = [metric.key for metric in metric_table.of_kind("request") if metric.shown.overview or metric.shown.scores]
    rows = []
    for record in requests.filter(~pl.col("warmup")).iter_rows(named=True):
        example = examples.get((record["cell"], record["example"]))
        if example is None:
            continue
        score, odd = None, False
        if example["metric"] != perplexity.METRIC:
            score, odd = _score(example, record["text"]) if record["status"] == "ok" else (0.0, False)
        benchmark, _, task = example["task"].partition("/")
        rows.append(
            {
                **{key: record[key] for key in ("arm", "cell", "repeat", "status", "prompt_tokens", "output_tokens")},
                **{key: record[key] for key in (*timed, "nll_window", "nll")},
                **{key: example[key] for key in ("example", "category", "metric", "length", "label")},
                "depth": None if example["depth"] is None else float(example["depth"]),
                "difficulty": example["difficulty"],
                "length_group": example["length_group"],
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
    return pl.DataFrame(rows, infer_schema_length=None)


def _score(example: Mapping[str, Any], text: str) -> tuple[float, bool]:
    """The score, and whether the task's rule failed on this answer: then it is zero, and one of those that are counted.

    Raises ConfigError for a task that does not exist.
    """
    task = find(example["task"])
    row = Row("", "", answers=example["answers"], all_classes=example["all_classes"])
    try:
        return float(task.score(text or "", row)), False
    except Exception:  # a rule is official code, and a model may answer anything
        return 0.0, True


def summarise(rows: pl.DataFrame, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """What there is to say of a judged run, for summary.json; None for one that judged nothing.

    rows: from `scored`. source: run_metadata.json's `dataset`.
    """
    if rows.is_empty():
        return None
    arms = rows["arm"].unique(maintain_order=True).to_list()
    found = {arm: _of_arm(rows.filter(pl.col("arm") == arm)) for arm in arms}
    compared = differences(*(rows.filter(pl.col("arm") == arm) for arm in arms[:2])) if len(arms) > 1 else None
    return {"dataset": dict(source), "arms": found, "differences": compared}


def _of_arm(rows: pl.DataFrame) -> dict[str, Any]:
    judged = rows.filter(pl.col("score").is_not_null())
    benchmarks = {
        str(name): _overall(str(name), part) for (name,), part in judged.group_by("benchmark", maintain_order=True)
    }
    return {
        "tasks": [_task(part) for _, part in judged.group_by("benchmark", "task", maintain_order=True)],
        "benchmarks": benchmarks,
        "overall": scoring.mean_of(_by_task(judged)),
        "groups": _groups(judged),
        "by_length": by_length(judged),
        "needles": needles(judged),
        "effective_length": effective_length(judged),
        "perplexity": perplexity.by_position(rows),
        "cut": int(rows["cut"].sum()),
        "odd": int(rows["odd"].sum()),
    }


def _asked(rows: pl.DataFrame) -> list[tuple[str, str]]:
    """What each row is of: an example, and the length or data of its cell, as ids are of one length."""
    return [(cells.parse(cell).prompt, example) for cell, example in rows.select("cell", "example").iter_rows()]


def _units(rows: pl.DataFrame) -> intervals.Units:
    """Of latencies: the repeat, or with fewer than three of these the example."""
    _, examples = np.unique([f"{prompt} {example}" for prompt, example in _asked(rows)], return_inverse=True)
    return intervals.units(rows["repeat"].to_numpy(), examples)


def _by_task(rows: pl.DataFrame) -> dict[str, np.ndarray]:
    return {
        f"{benchmark}/{task}": scoring.by_example(part["score"].to_list(), _asked(part))
        for (benchmark, task), part in rows.group_by("benchmark", "task", maintain_order=True)
    }


def _overall(benchmark: str, rows: pl.DataFrame) -> dict[str, Any]:
    """By the benchmark's own rule: LongBench's is the mean of categories, LongBench v2's of all rows."""
    groups = _by_task(rows)
    if benchmark == longbench.NAME:
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
        for metric in metric_table.of_kind("request")
        if metric.shown.scores
    }


def _groups(rows: pl.DataFrame) -> dict[str, Any]:
    """LongBench v2 by difficulty and length, LongBench-E by length: the mean of the tasks' scores in each group."""
    wanted = [
        (longbench_v2.NAME, "difficulty", longbench_v2.DIFFICULTIES),
        (longbench_v2.NAME, "length_group", longbench_v2.LENGTHS),
        (longbench.NAME, "length_group", [name for _, name in longbench.LENGTH_GROUPS]),
    ]
    found = {}
    for benchmark, column, names in wanted:
        for name in names:
            part = rows.filter((pl.col("benchmark") == benchmark) & pl.col(column).eq_missing(pl.lit(name)))
            if not part.is_empty():
                found[f"{benchmark}, {name}"] = scoring.mean_of(_by_task(part))
    return found


def by_length(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """By bucket of prompt length: the mean of the tasks' scores there, and the speed of the same requests."""
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


def needles(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """RULER's needle tasks by length and depth of the needle that was asked for; depths in percent."""
    part = rows.filter((pl.col("benchmark") == ruler.NAME) & pl.col("depth").is_not_null())
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


def effective_length(rows: pl.DataFrame) -> dict[str, Any] | None:
    """How far RULER's tasks carry: the longest length up to which every length scores enough.

    absolute: at least 85.6 %, RULER's threshold; relative: at least that share of the score at the shortest length,
    for models that are below the first everywhere. Null where not even the shortest does.
    """
    part = rows.filter((pl.col("benchmark") == ruler.NAME) & pl.col("length").is_not_null())
    if part.is_empty():
        return None
    means = [
        (int(length), scoring.mean_of(_by_task(of))["mean"])  # type: ignore[call-overload]
        for (length,), of in part.sort("length").group_by("length", maintain_order=True)
    ]
    first = means[0][1]
    return {
        "threshold": ruler.THRESHOLD,
        "absolute": _reached(means, ruler.THRESHOLD),
        "relative": _reached(means, ruler.THRESHOLD / 100 * first) if first > 0 else None,
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

    a, b: rows of `scored`. n: examples; identical: the share of answers that are the same text; shown: of a task,
    whether its difference stands among those of all tasks (`intervals.false_discovery`), null where fewer than six
    examples cannot tell; perplexity: `perplexity.of_both`.
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
    for row, shown in zip(tasks, intervals.false_discovery([_judged(row) for row in tasks]), strict=True):
        row["shown"] = shown
    overall = _delta(pairs["delta"].to_numpy(), _asked(pairs))
    return {
        "n": overall["n"],
        "identical": round(float((pairs["said"] == pairs["said_b"]).mean()), 4),  # type: ignore[arg-type]
        "tasks": tasks,
        "overall": overall,
        "perplexity": perplexity.of_both(a, b),
    }


def _judged(row: Mapping[str, Any]) -> float | None:
    return row["p"] if row["n"] >= scoring.MIN_EXAMPLES else None


def _delta(values: np.ndarray, examples: Sequence[Hashable] | None = None) -> dict[str, Any]:
    """n, delta, low, high and p of differences in percentage points. examples: what each is of, as each counts once.

    Student's interval; where all are 0, 100 or -100, or too few differ to show how much they vary, that of
    `intervals.paired`.
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
    """artifacts/scores.csv: a row a request, without its text's windows."""
    return rows.drop("nll").with_columns(labels=pl.lit(", ".join(labels)))
