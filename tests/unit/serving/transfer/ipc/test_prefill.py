"""What a prefill engine announces about a prompt, and when it frees its blocks."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stress.engines import Request
from wp1.serving.transfer.ipc import prefill
from wp1.serving.transfer.ipc.mailbox import Mailbox, Message, Sender, pack
from wp1.serving.transfer.ipc.prefill import Hold, PrefillOrders, PrefillScheduler, PrefillWorker, Ready

READER = "decode-0"
TOKENS = 16


@pytest.fixture
def boxes(folder: Path) -> dict[str, Mailbox]:
    return {name: Mailbox(folder, f"{READER}.{name}") for name in ("scheduler", "0", "1")}


@pytest.fixture
def scheduler(folder: Path, boxes: dict[str, Mailbox]) -> PrefillScheduler:
    return PrefillScheduler("prefill-0", 2, TOKENS, 60.0, Sender(folder))


def _request(tokens: int, to: str | None = READER) -> Request:
    params = {"do_remote_decode": True, "do_remote_prefill": False, "wp1": {"handoff": "h", "to": to}}
    return Request("r", params, [7] * tokens)


def _step(scheduler: PrefillScheduler, request: Request, tokens: int, grown: list[int] | None = None) -> PrefillOrders:
    orders = scheduler.orders({"r": tokens}, [("r", grown)] if grown else [])
    request.num_computed_tokens += tokens
    return orders


def test_whole_blocks_of_each_chunk_are_announced_once(scheduler: PrefillScheduler) -> None:
    request = _request(100)
    scheduler.allocated(request, [5, 6])
    assert _step(scheduler, request, 20).ready == [Ready("h", READER, 0, 0, [5])]
    assert _step(scheduler, request, 5).ready == []
    assert _step(scheduler, request, 25, [7, 8]).ready == [Ready("h", READER, 0, 1, [6, 7])]
    # The last chunk is announced with its token.
    assert _step(scheduler, request, 50, [9, 10, 11]).ready == []


def test_other_requests_are_left_alone(scheduler: PrefillScheduler, boxes: dict[str, Mailbox]) -> None:
    plain = Request("r", None, [7] * 64)
    scheduler.allocated(plain, [5, 6, 7, 8])
    orders = scheduler.orders({"r": 32}, [("r", [9])])
    assert (orders.ready, orders.holds) == ([], [])
    plain.output_token_ids.append(3)
    assert scheduler.finished(plain, [5], True) is None
    assert all(list(box.waiting()) == [] for box in boxes.values())


def test_a_prompt_without_a_reader_is_held_without_messages(
    scheduler: PrefillScheduler, boxes: dict[str, Mailbox]
) -> None:
    request = _request(40, to=None)
    scheduler.allocated(request, [5, 6, 7])
    assert _step(scheduler, request, 32).ready == []
    _step(scheduler, request, 8)
    request.output_token_ids.append(99)
    params = scheduler.finished(request, [5, 6, 7], True)
    assert params is not None
    assert (params["do_remote_prefill"], params["remote_engine_id"]) == (True, "prefill-0")
    assert params["wp1"]["blocks"] == pack([5, 6, 7])
    assert all(list(box.waiting()) == [] for box in boxes.values())
    [hold] = scheduler.orders({}, []).holds
    assert (hold.request, hold.handoff, hold.blocks) == ("r", "h", [5, 6, 7])
    assert scheduler.orders({}, []).holds == []


def test_the_end_is_announced_to_the_scheduler_and_every_rank(
    scheduler: PrefillScheduler, boxes: dict[str, Mailbox]
) -> None:
    request = _request(40)
    scheduler.allocated(request, [5, 6, 7])
    _step(scheduler, request, 40)
    request.output_token_ids.append(99)
    before = time.monotonic()
    scheduler.finished(request, [5, 6, 7], True)
    for name, box in boxes.items():
        *before_that, message = box.waiting()
        assert before_that == [{"kind": "last", "handoff": "h"}] * name.endswith("scheduler")
        assert (message["kind"], message["handoff"], message["token"]) == ("done", "h", 99)
        assert (message["epoch"], message["blocks"]) == (0, pack([5, 6, 7]))
        assert before + 60 <= message["until"] <= time.monotonic() + 60


def test_the_readers_scheduler_is_told_when_the_last_chunk_begins(
    scheduler: PrefillScheduler, boxes: dict[str, Mailbox]
) -> None:
    heard = [box for name, box in boxes.items() if name.endswith("scheduler")]
    request = _request(40)
    scheduler.allocated(request, [5, 6, 7])
    _step(scheduler, request, 39)
    assert [list(box.waiting()) for box in heard] == [[]]
    _step(scheduler, request, 1)
    assert [list(box.waiting()) for box in heard] == [[{"kind": "last", "handoff": "h"}]]


def test_a_preempted_prompt_begins_a_new_epoch(scheduler: PrefillScheduler, boxes: dict[str, Mailbox]) -> None:
    request = _request(64)
    scheduler.allocated(request, [5, 6])
    _step(scheduler, request, 32)
    request.num_preemptions, request.num_computed_tokens = 1, 0
    scheduler.allocated(request, [8, 9])
    assert _step(scheduler, request, 32).ready == [Ready("h", READER, 1, 0, [8, 9])]
    _step(scheduler, request, 32, [10, 11])
    request.output_token_ids.append(99)
    params = scheduler.finished(request, [8, 9, 10, 11], True)
    assert params is not None
    assert params["wp1"]["epoch"] == 1
    assert [message["epoch"] for message in boxes["0"].waiting()] == [1]


def _as_aborted(request: Request) -> tuple[list[int], bool]:
    return [5, 6, 7], False


def _as_preempted_with_its_token_on_the_way(request: Request) -> tuple[list[int], bool]:
    request.num_preemptions += 1
    return [5, 6, 7], True


def _as_without_its_blocks(request: Request) -> tuple[list[int], bool]:
    return [], True


@pytest.mark.parametrize("ends", [_as_aborted, _as_preempted_with_its_token_on_the_way, _as_without_its_blocks])
def test_a_prompt_without_its_kv_is_announced_as_failed(
    scheduler: PrefillScheduler, boxes: dict[str, Mailbox], ends: Callable[[Request], tuple[list[int], bool]]
) -> None:
    request = _request(40)
    scheduler.allocated(request, [5, 6, 7])
    request.output_token_ids.append(99)
    assert scheduler.finished(request, *ends(request)) is None
    assert scheduler.orders({}, []).holds == []
    for rank in ("0", "1"):
        [message] = boxes[rank].waiting()
        assert message == {"kind": "failed", "handoff": "h", "why": "prefill-0 gave up the prompt"}
    assert list(boxes["scheduler"].waiting()) == []


def test_a_dead_reader_does_not_stop_a_prompt(folder: Path) -> None:
    scheduler = PrefillScheduler("prefill-0", 1, TOKENS, 60.0, Sender(folder))
    request = _request(16)
    scheduler.allocated(request, [5])
    request.output_token_ids.append(99)
    assert scheduler.finished(request, [5], True) is not None


class Worker:
    """A worker with its mailbox, the messages that it sent, and kernels that end on demand."""

    def __init__(self, folder: Path) -> None:
        self.reader = Mailbox(folder, f"{READER}.1")
        self.sender = Sender(folder)
        self.ended: list[bool] = []
        self.worker = PrefillWorker(1, Mailbox(folder, "prefill-0.1"), self.sender, self._mark, sum)

    def _mark(self) -> Callable[[], bool]:
        self.ended.append(False)
        place = len(self.ended) - 1
        return lambda: self.ended[place]

    def obey(self, *, ready: list[Ready] | None = None, holds: list[Hold] | None = None) -> set[str]:
        return self.worker.obey(PrefillOrders(ready or [], holds or []))

    def tell(self, kind: str, handoff: str = "h", **words: Any) -> None:
        assert self.sender.send("prefill-0.1", {"kind": kind, "handoff": handoff, **words})

    def heard(self) -> list[Message]:
        return list(self.reader.waiting())


@pytest.fixture
def worker(folder: Path) -> Worker:
    return Worker(folder)


def _hold(handoff: str = "h", lease_s: float = 60.0) -> Hold:
    return Hold(f"request-{handoff}", handoff, time.monotonic() + lease_s, [5, 6, 7])


def test_a_chunk_is_announced_when_its_kernels_have_ended(worker: Worker) -> None:
    worker.obey(ready=[Ready("h", READER, 0, 0, [5, 6])])
    worker.obey(ready=[Ready("h", READER, 0, 2, [9])])
    assert worker.heard() == []
    worker.ended[1] = True
    worker.obey()
    assert worker.heard() == []  # in order
    worker.ended[0] = True
    worker.obey()
    expected = [(0, pack([5, 6])), (2, pack([9]))]
    assert [(message["first"], message["blocks"]) for message in worker.heard()] == expected


def test_blocks_are_held_until_released_and_freed_once(worker: Worker) -> None:
    assert worker.obey(holds=[_hold(), _hold("i")]) == set()
    worker.tell("release")
    worker.tell("release")
    assert worker.obey() == {"request-h"}
    worker.tell("release")
    assert worker.obey() == set()


def test_a_release_may_come_before_its_hold(worker: Worker) -> None:
    worker.tell("release")
    assert worker.obey() == set()
    assert worker.obey(holds=[_hold()]) == {"request-h"}


def test_blocks_that_are_not_fetched_are_freed_after_their_lease(worker: Worker) -> None:
    grace = prefill.GRACE_S
    assert worker.obey(holds=[_hold(lease_s=-grace + 0.2), _hold("i")]) == set()
    time.sleep(0.25)
    assert worker.obey() == {"request-h"}


def test_checksums_cover_the_requested_blocks_and_wait_for_the_hold(worker: Worker) -> None:
    worker.tell("sum", reader=f"{READER}.1", first=1, blocks=2)
    worker.obey()
    assert worker.heard() == []
    worker.obey(holds=[_hold()])
    assert worker.heard() == [{"kind": "sum", "handoff": "h", "sum": 13}]
    worker.obey()
    assert worker.heard() == []


def test_no_checksum_is_computed_after_a_release(worker: Worker) -> None:
    worker.tell("sum", reader=f"{READER}.1", first=0, blocks=3)
    worker.tell("release")
    worker.obey()
    assert worker.worker._asked == {}
    assert worker.obey(holds=[_hold()]) == {"request-h"}
    assert worker.heard() == []


def test_releases_without_a_hold_are_forgotten_in_time(worker: Worker) -> None:
    worker.worker._released = {str(n): time.monotonic() - 601 for n in range(1200)}
    worker.obey()
    assert len(worker.worker._released) == 1000
