"""Starts the engines of a scheduler in parallel, ends them, and checks that their KV is free at the end."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack

from wp1.machine import hardware
from wp1.serving.backend import END_S, EngineDiedError, ServingBackend

log = logging.getLogger(__name__)
POLL_S = 0.1


async def start_all(engines: Sequence[ServingBackend], stack: AsyncExitStack) -> None:
    """Starts all engines, as many at a time as there are cores; `stack` will end them.

    If one fails, the others are ended as well and its error is raised.
    """
    # An engine's start mostly keeps one core busy, importing and compiling.
    turn = asyncio.Semaphore(max(1, len(hardware.cores())))

    async def start(engine: ServingBackend) -> None:
        async with turn:
            await engine.__aenter__()
            stack.push_async_callback(_end, engine)

    try:
        async with asyncio.TaskGroup() as starting:
            for engine in engines:
                starting.create_task(start(engine))
    except BaseException as error:
        await stack.aclose()
        if isinstance(error, BaseExceptionGroup):
            raise error.exceptions[0] from None
        raise


async def _end(engine: ServingBackend) -> None:
    """Ends an engine, but does not wait for one that hangs: the run's guard will kill it."""
    try:
        async with asyncio.timeout(END_S):
            await engine.__aexit__(None, None, None)
    except TimeoutError:
        log.warning("engine %s had not ended after %g s", engine.name, END_S)


async def kv_free(engines: Sequence[ServingBackend], within_s: float) -> dict[str, bool]:
    """Implements `Scheduler.kv_free`. Engines that died are left out; one that does not answer counts as not free."""

    async def free(engine: ServingBackend) -> bool:
        try:
            async with asyncio.timeout(within_s):
                while not await engine.kv_free():
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            return False
        except EngineDiedError as error:
            log.warning("%s", error)
            return False
        return True

    living = [engine for engine in engines if engine.alive]
    return dict(zip([engine.name for engine in living], await asyncio.gather(*map(free, living)), strict=True))
