"""The interfaces of engines and schedulers, whatever software serves the model."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

from wp1.core.errors import WP1Error
from wp1.core.parts import Kind
from wp1.core.records import Request, RequestRecord
from wp1.model.rope import Rope
from wp1.serving.memory import Moment

T = TypeVar("T")


class EngineStartError(WP1Error):
    """An engine did not start; the message ends with the last lines of its log."""


class EngineDiedError(WP1Error):
    """An engine's process has ended or does not answer."""


# Seconds within which an engine must answer a control call. It answers between two steps, and a step of 2,048 tokens
# after 131,072 others is 2e13 FLOPs for the bundled model: minutes on two CPU cores.
ANSWER_S = 300.0
# Seconds allowed for closing a stream, which sends a message and waits for no answer, and for shutting down an engine:
# vLLM kills its processes if they have not ended after five seconds.
CLOSE_S, END_S = 10.0, 60.0


async def answered(name: str, call: Awaitable[T], what: str, within_s: float = ANSWER_S) -> T:
    """Awaits an engine's answer and returns it. Raises EngineDiedError if the engine hangs for `within_s` seconds.

    what: the purpose of the call, for the message ("to meet the prefill engines").
    """
    try:
        async with asyncio.timeout(within_s):
            return await call
    except TimeoutError as error:
        raise EngineDiedError(f"engine {name} did not answer within {within_s:g} s ({what})") from error


@dataclass(slots=True)
class EngineTimes:
    """An engine's own timestamps of one request: seconds on the monotonic clock, None if not reported."""

    queued: float | None = None
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    preemptions: int = 0


@dataclass(slots=True)
class Chunk:
    """One piece of a streamed answer: new tokens, when the client received them, and, on the last, how it ended."""

    t: float  # seconds, monotonic
    token_ids: list[int]
    text: str
    finish_reason: str | None = None  # "stop" or "length" on the last chunk
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    times: EngineTimes | None = None
    kv_transfer_params: dict[str, Any] | None = None  # after a prefill whose KV is to be fetched
    nll: list[float] | None = None  # the prompt's, as in RequestRecord; on the first chunk, if requested
    margins: list[float] | None = None  # one for each of token_ids, as in ControlRecord; if requested


@dataclass(frozen=True)
class EngineInfo:
    """A running engine as described in run_metadata.json."""

    name: str
    devices: list[str]
    startup_s: float
    settings: dict[str, Any] = field(default_factory=dict)


class ServingBackend(Protocol):
    """One engine. The constructor is cheap; entering the context starts the engine, leaving it ends its processes."""

    name: str

    def check(self) -> None:
        """Raises ConfigError if the engine would refuse its settings or could not serve. Starts nothing."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def alive(self) -> bool:
        """Whether the engine's processes still run, as far as is known without a call to them."""
        ...

    @property
    def death(self) -> str | None:
        """Why the engine is not alive, on one line ("engine agg-0 died: ..."); None if it is."""
        ...

    def generate(self, request: Request, kv_transfer_params: dict[str, Any] | None = None) -> AsyncIterator[Chunk]:
        """Streams one request's answer. Closing the iterator aborts the request.

        kv_transfer_params: instructions to the engine's KV connector for this request's KV.
        Raises EngineDiedError if the engine is dead, WP1Error if it refuses the request.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """Aborts a request and frees its KV blocks."""
        ...

    async def meet(self, peers: list[str]) -> None:
        """Prepares the KV connector to receive KV from these engines, which are running.

        Raises EngineStartError if they and this engine are incompatible.
        """
        ...

    async def forget_peer(self, peer: str) -> None:
        """Stops waiting for KV from a dead engine. peer: the KV connectors' name for it."""
        ...

    async def let_go(self, request: str) -> None:
        """Frees the KV held for a request that no engine will fetch. request: its name in this engine."""
        ...

    async def kv_free(self) -> bool:
        """Whether every KV block is free: neither a request nor a handoff holds one."""
        ...

    async def memory(self, moment: Moment) -> list[dict[str, Any]]:
        """Each worker's memory use in bytes, in order of rank (`wp1.serving.memory`).

        Requires an engine built with memory tracking on.
        """
        ...

    def info(self) -> EngineInfo: ...


# `given` lists the parameters that wp1 or a scheduler fills in when it builds an engine; they are not settings.
BACKEND = Kind(
    "backend",
    ServingBackend,
    given=(
        "name", "model", "tensor_parallel", "place", "seed", "log", "kill", "kv_transfer", "worker_extension",
        "connector_arguments", "on_kv_stats", "on_stats", "memory",
    ),
)  # fmt: skip


def death_of(engine: ServingBackend) -> str:
    """Why an engine died, on one line; without the reason if the engine does not report one."""
    return getattr(engine, "death", None) or f"engine {engine.name} died"


@dataclass(frozen=True)
class EngineNeed:
    """An engine that a scheduler will build: what is needed to place it and, if KV moves, to connect it."""

    name: str
    gpus: int
    role: Literal["prefill", "decode", "both"] = "both"


class Scheduler(Protocol):
    """Routes requests to pools of engines; entering the context starts them all.

    To add one, write a class and a file in conf/scheduler/. The constructor is cheap. Its parameters are the keys of
    `scheduler` and `arms.X`, and those of GIVEN that it needs.
    """

    # A setting: the pool's name in records and reports, and the arm's name in a run without `arms`.
    name: str
    # Whether KV moves between engines. If so, the scheduler receives a KVTransfer, and run_metadata.json says so.
    moves_kv: ClassVar[bool]

    @classmethod
    def engines(cls, settings: Any) -> list[EngineNeed]:
        """The engines of a scheduler with these settings, in the order in which devices are assigned.

        settings: the scheduler's complete configuration node. Builds nothing.
        """
        ...

    def check(self) -> None:
        """Runs `ServingBackend.check` on one engine of every pool."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def serve(self, request: Request, record: RequestRecord) -> None:
        """Serves one request and fills its record along the way, so that a cancelled request keeps what it has.

        Does not raise if the request fails: the record says so.
        """
        ...

    @property
    def alive(self) -> bool:
        """Whether all its engines are up, as far as is known without a call to them."""
        ...

    async def settle(self) -> None:
        """Waits briefly until all events of finished requests are written."""
        ...

    def backends(self) -> dict[str, list[ServingBackend]]:
        """The engines of each pool."""
        ...

    def pools(self) -> list[dict[str, Any]]:
        """The running pools as described in run_metadata.json."""
        ...

    async def kv_free(self, within_s: float) -> dict[str, bool]:
        """By name of each live engine, whether all its KV blocks are free within `within_s` seconds."""
        ...


# Parameters that wp1 fills in if a scheduler's __init__ names them:
# make_backend(name=, place=, tensor_parallel=, ...) builds an engine;
# transfer: the KVTransfer between pools, None unless `moves_kv`;
# lease_s: seconds for which unfetched KV is kept;
# kv_bytes_per_token, kv_shards (ranks that hold distinct heads): the model's;
# write: writes an event, such as a handoff.
GIVEN = ("make_backend", "transfer", "lease_s", "kv_bytes_per_token", "kv_shards", "write")
# An arm may also set a rotary scaling, which is applied to its model.
SCHEDULER = Kind("scheduler", Scheduler, given=GIVEN, beside={"rope": Rope | None})
