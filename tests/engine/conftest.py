"""Real vLLM on the CPU. An engine takes a minute to start, so tests of one kind share one."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from tests import user_run
from tests.user_run import UserRun
from wp1.config import checks, schema
from wp1.core.identity import new_run_id
from wp1.main import CONF
from wp1.runner.console import Screen
from wp1.runner.outcome import Outcome
from wp1.runner.run import run
from wp1.serving.engines import Engines


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


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    """For runs in this process, which has imported vLLM already: a process of its own needs ten seconds for that."""
    with Engines() as engines:
        yield engines


def configuration(root: Path, *overrides: str) -> DictConfig:
    """Composed and checked, as of the command line; what its run leaves lands in `root`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = schema.resolve(compose("config", [*overrides, f"root={root}"]))
    checks.check(cfg)
    return cfg


def completed(cfg: DictConfig, engines: Engines) -> Outcome:
    """A run in this process, which must complete."""
    run_id = new_run_id()
    with Screen() as screen:
        outcome = run(cfg, Path(cfg.root) / "outputs" / run_id, run_id, screen, None, engines)
    assert outcome.status == "completed", outcome.reason
    return outcome


Start = Callable[..., UserRun]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts `python -m wp1 OVERRIDES` with a folder of its own for what it leaves."""
    started: list[UserRun] = []

    def start_(*overrides: str, **environment: str) -> UserRun:
        started.append(user_run.start(tmp_path_factory.mktemp("user"), *overrides, **environment))
        return started[-1]

    yield start_
    for one in started:
        one.kill()
