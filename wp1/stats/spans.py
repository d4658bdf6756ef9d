"""Intervals of time: their union, its length, and the overlap of two unions."""

from collections.abc import Sequence

import numpy as np


def merged(intervals: Sequence[np.ndarray]) -> np.ndarray:
    """The union of intervals (n x 2, seconds), as disjoint intervals in ascending order."""
    every = np.concatenate([i for i in intervals if i.size] or [np.empty((0, 2))])
    every = every[np.argsort(every[:, 0])]
    if not len(every):
        return every
    reach = np.maximum.accumulate(every[:, 1])
    new = np.concatenate([[True], every[1:, 0] > reach[:-1]])
    last = np.concatenate([np.flatnonzero(new)[1:] - 1, [len(every) - 1]])
    return np.column_stack([every[new, 0], reach[last]])


def inside(times: np.ndarray, union: np.ndarray) -> np.ndarray:
    """Which of the times are inside a union, including its ends."""
    if not len(union):
        return np.zeros(len(times), dtype=bool)
    at = np.searchsorted(union[:, 0], times, side="right") - 1
    return (at >= 0) & (times <= union[np.maximum(at, 0), 1])


def length(intervals: np.ndarray) -> float:
    """Total seconds of a union."""
    return float((intervals[:, 1] - intervals[:, 0]).sum()) if len(intervals) else 0.0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Seconds that are in both of two unions."""
    if not len(a) or not len(b):
        return 0.0
    return length(a) + length(b) - length(merged([a, b]))
