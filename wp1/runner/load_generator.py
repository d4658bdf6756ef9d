"""Sends the requests of one repeat of a cell on their schedule, and hands on each record as its request ends."""

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from wp1.core.records import Request, RequestRecord, new_record
from wp1.serving.backend import Scheduler
from wp1.workload.arrivals import Schedule
from wp1.workload.prompts import Requests

Sink = Callable[[RequestRecord], None]

# Requests that are made ahead of their time: enough for a burst, few enough for long prompts.
AHEAD = 64
# Between two that are made in one pause, so that the streams of others are not held up.
LET_GO_S = 0.002
# After an engine has died, for its own requests to hear of it, before those in other engines are given up.
GIVE_UP_S = 1.0


@dataclass(frozen=True)
class InFlight:
    """How many requests of an open loop are in flight at a time, so that their prompts do not fill the memory.

    An engine that has no place for a request keeps it in a queue, so a request that is sent later, but before the
    queue is empty, starts no later. Latencies and timeouts count from its intended arrival either way.

    at_once: requests that the engines can run at a time; always admitted.
    requests, tokens: beyond at_once, requests are admitted up to this many and up to so many prompt tokens, which take
    36 bytes each as Python integers in a list.
    """

    at_once: int = 256
    requests: int = 1024
    tokens: int = 32 << 20

    def admits(self, requests: int, tokens: int) -> bool:
        """Whether one more is sent, with which there are so many requests and prompt tokens in flight."""
        return requests <= self.at_once or (requests <= self.requests and tokens <= self.tokens)


def in_flight_of(at_once: int) -> InFlight:
    """The bounds for engines that run `at_once` requests at a time: as many again may wait in their queues."""
    return InFlight(at_once, max(InFlight.requests, 2 * at_once))


async def drive(
    scheduler: Scheduler,
    requests: Iterable[Request],
    sink: Sink,
    schedule: Schedule | None,
    concurrency: int,
    bounds: InFlight | None = None,
    dead: str | None = None,
) -> None:
    """All requests: open loop, each when `schedule` says; or, without one, in a closed loop of `concurrency`.

    Once an engine has died, the cell cannot be measured any more: the requests that are left fail at once with that
    reason and are not sent, and those in flight in other engines are given up.

    bounds: of an open loop. dead: the reason, if an engine died before.
    Cancelled, it leaves a record of every request in flight.
    """
    sender = _Sender(scheduler, requests, sink, bounds or InFlight(), dead)
    if schedule is not None:
        await sender.open_loop(schedule)
    else:
        await sender.closed_loop(concurrency)


class _Ahead:
    """Makes requests before they are due: a prompt of 100,000 tokens takes milliseconds, by which it would be late."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = requests
        self._left = iter(requests)
        self._ready: deque[Request] = deque()
        self._made = 0
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
        self._made += 1
        self._ready.append(request)
        self._longest_s = max(self._longest_s, time.monotonic() - begin)

    def take(self) -> Request | None:
        """The next request, made now if it was not made before; None after the last."""
        if not self._ready:
            self.make()
        return self._ready.popleft() if self._ready else None

    def rest(self) -> Iterator[Request]:
        """All that have not been taken, without their prompts if those are not made yet."""
        while self._ready:
            yield self._ready.popleft()
        yield from self._requests.without_prompts(self._made) if isinstance(self._requests, Requests) else self._left

    async def until(self, due: float, died: asyncio.Event) -> None:
        """Waits for a moment of the monotonic clock, or for `died`, and makes requests in the time that is left."""
        held_since = time.monotonic()
        while self.wants and (now := time.monotonic()) + 2 * self._longest_s < due:
            self.make()
            if now - held_since > LET_GO_S:
                await asyncio.sleep(0)
                held_since = time.monotonic()
        await _wait(died, due)


async def _wait(event: asyncio.Event, until: float) -> None:
    """Waits for the event, until a moment of the monotonic clock at most; lets others run in any case."""
    await asyncio.sleep(0)
    if (left := until - time.monotonic()) > 0:
        with suppress(TimeoutError):
            async with asyncio.timeout(left):
                await event.wait()


class _Sender:
    """The requests of one repeat, on their way."""

    def __init__(
        self, scheduler: Scheduler, requests: Iterable[Request], sink: Sink, bounds: InFlight, dead: str | None
    ) -> None:
        self._scheduler, self._sink, self._bounds = scheduler, sink, bounds
        self._ahead = _Ahead(requests)
        self._requests = self._tokens = 0  # in flight
        self._ended = asyncio.Event()  # a request, since it was cleared
        self._released = -math.inf  # when a request last waited for others to end; monotonic
        self._in_flight: set[asyncio.Task[None]] = set()
        self._dead = dead
        self._died = asyncio.Event()
        if dead is not None:
            self._died.set()

    async def closed_loop(self, concurrency: int) -> None:
        """`concurrency` users, each sending the next request as soon as the last is answered: then it was due."""
        loop = asyncio.get_running_loop()

        async def user() -> None:
            while not self._died.is_set():
                now = time.monotonic()
                if (request := self._ahead.take()) is None:
                    return
                # The place it leaves is filled once it has been sent.
                loop.call_soon(self._make_if_wanted)
                await self._one(request, now, False)

        for _ in range(0 if self._died.is_set() else min(concurrency + 1, AHEAD)):
            self._ahead.make()
        async with asyncio.TaskGroup() as users:
            for _ in range(concurrency):
                self._start(users, user())
        if self._died.is_set():
            await self._fail_rest((time.monotonic(), False) for _ in itertools.count())

    def _make_if_wanted(self) -> None:
        if self._ahead.wants:
            self._ahead.make()

    async def open_loop(self, schedule: Schedule) -> None:
        """Each request at its own time on an absolute schedule, however the others fare."""
        for _ in range(0 if self._died.is_set() else min(AHEAD, len(schedule))):
            self._ahead.make()
            await asyncio.sleep(0)
        start = time.monotonic()
        places = ((start + offset, offset < schedule.ramp_s) for offset in schedule.offsets.tolist())
        async with asyncio.TaskGroup() as sent:
            for due, ramp in places:
                await self._ahead.until(due, self._died)
                if self._died.is_set():
                    await self._fail_rest(itertools.chain([(due, ramp)], places))
                    return
                if (request := self._ahead.take()) is None:
                    return
                if (held_s := await self._admitted(request, due, ramp)) is not None:
                    self._start(sent, self._one(request, due, ramp, held_s))

    def _start(self, group: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> None:
        task = group.create_task(work)
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)

    async def _admitted(self, request: Request, due: float, ramp: bool) -> float | None:
        """Waits until the request may be in flight. Returns the seconds since `due` that it, or another one before it,
        had to wait for that; None if it failed meanwhile.
        """
        tokens, late = len(request.prompt), due + request.timeout_s
        while not self._bounds.admits(self._requests + 1, self._tokens + tokens):
            if self._died.is_set():
                self._fail(request, due, ramp)
                return None
            self._ended.clear()
            await _wait(self._ended, late)
            self._released = time.monotonic()
            if self._released >= late:
                break
        held_s = max(0.0, self._released - due)
        if held_s >= request.timeout_s:
            self._time_out(request, due, ramp)
            return None
        return held_s

    async def _one(self, request: Request, t_intended: float, ramp: bool, held_s: float = 0.0) -> None:
        record = new_record(request, t_intended)
        record.ramp, record.held_s = ramp, held_s
        if held_s:
            request = replace(request, timeout_s=request.timeout_s - held_s)
        tokens = len(request.prompt)
        self._requests += 1
        self._tokens += tokens
        try:
            await self._scheduler.serve(request, record)
        finally:
            self._requests -= 1
            self._tokens -= tokens
            if record.cause == "engine_died":
                self._die(record.error)
            elif self._died.is_set() and record.status == "aborted":
                record.status, record.cause, record.error = "error", "engine_died", f"given up: {self._dead}"
            self._ended.set()
            self._sink(record)

    def _die(self, why: str | None) -> None:
        if self._died.is_set():
            return
        self._dead = why
        self._died.set()
        asyncio.get_running_loop().call_later(GIVE_UP_S, self._give_up)

    def _give_up(self) -> None:
        for task in self._in_flight:
            task.cancel()

    async def _fail_rest(self, places: Iterable[tuple[float, bool]]) -> None:
        held_since = time.monotonic()
        for (due, ramp), request in zip(places, self._ahead.rest(), strict=False):
            self._fail(request, due, ramp)
            if time.monotonic() - held_since > LET_GO_S:
                await asyncio.sleep(0)
                held_since = time.monotonic()

    def _fail(self, request: Request, t_intended: float, ramp: bool = False) -> None:
        """The record of a request that is not sent, as an engine died before."""
        record = new_record(request, t_intended)
        record.status, record.cause, record.error = "error", "engine_died", self._dead or "an engine died"
        # It waited for a place to prefill, which has a name of its own only if engines share the work.
        record.phase = "queue" if getattr(self._scheduler, "moves_kv", False) else "prefill"
        record.ramp, record.t_end = ramp, time.monotonic()
        self._sink(record)

    def _time_out(self, request: Request, t_intended: float, ramp: bool) -> None:
        """The record of a request that was not sent in time."""
        record = new_record(request, t_intended)
        record.status, record.cause, record.phase = "timeout", "timeout", "queue"
        record.error = (
            f"not sent within {request.timeout_s:g} s (workload.timeout_s): {self._requests} requests with "
            f"{self._tokens:,} prompt tokens were in flight, as many as wp1 keeps in memory"
        )
        record.ramp, record.held_s, record.t_end = ramp, request.timeout_s, time.monotonic()
        self._sink(record)
