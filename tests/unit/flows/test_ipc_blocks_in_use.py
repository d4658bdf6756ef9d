"""Blocks that earlier steps or our copies may still write to: over the real protocol, with slow steps."""

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stress.engines import DECODE, FACTS, PREFILL, Cache
from wp1.serving.transfer.ipc import exports
from wp1.serving.transfer.ipc.copying import HostCopier
from wp1.serving.transfer.ipc.mailbox import Mailbox, Sender, pack
from wp1.serving.transfer.ipc.receiver import DecodeOrders, Load, Receiver

BLOCKS, PROMPT, OTHER = 30, 4711, 99
LIMIT_S = 10


class GpuLikeCopier(HostCopier):
    """A step's work has ended when the step says so; a copy waits for that and then lasts until `go`."""

    def __init__(self, layout: Any) -> None:
        super().__init__(layout)
        self.step = threading.Event()
        self.begun, self.go = threading.Event(), threading.Event()

    def fence(self) -> Any:
        return self.step

    def copy(self, peer: Any, source: list[int], target: list[int], after: Any = None) -> tuple[float, int]:
        self.begun.set()
        if after is not None:
            after.wait(LIMIT_S)
        self.go.wait(LIMIT_S)
        return super().copy(peer, source, target)


class Engines:
    def __init__(self, folder: Path) -> None:
        self.source, self.cache = Cache(BLOCKS, "cpu", 0), Cache(BLOCKS, "cpu", 0)
        self.source.write([1, 2], PROMPT, 0)
        facts = FACTS | {"device": "cpu"}
        exports.offer(folder / f"{PREFILL}.0.json", self.source.layout, PREFILL, f"{PREFILL}.0", facts)
        self.copier = GpuLikeCopier(self.cache.layout)
        sender = Sender(folder)
        self.prefill = Mailbox(folder, f"{PREFILL}.0")
        mine = facts | {"form": self.cache.layout.form}
        self.receiver = Receiver(
            Mailbox(folder, f"{DECODE}.0"),
            sender,
            f"{DECODE}.0",
            self.copier,
            self.cache.layout.block_bytes,
            lambda engine: exports.open_peer(folder / f"{engine}.0.json", mine),
            False,
        )
        self.receiver.start()

    def load(self, blocks: list[int]) -> None:
        done = {"handoff": "h", "epoch": 0, "blocks": pack([1, 2]), "until": time.monotonic() + 60, "token": 1}
        orders = DecodeOrders(loads=[Load("r", "h", PREFILL, 0, blocks, done)])
        self.receiver.obey(orders, self.copier.fence())

    def ended(self) -> Any:
        deadline = time.monotonic() + LIMIT_S
        while not self.receiver.ended:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return self.receiver.ended.popleft()


@pytest.fixture
def folder() -> Iterator[Path]:
    """For mailboxes: private, and with a path short enough for a socket's."""
    with tempfile.TemporaryDirectory(prefix="kv-") as path:
        yield Path(path)


@pytest.fixture
def engines(folder: Path) -> Iterator[Engines]:
    found = Engines(folder)
    yield found
    found.copier.step.set()
    found.copier.go.set()
    found.receiver.stop()


def test_a_step_in_flight_does_not_overwrite_fetched_kv(engines: Engines) -> None:
    """vLLM reuses a request's blocks while the request's last step still runs."""
    engines.copier.go.set()
    engines.load([7, 8])
    assert engines.copier.begun.wait(LIMIT_S)
    time.sleep(0.02)  # without a wait, it would have ended
    engines.cache.write([7, 8], OTHER, 0)
    engines.copier.step.set()
    assert engines.ended().error is None
    assert engines.cache.holds([7, 8], PROMPT)


def test_blocks_of_an_aborted_request_are_freed_after_their_copy(engines: Engines) -> None:
    """vLLM keeps them until the load is reported as ended."""
    engines.copier.step.set()
    engines.load([7, 8])
    assert engines.copier.begun.wait(LIMIT_S)
    engines.receiver.obey(DecodeOrders(given_up=[("h", PREFILL)]))
    time.sleep(0.02)  # without a wait, it would end at once
    assert not engines.receiver.ended
    assert not list(engines.prefill.waiting())
    engines.copier.go.set()
    assert engines.ended().blocks == [7, 8]
    assert [message["kind"] for message in engines.prefill.waiting()] == ["release"]
