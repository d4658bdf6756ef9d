"""One request through disaggregated serving: prefill, handoff and decode."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from wp1.core.errors import WP1Error
from wp1.core.records import Handoff, Request, RequestRecord
from wp1.serving.backend import Chunk, EngineDiedError, death_of
from wp1.serving.schedulers.broker import KVBroker, PoolLostError, Ticket
from wp1.serving.schedulers.ledger import Ledger
from wp1.serving.schedulers.pools import EnginePools
from wp1.serving.schedulers.serve import WELL_ENDED, TransferError, add_tokens, closing


@dataclass(frozen=True, slots=True)
class _Early:
    """The stream of a decode engine that received its request before the prompt was computed."""

    stream: AsyncIterator[Chunk]
    first: "asyncio.Future[Chunk]"
    t_sent: float


class Handover:
    """Serves one request that holds a slot (`ticket`) in the prefill pool.

    streams_prefill_token: whether the client gets the prefill engine's token at once.
    """

    def __init__(
        self, pools: EnginePools, broker: KVBroker, ledger: Ledger, request: Request, record: RequestRecord,
        ticket: Ticket, handoff: Handoff, *, streams_prefill_token: bool,
    ) -> None:  # fmt: skip
        self._pools = pools
        self._broker = broker
        self._ledger = ledger
        self._streams_prefill_token = streams_prefill_token
        self.request = request
        self.record = record
        self.ticket = ticket
        self.handoff = handoff
        self._source = handoff.source  # the prefill engine

    async def run(self) -> None:
        """Serves the request. Raises EngineDiedError, TransferError, or WP1Error if an engine's answer is bad."""
        if self.request.max_tokens == 1:
            # The decode pool computes only the tokens after the first, so there is no handoff.
            await self._phases(None)
            return
        async with self._asked_early() as early:
            await self._phases(early)

    async def _phases(self, early: "_Early | None") -> None:
        one_token = self.request.max_tokens == 1
        last = await self._prefill_phase(one_token)
        self._broker.prefilled(self.ticket)
        if one_token or (self._streams_prefill_token and last.finish_reason == "stop"):
            # A decode engine that already has the request frees the KV when its stream is closed.
            if not one_token and (early is None or self.ticket.target in self._pools.lost):
                self._pools.release(self.request, self.handoff, last.kv_transfer_params)
            self.record.finish_reason = last.finish_reason
            self.record.t_engine_last_token = last.times.last_token if last.times else None
            return
        self.record.handoff_id = self.handoff.handoff_id
        try:
            await self._decode_phase(last, early)
        except BaseException as error:
            if self.record.phase in ("decode_queue", "handoff"):
                self.handoff.phase = self.record.phase
                self.handoff.error = self.handoff.error or str(error) or "the request was cancelled"
                # A decode engine that already has the request fetches the KV even if the request is cancelled.
                if self.handoff.t_decode_sent is None or self.handoff.target in self._pools.lost:
                    self._pools.release(self.request, self.handoff, last.kv_transfer_params)
            raise
        finally:
            self._ledger.close(self.handoff)

    async def _prefill_phase(self, one_token: bool) -> Chunk:
        """Computes the prompt's KV and the first token in the prefill engine; returns the engine's last chunk."""
        self.record.phase, self.record.prefill_engine = "prefill", self._source
        prefill = dataclasses.replace(self.request, request_id=self.handoff.handoff_id, max_tokens=1)
        params = None if one_token else self._pools.transfer.prefill_params(self.handoff.handoff_id, self.ticket.target)
        last: Chunk | None = None
        async with closing(self._pools.chunks(self._pools.prefill[self._source], prefill, params)) as stream:
            async for chunk in stream:
                last = chunk
                if one_token or self._streams_prefill_token:
                    add_tokens(self.record, chunk)
        if last is None or last.finish_reason not in WELL_ENDED or last.times is None:
            reason = last.finish_reason if last is not None else None
            raise WP1Error(f"engine {self._source} ended the prefill early: {reason or 'no reason given'}")
        self.record.prompt_tokens, self.record.cached_tokens = last.prompt_tokens, last.cached_tokens
        self.record.t_queued, self.record.t_scheduled = last.times.queued, last.times.scheduled
        self.record.t_engine_first_token = self.handoff.t_prefill_done = last.times.first_token
        self.record.preemptions = last.times.preemptions
        return last

    async def _decode_phase(self, prefilled: Chunk, early: "_Early | None") -> None:
        self.record.phase = "decode_queue"
        try:
            target = await self._broker.decode(self.ticket)
        except PoolLostError as error:
            raise self._pools.pool_lost(error) from error
        self.record.phase, self.record.decode_engine, self.handoff.target = "handoff", target, target
        if not (source := self._pools.prefill[self._source]).alive:
            self._pools.lose(source, death_of(source))
            raise EngineDiedError(self._failed(self._pools.died_when(self._source, "with the KV")))
        if prefilled.kv_transfer_params is None:
            raise TransferError(self._failed(f"engine {self._source} did not report where the KV is"))
        self._pools.peers[self._source] = self._pools.transfer.peer(prefilled.kv_transfer_params)
        if early is not None:
            self.record.t_decode_sent = self.handoff.t_decode_sent = early.t_sent
            await self._decoding(early.stream, early.first)
            return
        request = self._for_decode(prefilled.token_ids)
        params = self._pools.transfer.decode_params(prefilled.kv_transfer_params, len(self.request.prompt))
        if (unfetched := self._pools.transfer.unfetched(prefilled.kv_transfer_params)) is not None:
            self._pools.unfetched[self.handoff.handoff_id] = unfetched
        self.record.t_decode_sent = self.handoff.t_decode_sent = time.monotonic()
        async with closing(self._pools.chunks(self._pools.decode[target], request, params)) as stream:
            await self._decoding(stream, anext(stream))

    def _for_decode(self, first: list[int]) -> Request:
        """The request for the decode engine. first: the prefill engine's token, appended to the prompt if streamed."""
        request = dataclasses.replace(self.request, request_id=self.handoff.handoff_id)
        if self._streams_prefill_token:
            prompt: Any = self.request.prompt
            request.prompt = prompt + first
            request.max_tokens -= len(first)
        return request

    @asynccontextmanager
    async def _asked_early(self) -> "AsyncIterator[_Early | None]":
        """A decode engine's stream, started before the prompt is computed.

        None if the connector does not overlap transfer with prefill, or if no decode engine has room.
        """
        target = self._broker.reserve(self.ticket) if self._pools.transfer.overlap else None
        if target is None:
            yield None
            return
        # Token 0 is a placeholder for the first token, which is not known yet.
        request = self._for_decode([0])
        params = self._pools.transfer.early_params(
            self.handoff.handoff_id, self._source, len(self.request.prompt), wants_token=self._streams_prefill_token
        )
        async with closing(self._pools.chunks(self._pools.decode[target], request, params)) as stream:
            first = asyncio.ensure_future(anext(stream))
            try:
                yield _Early(stream, first, time.monotonic())
            finally:
                first.cancel()
                await asyncio.wait([first])
                if not first.cancelled():
                    first.exception()  # retrieve it, in case nobody awaited it, so that asyncio does not log it

    async def _decoding(self, stream: AsyncIterator[Chunk], first: Awaitable[Chunk]) -> None:
        await self._await_first(first)
        async for chunk in stream:
            self._add_decoded(chunk)

    async def _await_first(self, first: Awaitable[Chunk]) -> None:
        """Waits for the decode engine's first token, which needs the KV. Raises TransferError if it is late."""
        limit = asyncio.timeout(self._pools.transfer.timeout_s)
        self._pools.limits[self.ticket] = limit
        try:
            async with limit:
                chunk = await first
        except TimeoutError as error:
            if self._source in self._pools.lost:
                raise EngineDiedError(
                    self._failed(self._pools.died_when(self._source, "during the handoff"))
                ) from error
            reason = f"the KV did not arrive within {self._pools.transfer.timeout_s:g} s (transfer.timeout_s)"
            raise TransferError(self._failed(reason)) from error
        except StopAsyncIteration as error:
            raise TransferError(self._failed("the decode engine returned no token")) from error
        finally:
            del self._pools.limits[self.ticket]
        if not chunk.token_ids:
            reason = self._ledger.failure(self.handoff.handoff_id)
            raise TransferError(
                self._failed(reason or f"engine {self.ticket.target} could not load the KV ({chunk.finish_reason})")
            )
        self._broker.moved(self.ticket)
        self.record.phase = "decode"
        self.handoff.t_decode_first_token = chunk.t
        self._add_decoded(chunk)

    def _add_decoded(self, chunk: Chunk) -> None:
        add_tokens(self.record, chunk)
        self.record.finish_reason = chunk.finish_reason
        if chunk.times is not None:
            # KV that an engine fetches within a step arrives after the step has begun.
            arrived = self._ledger.arrival(self.handoff.handoff_id)
            scheduled = chunk.times.scheduled
            usable = scheduled if scheduled is None or arrived is None else max(scheduled, arrived)
            self.record.t_decode_scheduled = self.handoff.t_decode_scheduled = usable
            self.record.t_decode_first_token = self.handoff.t_decode_first_token = chunk.times.first_token
            self.record.t_engine_last_token = chunk.times.last_token
            self.record.preemptions += chunk.times.preemptions

    def _failed(self, reason: str) -> str:
        """Records why the handoff failed, and returns the error message for its request."""
        handoff = self.handoff
        handoff.error = reason
        return f"handoff {handoff.handoff_id} from {handoff.source} to {handoff.target} failed: {reason}"
