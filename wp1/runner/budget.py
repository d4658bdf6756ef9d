"""Predicts how long cells will take from those measured before, for `experiment.time_budget_s` and the time left on
screen. Pure.

A cell is predicted from the longest prompt measured so far in the same arm, at the same load if there is one. Its time,
without the span over which an open loop sends, grows with the prompt length:

- If the cost of a prompt at the device's peaks is known (`Floor`), time grows with that cost: in proportion to it if
  one length was measured at that load, else along the straight line through the two longest, which is taken to be at
  least as steep as the cost itself.
- Otherwise it grows as (L / L0) ** p. p is the growth between the two longest lengths, limited to 0..2 (prefill grows
  at most with the square), or 1 if only one length was measured.

Between loads, concurrent requests are assumed to gain nothing from each other, which is the slow case; an open loop
takes its span plus one request's time. A cell is begun if the time already spent, the rest of the cells already begun,
and all its own repeats in all arms fit within the budget; a cell that has begun is completed. The first cell of a run
is always measured.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wp1.core.plan import Cell
from wp1.core.progress import Done
from wp1.model.architecture import Architecture

# Lower bound, in seconds, on a request with a prompt of so many tokens that has its devices to itself.
Floor = Callable[[int], float]


@dataclass(frozen=True)
class Repeat:
    """One repeat of a cell, measured or planned."""

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
        """Mean seconds between an open loop's first and last arrival; 0 for a closed loop."""
        return (self.requests - 1) / self.request_rate if self.request_rate > 0 else 0.0

    @property
    def work(self) -> float:
        """Seconds that it took beyond the span."""
        return max(0.0, self.seconds - self.span)


def repeat_of(cell: Cell, requests: int, seconds: float = 0.0) -> Repeat:
    return Repeat(cell.prompt_len, cell.concurrency, cell.request_rate, requests, seconds)


def floor_of(
    shape: Architecture | None, peaks: Mapping[str, Any] | None, output_len: int, devices: int
) -> Floor | None:
    """The larger of FLOPs and bytes over the device's peaks, for the prefill and for each decode step.

    output_len: tokens. devices: number that one engine uses. Returns None if shape or peaks are unknown.
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
    """Seconds that one repeat will take, by the rule above; None if there is nothing to predict from.

    If nothing has been measured, it is the lower bound given by the device's peaks.
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
        # One request's time: the tail of an open loop, the share of a closed one.
        one = base.work if base.request_rate > 0 else base.work * base.concurrency / max(1, base.requests)
        work = one * (1 if next_one.request_rate > 0 else next_one.requests)
    return next_one.span + work * _growth(next_one.prompt_len, base, alike or before, floor)


def at_least(length: int | None, before: Sequence[Repeat], floor: Floor | None = None) -> float | None:
    """A safe lower estimate of the seconds for one request with a longer prompt than any measured; None if unknown.

    With two lengths or more, it uses the rule of `predict`; with one, that length's time plus what the peaks allow for
    the rest. It uses closed loops only: in an open loop, serving time includes unknown waiting time.
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
    """Seconds of one request: the tail of an open loop, the share of a closed one."""
    return repeat.work / (1 if repeat.request_rate > 0 else max(1, repeat.requests))


def _shorter(base: Repeat, before: Sequence[Repeat]) -> Repeat | None:
    """The repeat with the longest prompt shorter than `base`'s, at the same load."""
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
    """The exponent with which time grew between the two longest lengths at the load of `base`, within 0..2."""
    last = _shorter(base, before)
    if last is None or base.work <= 0 or not base.prompt_len:
        return 1.0
    power = math.log(_one(base) / _one(last)) / math.log(base.prompt_len / (last.prompt_len or 1))
    return min(2.0, max(0.0, power))


def left_of_begun(done: Sequence[Done], repeats_in_all: int) -> float:
    """Seconds for the remaining repeats of cells that have begun, at the mean time of those measured.

    repeats_in_all: a cell's repeats over all arms.
    """
    by_cell: dict[str, list[float]] = {}
    for one in done:
        by_cell.setdefault(one.cell, []).append(one.seconds + one.warmup_s)
    return sum(max(0, repeats_in_all - len(times)) * sum(times) / len(times) for times in by_cell.values())


def in_words(seconds: float) -> str:
    """A duration to about two digits: 45 s, 12 min, 3 h 10 min."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, rest = divmod(round(minutes, -1), 60)
    return f"{hours} h {rest} min" if hours < 10 and rest else f"{round(seconds / 3600)} h"
