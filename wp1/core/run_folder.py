"""Reads the files of a run's folder; errors name the file."""

import dataclasses
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from wp1.core import files, labels, paths, progress, shapes
from wp1.core.errors import ConfigError
from wp1.core.jsonl import read_as, read_rows
from wp1.core.records import Done, ExampleLine, MemoryNote, Probe
from wp1.core.run_files import CONFIG, EXAMPLES, GOODPUT, MEMORY, METADATA, SUMMARY, RunFile

# Upper bound on the values of a configuration, a hundred times what one usually has.
MOST_VALUES = 100_000


class Content(dict[str, Any]):
    """A JSON or YAML object of a file. `[key]` raises ConfigError, naming file and key, if the key is missing."""

    def __init__(self, content: dict[str, Any], path: Path, within: str = "") -> None:
        super().__init__({key: _named(value, path, f"{within}{key}") for key, value in content.items()})
        self._path, self._within = path, within

    def __missing__(self, key: str) -> Any:
        raise ConfigError(f"{self._path} has no {self._within}{key}: restore it from a copy")

    def require(self, *keys: str) -> None:
        """Raises ConfigError if one of these keys is missing, before any of the others is used."""
        for key in keys:
            self[key]

    def changed(self, **values: Any) -> "Content":
        """A copy with new values for these keys; the original stays unchanged."""
        return Content({**self, **values}, self._path, self._within)


class RunFolder(os.PathLike[str]):
    """A run's folder. Each file is read on first use, and only once.

    Later changes on disk are not seen: to read a file that has been written since, make a new RunFolder. The contents
    are shared, so do not modify them (`Content.changed` makes a copy). `folder / name` is the path of a file in it.
    Every property raises ConfigError, naming the file and what is wrong with it: missing, broken, or a link.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path})"

    def has(self, file: RunFile) -> bool:
        """Whether the folder has the file."""
        return file.at(self.path).is_file()

    @cached_property
    def config(self) -> Content:
        """config.yaml, as `read_config` reads it."""
        return read_config(self.path)

    @cached_property
    def metadata(self) -> Content:
        """run_metadata.json, as `read_metadata` reads it."""
        return read_metadata(self.path)

    @cached_property
    def summary(self) -> Content:
        """summary.json."""
        return read_json(SUMMARY.at(self.path))

    @cached_property
    def done(self) -> list[Done]:
        """The completed repeats of cells (`progress.read`); [] if there is no such file."""
        return progress.read(self.path)

    @cached_property
    def probes(self) -> list[Probe]:
        """The rates that searches for goodput tried, in order; [] if there is no such file."""
        return read_as(Probe, GOODPUT.at(self.path), "probe of a search")

    @cached_property
    def examples(self) -> list[dict[str, Any]]:
        """The rows of examples.jsonl (`ExampleLine`; older runs lack language and groups); [] if there is no file."""
        needed = [field.name for field in dataclasses.fields(ExampleLine) if field.name not in ("language", "groups")]
        return read_rows(EXAMPLES.at(self.path), "example", *needed, shape=shapes.EXAMPLE)

    @cached_property
    def notes(self) -> list[dict[str, Any]]:
        """The engines' memory notes, in order, with the keys of `MemoryNote`; [] if there is no such file."""
        needed = [field.name for field in dataclasses.fields(MemoryNote) if field.name != "t"]
        return read_rows(MEMORY.at(self.path), "note of an engine's memory", *needed, shape=shapes.NOTE)

    @property
    def reports(self) -> Path:
        """The folder for the run's report (`paths.reports_of`)."""
        return paths.reports_of(self.path, self.config)

    @property
    def report(self) -> Path | None:
        """The path of the run's report, or None if there is none."""
        return paths.report_of(self.path, self.config, self.metadata["run_id"])


def _named(value: Any, path: Path, at: str) -> Any:
    if isinstance(value, dict):
        return Content(value, path, f"{at}.")
    return [_named(one, path, f"{at}[{n}]") for n, one in enumerate(value)] if isinstance(value, list) else value


def read_json(path: Path, shape: Any = shapes.OBJECT) -> Content:
    """A JSON object from a run's folder, as Content. Raises ConfigError if the file is missing or broken.

    shape: the shape, from `shapes`, that it must have. Metadata of an earlier run is converted to today's names.
    """
    try:
        content = _object(files.parsed(files.read_text(path)), path, shape)
        return _in_current_names(content, path) if shape is shapes.METADATA else content
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} {_cannot_be_read(error)}") from error


def _in_current_names(metadata: Content, path: Path) -> Content:
    """The metadata with `colocated`, the name in earlier runs, replaced by `shared_gpu` and its label."""
    changed: dict[str, Any] = dict(metadata)
    if "labels" in metadata:
        changed["labels"] = [labels.SHARED_GPU if label == "colocated" else label for label in metadata["labels"]]
    if "pools" in metadata:
        changed["pools"] = [
            {"shared_gpu" if key == "colocated" else key: value for key, value in pool.items()}
            for pool in metadata["pools"]
        ]
    return Content(changed, path)


def read_metadata(run_dir: Path) -> Content:
    """The run's run_metadata.json. Raises ConfigError if it is missing or broken, or has an invalid name.

    Names are checked because files and folders are named after them, and the folder may not be trustworthy.
    """
    path = METADATA.at(run_dir)
    metadata = read_json(path, shapes.METADATA)
    for key in ("run_id", "experiment"):
        if not re.fullmatch(r"\w[\w.-]*", str(metadata[key])):
            raise ConfigError(f"{path} has an invalid name, {key}={metadata[key]!r}: name a folder that wp1 made")
    return metadata


def _object(content: Any, path: Path, shape: Any) -> Content:
    if not isinstance(content, dict):
        raise ValueError("it is not an object")
    if (wrong := shapes.unlike(content, shape)) is not None:
        raise ConfigError(f"{path}: {wrong}; restore it from a copy")
    return Content(content, path)


def _cannot_be_read(error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:200]
    return f"cannot be read ({why}): name the folder of a run, such as outputs/run-..."


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file (`files.json_text`) atomically: a reader never sees half of it."""
    files.write_text(path, files.json_text(content, indent=2) + "\n")


def read_config(run_dir: Path) -> Content:
    """The run's composed configuration, as Content. Raises ConfigError if the file is missing or broken."""
    path = CONFIG.at(run_dir)
    try:
        content = yaml.safe_load(files.read_text(path))
        _check_size(content, [MOST_VALUES])
        return _object(content, path, shapes.CONFIG)
    except ConfigError:
        raise
    except Exception as error:  # YAML's constructors raise many types for strange values
        raise ConfigError(f"{path} {_cannot_be_read(error)}") from error


def _check_size(value: Any, left: list[int]) -> None:
    """Raises ValueError for more values than left[0]: a few lines of YAML aliases can expand to millions of values."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"it has more than {MOST_VALUES:,} values")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_size(part, left)
