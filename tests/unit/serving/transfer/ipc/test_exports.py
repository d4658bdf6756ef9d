"""One process reads another's memory."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.stress.engines import FACTS, Cache
from wp1.machine import hardware
from wp1.serving.transfer.ipc import exports
from wp1.serving.transfer.ipc.copying import copier_of
from wp1.serving.transfer.ipc.exports import COMPARED, PeerError, offer, open_peer
from wp1.serving.transfer.ipc.mailbox import Sender, pack
from wp1.serving.transfer.ipc.receiver import Load, Receiver

BLOCKS = 50
NUMBER = 4711

# The other process: offers a cache that holds prompt NUMBER in blocks 1, 2, ..., and changes it when told.
OFFERS = f"""
import sys
from pathlib import Path
from tests.stress.engines import FACTS, Cache
from wp1.serving.transfer.ipc.exports import offer
cache = Cache({BLOCKS}, "cpu", 0)
cache.write([1, 2], {NUMBER}, 0)
offer(Path(sys.argv[1]) / "prefill-0.0.json", cache.layout, "prefill-0", "prefill-0.0", FACTS | {{"device": "cpu"}})
cache.write([3], {NUMBER}, 2)
print("offered", flush=True)
for line in sys.stdin:
    cache.write([4], {NUMBER}, 3)
    print("written", flush=True)
"""


@pytest.fixture
def other(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", OFFERS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "offered\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def facts() -> dict[str, Any]:
    return FACTS | {"device": "cpu", "form": Cache(BLOCKS, "cpu", 0).layout.form}


def _block(peer: exports.Peer, block: int) -> bytes:
    parts = [(r.storage, r.offset + block * r.stride, r.size) for r in peer.regions]
    return b"".join(bytes(peer.memory[storage][at : at + size]) for storage, at, size in parts)


def _prompt(place: int) -> bytes:
    return bytes(Cache(BLOCKS, "cpu", 0).pattern(NUMBER, place, 1).flatten().tolist())


def test_another_process_reads_present_and_later_content(
    folder: Path, other: subprocess.Popen[str], facts: dict[str, Any]
) -> None:
    peer = open_peer(folder / "prefill-0.0.json", facts)
    assert [_block(peer, n) for n in (1, 2, 3)] == [_prompt(n) for n in (0, 1, 2)]
    assert (peer.engine, peer.mailbox, peer.num_blocks, peer.alive()) == ("prefill-0", "prefill-0.0", BLOCKS, True)
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdin.write("go\n")
    other.stdin.flush()
    assert other.stdout.readline() == "written\n"
    assert _block(peer, 4) == _prompt(3)


def test_the_mapping_is_read_only(folder: Path, other: subprocess.Popen[str], facts: dict[str, Any]) -> None:
    peer = open_peer(folder / "prefill-0.0.json", facts)
    assert not any(array.flags.writeable for array in peer.memory)


def test_memory_of_a_killed_process_stays_readable(
    folder: Path, other: subprocess.Popen[str], facts: dict[str, Any]
) -> None:
    peer = open_peer(folder / "prefill-0.0.json", facts)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert not peer.alive()
    assert _block(peer, 1) == _prompt(0)
    with pytest.raises(PeerError, match="prefill-0 is gone"):
        open_peer(folder / "prefill-0.0.json", facts)


def _mapped() -> int:
    return sum("torch_" in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_the_memory_of_a_lost_engine_is_unmapped(
    folder: Path, other: subprocess.Popen[str], facts: dict[str, Any]
) -> None:
    cache, sender = Cache(BLOCKS, "cpu", 0), Sender(folder)
    path, copier = folder / "prefill-0.0.json", copier_of(cache.layout)
    before, descriptors = _mapped(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    receiver = Receiver(
        None,  # type: ignore[arg-type]
        sender,
        "decode-0.0",
        copier,
        cache.layout.block_bytes,
        lambda _: open_peer(path, facts),
        False,
    )
    receiver.meet("prefill-0")
    done = {"handoff": "h", "epoch": 0, "blocks": pack([1, 2]), "until": time.monotonic() + 60, "token": 1}
    receiver.handle({"kind": "load", "load": Load("r", "h", "prefill-0", 0, [7, 8], done)})
    assert cache.holds([7, 8], NUMBER)
    assert _mapped() > before
    other.kill()
    receiver.handle({"kind": "lose", "engine": "prefill-0"})
    assert (_mapped(), len(os.listdir("/proc/self/fd"))) == (before, descriptors)  # noqa: PTH208
    assert [ended.error for ended in receiver.ended] == [None]


def test_only_the_owner_can_read_the_offer(folder: Path, other: subprocess.Popen[str]) -> None:
    assert (folder / "prefill-0.0.json").stat().st_mode & 0o777 == 0o600
    assert not list(folder.glob("*.new"))


@pytest.mark.parametrize("key", COMPARED)
def test_a_difference_is_named_with_both_values(folder: Path, facts: dict[str, Any], key: str) -> None:
    cache = Cache(BLOCKS, "cpu", 0)
    offer(folder / "prefill-0.0.json", cache.layout, "prefill-0", "prefill-0.0", FACTS | {"device": "cpu"})
    with pytest.raises(PeerError) as refused:
        open_peer(folder / "prefill-0.0.json", facts | {key: "another"})
    assert f"{COMPARED[key]} of prefill-0 is {facts[key]}, here it is another" in str(refused.value)


def test_nothing_offered(folder: Path, facts: dict[str, Any]) -> None:
    with pytest.raises(PeerError, match=r"prefill-7\.0 offers no KV"):
        open_peer(folder / "prefill-7.0.json", facts)


@pytest.mark.parametrize(
    "change",
    [
        {"regions": [[0, 0, 1 << 40, 8]]},
        {"regions": [[0, -8, 8, 8]]},
        {"regions": [[9, 0, 8, 8]]},
        {"regions": [[0, 0]]},
        {"num_blocks": 10**9},
        {"num_blocks": "50"},
        {"storages": [{"fd": "x"}]},
        {"pid": None},
    ],
)
def test_an_invalid_offer_is_refused_and_leaves_nothing_open(
    folder: Path, facts: dict[str, Any], change: dict[str, Any]
) -> None:
    cache = Cache(BLOCKS, "cpu", 0)
    path = folder / "prefill-0.0.json"
    offer(path, cache.layout, "prefill-0", "prefill-0.0", FACTS | {"device": "cpu"})
    # Otherwise the garbage collector could close descriptors of earlier tests in between.
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PeerError):
        open_peer(path, facts)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 50_000])
def test_a_file_that_is_not_an_offer_is_reported(folder: Path, facts: dict[str, Any], text: str) -> None:
    (folder / "a.json").write_text(text)
    with pytest.raises(PeerError, match=r"a\.json is not a valid offer of KV"):
        open_peer(folder / "a.json", facts)


def test_sharing_leaves_content_and_views_in_place() -> None:
    cache = Cache(BLOCKS, "cpu", 0)
    cache.write([5], NUMBER, 0)
    for storage in cache.layout.storages:
        exports._handle(storage)
    assert cache.holds([5], NUMBER)
    cache.write([6], NUMBER, 1)
    assert cache.holds([5, 6], NUMBER)


def test_too_little_shared_memory_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_shared_memory", lambda: 1)
    with pytest.raises(OSError, match=r"/dev/shm has .* lower backend\.kv_cache_gib, or use transfer=nixl_push"):
        offer(folder / "a.json", Cache(BLOCKS, "cpu", 0).layout, "a", "a.0", {})
    assert not (folder / "a.json").exists()


def test_an_offer_of_a_process_that_has_ended(folder: Path, facts: dict[str, Any]) -> None:
    cache = Cache(BLOCKS, "cpu", 0)
    path = folder / "prefill-0.0.json"
    offer(path, cache.layout, "prefill-0", "prefill-0.0", FACTS | {"device": "cpu"})
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": gone.pid}))
    with pytest.raises(PeerError, match="gone"):
        open_peer(path, facts)


class TwoGpus:
    """Torch in a decode engine on the first of two GPUs; the prefill engine is on the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, reachable: bool) -> None:
        self.opened: list[tuple[Any, ...]] = []
        monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
        monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda n: SimpleNamespace(uuid=f"GPU-{n}"))
        monkeypatch.setattr("torch.cuda.can_device_access_peer", lambda ours, theirs: reachable)
        monkeypatch.setattr("torch.UntypedStorage._new_shared_cuda", self._open)

    def _open(self, *arguments: Any) -> str:
        self.opened.append(arguments)
        return "mapped"


HANDLE = {"gpu": "GPU-1", "cuda": [{"b64": "aGFuZGxl"}, 1 << 20, 512, {"b64": "cmVm"}, 0, {"b64": "ZXZlbnQ="}]}


def test_memory_of_another_gpu_is_opened_on_the_gpu_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = TwoGpus(monkeypatch, reachable=True)
    assert exports._opened(HANDLE, os.getpid()) == "mapped"
    # On our GPU, and without waiting for an event of theirs.
    assert gpus.opened == [(0, b"handle", 1 << 20, 512, b"ref", 0, b"event", False)]


def test_gpus_that_cannot_read_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = TwoGpus(monkeypatch, reachable=False)
    with pytest.raises(PeerError, match="use transfer=nixl_push"):
        exports._opened(HANDLE, os.getpid())
    with pytest.raises(PeerError, match="not visible to this engine"):
        exports._opened(HANDLE | {"gpu": "GPU-7"}, os.getpid())
    assert gpus.opened == []
