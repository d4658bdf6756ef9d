"""How often a difference is claimed where there is none, and how often an interval holds the truth, simulated.

Two arms that are the same are sent the same requests: lengths are lognormal and shared, every answer has noise of its
own, which neighbours may share, and every repeat of every arm is a little faster or slower as a whole. What is counted
is what `wp1.analysis` says of them.

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
SPREAD, NOISE = 0.5, 0.05  # of the logarithms of lengths, and of an answer's noise
# A limit that nine in ten requests keep.
LIMIT = float(np.exp(SPREAD * special.ndtri(0.9)))
TRIALS = 2000
# Cells of one comparison, for how often anything at all is claimed of it.
CELLS = 4


@dataclass(frozen=True)
class Design:
    """Repeats, requests in each, the sd of the repeat effect, and the correlation of neighbours' noise."""

    repeats: int
    requests: int
    effect: float = 0.0
    correlation: float = 0.0

    @property
    def trials(self) -> int:
        """Fewer of large ones, which take longest and differ least."""
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
    """Latencies of both arms: (repeats x requests) each."""
    shape = design.repeats, design.requests
    lengths = rng.lognormal(0, SPREAD, shape)
    a, b = (lengths * _as_a_whole(design, rng) * np.exp(NOISE * _noise(design, rng)) for _ in range(2))
    return a, b


def _as_a_whole(design: Design, rng: np.random.Generator) -> np.ndarray:
    return 1 + design.effect * rng.standard_normal((design.repeats, 1))


def _noise(design: Design, rng: np.random.Generator) -> np.ndarray:
    """Of variance one; each value has `correlation` in common with the one before."""
    noise = rng.standard_normal((design.repeats, design.requests))
    if not design.correlation:
        return noise
    # Of the first value too: it has as much to its left as any.
    noise[:, 1:] *= np.sqrt(1 - design.correlation**2)
    powers = design.correlation ** np.arange(design.requests)
    return signal.fftconvolve(noise, powers[None], axes=1)[:, : design.requests]


def compared(a: np.ndarray, b: np.ndarray, statistic: str) -> dict[str, Any]:
    """The row of a comparison (`wp1.analysis.comparison.figures`) of two arms' latencies."""
    repeats, requests = a.shape
    if statistic == "rate":
        # Tokens a repeat over its seconds, one request after another.
        return _rates(a, b)
    _, units = samples.resamples(np.repeat(np.arange(repeats), requests))
    slots = np.arange(a.size, dtype=np.int32)
    if statistic == "attainment":
        a, b, statistic = (a <= LIMIT).astype(float), (b <= LIMIT).astype(float), "share"
    return comparison_figures._row(Values(slots, a.ravel()), Values(slots, b.ravel()), statistic, units)


def _rates(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    given = np.full(len(a), float(a.shape[1]))
    parts = [intervals.of_ratio(given, side.sum(axis=1)) for side in (a, b)]
    found = intervals.between(*parts)
    judged = found is not None and found.parts >= intervals.MIN_REPEATS
    return comparison_figures._figures(len(a), len(b), parts[0].value, parts[1].value, found, judged, True)


def claimed(design: Design, statistic: str, trials: int, seed: int = 0) -> float:
    """The share of A/A comparisons in which a difference is claimed by its own interval."""
    rng = np.random.default_rng(seed)
    return float(np.mean([bool(compared(*arms(design, rng), statistic)["excludes_zero"]) for _ in range(trials)]))


def anything_shown(design: Design, trials: int, seed: int = 0) -> float:
    """The share of A/A comparisons of CELLS cells in which any difference at all is shown, of all STATISTICS."""
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(trials):
        cells = [arms(design, rng) for _ in range(CELLS)]
        p_values = [compared(*cell, statistic)["p"] for cell in cells for statistic in STATISTICS]
        found += any(intervals.false_discovery(p_values))
    return found / trials


def covered(design: Design, statistic: str, trials: int, seed: int = 0) -> float:
    """The share of one arm's intervals that hold the true mean or percentile, of all requests and all repeats."""
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
    # A repeat effect of 5 % is all but lognormal itself.
    return float(np.exp(np.hypot(spread, design.effect) * special.ndtri(intervals.quantile_of(statistic))))


def _as_rows(values: np.ndarray) -> pl.DataFrame:
    repeats, requests = values.shape
    places = np.tile(np.arange(requests), repeats)
    ids = pl.Series("n", places).cast(pl.String)
    return pl.DataFrame(
        {"request_id": "r/" + ids, "repeat": np.repeat(np.arange(repeats), requests), "x": values.ravel()}
    )


def table_rows() -> Iterator[list[str]]:
    """A row for each design of DESIGNS and OF_ONE_REPEAT: false claims by statistic, of anything, and coverage."""
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
    """Whether a difference is judged at all in this design."""
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
