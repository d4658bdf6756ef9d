"""Scores in percent with n and a 95 % interval: of a task, a category, a benchmark."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wp1.analysis.metrics import mean_interval, wilson

# Part marks of fewer answers have no bootstrap worth the name.
ENOUGH = 10
# Fewer than these and a score says little; reports mark it.
FEW = 30


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of scores in 0..1: Wilson's where all are 0 or 1, else a bootstrap.

    Of fewer than ten Wilson's too, over their sum: it is wider than part marks need, and a bootstrap of so few is too
    narrow, of one without any width.
    """
    if np.isin(values, (0.0, 1.0)).all() or values.size < ENOUGH:
        return wilson(float(values.sum()), values.size)
    return mean_interval(values)


def of_task(values: Sequence[float]) -> dict[str, Any]:
    """n, mean, low and high in percent of one task's scores in 0..1, with the interval of `interval`."""
    array = np.asarray(values, dtype=float)
    if not array.size:
        return {"n": 0, "mean": None, "low": None, "high": None}
    return {"n": int(array.size), **_percent(float(array.mean()), *interval(array))}


def mean_of(groups: Mapping[str, Sequence[float]], categories: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The unweighted mean over tasks in percent, with its 95 % interval.

    groups: scores in 0..1 by task. categories: the category of each task; the mean is then over categories, each the
    mean of its tasks, which is LongBench's overall score. The interval puts the tasks' own together by their squared
    distances from the mean (MOVER: Zou and Donner 2008, Statistics in Medicine 27).
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
