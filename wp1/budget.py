"""How long a cell will take, from those before it: what `experiment.time_budget_s` is held against. Pure.

The rule. A cell is predicted from the longest prompt measured before it in the same arm, at the same load where there
is one. Its time, less the span over which an open loop sends, grows with the prompt length as (L / L0) ** p, where p is
the growth seen between the two longest lengths measured at that load, within 0 and 2 (prefill grows at most with the
square), and 1 where one length is all there is. Between loads, requests at a time are taken not to gain from each
other, which is the slow case; an open loop takes its span and then one request's time. A cell is begun where what has
passed, what is left of the cells begun before, and all its own repeats in all arms end within the budget; one that has
begun is ended. The first cell of a run has nothing to be predicted from, and is measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wp1.plan import Cell
from wp1.progress import Done


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


def predict(next_one: Repeat, before: Sequence[Repeat]) -> float | None:
    """Seconds that one repeat will take, by the rule above; None where there is nothing to predict from."""
    if not before:
        return None
    alike = [repeat for repeat in before if repeat.load == next_one.load]
    base = max(alike or before, key=lambda repeat: repeat.prompt_len or 0)
    if alike:
        work = base.work if base.request_rate > 0 else base.work * next_one.requests / max(1, base.requests)
    else:
        # What one request takes: of an open loop its tail, of a closed one its share.
        one = base.work if base.request_rate > 0 else base.work * base.concurrency / max(1, base.requests)
        work = one * (1 if next_one.request_rate > 0 else next_one.requests)
    return next_one.span + work * _growth(next_one.prompt_len, base, alike or before)


def _growth(length: int | None, base: Repeat, before: Sequence[Repeat]) -> float:
    if length is None or base.prompt_len is None or length <= base.prompt_len:
        return 1.0
    return (length / base.prompt_len) ** _power(base, before)


def _power(base: Repeat, before: Sequence[Repeat]) -> float:
    """How the time grew between the two longest lengths at the load of `base`."""
    of_load = [repeat for repeat in before if repeat.load == base.load and repeat.prompt_len and repeat.work > 0]
    shorter = [repeat for repeat in of_load if repeat.prompt_len < (base.prompt_len or 0)]  # type: ignore[operator]
    if not shorter or base.work <= 0 or not base.prompt_len:
        return 1.0
    last = max(shorter, key=lambda repeat: repeat.prompt_len or 0)
    shorter_s, longer_s = (
        repeat.work / (1 if repeat.request_rate > 0 else max(1, repeat.requests)) for repeat in (last, base)
    )
    power = math.log(longer_s / shorter_s) / math.log(base.prompt_len / (last.prompt_len or 1))
    return min(2.0, max(0.0, power))


def left_of_begun(done: Sequence[Done], repeats_in_all: int) -> float:
    """Seconds that the repeats still to come of cells that have begun will take: each as those that were measured.

    repeats_in_all: of a cell, over all arms.
    """
    by_cell: dict[str, list[float]] = {}
    for one in done:
        by_cell.setdefault(one.cell, []).append(one.seconds + one.warmup_s)
    return sum(max(0, repeats_in_all - len(times)) * sum(times) / len(times) for times in by_cell.values())
