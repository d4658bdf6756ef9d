"""The parts of the vLLM backend that need no engine: connecting engines that hang or are incompatible."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wp1.serving import vllm_backend
from wp1.serving.backend import EngineStartError
from wp1.serving.liveness import Liveness


def _backend(log: Path, rpc: Any) -> Any:
    backend: Any = object.__new__(vllm_backend.VLLMBackend)
    backend.name, backend._log = "decode-0", log
    backend._life = Liveness("decode-0", log, lambda: None)
    backend._engine = backend._life.engine = SimpleNamespace(collective_rpc=rpc, errored=False)
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


def test_an_error_of_a_worker_in_meet_is_reported(tmp_path: Path) -> None:
    async def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("KV layout of prefill-0 is a, here it is b")

    with pytest.raises(EngineStartError, match="decode-0 cannot take KV from prefill-0: KV layout of prefill-0 is a"):
        asyncio.run(_backend(tmp_path / "engine.log", fails).meet(["prefill-0"]))
