"""Scores in percent with n and a 95 % interval: of a task, a category, a benchmark."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wp1.analysis.metrics import mean_interval

LEVEL_Z = 1.959964  # of a 95 % interval
RESAMPLES = 2000
# Fewer than these and a score says little; reports mark it.
FEW = 30


def wilson(right: int, n: int) -> tuple[float, float]:
    """The Wilson score interval of a share, in 0..1 (Wilson 1927): honest for few answers and near 0 and 1."""
    if not n:
        return 0.0, 1.0
    share, z2 = right / n, LEVEL_Z**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = LEVEL_Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # Exactly 0 and 1 at the ends, where rounding would leave a crumb.
    return (max(0.0, centre - half) if right else 0.0), (min(1.0, centre + half) if right < n else 1.0)


def of_task(values: Sequence[float], graded: bool) -> dict[str, Any]:
    """n, mean, low and high in percent of one task's scores in 0..1.

    Wilson's interval where answers are right or wrong, else a bootstrap of the mean. The interval is of the task's
    score over examples like these, so it does not shrink for a model that gets ten out of ten right.
    """
    array = np.asarray(values, dtype=float)
    if not array.size:
        return {"n": 0, "mean": None, "low": None, "high": None}
    if graded and not np.isin(array, (0.0, 1.0)).all():
        low, high = mean_interval(array)
    else:
        # Scores that are all 0 or 1 are a share, whatever they could have been; a bootstrap of ten zeros has no width.
        low, high = wilson(round(float(array.sum())), array.size)
    return {"n": int(array.size), **_percent(float(array.mean()), low, high)}


def mean_of(groups: Mapping[str, Sequence[float]], categories: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The unweighted mean over tasks in percent, with a bootstrap interval that resamples within each task.

    groups: scores in 0..1 by task. categories: the category of each task; the mean is then over categories, each the
    mean of its tasks, which is LongBench's overall score.
    """
    filled = {name: np.asarray(values, dtype=float) for name, values in groups.items() if len(values)}
    if not filled:
        return {"n": 0, "tasks": 0, "mean": None, "low": None, "high": None}
    weights = _weights(list(filled), categories)
    rng = np.random.default_rng(0)
    draws = sum(
        weights[name] * rng.choice(values, (RESAMPLES, values.size)).mean(axis=1) for name, values in filled.items()
    )
    low, high = np.quantile(draws, [0.025, 0.975])
    mean = sum(weights[name] * float(values.mean()) for name, values in filled.items())
    n = int(sum(values.size for values in filled.values()))
    return {"n": n, "tasks": len(filled), **_percent(mean, float(low), float(high))}


def _weights(tasks: list[str], categories: Mapping[str, str] | None) -> dict[str, float]:
    if categories is None:
        return dict.fromkeys(tasks, 1 / len(tasks))
    of = {task: categories[task] for task in tasks}
    sizes = {category: list(of.values()).count(category) for category in of.values()}
    return {task: 1 / (len(sizes) * sizes[of[task]]) for task in tasks}


def _percent(*shares: float) -> dict[str, float]:
    return {name: round(100 * share, 3) for name, share in zip(("mean", "low", "high"), shares, strict=True)}
