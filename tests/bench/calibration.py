"""Simulates how often a difference is claimed although there is none, and how often an interval covers the true value.

Two identical arms serve the same requests. Lengths are lognormal and the same in both arms; every answer has its own
noise, which may be correlated with its neighbours'; each repeat of each arm is a little faster or slower as a whole.
The claims of `wp1.analysis` are counted.

`python -m tests.bench --only aa-simulated` makes the table of docs/metrics.md; tests/unit/stats/test_intervals.py
asserts its bands.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy import signal, special

from wp1.analysis.comparison import figures as comparison_figures
from wp1.stats import intervals, samples
from wp1.stats.intervals import Values

STATISTICS = ("mean", "p50", "p95", "rate", "attainment")
SPREAD, NOISE = 0.5, 0.05  # standard deviations of log length and of log noise
# A limit that nine in ten requests meet.
LIMIT = float(np.exp(SPREAD * special.ndtri(0.9)))
TRIALS = 2000
# Cells in a comparison, for counting comparisons with any claim.
CELLS = 4


@dataclass(frozen=True)
class Design:
    """Repeats, requests in each, standard deviation of the repeat effect, and correlation of neighbours' noise."""

    repeats: int
    requests: int
    effect: float = 0.0
    correlation: float = 0.0

    @property
    def trials(self) -> int:
        """Number of simulated comparisons: fewer for large designs, which take longest and vary least."""
        return max(TRIALS // 2, min(TRIALS, TRIALS * 2000 // (self.repeats * self.requests)))


DESIGNS = (
    *(
        Design(repeats, requests, effect)
        for effect in (0.0, 0.05)
        for repeats in (3, 5, 10)
        for requests in (4, 30, 1000)
    ),
    Design(3, 100, 0.05, 0.8),
    Design(10, 100, 0.05, 0.8),
)
OF_ONE_REPEAT = (Design(1, 6), Design(1, 30), Design(1, 300), Design(1, 300, 0.0, 0.8), Design(2, 30))


def arms(design: Design, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Latencies of both arms, each (repeats, requests)."""
    shape = design.repeats, design.requests
    lengths = rng.lognormal(0, SPREAD, shape)
    a, b = (lengths * _repeat_effects(design, rng) * np.exp(NOISE * _noise(design, rng)) for _ in range(2))
    return a, b


def _repeat_effects(design: Design, rng: np.random.Generator) -> np.ndarray:
    return 1 + design.effect * rng.standard_normal((design.repeats, 1))


def _noise(design: Design, rng: np.random.Generator) -> np.ndarray:
    """Noise of variance one, (repeats, requests), in which neighbours have the correlation `design.correlation`."""
    noise = rng.standard_normal((design.repeats, design.requests))
    if not design.correlation:
        return noise
    # The first value keeps variance one, so that all values have the same variance.
    noise[:, 1:] *= np.sqrt(1 - design.correlation**2)
    powers = design.correlation ** np.arange(design.requests)
    return signal.fftconvolve(noise, powers[None], axes=1)[:, : design.requests]


def compared(a: np.ndarray, b: np.ndarray, statistic: str) -> dict[str, Any]:
    """The row of a comparison (`wp1.analysis.comparison.figures`) of two arms' latencies."""
    repeats, requests = a.shape
    if statistic == "rate":
        # A repeat's tokens per second, with one request after another.
        return _rates(a, b)
    _, units = samples.repeats_and_units(np.repeat(np.arange(repeats), requests))
    slots = np.arange(a.size, dtype=np.int32)
    if statistic == "attainment":
        a, b, statistic = (a <= LIMIT).astype(float), (b <= LIMIT).astype(float), "share"
    return comparison_figures._row(Values(slots, a.ravel()), Values(slots, b.ravel()), statistic, units)


def _rates(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    tokens = np.full(len(a), float(a.shape[1]))
    parts = [intervals.of_ratio(tokens, side.sum(axis=1)) for side in (a, b)]
    interval = intervals.between(*parts)
    tested = interval is not None and interval.parts >= intervals.MIN_REPEATS
    return comparison_figures._figures(len(a), len(b), parts[0].value, parts[1].value, interval, tested, True)


def claimed(design: Design, statistic: str, trials: int, seed: int = 0) -> float:
    """The share of A/A comparisons whose interval excludes zero."""
    rng = np.random.default_rng(seed)
    return float(np.mean([bool(compared(*arms(design, rng), statistic)["excludes_zero"]) for _ in range(trials)]))


def anything_shown(design: Design, trials: int, seed: int = 0) -> float:
    """The share of A/A comparisons of CELLS cells that show a difference in any of the STATISTICS."""
    rng = np.random.default_rng(seed)
    count = 0
    for _ in range(trials):
        cells = [arms(design, rng) for _ in range(CELLS)]
        p_values = [compared(*cell, statistic)["p"] for cell in cells for statistic in STATISTICS]
        count += any(intervals.false_discovery(p_values))
    return count / trials


def covered(design: Design, statistic: str, trials: int, seed: int = 0) -> float:
    """The share of one arm's intervals that cover the true mean or percentile over all requests and repeats."""
    rng = np.random.default_rng(seed)
    truth = _truth(design, statistic)
    held = 0
    for _ in range(trials):
        values, _ = arms(design, rng)
        figure = samples.Sample(_as_rows(values)).figure("x", statistic) or {}
        held += figure.get("low", np.inf) <= truth <= figure.get("high", -np.inf)
    return held / trials


def _truth(design: Design, statistic: str) -> float:
    spread = np.hypot(SPREAD, NOISE)
    if statistic == "mean":
        return float(np.exp(spread**2 / 2))
    # A repeat effect of 5 % is nearly lognormal.
    return float(np.exp(np.hypot(spread, design.effect) * special.ndtri(intervals.quantile_of(statistic))))


def _as_rows(values: np.ndarray) -> pl.DataFrame:
    repeats, requests = values.shape
    numbers = np.tile(np.arange(requests), repeats)
    ids = pl.Series("n", numbers).cast(pl.String)
    return pl.DataFrame(
        {"request_id": "r/" + ids, "repeat": np.repeat(np.arange(repeats), requests), "x": values.ravel()}
    )


def table_rows() -> Iterator[list[str]]:
    """A row for each of DESIGNS and OF_ONE_REPEAT: false claims by statistic, any false claim, and coverage."""
    for design in (*DESIGNS, *OF_ONE_REPEAT):
        trials = design.trials
        values = design.repeats * design.requests
        false = [
            "—" if not tells(design, statistic) else _percent(claimed(design, statistic, trials))
            for statistic in STATISTICS
        ]
        effect = f"{design.effect:.0%}".replace("%", " %")
        common = f", neighbours {design.correlation:g}" if design.correlation else ""
        coverage = [
            _percent(covered(design, statistic, trials // 4)) if statistic == "mean" or values >= 72 else "—"
            for statistic in ("mean", "p95")
        ]
        anything = _percent(anything_shown(design, trials // 4))
        yield [f"{design.repeats} × {design.requests:,}", f"{effect}{common}", *false, anything, *coverage]


def tells(design: Design, statistic: str) -> bool:
    """Whether this design has enough data to test a difference."""
    if design.repeats >= intervals.MIN_REPEATS:
        return True
    enough = design.repeats * design.requests // intervals.MIN_PARTS
    return statistic != "rate" and (statistic != "p95" or enough >= 20)


HEADER = (
    "repeats × requests", "repeat effect", *(f"{name}, false" for name in STATISTICS), "anything shown",
    "mean, held", "p95, held",
)  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
