"""Sends the requests of one repeat of a cell on their schedule, and hands on each record as its request ends."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable

from wp1.records import Request, RequestRecord, new_record
from wp1.serving.backend import Scheduler
from wp1.workload.arrivals import Schedule

Sink = Callable[[RequestRecord], None]

# Requests that are made ahead of their time: enough for a burst, few enough for long prompts.
AHEAD = 64
# Between two that are made in one pause, so that the streams of others are not held up.
LET_GO_S = 0.002


async def drive(
    scheduler: Scheduler, requests: Iterable[Request], sink: Sink, schedule: Schedule | None, concurrency: int
) -> None:
    """All requests: open loop, each when `schedule` says; or, without one, in a closed loop of `concurrency`.

    Cancelled, it leaves a record of every request in flight.
    """
    ahead = _Ahead(requests)
    if schedule is not None:
        await _open_loop(scheduler, ahead, sink, schedule)
    else:
        await _closed_loop(scheduler, ahead, sink, concurrency)


class _Ahead:
    """Makes requests before they are due: a prompt of 100,000 tokens takes milliseconds, by which it would be late."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._left = iter(requests)
        self._ready: deque[Request] = deque()
        self._longest_s = 0.0  # that one took to make
        self._done = False

    @property
    def wants(self) -> bool:
        """Whether there is one to make, and room for it."""
        return not self._done and len(self._ready) < AHEAD

    def make(self) -> None:
        """Makes one more, if there is one."""
        begin = time.monotonic()
        request = next(self._left, None)
        if request is None:
            self._done = True
            return
        self._ready.append(request)
        self._longest_s = max(self._longest_s, time.monotonic() - begin)

    def take(self) -> Request | None:
        """The next request, made now if it was not made before; None after the last."""
        if not self._ready:
            self.make()
        return self._ready.popleft() if self._ready else None

    async def until(self, due: float) -> None:
        """Waits for a moment of the monotonic clock, and makes requests meanwhile where that does not delay it."""
        held_since = time.monotonic()
        while self.wants and (now := time.monotonic()) + 2 * self._longest_s < due:
            self.make()
            if now - held_since > LET_GO_S:
                await asyncio.sleep(0)
                held_since = time.monotonic()
        await asyncio.sleep(max(0.0, due - time.monotonic()))


async def _closed_loop(scheduler: Scheduler, ahead: _Ahead, sink: Sink, concurrency: int) -> None:
    """`concurrency` users, each sending the next request as soon as the last is answered: then it was due."""
    loop = asyncio.get_running_loop()

    async def user() -> None:
        while True:
            now = time.monotonic()
            if (request := ahead.take()) is None:
                return
            # The place it leaves is filled once it has been sent.
            loop.call_soon(_make_if_wanted, ahead)
            await _one(scheduler, request, now, False, sink)

    for _ in range(min(concurrency + 1, AHEAD)):
        ahead.make()
    async with asyncio.TaskGroup() as users:
        for _ in range(concurrency):
            users.create_task(user())


def _make_if_wanted(ahead: _Ahead) -> None:
    if ahead.wants:
        ahead.make()


async def _open_loop(scheduler: Scheduler, ahead: _Ahead, sink: Sink, schedule: Schedule) -> None:
    """Each request at its own time on an absolute schedule, however the others fare."""
    for _ in range(min(AHEAD, len(schedule))):
        ahead.make()
        await asyncio.sleep(0)
    start = time.monotonic()
    async with asyncio.TaskGroup() as sent:
        for offset in schedule.offsets.tolist():
            due = start + offset
            await ahead.until(due)
            if (request := ahead.take()) is None:
                return
            sent.create_task(_one(scheduler, request, due, offset < schedule.ramp_s, sink))


async def _one(scheduler: Scheduler, request: Request, t_intended: float, ramp: bool, sink: Sink) -> None:
    record = new_record(request, t_intended)
    record.ramp = ramp
    try:
        await scheduler.serve(request, record)
    finally:
        sink(record)
