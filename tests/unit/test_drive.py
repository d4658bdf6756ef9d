"""Requests go out on their schedule, and each leaves a record however it ends."""

import asyncio
import itertools
import time
from collections.abc import Iterator

import numpy as np
import pytest

from wp1.drive import AHEAD, drive
from wp1.records import Request, RequestRecord
from wp1.workload.arrivals import Schedule


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


def _requests(count: int) -> list[Request]:
    return [Request(f"r{n}", "agg", "c", 0, [1], 1, n) for n in range(count)]


def _drive(
    scheduler: SlowScheduler, count: int, concurrency: int = 1, rate: float = 0.0, ramp_s: float = 0.0
) -> list[RequestRecord]:
    records: list[RequestRecord] = []
    schedule = Schedule(np.arange(count) / rate, ramp_s) if rate else None
    asyncio.run(drive(scheduler, _requests(count), records.append, schedule, concurrency))  # type: ignore[arg-type]
    return records


@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_a_closed_loop_keeps_its_concurrency(concurrency: int) -> None:
    scheduler = SlowScheduler(0.01)
    records = _drive(scheduler, 12, concurrency)
    assert sorted(record.request_id for record in records) == sorted(f"r{n}" for n in range(12))
    assert scheduler.most == min(concurrency, 12)


def test_one_at_a_time_keeps_the_order() -> None:
    assert [r.request_id for r in _drive(SlowScheduler(0.001), 5)] == [f"r{n}" for n in range(5)]


def test_an_open_loop_does_not_wait_for_answers() -> None:
    """At 50 a second, requests that take 0.2 s overlap; each is due at its own time from the first."""
    scheduler = SlowScheduler(0.2)
    records = sorted(_drive(scheduler, 10, rate=50), key=lambda record: record.t_intended)
    gaps = [b.t_intended - a.t_intended for a, b in itertools.pairwise(records)]
    assert gaps == pytest.approx([0.02] * 9)
    assert scheduler.most == 10
    assert all((record.t_sent or 0) >= record.t_intended for record in records)


def test_an_interrupted_drive_leaves_a_record_of_every_request_in_flight() -> None:
    records: list[RequestRecord] = []

    async def go() -> None:
        task = asyncio.create_task(
            drive(SlowScheduler(10), _requests(10), records.append, None, 3)  # type: ignore[arg-type]
        )
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert [record.status for record in records] == ["aborted"] * 3


def test_requests_of_the_ramp_are_marked() -> None:
    records = _drive(SlowScheduler(0.001), 10, rate=200, ramp_s=0.0175)
    assert [record.ramp for record in sorted(records, key=lambda record: record.t_intended)] == [True] * 4 + [False] * 6


def test_an_open_loop_without_requests_ends() -> None:
    assert _drive(SlowScheduler(0.001), 0, rate=10) == []


@pytest.mark.parametrize("rate", [0.0, 1000.0])
def test_requests_are_made_a_few_ahead_and_not_all_at_once(rate: float) -> None:
    """At no time are there many more than have been sent, or a thousand long prompts would fill the memory."""
    made, sent, most = 0, 0, 0

    def making() -> Iterator[Request]:
        nonlocal made, most
        for request in _requests(300):
            made += 1
            most = max(most, made - sent)
            yield request

    class Counts(SlowScheduler):
        async def serve(self, request: Request, record: RequestRecord) -> None:
            nonlocal sent
            sent += 1
            await super().serve(request, record)

    schedule = Schedule(np.arange(300) / rate) if rate else None
    records: list[RequestRecord] = []
    asyncio.run(drive(Counts(0.001), making(), records.append, schedule, 4))  # type: ignore[arg-type]
    assert len(records) == 300
    assert 2 <= most <= AHEAD + 2
