"""The classes and functions that a configuration may name by `_target_`, each by its exact name.

A name that only begins like one of wp1's can reach anything that its module has imported, and a configuration may come
from anybody, in the folder of a run. So a name is looked up in these tables, and nothing else is imported or called.
"""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

BACKENDS = ("wp1.serving.vllm_backend.VLLMBackend",)
SCHEDULERS = (
    "wp1.serving.schedulers.aggregated.AggregatedScheduler",
    "wp1.serving.schedulers.disaggregated.DisaggregatedScheduler",
)
TRANSFERS = (
    "wp1.serving.transfer.auto.choose",
    "wp1.serving.transfer.ipc.IpcTransfer",
    "wp1.serving.transfer.nixl.NixlTransfer",
)
# And the settings that each takes.
COLLECTORS: Mapping[str, tuple[str, ...]] = {
    "wp1.collectors.latency.LatencyStatsCollector": (),
    "wp1.collectors.load.LoadStatsCollector": (),
    "wp1.collectors.device.GPUStatsCollector": ("hz",),
    "wp1.collectors.kv_transfer.KVTransferStatsCollector": (),
    "wp1.collectors.memory.MemoryStatsCollector": (),
}
_ALL = frozenset((*BACKENDS, *SCHEDULERS, *TRANSFERS, *COLLECTORS))


def wrong_collector(part: Any) -> str | None:
    """Why a configuration's part is no collector of wp1, in words; None if it is one."""
    name = part.get("_target_") if isinstance(part, dict) else None
    if not isinstance(name, str) or name not in COLLECTORS:
        return "names no collector of wp1"
    strange = sorted(str(key) for key in part if key not in ("_target_", *COLLECTORS[name]))
    if strange:
        return f"sets {strange[0]}, which that collector does not have"
    nested = sorted(str(key) for key, value in part.items() if isinstance(value, dict | list))
    return f"has no plain value for {nested[0]}" if nested else None


def found(name: str) -> Callable[..., Any]:
    """What a name of one of these tables stands for. Raises KeyError for any other name."""
    if name not in _ALL:
        raise KeyError(name)
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def partial(settings: Mapping[str, Any]) -> Callable[..., Any]:
    """What `_target_` names, with the other settings as its first arguments. Raises KeyError as `found` does."""
    given = {key: value for key, value in settings.items() if key != "_target_"}
    return functools.partial(found(settings["_target_"]), **given)
