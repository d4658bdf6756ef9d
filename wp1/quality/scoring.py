"""Scores in percent with n and a 95 % interval: of a task, a category, a benchmark.

Examples are what is independent: the same question asked again, in another repeat or under another load, is no new one.
It counts once, with the mean of its answers' scores.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from wp1.stats import intervals
from wp1.stats.intervals import wilson

# Part marks of fewer examples, or of which fewer are off the end of the scale, do not show how much they vary.
ENOUGH = 10
ENOUGH_APART = 5
# Fewer than these and a score says little; reports mark it.
FEW = 30
# From fewer nobody can tell a difference.
MIN_EXAMPLES = 6


def by_example(values: Sequence[float], examples: Sequence[Hashable] | None) -> np.ndarray:
    """The mean of each example's values, in the order in which they came first. examples: of each value, what was
    asked; None where each is of its own."""
    if examples is None:
        return np.asarray(values, dtype=float)
    of: dict[Hashable, list[float]] = {}
    for example, value in zip(examples, values, strict=True):
        of.setdefault(example, []).append(float(value))
    return np.array([sum(found) / len(found) for found in of.values()])


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of examples' scores in 0..1, never without width.

    Wilson's where all are 0 or 1; else Student's. Of fewer than ten, or where fewer than five are above 0 or below 1,
    Wilson's over their sum: it is wider than part marks need, and Student's would take what few have not shown for
    certain.
    """
    apart = min(int((values > 0).sum()), int((values < 1).sum()))
    if np.isin(values, (0.0, 1.0)).all() or values.size < ENOUGH or apart < ENOUGH_APART:
        return wilson(float(values.sum()), values.size)
    found = intervals.around(intervals.Parts(float(values.mean()), values))
    assert found is not None
    return max(0.0, found.low), min(1.0, found.high)


def of_task(values: Sequence[float], examples: Sequence[Hashable] | None = None) -> dict[str, Any]:
    """n, mean, low and high in percent of one task's scores in 0..1, with the interval of `interval`.

    examples: what each score is of (`by_example`); n counts these.
    """
    array = by_example(values, examples)
    if not array.size:
        return {"n": 0, "mean": None, "low": None, "high": None}
    return {"n": int(array.size), **_percent(float(array.mean()), *interval(array))}


def mean_of(
    groups: Mapping[str, Sequence[float] | np.ndarray], categories: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The unweighted mean over tasks in percent, with its 95 % interval.

    groups: scores in 0..1 by task, one an example (`by_example`). categories: the category of each task; the mean is
    then over categories, each the mean of its tasks, which is LongBench's overall score. The interval puts the tasks'
    own together by their squared distances from the mean (MOVER: Zou and Donner 2008, Statistics in Medicine 27).
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
    of = {task: categories[task] for task in tasks}
    sizes = {category: list(of.values()).count(category) for category in of.values()}
    return {task: 1 / (len(sizes) * sizes[of[task]]) for task in tasks}


def _percent(*shares: float) -> dict[str, float]:
    return {name: round(100 * share, 3) for name, share in zip(("mean", "low", "high"), shares, strict=True)}
