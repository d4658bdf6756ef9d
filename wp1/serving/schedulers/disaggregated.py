"""Disaggregated serving: one pool computes prompts, another decodes, and the KV cache is handed over between them."""

import asyncio
import dataclasses
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Any, ClassVar, Literal, Self

from wp1.core.errors import WP1Error
from wp1.core.parts import Within
from wp1.core.records import Handoff, QueueLengths, Request, RequestRecord
from wp1.machine import hardware
from wp1.serving.backend import Chunk, EngineDiedError, EngineNeed, ServingBackend, answered, death_of
from wp1.serving.placement import places
from wp1.serving.schedulers.broker import EngineRoom, KVBroker, PoolLostError, Ticket
from wp1.serving.schedulers.ledger import Ledger
from wp1.serving.schedulers.serve import WELL_ENDED, TransferError, add_tokens, closing, outcome
from wp1.serving.starting import kv_free, start_all
from wp1.serving.transfer import Kept, KVTransfer

# Queue lengths are noted, and engines looked after, ten times a second.
WATCH_PERIOD_S = 0.1
# vLLM's specifications of layers whose blocks are handed over whole and all. Of windows it may hand over the last ones
# only, and a recurrent state is not in blocks.
WHOLE = {"FullAttentionSpec", "MLAAttentionSpec"}


@dataclass(frozen=True, slots=True)
class _Early:
    """What a decode engine streams that was asked before its request's prompt was computed."""

    stream: AsyncIterator[Chunk]
    first: "asyncio.Future[Chunk]"
    t_sent: float


class DisaggregatedScheduler:
    """`prefill` engines and `decode` engines with a `KVBroker` between them.

    first_token: "prefill" streams the prefill engine's token at once, and decoding goes on from the second; with
    "decode" the decode engine computes it again from the KV that it was given, and the user waits for that.
    max_prefilled: requests that a prefill engine works on or holds the KV of.
    transfer: where it overlaps, a decode engine with room is asked for its part while the prompt is computed, and
    takes the KV over as it gets ready.
    lease_s: seconds for which KV that nobody fetches is kept, where no decode engine is left to release it.
    make_backend: gives an engine for a name, a place, and what its KV connector needs.
    write: takes a Handoff for every one that ended, and QueueLengths ten times a second.
    """

    moves_kv: ClassVar[bool] = True

    def __init__(
        self,
        *,
        name: str,
        prefill: Annotated[int, Within(1)],
        decode: Annotated[int, Within(1)],
        routing: Literal["round_robin", "least_loaded"] = "round_robin",
        tensor_parallel: Annotated[int, Within(1)] = 1,
        decode_tensor_parallel: Annotated[int, Within(1)] | None = None,
        devices: Sequence[int] | str = "auto",
        first_token: Literal["prefill", "decode"],
        max_prefilled: Annotated[int, Within(1)],
        transfer: KVTransfer,
        lease_s: float,
        kv_bytes_per_token: int | None,
        make_backend: Callable[..., ServingBackend],
        write: Callable[[Handoff | QueueLengths], None],
        kv_shards: int | None = None,
    ) -> None:
        self.name = name
        self._routing = routing
        self._streams_prefill_token = first_token == "prefill"
        self._max_prefilled = max_prefilled
        self._transfer = transfer
        self._kv_bytes_per_token = kv_bytes_per_token
        # If there are more ranks than heads, some hold the same heads, and each of them gets its own copy.
        size = decode_tensor_parallel or tensor_parallel
        self._kv_copies = size // (kv_shards or size)
        self._write = write
        decode_size = decode_tensor_parallel or tensor_parallel
        sizes = [tensor_parallel] * prefill + [decode_size] * decode
        # Each rank of the larger side moves its part, to or from one rank of the other.
        self._transfers = max(tensor_parallel, decode_size)
        self._places = places(sizes, devices, hardware.gpu_indices(), hardware.cores())
        if transfer.overlap:
            prefill_gpus = {gpu for place in self._places[:prefill] for gpu in place.gpus}
            self._places[prefill:] = [
                dataclasses.replace(place, peers=sorted(prefill_gpus - set(place.gpus)))
                for place in self._places[prefill:]
            ]
        names = [f"prefill-{n}" for n in range(prefill)] + [f"decode-{n}" for n in range(decode)]
        engines = [
            make_backend(
                name=name,
                place=place,
                tensor_parallel=size,
                kv_transfer=transfer.engine_settings(
                    "prefill" if name.startswith("prefill") else "decode", name, lease_s
                ),
                worker_extension=transfer.worker_extension,
                connector_arguments=transfer.engine_arguments(),
                on_kv_stats=self._on_kv_stats,
            )
            for name, place, size in zip(names, self._places, sizes, strict=True)
        ]
        self._prefill = {engine.name: engine for engine in engines[:prefill]}
        self._decode = {engine.name: engine for engine in engines[prefill:]}
        self._broker: KVBroker | None = None
        self._ledger: Ledger | None = None
        self._limits: dict[Ticket, asyncio.Timeout] = {}  # of handoffs on their way
        self._lost: dict[str, str] = {}  # engines that died, and why
        self._peers: dict[str, str] = {}  # prefill engines by the connectors' names for them
        self._unfetched: dict[str, str] = {}  # by handoff: `KVTransfer.unfetched`
        self._tasks: set[asyncio.Task[None]] = set()  # that free KV
        self._watch: asyncio.Task[None] | None = None
        self._numbers = itertools.count()
        self._stack = AsyncExitStack()

    @classmethod
    def engines(cls, settings: Any) -> list[EngineNeed]:
        decode = settings.decode_tensor_parallel or settings.tensor_parallel
        return [
            *(EngineNeed(f"prefill-{n}", settings.tensor_parallel, "prefill") for n in range(settings.prefill)),
            *(EngineNeed(f"decode-{n}", decode, "decode") for n in range(settings.decode)),
        ]

    def check(self) -> None:
        for pool in (self._prefill, self._decode):
            next(iter(pool.values())).check()

    async def __aenter__(self) -> Self:
        await start_all([*self._prefill.values(), *self._decode.values()], self._stack)
        try:
            for engine in self._decode.values():
                await answered(engine.name, engine.meet(list(self._prefill)), "to meet the prefill engines")
        except BaseException:
            await self._stack.aclose()
            raise
        settings = next(iter(self._decode.values())).info().settings
        block_tokens = settings["block_size"]
        self._ledger = Ledger(
            self._write,
            self._transfer.name,
            block_tokens,
            self._block_bytes(settings),
            transfers=self._transfers,
            keeps=settings.get("prefix_caching", False),
        )
        self._broker = KVBroker(
            [_room(engine, self._max_prefilled) for engine in self._prefill.values()],
            [_room(engine) for engine in self._decode.values()],
            self._routing,
        )
        self._watch = asyncio.create_task(self._look_after())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()
            for task in self._tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        await self.settle()
        await self._stack.aclose()

    def _block_bytes(self, settings: dict[str, Any]) -> int | None:
        """Of a block in all layers and all ranks of a decode engine; None if handoffs do not consist of whole blocks.

        By the engine's own figure, as its cache may have another dtype than the configuration lets expect.
        """
        kinds = {words.split()[-1] for words in settings.get("kv_layers", "").split(", ") if words}
        if kinds - WHOLE:
            return None
        block = settings.get("kv_block_bytes")
        if block is None and self._kv_bytes_per_token is not None:
            block = settings["block_size"] * self._kv_bytes_per_token
        return None if block is None else block * self._kv_copies

    @property
    def alive(self) -> bool:
        return all(engine.alive for engine in (self._prefill | self._decode).values())

    async def settle(self) -> None:
        if self._ledger is not None:
            await self._ledger.settle()

    async def serve(self, request: Request, record: RequestRecord) -> None:
        assert self._broker is not None
        record.pool = self.name
        async with outcome(record, request.timeout_s):
            record.phase = "queue"
            if not isinstance(request.prompt, list) or (request.prompt and not isinstance(request.prompt[0], int)):
                raise WP1Error("disaggregated serving takes prompts as token ids")
            tokens = len(request.prompt)
            ticket = await self._enter(tokens, request.max_tokens)
            try:
                await self._serve(request, record, ticket)
            finally:
                self._broker.end(ticket)

    async def _enter(self, prompt_tokens: int, max_tokens: int) -> Ticket:
        assert self._broker is not None
        try:
            return await self._broker.prefill(prompt_tokens, prompt_tokens + max_tokens)
        except PoolLostError as error:
            raise self._pool_lost(error) from error

    def _pool_lost(self, error: PoolLostError) -> EngineDiedError:
        return EngineDiedError(f"{error}: {'; '.join(self._lost.values())}")

    async def _serve(self, request: Request, record: RequestRecord, ticket: Ticket) -> None:
        """Prefill, handoff and decode of a request that has its place in the prefill pool."""
        assert self._broker is not None
        assert self._ledger is not None
        assert ticket.source is not None
        # The tokens after the first are the decode pool's; where there is none, nothing is handed over.
        one_token = request.max_tokens == 1
        handoff = self._ledger.open(request, f"{next(self._numbers)}-{secrets.token_hex(4)}", ticket.source)
        async with AsyncExitStack() as stack:
            stack.callback(self._ledger.forget, handoff)
            stack.callback(self._unfetched.pop, handoff.handoff_id, None)
            early = None if one_token else await stack.enter_async_context(self._asked_early(request, ticket, handoff))
            await self._serve_phases(request, record, ticket, handoff, early)

    async def _serve_phases(
        self, request: Request, record: RequestRecord, ticket: Ticket, handoff: Handoff, early: "_Early | None"
    ) -> None:
        assert self._broker is not None
        assert self._ledger is not None
        one_token = request.max_tokens == 1
        last = await self._prefill_phase(request, record, ticket, handoff, one_token)
        self._broker.prefilled(ticket)
        if one_token or (self._streams_prefill_token and last.finish_reason == "stop"):
            # A decode engine that was asked already frees it when it hears that nobody waits.
            if not one_token and (early is None or ticket.target in self._lost):
                self._release(request, handoff, last.kv_transfer_params)
            record.finish_reason = last.finish_reason
            record.t_engine_last_token = last.times.last_token if last.times else None
            return
        record.handoff_id = handoff.handoff_id
        try:
            await self._decode_phase(request, record, ticket, handoff, last, early)
        except BaseException as error:
            if record.phase in ("decode_queue", "handoff"):
                handoff.phase = record.phase
                handoff.error = handoff.error or str(error) or "the request was given up"
                # A decode engine that was asked for it fetches it, given up or not.
                if handoff.t_decode_sent is None or handoff.target in self._lost:
                    self._release(request, handoff, last.kv_transfer_params)
            raise
        finally:
            self._ledger.close(handoff)

    async def _prefill_phase(
        self, request: Request, record: RequestRecord, ticket: Ticket, handoff: Handoff, one_token: bool
    ) -> Chunk:
        """The prompt's KV in the prefill engine, and the first token; returns the engine's last chunk."""
        assert ticket.source is not None
        record.phase, record.prefill_engine = "prefill", ticket.source
        asked = dataclasses.replace(request, request_id=handoff.handoff_id, max_tokens=1)
        params = None if one_token else self._transfer.prefill_params(handoff.handoff_id, ticket.target)
        last: Chunk | None = None
        async with closing(self._chunks(self._prefill[ticket.source], asked, params)) as stream:
            async for chunk in stream:
                last = chunk
                if one_token or self._streams_prefill_token:
                    add_tokens(record, chunk)
        if last is None or last.finish_reason not in WELL_ENDED or last.times is None:
            reason = last.finish_reason if last is not None else None
            raise WP1Error(f"engine {ticket.source} ended the prefill early: {reason or 'no reason given'}")
        record.prompt_tokens, record.cached_tokens = last.prompt_tokens, last.cached_tokens
        record.t_queued, record.t_scheduled = last.times.queued, last.times.scheduled
        record.t_engine_first_token = handoff.t_prefill_done = last.times.first_token
        record.preemptions = last.times.preemptions
        return last

    async def _decode_phase(
        self,
        request: Request,
        record: RequestRecord,
        ticket: Ticket,
        handoff: Handoff,
        prefilled: Chunk,
        early: "_Early | None",
    ) -> None:
        assert self._broker is not None
        assert ticket.source is not None
        record.phase = "decode_queue"
        try:
            target = await self._broker.decode(ticket)
        except PoolLostError as error:
            raise self._pool_lost(error) from error
        record.phase, record.decode_engine, handoff.target = "handoff", target, target
        if not (source := self._prefill[ticket.source]).alive:
            self._lose(source, death_of(source))
            raise EngineDiedError(handoff_error(handoff, self._died_when(ticket.source, "with the KV")))
        if prefilled.kv_transfer_params is None:
            raise TransferError(handoff_error(handoff, f"engine {ticket.source} did not say where the KV is"))
        self._peers[ticket.source] = self._transfer.peer(prefilled.kv_transfer_params)
        if early is not None:
            record.t_decode_sent = handoff.t_decode_sent = early.t_sent
            await self._decoding(early.stream, early.first, record, ticket, handoff)
            return
        asked = self._for_decode(request, handoff, prefilled.token_ids)
        params = self._transfer.decode_params(prefilled.kv_transfer_params, len(request.prompt))
        if (unfetched := self._transfer.unfetched(prefilled.kv_transfer_params)) is not None:
            self._unfetched[handoff.handoff_id] = unfetched
        record.t_decode_sent = handoff.t_decode_sent = time.monotonic()
        async with closing(self._chunks(self._decode[target], asked, params)) as stream:
            await self._decoding(stream, anext(stream), record, ticket, handoff)

    def _for_decode(self, request: Request, handoff: Handoff, first: list[int]) -> Request:
        """What a decode engine is asked for. `first`: the prefill engine's token, which is part of its prompt."""
        asked = dataclasses.replace(request, request_id=handoff.handoff_id)
        if self._streams_prefill_token:
            prompt: Any = request.prompt
            asked.prompt = prompt + first
            asked.max_tokens -= len(first)
        return asked

    @asynccontextmanager
    async def _asked_early(self, request: Request, ticket: Ticket, handoff: Handoff) -> "AsyncIterator[_Early | None]":
        """A decode engine's stream, before the prompt is computed; None where that is not to be, or none has room."""
        assert self._broker is not None
        assert ticket.source is not None
        target = self._broker.reserve(ticket) if self._transfer.overlap else None
        if target is None:
            yield None
            return
        # Token 0 keeps the place of one that is not known yet.
        asked = self._for_decode(request, handoff, [0])
        params = self._transfer.early_params(
            handoff.handoff_id, ticket.source, len(request.prompt), wants_token=self._streams_prefill_token
        )
        async with closing(self._chunks(self._decode[target], asked, params)) as stream:
            first = asyncio.ensure_future(anext(stream))
            try:
                yield _Early(stream, first, time.monotonic())
            finally:
                first.cancel()
                await asyncio.wait([first])
                if not first.cancelled():
                    first.exception()  # it was told to whoever waited, or nobody did

    async def _decoding(
        self,
        stream: AsyncIterator[Chunk],
        first: Awaitable[Chunk],
        record: RequestRecord,
        ticket: Ticket,
        handoff: Handoff,
    ) -> None:
        await self._until_there(first, record, ticket, handoff)
        async for chunk in stream:
            self._add_decoded(record, handoff, chunk)

    async def _chunks(
        self, engine: ServingBackend, request: Request, params: dict[str, Any] | None
    ) -> AsyncIterator[Chunk]:
        """What an engine streams; where it dies of it, nobody else is sent there."""
        async with closing(engine.generate(request, params)) as stream:
            try:
                async for chunk in stream:
                    yield chunk
            except EngineDiedError as error:
                self._lose(engine, str(error))
                raise

    async def _until_there(
        self, first: Awaitable[Chunk], record: RequestRecord, ticket: Ticket, handoff: Handoff
    ) -> None:
        """The decode engine's first token, which needs the KV. Raises TransferError where it does not come in time."""
        assert self._broker is not None
        limit = asyncio.timeout(self._transfer.timeout_s)
        self._limits[ticket] = limit
        try:
            async with limit:
                chunk = await first
        except TimeoutError as error:
            if ticket.source in self._lost:
                raise EngineDiedError(
                    handoff_error(handoff, self._died_when(ticket.source, "during the handoff"))
                ) from error
            reason = f"the KV was not there after {self._transfer.timeout_s:g} s (transfer.timeout_s)"
            raise TransferError(handoff_error(handoff, reason)) from error
        except StopAsyncIteration as error:
            raise TransferError(handoff_error(handoff, "the decode engine gave no token")) from error
        finally:
            del self._limits[ticket]
        if not chunk.token_ids:
            reason = self._ledger.failure(handoff.handoff_id) if self._ledger else None
            raise TransferError(
                handoff_error(
                    handoff, reason or f"engine {ticket.target} could not load the KV ({chunk.finish_reason})"
                )
            )
        self._broker.moved(ticket)
        record.phase = "decode"
        handoff.t_decode_first_token = chunk.t
        self._add_decoded(record, handoff, chunk)

    def _add_decoded(self, record: RequestRecord, handoff: Handoff, chunk: Chunk) -> None:
        add_tokens(record, chunk)
        record.finish_reason = chunk.finish_reason
        if chunk.times is not None:
            # What an engine takes over within its step is not there when that begins.
            there = self._ledger.arrival(handoff.handoff_id) if self._ledger else None
            begun = chunk.times.scheduled
            usable = begun if begun is None or there is None else max(begun, there)
            record.t_decode_scheduled = handoff.t_decode_scheduled = usable
            record.t_decode_first_token = handoff.t_decode_first_token = chunk.times.first_token
            record.t_engine_last_token = chunk.times.last_token
            record.preemptions += chunk.times.preemptions

    def _release(self, request: Request, handoff: Handoff, params: dict[str, Any] | None) -> None:
        """Frees KV that is held for a request nobody waits for: a decode engine fetches it and drops it.

        Where none lives, the prefill engine lets go of it when its lease ends.
        """
        living = [engine for engine in self._decode.values() if engine.alive]
        if not living or params is None or handoff.source in self._lost:
            return
        # By the same id: a connector that writes finds by it what it is to write.
        asked = dataclasses.replace(request, request_id=handoff.handoff_id, max_tokens=1)

        async def fetch_and_drop() -> None:
            decode = self._transfer.decode_params(params, len(request.prompt))
            stream = living[0].generate(asked, decode)
            with suppress(Exception):
                async with asyncio.timeout(self._transfer.timeout_s), closing(stream):
                    async for _ in stream:
                        pass

        self._in_background(fetch_and_drop())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_kv_stats(self, stats: dict[str, Any]) -> None:
        if self._ledger is not None:
            for report in self._transfer.reports(stats):
                if isinstance(report, Kept):
                    if (handoff := self._ledger.keep(report)) is not None:
                        self._let_go(handoff)
                else:
                    self._ledger.report(report)

    def _let_go(self, handoff: Handoff) -> None:
        """The decode engine had all of a prompt, so the prefill engine need not wait to be asked for it."""
        request, engine = self._unfetched.get(handoff.handoff_id), self._prefill[handoff.source]

        async def tell(request: str) -> None:
            with suppress(Exception):  # its lease ends by itself
                await engine.let_go(request)

        if request is not None and engine.alive:
            self._in_background(tell(request))

    def _died_when(self, name: str, when: str) -> str:
        """Why an engine died, and when: "engine prefill-0 died during the handoff: ..."."""
        return self._lost[name].replace(" died", f" died {when}", 1)

    def _lose(self, engine: ServingBackend, why: str) -> None:
        """Takes a dead engine out of routing, and ends the wait for handoffs from it. why: in a line."""
        name = engine.name
        if name in self._lost:
            return
        self._lost[name] = why
        if self._broker is not None:
            self._broker.lose(name)
        for ticket, limit in self._limits.items():
            if ticket.source == name:
                limit.reschedule(asyncio.get_running_loop().time())
        if (peer := self._peers.get(name)) is not None:
            self._in_background(self._forget(peer))

    async def _forget(self, peer: str) -> None:
        # By then the requests that waited for it have been given up in the decode engines.
        await asyncio.sleep(WATCH_PERIOD_S)
        for engine in self._decode.values():
            if engine.alive:
                with suppress(Exception):
                    await answered(engine.name, engine.forget_peer(peer), "to forget an engine that died")

    async def _look_after(self) -> None:
        """Notes the queues' lengths, overdue handoffs, and engines that died with nobody waiting for their answer."""
        assert self._broker is not None
        assert self._ledger is not None
        while True:
            self._ledger.sweep()
            self._write(QueueLengths(time.monotonic(), self.name, **self._broker.lengths()))
            for engine in (self._prefill | self._decode).values():
                if not engine.alive:
                    self._lose(engine, death_of(engine))
            await asyncio.sleep(WATCH_PERIOD_S)

    def backends(self) -> dict[str, list[ServingBackend]]:
        return {"prefill": list(self._prefill.values()), "decode": list(self._decode.values())}

    def pools(self) -> list[dict[str, Any]]:
        colocated = any(place.sharing > 1 for place in self._places)
        return [
            {
                "pool": name,
                "phases": [name],
                "colocated": colocated,
                "engines": [dataclasses.asdict(engine.info()) for engine in pool.values()],
            }
            for name, pool in (("prefill", self._prefill), ("decode", self._decode))
        ]

    async def kv_free(self, within_s: float) -> dict[str, bool]:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)
        return await kv_free([*self._prefill.values(), *self._decode.values()], within_s)


def handoff_error(handoff: Handoff, reason: str) -> str:
    """Notes why a handoff failed, and gives the words for its request."""
    handoff.error = reason
    return f"handoff {handoff.handoff_id} from {handoff.source} to {handoff.target} failed: {reason}"


def _room(engine: ServingBackend, requests: int | None = None) -> EngineRoom:
    settings = engine.info().settings
    # vLLM keeps a block for itself.
    return EngineRoom(
        engine.name, requests or settings["max_num_seqs"], settings["kv_blocks"] - 1, settings["block_size"]
    )
