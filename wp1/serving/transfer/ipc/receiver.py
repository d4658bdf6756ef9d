"""Takes blocks over from prefill engines: one thread in each worker of a decode engine.

What it does follows from three things that come in any order: a load (our blocks, from the engine's own scheduler),
announcements of blocks that are ready, and the word that the prompt is done. Whatever is known to be ready is copied at
once; a load ends when the prompt is done and every block is here.
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

# Handoffs that have ended and may still be spoken of.
REMEMBERED = 10_000
# After which a step that waits for KV looks whether somebody still works on it.
LIFE_SIGN_S = 1.0
# For which a step waits at most: what it waits for may hang, or be queued anew after a preemption. Nobody else goes on
# meanwhile, and vLLM's executor ends an engine whose step takes 300 s.
LONGEST_STEP_S = 240.0


@dataclass(slots=True)
class Load:
    """Blocks of ours for blocks first, first + 1, ... of a prompt that another engine computes."""

    request: str
    handoff: str
    engine: str
    first: int
    blocks: list[int]
    done: Message | None  # where the prompt was computed before the load was asked for
    at_once: bool = False  # the step that the load comes with computes on; then `done` is known
    copied: int = 0
    epoch: int = -1
    t_begin: float | None = None
    copy_s: float = 0.0
    wait_s: float = 0.0
    runs: int = 0
    after: Any = None  # a fence of the copier, until the first copy
    over: threading.Event | None = None  # for the step that waits
    in_advance: bool = False  # by mail, to begin before the step that it comes with as well


def in_advance(load: Load) -> Message:
    """The message that has a load begin before its step's orders are there."""
    words = (load.request, load.handoff, load.engine, load.first, load.blocks, load.done)
    return {"kind": "in_advance", "load": words}


@dataclass(slots=True)
class DecodeOrders:
    """From the scheduler's half to the workers, with each step.

    given_up: handoff and prefill engine.
    soon: handoffs whose prompt is done, and for whose KV the step has time.
    ahead: request and handoff whose KV is to be called here before it is, as nothing else is to be done meanwhile.
    needed: handoffs that must be over before the step computes.
    """

    loads: list[Load] = field(default_factory=list)
    given_up: list[tuple[str, str]] = field(default_factory=list)
    soon: list[str] = field(default_factory=list)
    ahead: list[tuple[str, str]] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Source:
    """What is known of a prompt's blocks in the prefill engine."""

    epoch: int = 0
    blocks: list[int] = field(default_factory=list)
    heard: float = 0.0
    until: float | None = None  # set when all is said
    failed: str | None = None
    sum: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A load that is over. error: why it did not succeed; blocks: ours, whose content is then worth nothing."""

    request: str
    error: str | None
    blocks: list[int]
    at_once: bool
    # For `wp1.serving.transfer.TransferReport`; None where nothing was to be moved any more.
    report: tuple[Any, ...] | None


class Receiver:
    """All state belongs to the thread that calls `handle`; other threads use `obey`, `wait`, `not_over` and `ended`.

    copier, block_bytes: of our cache; open_peer: maps the KV of an engine by name; verify: compare sums of the blocks.
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
        self._lost: set[str] = set()  # engines that are gone
        self._loads: dict[str, Load] = {}
        self._sources: dict[str, Source] = {}
        self._over: OrderedDict[str, None] = OrderedDict()
        self._advanced: dict[str, tuple[str | None, tuple[Any, ...]]] = {}  # by handoff, until their step's orders come
        self._orders: deque[Message] = deque()
        self.ended: deque[Ended] = deque()
        self._change = threading.Condition()  # of what is over, together with `ended`
        self._thread = threading.Thread(target=self._run, name="wp1-kv", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def obey(self, orders: DecodeOrders, after: Any = None) -> None:
        """From the engine's own thread, with each step. after: `Copier.fence` of what may still write to the blocks.

        A block may come from a request whose last step is still on its way in the GPU, and would write over what was
        taken over; vLLM keeps such blocks back in some versions only.

        Returns when what the step computes on is here. Raises RuntimeError where it never will be.
        """
        for load in orders.loads:
            load.after = after
            load.over = threading.Event() if load.at_once else None
        # In this order: a handoff that was given up may be asked for again, to be dropped.
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
        """While a step waits, nobody can tell that an engine has died. Raises RuntimeError where our thread has."""
        if not self._thread.is_alive():
            raise RuntimeError("the thread that takes KV over has ended")
        self._orders.append({"kind": "look"})
        self._sender.send(self._name, {"kind": "wake"})

    def wait(self, handoffs: list[str], seconds: float) -> bool:
        """From the engine's own thread: until these are over, or for so long. Whether they are."""
        with self._change:
            return self._change.wait_for(lambda: all(handoff in self._over for handoff in handoffs), seconds)

    def not_over(self, requests: list[tuple[str, str]]) -> set[str]:
        """From the engine's own thread: of requests and their handoffs, whose end is not in `ended` nor was there."""
        with self._change:
            return {request for request, handoff in requests if handoff not in self._over}

    def lose(self, engine: str) -> None:
        """From the engine's own thread: a prefill engine has died."""
        self._orders.append({"kind": "lose", "engine": engine})
        self._sender.send(self._name, {"kind": "wake"})

    def meet(self, engine: str) -> None:
        """Maps an engine's KV and tries a copy, now and in the caller's thread. Raises PeerError."""
        peer = self._open_peer(engine)
        # A kernel is compiled for its first use. vLLM gives block 0 to nobody.
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
            except (KeyError, TypeError, ValueError):  # it lacks something; the next must be heard all the same
                log.exception("a message about KV was not understood: %.200s", message)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._sender.send(self._name, {"kind": "stop"})
            self._thread.join(timeout=5)

    def handle(self, message: Message) -> None:
        """One order of the engine, or one message of a prefill engine."""
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
                    self._end(load, f"a step waited {LONGEST_STEP_S:g} s for the end of its prompt")
            case "look":
                self._look()
            case "ready" | "done" | "failed" | "sum":
                if message["handoff"] not in self._over:
                    self._say(message)
                    self._advance(message["handoff"])

    def _load(self, load: Load) -> None:
        advanced = self._advanced.pop(load.handoff, None)
        if advanced is not None:
            self._tell(load, *advanced)
            return
        if load.handoff in self._over or load.handoff in self._loads:
            # Its blocks there are free, or about to be: they were given up, or are another load's.
            self._tell(load, f"handoff {load.handoff} was given up or taken", None)
            return
        if load.engine in self._lost:
            self._end(load, f"engine {load.engine} died before its KV was here")
            return
        self._loads[load.handoff] = load
        if load.done is not None:
            self._say(load.done | {"kind": "done"})
        self._advance(load.handoff)

    def _say(self, message: Message) -> None:
        """What a prefill engine says of a prompt."""
        source = self._sources.setdefault(message["handoff"], Source())
        kind = message["kind"]
        if kind == "failed":
            source.failed = message["why"]
            return
        if kind == "sum":
            source.sum = message["sum"]
            return
        if message["epoch"] < source.epoch:
            return  # of blocks that the prompt had before; the engine's processes do not wait for one another
        if kind == "done" and source.until is not None:
            return  # a load brings it along, too, and its blocks have waited since it was first heard
        source.heard = time.monotonic()
        if message["epoch"] > source.epoch:
            source.epoch, source.blocks = message["epoch"], []
        blocks = unpack(message["blocks"])
        if kind == "done":
            source.blocks, source.until = blocks, message["until"]
        elif source.until is None and message["first"] == len(source.blocks):
            source.blocks += blocks

    def _advance(self, handoff: str) -> None:
        """Copies what is ready of a handoff, and ends it where that was all."""
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
        except Exception as error:  # whatever a copy raises: the request must hear of it
            self._end(load, f"the copy failed: {type(error).__name__}: {error}")

    def _copy(self, load: Load, source: Source, peer: Peer) -> None:
        if load.epoch != source.epoch:
            # The prompt was begun anew in other blocks: what was copied may have been somebody else's by then.
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
        """The prompt is done: all is here, or it will not come."""
        assert source.until is not None
        if load.copied < len(load.blocks):
            self._end(load, f"{load.engine} has {len(source.blocks)} blocks of {load.first + len(load.blocks)}")
        elif time.monotonic() > source.until:
            self._end(load, f"the lease of the blocks in {load.engine} ended before they were read")
        elif not peer.alive():
            self._end(load, f"engine {load.engine} died before its KV was here")
        elif not self._verify:
            self._end(load)
        elif source.sum is None:
            which = {"first": load.first, "blocks": len(load.blocks)}
            self._sender.send(peer.mailbox, {"kind": "sum", "handoff": load.handoff, "reader": self._name} | which)
        else:
            ours = self._copier.checksum(load.blocks)
            self._end(load, None if ours == source.sum else f"sums of the blocks differ: {source.sum}, here {ours}")

    def _end(self, load: Load, error: str | None = None) -> None:
        moved = load.copied * self._block_bytes
        now = time.monotonic()
        figures = (load.copy_s, load.wait_s, load.copied, load.runs)
        report = (load.handoff, load.t_begin or now, now, moved, error, *figures)
        with self._change:
            self._forget(load.handoff, load.engine)
            self._tell(load, error, report)

    def _tell(self, load: Load, error: str | None, report: tuple[Any, ...] | None) -> None:
        if load.in_advance:
            # Its step's orders, which come or came, are what is answered; where they came first, they are by now.
            if report is not None:
                self._advanced[load.handoff] = (error, report)
            return
        self.ended.append(Ended(load.request, error, load.blocks, load.at_once, report))
        if load.over is not None:
            load.over.set()

    def _lose(self, engine: str) -> None:
        """An engine is gone: nothing will come from it, and as all copies are this thread's, none reads it now."""
        self._lost.add(engine)
        for load in [load for load in self._loads.values() if load.engine == engine]:
            self._end(load, f"engine {engine} died before its KV was here")
        peer = self._peers.pop(engine, None)
        if peer is not None:
            self._copier.forget(peer)
            peer.close()

    def _look(self) -> None:
        """Lets go of engines that have died."""
        for engine in [engine for engine, peer in self._peers.items() if not peer.alive()]:
            self._lose(engine)

    def _give_up(self, handoff: str, engine: str) -> None:
        load = self._loads.get(handoff)
        if load is not None:
            self._end(load, "the request was given up")
        elif handoff not in self._over:
            self._forget(handoff, engine)

    def _forget(self, handoff: str, engine: str) -> None:
        """Nobody here reads its blocks any more."""
        self._loads.pop(handoff, None)
        self._sources.pop(handoff, None)
        with self._change:
            self._over[handoff] = None
            if len(self._over) > REMEMBERED:
                self._over.popitem(last=False)
            self._change.notify_all()
        rank = self._name.rpartition(".")[2]
        self._sender.send(f"{engine}.{rank}", {"kind": "release", "handoff": handoff})
