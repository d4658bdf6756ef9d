"""Messages between processes: complete, in order, to every live process, and private."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wp1.serving.transfer.ipc import mailbox
from wp1.serving.transfer.ipc.mailbox import Mailbox, Sender, pack, unpack


def _collect(box: Mailbox, count: int, within_s: float = 10) -> list[dict]:
    found: list[dict] = []
    deadline = time.monotonic() + within_s
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} messages came"
        box.wait(0.1)
        found += box.waiting()
    return found


def test_messages_come_in_order(folder: Path) -> None:
    box, sender = Mailbox(folder, "a.0"), Sender(folder)
    assert all(sender.send("a.0", {"n": n}) for n in range(5))
    assert [message["n"] for message in _collect(box, 5)] == list(range(5))
    assert list(box.waiting()) == []


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o755])
def test_a_folder_that_others_can_enter_is_refused(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    for make in (lambda: Mailbox(folder, "a.0"), lambda: Sender(folder)):
        with pytest.raises(PermissionError, match="0700"):
            make()
    folder.chmod(0o700)


def test_another_users_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox.os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="folder of this user"):
        Mailbox(folder, "a.0")


def test_a_link_to_a_private_folder_is_refused(folder: Path) -> None:
    (folder / "real").mkdir(mode=0o700)
    (folder / "link").symlink_to(folder / "real")
    with pytest.raises(PermissionError, match="must be a folder"):
        Sender(folder / "link")


def test_a_path_too_long_for_a_socket_is_reported(folder: Path) -> None:
    deep = folder / ("x" * 100)
    deep.mkdir(mode=0o700)
    with pytest.raises(OSError, match=r"107 bytes .* set TMPDIR to a folder with a shorter path"):
        Mailbox(deep, "a.0")


@pytest.mark.parametrize("data", [b"", b"\0", b"{", b"[" * 50_000, b"7", b"x" * 99_999, b"\xff\xfe"])
def test_invalid_messages_are_skipped(folder: Path, data: bytes) -> None:
    box, sender = Mailbox(folder, "a.0"), Sender(folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.sendto(data, str(folder / "a.0.sock"))
    sender.send("a.0", {"kind": "ready"})
    assert _collect(box, 1) == [{"kind": "ready"}]


def test_a_descriptor_that_never_ends_is_not_read(folder: Path) -> None:
    box, sender = Mailbox(folder, "a.0"), Sender(folder)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, Path("/dev/zero").open("rb") as endless:
        fds = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", endless.fileno()))
        other.sendmsg([mailbox.IN_MEMORY], [fds], 0, str(folder / "a.0.sock"))
    sender.send("a.0", {"kind": "ready"})
    assert _collect(box, 1) == [{"kind": "ready"}]
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_full_mailbox_blocks_no_sender_and_loses_nothing(folder: Path) -> None:
    box, sender = Mailbox(folder, "a.0"), Sender(folder)
    begin = time.monotonic()
    assert all(sender.send("a.0", {"n": n, "text": "x" * 2000}) for n in range(3000))
    assert time.monotonic() - begin < 5
    assert [message["n"] for message in _collect(box, 3000)] == list(range(3000))


def test_messages_to_an_engine_keep_their_order_across_its_mailboxes(folder: Path) -> None:
    full, other, sender = Mailbox(folder, "a.scheduler"), Mailbox(folder, "a.0"), Sender(folder)
    count = 0
    while not sender._queues:
        sender.send("a.scheduler", {"n": count})
        count += 1
    sender.send("a.0", {"kind": "after"})
    time.sleep(0.05)
    assert list(other.waiting()) == []
    assert len(_collect(full, count)) == count
    assert _collect(other, 1) == [{"kind": "after"}]


def test_a_mailbox_that_is_never_read_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "MOST_WAITING", 5)
    box, sender = Mailbox(folder, "a.0"), Sender(folder)
    sent = [sender.send("a.0", {"text": "x" * 50_000}) for _ in range(500)]
    assert not sent[-1]
    assert len(_collect(box, sum(sent))) == sum(sent)


def test_no_such_mailbox(folder: Path) -> None:
    assert not Sender(folder).send("a.0", {})


def test_a_dead_process_refuses(folder: Path) -> None:
    code = "import sys; from pathlib import Path; from wp1.serving.transfer.ipc.mailbox import Mailbox\n"
    code += "box = Mailbox(Path(sys.argv[1]), 'a.0'); print('up', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    sender = Sender(folder)
    assert sender.send("a.0", {})
    while not sender._queues:
        sender.send("a.0", {})
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 5
    while sender._queues:  # its queue is dropped
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not sender.send("a.0", {})
    # Its name is free for a later process.
    box = Mailbox(folder, "a.0")
    assert sender.send("a.0", {"n": 1})
    assert _collect(box, 1) == [{"n": 1}]


@pytest.mark.parametrize("blocks", [131_072 // 16, 1_048_576 // 16])
def test_a_long_prompt_in_scattered_blocks(folder: Path, blocks: int) -> None:
    box, sender = Mailbox(folder, "a.0"), Sender(folder)
    numbers = list(range(2 * blocks, 0, -2))
    message = {"kind": "done", "blocks": pack(numbers)}
    assert sender.send("a.0", message)
    [found] = _collect(box, 1)
    assert unpack(found["blocks"]) == numbers


def test_receive_waits(folder: Path) -> None:
    box, sender = Mailbox(folder, "a.0"), Sender(folder)
    timer = threading.Timer(0.05, sender.send, ("a.0", {"kind": "late"}))
    timer.start()
    assert box.receive() == {"kind": "late"}
    timer.join()


def test_closed(folder: Path) -> None:
    box, sender = Mailbox(folder, "a.0"), Sender(folder)
    sender.close()
    assert not sender.send("a.0", {})
    box.close()
    assert list(folder.iterdir()) == []


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_block_numbers_in_a_message(numbers: list[int]) -> None:
    assert unpack(json.loads(json.dumps(pack(numbers)))) == numbers


@pytest.mark.parametrize("text", ["AAAA", "AAAAAA", "not base64", "AAAAAB!="])
def test_text_that_is_not_block_numbers(text: str) -> None:
    with pytest.raises(ValueError):
        unpack(text)
