"""The one estimator of 95 % intervals and of what is called a difference: Student's t over independent units. Pure.

A figure's value is of all data. Its interval comes from the figure in each of K independent parts, and from how far
these lie apart: value ± t(K - 1) s / sqrt(K) (Student, The Probable Error of a Mean, Biometrika 6, 1908).

What is independent are repeats: requests of one repeat share its engines, its minute and each other's load, so that
more of them say nothing of another repeat. From three repeats on, they are the parts. With fewer there is nothing to
measure their distance by: the parts are then batches of requests in the order in which they were sent (batch means:
Law & Kelton, Simulation Modeling and Analysis, section 9.5.3), so that neighbours may be alike, and the interval holds
for these repeats alone. docs/metrics.md has the calibration: how often differences are claimed where there are none.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
ALPHA = 1 - LEVEL
Z = 1.959964  # of a 95 % interval of the normal law
# From as many repeats on, they are the units.
MIN_REPEATS = 3
# Requests are put into so many batches at most: more would be shorter than what neighbours share.
MAX_BATCHES = 10
# As many pairs of each part that differ show how much a share of them varies.
ENOUGH_DIFFER = 5
# Fewer parts than these have no percentile of their own that an interval could be made of.
MIN_PARTS = 3
# The chance with which a difference is to be seen that is called one that would have been.
POWER = 0.8
MAX_REPEATS_SAID = 1000


class Values(NamedTuple):
    """Numbers, and for each the number of the slot (a request, or a pair of them) that it belongs to."""

    slots: np.ndarray
    numbers: np.ndarray


class Units(NamedTuple):
    """What each slot belongs to: its repeat, or with fewer than three of these its place in the order of sending."""

    of_slot: np.ndarray
    are_repeats: bool


class Parts(NamedTuple):
    """A figure of all data, and of each part; NaN for a part that has none."""

    value: float
    of_part: np.ndarray


class Interval(NamedTuple):
    """low and high in the unit of the figure; p: of no difference from zero; error: the standard error."""

    low: float
    high: float
    p: float
    error: float
    parts: int


def units(repeats: np.ndarray, order: np.ndarray | None = None) -> Units:
    """The unit of each slot. repeats: of each slot; order: its place among those of its repeat, as they were sent.

    With two repeats, the n-th requests of both are one unit: they may be the same question asked twice.
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
    """The number of the part of each slot, and how many parts there are; 0 if there are too few for this statistic.

    present: whether a slot has any value; values: how many there are in all (of the arm that has fewer).
    """
    if of.are_repeats:
        return of.of_slot, int(of.of_slot.max(initial=-1)) + 1
    # The places in the order of sending that have a value, counted from 0.
    seen = np.unique(of.of_slot[present])
    size = -(-seen.size // MAX_BATCHES) or 1
    count = seen.size // size
    if statistic not in ("mean", "share"):
        count = min(count, values // _least(statistic))
        if count < MIN_PARTS:
            return of.of_slot, 0
    place = np.searchsorted(seen, of.of_slot)
    return np.minimum(place * count // max(seen.size, 1), max(count - 1, 0)).astype(np.int32), count


def _least(statistic: str) -> int:
    """As many values have a percentile that is not just their largest."""
    return math.ceil(1 / (1 - quantile_of(statistic)) - 1e-9)


def quantile_of(statistic: str) -> float:
    """0.95 of "p95"."""
    return float(statistic[1:]) / 100


def figure_of(numbers: np.ndarray, statistic: str) -> float:
    """The mean or a percentile ("p95", by linear interpolation) of all numbers."""
    if statistic in ("mean", "share"):
        return float(numbers.mean(dtype=float))
    rank = (numbers.size - 1) * quantile_of(statistic)
    low, high = math.floor(rank), math.ceil(rank)
    # As numpy's percentile, in a tenth of its time for the few values of a part.
    picked = np.partition(numbers, (low, high))
    return float(picked[low]) + (rank - low) * (float(picked[high]) - float(picked[low]))


def in_parts(of: Values, part_of_slot: np.ndarray, count: int, statistic: str) -> Parts:
    """The figure of all values and of each part.

    A mean is a ratio, of the sum to the number of values. A part's share in it is linearised (Cochran, Sampling
    Techniques, 1977, section 6.3), so that parts of different sizes count by their size.
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
    """What all parts gave over what all took, and of each part the value plus what it adds to the error."""
    above, below = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    total, having = below.sum(), below > 0
    if total <= 0:
        return Parts(math.nan, np.full(below.size, np.nan))
    value = above.sum() / total
    own = value + (above - value * below) * having.sum() / total
    return Parts(float(value), np.where(having, own, np.nan))


def around(found: Parts, not_negative: bool = False) -> Interval | None:
    """The interval of a figure; None of fewer than two parts. not_negative: it ends at 0, as what it is of does."""
    own = found.of_part[np.isfinite(found.of_part)]
    if own.size < 2:
        return None
    made = _student(found.value, own, float(np.abs(own).max()))
    return made._replace(low=max(0.0, made.low)) if not_negative else made


def around_mean(of: Units, sums: np.ndarray, counts: np.ndarray, not_negative: bool = False) -> Interval | None:
    """The interval of sum of sums / sum of counts, which are of each slot.

    Of one or two repeats it is never narrower than over single requests: batches of questions that take turns have
    the same mean each, and other requests would not.
    """
    part, count = parts_of(of, counts > 0, "mean", int(counts.sum()))
    sizes = [(part, count)] if of.are_repeats else [(part, count), (of.of_slot, int(of.of_slot.max(initial=-1)) + 1)]
    found = [
        around(of_ratio(np.bincount(unit, sums, size), np.bincount(unit, counts, size)), not_negative)
        for unit, size in sizes
    ]
    return max((one for one in found if one is not None), key=lambda one: one.error, default=None)


def around_percentile(found: Parts, numbers: np.ndarray, statistic: str) -> Interval | None:
    """The interval of a percentile: over parts, and never narrower than between the values that hold it by their rank.

    The ranks are those of the binomial law (David & Nagaraja, Order Statistics, 2003, section 7.1). None where there
    are too few values for such a rank above or below: p95 takes 72, of which fewer do not show what lies beyond it.
    """
    from scipy import special

    over, q, n = around(found), quantile_of(statistic), numbers.size
    reach = 2 + int(6 * math.sqrt(n * q * (1 - q)) + 10)
    ranks = np.arange(max(0, int(n * q) - reach), min(n, int(n * q) + reach) + 1)
    below = special.bdtr(ranks, n, q)  # the chance that at most so many values lie below the percentile
    under, beyond = ranks[below <= ALPHA / 2], ranks[below >= 1 - ALPHA / 2]
    if over is None or not under.size or not beyond.size or beyond[0] >= n:
        return None
    low, high = int(under[-1]), int(beyond[0])
    picked = np.partition(numbers, (low, high))
    return over._replace(low=min(over.low, float(picked[low])), high=max(over.high, float(picked[high])))


def between(a: Parts, b: Parts) -> Interval | None:
    """The interval of b - a, from the differences of each part; None of fewer than two parts that both have.

    The middle is the mean of the parts' differences, of which Student's law is known. A percentile of all data is not
    the mean of the parts'; if it lies outside, the interval is extended to it.
    """
    differences = b.of_part - a.of_part
    differences = differences[np.isfinite(differences)]
    if differences.size < 2:
        return None
    value = b.value - a.value
    made = _student(float(differences.mean()), differences, float(np.nanmax(np.abs([a.of_part, b.of_part]))))
    p = made.p if value * differences.mean() > 0 else 1.0
    return made._replace(low=min(made.low, value), high=max(made.high, value), p=p)


def _student(middle: float, own: np.ndarray, size: float) -> Interval:
    """size: of the figures that these are, or are differences of: rounding leaves crumbs of it where all are equal."""
    spread = float(own.std(ddof=1))
    error = spread / math.sqrt(own.size) if spread > 1e-12 * size else 0.0
    middle = middle if abs(middle) > 1e-12 * size else 0.0
    half = t_quantile(own.size - 1) * error
    return Interval(middle - half, middle + half, p_value(middle, error, own.size - 1), error, own.size)


@lru_cache(maxsize=256)
def t_quantile(df: int, level: float = LEVEL) -> float:
    """Of Student's law: so many standard errors to either side hold the given share."""
    from scipy import special

    return float(special.stdtrit(df, (1 + level) / 2))


def p_value(value: float, error: float, df: int) -> float:
    """Two-sided, of Student's law; without any error, 1 for zero and 0 for all else."""
    from scipy import special

    if error == 0:
        return float(value == 0)
    return float(2 * special.stdtr(df, -abs(value) / error))


def wilson(met: float, sent: float) -> tuple[float, float]:
    """95 % interval of a share, in 0..1 (Wilson, 1927): honest for few, and never without width.

    met may be a sum of part marks. Of none sent it is all there is, 0 to 1.
    """
    if not sent:
        return 0.0, 1.0
    share, z2 = met / sent, Z**2
    centre = (share + z2 / (2 * sent)) / (1 + z2 / sent)
    half = Z / (1 + z2 / sent) * math.sqrt(share * (1 - share) / sent + z2 / (4 * sent * sent))
    # Exactly 0 and 1 at the ends, where rounding would leave a crumb.
    return (max(0.0, centre - half) if met else 0.0), (min(1.0, centre + half) if met < sent else 1.0)


def of_share(found: Parts, met: float, sent: int) -> tuple[float, float]:
    """The interval of a share over parts, and never narrower than Wilson's over requests: parts that are alike by
    chance, as where all requests kept a limit, are no certainty."""
    low, high = wilson(met, sent)
    over = around(found)
    return (low, high) if over is None else (max(0.0, min(low, over.low)), min(1.0, max(high, over.high)))


def paired(differences: np.ndarray) -> Interval | None:
    """The interval of a mean difference of paired scores in -1..1, most of which are 0, 1 or -1.

    As Bonett & Price (Journal of Educational and Behavioral Statistics 37, 2012) have it for pairs that are right or
    wrong: with one more pair each way, so that a few pairs that agree are no certainty.
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
    """The interval of the difference of two shares: that over parts, once enough pairs differ in them to show how much
    a share varies; until then never narrower than `paired`, as parts that are alike by chance are no certainty."""
    enough = over is not None and (differences != 0).sum() >= ENOUGH_DIFFER * over.parts
    found = over if enough else wider(over, paired(differences))
    # No two shares differ by more than one.
    return None if found is None else found._replace(low=max(-1.0, found.low), high=min(1.0, found.high))


def wider(one: Interval | None, other: Interval | None) -> Interval | None:
    """What holds both intervals, with the larger p."""
    if one is None or other is None:
        return one or other
    larger = max(one, other, key=lambda interval: interval.error)
    return larger._replace(low=min(one.low, other.low), high=max(one.high, other.high), p=max(one.p, other.p))


def false_discovery(p_values: Sequence[float | None], level: float = ALPHA) -> list[bool | None]:
    """Which of a family of differences are shown (Benjamini & Hochberg, 1995): of those, 5 % at most are by chance.

    Where there is no true difference at all, the chance of any is 5 %. None stays None and is no member.
    """
    known = sorted(p for p in p_values if p is not None)
    passing = [p for n, p in enumerate(known, start=1) if p <= level * n / len(known)]
    limit = max(passing, default=-1.0)
    return [None if p is None else p <= limit for p in p_values]


@lru_cache(maxsize=4096)
def _power(shift: float, df: int) -> float:
    """The chance that a difference of `shift` standard errors is seen at 5 %."""
    from scipy import special

    # The other side's chance is of no account, and scipy's noncentral law has a hole there.
    return float(1 - special.nctdtr(df, shift, t_quantile(df)))


@lru_cache(maxsize=64)
def _shift(df: int) -> float:
    """The difference in standard errors that is seen with the chance POWER."""
    low, high = 0.0, 100.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if _power(middle, df) < POWER else (low, middle)
    return high


def detectable(error: float, repeats: int) -> float:
    """The least difference, in the unit of its error, that so many repeats would show in four of five runs."""
    return _shift(repeats - 1) * error


def repeats_needed(difference: float, error: float, repeats: int) -> int | None:
    """How many repeats would show a difference as large as the one observed, in four of five runs.

    error: with as many repeats as there were. None above a thousand: there is then no sign of a difference.
    """
    if error == 0:
        return repeats if difference else None
    spread = error * math.sqrt(repeats)
    for count in range(MIN_REPEATS, MAX_REPEATS_SAID + 1):
        if abs(difference) >= _shift(count - 1) * spread / math.sqrt(count):
            return count
        if count > 30:  # the law is the normal one by then: (1.96 + 0.84)^2 = 7.85
            needed = math.ceil(7.85 * (spread / difference) ** 2) if difference else MAX_REPEATS_SAID + 1
            return needed if needed <= MAX_REPEATS_SAID else None
    return None
