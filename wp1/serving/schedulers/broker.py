"""Admission control for disaggregated serving: decides when and where each request may prefill and decode.

Pure bookkeeping on one event loop; it does not talk to engines. A request goes through two queues. It waits for a place
in the prefill pool and keeps it while its KV cache is there. Then it waits for a place in the decode pool, and gives up
the first place once its KV has arrived in the second. So the prefill pool's places limit the KV that waits there
(back-pressure). A decode engine only admits requests whose blocks fit in its pool until they end: nothing is preempted,
and there is no deadlock. Both queues are first come, first served; a large request at the head is not overtaken.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from wp1.core.errors import WP1Error


class PoolLostError(WP1Error):
    """No engine of a pool is left."""


class TooLargeError(WP1Error):
    """A request needs more KV blocks than an engine has."""


class State(Enum):
    WAITING = auto()  # for a place in the prefill pool
    PREFILLING = auto()
    PREFILLED = auto()  # waiting for a place in the decode pool
    MOVING = auto()
    DECODING = auto()
    ENDED = auto()


@dataclass(frozen=True)
class EngineRoom:
    """The capacity of one engine: concurrent requests, and KV blocks of `block_tokens` tokens."""

    name: str
    requests: int
    blocks: int
    block_tokens: int


@dataclass(slots=True, eq=False)
class _Seats:
    room: EngineRoom
    requests: int = 0
    blocks: int = 0
    lost: bool = False

    def needs(self, tokens: int) -> int:
        return -(-tokens // self.room.block_tokens)

    def has_room(self, tokens: int) -> bool:
        return (
            not self.lost
            and self.requests < self.room.requests
            and self.blocks + self.needs(tokens) <= self.room.blocks
        )


@dataclass(slots=True, eq=False)
class _Waiting:
    tokens: int
    place: "asyncio.Future[str]"


class Pool:
    """Identical engines and the queue in front of them."""

    def __init__(self, phase: str, engines: Sequence[EngineRoom], routing: str) -> None:
        self._phase = phase
        self._engines = {room.name: _Seats(room) for room in engines}
        self._order = list(self._engines.values())
        self._turn = 0
        self._least_loaded = routing == "least_loaded"
        self._queue: deque[_Waiting] = deque()
        self.waiting = 0

    def __contains__(self, name: str) -> bool:
        return name in self._engines

    @property
    def blocks_held(self) -> int:
        return sum(engine.blocks for engine in self._order)

    async def enter(self, tokens: int) -> str:
        """Waits until a request of `tokens` tokens is first in the queue and an engine has room; returns that engine.

        Raises PoolLostError if no engine is alive, TooLargeError if none could ever take the request.
        """
        self.refuse_impossible(tokens)
        # The queue is served whenever a place becomes free. If it is empty, this request is first.
        if not self.waiting and (engine := self._pick(tokens)) is not None:
            self._seat(engine, tokens)
            return engine.room.name
        entry = _Waiting(tokens, asyncio.get_running_loop().create_future())
        self._queue.append(entry)
        self.waiting += 1
        try:
            return await entry.place
        except asyncio.CancelledError:
            if entry.place.done() and not entry.place.cancelled() and entry.place.exception() is None:
                # The place was assigned just before the request was cancelled.
                self.leave(entry.place.result(), tokens)
            elif entry.place.cancelled():
                self.waiting -= 1
                self._serve_queue()
            raise

    def enter_now(self, tokens: int) -> str | None:
        """Like `enter`, but returns None instead of waiting."""
        engine = None if self.waiting else self._pick(tokens)
        if engine is None:
            return None
        self._seat(engine, tokens)
        return engine.room.name

    def leave(self, name: str, tokens: int) -> None:
        """Gives back the place of a request that entered with this number of tokens."""
        engine = self._engines[name]
        engine.requests -= 1
        engine.blocks -= engine.needs(tokens)
        assert engine.requests >= 0 and engine.blocks >= 0, f"{name} gave back more than it had"
        self._serve_queue()

    def lose(self, name: str) -> None:
        """Marks an engine as dead: it admits no more requests. If it was the pool's last, all waiters fail."""
        self._engines[name].lost = True
        if all(engine.lost for engine in self._order):
            queue, self._queue, self.waiting = self._queue, deque(), 0
            for entry in queue:
                if not entry.place.done():
                    entry.place.set_exception(self._lost())

    def _lost(self) -> PoolLostError:
        return PoolLostError(f"no {self._phase} engine is left")

    def refuse_impossible(self, tokens: int) -> None:
        """Raises PoolLostError if no engine is alive, TooLargeError if none could ever take that many tokens."""
        living = [engine for engine in self._order if not engine.lost]
        if not living:
            raise self._lost()
        if all(engine.needs(tokens) > engine.room.blocks for engine in living):
            most = max(engine.room.blocks for engine in living)
            raise TooLargeError(
                f"a request of {tokens} tokens needs {living[0].needs(tokens)} KV blocks and a {self._phase} engine "
                f"has {most}: raise backend.kv_cache_gib or shorten the request"
            )

    def _pick(self, tokens: int) -> _Seats | None:
        count = len(self._order)
        in_turn = (self._order[(self._turn + n) % count] for n in range(count))
        open_ = [engine for engine in in_turn if engine.has_room(tokens)]
        if not open_:
            return None
        return min(open_, key=lambda engine: engine.requests) if self._least_loaded else open_[0]

    def _seat(self, engine: _Seats, tokens: int) -> None:
        engine.requests += 1
        engine.blocks += engine.needs(tokens)
        self._turn = (self._order.index(engine) + 1) % len(self._order)

    def _serve_queue(self) -> None:
        while self._queue:
            head = self._queue[0]
            if head.place.done():  # cancelled
                self._queue.popleft()
                continue
            engine = self._pick(head.tokens)
            if engine is None:
                return
            self._queue.popleft()
            self.waiting -= 1
            self._seat(engine, head.tokens)
            head.place.set_result(engine.room.name)


@dataclass(slots=True, eq=False)
class Ticket:
    """A request's progress through both pools."""

    prompt_tokens: int
    total_tokens: int
    state: State = State.WAITING
    source: str | None = None
    target: str | None = None


class KVBroker:
    """Takes each request from the prefill queue through the handoff to the decode pool.

    Every request calls `prefill`, `prefilled`, `decode`, `moved` in this order, optionally `reserve` before
    `prefilled`, and `end` whenever and however it ends. A call out of order raises AssertionError.
    """

    def __init__(self, prefill: Sequence[EngineRoom], decode: Sequence[EngineRoom], routing: str) -> None:
        self._prefill = Pool("prefill", prefill, routing)
        self._decode = Pool("decode", decode, routing)
        self._counts = dict.fromkeys((State.PREFILLING, State.PREFILLED, State.MOVING, State.DECODING), 0)

    async def prefill(self, prompt_tokens: int, total_tokens: int) -> Ticket:
        """Waits for a place in the prefill pool; `ticket.source` is the engine.

        total_tokens: prompt plus longest possible output. Raises PoolLostError, or TooLargeError for either pool.
        """
        ticket = Ticket(prompt_tokens, total_tokens)
        self._decode.refuse_impossible(total_tokens)
        ticket.source = await self._prefill.enter(prompt_tokens)
        self._move(ticket, State.PREFILLING)
        return ticket

    def reserve(self, ticket: Ticket) -> str | None:
        """Reserves a place in the decode pool before the prompt is computed, if one is free and no request waits.

        Returns the engine, or None.
        """
        assert ticket.state is State.PREFILLING, ticket
        ticket.target = self._decode.enter_now(ticket.total_tokens)
        return ticket.target

    def prefilled(self, ticket: Ticket) -> None:
        """The prompt is computed; its KV waits in the prefill pool."""
        assert ticket.state is State.PREFILLING, ticket
        self._move(ticket, State.PREFILLED)

    async def decode(self, ticket: Ticket) -> str:
        """Waits for a place in the decode pool unless one is reserved; returns the engine. Raises PoolLostError."""
        assert ticket.state is State.PREFILLED, ticket
        if ticket.target is None:
            ticket.target = await self._decode.enter(ticket.total_tokens)
        self._move(ticket, State.MOVING)
        return ticket.target

    def moved(self, ticket: Ticket) -> None:
        """The KV is in the decode pool; frees the place in the prefill pool."""
        assert ticket.state is State.MOVING, ticket
        assert ticket.source is not None
        self._move(ticket, State.DECODING)
        self._prefill.leave(ticket.source, ticket.prompt_tokens)

    def end(self, ticket: Ticket) -> None:
        """Frees whatever the request still holds; a second call does nothing."""
        before = ticket.state
        self._move(ticket, State.ENDED)
        if before in (State.PREFILLING, State.PREFILLED, State.MOVING):
            assert ticket.source is not None
            self._prefill.leave(ticket.source, ticket.prompt_tokens)
        if before is not State.ENDED and ticket.target is not None:
            self._decode.leave(ticket.target, ticket.total_tokens)

    def lose(self, name: str) -> None:
        """An engine of either pool died."""
        for pool in (self._prefill, self._decode):
            if name in pool:
                pool.lose(name)

    def _move(self, ticket: Ticket, state: State) -> None:
        if ticket.state in self._counts:
            self._counts[ticket.state] -= 1
        if state in self._counts:
            self._counts[state] += 1
        ticket.state = state

    def lengths(self) -> dict[str, int]:
        """Number of requests in each state, under the names of `wp1.core.records.QueueLengths`."""
        return {
            "prefill_waiting": self._prefill.waiting,
            "prefilling": self._counts[State.PREFILLING],
            "decode_waiting": self._counts[State.PREFILLED],
            "transferring": self._counts[State.MOVING],
            "decoding": self._counts[State.DECODING],
        }

    def blocks_held(self) -> tuple[int, int]:
        """KV blocks reserved in the prefill pool and in the decode pool."""
        return self._prefill.blocks_held, self._decode.blocks_held
