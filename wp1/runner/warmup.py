"""Warms up the engines before a cell is measured, until their time to first token no longer changes."""

import time
from collections.abc import Callable
from typing import Any

from wp1.core.plan import Cell
from wp1.core.records import Request, RequestRecord
from wp1.runner.load_generator import drive
from wp1.serving.backend import Scheduler
from wp1.workload.prompts import PromptData, warmup_round

# Two rounds count as alike if they differ by at most this share or this many seconds.
ALIKE, ALIKE_S = 0.2, 0.005
# Seconds after which a warm-up may end: set-up is over by then, and longer rounds are too costly to repeat.
ENOUGH_S = 10.0


async def warm_up(
    cfg: Any,
    cell: Cell,
    repeat: int,
    data: PromptData,
    scheduler: Scheduler,
    engines: int,
    sink: Callable[[RequestRecord], None],
) -> None:
    """Runs rounds of one request per engine, sent one at a time, with prompts that are not measured.

    The warm-up ends when two rounds in a row have the same time to first token, summed over the engines, to within
    20 % or 5 ms. It takes at least `workload.num_warmup` and at most `max_warmup` rounds; once it has had the minimum,
    it also ends after ten seconds. A failed request ends it too: the cell will show why.
    """
    least, most = cfg.workload.num_warmup, cfg.workload.max_warmup
    begin, before = time.monotonic(), None
    for number in range(most if least else 0):
        if number >= least and time.monotonic() - begin > ENOUGH_S:
            return
        taken = await _round(scheduler, warmup_round(cfg, cell, repeat, data, engines, number), sink)
        if taken is None:
            return
        if number >= least and before is not None and alike(taken, before):
            return
        before = taken


async def _round(scheduler: Scheduler, requests: list[Request], sink: Callable[[RequestRecord], None]) -> float | None:
    """Seconds to first token, summed over the requests, or None if a request had no token."""
    records: list[RequestRecord] = []

    def keep(record: RequestRecord) -> None:
        records.append(record)
        sink(record)

    await drive(scheduler, requests, keep, None, 1)
    if any(not record.t_tokens for record in records):
        return None
    return sum(record.t_tokens[0] - record.t_intended for record in records)


def alike(a: float, b: float) -> bool:
    """Whether two times (seconds) are equal to within 20 % of the shorter or 5 ms."""
    return abs(a - b) <= max(ALIKE * min(a, b), ALIKE_S)
