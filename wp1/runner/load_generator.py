"""Sends the requests of one repeat of a cell on schedule and passes on each record as its request ends."""

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

# Requests built ahead of time: enough for a burst, few enough that long prompts fit in memory.
AHEAD = 64
# Seconds of building requests after which the event loop gets a turn, so that open streams are not delayed.
LET_GO_S = 0.002
# Seconds for a dead engine's own requests to fail before requests in other engines are cancelled.
GIVE_UP_S = 1.0


@dataclass(frozen=True)
class InFlight:
    """Limits on the requests an open loop has in flight, so that their prompts do not fill the client's memory.

    A full engine queues a request anyway, so a request that is sent later, but before that queue is empty, starts no
    later. Latencies and timeouts count from the intended arrival in both cases.

    at_once: requests that the engines can run concurrently; always admitted.
    requests, tokens: beyond at_once, requests are admitted up to this number of requests and of prompt tokens. A token
    takes 36 bytes as a Python integer in a list.
    """

    at_once: int = 256
    requests: int = 1024
    tokens: int = 32 << 20

    def admits(self, requests: int, tokens: int) -> bool:
        """Whether a request may be sent if it brings the requests and prompt tokens in flight to these numbers."""
        return requests <= self.at_once or (requests <= self.requests and tokens <= self.tokens)


def in_flight_of(at_once: int) -> InFlight:
    """The limits for engines that run `at_once` requests concurrently: as many again may wait in their queues."""
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
    """Sends all requests: in an open loop on `schedule`, or, without one, in a closed loop of `concurrency`.

    If an engine dies, the cell can no longer be measured: the remaining requests fail at once with that reason and are
    not sent, and requests in flight in other engines are cancelled.

    bounds: for an open loop. dead: the reason, if an engine has already died.
    If cancelled, it leaves a record of every request in flight.
    """
    sender = _Sender(scheduler, requests, sink, bounds or InFlight(), dead)
    if schedule is not None:
        await sender.open_loop(schedule)
    else:
        await sender.closed_loop(concurrency)


class _Ahead:
    """Builds requests before they are due: a 100,000-token prompt takes milliseconds, which would make it late."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = requests
        self._left = iter(requests)
        self._ready: deque[Request] = deque()
        self._made = 0
        self._longest_s = 0.0  # longest time to build one request
        self._done = False

    @property
    def wants(self) -> bool:
        """Whether there is a request left to build, and room for it."""
        return not self._done and len(self._ready) < AHEAD

    def make(self) -> None:
        """Builds the next request, if there is one."""
        begin = time.monotonic()
        request = next(self._left, None)
        if request is None:
            self._done = True
            return
        self._made += 1
        self._ready.append(request)
        self._longest_s = max(self._longest_s, time.monotonic() - begin)

    def take(self) -> Request | None:
        """The next request, built now if necessary; None after the last."""
        if not self._ready:
            self.make()
        return self._ready.popleft() if self._ready else None

    def rest(self) -> Iterator[Request]:
        """All requests not taken yet; those that are not built yet come without prompts."""
        while self._ready:
            yield self._ready.popleft()
        yield from self._requests.without_prompts(self._made) if isinstance(self._requests, Requests) else self._left

    async def until(self, due: float, died: asyncio.Event) -> None:
        """Waits until a time of the monotonic clock or until `died` is set, building requests in the meantime."""
        held_since = time.monotonic()
        while self.wants and (now := time.monotonic()) + 2 * self._longest_s < due:
            self.make()
            if now - held_since > LET_GO_S:
                await asyncio.sleep(0)
                held_since = time.monotonic()
        await _wait(died, due)


async def _wait(event: asyncio.Event, until: float) -> None:
    """Waits for the event, but no longer than `until` (monotonic clock). Always yields to the event loop."""
    await asyncio.sleep(0)
    if (left := until - time.monotonic()) > 0:
        with suppress(TimeoutError):
            async with asyncio.timeout(left):
                await event.wait()


class _Sender:
    """Sends the requests of one repeat and tracks those in flight."""

    def __init__(
        self, scheduler: Scheduler, requests: Iterable[Request], sink: Sink, bounds: InFlight, dead: str | None
    ) -> None:
        self._scheduler, self._sink, self._bounds = scheduler, sink, bounds
        self._ahead = _Ahead(requests)
        self._requests = self._tokens = 0  # in flight
        self._ended = asyncio.Event()  # set when a request ends
        self._released = -math.inf  # end of the last wait for room in flight; monotonic
        self._in_flight: set[asyncio.Task[None]] = set()
        self._dead = dead
        self._died = asyncio.Event()
        if dead is not None:
            self._died.set()

    async def closed_loop(self, concurrency: int) -> None:
        """`concurrency` users, each sending its next request, due at that moment, when the last one is answered."""
        loop = asyncio.get_running_loop()

        async def user() -> None:
            while not self._died.is_set():
                now = time.monotonic()
                if (request := self._ahead.take()) is None:
                    return
                # Build its replacement after it has been sent, not before.
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
        """Sends each request at its time on an absolute schedule, independently of the others."""
        for _ in range(0 if self._died.is_set() else min(AHEAD, len(schedule))):
            self._ahead.make()
            await asyncio.sleep(0)
        start = time.monotonic()
        due_times = ((start + offset, offset < schedule.ramp_s) for offset in schedule.offsets.tolist())
        async with asyncio.TaskGroup() as sent:
            for due, ramp in due_times:
                await self._ahead.until(due, self._died)
                if self._died.is_set():
                    await self._fail_rest(itertools.chain([(due, ramp)], due_times))
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
        """Waits until the request may be in flight.

        Returns the seconds after `due` for which it, or one before it, was held back; None if it failed meanwhile.
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

    async def _fail_rest(self, due_times: Iterable[tuple[float, bool]]) -> None:
        held_since = time.monotonic()
        for (due, ramp), request in zip(due_times, self._ahead.rest(), strict=False):
            self._fail(request, due, ramp)
            if time.monotonic() - held_since > LET_GO_S:
                await asyncio.sleep(0)
                held_since = time.monotonic()

    def _fail(self, request: Request, t_intended: float, ramp: bool = False) -> None:
        """Records a request that is not sent because an engine has died."""
        record = new_record(request, t_intended)
        record.status, record.cause, record.error = "error", "engine_died", self._dead or "an engine died"
        # It waited to be prefilled, which is a phase of its own only if prefill and decode run in separate engines.
        record.phase = "queue" if getattr(self._scheduler, "moves_kv", False) else "prefill"
        record.ramp, record.t_end = ramp, time.monotonic()
        self._sink(record)

    def _time_out(self, request: Request, t_intended: float, ramp: bool) -> None:
        """Records a request that could not be sent in time."""
        record = new_record(request, t_intended)
        record.status, record.cause, record.phase = "timeout", "timeout", "queue"
        record.error = (
            f"not sent within {request.timeout_s:g} s (workload.timeout_s): {self._requests} requests with "
            f"{self._tokens:,} prompt tokens were in flight, the most that wp1 keeps in memory"
        )
        record.ramp, record.held_s, record.t_end = ramp, request.timeout_s, time.monotonic()
        self._sink(record)
