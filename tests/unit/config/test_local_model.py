"""A model from a local folder: what its folder says need not be set, and it is not called by another's name."""

import json
from pathlib import Path

import pytest

from tests.conftest import Compose
from wp1.config import checks
from wp1.core.errors import ConfigError
from wp1.core.identity import config_hash, settings_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my model-1.5b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 1024}))
    return folder


def test_a_path_alone_is_a_model_that_is_called_by_its_folder_s_name(config: Compose, folder: Path) -> None:
    for words in ([], ["model.source=folder"]):
        cfg = config(f"model.path='{folder}'", *words)
        checks.check(cfg)
        assert (cfg.model.name, cfg.model.source) == ("my_model-1.5b", "folder")


def test_a_name_that_was_chosen_stays(config: Compose, folder: Path) -> None:
    assert config(f"model.path='{folder}'", "model.name=mine").model.name == "mine"
    copy = config(f"model.path='{folder}'", "model=llama31_8b").model
    assert (copy.name, copy.source) == ("llama31_8b", "hub")


def test_a_file_with_only_a_name_and_a_path_is_enough(config: Compose, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(f"name: mine\npath: {folder}\n")
    cfg = config("model=mine", f"hydra.searchpath=[{tmp_path / 'conf'}]")
    checks.check(cfg)
    assert (cfg.model.name, cfg.model.source, cfg.model.max_len) == ("mine", "folder", 1024)


def test_a_folder_without_a_length_names_the_key(config: Compose, folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text("{}")
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(f"name: mine\npath: {folder}\n")
    with pytest.raises(ConfigError, match=r"does not say how many tokens .* set model\.max_len"):
        config("model=mine", f"hydra.searchpath=[{tmp_path / 'conf'}]")


def test_source_folder_needs_a_path(config: Compose) -> None:
    with pytest.raises(ConfigError, match=r"^model\.path is not set"):
        checks.check(config("model.source=folder"))


def test_the_folder_s_name_decides_nothing(config: Compose, folder: Path, tmp_path: Path) -> None:
    one, two = config(f"model.path='{folder}'"), config(f"model.path={tmp_path}")
    assert config_hash(one, {"model.path": "a"}) == config_hash(two, {"model.path": "a"})
    assert "model.name" not in settings_of({"model": dict(one.model)})
