"""Figures of one cell's requests with their intervals, all by `wp1.stats.intervals`."""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from wp1.stats import intervals
from wp1.stats.intervals import Units, Values


def resamples(repeat_of_slot: np.ndarray, order: np.ndarray | None = None) -> tuple[np.ndarray, Units]:
    """The repeats that there are, and the independent unit of each slot (`intervals.units`)."""
    return np.unique(repeat_of_slot), intervals.units(repeat_of_slot, order)


def of_slots(slots: np.ndarray, column: pl.Series) -> Values:
    """The values of a column, and the slot that each belongs to by its row.

    A list column has several values a row; null and NaN are none.
    """
    if column.dtype != pl.List:
        numbers = column.cast(pl.Float64).to_numpy()
        there = ~np.isnan(numbers)
        return Values(slots[there], numbers[there])
    # Gaps stay in the precision that they have: there may be a hundred million of them.
    counts = column.list.len().fill_null(0).cast(pl.Int64).to_numpy()
    numbers = column.explode(empty_as_null=False, keep_nulls=False)
    return Values(np.repeat(slots, counts), numbers.to_numpy())


class Sample:
    """Answered requests of one cell, so that all figures have the same units."""

    def __init__(self, requests: pl.DataFrame) -> None:
        """requests: rows with `request_id` and `repeat`, as of `tables.requests`; those that were answered."""
        self.requests = requests
        self._units = intervals.units(requests["repeat"].to_numpy(), order_of(requests["request_id"]))

    def figure(self, column: str, statistic: str = "mean", digits: int = 4) -> dict[str, float | int] | None:
        """n, value, low and high of a column's mean or percentile ("p95"), in its unit; None where it has no value.

        digits: decimals that are kept. A list column counts every one of its values. low and high are left out where
        too few parts have the figure.
        """
        found = self._values(column)
        if not found.numbers.size:
            return None
        parts = self._parts(found, statistic)
        value = intervals.figure_of(found.numbers, statistic) if parts is None else parts.value
        figure: dict[str, float | int] = {"n": int(found.numbers.size), "value": round(value, digits)}
        interval = None if parts is None else self._interval(found, parts, statistic)
        if interval is None:
            return figure
        return figure | {"low": round(interval.low, digits), "high": round(interval.high, digits)}

    def _interval(self, found: Values, parts: intervals.Parts, statistic: str) -> intervals.Interval | None:
        if statistic == "mean":
            return self._of_mean(found)
        made = intervals.around_percentile(parts, found.numbers, statistic)
        if made is None or found.numbers.min() < 0:
            return made
        return made._replace(low=max(0.0, made.low))

    def by_repeat(self, column: str) -> dict[int, float]:
        """The mean of a column in each repeat."""
        of_repeat = self.requests.group_by("repeat").agg(pl.col(column).mean()).drop_nulls()
        return {int(repeat): float(mean) for repeat, mean in of_repeat.iter_rows()}

    def interval(self, column: str) -> intervals.Interval | None:
        """The interval of a column's mean; None where too few parts have one."""
        found = self._values(column)
        return self._of_mean(found) if found.numbers.size else None

    def _of_mean(self, found: Values) -> intervals.Interval | None:
        count = self.requests.height
        sums, counts = np.bincount(found.slots, found.numbers, count), np.bincount(found.slots, minlength=count)
        return intervals.around_mean(self._units, sums, counts, not_negative=bool(found.numbers.min() >= 0))

    def _values(self, column: str) -> Values:
        return of_slots(np.arange(self.requests.height, dtype=np.int32), self.requests[column])

    def _parts(self, found: Values, statistic: str) -> intervals.Parts | None:
        present = np.zeros(self.requests.height, dtype=bool)
        present[found.slots] = True
        part_of_slot, count = intervals.parts_of(self._units, present, statistic, found.numbers.size)
        return intervals.in_parts(found, part_of_slot, count, statistic) if count else None


def order_of(request_ids: pl.Series) -> np.ndarray:
    """The place of requests among those of their repeat, as their ids end with it; else as they come."""
    numbers = request_ids.str.extract(r"(\d+)$").cast(pl.Int64)
    return np.arange(request_ids.len()) if numbers.null_count() else numbers.to_numpy()


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float | int] | None:
    """What all repeats gave over what all of them took, as a rate is; n counts repeats.

    Repeats are the units, so with one there is no interval. None where nothing was taken.
    """
    above, below = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if not below.size or below.sum() <= 0:
        return None
    parts = intervals.of_ratio(above, below)
    found: dict[str, float | int] = {"n": int(below.size), "value": float(f"{parts.value:.6g}")}
    interval = intervals.around(parts, not_negative=bool((above >= 0).all()))
    if interval is None or not math.isfinite(interval.high):
        return found
    return found | {"low": float(f"{interval.low:.6g}"), "high": float(f"{interval.high:.6g}")}
