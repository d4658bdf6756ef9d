"""What tests share: a composed configuration, and marks by folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from tests.double import DoubleBackend, fresh
from wp1 import hardware, schema
from wp1.main import CONF

# Third-party data that tests read where it lies beside the checkout, and skip where it does not.
SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Quick ones first: a mistake shows in seconds, not after the engines.
    for item in items:
        if "tests/engine/" in item.nodeid:
            item.add_marker(pytest.mark.engine)
    items.sort(key=lambda item: "tests/engine/" in item.nodeid)


Compose = Callable[..., DictConfig]


@pytest.fixture
def config(tmp_path: Path) -> Compose:
    """Composes conf/ with overrides, as the command line would, resolved and typed; runs land in tmp_path."""

    def compose_(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return schema.resolve(compose("config", [f"root={tmp_path}", *overrides]))

    return compose_


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[DoubleBackend]:
    """The engine double in the backend's place, for this test alone, on a machine with 24 GiB free."""
    backend = fresh()
    monkeypatch.setattr("wp1.serving.vllm_backend.VLLMBackend", backend)
    monkeypatch.setattr(hardware, "available_memory_bytes", lambda: 24 << 30)
    monkeypatch.setenv("WP1_CACHE", str(tmp_path / "cache"))
    return backend
