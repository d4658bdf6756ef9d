"""Routing over replicas, and the records of failed and interrupted requests."""

import asyncio
from typing import Any

import pytest

from tests.double import DoubleBackend, fresh
from wp1.core.records import Request, new_record
from wp1.serving.schedulers.aggregated import AggregatedScheduler


@pytest.fixture
def backend() -> type[DoubleBackend]:
    return fresh()


def _scheduler(backend: Any, replicas: int, routing: Any = "round_robin") -> AggregatedScheduler:
    return AggregatedScheduler(
        name="agg", replicas=replicas, routing=routing, tensor_parallel=1, devices="auto", make_backend=backend
    )


def _request(n: int, tokens: int = 3, timeout_s: float = 5) -> Request:
    return Request(f"r{n}", "agg", "cell", 0, [1, 2], tokens, seed=n, timeout_s=timeout_s)


async def _serve(scheduler: AggregatedScheduler, request: Request):
    record = new_record(request, 0.0)
    await scheduler.serve(request, record)
    return record


def test_round_robin_takes_turns_and_logs_the_route(backend: type[DoubleBackend]) -> None:
    async def go():
        async with _scheduler(backend, 3) as scheduler:
            return [await _serve(scheduler, _request(n)) for n in range(5)]

    records = asyncio.run(go())
    assert [record.prefill_engine for record in records] == ["agg-0", "agg-1", "agg-2", "agg-0", "agg-1"]
    assert all(record.decode_engine == record.prefill_engine and record.pool == "agg" for record in records)
    assert backend.stopped == ["agg-2", "agg-1", "agg-0"]


def test_least_loaded_avoids_the_busy_engine(backend: type[DoubleBackend]) -> None:
    async def go():
        async with _scheduler(backend, 2, "least_loaded") as scheduler:
            long = asyncio.create_task(_serve(scheduler, _request(0, tokens=100)))
            await asyncio.sleep(0.005)
            short = [await _serve(scheduler, _request(n, tokens=1)) for n in (1, 2)]
            return [await long, *short]

    assert [record.prefill_engine for record in asyncio.run(go())] == ["agg-0", "agg-1", "agg-1"]


def test_a_timeout_is_a_result_and_aborts_in_the_engine(backend: type[DoubleBackend]) -> None:
    backend.gap_s = 0.01

    async def go():
        async with _scheduler(backend, 1) as scheduler:
            return await _serve(scheduler, _request(0, tokens=1000, timeout_s=0.1)), scheduler._engines[0]

    record, engine = asyncio.run(go())
    assert (record.status, record.cause) == ("timeout", "timeout")
    assert record.output_tokens > 0
    assert engine.aborted == ["r0"]  # type: ignore[attr-defined]


def test_a_dead_engine_fails_its_requests_with_the_reason(backend: type[DoubleBackend]) -> None:
    backend.dies_at = 2

    async def go():
        async with _scheduler(backend, 1) as scheduler:
            return [await _serve(scheduler, _request(n)) for n in range(3)]

    records = asyncio.run(go())
    assert [record.status for record in records] == ["ok", "error", "error"]
    assert records[1].cause == "engine_died"
    assert "killed by the test" in (records[1].error or "")


def test_engines_that_started_are_stopped_if_one_does_not_start(backend: type[DoubleBackend]) -> None:
    class Second(backend):
        async def __aenter__(self):
            if self.name == "agg-1":
                raise RuntimeError("no memory")
            return await super().__aenter__()

    async def go():
        async with _scheduler(Second, 2):
            raise AssertionError("not reached")

    with pytest.raises(RuntimeError, match="no memory"):
        asyncio.run(go())
    assert Second.stopped == ["agg-0"]
