"""Loads and messages in any order lead to the right bytes, one end and one release."""

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wp1.serving.transfer.ipc import receiver as receiver_module
from wp1.serving.transfer.ipc.exports import Peer, PeerError
from wp1.serving.transfer.ipc.mailbox import Mailbox, Message, Sender, pack
from wp1.serving.transfer.ipc.receiver import DecodeOrders, Load, Receiver, in_advance

SOURCE = "prefill-0"


class Copies:
    """A copier that records its calls."""

    def __init__(self) -> None:
        self.there: dict[int, int] = {}  # our block: their block
        self.after: list[Any] = []  # what each copy had to wait for
        self.forgotten: list[Peer] = []
        self.raises: Exception | None = None

    def fence(self) -> None:
        pass

    def forget(self, peer: Peer) -> None:
        self.forgotten.append(peer)

    def copy(self, peer: Peer, source: list[int], target: list[int], after: Any = None) -> tuple[float, int]:
        self.after.append(after)
        if self.raises is not None:
            raise self.raises
        self.there.update(zip(target, source, strict=True))
        return 0.5, 1

    def checksum(self, blocks: list[int]) -> int:
        return sum(self.there[block] for block in blocks)


class Posted:
    """A sender that records its messages."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Message]] = []

    def send(self, name: str, message: Message) -> bool:
        self.sent.append((name, message))
        return True

    def released(self) -> list[str]:
        return [message["handoff"] for _, message in self.sent if message["kind"] == "release"]


class LivingPeer(Peer):
    living = True
    closed = 0

    def alive(self) -> bool:
        return self.living

    def close(self) -> None:
        self.closed += 1


class World:
    def __init__(self, verify: bool = False) -> None:
        self.copies, self.posted = Copies(), Posted()
        self.peer = LivingPeer(SOURCE, f"{SOURCE}.0", [], 100, [], 0)
        self.opened: PeerError | None = None
        any_: Any = self.posted
        self.receiver = Receiver(None, any_, "decode-0.0", self.copies, 10, self._open, verify)  # type: ignore[arg-type]

    def _open(self, engine: str) -> Peer:
        if self.opened is not None:
            raise self.opened
        return self.peer

    def load(self, blocks: list[int], done: Message | None = None, first: int = 0, handoff: str = "h") -> None:
        load = Load(f"request-{handoff}", handoff, SOURCE, first, blocks, done)
        self.receiver.handle({"kind": "load", "load": load})

    def handle(self, kind: str, handoff: str = "h", **words: Any) -> None:
        self.receiver.handle({"kind": kind, "handoff": handoff, **words})

    def end(self) -> tuple[str | None, list[int]]:
        """The error and blocks of the only load that has ended."""
        [ended] = self.receiver.ended
        return ended.error, ended.blocks


def ready(first: int, blocks: list[int], epoch: int = 0) -> Message:
    return {"kind": "ready", "handoff": "h", "epoch": epoch, "first": first, "blocks": pack(blocks)}


def done(blocks: list[int], epoch: int = 0, lease_s: float = 60) -> Message:
    until = time.monotonic() + lease_s
    return {"kind": "done", "handoff": "h", "epoch": epoch, "blocks": pack(blocks), "until": until, "token": 1}


def test_done_before_load() -> None:
    world = World()
    world.load([1, 2], done([11, 12]))
    assert world.end() == (None, [1, 2])
    assert world.copies.there == {1: 11, 2: 12}
    assert world.posted.sent == [(f"{SOURCE}.0", {"kind": "release", "handoff": "h"})]
    [ended] = world.receiver.ended
    assert ended.report is not None
    name, begin, end, moved, error, copy_s, wait_s, blocks, runs = ended.report
    assert (name, moved, error, copy_s, blocks, runs) == ("h", 20, None, 0.5, 2, 1)
    assert begin <= end
    assert wait_s >= 0


def test_chunks_move_as_they_become_ready() -> None:
    world = World()
    world.load([1, 2, 3])
    world.receiver.handle(ready(0, [11]))
    assert world.copies.there == {1: 11}
    world.receiver.handle(ready(1, [12]))
    assert not world.receiver.ended
    world.receiver.handle(done([11, 12, 13]))
    assert world.copies.there == {1: 11, 2: 12, 3: 13}
    assert world.end()[0] is None


def test_chunks_before_the_load() -> None:
    world = World()
    world.receiver.handle(ready(0, [11]))
    world.receiver.handle(done([11, 12]))
    assert world.copies.there == {}
    world.load([1, 2])
    assert world.copies.there == {1: 11, 2: 12}


def test_a_chunk_whose_message_was_lost_comes_with_the_last() -> None:
    world = World()
    world.load([1, 2, 3])
    world.receiver.handle(ready(1, [12]))
    assert world.copies.there == {}
    world.receiver.handle(done([11, 12, 13]))
    assert world.copies.there == {1: 11, 2: 12, 3: 13}


def test_the_beginning_is_cached_here() -> None:
    world = World()
    world.load([2, 3], first=1)
    world.receiver.handle(ready(0, [11, 12]))
    assert world.copies.there == {2: 12}
    world.receiver.handle(done([11, 12, 13]))
    assert world.copies.there == {2: 12, 3: 13}


def test_a_preempted_prompt_is_copied_again() -> None:
    world = World()
    world.load([1, 2])
    world.receiver.handle(ready(0, [11]))
    world.receiver.handle(ready(0, [21], epoch=1))
    assert world.copies.there == {1: 21}
    world.receiver.handle(ready(1, [12], epoch=0))  # late, about blocks that another request has by now
    world.receiver.handle(done([21, 22], epoch=1))
    assert world.copies.there == {1: 21, 2: 22}
    assert world.end()[0] is None


def test_a_late_announcement_after_the_end_changes_nothing() -> None:
    world = World()
    world.receiver.handle(done([21, 22], epoch=1))
    world.receiver.handle(ready(0, [11], epoch=0))
    world.load([1, 2])
    assert world.end()[0] is None
    assert world.copies.there == {1: 21, 2: 22}


@pytest.mark.parametrize("load_first", [True, False])
def test_a_prompt_that_was_given_up(load_first: bool) -> None:
    world = World()
    if load_first:
        world.load([1])
    world.handle("failed", why="prefill-0 gave up the prompt")
    if not load_first:
        world.load([1])
    assert world.end() == ("prefill-0 gave up the prompt", [1])


def test_fewer_blocks_than_needed() -> None:
    world = World()
    world.load([1, 2, 3], done([11, 12]))
    assert world.end()[0] == "prefill-0 has 2 of the 3 blocks needed"


def test_a_lease_that_ended_meanwhile() -> None:
    world = World()
    world.load([1], done([11], lease_s=-0.001))
    assert "lease" in (world.end()[0] or "")


def test_an_engine_that_died_meanwhile() -> None:
    world = World()
    world.peer.living = False
    world.load([1], done([11]))
    assert world.end()[0] == "engine prefill-0 died before its KV arrived"


def test_lose_ends_loads_in_progress() -> None:
    world = World()
    world.load([1])
    world.load([2], handoff="i")
    world.receiver.handle({"kind": "lose", "engine": "prefill-1"})
    assert not world.receiver.ended
    world.receiver.handle({"kind": "lose", "engine": SOURCE})
    assert {ended.request for ended in world.receiver.ended} == {"request-h", "request-i"}
    assert all("died" in (ended.error or "") for ended in world.receiver.ended)


def test_a_lost_engine_is_unmapped_and_never_read_again() -> None:
    world = World()
    world.load([1], done([11]))
    for _ in range(2):
        world.receiver.handle({"kind": "lose", "engine": SOURCE})
    assert (world.copies.forgotten, world.peer.closed) == ([world.peer], 1)
    world.load([2], done([12]) | {"handoff": "i"}, handoff="i")
    assert world.receiver.ended[-1].error == "engine prefill-0 died before its KV arrived"
    assert world.copies.there == {1: 11}
    assert world.posted.released() == ["h", "i"]


def test_the_first_copy_of_a_load_waits_for_earlier_work() -> None:
    world = World()
    fence = object()
    load = Load("request-h", "h", SOURCE, 0, [1, 2], None)
    world.receiver.obey(DecodeOrders(loads=[load]), fence)
    world.receiver.handle(world.receiver._orders.popleft())
    world.receiver.handle(ready(0, [11]))
    world.receiver.handle(done([11, 12]))
    assert world.copies.after == [fence, None]
    assert world.end()[0] is None


def test_a_peer_that_cannot_be_mapped() -> None:
    world = World()
    world.opened = PeerError("KV layout of prefill-0 is a, here it is b")
    world.load([1], done([11]))
    assert world.end() == ("KV layout of prefill-0 is a, here it is b", [1])


def test_a_copy_that_fails() -> None:
    world = World()
    world.copies.raises = RuntimeError("no such device")
    world.load([1], done([11]))
    assert world.end()[0] == "the copy failed: RuntimeError: no such device"
    assert world.posted.released() == ["h"]


def test_given_up_before_and_after_its_load() -> None:
    world = World()
    world.receiver.handle(ready(0, [11]))
    world.handle("give_up", engine=SOURCE)
    assert world.posted.released() == ["h"]
    world.receiver.handle(done([11]))
    world.load([1])
    assert "given up or already fetched" in (world.end()[0] or "")
    assert world.copies.there == {}
    assert world.posted.released() == ["h"]


def test_a_second_load_of_a_handoff_ends_and_the_first_continues() -> None:
    world = World()
    world.load([1])
    world.receiver.handle({"kind": "load", "load": Load("other", "h", SOURCE, 0, [5], None)})
    [refused] = world.receiver.ended
    assert (refused.request, refused.blocks) == ("other", [5])
    world.receiver.handle(done([11]))
    assert [ended.error for ended in list(world.receiver.ended)[1:]] == [None]
    assert world.posted.released() == ["h"]


@pytest.mark.parametrize(("theirs", "error"), [(23, None), (24, "checksums differ: 24 in prefill-0, 23 here")])
def test_checksums_are_compared(theirs: int, error: str | None) -> None:
    world = World(verify=True)
    world.load([2, 3], done([10, 11, 12]), first=1)
    assert not world.receiver.ended
    ask = {"kind": "sum", "handoff": "h", "reader": "decode-0.0", "first": 1, "blocks": 2}
    assert world.posted.sent == [(f"{SOURCE}.0", ask)]
    world.handle("sum", sum=theirs)
    assert world.end()[0] == error


def test_nothing_is_kept_of_ended_handoffs() -> None:
    world = World()
    for n in range(300):
        world.load([1], done([11]) | {"handoff": str(n)}, handoff=str(n))
        world.handle("ready", str(n), epoch=0, first=0, blocks=[])
        world.handle("give_up", str(n), engine=SOURCE)
    assert not world.receiver._loads
    assert not world.receiver._sources
    assert len(world.posted.released()) == 300


THEIRS, OURS = [11, 12, 13], [1, 2, 3]
EVENTS = {
    "load": lambda w: w.load(list(OURS)),
    "ready 0": lambda w: w.receiver.handle(ready(0, [31], epoch=0)),
    "ready 1": lambda w: w.receiver.handle(ready(0, THEIRS[:1], epoch=1)),
    "more 1": lambda w: w.receiver.handle(ready(1, THEIRS[1:2], epoch=1)),
    "done": lambda w: w.receiver.handle(done(THEIRS, epoch=1)),
    "late": lambda w: w.receiver.handle(done(THEIRS, epoch=1, lease_s=-1)),
    "failed": lambda w: w.handle("failed", why="failed"),
    "give_up": lambda w: w.handle("give_up", engine=SOURCE),
    "lose": lambda w: w.receiver.handle({"kind": "lose", "engine": SOURCE}),
    "sum": lambda w: w.handle("sum", sum=sum(THEIRS)),
    "other sum": lambda w: w.handle("sum", sum=0),
    "death": lambda w: setattr(w.peer, "living", False),
}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=14), st.booleans())
def test_in_any_order_each_load_ends_once_and_each_handoff_is_released_once(events: list[str], verify: bool) -> None:
    world = World(verify)
    for event in [*events, "give_up"]:
        EVENTS[event](world)
    assert len(world.receiver.ended) == events.count("load")
    assert world.posted.released() == ["h"]
    well = [ended for ended in world.receiver.ended if ended.error is None]
    assert len(well) <= 1
    if well:
        assert [world.copies.there[block] for block in OURS] == THEIRS
    assert not world.receiver._loads
    assert not world.receiver._sources


def test_the_thread_takes_orders_and_messages(folder: Path) -> None:
    """Give-ups come before loads: a load for a handoff that was given up must be refused."""
    copies, sender = Copies(), Sender(folder)
    theirs = Mailbox(folder, f"{SOURCE}.0")
    peer = LivingPeer(SOURCE, f"{SOURCE}.0", [], 100, [], 0)
    box = Mailbox(folder, "decode-0.0")
    receiver = Receiver(box, sender, "decode-0.0", copies, 10, lambda _: peer, False)
    receiver.meet(SOURCE)
    receiver.start()
    receiver.obey(DecodeOrders(loads=[Load("first", "h", SOURCE, 0, [1], None)]))
    again = Load("again", "h", SOURCE, 0, [2], done([12]))
    receiver.obey(DecodeOrders(loads=[again], given_up=[("h", SOURCE)]))
    receiver.obey(DecodeOrders(loads=[Load("other", "i", SOURCE, 0, [3], None)]))
    for nonsense in ({}, {"kind": "ready"}, {"kind": "ready", "handoff": "i", "epoch": "x"}):
        sender.send("decode-0.0", nonsense)
    sender.send("decode-0.0", done([13]) | {"handoff": "i"})
    deadline = time.monotonic() + 5
    while len(receiver.ended) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    receiver.stop()
    assert Counter(ended.request for ended in receiver.ended) == {"first": 1, "again": 1, "other": 1}
    assert {ended.request: ended.error is None for ended in receiver.ended}["other"]
    assert sorted(message["handoff"] for message in theirs.waiting()) == ["h", "i"]


@pytest.mark.parametrize("given_up", [False, True])
def test_the_kv_of_a_step_has_arrived_when_obey_returns(folder: Path, given_up: bool) -> None:
    copies, sender = Copies(), Sender(folder)
    Mailbox(folder, f"{SOURCE}.0")
    peer = LivingPeer(SOURCE, f"{SOURCE}.0", [], 100, [], 0)
    receiver = Receiver(Mailbox(folder, "decode-0.0"), sender, "decode-0.0", copies, 10, lambda _: peer, False)
    receiver.start()
    orders = DecodeOrders(loads=[Load("r", "h", SOURCE, 0, [1, 2], done([11, 12]), at_once=True)])
    orders.given_up += [("h", SOURCE)] * given_up
    receiver.obey(orders)
    [ended] = receiver.ended
    assert (ended.at_once, ended.error is None, ended.blocks) == (True, not given_up, [1, 2])
    assert copies.there == ({} if given_up else {1: 11, 2: 12})
    receiver.stop()


def test_an_idle_step_sees_the_end_of_kv_that_is_about_to_arrive(folder: Path) -> None:
    copies, sender = Copies(), Sender(folder)
    Mailbox(folder, f"{SOURCE}.0")
    peer = LivingPeer(SOURCE, f"{SOURCE}.0", [], 100, [], 0)
    receiver = Receiver(Mailbox(folder, "decode-0.0"), sender, "decode-0.0", copies, 10, lambda _: peer, False)
    receiver.start()
    receiver.obey(DecodeOrders(loads=[Load("r", "h", SOURCE, 0, [1], None), Load("s", "i", SOURCE, 0, [2], None)]))
    for name in "ih":
        timer = threading.Timer(0.05, sender.send, ("decode-0.0", done([11]) | {"handoff": name}))
        timer.start()
        receiver.wait([name], 30)
        assert receiver.ended.popleft().request == {"h": "r", "i": "s"}[name]
        timer.join()
    begin = time.perf_counter()
    receiver.wait(["h", "i"], 30)  # already ended
    receiver.wait(["other"], 0.01)
    assert 0.01 <= time.perf_counter() - begin < 10
    receiver.stop()


@pytest.mark.parametrize("end", ["here", "peer dies", "never"])
def test_a_step_waits_for_the_kv_that_it_needs(folder: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr(receiver_module, "LIFE_SIGN_S", 0.02)
    monkeypatch.setattr(receiver_module, "LONGEST_STEP_S", 0.1 if end == "never" else 60)
    copies, sender = Copies(), Sender(folder)
    Mailbox(folder, f"{SOURCE}.0")
    peer = LivingPeer(SOURCE, f"{SOURCE}.0", [], 100, [], 0)
    receiver = Receiver(Mailbox(folder, "decode-0.0"), sender, "decode-0.0", copies, 10, lambda _: peer, False)
    receiver.meet(SOURCE)
    receiver.start()
    receiver.obey(DecodeOrders(loads=[Load("r", "h", SOURCE, 0, [1], None)]))
    assert receiver.not_over([("r", "h")]) == {"r"}

    def happen() -> None:
        assert not receiver.ended
        if end == "peer dies":
            peer.living = False
        elif end == "here":
            sender.send("decode-0.0", done([11]))

    timer = threading.Timer(0.05, happen)
    timer.start()
    receiver.obey(DecodeOrders(needed=["h"]))
    timer.join()
    [ended] = receiver.ended
    errors = {
        "here": None,
        "peer dies": f"engine {SOURCE} died before its KV arrived",
        "never": "a step waited 0.1 s for its prompt to end",
    }
    assert ended.error == errors[end]
    assert receiver.not_over([("r", "h")]) == set()
    receiver.stop()


def test_a_step_does_not_wait_for_a_thread_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_module, "LIFE_SIGN_S", 0.01)
    world = World()
    with pytest.raises(RuntimeError, match="the thread that fetches KV has ended"):
        world.receiver.obey(DecodeOrders(loads=[Load("r", "h", SOURCE, 0, [1], done([11]), at_once=True)]))


@pytest.mark.parametrize("first", ["mail", "step"])
def test_a_load_sent_in_advance_is_copied_once_and_reported_to_its_step(first: str) -> None:
    world = World()
    load = Load("r", "h", SOURCE, 0, [1, 2], done([11, 12]), at_once=True)
    orders = {"mail": json.loads(json.dumps(in_advance(load))), "step": {"kind": "load", "load": load}}
    for name in sorted(orders, key=lambda name: name != first):
        world.receiver.handle(orders[name])
        assert len(world.receiver.ended) == (first == "step" or name == "step")
    assert world.end() == (None, [1, 2])
    assert world.receiver.ended[0].report is not None
    assert len(world.copies.after) == 1
    assert world.copies.there == {1: 11, 2: 12}
    assert world.posted.released() == ["h"]
    assert not world.receiver._advanced


def test_the_wait_of_a_done_prompt_is_from_its_message_to_its_copy() -> None:
    world = World()
    word = done([11, 12])
    world.receiver.handle(word)
    time.sleep(0.5)
    load = Load("r", "h", SOURCE, 0, [1, 2], word, at_once=True)
    world.receiver.handle({"kind": "load", "load": load})
    assert load.wait_s >= 0.5
    # Without an earlier message, it is as old as its load.
    world.receiver.handle({"kind": "load", "load": (other := Load("s", "i", SOURCE, 0, [3], done([13]), at_once=True))})
    assert 0 <= other.wait_s < 0.5


def test_a_failure_in_advance_is_reported_to_the_step() -> None:
    world = World()
    world.copies.raises = RuntimeError("no")
    load = Load("r", "h", SOURCE, 0, [1], done([11]), at_once=True)
    world.receiver.handle(in_advance(load))
    world.receiver.handle({"kind": "load", "load": load})
    assert world.end() == ("the copy failed: RuntimeError: no", [1])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["advance", "step", *sorted(EVENTS)]), max_size=10).filter(
        lambda events: events.count("advance") <= 1 and "load" not in events and "late" not in events
    )
)
def test_whatever_comes_between_message_and_step_the_step_is_answered_once(events: list[str]) -> None:
    """The message is sent to each receiver before its step's orders, but either may be read first."""
    world = World()
    load = Load("r", "h", SOURCE, 0, list(OURS), done(THEIRS, epoch=1), at_once=True)
    steps = {
        "advance": lambda w: w.receiver.handle(in_advance(load)),
        "step": lambda w: w.receiver.handle({"kind": "load", "load": load}),
    }
    events = [event for n, event in enumerate(events) if event != "step" or "step" not in events[:n]]
    events += ["step"] * ("step" not in events) + ["give_up"]
    for n, event in enumerate(events, start=1):
        (EVENTS | steps)[event](world)
        # A waiting step continues when its orders are handled, whatever came before them.
        assert len(world.receiver.ended) == ("step" in events[:n])
    [ended] = world.receiver.ended
    assert ended.at_once
    assert ended.error is not None or [world.copies.there[block] for block in OURS] == THEIRS
    assert world.posted.released() == ["h"]
    assert world.receiver._loads == world.receiver._sources == world.receiver._advanced == {}
