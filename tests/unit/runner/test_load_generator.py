"""Requests are sent on schedule, and each leaves a record however it ends."""

import asyncio
import itertools
import time
from collections.abc import Iterator

import numpy as np
import pytest

from wp1.core.records import Request, RequestRecord
from wp1.runner.load_generator import AHEAD, InFlight, drive, in_flight_of
from wp1.workload.arrivals import Schedule
from wp1.workload.prompts import Requests


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


class Mortal(SlowScheduler):
    """Its engine dies of the request number `dies_at`."""

    mode = "agg"

    def __init__(self, seconds: float, dies_at: int) -> None:
        super().__init__(seconds)
        self.served, self.dies_at = 0, dies_at

    async def serve(self, request: Request, record: RequestRecord) -> None:
        self.served += 1
        number = self.served
        await super().serve(request, record)
        if number >= self.dies_at:
            record.status, record.cause, record.error = "error", "engine_died", "engine agg-0 died: OSError: x"


@pytest.mark.parametrize(("rate", "concurrency"), [(0.0, 1), (0.0, 2), (0.5, 1)])
def test_what_is_due_after_an_engine_died_fails_at_once(rate: float, concurrency: int) -> None:
    """At a rate of 0.5 requests/s, all would be sent within 40 s."""
    scheduler = Mortal(0.01, dies_at=1)
    begin = time.monotonic()
    records = _drive(scheduler, 20, concurrency, rate)
    assert time.monotonic() - begin < 10
    assert scheduler.served == concurrency
    assert [record.request_id for record in records[concurrency:]] == [f"r{n}" for n in range(concurrency, 20)]
    assert {(record.status, record.cause, record.error) for record in records} == {
        ("error", "engine_died", "engine agg-0 died: OSError: x")
    }
    later = records[concurrency:]
    assert all(record.t_sent is None and record.t_end is not None for record in later)
    if rate:
        # They keep the time at which they were due.
        assert later[-1].t_intended - records[0].t_intended == pytest.approx(38)


@pytest.mark.parametrize("rate", [0.0, 1000.0])
def test_what_is_in_flight_elsewhere_is_given_up(rate: float) -> None:
    """Another engine may have minutes of work, for a cell that has failed."""

    class Another(Mortal):
        async def serve(self, request: Request, record: RequestRecord) -> None:
            if request.request_id != "r0":
                self.seconds = 60
            await super().serve(request, record)

    scheduler = Another(0.05, dies_at=1)
    begin = time.monotonic()
    records = _drive(scheduler, 5, 3, rate)
    assert time.monotonic() - begin < 10
    assert len(records) == 5
    assert {(record.status, record.cause) for record in records} == {("error", "engine_died")}
    given_up = [record for record in records if record.error == "given up: engine agg-0 died: OSError: x"]
    assert len(given_up) == scheduler.served - 1
    assert all(record.t_sent is not None for record in given_up)


def test_nothing_is_sent_if_an_engine_died_before() -> None:
    scheduler = Mortal(0.01, dies_at=99)
    records: list[RequestRecord] = []
    for schedule in (None, Schedule(np.arange(3.0))):
        sent = drive(scheduler, _requests(3), records.append, schedule, 2, dead="engine agg-0 died")  # type: ignore[arg-type]
        asyncio.run(asyncio.wait_for(sent, 1))
    assert scheduler.served == 0
    assert [record.error for record in records] == ["engine agg-0 died"] * 6


def test_requests_that_are_not_sent_get_no_prompts() -> None:
    """After a death, a million of them would take minutes to make."""
    prompts = 0

    def prompt(_: int) -> list[int]:
        nonlocal prompts
        prompts += 1
        return [1]

    requests = Requests(500, lambda n: Request(f"r{n}", "agg", "c", 0, [], 1, n), prompt)
    records: list[RequestRecord] = []
    sent = drive(Mortal(0.001, dies_at=1), requests, records.append, None, 1)  # type: ignore[arg-type]
    asyncio.run(sent)
    assert len({record.request_id for record in records}) == 500
    assert prompts <= AHEAD + 2


def _flood(count: int, seconds: float, bounds: InFlight, tokens: int = 1, timeout_s: float = 600.0):
    """All due at once, at an engine that takes `seconds` a request."""
    scheduler = SlowScheduler(seconds)
    records: list[RequestRecord] = []
    requests = [Request(f"r{n}", "agg", "c", 0, [1] * tokens, 1, n, timeout_s=timeout_s) for n in range(count)]
    asyncio.run(drive(scheduler, requests, records.append, Schedule(np.zeros(count)), 1, bounds))  # type: ignore[arg-type]
    return scheduler, records


def test_requests_in_flight_are_bounded_and_keep_their_arrivals() -> None:
    scheduler, records = _flood(50, 0.02, InFlight(at_once=4, requests=10))
    assert scheduler.most == 10
    assert [record.status for record in records] == ["ok"] * 50
    # All were due at once, and the last were sent after four rounds; that is no delay of the client's.
    assert max(r.t_intended for r in records) - min(r.t_intended for r in records) < 0.001
    last = max(records, key=lambda record: record.t_sent or 0)
    assert 0.07 < last.held_s <= (last.t_sent or 0) - last.t_intended


def test_long_prompts_in_flight_are_bounded_by_their_tokens() -> None:
    scheduler, _ = _flood(20, 0.01, InFlight(at_once=2, requests=10, tokens=500), tokens=100)
    assert scheduler.most == 5
    # As many as the engines run at a time are always sent: they must not wait for the client.
    scheduler, _ = _flood(20, 0.01, InFlight(at_once=8, requests=10, tokens=500), tokens=100)
    assert scheduler.most == 8


def test_a_request_that_is_not_sent_in_time_is_a_timeout() -> None:
    _, records = _flood(12, 0.5, InFlight(at_once=1, requests=4), timeout_s=0.8)
    late = [record for record in records if record.status == "timeout"]
    assert len(late) == 4
    assert all(record.t_sent is None and record.cause == "timeout" for record in late)
    assert "not sent within 0.8 s (workload.timeout_s): 4 requests" in (late[0].error or "")


def test_engines_that_run_more_at_a_time_have_more_in_flight() -> None:
    assert in_flight_of(at_once=128) == InFlight(128, 1024)
    assert in_flight_of(at_once=4096) == InFlight(4096, 8192)
