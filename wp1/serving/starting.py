"""Starts the engines of a scheduler side by side, and looks whether their KV is free at the end."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

from wp1 import hardware
from wp1.serving.backend import ServingBackend

POLL_S = 0.1


async def start_all(engines: Sequence[ServingBackend], stack: AsyncExitStack) -> None:
    """Starts all engines, as many at a time as there are cores, and leaves their end to `stack`.

    Where one fails, the others are ended as well and its error is raised.
    """
    # Most of a start is one core importing and compiling.
    turn = asyncio.Semaphore(max(1, len(hardware.cores())))

    async def start(engine: ServingBackend) -> None:
        async with turn:
            await stack.enter_async_context(engine)

    try:
        async with asyncio.TaskGroup() as starting:
            for engine in engines:
                starting.create_task(start(engine))
    except BaseException as error:
        await stack.aclose()
        if isinstance(error, BaseExceptionGroup):
            raise error.exceptions[0] from None
        raise


async def kv_free(engines: Sequence[ServingBackend], within_s: float) -> dict[str, bool]:
    """`Scheduler.kv_free` of some engines; those that died are left out."""
    deadline = time.monotonic() + within_s

    async def free(engine: ServingBackend) -> bool:
        while not await engine.kv_free():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(POLL_S)
        return True

    living = [engine for engine in engines if engine.alive]
    return dict(zip([engine.name for engine in living], await asyncio.gather(*map(free, living)), strict=True))
