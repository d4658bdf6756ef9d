"""What tests share: a composed configuration, and marks by folder."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from xdist.scheduler import LoadScopeScheduling

from tests.double import DoubleBackend, fresh, unpainted
from wp1.analysis.base import style
from wp1.config import schema
from wp1.machine import hardware
from wp1.main import CONF

# Third-party data that tests read where it lies beside the checkout, and skip where it does not.
SHARED = Path(__file__).parents[1].parent / "shared" / "data"


ENGINES = "tests/engine/"
# Builds models in one process and starts no engine, so any worker may run it.
NO_ENGINE = "tests/engine/test_published_models.py"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if ENGINES in item.nodeid:
            item.add_marker(pytest.mark.engine)
    # In one process the quick tests come first, so that a mistake shows in seconds. Among several workers the engine
    # tests do: they take as long as all the others, and one worker has them all.
    engines_first = hasattr(config, "workerinput")
    items.sort(key=lambda item: (ENGINES in item.nodeid) != engines_first)


class ByModule(LoadScopeScheduling):
    """Gives workers whole modules, which share fixtures, and all engine tests to one worker.

    Two engine tests at once would need twice the memory, and each would wait for the other's cores.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return ENGINES if module.startswith(ENGINES) and module != NO_ENGINE else module


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByModule:
    """Replaces the scheduler that `--dist` names; used with `-n` only."""
    # In the order of collection: the modules with most tests are not those that take longest.
    config.option.loadscopereorder = False
    return ByModule(config, log)


Compose = Callable[..., DictConfig]
# In the place of a test's own folder, in what is composed once for all that ask for the same.
ELSEWHERE = "a-test-s-folder"


@pytest.fixture
def config(tmp_path: Path) -> Compose:
    """Composes conf/ with overrides, as the command line would, resolved and typed; runs land in tmp_path."""

    def compose_(*overrides: str) -> DictConfig:
        cfg = _composed(*overrides).copy()
        if cfg.root == ELSEWHERE:
            cfg.root = str(tmp_path)
        return schema.resolve(cfg)

    return compose_


@functools.cache
def _composed(*overrides: str) -> DictConfig:
    """Many tests ask for the same; what differs is where their runs land."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"root={ELSEWHERE}", *overrides])


@pytest.fixture
def without_pixels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are made up to their pixels, which take most of a report's time, unless the test is marked `painted`."""
    if not request.node.get_closest_marker("painted"):
        monkeypatch.setattr(style, "save", unpainted)


@pytest.fixture
def double(without_pixels: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[DoubleBackend]:
    """The engine double in the backend's place, for this test alone, on a machine with 24 GiB free."""
    backend = fresh()
    monkeypatch.setattr("wp1.serving.vllm_backend.VLLMBackend", backend)
    monkeypatch.setattr(hardware, "available_memory_bytes", lambda: 24 << 30)
    monkeypatch.setenv("WP1_CACHE", str(tmp_path / "cache"))
    # What this machine can do says nothing of the double, and takes seconds.
    monkeypatch.setattr("wp1.machine.peaks.measured_apart", lambda: None)
    return backend
