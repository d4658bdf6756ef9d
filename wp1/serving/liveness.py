"""Whether an engine lives and answers, and why it died."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from wp1.serving.backend import ANSWER_S, EngineDiedError
from wp1.serving.postmortem import cause_of_death

T = TypeVar("T")

# How often an engine that owes an answer is looked at, in seconds. If its processes have hardly computed since the last
# time, it is stopped or deadlocked. If they have, it may be in a long step, and has `ANSWER_S`.
LOOK_S = 20.0
COMPUTES = 0.02  # of a core
# Seconds without any output after which an engine is asked whether it still answers: once a request is given up, and
# while requests are in flight.
SILENT_S, LONG_SILENT_S = 2.0, 30.0


class Liveness:
    """What is known of one engine's life.

    log: the file that it logs to, from byte `log_start` on. kill: ends all of the run's engine processes.
    """

    def __init__(self, name: str, log: Path, kill: Callable[[], None]) -> None:
        self.name = name
        self._log = log
        self._kill = kill
        self.engine: Any = None  # vLLM's AsyncLLM while it is up
        self.log_start = 0
        self.processes: list[psutil.Process] = []  # the engine's core and its workers
        self.cause: str | None = None  # of its death
        self.heard = 0.0  # when it last streamed something; monotonic
        self.begun: dict[str, float] = {}  # requests in flight, and when they were sent; monotonic
        self._asking: asyncio.Task[None] | None = None  # whether it still answers
        self._watching: asyncio.Task[None] | None = None

    def begin(self, engine: Any) -> None:
        """Knows an engine that is up, and its processes."""
        self.engine = engine
        self.processes = process_tree(core.pid for core in self._cores())

    @property
    def alive(self) -> bool:
        return self.engine is not None and not self.engine.errored and self.cause is None

    @property
    def death(self) -> str | None:
        if self.engine is None or self.alive:
            return None
        if self.cause is None:
            pids = {process.pid for process in self.processes} or None
            exit_code = next((core.exitcode for core in self._cores() if core.exitcode), None)
            self.cause = cause_of_death(self._log, self.log_start, pids, exit_code)
        return f"engine {self.name} died: {self.cause or f'why is in {self._log}'}"

    async def died(self) -> EngineDiedError:
        """The error of whoever asked an engine that died; waits a moment for its processes to have ended."""
        for _ in range(20):
            if self.death is None or self.cause is not None:
                break
            await asyncio.sleep(0.05)
        return EngineDiedError(self.death or f"engine {self.name} died")

    def _cores(self) -> list[Any]:
        """The processes of the engine's core; [] if this version of vLLM keeps them elsewhere."""
        resources = getattr(getattr(self.engine, "engine_core", None), "resources", None)
        return list(getattr(getattr(resources, "engine_manager", None), "processes", ()))

    def end_processes(self) -> None:
        """Ends this engine by force; all of the run's, if this version of vLLM does not say which are its own."""
        if not self.processes:
            self._kill()
        for process in self.processes:
            with suppress(psutil.Error):
                process.kill()

    async def answer(self, call: Coroutine[Any, Any, T], what: str, within_s: float | None = None) -> T:
        """What the engine answers to something that is not a request; what: it was asked for, in words.

        within_s: None is ANSWER_S.
        Raises EngineDiedError if the engine died or hangs: then it is ended, and what it serves fails.
        """
        asked = asyncio.ensure_future(call)
        begin = looked = time.monotonic()
        computed = computed_s(self.processes)
        try:
            while not (await asyncio.wait([asked], timeout=min(1.0, LOOK_S)))[0]:
                if not self.alive:  # vLLM leaves the question open when its engine dies
                    raise await self.died()
                now = time.monotonic()
                if now - looked < LOOK_S:
                    continue
                before, computed = computed, computed_s(self.processes)
                stands_still = bool(self.processes) and computed - before < COMPUTES * (now - looked)
                looked = now
                if stands_still or now - begin >= (within_s or ANSWER_S):
                    self.cause = f"it did not answer within {now - begin:.0f} s ({what}), and was ended"
                    self.end_processes()
                    raise await self.died()
            return asked.result()
        except Exception as error:
            # vLLM's EngineDeadError among others, which it raises once it has noticed.
            if isinstance(error, EngineDiedError) or self.alive:
                raise
            raise await self.died() from error
        finally:
            asked.cancel()

    def watch(self) -> None:
        """Begins to look after the engine, until `unwatch`."""
        self._watching = asyncio.create_task(self._watch())

    def unwatch(self) -> None:
        for task in (self._asking, self._watching):
            if task is not None:
                task.cancel()

    async def _watch(self) -> None:
        """Finds an engine that hangs while requests wait for it, long before they time out."""
        while True:
            await asyncio.sleep(1)
            if self.begun:
                self.ask_if_silent(LONG_SILENT_S, min(self.begun.values()))

    def ask_if_silent(self, seconds: float, since: float = 0.0) -> None:
        """Asks the engine whether it still answers, if it has streamed nothing for so long, nor since that moment."""
        if time.monotonic() - max(self.heard, since) < seconds or not self.alive:
            return
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._still_answers())

    async def _still_answers(self) -> None:
        # As long as it computes it may: one step over a whole long prompt on a CPU takes its time.
        with suppress(Exception):
            await self.answer(self.engine.is_sleeping(), "whether it is there", within_s=math.inf)


def process_tree(pids: Iterable[int]) -> list[psutil.Process]:
    """These processes and all that they have started."""
    found = []
    for pid in pids:
        with suppress(psutil.Error):
            parent = psutil.Process(pid)
            found += [parent, *parent.children(recursive=True)]
    return found


def computed_s(processes: Iterable[psutil.Process]) -> float:
    """Seconds of a core that these processes have used by now."""
    used = 0.0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            used += times.user + times.system
    return used
