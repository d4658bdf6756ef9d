"""How long cells will take, from those before them: what `experiment.time_budget_s` is held against, and what the
screen says is left. Pure.

The rule. A cell is predicted from the longest prompt measured before it in the same arm, at the same load where there
is one. Its time, less the span over which an open loop sends, grows with the prompt length. Where it is known what a
prompt costs at the device's peaks (`Floor`), it grows with that cost: in proportion to it if one length was measured at
that load, else by the straight line through the two longest, which may not be less steep than the cost itself. Where
that is not known, it grows as (L / L0) ** p, where p is the growth seen between the two longest lengths, within 0 and 2
(prefill grows at most with the square), and 1 where one length is all there is. Between loads, requests at a time are
taken not to gain from each other, which is the slow case; an open loop takes its span and then one request's time. A
cell is begun where what has passed, what is left of the cells begun before, and all its own repeats in all arms end
within the budget; one that has begun is ended. The first cell of a run is always measured.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wp1.core.plan import Cell
from wp1.core.progress import Done
from wp1.model.architecture import Architecture

# Seconds that a request with a prompt of so many tokens takes at least, alone on its devices.
Floor = Callable[[int], float]


@dataclass(frozen=True)
class Repeat:
    """One repeat of a cell as it was measured, or is to be."""

    prompt_len: int | None  # tokens
    concurrency: int
    request_rate: float
    requests: int
    seconds: float = 0.0  # warm-up included

    @property
    def load(self) -> tuple[float, int]:
        return (self.request_rate, 0 if self.request_rate > 0 else self.concurrency)

    @property
    def span(self) -> float:
        """Seconds from the first request that an open loop sends to its last, on average."""
        return (self.requests - 1) / self.request_rate if self.request_rate > 0 else 0.0

    @property
    def work(self) -> float:
        """Seconds beyond the span."""
        return max(0.0, self.seconds - self.span)


def repeat_of(cell: Cell, requests: int, seconds: float = 0.0) -> Repeat:
    return Repeat(cell.prompt_len, cell.concurrency, cell.request_rate, requests, seconds)


def floor_of(
    shape: Architecture | None, peaks: Mapping[str, Any] | None, output_len: int, devices: int
) -> Floor | None:
    """The larger of FLOPs and bytes over the device's peaks: of the prompt once, and of each step that follows.

    output_len: tokens. devices: that one engine spreads over. None where shape or peaks are not known.
    """
    if shape is None or shape.unlike is not None or peaks is None:
        return None
    flops, size = (float(peaks[key]) * devices for key in ("flops", "bytes_per_s"))

    def seconds(tokens: int) -> float:
        prefill = max(shape.prefill_flops(tokens) / flops, shape.prefill_bytes(tokens) / size)
        context = tokens + output_len / 2
        step = max(shape.decode_flops(context) / flops, shape.decode_bytes(context) / size)
        return prefill + max(0, output_len - 1) * step

    return seconds


def predict(next_one: Repeat, before: Sequence[Repeat], floor: Floor | None = None) -> float | None:
    """Seconds that one repeat will take, by the rule above; None where there is nothing to predict from.

    With nothing measured before, it is what the device's peaks allow: no more than the time it takes at least.
    """
    if not before:
        if floor is None or next_one.prompt_len is None:
            return None
        return next_one.span + floor(next_one.prompt_len) * (1 if next_one.request_rate > 0 else next_one.requests)
    alike = [repeat for repeat in before if repeat.load == next_one.load]
    base = max(alike or before, key=lambda repeat: repeat.prompt_len or 0)
    if alike:
        work = base.work if base.request_rate > 0 else base.work * next_one.requests / max(1, base.requests)
    else:
        # What one request takes: of an open loop its tail, of a closed one its share.
        one = base.work if base.request_rate > 0 else base.work * base.concurrency / max(1, base.requests)
        work = one * (1 if next_one.request_rate > 0 else next_one.requests)
    return next_one.span + work * _growth(next_one.prompt_len, base, alike or before, floor)


def at_least(length: int | None, before: Sequence[Repeat], floor: Floor | None = None) -> float | None:
    """Seconds that one request of a longer prompt than was measured takes for certain, or nearly; None if unknown.

    From two lengths on it is what `predict` goes by, else the time of the one that was measured and what the peaks
    allow for the rest. Of closed loops alone: how long a request is served is not known of one that had to wait.
    """
    closed = [repeat for repeat in before if repeat.request_rate == 0 and repeat.prompt_len and repeat.work > 0]
    if not closed or length is None:
        return None
    base = max(closed, key=lambda repeat: (repeat.prompt_len or 0, -repeat.concurrency))
    measured = base.prompt_len or 0
    if length <= measured:
        return None
    one = base.work / max(1, base.requests)
    if _shorter(base, closed) is not None:
        return one * _growth(length, base, closed, floor)
    return None if floor is None else one + floor(length) - floor(measured)


def _growth(length: int | None, base: Repeat, before: Sequence[Repeat], floor: Floor | None) -> float:
    if length is None or base.prompt_len is None or length <= base.prompt_len:
        return 1.0
    if floor is None or base.work <= 0 or floor(base.prompt_len) <= 0:
        return (length / base.prompt_len) ** _power(base, before)
    cost, one = floor(base.prompt_len), _one(base)
    last = _shorter(base, before)
    if last is None or last.prompt_len is None:
        return floor(length) / cost
    slope = max(1.0, (one - _one(last)) / max(1e-12, cost - floor(last.prompt_len)))
    return 1.0 + slope * (floor(length) - cost) / one


def _one(repeat: Repeat) -> float:
    """Seconds of one request: of an open loop the tail, of a closed one its share."""
    return repeat.work / (1 if repeat.request_rate > 0 else max(1, repeat.requests))


def _shorter(base: Repeat, before: Sequence[Repeat]) -> Repeat | None:
    """The longest prompt below that of `base` at its load."""
    shorter = [
        repeat
        for repeat in before
        if repeat.load == base.load
        and repeat.prompt_len
        and repeat.work > 0
        and repeat.prompt_len < (base.prompt_len or 0)
    ]
    return max(shorter, key=lambda repeat: repeat.prompt_len or 0, default=None)


def _power(base: Repeat, before: Sequence[Repeat]) -> float:
    """How the time grew between the two longest lengths at the load of `base`."""
    last = _shorter(base, before)
    if last is None or base.work <= 0 or not base.prompt_len:
        return 1.0
    power = math.log(_one(base) / _one(last)) / math.log(base.prompt_len / (last.prompt_len or 1))
    return min(2.0, max(0.0, power))


def left_of_begun(done: Sequence[Done], repeats_in_all: int) -> float:
    """Seconds that the repeats still to come of cells that have begun will take: each as those that were measured.

    repeats_in_all: of a cell, over all arms.
    """
    by_cell: dict[str, list[float]] = {}
    for one in done:
        by_cell.setdefault(one.cell, []).append(one.seconds + one.warmup_s)
    return sum(max(0, repeats_in_all - len(times)) * sum(times) / len(times) for times in by_cell.values())


def in_words(seconds: float) -> str:
    """A duration to two digits or so: 45 s, 12 min, 3 h 10 min."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, rest = divmod(round(minutes, -1), 60)
    return f"{hours} h {rest} min" if hours < 10 and rest else f"{round(seconds / 3600)} h"
