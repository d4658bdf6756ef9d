"""Builds collectors from a configuration or from a run's folder."""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

from wp1 import collectors
from wp1.collectors import COLLECTOR, Collector
from wp1.core import parts
from wp1.core.errors import ConfigError
from wp1.core.run_files import SUMMARY
from wp1.core.run_folder import RunFolder, read_json

# Each of wp1's own collectors is a module of this package.
PACKAGE = collectors.__name__


def collectors_of(config: Mapping[str, Any]) -> list[Collector]:
    """The collectors that a configuration names by `_target_`. Raises ConfigError for one that cannot be built."""
    return [_build(str(name), part) for name, part in (config["collectors"] or {}).items()]


def _build(name: str, part: Any) -> Collector:
    key = f"collectors.{name}"
    collector: Collector = parts.make(key, parts.typed(key, part, COLLECTOR), COLLECTOR)
    if not _is_own(part):
        # The key under which a later report finds its figures in the folder without loading its class.
        collector.name = name
    return collector


def _is_own(part: Any) -> bool:
    return isinstance(part, dict) and parts.own(part.get("_target_"), PACKAGE) is not None


def collectors_in(run: RunFolder) -> list[Collector]:
    """Those of wp1's own collectors that a run's folder names with valid settings; for the others, see `kept_in`."""
    return [collector for _, collector in _in_folder(run) if collector is not None]


def kept_in(run: RunFolder) -> dict[str, Any]:
    """Figures that the run wrote for the other collectors its folder names, by name; {} for one without figures.

    A folder is data and may come from anyone: the class that such a name stands for is not even looked up.
    """
    # Read again, not from `run`: this is the summary that is about to be replaced.
    profiling = read_json(SUMMARY.at(run.path)).get("profiling") if run.has(SUMMARY) else None
    written = profiling if isinstance(profiling, dict) else {}
    own = _own_names()
    # One of wp1's own collectors with invalid settings gets none: its figures are recomputed, never taken from a file.
    return {
        name: written.get(name) or {} if name not in own else {}
        for name, collector in _in_folder(run)
        if collector is None
    }


def _in_folder(run: RunFolder) -> Iterator[tuple[str, Collector | None]]:
    for name, part in (run.config["collectors"] or {}).items():
        try:
            yield str(name), _build(str(name), part) if _is_own(part) else None
        except ConfigError:
            yield str(name), None


def _own_names() -> set[str]:
    """The names of wp1's own collectors in summary.json."""
    return {one.name for one in _own_classes()}


def _own_classes() -> list[type[Collector]]:
    modules = [importlib.import_module(f"{PACKAGE}.{one.name}") for one in pkgutil.iter_modules(collectors.__path__)]
    classes = [one for module in modules for one in vars(module).values() if isinstance(one, type)]
    return [one for one in classes if issubclass(one, Collector)]
