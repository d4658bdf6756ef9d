"""The broker's guarantees for any order of events: no request is lost, and every place is given back."""

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wp1.serving.schedulers.broker import EngineRoom, KVBroker, Pool, PoolLostError, State, Ticket, TooLargeError


def _rooms(phase: str, count: int, requests: int = 2, blocks: int = 10) -> list[EngineRoom]:
    return [EngineRoom(f"{phase}-{n}", requests, blocks, 16) for n in range(count)]


@dataclass
class Job:
    prompt: int
    output: int
    steps: int  # event-loop steps between its events
    given_up: int | None  # index of the await at which it is cancelled


JOBS = st.lists(
    st.builds(
        Job,
        prompt=st.integers(1, 100),
        output=st.integers(1, 59),
        steps=st.integers(0, 4),
        given_up=st.none() | st.integers(0, 12),
    ),
    min_size=1,
    max_size=40,
)


@given(
    jobs=JOBS,
    prefill=st.integers(1, 3),
    decode=st.integers(1, 3),
    routing=st.sampled_from(["round_robin", "least_loaded"]),
)
@settings(max_examples=200, deadline=None)
def test_every_request_completes_or_is_cancelled_and_frees_its_places(
    jobs: list[Job], prefill: int, decode: int, routing: str
) -> None:
    # One decode engine's blocks hold exactly the largest request.
    broker = KVBroker(_rooms("prefill", prefill), _rooms("decode", decode), routing)
    order: list[tuple[int, str]] = []

    async def one(number: int, job: Job) -> None:
        ticket = await broker.prefill(job.prompt, job.prompt + job.output)
        try:
            await _steps(job.steps)
            broker.prefilled(ticket)
            order.append((number, "prefilled"))
            await broker.decode(ticket)
            await _steps(job.steps)
            broker.moved(ticket)
            order.append((number, "moved"))
            await _steps(job.steps)
        finally:
            _within_bounds(broker)
            broker.end(ticket)
        order.append((number, "done"))

    async def all_() -> None:
        tasks = [asyncio.create_task(one(number, job)) for number, job in enumerate(jobs)]
        for step in range(13):
            await asyncio.sleep(0)
            for task, job in zip(tasks, jobs, strict=True):
                if job.given_up == step:
                    task.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks, return_exceptions=True)
        for number, (task, job) in enumerate(zip(tasks, jobs, strict=True)):
            if not task.cancelled():
                assert task.exception() is None
                # A request is decoded only after its KV was computed and moved.
                assert [event for n, event in order if n == number] == ["prefilled", "moved", "done"]
            else:
                assert job.given_up is not None

    asyncio.run(all_())
    assert broker.blocks_held() == (0, 0)
    assert set(broker.lengths().values()) == {0}


def _within_bounds(broker: KVBroker) -> None:
    for pool in (broker._prefill, broker._decode):
        for seats in pool._order:
            assert 0 <= seats.requests <= seats.room.requests
            assert 0 <= seats.blocks <= seats.room.blocks


async def _steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_first_come_first_served_even_behind_a_large_one() -> None:
    async def go() -> list[str]:
        pool = Pool("decode", _rooms("decode", 1), "round_robin")
        await pool.enter(100)
        served: list[str] = []

        async def enter(name: str, tokens: int) -> None:
            await pool.enter(tokens)
            served.append(name)

        waiting = [asyncio.create_task(enter("large", 150)), asyncio.create_task(enter("small", 16))]
        await _steps(3)
        assert served == []
        assert pool.waiting == 2
        pool.leave("decode-0", 100)
        await _steps(3)
        assert served == ["large"]
        pool.leave("decode-0", 150)
        await asyncio.gather(*waiting)
        return served

    assert asyncio.run(go()) == ["large", "small"]


def test_a_large_request_that_is_cancelled_lets_the_next_pass() -> None:
    async def go() -> None:
        pool = Pool("decode", _rooms("decode", 1), "round_robin")
        await pool.enter(100)
        large, small = asyncio.create_task(pool.enter(150)), asyncio.create_task(pool.enter(16))
        await _steps(2)
        large.cancel()
        assert await asyncio.wait_for(small, 1) == "decode-0"
        assert pool.waiting == 0

    asyncio.run(go())


@pytest.mark.parametrize(("routing", "engines"), [("round_robin", [0, 1, 0, 1]), ("least_loaded", [0, 1, 1, 0])])
def test_routing(routing: str, engines: list[int]) -> None:
    async def go() -> list[str]:
        pool = Pool("decode", _rooms("decode", 2, requests=9, blocks=99), routing)
        chosen = [await pool.enter(1), await pool.enter(1)]
        pool.leave("decode-1", 1)
        return [*chosen, await pool.enter(1), await pool.enter(1)]

    assert asyncio.run(go()) == [f"decode-{n}" for n in engines]


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    broker = KVBroker(_rooms("prefill", 1), _rooms("decode", 1, blocks=3), "round_robin")
    with pytest.raises(TooLargeError, match="needs 4 KV blocks and a decode engine has 3"):
        asyncio.run(broker.prefill(16, 49))


def test_all_waiters_fail_when_the_last_engine_dies() -> None:
    async def go() -> None:
        broker = KVBroker(_rooms("prefill", 1, requests=1), _rooms("decode", 1), "round_robin")
        await broker.prefill(1, 2)
        waiting = asyncio.create_task(broker.prefill(1, 2))
        await _steps(2)
        broker.lose("prefill-0")
        with pytest.raises(PoolLostError, match="no prefill engine is left"):
            await waiting
        with pytest.raises(PoolLostError):
            await broker.prefill(1, 2)

    asyncio.run(go())


def test_calls_out_of_order_are_refused() -> None:
    async def go() -> None:
        broker = KVBroker(_rooms("prefill", 1), _rooms("decode", 1), "round_robin")
        ticket = await broker.prefill(1, 2)
        with pytest.raises(AssertionError):
            await broker.decode(ticket)
        with pytest.raises(AssertionError):
            broker.moved(ticket)
        broker.prefilled(ticket)
        broker.end(ticket)
        broker.end(ticket)
        assert ticket.state is State.ENDED
        assert broker.blocks_held() == (0, 0)

    asyncio.run(go())
    assert Ticket(1, 2).state is State.WAITING
