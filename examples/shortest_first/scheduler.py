"""Shortest prompt first: when a slot is free, the waiting request with the shortest prompt gets it."""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from wp1.core.parts import Within
from wp1.core.records import Request, RequestRecord
from wp1.serving.schedulers.aggregated import AggregatedScheduler


class ShortestFirst(AggregatedScheduler):
    """Aggregated serving with at most `at_once` requests on the engines; the others wait in the scheduler.

    order: "shortest" prompt first, or "arrival" order as the baseline.
    """

    def __init__(
        self,
        *,
        at_once: Annotated[int, Within(1)] = 1,
        order: Literal["shortest", "arrival"] = "shortest",
        **aggregated: Any,
    ) -> None:
        super().__init__(**aggregated)
        self._free = at_once
        self._by_length = order == "shortest"
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    async def answer(self, request: Request, record: RequestRecord) -> None:
        record.phase = "queue"
        async with self._slot(len(request.prompt) if self._by_length else 0):
            await super().answer(request, record)

    @asynccontextmanager
    async def _slot(self, rank: int) -> AsyncIterator[None]:
        """A slot, held while a request is on an engine. The lowest rank enters first; ties in order of arrival."""
        if self._free:
            self._free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (rank, next(self._numbers), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._pass_on()  # the slot was granted just as this request timed out
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[-1]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
