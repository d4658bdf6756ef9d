"""The files of a run's folder, read with errors that name the file."""

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

    def changed(self, **values: Any) -> "Content":
        """A copy with other values of these keys; this one stays as it was read."""
        return Content({**self, **values}, self._path, self._within)


class RunFolder(os.PathLike[str]):
    """A run's folder: each of its files is read when it is first asked for, and once.

    What is written into the folder later is not seen: whoever writes a file reads it by another RunFolder. What is read
    is shared, and nobody changes it (`Content.changed`). `folder / name` is the path of a file in it. Whatever is asked
    for raises ConfigError that names the file and says what is wrong with it: missing, broken, or a link.
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
        """The repeats of cells that were measured to their end (`progress.read`); [] without the file."""
        return progress.read(self.path)

    @cached_property
    def probes(self) -> list[Probe]:
        """The rates that searches for goodput tried, in order; [] without the file."""
        return read_as(Probe, GOODPUT.at(self.path), "probe of a search")

    @cached_property
    def examples(self) -> list[dict[str, Any]]:
        """The lines of examples.jsonl: `ExampleLine`, of older runs without language or groups; [] without the file."""
        needed = [field.name for field in dataclasses.fields(ExampleLine) if field.name not in ("language", "groups")]
        return read_rows(EXAMPLES.at(self.path), "example", *needed, shape=shapes.EXAMPLE)

    @cached_property
    def notes(self) -> list[dict[str, Any]]:
        """What the engines noted of their memory, in order, with the keys of `MemoryNote`; [] without the file."""
        needed = [field.name for field in dataclasses.fields(MemoryNote) if field.name != "t"]
        return read_rows(MEMORY.at(self.path), "note of an engine's memory", *needed, shape=shapes.NOTE)

    @property
    def reports(self) -> Path:
        """The folder for the run's report (`paths.reports_of`)."""
        return paths.reports_of(self.path, self.config)

    @property
    def report(self) -> Path | None:
        """The page of the run's report; None if there is none now."""
        return paths.report_of(self.path, self.config, self.metadata["run_id"])


def _named(value: Any, path: Path, at: str) -> Any:
    if isinstance(value, dict):
        return Content(value, path, f"{at}.")
    return [_named(one, path, f"{at}[{n}]") for n, one in enumerate(value)] if isinstance(value, list) else value


def read_json(path: Path, shape: Any = shapes.OBJECT) -> Content:
    """A JSON object from a run's folder, as Content. Raises ConfigError where the file is missing or broken.

    shape: of `shapes`, that it must have. Metadata of an earlier run is returned in the words of today's.
    """
    try:
        found = _object(files.parsed(files.read_text(path)), path, shape)
        return _in_todays_words(found, path) if shape is shapes.METADATA else found
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} {_cannot_be_read(error)}") from error


def _in_todays_words(metadata: Content, path: Path) -> Content:
    """Metadata with `shared_gpu` and its label for the `colocated` of earlier runs."""
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
    """The run's run_metadata.json. Raises ConfigError where it is missing or broken, or a name in it is no name.

    Files and folders are named after these, and a folder may come from anybody.
    """
    path = METADATA.at(run_dir)
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
    path = CONFIG.at(run_dir)
    try:
        found = yaml.safe_load(files.read_text(path))
        _check_size(found, [MOST_VALUES])
        return _object(found, path, shapes.CONFIG)
    except ConfigError:
        raise
    except Exception as error:  # YAML's constructors raise whatever comes of a strange value
        raise ConfigError(f"{path} {_cannot_be_read(error)}") from error


def _check_size(value: Any, left: list[int]) -> None:
    """Raises ValueError for more values than `left` says: few lines of YAML that name each other can be millions."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"it has more than {MOST_VALUES:,} values")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_size(part, left)
