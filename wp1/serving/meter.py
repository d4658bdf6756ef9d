"""An engine's own counts, aggregated over 0.1 s: KV cache in use, requests running and waiting, preemptions."""

import time
from collections.abc import Callable

from wp1.core.records import EngineStats

PERIOD_S = 0.1


class Meter:
    """Receives an engine's counts after every step; writes a row every PERIOD_S and when the engine becomes idle."""

    def __init__(self, arm: str, write: Callable[[EngineStats], None]) -> None:
        self._arm = arm
        self._write = write
        self._open: dict[str, tuple[EngineStats, float]] = {}  # engine: the row, and when it was begun

    def __call__(self, engine: str, kv_use: float, running: int, waiting: int, preemptions: int) -> None:
        """Adds one step of an engine. kv_use: share of its KV blocks in use, 0 to 1; running, waiting: requests."""
        now = time.monotonic()
        row, begun = self._open.get(engine) or (EngineStats(now, self._arm, engine), now)
        row.t = now
        row.kv_use = (row.kv_use * row.steps + kv_use) / (row.steps + 1)
        row.kv_use_peak = max(row.kv_use_peak, kv_use)
        row.running = max(row.running, running)
        row.waiting = max(row.waiting, waiting)
        row.preemptions += preemptions
        row.steps += 1
        if now - begun >= PERIOD_S or running + waiting == 0:
            self._open.pop(engine, None)
            self._write(row)
        else:
            self._open[engine] = (row, begun)
