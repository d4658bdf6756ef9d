"""A model from a local folder (`model.path`): what the folder says for itself, and whether it can be served."""

import json
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wp1.core.errors import ConfigError
from wp1.model import kinds, rope

# What conf/config.yaml chooses if nobody chooses a model.
DEFAULT = "smollm2_135m"


def complete(cfg: DictConfig) -> None:
    """Fills in, of a model with a path, what its folder says: source, name and max_len, unless they are set.

    A folder is not the bundled model, so a path beside that alone makes it a model of its own, named after the folder.
    Raises ConfigError, like `check_folder`, if max_len has to be read from the folder and cannot.
    """
    path = OmegaConf.select(cfg, "model.path", throw_on_missing=False)
    if not path:
        return
    model = cfg.model
    if OmegaConf.is_missing(model, "source") or model.source == "bundled":
        model.source = "folder"
    if model.source == "folder" and (OmegaConf.is_missing(model, "name") or model.name == DEFAULT):
        model.name = _name_of(path)
    if OmegaConf.is_missing(model, "max_len"):
        model.max_len = _native_length(path)


def _name_of(path: str) -> str:
    """The folder's own name, with underscores for what a name of a model cannot have."""
    return re.sub(r"[^\w.-]", "_", Path(path).expanduser().resolve().name).lstrip(".-") or "model"


def _native_length(path: str) -> int:
    check_folder(path)
    file = Path(path).expanduser() / "config.json"
    try:
        return rope.reach(dict(kinds.text_of(json.loads(file.read_text(encoding="utf-8")))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} does not say how many tokens the model takes: set model.max_len=...") from error


def check_folder(path: Any) -> None:
    """Raises ConfigError if model.path is not the folder of a model."""
    if path == "":
        raise ConfigError("model.path is empty: name a folder with config.json and *.safetensors, or drop it")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"model.path={path} is not a folder: name one with config.json and *.safetensors")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model.path={path} has no config.json: name the folder of a model")
