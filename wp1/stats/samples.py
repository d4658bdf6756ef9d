"""Figures of one cell's requests with their intervals, computed by `wp1.stats.intervals`.

There is no resampling: with as few repeats as a run has, a bootstrap's intervals would be too narrow.
"""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from wp1.stats import intervals
from wp1.stats.intervals import Units, Values


def repeats_and_units(repeat_of_slot: np.ndarray, order: np.ndarray | None = None) -> tuple[np.ndarray, Units]:
    """The distinct repeats, and the independent unit of each slot (`intervals.units`)."""
    return np.unique(repeat_of_slot), intervals.units(repeat_of_slot, order)


def of_slots(slots: np.ndarray, column: pl.Series) -> Values:
    """The values of a column. slots: of each row. In a list column, every element counts; null and NaN are left out."""
    if column.dtype != pl.List:
        numbers = column.cast(pl.Float64).to_numpy()
        present = ~np.isnan(numbers)
        return Values(slots[present], numbers[present])
    # Token gaps keep their precision: there may be a hundred million of them.
    counts = column.list.len().fill_null(0).cast(pl.Int64).to_numpy()
    numbers = column.explode(empty_as_null=False, keep_nulls=False)
    return Values(np.repeat(slots, counts), numbers.to_numpy())


class Sample:
    """The answered requests of one cell. All its figures have the same independent units."""

    def __init__(self, requests: pl.DataFrame) -> None:
        """requests: rows of `tables.requests` that were answered, with `request_id` and `repeat`."""
        self.requests = requests
        self._units = intervals.units(requests["repeat"].to_numpy(), order_of(requests["request_id"]))

    def figure(self, column: str, statistic: str = "mean", digits: int = 4) -> dict[str, float | int] | None:
        """n, value, low and high of a column's mean or percentile ("p95"), in its unit; None if it has no values.

        digits: decimals to keep. In a list column, every element counts. low and high are left out if too few parts
        have the figure.
        """
        sample = self._values(column)
        if not sample.numbers.size:
            return None
        parts = self._parts(sample, statistic)
        value = intervals.figure_of(sample.numbers, statistic) if parts is None else parts.value
        figure: dict[str, float | int] = {"n": int(sample.numbers.size), "value": round(value, digits)}
        interval = None if parts is None else self._interval(sample, parts, statistic)
        if interval is None:
            return figure
        return figure | {"low": round(interval.low, digits), "high": round(interval.high, digits)}

    def _interval(self, sample: Values, parts: intervals.Parts, statistic: str) -> intervals.Interval | None:
        if statistic == "mean":
            return self._of_mean(sample)
        interval = intervals.around_percentile(parts, sample.numbers, statistic)
        if interval is None or sample.numbers.min() < 0:
            return interval
        return interval._replace(low=max(0.0, interval.low))

    def by_repeat(self, column: str) -> dict[int, float]:
        """The mean of a column in each repeat."""
        means = self.requests.group_by("repeat").agg(pl.col(column).mean()).drop_nulls()
        return {int(repeat): float(mean) for repeat, mean in means.iter_rows()}

    def interval(self, column: str) -> intervals.Interval | None:
        """The interval of a column's mean; None if too few parts have one."""
        sample = self._values(column)
        return self._of_mean(sample) if sample.numbers.size else None

    def _of_mean(self, sample: Values) -> intervals.Interval | None:
        count = self.requests.height
        sums, counts = np.bincount(sample.slots, sample.numbers, count), np.bincount(sample.slots, minlength=count)
        return intervals.around_mean(self._units, sums, counts, not_negative=bool(sample.numbers.min() >= 0))

    def _values(self, column: str) -> Values:
        return of_slots(np.arange(self.requests.height, dtype=np.int32), self.requests[column])

    def _parts(self, sample: Values, statistic: str) -> intervals.Parts | None:
        present = np.zeros(self.requests.height, dtype=bool)
        present[sample.slots] = True
        part_of_slot, count = intervals.parts_of(self._units, present, statistic, sample.numbers.size)
        return intervals.in_parts(sample, part_of_slot, count, statistic) if count else None


def order_of(request_ids: pl.Series) -> np.ndarray:
    """Each request's position in its repeat: the number at the end of its id, or else the order of the rows."""
    numbers = request_ids.str.extract(r"(\d+)$").cast(pl.Int64)
    return np.arange(request_ids.len()) if numbers.null_count() else numbers.to_numpy()


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float | int] | None:
    """The ratio of sums over repeats, such as a rate: n (repeats), value, low, high; None if the denominator is 0.

    Repeats are the units, so there is no interval for a single one.
    """
    above, below = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if not below.size or below.sum() <= 0:
        return None
    parts = intervals.of_ratio(above, below)
    figure: dict[str, float | int] = {"n": int(below.size), "value": float(f"{parts.value:.6g}")}
    interval = intervals.around(parts, not_negative=bool((above >= 0).all()))
    if interval is None or not math.isfinite(interval.high):
        return figure
    return figure | {"low": float(f"{interval.low:.6g}"), "high": float(f"{interval.high:.6g}")}
