"""Scores of tasks, categories and benchmarks in percent, with n and a 95 % confidence interval.

The independent unit is the example: a question asked again, in another repeat or under another load, counts once, with
the mean score of its answers.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from wp1.stats import intervals
from wp1.stats.intervals import wilson

# With fewer examples, or with fewer of them off either end of the scale, fractional scores do not show their variance.
ENOUGH = 10
ENOUGH_APART = 5
# With fewer examples a score says little; reports mark it.
FEW = 30
# With fewer examples no difference can be significant.
MIN_EXAMPLES = 6


def by_example(values: Sequence[float], examples: Sequence[Hashable] | None) -> np.ndarray:
    """The mean value of each example, in order of first appearance.

    examples: the example that each value belongs to; None if every value is a separate example.
    """
    if examples is None:
        return np.asarray(values, dtype=float)
    grouped: dict[Hashable, list[float]] = {}
    for example, value in zip(examples, values, strict=True):
        grouped.setdefault(example, []).append(float(value))
    return np.array([sum(group) / len(group) for group in grouped.values()])


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % confidence interval of the mean of examples' scores in 0..1; its width is never 0.

    Wilson's if all scores are 0 or 1; otherwise Student's. With fewer than ten examples, or with fewer than five above
    0 or below 1, Wilson's over their sum: it is wider than fractional scores need, but Student's would underestimate a
    variance that so few examples do not show.
    """
    apart = min(int((values > 0).sum()), int((values < 1).sum()))
    if np.isin(values, (0.0, 1.0)).all() or values.size < ENOUGH or apart < ENOUGH_APART:
        return wilson(float(values.sum()), values.size)
    student = intervals.around(intervals.Parts(float(values.mean()), values))
    assert student is not None
    return max(0.0, student.low), min(1.0, student.high)


def of_task(values: Sequence[float], examples: Sequence[Hashable] | None = None) -> dict[str, Any]:
    """One task's n, and its mean, low and high in percent, from scores in 0..1; the interval is that of `interval`.

    examples: the example of each score (`by_example`); n counts examples.
    """
    array = by_example(values, examples)
    if not array.size:
        return {"n": 0, "mean": None, "low": None, "high": None}
    return {"n": int(array.size), **_percent(float(array.mean()), *interval(array))}


def mean_of(
    groups: Mapping[str, Sequence[float] | np.ndarray], categories: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The unweighted mean over tasks in percent, with its 95 % confidence interval.

    groups: scores in 0..1 by task, one per example (`by_example`). categories: the category of each task; if given, the
    mean is over categories, each the mean of its tasks, as in LongBench's overall score. The interval combines the
    tasks' intervals by their squared distances from the mean (MOVER: Zou and Donner 2008, Statistics in Medicine 27).
    """
    filled = {name: np.asarray(values, dtype=float) for name, values in groups.items() if len(values)}
    if not filled:
        return {"n": 0, "tasks": 0, "mean": None, "low": None, "high": None}
    weights = _weights(list(filled), categories)
    mean = below = above = 0.0
    for name, values in filled.items():
        own, (low, high) = float(values.mean()), interval(values)
        mean += weights[name] * own
        below += (weights[name] * max(0.0, own - low)) ** 2
        above += (weights[name] * max(0.0, high - own)) ** 2
    n = int(sum(values.size for values in filled.values()))
    low, high = max(0.0, mean - math.sqrt(below)), min(1.0, mean + math.sqrt(above))
    return {"n": n, "tasks": len(filled), **_percent(mean, low, high)}


def _weights(tasks: list[str], categories: Mapping[str, str] | None) -> dict[str, float]:
    if categories is None:
        return dict.fromkeys(tasks, 1 / len(tasks))
    category_of = {task: categories[task] for task in tasks}
    sizes = {category: list(category_of.values()).count(category) for category in category_of.values()}
    return {task: 1 / (len(sizes) * sizes[category_of[task]]) for task in tasks}


def _percent(*shares: float) -> dict[str, float]:
    return {name: round(100 * share, 3) for name, share in zip(("mean", "low", "high"), shares, strict=True)}
