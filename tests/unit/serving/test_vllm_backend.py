"""What of the backend needs no engine: how it ends meetings, and engines, that do not come to an end."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wp1.serving import vllm_backend
from wp1.serving.backend import EngineDiedError, EngineStartError


def _backend(log: Path, rpc: Any) -> Any:
    backend: Any = object.__new__(vllm_backend.VLLMBackend)
    backend.name, backend._log, backend._log_start = "decode-0", log, 0
    backend._engine = SimpleNamespace(collective_rpc=rpc, errored=False)
    backend._cause, backend._processes = None, []
    return backend


def test_engines_that_cannot_meet_end_in_time_with_their_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(vllm_backend, "MEET_TIMEOUT_S", 0.01)
    (tmp_path / "engine.log").write_text("peer access is not there\n")
    with pytest.raises(EngineStartError, match=r"could not copy KV from prefill-0 within 0\.01 s") as told:
        asyncio.run(_backend(tmp_path / "engine.log", hangs).meet(["prefill-0"]))
    assert "transfer=nixl_push" in str(told.value)
    assert "peer access is not there" in str(told.value)


def test_what_a_worker_raises_as_it_meets_is_told(tmp_path: Path) -> None:
    async def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("KV layout of prefill-0 is a, here it is b")

    with pytest.raises(EngineStartError, match="decode-0 cannot take KV from prefill-0: KV layout of prefill-0 is a"):
        asyncio.run(_backend(tmp_path / "engine.log", fails).meet(["prefill-0"]))


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

    monkeypatch.setattr(vllm_backend, "LOOK_S", 0.05)
    monkeypatch.setattr(vllm_backend, "ANSWER_S", 1.0 if computes else 20.0)
    backend = _backend(tmp_path / "engine.log", hangs)
    backend._processes = [Process(computes)]

    async def go() -> float:
        begin = asyncio.get_running_loop().time()
        with pytest.raises(
            EngineDiedError, match=r"engine decode-0 died: it did not answer within \d+ s \(what its mem"
        ):
            await backend.memory("begin")
        return asyncio.get_running_loop().time() - begin

    took = asyncio.run(asyncio.wait_for(go(), 30))
    assert took >= within_s
    assert computes or took < 20.0
    assert backend._processes[0].killed
    assert not backend.alive
    assert backend.death.startswith("engine decode-0 died: it did not answer")


def test_a_slow_answer_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(*_: Any, **__: Any) -> str:
        await asyncio.sleep(0.15)
        return "notes"

    monkeypatch.setattr(vllm_backend, "LOOK_S", 0.05)
    backend = _backend(tmp_path / "engine.log", slow)
    backend._processes = [Process(computes=True)]
    assert asyncio.run(backend.memory("begin")) == "notes"
    assert backend.alive


def test_an_engine_that_computes_may_take_its_time_over_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked only whether it is there, as its requests wait: they time out on their own."""

    async def hangs() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(vllm_backend, "LOOK_S", 0.02)
    monkeypatch.setattr(vllm_backend, "ANSWER_S", 0.1)
    backend = _backend(tmp_path / "engine.log", None)
    backend._engine.is_sleeping = hangs
    backend._processes = [Process(computes=True)]

    async def go() -> None:
        asking = asyncio.create_task(backend._still_answers())
        await asyncio.sleep(0.4)
        assert not asking.done()
        asking.cancel()

    asyncio.run(go())
    assert backend.alive
    assert not backend._processes[0].killed
