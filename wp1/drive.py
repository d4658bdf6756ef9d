"""Sends the requests of one repeat of a cell on their schedule, and hands on each record as its request ends."""

import asyncio
import time
from collections.abc import Callable

from wp1.plan import Cell
from wp1.records import Request, RequestRecord, new_record
from wp1.serving.backend import Scheduler
from wp1.workload import arrivals

Sink = Callable[[RequestRecord], None]


async def drive(scheduler: Scheduler, cell: Cell, requests: list[Request], sink: Sink, process: str, seed: int) -> None:
    """All requests, in a closed loop of `cell.concurrency`, or open at `cell.request_rate` requests/s.

    process: "poisson" or "constant" arrivals of an open loop. Cancelled, it leaves a record of every request in flight.
    """
    if cell.request_rate > 0:
        await _open_loop(scheduler, requests, sink, arrivals.offsets(len(requests), cell.request_rate, process, seed))
    else:
        await _closed_loop(scheduler, requests, sink, cell.concurrency)


async def _closed_loop(scheduler: Scheduler, requests: list[Request], sink: Sink, concurrency: int) -> None:
    """`concurrency` users, each sending the next request as soon as the last is answered: then it was due."""
    queue = iter(requests)

    async def user() -> None:
        for request in queue:
            await _one(scheduler, request, time.monotonic(), sink)

    async with asyncio.TaskGroup() as users:
        for _ in range(min(concurrency, len(requests))):
            users.create_task(user())


async def _open_loop(scheduler: Scheduler, requests: list[Request], sink: Sink, offsets: list[float]) -> None:
    """Each request at its own time on an absolute schedule, however the others fare."""
    start = time.monotonic()
    async with asyncio.TaskGroup() as sent:
        for request, offset in zip(requests, offsets, strict=True):
            due = start + offset
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            sent.create_task(_one(scheduler, request, due, sink))


async def _one(scheduler: Scheduler, request: Request, t_intended: float, sink: Sink) -> None:
    record = new_record(request, t_intended)
    try:
        await scheduler.serve(request, record)
    finally:
        sink(record)
