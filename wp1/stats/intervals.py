"""The only estimator of 95 % intervals and of significant differences: Student's t over independent units. Pure.

A figure's value is computed from all data. Its interval comes from the spread s of the same figure in K independent
parts: value ± t(K - 1) s / sqrt(K) (Student, The Probable Error of a Mean, Biometrika 6, 1908).

The independent units are repeats: requests of one repeat share its engines, its minute and each other's load, so more
requests say nothing about another repeat. With three or more repeats, each is a part. With fewer, their spread cannot
be estimated. The parts are then batches of consecutive requests in the order of sending, because neighbours may be
correlated (batch means: Law & Kelton, Simulation Modeling and Analysis, section 9.5.3), and the interval holds only for
these repeats. docs/metrics.md has the calibration: how often a difference is claimed when there is none.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
ALPHA = 1 - LEVEL
Z = 1.959964  # quantile of the normal distribution for a 95 % interval
# With at least this many repeats, repeats are the units.
MIN_REPEATS = 3
# Upper bound on batches: in more and shorter batches, neighbouring batches would be correlated.
MAX_BATCHES = 10
# This many differing pairs per part are enough to show how much a share varies.
ENOUGH_DIFFER = 5
# Smallest number of parts for the interval of a percentile.
MIN_PARTS = 3
# A difference counts as detectable if it is detected with this probability.
POWER = 0.8
# If more repeats would be needed, none are suggested.
MAX_REPEATS_SAID = 1000


class Values(NamedTuple):
    """Numbers, and for each the index of its slot (a request, or a pair of requests)."""

    slots: np.ndarray
    numbers: np.ndarray


class Units(NamedTuple):
    """The unit of each slot: its repeat, or, with fewer than three repeats, its position in the order of sending."""

    of_slot: np.ndarray
    are_repeats: bool


class Parts(NamedTuple):
    """A figure of all data and of each part; NaN for a part without data."""

    value: float
    of_part: np.ndarray


class Interval(NamedTuple):
    """low and high in the figure's unit; p: p-value for zero; error: standard error; parts: number of parts."""

    low: float
    high: float
    p: float
    error: float
    parts: int


def units(repeats: np.ndarray, order: np.ndarray | None = None) -> Units:
    """The unit of each slot. repeats: the slot's repeat; order: its position in that repeat's order of sending.

    With two repeats, the n-th requests of both are one unit, because they may be the same question asked twice.
    """
    names, unit = np.unique(repeats, return_inverse=True)
    if names.size >= MIN_REPEATS:
        return Units(unit.astype(np.int32), True)
    if order is None:
        order = np.empty(repeats.size, dtype=np.int64)
        for name in range(names.size):
            order[unit == name] = np.arange(int((unit == name).sum()))
    return Units(np.unique(order, return_inverse=True)[1].astype(np.int32), False)


def parts_of(of: Units, present: np.ndarray, statistic: str, values: int) -> tuple[np.ndarray, int]:
    """The index of each slot's part, and the number of parts; 0 if there are too few for this statistic.

    present: whether each slot has a value; values: their total number (in the arm with fewer).
    """
    if of.are_repeats:
        return of.of_slot, int(of.of_slot.max(initial=-1)) + 1
    # Positions in the order of sending that have a value.
    positions = np.unique(of.of_slot[present])
    size = -(-positions.size // MAX_BATCHES) or 1
    count = positions.size // size
    if statistic not in ("mean", "share"):
        count = min(count, values // _least(statistic))
        if count < MIN_PARTS:
            return of.of_slot, 0
    rank = np.searchsorted(positions, of.of_slot)
    return np.minimum(rank * count // max(positions.size, 1), max(count - 1, 0)).astype(np.int32), count


def _least(statistic: str) -> int:
    """Smallest number of values whose percentile is not just their maximum."""
    return math.ceil(1 / (1 - quantile_of(statistic)) - 1e-9)


def quantile_of(statistic: str) -> float:
    """0.95 for "p95"."""
    return float(statistic[1:]) / 100


def figure_of(numbers: np.ndarray, statistic: str) -> float:
    """The mean or a percentile ("p95", by linear interpolation) of the numbers."""
    if statistic in ("mean", "share"):
        return float(numbers.mean(dtype=float))
    rank = (numbers.size - 1) * quantile_of(statistic)
    low, high = math.floor(rank), math.ceil(rank)
    # Equal to numpy's percentile, but ten times faster for the few values of a part.
    picked = np.partition(numbers, (low, high))
    return float(picked[low]) + (rank - low) * (float(picked[high]) - float(picked[low]))


def in_parts(of: Values, part_of_slot: np.ndarray, count: int, statistic: str) -> Parts:
    """The figure of all values and of each part.

    A mean is a ratio: the sum over the number of values. Each part's contribution is linearised (Cochran, Sampling
    Techniques, 1977, section 6.3), so that parts count by their size.
    """
    part = part_of_slot[of.slots]
    if statistic in ("mean", "share"):
        sums, counts = np.bincount(part, of.numbers, count), np.bincount(part, minlength=count)
        return of_ratio(sums, counts)
    value, own = figure_of(of.numbers, statistic), np.full(count, np.nan)
    if part.size and (part[1:] < part[:-1]).any():
        order = np.argsort(part, kind="stable")
        part, numbers = part[order], of.numbers[order]
    else:
        numbers = of.numbers
    edges = np.searchsorted(part, np.arange(count + 1))
    for n in range(count):
        if edges[n] < edges[n + 1]:
            own[n] = figure_of(numbers[edges[n] : edges[n + 1]], statistic)
    return Parts(value, own)


def of_ratio(above: np.ndarray, below: np.ndarray) -> Parts:
    """The ratio of the parts' sums. Each part has the ratio plus its linearised deviation from it."""
    above, below = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    total, nonempty = below.sum(), below > 0
    if total <= 0:
        return Parts(math.nan, np.full(below.size, np.nan))
    value = above.sum() / total
    own = value + (above - value * below) * nonempty.sum() / total
    return Parts(float(value), np.where(nonempty, own, np.nan))


def around(figure: Parts, not_negative: bool = False) -> Interval | None:
    """The interval of a figure; None if fewer than two parts have it. not_negative: cut the interval off at 0."""
    own = figure.of_part[np.isfinite(figure.of_part)]
    if own.size < 2:
        return None
    interval = _student(figure.value, own, float(np.abs(own).max()))
    return interval._replace(low=max(0.0, interval.low)) if not_negative else interval


def around_mean(of: Units, sums: np.ndarray, counts: np.ndarray, not_negative: bool = False) -> Interval | None:
    """The interval of a mean. sums, counts: sum and number of values in each slot.

    With one or two repeats it is never narrower than the interval over single requests. If a few questions alternate,
    all batches have the same mean, although the mean over other requests would differ.
    """
    part, count = parts_of(of, counts > 0, "mean", int(counts.sum()))
    sizes = [(part, count)] if of.are_repeats else [(part, count), (of.of_slot, int(of.of_slot.max(initial=-1)) + 1)]
    candidates = [
        around(of_ratio(np.bincount(unit, sums, size), np.bincount(unit, counts, size)), not_negative)
        for unit, size in sizes
    ]
    return max((one for one in candidates if one is not None), key=lambda one: one.error, default=None)


def around_percentile(figure: Parts, numbers: np.ndarray, statistic: str) -> Interval | None:
    """The interval of a percentile over parts, never narrower than its order-statistic interval.

    The ranks of the latter follow from the binomial distribution (David & Nagaraja, Order Statistics, 2003, section
    7.1). None if there are too few values to have such ranks on both sides: p95 needs 72.
    """
    from scipy import special

    over, q, n = around(figure), quantile_of(statistic), numbers.size
    reach = 2 + int(6 * math.sqrt(n * q * (1 - q)) + 10)
    ranks = np.arange(max(0, int(n * q) - reach), min(n, int(n * q) + reach) + 1)
    below = special.bdtr(ranks, n, q)  # probability that no more values than the rank are below the percentile
    under, beyond = ranks[below <= ALPHA / 2], ranks[below >= 1 - ALPHA / 2]
    if over is None or not under.size or not beyond.size or beyond[0] >= n:
        return None
    low, high = int(under[-1]), int(beyond[0])
    picked = np.partition(numbers, (low, high))
    return over._replace(low=min(over.low, float(picked[low])), high=max(over.high, float(picked[high])))


def between(a: Parts, b: Parts) -> Interval | None:
    """The interval of b - a from the parts' differences; None if fewer than two parts are in both.

    Its middle is the mean of the parts' differences, to which Student's t applies. For a percentile, the difference of
    all data is not that mean; if it is outside the interval, the interval is extended to it.
    """
    differences = b.of_part - a.of_part
    differences = differences[np.isfinite(differences)]
    if differences.size < 2:
        return None
    value = b.value - a.value
    interval = _student(float(differences.mean()), differences, float(np.nanmax(np.abs([a.of_part, b.of_part]))))
    p = interval.p if value * differences.mean() > 0 else 1.0
    return interval._replace(low=min(interval.low, value), high=max(interval.high, value), p=p)


def _student(middle: float, own: np.ndarray, size: float) -> Interval:
    """Student's interval around `middle`, from the parts' values (`own`).

    size: magnitude of the underlying figures, relative to which smaller spreads and middles are rounding errors.
    """
    spread = float(own.std(ddof=1))
    error = spread / math.sqrt(own.size) if spread > 1e-12 * size else 0.0
    middle = middle if abs(middle) > 1e-12 * size else 0.0
    half = t_quantile(own.size - 1) * error
    return Interval(middle - half, middle + half, p_value(middle, error, own.size - 1), error, own.size)


@lru_cache(maxsize=256)
def t_quantile(df: int, level: float = LEVEL) -> float:
    """Quantile of Student's t: this many standard errors to either side cover the share `level`."""
    from scipy import special

    return float(special.stdtrit(df, (1 + level) / 2))


def p_value(value: float, error: float, df: int) -> float:
    """Two-sided p-value of Student's t. If the error is 0: 1 for a value of 0, otherwise 0."""
    from scipy import special

    if error == 0:
        return float(value == 0)
    return float(2 * special.stdtr(df, -abs(value) / error))


def wilson(met: float, sent: float) -> tuple[float, float]:
    """95 % interval of a share, 0 to 1 (Wilson, 1927): valid for small samples, and its width is never 0.

    met: may be a sum of partial scores. If none were sent, the interval is 0 to 1.
    """
    if not sent:
        return 0.0, 1.0
    share, z2 = met / sent, Z**2
    centre = (share + z2 / (2 * sent)) / (1 + z2 / sent)
    half = Z / (1 + z2 / sent) * math.sqrt(share * (1 - share) / sent + z2 / (4 * sent * sent))
    # Exactly 0 and 1 at the ends, without rounding errors.
    return (max(0.0, centre - half) if met else 0.0), (min(1.0, centre + half) if met < sent else 1.0)


def of_share(share: Parts, met: float, sent: int) -> tuple[float, float]:
    """The interval of a share over parts, never narrower than Wilson's over requests.

    Equal parts do not prove certainty: for example, all requests may have met a limit by chance.
    """
    low, high = wilson(met, sent)
    over = around(share)
    return (low, high) if over is None else (max(0.0, min(low, over.low)), min(1.0, max(high, over.high)))


def paired(differences: np.ndarray) -> Interval | None:
    """The interval of the mean difference of paired scores; differences are in -1..1, and most are 0, 1 or -1.

    Method: Bonett & Price (Journal of Educational and Behavioral Statistics 37, 2012) for binary pairs. One pair is
    added in each direction, so that the interval has a width even if the few pairs all agree.
    """
    if not differences.size:
        return None
    count = differences.size + 2
    middle = float(differences.sum()) / count
    square = (float((differences**2).sum()) + 2) / count - middle**2
    error = math.sqrt(square / count)
    p = math.erfc(abs(middle) / error / math.sqrt(2)) if error else 1.0
    return Interval(max(-1.0, middle - Z * error), min(1.0, middle + Z * error), p, error, differences.size)


def of_shares(over: Interval | None, differences: np.ndarray) -> Interval | None:
    """The interval of the difference of two shares. over: the interval over parts.

    If too few pairs differ to show how much a share varies, it is never narrower than `paired`: parts may be equal by
    chance.
    """
    enough = over is not None and (differences != 0).sum() >= ENOUGH_DIFFER * over.parts
    interval = over if enough else wider(over, paired(differences))
    # Two shares cannot differ by more than 1.
    return None if interval is None else interval._replace(low=max(-1.0, interval.low), high=min(1.0, interval.high))


def wider(one: Interval | None, other: Interval | None) -> Interval | None:
    """The smallest interval that covers both, with the larger p-value."""
    if one is None or other is None:
        return one or other
    larger = max(one, other, key=lambda interval: interval.error)
    return larger._replace(low=min(one.low, other.low), high=max(one.high, other.high), p=max(one.p, other.p))


def false_discovery(p_values: Sequence[float | None], level: float = ALPHA) -> list[bool | None]:
    """Which of a family of differences are significant (Benjamini & Hochberg, 1995).

    Of those, no more than 5 % are expected to be false. If there is no true difference at all, the probability of
    finding any is 5 %. A p-value of None is not part of the family and stays None.
    """
    known = sorted(p for p in p_values if p is not None)
    passing = [p for n, p in enumerate(known, start=1) if p <= level * n / len(known)]
    limit = max(passing, default=-1.0)
    return [None if p is None else p <= limit for p in p_values]


@lru_cache(maxsize=4096)
def _power(shift: float, df: int) -> float:
    """The probability that a difference of `shift` standard errors is significant at 5 %."""
    from scipy import special

    # The other tail is negligible, and scipy's noncentral t fails there.
    return float(1 - special.nctdtr(df, shift, t_quantile(df)))


@lru_cache(maxsize=64)
def _shift(df: int) -> float:
    """The difference, in standard errors, that is significant with probability POWER."""
    low, high = 0.0, 100.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if _power(middle, df) < POWER else (low, middle)
    return high


def detectable(error: float, repeats: int) -> float:
    """The smallest difference, in the unit of `error`, that this many repeats would show in four of five runs."""
    return _shift(repeats - 1) * error


def repeats_needed(difference: float, error: float, repeats: int) -> int | None:
    """Number of repeats that would show a difference as large as the observed one in four of five runs.

    error: with the given number of repeats. None if it is above a thousand: nothing then indicates a difference.
    """
    if error == 0:
        return repeats if difference else None
    spread = error * math.sqrt(repeats)
    for count in range(MIN_REPEATS, MAX_REPEATS_SAID + 1):
        if abs(difference) >= _shift(count - 1) * spread / math.sqrt(count):
            return count
        if count > 30:  # the t distribution is close to normal: (1.96 + 0.84)^2 = 7.85
            needed = math.ceil(7.85 * (spread / difference) ** 2) if difference else MAX_REPEATS_SAID + 1
            return needed if needed <= MAX_REPEATS_SAID else None
    return None
