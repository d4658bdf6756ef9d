"""Fetches blocks from prefill engines: one thread in each worker of a decode engine.

It reacts to three kinds of events, which come in any order: a load (our blocks, from the engine's own scheduler),
announcements of blocks that are ready, and the message that the prompt is done. Blocks are copied as soon as they are
known to be ready. A load ends when the prompt is done and every block has arrived.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from wp1.serving.transfer.ipc.copying import Copier
from wp1.serving.transfer.ipc.exports import Peer, PeerError
from wp1.serving.transfer.ipc.mailbox import Mailbox, Message, Sender, unpack

log = logging.getLogger(__name__)

# Number of ended handoffs to remember: late messages may still name them.
REMEMBERED = 10_000
# A step that waits for KV checks this often that the sender is still alive.
LIFE_SIGN_S = 1.0
# Upper bound on a step's wait for KV: the sender may hang, or queue the prompt again after a preemption. All of the
# engine's requests wait meanwhile, and vLLM's executor ends an engine whose step takes 300 s.
LONGEST_STEP_S = 240.0


@dataclass(slots=True)
class Load:
    """Our blocks that are to receive blocks first, first + 1, ... of a prompt that a prefill engine computes."""

    request: str
    handoff: str
    engine: str
    first: int
    blocks: list[int]
    done: Message | None  # the "done" message, if the prompt was computed before the load was ordered
    at_once: bool = False  # the load's own step computes with this KV; `done` is then set
    copied: int = 0
    epoch: int = -1
    t_begin: float | None = None
    copy_s: float = 0.0
    wait_s: float = 0.0
    runs: int = 0
    after: Any = None  # a fence of the copier, until the first copy
    over: threading.Event | None = None  # set when the load ends, for the step that waits
    in_advance: bool = False  # sent by message before its step; the step's orders repeat it


def in_advance(load: Load) -> Message:
    """The message that starts a load before its step's orders arrive."""
    fields = (load.request, load.handoff, load.engine, load.first, load.blocks, load.done)
    return {"kind": "in_advance", "load": fields}


@dataclass(slots=True)
class DecodeOrders:
    """Orders of the scheduler's half to the workers, sent with each step.

    given_up: (handoff, prefill engine).
    soon: handoffs whose prompt is done; the step is idle and waits a moment for their KV.
    ahead: (request, handoff) whose KV is reported as arrived before it has, as the engine is otherwise idle.
    needed: handoffs that must have ended before the step computes.
    """

    loads: list[Load] = field(default_factory=list)
    given_up: list[tuple[str, str]] = field(default_factory=list)
    soon: list[str] = field(default_factory=list)
    ahead: list[tuple[str, str]] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Source:
    """What the prefill engine has announced about a prompt's blocks."""

    epoch: int = 0
    blocks: list[int] = field(default_factory=list)
    heard: float = 0.0  # when the latest announcement arrived, monotonic seconds
    until: float | None = None  # end of the lease, monotonic seconds; set once the prompt is done
    failed: str | None = None
    sum: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A load that has ended. error: why it failed, or None; blocks: ours, whose content is invalid if it failed."""

    request: str
    error: str | None
    blocks: list[int]
    at_once: bool
    # Fields of `wp1.serving.transfer.TransferReport`; None if there was nothing left to move.
    report: tuple[Any, ...] | None


class Receiver:
    """All state belongs to the thread that calls `handle`; other threads use `obey`, `wait`, `not_over` and `ended`.

    copier, block_bytes: of our cache; open_peer: maps the KV of the named engine; verify: compare checksums of blocks.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        sender: Sender,
        name: str,
        copier: Copier,
        block_bytes: int,
        open_peer: Callable[[str], Peer],
        verify: bool,
    ) -> None:
        self._mailbox = mailbox
        self._sender = sender
        self._name = name
        self._copier = copier
        self._block_bytes = block_bytes
        self._open_peer = open_peer
        self._verify = verify
        self._peers: dict[str, Peer] = {}
        self._lost: set[str] = set()  # engines that have died
        self._loads: dict[str, Load] = {}
        self._sources: dict[str, Source] = {}
        self._over: OrderedDict[str, None] = OrderedDict()
        # handoff: error and report of a load that ended before its step's orders arrived
        self._advanced: dict[str, tuple[str | None, tuple[Any, ...]]] = {}
        self._orders: deque[Message] = deque()
        self.ended: deque[Ended] = deque()
        self._change = threading.Condition()  # `_over` and `ended` change together
        self._thread = threading.Thread(target=self._run, name="wp1-kv", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def obey(self, orders: DecodeOrders, after: Any = None) -> None:
        """Called from the engine's own thread with each step. Returns once the KV that the step computes with is here.

        after: `Copier.fence` of the work that may still write to the blocks. A block may have belonged to a request
        whose last step is still in flight on the GPU and would overwrite the fetched KV; only some versions of vLLM
        hold such blocks back. Raises RuntimeError if the receiving thread has ended.
        """
        for load in orders.loads:
            load.after = after
            load.over = threading.Event() if load.at_once else None
        # In this order: a load may follow for a handoff that was given up, and must then be refused.
        self._orders.extend({"kind": "give_up", "handoff": name, "engine": engine} for name, engine in orders.given_up)
        self._orders.extend({"kind": "load", "load": load} for load in orders.loads)
        if orders.given_up or orders.loads:
            self._sender.send(self._name, {"kind": "wake"})
        for load in orders.loads:
            while load.over is not None and not load.over.wait(LIFE_SIGN_S):
                self._check_life()
        deadline = time.monotonic() + LONGEST_STEP_S
        while not self.wait(orders.needed, LIFE_SIGN_S):
            self._check_life()
            if time.monotonic() > deadline:
                self._orders.extend({"kind": "overdue", "handoff": handoff} for handoff in orders.needed)

    def _check_life(self) -> None:
        """Has our thread look for dead engines: `lose` cannot be called while a step waits.

        Raises RuntimeError if our thread has ended.
        """
        if not self._thread.is_alive():
            raise RuntimeError("the thread that fetches KV has ended")
        self._orders.append({"kind": "look"})
        self._sender.send(self._name, {"kind": "wake"})

    def wait(self, handoffs: list[str], seconds: float) -> bool:
        """Called from the engine's own thread. Waits up to `seconds`; returns whether these handoffs have ended."""
        with self._change:
            return self._change.wait_for(lambda: all(handoff in self._over for handoff in handoffs), seconds)

    def not_over(self, requests: list[tuple[str, str]]) -> set[str]:
        """Called from the engine's own thread. Returns the requests whose handoff has not ended.

        requests: (request, handoff).
        """
        with self._change:
            return {request for request, handoff in requests if handoff not in self._over}

    def lose(self, engine: str) -> None:
        """Called from the engine's own thread: a prefill engine has died."""
        self._orders.append({"kind": "lose", "engine": engine})
        self._sender.send(self._name, {"kind": "wake"})

    def meet(self, engine: str) -> None:
        """Maps an engine's KV and tries a copy, in the caller's thread. Raises PeerError."""
        peer = self._open_peer(engine)
        # The first copy compiles the kernel. vLLM never allocates block 0 to a request.
        self._copier.copy(peer, [0], [0])
        self._peers[engine] = peer

    def _run(self) -> None:
        while True:
            try:
                message = self._mailbox.receive()
            except OSError:  # closed
                return
            while self._orders:
                self.handle(self._orders.popleft())
            if message.get("kind") == "stop":
                return
            try:
                self.handle(message)
            except (KeyError, TypeError, ValueError):  # malformed: the thread must survive to read the next one
                log.exception("a message about KV is malformed: %.200s", message)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._sender.send(self._name, {"kind": "stop"})
            self._thread.join(timeout=5)

    def handle(self, message: Message) -> None:
        """Handles one order of our engine, or one message of a prefill engine."""
        match message["kind"]:
            case "load":
                self._load(message["load"])
            case "in_advance":
                self._load(Load(*message["load"], at_once=True, in_advance=True))
            case "give_up":
                self._give_up(message["handoff"], message["engine"])
            case "lose":
                self._lose(message["engine"])
            case "overdue":
                if (load := self._loads.get(message["handoff"])) is not None:
                    self._end(load, f"a step waited {LONGEST_STEP_S:g} s for its prompt to end")
            case "look":
                self._look()
            case "ready" | "done" | "failed" | "sum":
                if message["handoff"] not in self._over:
                    self._note(message)
                    self._advance(message["handoff"])

    def _load(self, load: Load) -> None:
        advanced = self._advanced.pop(load.handoff, None)
        if advanced is not None:
            self._report(load, *advanced)
            return
        if load.handoff in self._over or load.handoff in self._loads:
            # The prefill engine's blocks are free or soon will be: the handoff was given up, or another load has it.
            self._report(load, f"handoff {load.handoff} was given up or already fetched", None)
            return
        if load.engine in self._lost:
            self._end(load, f"engine {load.engine} died before its KV arrived")
            return
        self._loads[load.handoff] = load
        if load.done is not None:
            self._note(load.done | {"kind": "done"})
        self._advance(load.handoff)

    def _note(self, message: Message) -> None:
        """Records a prefill engine's announcement about a prompt."""
        source = self._sources.setdefault(message["handoff"], Source())
        kind = message["kind"]
        if kind == "failed":
            source.failed = message["why"]
            return
        if kind == "sum":
            source.sum = message["sum"]
            return
        if message["epoch"] < source.epoch:
            return  # about blocks from before a preemption: the engine's processes send independently
        if kind == "done" and source.until is not None:
            return  # the load carries a second copy; `heard` must stay the time of the first
        source.heard = time.monotonic()
        if message["epoch"] > source.epoch:
            source.epoch, source.blocks = message["epoch"], []
        blocks = unpack(message["blocks"])
        if kind == "done":
            source.blocks, source.until = blocks, message["until"]
        elif source.until is None and message["first"] == len(source.blocks):
            source.blocks += blocks

    def _advance(self, handoff: str) -> None:
        """Copies the blocks of a handoff that are ready, and ends the load if it is complete."""
        load, source = self._loads.get(handoff), self._sources.get(handoff)
        if load is None or source is None:
            return
        if source.failed is not None:
            self._end(load, source.failed)
            return
        try:
            peer = self._peers.get(load.engine)
            if peer is None:
                peer = self._peers[load.engine] = self._open_peer(load.engine)
            self._copy(load, source, peer)
            if source.until is not None:
                self._finish(load, source, peer)
        except PeerError as error:
            self._end(load, str(error))
        except Exception as error:  # a copy may raise anything, and the request must be told
            self._end(load, f"the copy failed: {type(error).__name__}: {error}")

    def _copy(self, load: Load, source: Source, peer: Peer) -> None:
        if load.epoch != source.epoch:
            # The prompt was restarted in other blocks: the old ones may have held another request's KV when copied.
            load.epoch, load.copied = source.epoch, 0
        theirs = source.blocks[load.first + load.copied : load.first + len(load.blocks)]
        if not theirs:
            return
        now = time.monotonic()
        load.t_begin = load.t_begin or now
        load.wait_s += now - source.heard
        ours = load.blocks[load.copied : load.copied + len(theirs)]
        seconds, runs = self._copier.copy(peer, theirs, ours, load.after)
        load.after = None
        load.copy_s += seconds
        load.runs += runs
        load.copied += len(theirs)

    def _finish(self, load: Load, source: Source, peer: Peer) -> None:
        """The prompt is done: ends the load, by success or by an error."""
        assert source.until is not None
        if load.copied < len(load.blocks):
            needed = load.first + len(load.blocks)
            self._end(load, f"{load.engine} has {len(source.blocks)} of the {needed} blocks needed")
        elif time.monotonic() > source.until:
            self._end(load, f"the lease of the blocks in {load.engine} ended before they were read")
        elif not peer.alive():
            self._end(load, f"engine {load.engine} died before its KV arrived")
        elif not self._verify:
            self._end(load)
        elif source.sum is None:
            which = {"first": load.first, "blocks": len(load.blocks)}
            self._sender.send(peer.mailbox, {"kind": "sum", "handoff": load.handoff, "reader": self._name} | which)
        else:
            ours = self._copier.checksum(load.blocks)
            differs = f"checksums differ: {source.sum} in {load.engine}, {ours} here"
            self._end(load, None if ours == source.sum else differs)

    def _end(self, load: Load, error: str | None = None) -> None:
        moved = load.copied * self._block_bytes
        now = time.monotonic()
        figures = (load.copy_s, load.wait_s, load.copied, load.runs)
        report = (load.handoff, load.t_begin or now, now, moved, error, *figures)
        with self._change:
            self._forget(load.handoff, load.engine)
            self._report(load, error, report)

    def _report(self, load: Load, error: str | None, report: tuple[Any, ...] | None) -> None:
        if load.in_advance:
            # Report on the step's orders, not on the early message. If the orders came first, that is already done.
            if report is not None:
                self._advanced[load.handoff] = (error, report)
            return
        self.ended.append(Ended(load.request, error, load.blocks, load.at_once, report))
        if load.over is not None:
            load.over.set()

    def _lose(self, engine: str) -> None:
        """An engine has died. Its memory can be unmapped: only this thread copies, so no copy is reading it."""
        self._lost.add(engine)
        for load in [load for load in self._loads.values() if load.engine == engine]:
            self._end(load, f"engine {engine} died before its KV arrived")
        peer = self._peers.pop(engine, None)
        if peer is not None:
            self._copier.forget(peer)
            peer.close()

    def _look(self) -> None:
        """Checks all mapped engines and drops those that have died."""
        for engine in [engine for engine, peer in self._peers.items() if not peer.alive()]:
            self._lose(engine)

    def _give_up(self, handoff: str, engine: str) -> None:
        load = self._loads.get(handoff)
        if load is not None:
            self._end(load, "the request was given up")
        elif handoff not in self._over:
            self._forget(handoff, engine)

    def _forget(self, handoff: str, engine: str) -> None:
        """Ends a handoff here: releases its blocks in the prefill engine."""
        self._loads.pop(handoff, None)
        self._sources.pop(handoff, None)
        with self._change:
            self._over[handoff] = None
            if len(self._over) > REMEMBERED:
                self._over.popitem(last=False)
            self._change.notify_all()
        rank = self._name.rpartition(".")[2]
        self._sender.send(f"{engine}.{rank}", {"kind": "release", "handoff": handoff})
