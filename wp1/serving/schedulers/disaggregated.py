"""Disaggregated serving: one pool prefills, another decodes, and the KV cache is handed over between them."""

import asyncio
import dataclasses
import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Annotated, Any, ClassVar, Literal, Self

from wp1.core.errors import WP1Error
from wp1.core.parts import Within
from wp1.core.records import Handoff, QueueLengths, Request, RequestRecord
from wp1.machine import hardware
from wp1.serving.backend import EngineNeed, ServingBackend, answered, death_of
from wp1.serving.placement import Place, places
from wp1.serving.schedulers.broker import EngineRoom, KVBroker, PoolLostError, Ticket
from wp1.serving.schedulers.handover import Handover
from wp1.serving.schedulers.ledger import Ledger
from wp1.serving.schedulers.pools import WATCH_PERIOD_S, EnginePools
from wp1.serving.schedulers.serve import outcome
from wp1.serving.starting import kv_free, start_all
from wp1.serving.transfer import KVTransfer

# vLLM's layer specifications for which every block is handed over whole. For sliding windows it may hand over only the
# last blocks, and a recurrent state is not stored in blocks.
WHOLE = {"FullAttentionSpec", "MLAAttentionSpec"}


class DisaggregatedScheduler:
    """`prefill` engines and `decode` engines with a `KVBroker` between them.

    first_token: with "prefill" the client gets the prefill engine's token at once, and decoding continues with the
    second; with "decode" the decode engine recomputes the first token from the KV it received, and the client waits.
    max_prefilled: most requests that a prefill engine works on or holds KV for.
    transfer: if it overlaps, a decode engine with room gets the request while the prompt is still being computed, and
    fetches the KV as it becomes available.
    lease_s: seconds for which unfetched KV is kept if no decode engine is left to release it.
    make_backend: builds an engine from a name, a place, and the settings of its KV connector.
    write: receives a Handoff for each that ended, and QueueLengths ten times a second.
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
        self._pools = EnginePools(transfer)
        self._kv_bytes_per_token = kv_bytes_per_token
        decode_size = decode_tensor_parallel or tensor_parallel
        # If there are more ranks than heads, several ranks hold the same heads, and each gets its own copy.
        self._kv_copies = decode_size // (kv_shards or decode_size)
        self._write = write
        sizes = [tensor_parallel] * prefill + [decode_size] * decode
        # Each rank of the larger side moves its part to or from one rank of the other side.
        self._transfers = max(tensor_parallel, decode_size)
        self._places = places(sizes, devices, hardware.gpu_indices(), hardware.cores())
        if transfer.overlap:
            self._places[prefill:] = _with_peers(self._places[:prefill], self._places[prefill:])
        names = [f"prefill-{n}" for n in range(prefill)] + [f"decode-{n}" for n in range(decode)]
        engines = [
            make_backend(
                name=name,
                place=place,
                tensor_parallel=size,
                kv_transfer=transfer.engine_settings("prefill" if n < prefill else "decode", name, lease_s),
                worker_extension=transfer.worker_extension,
                connector_arguments=transfer.engine_arguments(),
                on_kv_stats=self._pools.on_kv_stats,
            )
            for n, (name, place, size) in enumerate(zip(names, self._places, sizes, strict=True))
        ]
        self._pools.fill(engines[:prefill], engines[prefill:])
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
        for pool in (self._pools.prefill, self._pools.decode):
            next(iter(pool.values())).check()

    async def __aenter__(self) -> Self:
        await start_all(self._pools.engines, self._stack)
        try:
            for engine in self._pools.decode.values():
                await answered(engine.name, engine.meet(list(self._pools.prefill)), "to meet the prefill engines")
        except BaseException:
            await self._stack.aclose()
            raise
        settings = next(iter(self._pools.decode.values())).info().settings
        block_tokens = settings["block_size"]
        self._pools.ledger = Ledger(
            self._write,
            self._pools.transfer.name,
            block_tokens,
            self._block_bytes(settings),
            transfers=self._transfers,
            keeps=settings.get("prefix_caching", False),
        )
        self._pools.broker = KVBroker(
            [_room(engine, self._max_prefilled) for engine in self._pools.prefill.values()],
            [_room(engine) for engine in self._pools.decode.values()],
            self._routing,
        )
        self._watch = asyncio.create_task(self._look_after())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()
            for task in self._pools.tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        await self.settle()
        await self._stack.aclose()

    def _block_bytes(self, settings: dict[str, Any]) -> int | None:
        """Bytes of a block over all layers and ranks of a decode engine; None if handoffs are not of whole blocks.

        Uses the engine's own figure, since its cache may have another dtype than the configuration suggests.
        """
        kinds = {layer.split()[-1] for layer in settings.get("kv_layers", "").split(", ") if layer}
        if kinds - WHOLE:
            return None
        block = settings.get("kv_block_bytes")
        if block is None and self._kv_bytes_per_token is not None:
            block = settings["block_size"] * self._kv_bytes_per_token
        return None if block is None else block * self._kv_copies

    @property
    def alive(self) -> bool:
        return all(engine.alive for engine in self._pools.engines)

    async def settle(self) -> None:
        if self._pools.ledger is not None:
            await self._pools.ledger.settle()

    async def serve(self, request: Request, record: RequestRecord) -> None:
        assert self._pools.broker is not None
        record.pool = self.name
        async with outcome(record, request.timeout_s):
            record.phase = "queue"
            if not isinstance(request.prompt, list) or (request.prompt and not isinstance(request.prompt[0], int)):
                raise WP1Error("disaggregated serving needs prompts as token ids")
            tokens = len(request.prompt)
            ticket = await self._enter(tokens, request.max_tokens)
            try:
                await self._serve(request, record, ticket)
            finally:
                self._pools.broker.end(ticket)

    async def _enter(self, prompt_tokens: int, max_tokens: int) -> Ticket:
        assert self._pools.broker is not None
        try:
            return await self._pools.broker.prefill(prompt_tokens, prompt_tokens + max_tokens)
        except PoolLostError as error:
            raise self._pools.pool_lost(error) from error

    async def _serve(self, request: Request, record: RequestRecord, ticket: Ticket) -> None:
        """Prefills, hands over and decodes a request that holds a slot in the prefill pool."""
        assert self._pools.broker is not None
        assert self._pools.ledger is not None
        assert ticket.source is not None
        handoff = self._pools.ledger.open(request, f"{next(self._numbers)}-{secrets.token_hex(4)}", ticket.source)
        handover = Handover(
            self._pools, self._pools.broker, self._pools.ledger, request, record, ticket, handoff,
            streams_prefill_token=self._streams_prefill_token,
        )  # fmt: skip
        try:
            await handover.run()
        finally:
            self._pools.unfetched.pop(handoff.handoff_id, None)
            self._pools.ledger.forget(handoff)

    async def _look_after(self) -> None:
        """Records queue lengths, closes overdue handoffs, and finds engines that died while idle."""
        assert self._pools.broker is not None
        assert self._pools.ledger is not None
        while True:
            self._pools.ledger.sweep()
            self._write(QueueLengths(time.monotonic(), self.name, **self._pools.broker.lengths()))
            for engine in self._pools.engines:
                if not engine.alive:
                    self._pools.lose(engine, death_of(engine))
            await asyncio.sleep(WATCH_PERIOD_S)

    def backends(self) -> dict[str, list[ServingBackend]]:
        return {"prefill": list(self._pools.prefill.values()), "decode": list(self._pools.decode.values())}

    def pools(self) -> list[dict[str, Any]]:
        shared_gpu = any(place.sharing > 1 for place in self._places)
        return [
            {
                "pool": name,
                "phases": [name],
                "shared_gpu": shared_gpu,
                "engines": [dataclasses.asdict(engine.info()) for engine in pool.values()],
            }
            for name, pool in (("prefill", self._pools.prefill), ("decode", self._pools.decode))
        ]

    async def kv_free(self, within_s: float) -> dict[str, bool]:
        if self._pools.tasks:
            await asyncio.wait(self._pools.tasks, timeout=within_s)
        return await kv_free(self._pools.engines, within_s)


def _with_peers(prefill: list[Place], decode: list[Place]) -> list[Place]:
    """The decode engines' places with the prefill engines' GPUs visible, to copy KV from them."""
    gpus = {gpu for place in prefill for gpu in place.gpus}
    return [dataclasses.replace(place, peers=sorted(gpus - set(place.gpus))) for place in decode]


def _room(engine: ServingBackend, requests: int | None = None) -> EngineRoom:
    settings = engine.info().settings
    # vLLM reserves one block.
    return EngineRoom(
        engine.name, requests or settings["max_num_seqs"], settings["kv_blocks"] - 1, settings["block_size"]
    )
