"""A request's path through two pools: its record, the ledger, and faults in each phase."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.double import DoubleBackend, fresh
from wp1.core.records import Handoff, QueueLengths, Request, RequestRecord, new_record
from wp1.serving.backend import Chunk, EngineInfo, EngineTimes
from wp1.serving.schedulers.broker import KVBroker, Ticket
from wp1.serving.schedulers.disaggregated import DisaggregatedScheduler
from wp1.serving.schedulers.handover import Handover
from wp1.serving.schedulers.ledger import Ledger
from wp1.serving.transfer import Pools, TransferReport
from wp1.serving.transfer.nixl import NixlTransfer

KV_BYTES = 100
PROMPT = list(range(40))


@pytest.fixture
def backend() -> type[DoubleBackend]:
    return fresh()


class World:
    """A scheduler over doubles, and what it wrote."""

    def __init__(self, backend: Any, **settings: Any) -> None:
        self.backend = backend
        self.written: list[Handoff | QueueLengths] = []
        transfer = NixlTransfer(
            name="nixl_pull",
            pools=Pools(1, 1, None),
            direction=settings.pop("direction", "pull"),
            timeout_s=settings.pop("timeout_s", 5.0),
            environment={},
            extra={},
        )
        defaults = {"prefill": 1, "decode": 1, "routing": "round_robin", "first_token": "prefill", "max_prefilled": 4,
                    "decode_tensor_parallel": None, "kv_bytes_per_token": KV_BYTES}  # fmt: skip
        self.scheduler = DisaggregatedScheduler(
            **(defaults | settings),
            name="disagg",
            tensor_parallel=1,
            devices="auto",
            transfer=transfer,
            lease_s=5,
            make_backend=lambda **words: backend(model=SimpleNamespace(kv_bytes_per_token=KV_BYTES), **words),
            write=self.written.append,
        )

    def engine(self, name: str) -> DoubleBackend:
        return self.backend.engines[name]

    @property
    def handoffs(self) -> list[Handoff]:
        return [row for row in self.written if isinstance(row, Handoff)]

    async def serve(self, n: int = 0, tokens: int = 5, timeout_s: float = 5, prompt: Any = None) -> RequestRecord:
        request = Request(f"r{n}", "disagg", "cell", 0, prompt or PROMPT, tokens, seed=n, timeout_s=timeout_s)
        record = new_record(request, 0.0)
        await self.scheduler.serve(request, record)
        return record


def _run(world: World, body: Callable[[], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        async with world.scheduler:
            result = await body()
            held = await world.scheduler.kv_free(within_s=1)
            assert all(held.values()), held
            assert world.scheduler._pools.broker is not None
            assert world.scheduler._pools.broker.blocks_held() == (0, 0)
            return result

    return asyncio.run(asyncio.wait_for(go(), 20))


def test_tokens_are_those_of_one_engine_and_the_route_is_logged(backend: type[DoubleBackend]) -> None:
    world = World(backend)
    record = _run(world, lambda: world.serve(7))
    assert (record.status, record.phase, record.token_ids) == ("ok", None, [7, 8, 9, 10, 11])
    assert record.text == "7 8 9 10 11 "
    assert (record.prompt_tokens, record.output_tokens, record.finish_reason) == (40, 5, "length")
    assert (record.prefill_engine, record.decode_engine) == ("prefill-0", "decode-0")
    times = [record.t_sent, record.t_scheduled, record.t_engine_first_token, record.t_decode_sent,
             record.t_decode_first_token, record.t_engine_last_token, record.t_end]  # fmt: skip
    assert times == sorted(times)  # type: ignore[type-var]


def test_a_handoff_is_accounted_for(backend: type[DoubleBackend]) -> None:
    world = World(backend)
    record = _run(world, world.serve)
    [handoff] = world.handoffs
    assert (handoff.status, handoff.error) == ("ok", None)
    assert (handoff.handoff_id, handoff.request_id) == (record.handoff_id, "r0")
    assert (handoff.source, handoff.target, handoff.transfer) == ("prefill-0", "decode-0", "nixl_pull")
    # 40 tokens fill three blocks of 16.
    assert (handoff.tokens, handoff.blocks, handoff.bytes, handoff.bytes_expected) == (40, 3, 4800, 4800)
    times = [handoff.t_prefill_done, handoff.t_decode_sent, handoff.t_transfer_begin, handoff.t_transfer_end,
             handoff.t_decode_first_token]  # fmt: skip
    assert times == sorted(times)  # type: ignore[type-var]


def test_the_bytes_to_expect_come_from_the_engines_own_cache(
    backend: type[DoubleBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the configuration suggests, for example a float32 checkpoint served in 16 bits."""
    world = World(backend)
    info = backend.info

    def with_block_bytes(engine: DoubleBackend) -> EngineInfo:
        known = info(engine)
        return replace(known, settings=known.settings | {"kv_block_bytes": 777})

    monkeypatch.setattr(backend, "info", with_block_bytes)
    _run(world, world.serve)
    [handoff] = world.handoffs
    assert (handoff.block_bytes, handoff.bytes_expected) == (777, 3 * 777)


@pytest.mark.parametrize(
    ("settings", "a_token", "ranks", "shards", "block_bytes"),
    [
        ({}, KV_BYTES, 1, None, 16 * KV_BYTES),
        ({}, KV_BYTES, 16, 8, 2 * 16 * KV_BYTES),  # two ranks hold each head, and both get it
        ({"kv_layers": "2 MLAAttentionSpec", "kv_block_bytes": 777}, KV_BYTES, 4, 1, 4 * 777),
        ({"kv_layers": "30 FullAttentionSpec", "kv_block_bytes": 777}, None, 1, None, 777),
        ({"kv_layers": "6 FullAttentionSpec, 24 MambaSpec", "kv_block_bytes": 777}, KV_BYTES, 1, None, None),
        ({"kv_layers": "6 FullAttentionSpec, 24 SlidingWindowSpec", "kv_block_bytes": 777}, KV_BYTES, 1, None, None),
        ({}, None, 1, None, None),
    ],
)
def test_the_bytes_of_a_block_that_is_handed_over(
    backend: type[DoubleBackend], settings: dict[str, Any], a_token: int | None, ranks: int, shards: int | None,
    block_bytes: int | None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("wp1.serving.schedulers.disaggregated.places", lambda sizes, *_: [None] * len(sizes))
    scheduler = World(backend, decode_tensor_parallel=ranks, kv_bytes_per_token=a_token, kv_shards=shards).scheduler
    assert scheduler._block_bytes({"block_size": 16} | settings) == block_bytes


@pytest.mark.parametrize(("kept", "blocks"), [(0, 3), (16, 2), (32, 1)])
def test_what_the_decode_engine_had_is_not_expected_and_the_line_is_written_at_once(
    backend: type[DoubleBackend], kept: int, blocks: int
) -> None:
    backend.kept_tokens = kept
    world = World(backend)

    async def body() -> list[Handoff]:
        await world.serve()
        return world.handoffs

    [handoff] = _run(world, body)
    assert (handoff.tokens, handoff.tokens_kept, handoff.blocks) == (40, kept, blocks)
    assert handoff.bytes == handoff.bytes_expected == blocks * 1600


def test_the_prefill_engine_frees_a_prompt_that_the_decode_engine_had_cached(backend: type[DoubleBackend]) -> None:
    backend.kept_tokens = 40
    world = World(backend, direction="push")

    async def body() -> list[Handoff]:
        await world.serve()
        await _until(lambda: not world.engine("prefill-0").held)
        return world.handoffs

    [handoff] = _run(world, body)
    assert (handoff.status, handoff.tokens_kept, handoff.bytes, handoff.bytes_expected) == ("ok", 40, 0, 0)
    assert not world.scheduler._pools.unfetched


def test_the_ledger_keeps_nothing_of_requests_without_a_handoff(backend: type[DoubleBackend]) -> None:
    world = World(backend)

    async def body() -> int:
        await world.serve(0, tokens=1)
        world.engine("prefill-0").kill()
        await world.serve(1)
        assert world.scheduler._pools.ledger is not None
        return len(world.scheduler._pools.ledger._open)

    assert _run(world, body) == 0
    assert world.handoffs == []


@pytest.mark.parametrize(
    ("scheduled", "copy_s", "usable"),
    [
        pytest.param(2.0, 0.1, 2.5, id="copied within its step"),
        pytest.param(3.0, 0.1, 3.0, id="copied before"),
        pytest.param(2.0, None, 2.0, id="told by a connector that does not copy itself"),
    ],
)
def test_kv_is_usable_when_it_is_there_and_the_decode_engine_has_begun(
    backend: type[DoubleBackend], scheduled: float, copy_s: float | None, usable: float
) -> None:
    pools = World(backend).scheduler._pools
    ledger = Ledger(lambda _: None, "ipc", block_tokens=16, block_bytes=1600)
    request = Request("r0", "disagg", "cell", 0, PROMPT, 5, seed=0)
    record, handoff = new_record(request, 0.0), ledger.open(request, "7-0a1b2c3d", "prefill-0")
    for end, failed in ((2.2, None), (2.5, None), (2.9, "it was not needed")):
        ledger.report(TransferReport("7-0a1b2c3d-89abcdef", 1.0, end, 1600, failed, copy_s))
    chunk = Chunk(4.0, [1], "1 ", finish_reason="length", times=EngineTimes(1.0, scheduled, 3.5, 4.0))
    broker, ticket = KVBroker([], [], "round_robin"), Ticket(40, 45)
    serving = Handover(pools, broker, ledger, request, record, ticket, handoff, streams_prefill_token=True)
    serving._add_decoded(chunk)
    assert record.t_decode_scheduled == handoff.t_decode_scheduled == usable


def test_with_first_token_decode_the_user_waits_for_the_decode_engine(backend: type[DoubleBackend]) -> None:
    world = World(backend, first_token="decode")
    record = _run(world, lambda: world.serve(3))
    assert record.token_ids == [3, 4, 5, 6, 7]
    assert record.t_decode_sent is not None
    assert record.t_tokens[0] > record.t_decode_sent
    early = World(fresh())
    record = _run(early, lambda: early.serve(3))
    assert record.t_decode_sent is not None
    assert record.t_tokens[0] < record.t_decode_sent


def test_a_single_token_needs_no_handoff(backend: type[DoubleBackend]) -> None:
    world = World(backend)
    record = _run(world, lambda: world.serve(tokens=1))
    assert (record.status, record.token_ids, record.decode_engine) == ("ok", [0], None)
    assert world.handoffs == []


def test_two_hundred_at_once_through_a_narrow_pool(backend: type[DoubleBackend]) -> None:
    # A decode engine has room for two of them at a time.
    backend.kv_blocks = 7
    backend.gap_s = 0.0001
    world = World(backend, prefill=2, decode=2, max_prefilled=3)
    held, waiting = [], []

    async def body() -> list[RequestRecord]:
        assert world.scheduler._pools.broker is not None
        serving = [asyncio.create_task(world.serve(n)) for n in range(200)]
        while not all(task.done() for task in serving):
            waiting.append(world.scheduler._pools.broker.lengths()["prefill_waiting"])
            held.append(max(len(world.engine(f"prefill-{n}").held) for n in range(2)))
            await asyncio.sleep(0.001)
        return [task.result() for task in serving]

    records = _run(world, body)
    assert {record.status for record in records} == {"ok"}
    assert len({handoff.handoff_id for handoff in world.handoffs}) == 200
    assert max(held) <= 3
    assert {record.prefill_engine for record in records} == {"prefill-0", "prefill-1"}
    assert max(waiting) > 100
    lengths = [row for row in world.written if isinstance(row, QueueLengths)]
    assert max(row.prefill_waiting for row in lengths) > 0


def test_a_request_that_can_never_fit_is_told_so(backend: type[DoubleBackend]) -> None:
    backend.kv_blocks = 3
    world = World(backend)
    record = _run(world, world.serve)
    assert record.status == "error"
    assert "needs 3 KV blocks and a decode engine has 2" in (record.error or "")


def test_the_prefill_engine_dies_before_the_handoff(backend: type[DoubleBackend]) -> None:
    world = World(backend, prefill=2)

    async def body() -> list[RequestRecord]:
        world.engine("prefill-0").kill()
        return [await world.serve(n) for n in range(3)]

    first, *others = _run(world, body)
    # Nothing is retried silently: the request that hits the dead engine fails, the others are routed elsewhere.
    assert [record.status for record in others] == ["ok", "ok"]
    assert {record.prefill_engine for record in others} == {"prefill-1"}
    if first.status != "ok":
        assert (first.cause, first.phase) == ("engine_died", "prefill")


def test_the_prefill_engine_dies_during_the_handoff(backend: type[DoubleBackend]) -> None:
    world = World(backend, timeout_s=10, prefill=2)

    async def body() -> list[RequestRecord]:
        world.engine("decode-0").kv_lost = True
        serving = asyncio.create_task(world.serve())
        await _until(lambda: bool(world.engine("decode-0").held))
        world.engine("prefill-0").kill()
        lost = await serving
        world.engine("decode-0").kv_lost = False
        return [lost, await world.serve(1)]

    record, other = _run(world, body)
    assert (record.status, record.cause, record.phase) == ("error", "engine_died", "handoff")
    assert "engine prefill-0 died during the handoff" in (record.error or "")
    # The decode engine is not affected and continues with the other prefill engine.
    assert (other.status, other.prefill_engine) == ("ok", "prefill-1")
    handoff = next(row for row in world.handoffs if row.request_id == "r0")
    assert (handoff.status, handoff.phase) == ("failed", "handoff")
    assert "died" in (handoff.error or "")
    assert record.output_tokens == 1
    # So that it frees the blocks reserved for the incoming KV.
    assert world.engine("decode-0").forgotten == ["prefill-0"]


def test_the_prefill_engine_dies_after_the_handoff(backend: type[DoubleBackend]) -> None:
    world = World(backend)

    async def body() -> RequestRecord:
        serving = asyncio.create_task(world.serve(tokens=50))
        await _until(lambda: world.engine("decode-0").served > 0 and not world.engine("prefill-0").held)
        world.engine("prefill-0").kill()
        return await serving

    assert _run(world, body).status == "ok"


def test_the_decode_engine_dies_and_the_other_goes_on(backend: type[DoubleBackend]) -> None:
    world = World(backend, decode=2)

    async def body() -> list[RequestRecord]:
        serving = [asyncio.create_task(world.serve(n, tokens=50)) for n in range(4)]
        await _until(lambda: len(world.engine("decode-0").held) == 2)
        world.engine("decode-0").kill()
        return [await task for task in serving]

    records = _run(world, body)
    assert {(record.decode_engine, record.status) for record in records} == {("decode-0", "error"), ("decode-1", "ok")}
    died = [record for record in records if record.status == "error"]
    assert {record.cause for record in died} == {"engine_died"}
    assert {record.phase for record in died} <= {"handoff", "decode"}


def test_with_no_decode_engine_left_requests_fail_at_once(backend: type[DoubleBackend]) -> None:
    world = World(backend)

    async def body() -> RequestRecord:
        world.engine("decode-0").kill()
        await asyncio.sleep(0.25)
        return await world.serve()

    record = _run(world, body)
    assert (record.cause, record.phase) == ("engine_died", "queue")
    assert "no decode engine is left" in (record.error or "")


def test_a_transfer_that_never_ends_is_given_up(backend: type[DoubleBackend]) -> None:
    world = World(backend, timeout_s=0.2)

    async def body() -> list[RequestRecord]:
        decode = world.engine("decode-0")
        decode.kv_lost = True
        lost = await world.serve(0)
        decode.kv_lost = False
        # What vLLM's decode side does with an aborted request: it still fetches, so that the other side is freed.
        world.engine("prefill-0").held.clear()
        return [lost, await world.serve(1)]

    lost, other = _run(world, body)
    assert (lost.status, lost.cause, lost.phase) == ("error", "transfer", "handoff")
    assert "did not arrive within 0.2 s (transfer.timeout_s)" in (lost.error or "")
    assert other.status == "ok"
    assert [handoff.status for handoff in world.handoffs] == ["failed", "ok"]


@pytest.mark.parametrize("phase", ["prefill", "decode_queue", "decode"])
def test_a_client_that_goes_away_frees_what_it_held(backend: type[DoubleBackend], phase: str) -> None:
    backend.max_num_seqs = 1
    backend.gap_s = 0.02
    world = World(backend)

    async def body() -> RequestRecord:
        # The other one keeps the only place in the decode pool.
        other = asyncio.create_task(world.serve(0, tokens=40))
        await _until(lambda: bool(world.engine("decode-0").held))
        request = Request("gone", "disagg", "cell", 0, PROMPT, 40, seed=1, timeout_s=5)
        record = new_record(request, 0.0)
        serving = asyncio.create_task(world.scheduler.serve(request, record))
        await _until(lambda: record.phase == phase)
        serving.cancel()
        await asyncio.wait([serving])
        assert (await other).status == "ok"
        return record

    record = _run(world, body)
    assert (record.status, record.cause, record.phase) == ("aborted", "interrupted", phase)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)
