"""Real KV between real engines: tokens, bytes, and the state after faults. Tests that break an engine come last."""

import asyncio
import dataclasses
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hydra import compose, initialize_config_dir

from tests.engine.conftest import Loop
from wp1.config import checks, schema
from wp1.core.plan import plan
from wp1.core.records import Event, Handoff, Request, RequestRecord, new_record
from wp1.machine.output import output_to
from wp1.main import CONF
from wp1.model import models
from wp1.serving.engines import make_scheduler
from wp1.serving.guard import ProcessGuard
from wp1.serving.schedulers.disaggregated import DisaggregatedScheduler
from wp1.serving.schedulers.serve import collect
from wp1.workload.prompts import random_token_ids

KV_BYTES_PER_TOKEN = 23_040  # SmolLM2-135M in BF16
CACHING = "backend.engine.enable_prefix_caching=true"
# A lease lasts as long as a request may take. Keep it short, so that tests can wait for its end.
LEASE_S = 12


class Pools:
    """A prefill and a decode engine on a core each."""

    def __init__(self, loop: Loop, folder: Path, stack: ExitStack, *overrides: str) -> None:
        self._loop = loop
        self.written: list[Event] = []
        log = folder / "engine.log"
        with initialize_config_dir(str(CONF), version_base="1.3"):
            defaults = [f"root={folder}", "scheduler=disagg", f"workload.timeout_s={LEASE_S}", "model.max_len=4096"]
            cfg = schema.resolve(compose("config", [*defaults, *overrides]))
        checks.check(cfg)
        self.guard = stack.enter_context(ProcessGuard())
        stack.enter_context(output_to(log))
        scheduler: Any = make_scheduler(
            cfg, plan(cfg)[0], models.prepare(cfg), log, self.guard.kill, self.written.append
        )
        self.scheduler: DisaggregatedScheduler = scheduler
        loop(self.scheduler.__aenter__(), timeout_s=400)
        stack.callback(gc.collect)
        stack.callback(lambda: loop(self.scheduler.__aexit__(None, None, None)))
        self.prefill = self.scheduler._pools.prefill["prefill-0"]
        self.decode = self.scheduler._pools.decode["decode-0"]

    @property
    def handoffs(self) -> dict[str, Handoff]:
        return {row.request_id: row for row in self.written if isinstance(row, Handoff)}

    def serve(self, *requests: Request) -> list[RequestRecord]:
        async def all_() -> list[RequestRecord]:
            records = [new_record(request, time.monotonic()) for request in requests]
            await asyncio.gather(*map(self.scheduler.serve, requests, records))
            return records

        return self._loop(all_())

    def alone(self, request: Request) -> RequestRecord:
        """Serves the request on the prefill engine alone, as an aggregated engine would."""
        record = new_record(request, time.monotonic())
        self._loop(collect(self.prefill.generate(request), record, 100))
        return record

    def cancelled_in(self, phase: str, request: Request) -> RequestRecord:
        """The record of a request whose client disconnects as soon as the request reaches that phase."""

        async def go() -> RequestRecord:
            record = new_record(request, time.monotonic())
            serving = asyncio.create_task(self.scheduler.serve(request, record))
            while record.phase != phase and not serving.done():
                await asyncio.sleep(0.002)
            serving.cancel()
            await asyncio.wait([serving])
            return record

        return self._loop(go())

    def start_serving(self, request: Request) -> tuple[RequestRecord, Callable[[], RequestRecord]]:
        record = new_record(request, time.monotonic())
        serving = asyncio.run_coroutine_threadsafe(self.scheduler.serve(request, record), self._loop._loop)

        def wait() -> RequestRecord:
            serving.result(60)
            return record

        return record, wait

    def free(self, within_s: float = 5) -> dict[str, bool]:
        return self._loop(self.scheduler.kv_free(within_s))

    def processes_of(self, engine: Any) -> list[psutil.Process]:
        """The engine's core and its workers."""
        [core] = engine._engine.engine_core.resources.engine_manager.processes
        parent = psutil.Process(core.pid)
        return [parent, *parent.children(recursive=True)]


def _request(name: str, length: int = 300, tokens: int = 8, **changes: Any) -> Request:
    prompt = random_token_ids(length, 49152, seed=sum(map(ord, name)))
    return Request(name, "disagg", "cell", 0, prompt, tokens, seed=1, ignore_eos=True, timeout_s=60, **changes)


CONNECTORS = {
    # Memory to memory during chunked prefill. Both sides compute checksums of the blocks.
    "early": ("transfer=ipc", "transfer.verify=true", "++backend.engine.max_num_batched_tokens=256"),
    # Memory to memory after prefill.
    "after": ("transfer=ipc", "transfer.overlap=off", CACHING),
    "pushing": ("transfer=nixl_push", CACHING),
    "pulling": (
        "transfer=nixl_pull",
        "transfer.timeout_s=6",
        "scheduler.first_token=decode",
        # Over sockets a read needs the other side to answer, so a suspended prefill engine stalls it.
        "++transfer.environment.UCX_TLS='tcp,self'",
    ),
}


@pytest.fixture(scope="module")
def pools(loop: Loop, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Pools]:
    """A pair of engines with one of CONNECTORS. pytest runs all tests of a pair, then ends the pair.

    Two pairs at once would need more memory, and engines with NIXL poll for messages, which takes half a core each.
    """
    with ExitStack() as stack:
        yield Pools(loop, tmp_path_factory.mktemp(request.param), stack, *CONNECTORS[request.param])


def _with(*connectors: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("pools", connectors, indirect=True)


def _same_tokens_and_bytes(pools: Pools, *lengths: int) -> list[Handoff]:
    for length in lengths:
        request = _request(f"parity-{length}", length)
        [record] = pools.serve(request)
        assert record.status == "ok", record.error
        assert record.token_ids == pools.alone(request).token_ids, length
        handoff = pools.handoffs[request.request_id]
        blocks = -(-length // 128)
        assert (handoff.status, handoff.tokens, handoff.blocks) == ("ok", length, blocks)
        assert handoff.bytes == handoff.bytes_expected == blocks * 128 * KV_BYTES_PER_TOKEN
        times = [handoff.t_transfer_begin, handoff.t_transfer_end, record.t_decode_scheduled,
                 record.t_decode_first_token, record.t_engine_last_token]  # fmt: skip
        assert None not in times
        assert times == sorted(times)  # type: ignore[type-var]
        assert (record.t_decode_scheduled or 0) > (record.t_engine_first_token or 0)
    assert all(pools.free().values())
    return [pools.handoffs[f"parity-{length}"] for length in lengths]


@_with("early")
def test_seeded_sampling_works_with_chunked_prefill(pools: Pools) -> None:
    """Both engines sample after the last chunk of a prompt, and rewind the request's generator after the others."""
    requests = [_request(f"sampled{n}", length, temperature=1.0) for n, length in enumerate((600, 30, 300))]
    records = pools.serve(*requests)
    assert [(record.status, record.error) for record in records] == [("ok", None)] * 3
    # One at a time, because logits depend on the other requests in the batch.
    [first], [again] = (pools.serve(replace(requests[0], request_id=name)) for name in ("alone", "again"))
    assert first.token_ids == again.token_ids


@_with("early")
def test_kv_read_from_memory_gives_the_same_tokens_as_one_engine_and_all_bytes_are_counted(pools: Pools) -> None:
    *_, long = _same_tokens_and_bytes(pools, 1, 127, 128, 129, 1000)
    # The longest prompt has four chunks. The first moved before the last was computed.
    assert (long.t_transfer_begin or 0) < (long.t_prefill_done or 0) < (long.t_transfer_end or 0)
    assert long.copy_s is not None
    assert 0 < long.copy_s < 1
    assert (long.runs or 0) >= 1


@_with("early")
def test_many_concurrent_handoffs(pools: Pools) -> None:
    records = pools.serve(*(_request(f"many-{n}", 50 + n) for n in range(30)))
    assert {(record.status, record.error) for record in records} == {("ok", None)}
    assert {pools.handoffs[record.request_id].bytes for record in records} == {128 * KV_BYTES_PER_TOKEN}
    assert all(pools.free().values())


@_with("early")
def test_a_client_that_disconnects_in_any_phase_leaks_no_blocks(pools: Pools) -> None:
    for phase in ("prefill", "handoff", "decode"):
        record = pools.cancelled_in(phase, _request(f"gone-{phase}", 600, tokens=100))
        assert (record.status, record.phase) == ("aborted", phase)
    assert all(pools.free(15).values())
    [record] = pools.serve(_request("after-those"))
    assert record.status == "ok"


@_with("early")
def test_a_killed_prefill_engine_fails_only_its_own_requests(pools: Pools) -> None:
    decoding, decoded = pools.start_serving(_request("safe", 300, tokens=150))
    _until(lambda: decoding.phase == "decode")
    prefilling, failed = pools.start_serving(_request("prefilling", 3000, tokens=10))
    _until(lambda: prefilling.phase == "prefill")
    time.sleep(1)  # for some of its blocks to move
    for process in pools.processes_of(pools.prefill):
        process.kill()
    failed()
    assert (prefilling.status, prefilling.cause, prefilling.phase) == ("error", "engine_died", "prefill")
    decoded()
    assert (decoding.status, decoding.output_tokens) == ("ok", 150)
    assert pools.free(LEASE_S + 5) == {"decode-0": True}


def _cached_blocks_do_not_move(pools: Pools) -> None:
    """Blocks of 128 tokens that the decode engine computed or received for an earlier request."""
    cached = random_token_ids(300, 49152, seed=1)
    pools.serve(dataclasses.replace(_request("cached"), prompt=cached))
    for name, prompt, kept, blocks in (
        ("two blocks", cached[:256] + cached[:100], 256, 1),
        ("one block", cached[:128] + cached[:300], 128, 3),
        ("none", cached[1:], 0, 3),
    ):
        request = dataclasses.replace(_request(name), prompt=prompt)
        [record] = pools.serve(request)
        assert record.status == "ok", record.error
        handoff = pools.handoffs[name]
        assert (handoff.tokens_kept, handoff.blocks) == (kept, blocks), name
        assert handoff.bytes == handoff.bytes_expected == blocks * 128 * KV_BYTES_PER_TOKEN
        assert record.token_ids == pools.alone(request).token_ids, name
    assert all(pools.free().values())


@_with("after")
def test_cached_kv_is_not_read(pools: Pools) -> None:
    _cached_blocks_do_not_move(pools)


@_with("after", "pushing")
def test_a_fully_cached_prompt_moves_nothing(pools: Pools) -> None:
    for name in ("whole", "again"):
        request = dataclasses.replace(_request(name), prompt=_request("whole", 256).prompt)
        [record] = pools.serve(request)
        assert record.status == "ok", record.error
    again = pools.handoffs["again"]
    assert (again.tokens, again.tokens_kept, again.bytes, again.bytes_expected) == (256, 256, 0, 0)
    assert again.t_transfer_begin is None
    # Neither engine waits for the lease to end.
    assert all(pools.free(LEASE_S / 3).values())


@_with("after")
def test_kv_read_after_prefill_gives_the_same_tokens_as_one_engine(pools: Pools) -> None:
    [long] = _same_tokens_and_bytes(pools, 1000)
    assert (long.t_prefill_done or 0) <= (long.t_decode_sent or 0) <= (long.t_transfer_begin or 0)


@_with("after")
def test_a_killed_decode_engine_fails_its_requests_and_frees_the_prefill_side(pools: Pools) -> None:
    record, wait = pools.start_serving(_request("decode-killed", 300, tokens=3000))
    _until(lambda: record.phase == "decode")
    processes = pools.processes_of(pools.decode)
    for process in processes:
        process.suspend()
    held, not_fetched = pools.start_serving(_request("held", 300, tokens=10))
    _until(lambda: held.phase == "handoff")
    for process in processes:
        process.kill()
    not_fetched()
    assert (held.status, held.cause, held.phase) == ("error", "engine_died", "handoff")
    wait()
    assert (record.status, record.cause, record.phase) == ("error", "engine_died", "decode")
    assert record.output_tokens > 0
    # No request is routed to it again.
    [later] = pools.serve(_request("too-late"))
    assert later.cause == "engine_died"
    assert "no decode engine is left" in (later.error or "")
    # KV that was not fetched is kept until its lease ends.
    assert pools.free(0.5) == {"prefill-0": False}
    assert pools.free(LEASE_S + 5) == {"prefill-0": True}


@_with("pushing")
def test_pushed_kv_gives_the_same_tokens_as_one_engine_and_all_bytes_are_counted(pools: Pools) -> None:
    _same_tokens_and_bytes(pools, 1, 129, 1000)


@_with("pushing")
def test_cached_kv_is_not_pushed(pools: Pools) -> None:
    _cached_blocks_do_not_move(pools)


@_with("pulling")
def test_pulled_kv_gives_the_same_tokens_as_one_engine_and_all_bytes_are_counted(pools: Pools) -> None:
    _same_tokens_and_bytes(pools, 1, 128, 129, 1000)


@_with("pulling")
def test_a_stalled_transfer_is_given_up_and_later_requests_are_served(pools: Pools) -> None:
    record, wait = pools.start_serving(_request("still", 2000, tokens=100))
    _until(lambda: record.phase == "handoff")
    for process in pools.processes_of(pools.prefill):
        os.kill(process.pid, signal.SIGSTOP)
    try:
        wait()
    finally:
        for process in pools.processes_of(pools.prefill):
            os.kill(process.pid, signal.SIGCONT)
    if record.status == "ok":
        pytest.skip("the KV had arrived before the prefill engine could be stopped")
    assert (record.status, record.cause, record.phase) == ("error", "transfer", "handoff")
    handoff = pools.handoffs["still"]
    assert handoff.status == "failed"
    assert handoff.error
    assert all(pools.free(LEASE_S + 10).values())
    [other] = pools.serve(_request("after-the-stop"))
    assert other.status == "ok"


def _until(condition: Callable[[], bool], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not hold within {within_s:g} s"
        time.sleep(0.002)
