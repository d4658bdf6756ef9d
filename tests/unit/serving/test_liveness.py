"""How an engine that does not answer is told from one in a long step, and ended."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wp1.serving import liveness
from wp1.serving.backend import EngineDiedError
from wp1.serving.liveness import Liveness


def _life(log: Path, rpc: Any) -> Any:
    life: Any = Liveness("decode-0", log, lambda: None)
    life.engine = SimpleNamespace(collective_rpc=rpc, errored=False)
    return life


class Process:
    """An engine's process that has used so much of a core, and a second more whenever it is looked at, or none."""

    def __init__(self, computes: bool) -> None:
        self._computes, self._used, self.killed, self.pid = computes, 0.0, False, 1

    def cpu_times(self) -> Any:
        self._used += self._computes
        return SimpleNamespace(user=self._used, system=0.0)

    def kill(self) -> None:
        self.killed = True


@pytest.mark.parametrize(("computes", "within_s"), [(False, 0.05), (True, 1.0)])
def test_an_engine_that_hangs_is_ended_and_one_in_a_long_step_has_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computes: bool, within_s: float
) -> None:
    async def hangs(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(liveness, "LOOK_S", 0.05)
    monkeypatch.setattr(liveness, "ANSWER_S", 1.0 if computes else 20.0)
    life = _life(tmp_path / "engine.log", hangs)
    life.processes = [Process(computes)]

    async def go() -> float:
        begin = asyncio.get_running_loop().time()
        with pytest.raises(
            EngineDiedError, match=r"engine decode-0 died: it did not answer within \d+ s \(to report its mem"
        ):
            await life.answer(life.engine.collective_rpc(), "to report its memory use")
        return asyncio.get_running_loop().time() - begin

    took = asyncio.run(asyncio.wait_for(go(), 30))
    assert took >= within_s
    assert computes or took < 20.0
    assert life.processes[0].killed
    assert not life.alive
    assert life.death.startswith("engine decode-0 died: it did not answer")


def test_a_slow_answer_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(*_: Any, **__: Any) -> str:
        await asyncio.sleep(0.15)
        return "notes"

    monkeypatch.setattr(liveness, "LOOK_S", 0.05)
    life = _life(tmp_path / "engine.log", slow)
    life.processes = [Process(computes=True)]
    assert asyncio.run(life.answer(life.engine.collective_rpc(), "to report its memory use")) == "notes"
    assert life.alive


def test_an_engine_that_computes_may_take_its_time_over_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe has no time limit while the engine computes: its requests time out on their own."""

    async def hangs() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(liveness, "LOOK_S", 0.02)
    monkeypatch.setattr(liveness, "ANSWER_S", 0.1)
    life = _life(tmp_path / "engine.log", None)
    life.engine.is_sleeping = hangs
    life.processes = [Process(computes=True)]

    async def go() -> None:
        asking = asyncio.create_task(life._still_answers())
        await asyncio.sleep(0.4)
        assert not asking.done()
        asking.cancel()

    asyncio.run(go())
    assert life.alive
    assert not life.processes[0].killed
