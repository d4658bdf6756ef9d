"""Requests the memory notes of a scheduler's engines around every repeat of a cell, and records them unprocessed."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from wp1.core.plan import Cell
from wp1.core.records import MemoryNote
from wp1.serving.backend import Scheduler, ServingBackend, answered
from wp1.serving.memory import Moment


class MemoryNotes:
    """The memory notes of a run. write: receives each note; if None, no notes are requested."""

    def __init__(self, write: Callable[[MemoryNote], None] | None) -> None:
        self._write = write

    async def started(self, scheduler: Scheduler, arm: str) -> None:
        """Called once the engines are up: records the stages of their start."""
        await self._ask(scheduler, arm, "start", None, None)

    @asynccontextmanager
    async def around(self, scheduler: Scheduler, cell: Cell, repeat: int) -> AsyncIterator[None]:
        """Context for one repeat of a cell: records memory use before and after it, and the peaks in between."""
        await self._ask(scheduler, cell.arm, "begin", cell.name, repeat)
        yield
        await self._ask(scheduler, cell.arm, "end", cell.name, repeat)

    async def _ask(self, scheduler: Scheduler, arm: str, moment: Moment, cell: str | None, repeat: int | None) -> None:
        if self._write is None:
            return
        engines = [(pool, engine) for pool, members in scheduler.backends().items() for engine in members]
        for pool, engine, notes in await asyncio.gather(*(_of(pool, engine, moment) for pool, engine in engines)):
            for note in notes:
                self._write(MemoryNote(time.monotonic(), arm, pool, engine, moment, cell, repeat, note))


async def _of(pool: str, engine: ServingBackend, moment: Moment) -> tuple[str, str, list[dict[str, object]]]:
    if not engine.alive:
        return pool, engine.name, []
    return pool, engine.name, await answered(engine.name, engine.memory(moment), "its memory use")
