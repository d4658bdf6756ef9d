"""Aggregated serving: one pool whose engines do prefill and decode both."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from wp1 import hardware
from wp1.records import Request, RequestRecord
from wp1.serving.backend import ServingBackend
from wp1.serving.placement import core_sets, gpu_indices
from wp1.serving.serve import collect


class AggregatedScheduler:
    """`replicas` engines that are alike; each request goes to one of them for all its life.

    routing: "round_robin", or "least_loaded" (fewest requests in flight, equals in turn).
    make_backend: gives an engine for a name, GPUs and CPU cores; engines start when the scheduler is entered.
    prefill, decode and first_token are keys of disaggregated serving, which `wp1.schema.check` refuses here.
    """

    def __init__(
        self,
        *,
        mode: str,
        replicas: int,
        routing: str,
        tensor_parallel: int,
        devices: Sequence[int] | str,
        make_backend: Callable[..., ServingBackend],
        prefill: None = None,
        decode: None = None,
        first_token: None = None,
    ) -> None:
        self.mode = mode
        self._routing = routing
        gpus = gpu_indices(replicas, tensor_parallel, devices, hardware.gpu_indices())
        self._engines = [
            make_backend(name=f"{mode}-{n}", gpus=gpus[n], cores=cores, tensor_parallel=tensor_parallel)
            for n, cores in enumerate(core_sets(replicas, hardware.cores()))
        ]
        self._in_flight = [0] * replicas
        self._turn = itertools.cycle(range(replicas))
        self._stack = AsyncExitStack()

    def check(self) -> None:
        self._engines[0].check()

    async def __aenter__(self) -> Self:
        try:
            # One after the other: engines read their devices from this process's environment as they start.
            for engine in self._engines:
                await self._stack.enter_async_context(engine)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def serve(self, request: Request, record: RequestRecord) -> None:
        index = self._route()
        engine = self._engines[index]
        record.pool = self.mode
        record.prefill_engine = record.decode_engine = engine.name
        self._in_flight[index] += 1
        try:
            await collect(engine.generate(request), record, request.timeout_s)
        finally:
            self._in_flight[index] -= 1

    def _route(self) -> int:
        turn = next(self._turn)
        if self._routing == "round_robin":
            return turn
        count = len(self._engines)
        return min(((turn + n) % count for n in range(count)), key=lambda n: self._in_flight[n])

    def pools(self) -> list[dict[str, Any]]:
        return [
            {"pool": self.mode, "phases": ["prefill", "decode"], "engines": [asdict(e.info()) for e in self._engines]}
        ]
