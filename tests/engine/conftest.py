"""Real vLLM on the CPU. An engine takes a minute to start, so tests of one kind share one."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from tests import user_run
from tests.user_run import UserRun


class Loop:
    """An event loop in a thread, so that one engine can serve many tests."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __call__(self, coroutine: Coroutine[Any, Any, Any], timeout_s: float = 300) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


Start = Callable[..., UserRun]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts `python -m wp1 OVERRIDES` with a folder of its own for what it leaves."""
    runs: list[UserRun] = []

    def start_(*overrides: str, **environment: str) -> UserRun:
        runs.append(user_run.start(tmp_path_factory.mktemp("user"), *overrides, **environment))
        return runs[-1]

    yield start_
    for run in runs:
        run.kill()
