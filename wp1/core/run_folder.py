"""The files of a run's folder, read with errors that name the file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from wp1.core import files, shapes
from wp1.core.errors import ConfigError

# Of a configuration: a hundred times what one has.
MOST_VALUES = 100_000


class Content(dict[str, Any]):
    """An object of a file: asked by [] for a key that it does not have, it raises ConfigError that names both."""

    def __init__(self, content: dict[str, Any], path: Path, within: str = "") -> None:
        super().__init__({key: _named(value, path, f"{within}{key}") for key, value in content.items()})
        self._path, self._within = path, within

    def __missing__(self, key: str) -> Any:
        raise ConfigError(f"{self._path} has no {self._within}{key}: restore it from a copy")

    def require(self, *keys: str) -> None:
        """Raises ConfigError where one of these is not there, before anything is done by the others."""
        for key in keys:
            self[key]


def _named(value: Any, path: Path, at: str) -> Any:
    if isinstance(value, dict):
        return Content(value, path, f"{at}.")
    return [_named(one, path, f"{at}[{n}]") for n, one in enumerate(value)] if isinstance(value, list) else value


def read_json(path: Path, shape: Any = shapes.OBJECT) -> Content:
    """A JSON object from a run's folder, as Content. Raises ConfigError where the file is missing or broken.

    shape: of `shapes`, that it must have.
    """
    try:
        return _object(files.parsed(files.read_text(path)), path, shape)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} {_cannot_be_read(error)}") from error


def read_metadata(run_dir: Path) -> Content:
    """The run's run_metadata.json. Raises ConfigError where it is missing or broken, or a name in it is no name.

    Files and folders are named after these, and a folder may come from anybody.
    """
    path = run_dir / "run_metadata.json"
    metadata = read_json(path, shapes.METADATA)
    for key in ("run_id", "experiment"):
        if not re.fullmatch(r"\w[\w.-]*", str(metadata[key])):
            raise ConfigError(f"{path} has {key}={metadata[key]!r}, which is no name: take a folder that wp1 made")
    return metadata


def _object(found: Any, path: Path, shape: Any) -> Content:
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    if (wrong := shapes.unlike(found, shape)) is not None:
        raise ConfigError(f"{path}: {wrong}; restore it from a copy")
    return Content(found, path)


def _cannot_be_read(error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:200]
    return f"cannot be read ({why}): name the folder of a run, as in outputs/run-..."


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes beside the file and moves it there, so that a reader never sees half of it; as `files.json_text`."""
    files.write_text(path, files.json_text(content, indent=2) + "\n")


def read_config(run_dir: Path) -> Content:
    """The run's composed configuration, as Content. Raises ConfigError where the file is missing or broken."""
    path = run_dir / "config.yaml"
    try:
        found = yaml.safe_load(files.read_text(path))
        _check_size(found, [MOST_VALUES])
        return _object(found, path, shapes.CONFIG)
    except ConfigError:
        raise
    except Exception as error:  # YAML's constructors raise whatever comes of a strange value
        raise ConfigError(f"{path} {_cannot_be_read(error)}") from error


def scheduler_name(scheduler: Mapping[str, Any]) -> str | None:
    """What a scheduler of a run's configuration is called; older runs have that as its `mode`."""
    return scheduler.get("name") or scheduler.get("mode")


def arms_moving_kv(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """The arms of a run in which KV goes from engine to engine.

    A run says so in run_metadata.json; an older one by `mode`, which was disagg for the one scheduler that did.
    """
    if "arms" in metadata:
        return [arm["arm"] for arm in metadata["arms"] if arm["moves_kv"]]
    schedulers = config.get("arms") or {"disagg": config.get("scheduler") or {}}
    return [name for name, scheduler in schedulers.items() if scheduler.get("mode") == "disagg"]


def _check_size(value: Any, left: list[int]) -> None:
    """Raises ValueError for more values than `left` says: few lines of YAML that name each other can be millions."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"it has more than {MOST_VALUES:,} values")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_size(part, left)
