"""Before a cell is measured its engines are warmed up, until they answer as fast as they are going to."""

import time
from collections.abc import Callable
from typing import Any

from wp1.core.plan import Cell
from wp1.core.records import Request, RequestRecord
from wp1.runner.load_generator import drive
from wp1.serving.backend import Scheduler
from wp1.workload.prompts import PromptData, warmup_round

# Two rounds that differ by less, in either measure, are alike.
ALIKE, ALIKE_S = 0.2, 0.005
# Nothing that is still being set up takes so long, and rounds that do are worth their time as measurements.
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
    """Rounds of one request for each engine, one at a time, of prompts that are not measured.

    It ends when two rounds in a row have taken the same time to the first token, summed over the engines and to 20 %
    or 5 ms, after `workload.num_warmup` rounds at least and `max_warmup` at most; or, from the first on, when ten
    seconds are over. A round in which a request failed ends it too: the cell will say why.
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
    """Seconds to the first token, summed over the requests, or None where one had none."""
    records: list[RequestRecord] = []

    def keep(record: RequestRecord) -> None:
        records.append(record)
        sink(record)

    await drive(scheduler, requests, keep, None, 1)
    if any(not record.t_tokens for record in records):
        return None
    return sum(record.t_tokens[0] - record.t_intended for record in records)


def alike(a: float, b: float) -> bool:
    """Whether two rounds took the same time (seconds), to 20 % of the shorter or to 5 ms."""
    return abs(a - b) <= max(ALIKE * min(a, b), ALIKE_S)
