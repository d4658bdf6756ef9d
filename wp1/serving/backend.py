"""What a scheduler needs of an engine, whatever serves it."""

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
    """An engine did not come up; the message ends with its own last lines."""


class EngineDiedError(WP1Error):
    """An engine's process ended, or does not answer."""


# Seconds within which an engine answers what is not a request. It does so between two steps, and a step of 2,048
# tokens behind 131,072 others is 2e13 FLOPs for the bundled model: minutes on two CPU cores.
ANSWER_S = 300.0
# Seconds for a stream to be closed, which is to send a message and waits for no answer, and for an engine to be ended:
# vLLM kills its processes if they have not ended after five.
CLOSE_S, END_S = 10.0, 60.0


async def answered(name: str, call: Awaitable[T], what: str, within_s: float = ANSWER_S) -> T:
    """What an engine answers. Raises EngineDiedError if it does not within so many seconds, as one that hangs.

    what: it was asked for, in words.
    """
    try:
        async with asyncio.timeout(within_s):
            return await call
    except TimeoutError as error:
        raise EngineDiedError(f"engine {name} did not answer within {within_s:g} s ({what})") from error


@dataclass(slots=True)
class EngineTimes:
    """An engine's own account of one request; seconds on the monotonic clock, None where it did not say."""

    queued: float | None = None
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    preemptions: int = 0


@dataclass(slots=True)
class Chunk:
    """What an engine streams: the tokens that are new, when the client had them, and on the last one how it ended."""

    t: float  # seconds, monotonic
    token_ids: list[int]
    text: str
    finish_reason: str | None = None  # "stop" or "length" on the last chunk
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    times: EngineTimes | None = None
    kv_transfer_params: dict[str, Any] | None = None  # of a prefill whose KV is to be fetched
    nll: list[float] | None = None  # of the prompt, as in RequestRecord; on the first chunk, where it was asked for
    margins: list[float] | None = None  # of each of token_ids, as in ControlRecord; where they were asked for


@dataclass(frozen=True)
class EngineInfo:
    """One engine as it runs, for run_metadata.json."""

    name: str
    devices: list[str]
    startup_s: float
    settings: dict[str, Any] = field(default_factory=dict)


class ServingBackend(Protocol):
    """One engine. The constructor is cheap; entering starts the engine and leaving ends its processes."""

    name: str

    def check(self) -> None:
        """Raises ConfigError if the engine would refuse its settings, or could not serve. Starts nothing."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def alive(self) -> bool:
        """Whether the engine's processes still run, as far as is known without asking them."""
        ...

    @property
    def death(self) -> str | None:
        """Why it is not alive, in a line: "engine agg-0 died: ..."; None if it is."""
        ...

    def generate(self, request: Request, kv_transfer_params: dict[str, Any] | None = None) -> AsyncIterator[Chunk]:
        """Streams one request's answer. Closing the iterator aborts the request.

        kv_transfer_params: what the engine's KV connector is to do with this request's KV.
        Raises EngineDiedError where the engine is gone, WP1Error where it refuses the request.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """Ends a request early and frees its KV blocks."""
        ...

    async def meet(self, peers: list[str]) -> None:
        """Makes the KV connector ready for what these engines, which are up, will hand over.

        Raises EngineStartError where they and this one do not fit together.
        """
        ...

    async def forget_peer(self, peer: str) -> None:
        """Gives up KV that was to come from an engine that died, by the name that the KV connectors give it."""
        ...

    async def let_go(self, request: str) -> None:
        """Frees the KV that is held for a request, by its name here, of which nothing will be fetched."""
        ...

    async def kv_free(self) -> bool:
        """Whether every KV block is free: no request holds one, nor does a handoff."""
        ...

    async def memory(self, moment: Moment) -> list[dict[str, Any]]:
        """What each of the engine's workers notes of its memory (`wp1.serving.memory`), by its rank; bytes.

        Only of an engine that was made to take notes.
        """
        ...

    def info(self) -> EngineInfo: ...


# What wp1 fills in when it makes an engine, and `transfer.engine_settings` and the like beside them: no setting.
BACKEND = Kind(
    "backend",
    ServingBackend,
    given=(
        "name", "model", "tensor_parallel", "place", "seed", "log", "kill", "kv_transfer", "worker_extension",
        "connector_arguments", "on_kv_stats", "on_stats", "memory",
    ),
)  # fmt: skip


def death_of(engine: ServingBackend) -> str:
    """Why an engine died, in a line; without the reason if the engine does not say."""
    return getattr(engine, "death", None) or f"engine {engine.name} died"


@dataclass(frozen=True)
class EngineNeed:
    """One engine that a scheduler is going to make: what it needs to be placed and, if KV is moved, connected."""

    name: str
    gpus: int
    role: Literal["prefill", "decode", "both"] = "both"


class Scheduler(Protocol):
    """Routes requests over pools of engines; entering starts them all.

    One of your own is a class in a module and a file in conf/scheduler/. The constructor is cheap. Its parameters are
    the keys of `scheduler` and `arms.X`, and those of GIVEN that it needs.
    """

    # What the pool is called in records and reports, and the arm of a run that compares none: a setting.
    name: str
    # Whether KV goes from engine to engine. If so it is given a KVTransfer, and run_metadata.json says so.
    moves_kv: ClassVar[bool]

    @classmethod
    def engines(cls, settings: Any) -> list[EngineNeed]:
        """The engines of a scheduler with these settings, in the order in which they get their places.

        settings: its node of the configuration, complete; nothing is made.
        """
        ...

    def check(self) -> None:
        """`ServingBackend.check` of an engine of every pool."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def serve(self, request: Request, record: RequestRecord) -> None:
        """Takes one request to its end and fills its record on the way, so that what there is survives a cancel.

        A failed request raises nothing: its record says so.
        """
        ...

    @property
    def alive(self) -> bool:
        """Whether all its engines are up, as far as is known without asking them."""
        ...

    async def settle(self) -> None:
        """Everything that there is to write of requests that have ended is written, soon."""
        ...

    def backends(self) -> dict[str, list[ServingBackend]]:
        """The engines of each pool."""
        ...

    def pools(self) -> list[dict[str, Any]]:
        """The pools as they run, for run_metadata.json."""
        ...

    async def kv_free(self, within_s: float) -> dict[str, bool]:
        """By engine that lives, whether all its KV blocks are free again, `within_s` seconds after the last request."""
        ...


# What wp1 gives a scheduler that has such a parameter:
# make_backend(name=, place=, tensor_parallel=, ...) makes an engine;
# transfer is the KVTransfer between pools, None unless `moves_kv`;
# lease_s: seconds for which KV that is not fetched is kept;
# kv_bytes_per_token and kv_shards (ranks with heads of their own) are the model's;
# write takes events, such as handoffs.
GIVEN = ("make_backend", "transfer", "lease_s", "kv_bytes_per_token", "kv_shards", "write")
# An arm may have a rotary scaling of its own, which goes into its model.
SCHEDULER = Kind("scheduler", Scheduler, given=GIVEN, beside={"rope": Rope | None})
