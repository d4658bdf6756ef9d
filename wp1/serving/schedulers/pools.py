"""The engines of disaggregated serving: which of them live, and what is let go when one dies."""

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

# Queue lengths are noted, and engines looked after, ten times a second.
WATCH_PERIOD_S = 0.1


class EnginePools:
    """Prefill and decode engines by their names, and what is under way between them."""

    def __init__(self, transfer: KVTransfer) -> None:
        self.transfer = transfer
        self.prefill: dict[str, ServingBackend] = {}
        self.decode: dict[str, ServingBackend] = {}
        self.broker: KVBroker | None = None  # both are there once the engines are up
        self.ledger: Ledger | None = None
        self.limits: dict[Ticket, asyncio.Timeout] = {}  # of handoffs on their way
        self.lost: dict[str, str] = {}  # engines that died, and why
        self.peers: dict[str, str] = {}  # prefill engines by the connectors' names for them
        self.unfetched: dict[str, str] = {}  # by handoff: `KVTransfer.unfetched`
        self.tasks: set[asyncio.Task[None]] = set()  # that free KV

    def fill(self, prefill: Sequence[ServingBackend], decode: Sequence[ServingBackend]) -> None:
        self.prefill = {engine.name: engine for engine in prefill}
        self.decode = {engine.name: engine for engine in decode}

    @property
    def engines(self) -> list[ServingBackend]:
        return [*self.prefill.values(), *self.decode.values()]

    def pool_lost(self, error: PoolLostError) -> EngineDiedError:
        return EngineDiedError(f"{error}: {'; '.join(self.lost.values())}")

    def release(self, request: Request, handoff: Handoff, params: dict[str, Any] | None) -> None:
        """Frees KV that is held for a request nobody waits for: a decode engine fetches it and drops it.

        If none is alive, the prefill engine lets go of it when its lease ends.
        """
        living = [engine for engine in self.decode.values() if engine.alive]
        if not living or params is None or handoff.source in self.lost:
            return
        # By the same id: a connector that writes finds by it what it is to write.
        asked = dataclasses.replace(request, request_id=handoff.handoff_id, max_tokens=1)

        async def fetch_and_drop() -> None:
            decode = self.transfer.decode_params(params, len(request.prompt))
            stream = living[0].generate(asked, decode)
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
        """The decode engine had all of a prompt, so the prefill engine need not wait to be asked for it."""
        request, engine = self.unfetched.get(handoff.handoff_id), self.prefill[handoff.source]

        async def tell(request: str) -> None:
            with suppress(Exception):  # its lease ends by itself
                await engine.let_go(request)

        if request is not None and engine.alive:
            self.in_background(tell(request))

    def died_when(self, name: str, when: str) -> str:
        """Why an engine died, and when: "engine prefill-0 died during the handoff: ..."."""
        return self.lost[name].replace(" died", f" died {when}", 1)

    def lose(self, engine: ServingBackend, why: str) -> None:
        """Takes a dead engine out of routing, and ends the wait for handoffs from it. why: in a line."""
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
        # By then the requests that waited for it have been given up in the decode engines.
        await asyncio.sleep(WATCH_PERIOD_S)
        for engine in self.decode.values():
            if engine.alive:
                with suppress(Exception):
                    await answered(engine.name, engine.forget_peer(peer), "to forget an engine that died")

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
