"""Whether a model fits the machine, before an engine starts."""

from typing import Any

from wp1 import hardware
from wp1.errors import ConfigError
from wp1.hardware import GIB
from wp1.serving.models import ServedModel

# vLLM's default share of a GPU's memory.
GPU_SHARE = 0.92


def kv_pool_bytes(model: ServedModel, kv_cache_gib: float | None) -> int | None:
    """The KV pool of one engine in bytes, or None where vLLM is to take what a GPU has free.

    On a CPU vLLM would take most of the host's memory, so the default there is 1 GiB, or what one request of max_len
    needs if that is more: with a block begun at its end, and the one that vLLM keeps for itself.
    """
    if kv_cache_gib is not None:
        return int(kv_cache_gib * GIB)
    if hardware.device_type() == "cuda":
        return None
    return max(model.kv_bytes_per_token * (model.max_len + 256), GIB)


def check_memory(model: ServedModel, cfg: Any, engines: int, tensor_parallel: int) -> None:
    """Raises ConfigError where the KV of one request of model.max_len has no room, with what is needed and there."""
    one_request = model.kv_bytes_per_token * model.max_len
    pool = kv_pool_bytes(model, cfg.backend.kv_cache_gib)
    if pool is not None and pool < one_request:
        raise ConfigError(
            f"backend.kv_cache_gib={cfg.backend.kv_cache_gib:g} is too little: one request of "
            f"model.max_len={model.max_len} needs {_gib(one_request)} of KV; "
            "raise backend.kv_cache_gib or lower model.max_len"
        )
    if hardware.device_type() == "cuda":
        found = hardware.gpus()
        if engines * tensor_parallel > len(found):
            raise ConfigError(
                f"scheduler asks for {engines * tensor_parallel} GPUs (engines x scheduler.tensor_parallel) and there "
                f"are {len(found)}: lower scheduler.replicas or scheduler.tensor_parallel"
            )
        there_are = [gpu.index for gpu in found]
        named = [] if isinstance(cfg.scheduler.devices, str) else list(cfg.scheduler.devices)
        if missing := [index for index in named if index not in there_are]:
            raise ConfigError(
                f"scheduler.devices names GPU {missing[0]}, and there are {there_are}: name those, or auto"
            )
        share = float(cfg.backend.engine.get("gpu_memory_utilization", GPU_SHARE))
        there = int(min(gpu.memory_bytes for gpu in found) * share)
        kv = (pool or one_request) // model.kv_shards(tensor_parallel)
        needed, where = model.weight_bytes // tensor_parallel + kv, "vLLM may use on a GPU"
    else:
        if tensor_parallel > 1:
            raise ConfigError("scheduler.tensor_parallel is for GPUs: leave it at 1 on a CPU")
        there = hardware.available_memory_bytes()
        needed, where = engines * (model.weight_bytes + (pool or one_request)), "this machine has free"
    if needed > there:
        raise ConfigError(
            f"model.max_len={model.max_len} does not fit: weights of {_gib(model.weight_bytes)} and KV of "
            f"{_gib(pool or one_request)} an engine need {_gib(needed)}, {where} {_gib(there)}; lower model.max_len"
            + (" or scheduler.replicas" if engines > 1 else "")
        )


def check_lengths(model: ServedModel, lengths: dict[str, int], output_len: int) -> None:
    """Raises ConfigError for a prompt (named, in tokens) that leaves no room for the output within model.max_len."""
    for label, length in lengths.items():
        if length + output_len > model.max_len:
            raise ConfigError(
                f"the prompt {label!r} of {length} tokens and workload.output_len={output_len} exceed "
                f"model.max_len={model.max_len}: shorten one of them or raise model.max_len"
            )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
