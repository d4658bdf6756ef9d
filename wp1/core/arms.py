"""What a run's folder says of the schedulers of its arms, also the folder of a run from before they had names."""

from collections.abc import Mapping
from typing import Any


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
