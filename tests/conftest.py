"""Shared by all tests: a composed configuration, the engine double, and how tests are marked and distributed."""

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

# Third-party data next to the checkout. Tests that need it are skipped if it is missing.
SHARED = Path(__file__).parents[1].parent / "shared" / "data"
ENGINES = "tests/engine/"
# Builds models in one process and starts no engine, so any worker may run it.
NO_ENGINE = "tests/engine/test_published_models.py"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if ENGINES in item.nodeid:
            item.add_marker(pytest.mark.engine)
    # In one process the quick tests come first, so that a mistake shows in seconds. With several workers the engine
    # tests come first: one worker runs them all, and they take as long as all other tests.
    engines_first = hasattr(config, "workerinput")
    items.sort(key=lambda item: (ENGINES in item.nodeid) != engines_first)


class ByModule(LoadScopeScheduling):
    """Distributes whole modules, whose tests share fixtures, and sends all engine tests to one worker.

    Two engine tests at once would need twice the memory and compete for the cores.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return ENGINES if module.startswith(ENGINES) and module != NO_ENGINE else module


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByModule:
    """Replaces the scheduler that `--dist` names. xdist calls it only with `-n`."""
    # Keep the order of collection. xdist would put the modules with most tests first, which are not the slowest.
    config.option.loadscopereorder = False
    return ByModule(config, log)


Compose = Callable[..., DictConfig]
# Stands for a test's own folder in configurations that are composed once and cached.
ELSEWHERE = "a-test-s-folder"


@pytest.fixture
def config(tmp_path: Path) -> Compose:
    """Composes conf/ with overrides as the command line does, resolved and typed. Runs are written to tmp_path."""

    def compose_(*overrides: str) -> DictConfig:
        cfg = _composed(*overrides).copy()
        if cfg.root == ELSEWHERE:
            cfg.root = str(tmp_path)
        return schema.resolve(cfg)

    return compose_


@functools.cache
def _composed(*overrides: str) -> DictConfig:
    """Many tests use the same overrides; they differ only in the folder of their runs."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"root={ELSEWHERE}", *overrides])


@pytest.fixture
def without_pixels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the rendering of plots, which takes most of a report's time, unless the test is marked `painted`."""
    if not request.node.get_closest_marker("painted"):
        monkeypatch.setattr(style, "save", unpainted)


@pytest.fixture
def double(without_pixels: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[DoubleBackend]:
    """Replaces the backend by the engine double for one test, on a machine with 24 GiB of free memory."""
    backend = fresh()
    monkeypatch.setattr("wp1.serving.vllm_backend.VLLMBackend", backend)
    monkeypatch.setattr(hardware, "available_memory_bytes", lambda: 24 << 30)
    monkeypatch.setenv("WP1_CACHE", str(tmp_path / "cache"))
    # Measuring this machine's peaks takes seconds and says nothing about the double.
    monkeypatch.setattr("wp1.machine.peaks.measured_apart", lambda: None)
    return backend
