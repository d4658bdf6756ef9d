"""Requests go out on their schedule, and each leaves a record however it ends."""

import asyncio
import itertools
import time

import pytest

from wp1.drive import drive
from wp1.plan import Cell
from wp1.records import Request, RequestRecord


class SlowScheduler:
    """Takes `seconds` a request and counts how many are in flight."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.most = seconds, 0, 0

    async def serve(self, request: Request, record: RequestRecord) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        record.t_sent = time.monotonic()
        try:
            await asyncio.sleep(self.seconds)
            record.status = "ok"
        finally:
            self.now -= 1


def _cell(concurrency: int = 1, rate: float = 0.0) -> Cell:
    return Cell("agg", "c", None, concurrency, rate, 1)


def _drive(scheduler: SlowScheduler, cell: Cell, count: int) -> list[RequestRecord]:
    requests = [Request(f"r{n}", "agg", "c", 0, [1], 1, n) for n in range(count)]
    records: list[RequestRecord] = []
    asyncio.run(drive(scheduler, cell, requests, records.append, "constant", 0))  # type: ignore[arg-type]
    return records


@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_a_closed_loop_keeps_its_concurrency(concurrency: int) -> None:
    scheduler = SlowScheduler(0.01)
    records = _drive(scheduler, _cell(concurrency), 12)
    assert sorted(record.request_id for record in records) == sorted(f"r{n}" for n in range(12))
    assert scheduler.most == min(concurrency, 12)


def test_one_at_a_time_keeps_the_order() -> None:
    assert [r.request_id for r in _drive(SlowScheduler(0.001), _cell(1), 5)] == [f"r{n}" for n in range(5)]


def test_an_open_loop_does_not_wait_for_answers() -> None:
    """At 50 a second, requests that take 0.2 s overlap; each is due at its own time from the first."""
    scheduler = SlowScheduler(0.2)
    records = sorted(_drive(scheduler, _cell(rate=50), 10), key=lambda record: record.t_intended)
    gaps = [b.t_intended - a.t_intended for a, b in itertools.pairwise(records)]
    assert gaps == pytest.approx([0.02] * 9)
    assert scheduler.most == 10
    assert all((record.t_sent or 0) >= record.t_intended for record in records)


def test_an_interrupted_drive_leaves_a_record_of_every_request_in_flight() -> None:
    records: list[RequestRecord] = []
    requests = [Request(f"r{n}", "agg", "c", 0, [1], 1, n) for n in range(10)]

    async def go() -> None:
        task = asyncio.create_task(
            drive(SlowScheduler(10), _cell(3), requests, records.append, "constant", 0)  # type: ignore[arg-type]
        )
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert [record.status for record in records] == ["aborted"] * 3
