"""The schedulers of a run's arms, from its folder, including folders of older runs without scheduler names."""

from collections.abc import Mapping
from typing import Any


def scheduler_name(scheduler: Mapping[str, Any]) -> str | None:
    """The name of a scheduler in a run's configuration; older runs have it under `mode`."""
    return scheduler.get("name") or scheduler.get("mode")


def arms_moving_kv(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """The arms of a run in which KV moves between engines.

    They are listed in run_metadata.json. In older runs they are those with the `mode` disagg, the only such scheduler.
    """
    if "arms" in metadata:
        return [arm["arm"] for arm in metadata["arms"] if arm["moves_kv"]]
    schedulers = config.get("arms") or {"disagg": config.get("scheduler") or {}}
    return [name for name, scheduler in schedulers.items() if scheduler.get("mode") == "disagg"]
