"""Intervals by bootstrap in two levels: repeats first, as they are what is independent, then what lies within them.

Percentile intervals (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13), in two levels as in Davison
& Hinkley, Bootstrap Methods and their Application, 1997, section 3.8. Few repeats make an interval narrower than it
should be; with one it says nothing of another day.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

RESAMPLES = 2000
LEVEL = 0.95
# A bootstrap of more gaps than this sees them in as many bins of equal count; the figures themselves see every gap.
MAX_BINS = 1000
MAX_REQUESTS = 10_000

# Values, and for each the number of the slot (a request, or a pair of them) that it belongs to.
Values = tuple[np.ndarray, np.ndarray]


def resamples(repeat_of_slot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How often each repeat and each pair of requests is in each resample: (resamples x repeats), (resamples x pairs).

    The seed is fixed: the same run gives the same intervals.
    """
    rng = np.random.default_rng(0)
    names, counts = np.unique(repeat_of_slot, return_counts=True)
    repeats = rng.multinomial(names.size, np.full(names.size, 1 / names.size), RESAMPLES)
    # A repeat drawn twice has its pairs drawn twice, independently, which is one draw of twice as many.
    pairs = [
        rng.multinomial(repeats[:, n] * count, np.full(count, 1 / count), RESAMPLES) for n, count in enumerate(counts)
    ]
    draws = np.empty((RESAMPLES, repeat_of_slot.size), dtype=np.float32)
    for n, name in enumerate(names):
        draws[:, repeat_of_slot == name] = pairs[n]
    return repeats, draws


def values(rows: pl.DataFrame, column: str, index: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column, and the pair that each belongs to. A list column has several values a request."""
    pairs = np.fromiter((index[name] for name in rows["name"]), dtype=np.int64, count=rows.height)
    found = rows.select(pl.Series("pair", pairs), column)
    if found.schema[column] == pl.List:
        found = found.explode(column)
    found = found.drop_nulls(column)
    return found["pair"].to_numpy(), found[column].to_numpy().astype(float)


def resampled(found: Values, statistic: str, draws: np.ndarray) -> np.ndarray:
    """The statistic in every resample; NaN where none of its requests was drawn."""
    pairs, numbers = found
    if statistic == "mean":
        sums = np.bincount(pairs, numbers, draws.shape[1])
        counts = np.bincount(pairs, minlength=draws.shape[1])
        with np.errstate(invalid="ignore", divide="ignore"):
            return (draws @ sums) / (draws @ counts)
    return _resampled_percentile(pairs, numbers, float(statistic[1:]) / 100, draws)


def _resampled_percentile(pairs: np.ndarray, numbers: np.ndarray, q: float, draws: np.ndarray) -> np.ndarray:
    """The percentile, by linear interpolation, of each resample, without writing any resample out."""
    order = np.argsort(numbers, kind="stable")
    pairs, numbers = pairs[order], numbers[order]
    if numbers.size <= MAX_BINS:
        counts = draws[:, pairs].astype(float)
    else:
        bins = np.arange(numbers.size) * MAX_BINS // numbers.size
        in_bin = np.zeros((draws.shape[1], MAX_BINS), dtype=np.float32)
        np.add.at(in_bin, (pairs, bins), 1)
        counts = (draws @ in_bin).astype(float)
        numbers = np.bincount(bins, numbers) / np.bincount(bins)
    below = counts.cumsum(axis=1)
    total = below[:, -1]
    rank = np.maximum(total - 1, 0) * q
    low, high = np.floor(rank), np.ceil(rank)
    last = numbers.size - 1
    at_low = numbers[np.minimum((below <= low[:, None]).sum(axis=1), last)]
    at_high = numbers[np.minimum((below <= high[:, None]).sum(axis=1), last)]
    return np.where(total > 0, at_low + (rank - low) * (at_high - at_low), np.nan)


def interval(statistics: np.ndarray) -> tuple[float, float] | None:
    """The 95 % percentile interval of a statistic's resamples; None where most of them have no figure."""
    finite = statistics[np.isfinite(statistics)]
    if finite.size <= RESAMPLES / 2:
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


class Sample:
    """Requests of one cell, resampled once, so that all its figures come from the same draws."""

    def __init__(self, requests: pl.DataFrame) -> None:
        """requests: rows with `request_id` and `repeat`, as of `tables.requests`; those that were answered.

        Of more than MAX_REQUESTS that many, evenly spread over them, are looked at: more would narrow no interval that
        anybody reads, and their resamples would fill the memory.
        """
        self.requests = requests.gather_every(-(-requests.height // MAX_REQUESTS) or 1)
        requests = self.requests
        slots = requests.select("repeat", "request_id").unique(maintain_order=True).sort("repeat", "request_id")
        self.draws = resamples(slots["repeat"].to_numpy())[1] if slots.height else np.empty((0, 0))
        self._index = {name: n for n, name in enumerate(slots["request_id"])}

    def slots(self) -> np.ndarray:
        """The number of each request's place among the draws, in the order of `requests`."""
        return np.array([self._index[name] for name in self.requests["request_id"]], dtype=np.int64)

    def figure(self, column: str, statistic: str = "mean") -> dict[str, float | int] | None:
        """n, value, low and high of a column's mean or percentile ("p95"), in its unit; None where it has no value.

        A list column counts every one of its values. low and high are left out for a single request.
        """
        if self.requests.is_empty():
            return None
        slots, numbers = values(self.requests.rename({"request_id": "name"}), column, self._index)
        if not numbers.size:
            return None
        value = numbers.mean() if statistic == "mean" else np.percentile(numbers, float(statistic[1:]))
        found: dict[str, float | int] = {"n": int(numbers.size), "value": round(float(value), 4)}
        bounds = interval(resampled((slots, numbers), statistic, self.draws)) if np.unique(slots).size > 1 else None
        return found if bounds is None else found | {"low": round(bounds[0], 4), "high": round(bounds[1], 4)}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float | int] | None:
    """What all repeats gave over what all of them took, as a rate is; n counts repeats.

    Repeats alone are resampled, so with one there is no interval. None where nothing was taken.
    """
    above, below = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if not below.size or below.sum() <= 0:
        return None
    found: dict[str, float | int] = {"n": int(below.size), "value": float(f"{above.sum() / below.sum():.6g}")}
    if below.size < 2:
        return found
    repeats, _ = resamples(np.arange(below.size))
    with np.errstate(invalid="ignore", divide="ignore"):
        bounds = interval((repeats @ above) / (repeats @ below))
    if bounds is None:
        return found
    return found | {"low": float(f"{bounds[0]:.6g}"), "high": float(f"{bounds[1]:.6g}")}
