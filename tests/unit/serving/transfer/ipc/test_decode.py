"""What a decode engine fetches, when its requests continue, and what it gives up."""

import time
from pathlib import Path

import pytest

from tests.stress.engines import Request
from wp1.serving.transfer.ipc import decode
from wp1.serving.transfer.ipc.decode import DecodeScheduler
from wp1.serving.transfer.ipc.mailbox import Mailbox, Message, Sender, pack
from wp1.serving.transfer.ipc.receiver import Load, in_advance

SOURCE, TOKENS = "prefill-0", 16
DONE = {"handoff": "h", "epoch": 0, "blocks": pack([5, 6, 7]), "until": 1e12, "token": 99}


class World:
    def __init__(self, folder: Path) -> None:
        self.advanced: list[Message] = []
        self.scheduler = DecodeScheduler(Mailbox(folder, "decode-0.scheduler"), TOKENS, to_workers=self.advanced.append)
        self.sender = Sender(folder)

    def say_done(self, handoff: str = "h", token: int = 99) -> Message:
        message = {"kind": "done"} | DONE | {"handoff": handoff, "token": token}
        assert self.sender.send("decode-0.scheduler", message)
        return message

    def at_once(self, tokens: int = 40) -> None:
        self.scheduler._at_once_tokens = tokens


@pytest.fixture
def world(folder: Path) -> World:
    return World(folder)


def _early(tokens: int, wants_token: bool = True, handoff: str = "h", name: str = "r") -> Request:
    params = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_engine_id": SOURCE,
        "wp1_tokens": tokens,
        "wp1": {"handoff": handoff, "wants_token": wants_token},
    }
    return Request(name, params, [7] * tokens + [0] * wants_token)


def _late(tokens: int) -> Request:
    params = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_engine_id": SOURCE,
        "wp1_tokens": tokens,
        "wp1": DONE,
    }
    return Request("r", params, [7] * tokens + [99])


def test_a_load_covers_the_blocks_that_the_prompt_fills(world: World) -> None:
    request = _late(40)
    assert world.scheduler.to_come(request, 0) == (40, True)
    world.scheduler.allocated(request, [1, 2, 3, 4], 40)
    assert world.scheduler.take_kept() == [("h", 0)]
    assert world.scheduler.take_kept() == []
    orders = world.scheduler.orders(())
    assert orders.loads == [Load("r", "h", SOURCE, 0, [1, 2, 3], DONE)]
    assert orders.given_up == []
    assert world.scheduler.orders(()).loads == []


def test_the_beginning_is_cached(world: World) -> None:
    request = _early(40)
    assert world.scheduler.to_come(request, 16) == (24, True)
    world.scheduler.allocated(request, [1, 2, 3], 24)
    assert world.scheduler.take_kept() == [("h", 16)]
    assert world.scheduler.orders(()).loads == [Load("r", "h", SOURCE, 1, [2, 3], None)]


def test_other_requests_are_left_alone(world: World) -> None:
    for params in (None, {"do_remote_prefill": False}):
        request = Request("r", params, [7] * 20)
        assert world.scheduler.to_come(request, 0) == (0, False)
        world.scheduler.allocated(request, [1, 2], 0)
        world.scheduler.finished(request)
        orders = world.scheduler.orders(["other"])
        assert (orders.loads, orders.given_up) == ([], [])


def test_the_first_token_replaces_its_placeholder(world: World) -> None:
    request = _early(40)
    world.scheduler.allocated(request, [1, 2, 3], 40)
    world.say_done()
    world.scheduler.arrived({"r", "somebody else's"})
    assert request.prompt_token_ids == request._all_token_ids == [7] * 40 + [99]
    assert world.scheduler._done == {}


def test_a_token_that_is_not_wanted_is_not_inserted(world: World) -> None:
    request = _early(40, wants_token=False)
    world.scheduler.allocated(request, [1, 2, 3], 40)
    world.say_done()
    world.scheduler.arrived({"r"})
    assert request.prompt_token_ids == [7] * 40


def test_decoding_never_begins_with_an_unknown_token(world: World) -> None:
    world.scheduler.allocated(request := _early(40), [1, 2, 3], 40)
    with pytest.raises(RuntimeError, match="handoff h is here and its first token is not known"):
        world.scheduler.arrived({request.request_id})


def test_hashes_of_the_placeholders_block_are_recomputed(world: World) -> None:
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
    """The prefill engine's blocks are free by then."""
    request = _late(40)
    world.scheduler.allocated(request, [1, 2, 3], 40)
    world.scheduler.orders(())
    world.scheduler.arrived({"r"})
    request.num_preemptions, request.num_computed_tokens = 1, 0
    assert world.scheduler.to_come(request, 0) == (0, False)
    world.scheduler.allocated(request, [4, 5, 6], 0)
    world.scheduler.finished(request)
    orders = world.scheduler.orders(())
    assert (orders.loads, orders.given_up) == ([], [])


def test_a_fully_cached_prompt_waits_for_its_token_and_releases_its_source(world: World) -> None:
    request = _early(32)
    assert world.scheduler.to_come(request, 32) == (None, False)
    world.say_done()
    assert world.scheduler.to_come(request, 32) == (0, False)
    world.scheduler.allocated(request, [1, 2, 3], 0)
    assert request.prompt_token_ids[-1] == 99
    orders = world.scheduler.orders(["other"])
    assert (orders.loads, orders.given_up) == ([], [("h", SOURCE)])
    request.num_computed_tokens = 33
    world.scheduler.finished(request)
    assert world.scheduler.orders(()).given_up == []


@pytest.mark.parametrize("allocated", [False, True])
def test_a_request_that_ends_before_its_kv_arrives_gives_it_up(world: World, allocated: bool) -> None:
    request = _early(40)
    if allocated:
        world.scheduler.allocated(request, [1, 2, 3], 40)
        request.num_computed_tokens = 40
        world.scheduler.orders(())
    world.scheduler.finished(request)
    orders = world.scheduler.orders(())
    assert (orders.loads, orders.given_up) == ([], [("h", SOURCE)])
    world.scheduler.arrived({"r"})  # the load's end, as reported by the worker
    assert world.scheduler.orders(()).given_up == []


def test_tokens_of_aborted_requests_are_not_kept_forever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "REMEMBERED", 5)
    for n in range(9):
        world.say_done(str(n), n)
        world.scheduler.arrived(set())
    assert list(world.scheduler._done) == [str(n) for n in range(4, 9)]


def _seconds(world: World, steps: int = 1, *scheduled: str) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
        world.scheduler.orders(scheduled)
    return time.perf_counter() - begin


def test_an_engine_with_nothing_else_to_do_blocks_while_it_waits(world: World) -> None:
    world.scheduler.allocated(_early(40), [1, 2, 3], 40)
    world.scheduler.orders(())
    for _ in range(decode.IDLE_STEPS):
        world.scheduler.orders(())
    assert _seconds(world, 4) >= 4 * decode.IDLE_WAIT_S
    # It waits neither while others decode nor once the message has arrived.
    waits = [_seconds(world, 4, "other")]
    world.scheduler._idle = decode.IDLE_STEPS + 1
    world.say_done()
    waits.append(_seconds(world, 4))
    assert min(waits) < 4 * decode.IDLE_WAIT_S


def test_an_idle_engine_fetches_a_short_prompt_within_its_step(world: World) -> None:
    world.at_once()
    request = _early(40)
    assert world.scheduler.to_come(request, 0) == (None, False)
    assert world.scheduler.orders(()).loads == []
    done = world.say_done()
    assert world.scheduler.to_come(request, 0) == (40, False)
    # vLLM hashes the blocks that the prompt fills when it allocates them.
    assert request.prompt_token_ids == request._all_token_ids == [7] * 40 + [99]
    world.scheduler.allocated(request, [1, 2, 3], 40)
    assert world.scheduler.orders(["other"]).loads == [Load("r", "h", SOURCE, 0, [1, 2, 3], done, at_once=True)]
    assert world.scheduler._done == world.scheduler._at_once == {}
    world.scheduler.finished(request)
    assert world.scheduler.orders(()).given_up == []


@pytest.mark.parametrize("computed", [0, 16, 32])
def test_the_last_token_of_a_complete_prompt_is_computed_again(world: World, computed: int) -> None:
    world.at_once(48)
    request = _early(48, wants_token=False)
    world.say_done()
    assert world.scheduler.to_come(request, computed) == (47 - computed, False)
    world.scheduler.allocated(request, [1, 2, 3], 47 - computed)
    assert world.scheduler.take_kept() == [("h", computed)]
    [load] = world.scheduler.orders(["other"]).loads
    # All of its blocks are fetched nevertheless: the last is complete only with the source's part.
    assert (load.first, load.blocks) == (computed // 16, [1, 2, 3][computed // 16 :])


def test_all_but_the_last_token_is_cached(world: World) -> None:
    """Nothing is fetched then, and the source is released."""
    world.at_once()
    request = _early(33, wants_token=False)
    world.say_done()
    assert world.scheduler.to_come(request, 32) == (0, False)
    world.scheduler.allocated(request, [1, 2, 3], 0)
    # The last block is not fetched either: its only token is computed here.
    assert world.scheduler.take_kept() == [("h", 33)]
    orders = world.scheduler.orders(["other"])
    assert (orders.loads, orders.given_up) == ([], [("h", SOURCE)])


def test_a_prompt_that_is_already_done_needs_no_message(world: World) -> None:
    world.at_once()
    request = _late(40)
    assert world.scheduler.to_come(request, 16) == (24, False)
    world.scheduler.allocated(request, [1, 2, 3], 24)
    assert world.scheduler.orders(["other"]).loads == [Load("r", "h", SOURCE, 1, [2, 3], DONE, at_once=True)]


def test_decoding_requests_never_wait_for_a_copy(world: World) -> None:
    world.at_once()
    other = Request("other", None, [7] * 20)
    world.scheduler.allocated(other, [8, 9], 0)
    assert world.scheduler.to_come(_late(40), 0) == (40, True)
    world.scheduler.finished(other)
    assert world.scheduler.to_come(_late(40), 0) == (40, False)
    world.scheduler.allocated(taken := _late(40), [1, 2, 3], 40)
    assert world.scheduler.to_come(_late(40), 0) == (40, True)
    world.scheduler.finished(taken)
    # Nor is a long prompt fetched within a step.
    assert world.scheduler.to_come(_late(41), 0) == (41, True)


def test_a_request_that_gets_no_blocks_is_asked_again(world: World) -> None:
    world.at_once()
    request = _early(40)
    world.say_done()
    assert world.scheduler.to_come(request, 0) == (40, False)
    # There was no room; by the time there is, another request is decoding.
    world.scheduler.allocated(Request("other", None, [7] * 20), [8, 9], 0)
    assert world.scheduler.to_come(request, 0) == (40, True)
    world.scheduler.allocated(request, [1, 2, 3], 40)
    assert world.scheduler.orders(["other"]).loads == [Load("r", "h", SOURCE, 0, [1, 2, 3], None)]
    world.scheduler.arrived({"r"})
    assert request.prompt_token_ids[-1] == 99


def test_a_request_aborted_before_its_prompt_is_done_gives_it_up(world: World) -> None:
    world.at_once()
    request = _early(40)
    world.scheduler.to_come(request, 0)
    world.scheduler.finished(request)
    orders = world.scheduler.orders(())
    assert (orders.loads, orders.given_up) == ([], [("h", SOURCE)])


@pytest.fixture
def long_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """So long that a busy machine's pauses do not matter."""
    monkeypatch.setattr(decode, "IDLE_WAIT_S", 0.25)


@pytest.mark.usefixtures("long_wait")
def test_an_engine_listens_for_a_short_prompt_once_a_step(world: World) -> None:
    world.at_once()
    request = _early(40)
    for _ in range(decode.IDLE_STEPS + 1):
        world.scheduler.to_come(request, 0)
        world.scheduler.orders(())
    begin = time.perf_counter()
    world.scheduler.to_come(request, 0)
    first = time.perf_counter() - begin
    world.scheduler.to_come(request, 0)
    assert time.perf_counter() - begin - first < first
    assert first >= decode.IDLE_WAIT_S
    # The message ends the wait.
    world.scheduler.orders(())
    world.say_done()
    assert world.scheduler.to_come(request, 0) == (40, False)


@pytest.mark.usefixtures("long_wait")
@pytest.mark.parametrize("long", ["early", "late"])
def test_kv_of_a_done_prompt_does_not_wait_for_other_prompts(world: World, long: str) -> None:
    """Two steps are between its end and its first token; neither may wait for another prompt's message."""
    world.at_once()
    request = _early(400, handoff="long", name="long") if long == "early" else _late(400)
    world.scheduler.allocated(request, list(range(1, 30)), 400)
    world.scheduler.orders(())
    world.say_done("long")
    world.scheduler._idle = decode.IDLE_STEPS + 1
    short = _early(40, handoff="short", name="short")
    begin = time.perf_counter()
    for _ in range(4):
        assert world.scheduler.to_come(short, 0) == (None, False)
        world.scheduler.orders(())
    assert time.perf_counter() - begin < 2 * decode.IDLE_WAIT_S  # and not four times that
    # Once it decodes, the short one's blocks are fetched in the background.
    world.scheduler.arrived({request.request_id})
    assert world.scheduler.to_come(short, 0) == (40, True)


@pytest.mark.parametrize(("idle", "scheduled"), [(decode.IDLE_STEPS + 1, ()), (decode.IDLE_STEPS, ()), (9, ("other",))])
def test_an_idle_step_waits_for_kv_that_is_about_to_arrive(world: World, idle: int, scheduled: tuple[str, ...]) -> None:
    for name in ("done", "not-done"):
        world.scheduler.allocated(_early(400, handoff=name, name=name), list(range(1, 30)), 400)
    world.scheduler.orders(())
    world.say_done("done")
    world.scheduler._idle = idle
    at_rest = idle > decode.IDLE_STEPS and not scheduled
    assert world.scheduler.orders(scheduled).soon == ["done"] * at_rest
    world.scheduler.arrived({"done"})
    assert world.scheduler.orders(()).soon == []


class Foreseeing:
    """An idle engine that waits for one prompt, whose last chunk is being computed."""

    def __init__(self, world: World, wants_token: bool = False, last: bool = True) -> None:
        self.world = world
        world.at_once()
        self.request = _early(400, wants_token=wants_token)
        assert world.scheduler.to_come(self.request, 0) == (400, True)
        world.scheduler.allocated(self.request, list(range(1, 26)), 400)
        world.scheduler.orders(())
        if last:
            world.sender.send("decode-0.scheduler", {"kind": "last", "handoff": "h"})
        world.scheduler._idle = decode.IDLE_STEPS + 1

    def ahead(self, *scheduled: str) -> list[tuple[str, str]]:
        return self.world.scheduler.orders(scheduled).ahead


@pytest.mark.usefixtures("long_wait")
def test_kv_is_reported_early_during_the_last_chunk_and_its_step_waits_for_it(world: World) -> None:
    foreseeing = Foreseeing(world)
    begin = time.perf_counter()
    assert foreseeing.ahead() == [("r", "h")]
    assert foreseeing.ahead() == []
    assert time.perf_counter() - begin < decode.IDLE_WAIT_S  # there is no other wait then
    world.scheduler.arrived({"r"})
    assert world.scheduler.orders(["other"]).needed == []
    assert world.scheduler.orders(["r"]).needed == ["h"]
    assert world.scheduler.orders(["r"]).needed == []
    world.scheduler.finished(foreseeing.request)
    orders = world.scheduler.orders(())
    assert (orders.needed, orders.given_up, world.scheduler._last) == ([], [], {})


def test_messages_after_kv_was_reported_early_are_not_kept(world: World) -> None:
    foreseeing = Foreseeing(world)
    assert foreseeing.ahead() == [("r", "h")]
    world.scheduler.arrived({"r"})
    world.scheduler.orders(["r"])
    for kind in ("last", "done"):  # "last" comes again if the prompt was preempted meanwhile
        world.sender.send("decode-0.scheduler", {"kind": kind, "handoff": "h"})
    world.scheduler.finished(foreseeing.request)
    assert world.scheduler._done == world.scheduler._last == {}
    assert world.scheduler.orders(()).given_up == []


def test_no_step_waits_for_a_prompt_before_its_last_chunk(world: World) -> None:
    assert Foreseeing(world, last=False).ahead() == []


def test_no_step_waits_for_a_token_that_it_begins_with(world: World) -> None:
    assert Foreseeing(world, wants_token=True).ahead() == []


def test_no_step_waits_while_another_step_is_computing(world: World) -> None:
    foreseeing = Foreseeing(world)
    assert foreseeing.ahead("other") == []
    for _ in range(decode.IDLE_STEPS):
        assert foreseeing.ahead() == []


def test_no_step_waits_while_other_requests_decode(world: World) -> None:
    foreseeing = Foreseeing(world)
    world.scheduler.allocated(Request("other", None, [7] * 20), [40, 41], 0)
    assert foreseeing.ahead() == []


def test_no_step_waits_if_other_requests_wait_too(world: World) -> None:
    foreseeing = Foreseeing(world)
    world.scheduler.allocated(_early(400, handoff="i", name="other"), list(range(30, 60)), 400)
    world.scheduler._orders.loads.clear()
    assert foreseeing.ahead() == []


def test_no_step_waits_if_another_engine_may_end_its_prompts_earlier(world: World) -> None:
    foreseeing = Foreseeing(world)
    other = _late(400)
    assert other.kv_transfer_params is not None
    other.kv_transfer_params["remote_engine_id"] = "prefill-1"
    world.scheduler.to_come(other, 0)
    assert foreseeing.ahead() == []


def test_no_step_waits_if_nothing_is_fetched_within_steps(world: World) -> None:
    foreseeing = Foreseeing(world)
    world.at_once(0)
    assert foreseeing.ahead() == []


def test_no_step_waits_if_other_requests_can_find_blocks_reported_early(world: World) -> None:
    """With prefix caching, if a request is aborted while its step waits, its blocks have no KV."""
    foreseeing = Foreseeing(world)
    world.scheduler._foresees = False
    assert foreseeing.ahead() == []


@pytest.mark.parametrize("arrived", [False, True])
def test_after_an_abort_of_kv_reported_early_the_next_step_waits_for_its_blocks(world: World, arrived: bool) -> None:
    """vLLM considers them free from then on, and a copy may still be in flight."""
    foreseeing = Foreseeing(world)
    assert foreseeing.ahead() == [("r", "h")]
    if arrived:
        world.scheduler.arrived({"r"})
    world.scheduler.finished(foreseeing.request)
    orders = world.scheduler.orders(())
    assert (orders.needed, orders.given_up) == (["h"], [("h", SOURCE)])
    assert not world.scheduler._ahead


def test_an_engine_listens_for_the_token_of_a_fully_cached_prompt(world: World) -> None:
    request = _early(32)
    world.scheduler._idle = decode.IDLE_STEPS + 1
    begin = time.perf_counter()
    assert world.scheduler.to_come(request, 32) == (None, False)
    assert time.perf_counter() - begin >= decode.IDLE_WAIT_S


@pytest.mark.parametrize("asked", [False, True])
def test_nothing_is_kept_of_ended_handoffs(world: World, asked: bool) -> None:
    """Even if the first token was the last, so that the request ends before its message is read."""
    world.at_once()
    for n in range(20):
        request = _early(40, handoff=str(n), name=str(n))
        if asked:
            world.scheduler.to_come(request, 0)
        world.say_done(str(n))
        # A third of the requests get this far, and another third get their blocks.
        if n % 3 and world.scheduler.to_come(request, 0) == (40, False) and n % 3 == 1:
            world.scheduler.allocated(request, [1, 2, 3], 40)
            world.scheduler.orders(["other"])
        world.scheduler.finished(request)
        world.scheduler.orders(())
    left = world.scheduler
    assert left._done == left._waiting == left._at_once == {}
    assert left._decoding == set()


@pytest.mark.parametrize("idle", [decode.IDLE_STEPS, decode.IDLE_STEPS + 1])
def test_a_copy_starts_in_advance_once_no_step_can_be_in_flight(world: World, idle: int) -> None:
    world.at_once()
    request = _early(40)
    for _ in range(idle):
        world.scheduler.to_come(request, 0)
        world.scheduler.orders(())
    done = world.say_done()
    world.scheduler.to_come(request, 0)
    world.scheduler.allocated(request, [1, 2, 3], 40)
    [load] = world.scheduler.orders(["other"]).loads
    assert load == Load("r", "h", SOURCE, 0, [1, 2, 3], done, at_once=True)
    assert world.advanced == [in_advance(load)] * (idle > decode.IDLE_STEPS)


def test_no_copy_starts_in_advance_while_an_aborted_copy_may_write_to_the_same_blocks(world: World) -> None:
    foreseeing = Foreseeing(world)
    assert foreseeing.ahead() == [("r", "h")]
    world.scheduler.arrived({"r"})
    world.scheduler.finished(foreseeing.request)  # vLLM allocates its blocks to the next request
    world.scheduler._idle = decode.IDLE_STEPS + 1
    other = _late(40)
    assert world.scheduler.to_come(other, 0) == (40, False)
    world.scheduler.allocated(other, [1, 2, 3], 40)
    assert world.advanced == []
    orders = world.scheduler.orders(["r"])
    assert (orders.needed, len(orders.loads)) == (["h"], 1)
