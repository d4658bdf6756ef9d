"""Aggregated serving: one pool whose engines do prefill and decode both."""

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from types import TracebackType
from typing import Annotated, Any, ClassVar, Literal, Self

from wp1.core.parts import Within
from wp1.core.records import Request, RequestRecord
from wp1.machine import hardware
from wp1.serving.backend import EngineNeed, ServingBackend, death_of
from wp1.serving.placement import places
from wp1.serving.schedulers.serve import outcome, stream_into
from wp1.serving.starting import kv_free, start_all


class AggregatedScheduler:
    """`replicas` identical engines; each request is prefilled and decoded by one of them.

    routing: "round_robin", or "least_loaded" (fewest requests in flight; ties in turn).
    make_backend: builds an engine from a name and a place. Engines start when the scheduler is entered.
    """

    moves_kv: ClassVar[bool] = False

    def __init__(
        self,
        *,
        name: str,
        replicas: Annotated[int, Within(1)],
        routing: Literal["round_robin", "least_loaded"] = "round_robin",
        tensor_parallel: Annotated[int, Within(1)] = 1,
        devices: Sequence[int] | str = "auto",
        make_backend: Callable[..., ServingBackend],
    ) -> None:
        self.name = name
        self._routing = routing
        self._places = places([tensor_parallel] * replicas, devices, hardware.gpu_indices(), hardware.cores())
        self._engines = [
            make_backend(name=f"{name}-{n}", place=place, tensor_parallel=tensor_parallel)
            for n, place in enumerate(self._places)
        ]
        self._in_flight = [0] * replicas
        self._turn = itertools.cycle(range(replicas))
        self._stack = AsyncExitStack()

    @classmethod
    def engines(cls, settings: Any) -> list[EngineNeed]:
        return [EngineNeed(f"{settings.name}-{n}", settings.tensor_parallel) for n in range(settings.replicas)]

    def check(self) -> None:
        self._engines[0].check()

    async def __aenter__(self) -> Self:
        await start_all(self._engines, self._stack)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def serve(self, request: Request, record: RequestRecord) -> None:
        if (dead := next((engine for engine in self._engines if not engine.alive), None)) is not None:
            # Even if others are alive: fewer engines under the full load would be a different experiment.
            record.pool, record.phase, record.t_end = self.name, "prefill", time.monotonic()
            record.status, record.cause, record.error = "error", "engine_died", death_of(dead)
            return
        record.pool = self.name
        async with outcome(record, request.timeout_s):
            await self.answer(request, record)

    async def answer(self, request: Request, record: RequestRecord) -> None:
        """Streams an engine's answer into the record. A subclass that reorders requests waits before it calls this."""
        index = self._route()
        engine = self._engines[index]
        record.prefill_engine = record.decode_engine = engine.name
        self._in_flight[index] += 1
        try:
            await stream_into(record, engine.generate(request))
        finally:
            self._in_flight[index] -= 1

    def _route(self) -> int:
        turn = next(self._turn)
        if self._routing == "round_robin":
            return turn
        count = len(self._engines)
        return min(((turn + n) % count for n in range(count)), key=lambda n: self._in_flight[n])

    @property
    def alive(self) -> bool:
        return all(engine.alive for engine in self._engines)

    async def settle(self) -> None:
        pass  # it writes no events

    def backends(self) -> dict[str, list[ServingBackend]]:
        return {self.name: list(self._engines)}

    def pools(self) -> list[dict[str, Any]]:
        return [
            {
                "pool": self.name,
                "phases": ["prefill", "decode"],
                "shared_gpu": any(place.sharing > 1 for place in self._places),
                "engines": [asdict(engine.info()) for engine in self._engines],
            }
        ]

    async def kv_free(self, within_s: float) -> dict[str, bool]:
        return await kv_free(self._engines, within_s)
