"""Measures the lag of the event loop that sends requests and receives tokens: lag adds to every latency."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from wp1.core.plan import Cell
from wp1.core.records import LoopLag

PERIOD_S = 0.02
# Samples of about a second go into one line.
SAMPLES = 50

_open: list[None] = []  # one for each `garbage_left` that has not ended


@contextmanager
def garbage_left() -> Iterator[None]:
    """Exempts existing objects from garbage collection while the body runs.

    Scanning everything that vLLM and torch have imported would stop the loop for 60 ms or more. If nested, entering
    scans only objects created since the outer one began. A run wraps all its repeats in one, so that no repeat begins
    with a full scan.
    """
    gc.collect()
    gc.freeze()
    _open.append(None)
    try:
        yield
    finally:
        _open.pop()
        if not _open:
            gc.unfreeze()


@asynccontextmanager
async def watched(cell: Cell, repeat: int, write: Callable[[LoopLag], None]) -> AsyncIterator[None]:
    """Writes the lags of the running loop while the body runs, with `garbage_left`."""
    with garbage_left():
        watch = asyncio.create_task(_watch(cell, repeat, write))
        try:
            yield
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch


async def _watch(cell: Cell, repeat: int, write: Callable[[LoopLag], None]) -> None:
    """Writes how late a timer due every 20 ms fires. The schedule is absolute: a stall counts once per missed tick."""
    due = time.monotonic() + PERIOD_S
    lags: list[float] = []

    def out() -> None:
        if lags:
            write(LoopLag(time.monotonic(), cell.arm, cell.name, repeat, lags.copy()))
            lags.clear()

    try:
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            while due <= now:
                lags.append(round(now - due, 6))
                due += PERIOD_S
            if len(lags) >= SAMPLES:
                out()
    finally:
        out()
