"""Engines start in parallel, as many as there are cores; if one does not start, the others are ended."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.double import DoubleBackend, fresh
from wp1.core.records import Request, new_record
from wp1.machine import hardware
from wp1.serving import starting
from wp1.serving.backend import EngineDiedError, answered
from wp1.serving.schedulers import serve
from wp1.serving.starting import kv_free, start_all


@pytest.mark.parametrize(("cores", "most"), [([0], 1), ([0, 1], 2), ([0, 1, 2, 3], 3)])
def test_as_many_at_a_time_as_there_are_cores(monkeypatch: pytest.MonkeyPatch, cores: list[int], most: int) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: cores)
    begun = [0, 0]

    class Slow(DoubleBackend):
        started, stopped, engines = [], [], {}

        async def __aenter__(self) -> Any:
            begun[0] += 1
            begun[1] = max(begun)
            await asyncio.sleep(0.01)
            begun[0] -= 1
            return await super().__aenter__()

    async def go() -> None:
        async with AsyncExitStack() as stack:
            engines: list[Any] = [Slow(name=f"e{n}") for n in range(3)]
            await start_all(engines, stack)
            assert len(Slow.started) == 3
        assert len(Slow.stopped) == 3

    asyncio.run(go())
    assert begun[1] == most


def test_engines_with_kv_left_are_named_and_dead_ones_are_left_out() -> None:
    async def go() -> dict[str, bool]:
        backend = fresh()
        engines: list[Any] = [backend(name=name) for name in ("well", "leaks", "dead")]
        engines[1].held["somebody"] = 1
        engines[2].kill()
        return await kv_free(engines, within_s=0.05)

    assert asyncio.run(go()) == {"well": True, "leaks": False}


async def _for_ever(*_: Any, **__: Any) -> Any:
    """Never returns, like any call to an engine whose processes are stopped: vLLM itself sets no time limit."""
    await asyncio.Event().wait()


def test_an_engine_that_does_not_answer_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> dict[str, bool]:
        backend = fresh()
        engines: list[Any] = [backend(name=name) for name in ("well", "hangs")]
        monkeypatch.setattr(engines[1], "kv_free", _for_ever)
        return await asyncio.wait_for(kv_free(engines, within_s=0.05), 2)

    assert asyncio.run(go()) == {"well": True, "hangs": False}


def test_an_engine_that_dies_when_asked_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    async def dies() -> bool:
        raise EngineDiedError("engine e died: OSError: x")

    engine: Any = fresh()(name="e")
    monkeypatch.setattr(engine, "kv_free", dies)
    assert asyncio.run(kv_free([engine], within_s=0.05)) == {"e": False}


def test_an_engine_that_does_not_end_does_not_block_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "END_S", 0.05)
    backend = fresh()
    engines: list[Any] = [backend(name=name) for name in ("first", "hangs")]
    monkeypatch.setattr(engines[1], "__aexit__", _for_ever)

    async def go() -> None:
        async with AsyncExitStack() as stack:
            await start_all(engines, stack)

    asyncio.run(asyncio.wait_for(go(), 2))
    assert backend.stopped == ["first"]


def test_a_memory_note_is_not_awaited_forever() -> None:
    with pytest.raises(EngineDiedError, match=r"engine e did not answer within 0\.05 s \(to report its memory use\)"):
        asyncio.run(answered("e", _for_ever(), "to report its memory use", within_s=0.05))


def test_a_stream_that_does_not_close_does_not_delay_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request timed out, and the engine cannot even abort it."""
    monkeypatch.setattr(serve, "CLOSE_S", 0.05)

    class Stuck:
        aclose = staticmethod(_for_ever)

        def __aiter__(self) -> Any:
            return self

        __anext__ = staticmethod(_for_ever)

    record = new_record(Request("r", "agg", "c", 0, [1], 1, 0), 0.0)
    stuck: Any = Stuck()
    asyncio.run(asyncio.wait_for(serve.collect(stuck, record, timeout_s=0.05), 2))
    assert (record.status, record.cause) == ("timeout", "timeout")
