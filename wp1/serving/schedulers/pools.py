"""The engines of disaggregated serving: which are alive, and what to release if one dies."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from wp1.core.records import Handoff, Request
from wp1.serving.backend import Chunk, EngineDiedError, ServingBackend, answered
from wp1.serving.schedulers.broker import KVBroker, PoolLostError, Ticket
from wp1.serving.schedulers.ledger import Ledger
from wp1.serving.schedulers.serve import closing
from wp1.serving.transfer import Kept, KVTransfer

# Queue lengths are recorded and engines checked ten times a second.
WATCH_PERIOD_S = 0.1


class EnginePools:
    """Prefill and decode engines by name, and the handoffs in progress between them."""

    def __init__(self, transfer: KVTransfer) -> None:
        self.transfer = transfer
        self.prefill: dict[str, ServingBackend] = {}
        self.decode: dict[str, ServingBackend] = {}
        self.broker: KVBroker | None = None  # broker and ledger are set once the engines are up
        self.ledger: Ledger | None = None
        self.limits: dict[Ticket, asyncio.Timeout] = {}  # time limits of handoffs in progress
        self.lost: dict[str, str] = {}  # dead engine -> why it died
        self.peers: dict[str, str] = {}  # prefill engine -> the connectors' name for it
        self.unfetched: dict[str, str] = {}  # handoff id -> `KVTransfer.unfetched`
        self.tasks: set[asyncio.Task[None]] = set()  # background tasks that free KV

    def fill(self, prefill: Sequence[ServingBackend], decode: Sequence[ServingBackend]) -> None:
        self.prefill = {engine.name: engine for engine in prefill}
        self.decode = {engine.name: engine for engine in decode}

    @property
    def engines(self) -> list[ServingBackend]:
        return [*self.prefill.values(), *self.decode.values()]

    def pool_lost(self, error: PoolLostError) -> EngineDiedError:
        return EngineDiedError(f"{error}: {'; '.join(self.lost.values())}")

    def release(self, request: Request, handoff: Handoff, params: dict[str, Any] | None) -> None:
        """Frees the KV of an abandoned request: a decode engine fetches it and drops it.

        If none is alive, the prefill engine frees the KV when its lease expires.
        """
        alive = [engine for engine in self.decode.values() if engine.alive]
        if not alive or params is None or handoff.source in self.lost:
            return
        # Under the same id, by which a connector that pushes KV finds what to push.
        fetch = dataclasses.replace(request, request_id=handoff.handoff_id, max_tokens=1)

        async def fetch_and_drop() -> None:
            decode_params = self.transfer.decode_params(params, len(request.prompt))
            stream = alive[0].generate(fetch, decode_params)
            with suppress(Exception):
                async with asyncio.timeout(self.transfer.timeout_s), closing(stream):
                    async for _ in stream:
                        pass

        self.in_background(fetch_and_drop())

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_kv_stats(self, stats: dict[str, Any]) -> None:
        if self.ledger is not None:
            for report in self.transfer.reports(stats):
                if isinstance(report, Kept):
                    if (handoff := self.ledger.keep(report)) is not None:
                        self.let_go(handoff)
                else:
                    self.ledger.report(report)

    def let_go(self, handoff: Handoff) -> None:
        """Frees the prefill engine's KV at once if the decode engine already had the whole prompt in its cache."""
        request, engine = self.unfetched.get(handoff.handoff_id), self.prefill[handoff.source]

        async def free(request: str) -> None:
            with suppress(Exception):  # the lease expires anyway
                await engine.let_go(request)

        if request is not None and engine.alive:
            self.in_background(free(request))

    def died_when(self, name: str, when: str) -> str:
        """Why and when an engine died: "engine prefill-0 died during the handoff: ..."."""
        return self.lost[name].replace(" died", f" died {when}", 1)

    def lose(self, engine: ServingBackend, why: str) -> None:
        """Removes a dead engine from routing and fails the handoffs waiting for its KV. why: one line."""
        name = engine.name
        if name in self.lost:
            return
        self.lost[name] = why
        if self.broker is not None:
            self.broker.lose(name)
        for ticket, limit in self.limits.items():
            if ticket.source == name:
                limit.reschedule(asyncio.get_running_loop().time())
        if (peer := self.peers.get(name)) is not None:
            self.in_background(self._forget(peer))

    async def _forget(self, peer: str) -> None:
        # By then the decode engines have aborted the requests that waited for it.
        await asyncio.sleep(WATCH_PERIOD_S)
        for engine in self.decode.values():
            if engine.alive:
                with suppress(Exception):
                    await answered(engine.name, engine.forget_peer(peer), "to forget a dead engine")

    async def chunks(
        self, engine: ServingBackend, request: Request, params: dict[str, Any] | None
    ) -> AsyncIterator[Chunk]:
        """Streams an engine's chunks. If it dies, removes it from routing."""
        async with closing(engine.generate(request, params)) as stream:
            try:
                async for chunk in stream:
                    yield chunk
            except EngineDiedError as error:
                self.lose(engine, str(error))
                raise
