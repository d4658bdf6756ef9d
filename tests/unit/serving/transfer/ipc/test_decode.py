"""What a decode engine asks for, when it goes on, and what it gives up."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.stress.engines import Request
from wp1.serving.transfer.ipc import decode
from wp1.serving.transfer.ipc.decode import DecodeScheduler
from wp1.serving.transfer.ipc.mailbox import Mailbox, Sender
from wp1.serving.transfer.ipc.receiver import Load

SOURCE, TOKENS = "prefill-0", 16
DONE = {"handoff": "h", "epoch": 0, "blocks": [[5, 3]], "until": 1e12, "token": 99}


class World:
    def __init__(self, folder: Path) -> None:
        self.scheduler = DecodeScheduler(Mailbox(folder, "decode-0.scheduler"), TOKENS)
        self.sender = Sender(folder)

    def say_done(self, handoff: str = "h", token: int = 99) -> None:
        assert self.sender.send("decode-0.scheduler", {"kind": "done", "handoff": handoff, "token": token})


@pytest.fixture
def world(folder: Path) -> World:
    return World(folder)


def _early(tokens: int, wants_token: bool = True) -> Request:
    params = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_engine_id": SOURCE,
        "wp1_tokens": tokens,
        "wp1": {"handoff": "h", "wants_token": wants_token},
    }
    return Request("r", params, [7] * tokens + [0] * wants_token)


def _late(tokens: int) -> Request:
    params = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_engine_id": SOURCE,
        "wp1_tokens": tokens,
        "wp1": DONE,
    }
    return Request("r", params, [7] * tokens + [99])


def test_a_load_is_of_the_blocks_that_the_prompt_fills(world: World) -> None:
    request = _late(40)
    assert world.scheduler.to_come(request, 0) == 40
    world.scheduler.allocated(request, [1, 2, 3, 4], 40)
    orders = world.scheduler.orders(0)
    assert orders.loads == [Load("r", "h", SOURCE, 0, [1, 2, 3], DONE)]
    assert orders.given_up == []
    assert world.scheduler.orders(0).loads == []


def test_the_beginning_is_cached(world: World) -> None:
    request = _early(40)
    assert world.scheduler.to_come(request, 16) == 24
    world.scheduler.allocated(request, [1, 2, 3], 24)
    assert world.scheduler.orders(0).loads == [Load("r", "h", SOURCE, 1, [2, 3], None)]


def test_other_requests_are_left_alone(world: World) -> None:
    for params in (None, {"do_remote_prefill": False}):
        request = Request("r", params, [7] * 20)
        assert world.scheduler.to_come(request, 0) == 0
        world.scheduler.allocated(request, [1, 2], 0)
        world.scheduler.finished(request)
        orders = world.scheduler.orders(20)
        assert (orders.loads, orders.given_up) == ([], [])


def test_the_first_token_is_put_in_its_place(world: World) -> None:
    request = _early(40)
    world.scheduler.allocated(request, [1, 2, 3], 40)
    world.say_done()
    world.scheduler.arrived({"r", "somebody else's"})
    assert request.prompt_token_ids == request._all_token_ids == [7] * 40 + [99]
    assert world.scheduler._tokens == {}


def test_a_token_that_nobody_wants_stays_out(world: World) -> None:
    request = _early(40, wants_token=False)
    world.scheduler.allocated(request, [1, 2, 3], 40)
    world.say_done()
    world.scheduler.arrived({"r"})
    assert request.prompt_token_ids == [7] * 40


def test_decoding_never_begins_with_a_token_that_is_not_known(world: World) -> None:
    world.scheduler.allocated(request := _early(40), [1, 2, 3], 40)
    with pytest.raises(RuntimeError, match="handoff h is here and its first token is not known"):
        world.scheduler.arrived({request.request_id})


def test_hashes_of_the_block_with_that_place_are_made_anew(world: World) -> None:
    class Hashed(Request):
        def update_block_hashes(self) -> None:
            self.block_hashes.append(tuple(self._all_token_ids[16 * len(self.block_hashes) :][:16]))

    params = _early(31).kv_transfer_params
    request = Hashed("r", params, [7] * 31 + [0])
    request.update_block_hashes()
    request.update_block_hashes()
    world.scheduler.allocated(request, [1, 2], 31)
    world.say_done()
    world.scheduler.arrived({"r"})
    assert request.block_hashes == [(7,) * 16, (7,) * 15 + (99,)]


def test_a_preempted_request_computes_its_prompt_itself(world: World) -> None:
    """The source's blocks are free by then."""
    request = _late(40)
    world.scheduler.allocated(request, [1, 2, 3], 40)
    world.scheduler.orders(0)
    world.scheduler.arrived({"r"})
    request.num_preemptions, request.num_computed_tokens = 1, 0
    assert world.scheduler.to_come(request, 0) == 0
    world.scheduler.allocated(request, [4, 5, 6], 0)
    world.scheduler.finished(request)
    orders = world.scheduler.orders(0)
    assert (orders.loads, orders.given_up) == ([], [])


def test_a_prompt_that_is_cached_whole_waits_for_its_token_and_releases_its_source(world: World) -> None:
    request = _early(32)
    assert world.scheduler.to_come(request, 32) is None
    world.say_done()
    assert world.scheduler.to_come(request, 32) == 0
    world.scheduler.allocated(request, [1, 2, 3], 0)
    assert request.prompt_token_ids[-1] == 99
    orders = world.scheduler.orders(1)
    assert (orders.loads, orders.given_up) == ([], [("h", SOURCE)])
    request.num_computed_tokens = 33
    world.scheduler.finished(request)
    assert world.scheduler.orders(0).given_up == []


@pytest.mark.parametrize("allocated", [False, True])
def test_a_request_that_ends_before_its_kv_came_gives_it_up(world: World, allocated: bool) -> None:
    request = _early(40)
    if allocated:
        world.scheduler.allocated(request, [1, 2, 3], 40)
        request.num_computed_tokens = 40
        world.scheduler.orders(0)
    world.scheduler.finished(request)
    orders = world.scheduler.orders(0)
    assert (orders.loads, orders.given_up) == ([], [("h", SOURCE)])
    world.scheduler.arrived({"r"})  # the load's end, which the worker says
    assert world.scheduler.orders(0).given_up == []


def test_tokens_of_requests_that_were_given_up_are_not_kept_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "REMEMBERED", 5)
    for n in range(9):
        world.say_done(str(n), n)
        world.scheduler.arrived(set())
    assert world.scheduler._tokens == {str(n): n for n in range(4, 9)}


def _seconds(world: World, steps: int = 1, **words: Any) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
        world.scheduler.orders(words.get("scheduled", 0))
    return time.perf_counter() - begin


def test_an_engine_that_only_waits_does_so_in_peace(world: World) -> None:
    world.scheduler.allocated(_early(40), [1, 2, 3], 40)
    world.scheduler.orders(0)
    for _ in range(decode.IDLE_STEPS):
        world.scheduler.orders(0)
    assert _seconds(world, 4) >= 4 * decode.IDLE_WAIT_S
    # Neither while others decode, nor once the word is there.
    waits = [_seconds(world, 4, scheduled=1)]
    world.scheduler._idle = decode.IDLE_STEPS + 1
    world.say_done()
    waits.append(_seconds(world, 4))
    assert min(waits) < 4 * decode.IDLE_WAIT_S
