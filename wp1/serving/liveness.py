"""Tells whether an engine is alive and responsive, and why it died."""

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

# Seconds between looks at an engine that owes an answer. If its processes have used hardly any CPU time since the last
# look, it is stopped or deadlocked. If they have, it may be in a long step and gets `ANSWER_S`.
LOOK_S = 20.0
COMPUTES = 0.02  # share of a core that counts as computing
# Seconds without output after which an engine is probed: after an aborted request, and while requests are in flight.
SILENT_S, LONG_SILENT_S = 2.0, 30.0


class Liveness:
    """Tracks whether one engine is alive.

    log: the engine's log file; its part starts at byte `log_start`. kill: ends all of the run's engine processes.
    """

    def __init__(self, name: str, log: Path, kill: Callable[[], None]) -> None:
        self.name = name
        self._log = log
        self._kill = kill
        self.engine: Any = None  # vLLM's AsyncLLM while it is up
        self.log_start = 0
        self.processes: list[psutil.Process] = []  # the engine's core and its workers
        self.cause: str | None = None  # why it died
        self.heard = 0.0  # time of its last output; monotonic
        self.begun: dict[str, float] = {}  # requests in flight: id -> time sent; monotonic
        self._asking: asyncio.Task[None] | None = None  # a probe in progress
        self._watching: asyncio.Task[None] | None = None

    def begin(self, engine: Any) -> None:
        """Starts tracking an engine that is up, and its processes."""
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
        return f"engine {self.name} died: {self.cause or f'see {self._log}'}"

    async def died(self) -> EngineDiedError:
        """The error for callers of a dead engine. Waits up to a second for its processes to end, which may tell why."""
        for _ in range(20):
            if self.death is None or self.cause is not None:
                break
            await asyncio.sleep(0.05)
        return EngineDiedError(self.death or f"engine {self.name} died")

    def _cores(self) -> list[Any]:
        """The processes of vLLM's engine core; [] if this version of vLLM keeps them elsewhere."""
        resources = getattr(getattr(self.engine, "engine_core", None), "resources", None)
        return list(getattr(getattr(resources, "engine_manager", None), "processes", ()))

    def end_processes(self) -> None:
        """Kills this engine's processes, or all of the run's if this version of vLLM does not tell which they are."""
        if not self.processes:
            self._kill()
        for process in self.processes:
            with suppress(psutil.Error):
                process.kill()

    async def answer(self, call: Coroutine[Any, Any, T], what: str, within_s: float | None = None) -> T:
        """Awaits the engine's answer to a control call and returns it.

        what: the purpose of the call, for the message. within_s: seconds; None means ANSWER_S.
        Raises EngineDiedError if the engine died or hangs; an engine that hangs is killed, and its requests fail.
        """
        asked = asyncio.ensure_future(call)
        begin = looked = time.monotonic()
        computed = computed_s(self.processes)
        try:
            while not (await asyncio.wait([asked], timeout=min(1.0, LOOK_S)))[0]:
                if not self.alive:  # vLLM never resolves the call if its engine dies
                    raise await self.died()
                now = time.monotonic()
                if now - looked < LOOK_S:
                    continue
                before, computed = computed, computed_s(self.processes)
                stands_still = bool(self.processes) and computed - before < COMPUTES * (now - looked)
                looked = now
                if stands_still or now - begin >= (within_s or ANSWER_S):
                    self.cause = f"it did not answer within {now - begin:.0f} s ({what}) and was killed"
                    self.end_processes()
                    raise await self.died()
            return asked.result()
        except Exception as error:
            # For example vLLM's EngineDeadError, raised once vLLM has noticed.
            if isinstance(error, EngineDiedError) or self.alive:
                raise
            raise await self.died() from error
        finally:
            asked.cancel()

    def watch(self) -> None:
        """Starts watching for a hang, until `unwatch`."""
        self._watching = asyncio.create_task(self._watch())

    def unwatch(self) -> None:
        for task in (self._asking, self._watching):
            if task is not None:
                task.cancel()

    async def _watch(self) -> None:
        """Detects an engine that hangs while requests are in flight, long before they time out."""
        while True:
            await asyncio.sleep(1)
            if self.begun:
                self.ask_if_silent(LONG_SILENT_S, min(self.begun.values()))

    def ask_if_silent(self, seconds: float, since: float = 0.0) -> None:
        """Probes the engine if it has had no output for `seconds`, counted from `since` (monotonic) at the earliest."""
        if time.monotonic() - max(self.heard, since) < seconds or not self.alive:
            return
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._still_answers())

    async def _still_answers(self) -> None:
        # No time limit while it computes: one step over a whole long prompt takes minutes on a CPU.
        with suppress(Exception):
            await self.answer(self.engine.is_sleeping(), "to check that it is alive", within_s=math.inf)


def process_tree(pids: Iterable[int]) -> list[psutil.Process]:
    """These processes and all their descendants."""
    processes = []
    for pid in pids:
        with suppress(psutil.Error):
            parent = psutil.Process(pid)
            processes += [parent, *parent.children(recursive=True)]
    return processes


def computed_s(processes: Iterable[psutil.Process]) -> float:
    """CPU time in seconds that these processes have used so far."""
    used = 0.0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            used += times.user + times.system
    return used
