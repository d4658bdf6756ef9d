"""Collectors made from a configuration, or from a run's folder."""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wp1 import collectors
from wp1.collectors import COLLECTOR, Collector
from wp1.core import parts
from wp1.core.errors import ConfigError
from wp1.core.run_folder import read_config, read_json

# wp1's own are each in a module of this package.
PACKAGE = collectors.__name__


def collectors_of(config: Mapping[str, Any]) -> list[Collector]:
    """The collectors that a configuration names, by `_target_`. Raises ConfigError for one that cannot be made."""
    return [_made(str(name), part) for name, part in (config["collectors"] or {}).items()]


def _made(name: str, part: Any) -> Collector:
    key = f"collectors.{name}"
    made: Collector = parts.make(key, parts.typed(key, part, COLLECTOR), COLLECTOR)
    if not _is_own(part):
        # By which its figures are found again in a folder, without its class.
        made.name = name
    return made


def _is_own(part: Any) -> bool:
    return isinstance(part, dict) and parts.own(part.get("_target_"), PACKAGE) is not None


def collectors_in(run_dir: Path) -> list[Collector]:
    """The collectors of wp1's own that a run's folder names, with settings that they have; see `kept_in`."""
    return [made for _, made in _in_folder(run_dir) if made is not None]


def kept_in(run_dir: Path) -> dict[str, Any]:
    """Of the other collectors that a run's folder names the figures that the run wrote, by name; {} if it wrote none.

    A folder is data, and may come from anybody: what such a name stands for is not even looked up.
    """
    path = run_dir / "summary.json"
    found = read_json(path).get("profiling") if path.is_file() else None
    written = found if isinstance(found, dict) else {}
    own = _own_names()
    # One of wp1's own with settings that it has not got has no figures: what it should have is known, and this is not.
    return {
        name: written.get(name) or {} if name not in own else {} for name, made in _in_folder(run_dir) if made is None
    }


def _in_folder(run_dir: Path) -> Iterator[tuple[str, Collector | None]]:
    for name, part in (read_config(run_dir)["collectors"] or {}).items():
        try:
            yield str(name), _made(str(name), part) if _is_own(part) else None
        except ConfigError:
            yield str(name), None


def _own_names() -> set[str]:
    """What the collectors of wp1's own are called in summary.json."""
    modules = [importlib.import_module(f"{PACKAGE}.{one.name}") for one in pkgutil.iter_modules(collectors.__path__)]
    classes = [one for module in modules for one in vars(module).values() if isinstance(one, type)]
    return {one.name for one in classes if issubclass(one, Collector)}
