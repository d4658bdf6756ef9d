"""How punctual the event loop is that sends requests and takes tokens: a loop that lags makes every latency longer."""

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
    """While the body runs, the garbage collector leaves alone what was there before: going through all that vLLM and
    torch have imported stops the loop for 60 ms and more.

    Within another of these, only what came since the other began is gone through, and stays with it: a run has one
    around all its repeats, lest each of them begins with going through everything.
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
    """How late a timer fires that is due every 20 ms, on an absolute schedule: a stall counts for each that it hid."""
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
