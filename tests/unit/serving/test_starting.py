"""Engines start side by side, as many as there are cores; one that does not start ends the others."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.double import DoubleBackend, fresh
from wp1 import hardware
from wp1.serving.starting import kv_free, start_all


@pytest.mark.parametrize(("cores", "most"), [([0], 1), ([0, 1], 2), ([0, 1, 2, 3], 3)])
def test_as_many_at_a_time_as_there_are_cores(monkeypatch: pytest.MonkeyPatch, cores: list[int], most: int) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: cores)
    starting = [0, 0]

    class Slow(DoubleBackend):
        started, stopped, engines = [], [], {}

        async def __aenter__(self) -> Any:
            starting[0] += 1
            starting[1] = max(starting)
            await asyncio.sleep(0.01)
            starting[0] -= 1
            return await super().__aenter__()

    async def go() -> None:
        async with AsyncExitStack() as stack:
            engines: list[Any] = [Slow(name=f"e{n}") for n in range(3)]
            await start_all(engines, stack)
            assert len(Slow.started) == 3
        assert len(Slow.stopped) == 3

    asyncio.run(go())
    assert starting[1] == most


def test_kv_that_stays_is_named_and_the_dead_are_left_out() -> None:
    async def go() -> dict[str, bool]:
        backend = fresh()
        engines: list[Any] = [backend(name=name) for name in ("well", "leaks", "dead")]
        engines[1].held["somebody"] = 1
        engines[2].kill()
        return await kv_free(engines, within_s=0.05)

    assert asyncio.run(go()) == {"well": True, "leaks": False}
