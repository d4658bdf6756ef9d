"""Checks that a model fits the machine before an engine starts.

If a model's KV bytes or the size of its weights are not known, only its engine can refuse it.
"""

from collections.abc import Sequence
from typing import Any

from wp1.core.errors import ConfigError
from wp1.machine import hardware
from wp1.machine.hardware import GIB
from wp1.model.models import ServedModel
from wp1.serving.placement import Place

# vLLM's default share of a GPU's memory.
GPU_SHARE = 0.92


def kv_pool_bytes(model: ServedModel, kv_cache_gib: float | None, place: Place, tensor_parallel: int = 1) -> int | None:
    """The KV pool of one engine in bytes over all its GPUs, or None to let vLLM take what its GPUs have free.

    On a CPU, vLLM would take most of the host's memory. The default there is 1 GiB, or one request of max_len if that
    is more, including its partly filled last block and the block that vLLM keeps for itself. Engines that share a GPU
    start in parallel and would count each other's memory as taken. So each gets an even share of the GPU, minus its
    weights and minus a tenth of the share (at least 2 GiB) for activations and CUDA graphs.
    """
    if kv_cache_gib is not None:
        return int(kv_cache_gib * GIB)
    if hardware.device_type() == "cpu":
        cache = model.kv_cache
        return GIB if cache is None else max(cache.most(model.max_len + 256), GIB)
    if place.sharing == 1:
        return None
    share = _memory_of(place.gpus) * GPU_SHARE / place.sharing
    pool = share - (model.weight_bytes or 0) / tensor_parallel - max(share / 10, 2 * GIB)
    return max(0, int(pool)) * model.kv_shards(tensor_parallel)


def _memory_of(gpus: Sequence[int]) -> int:
    """Memory in bytes of the smallest of these GPUs."""
    return min(gpu.memory_bytes for gpu in hardware.gpus() if gpu.index in gpus)


def check_memory(model: ServedModel, cfg: Any, engines: Sequence[tuple[int, Place]]) -> None:
    """Raises ConfigError, with the bytes needed and available, if one request of model.max_len does not fit.

    engines: tensor-parallel size and place of each engine that runs at the same time.
    """
    one_request = 0 if model.kv_cache is None else model.kv_cache.least(model.max_len)
    if cfg.backend.get("kv_cache_gib") is not None and int(cfg.backend.get("kv_cache_gib") * GIB) < one_request:
        raise ConfigError(
            f"backend.kv_cache_gib={cfg.backend.get('kv_cache_gib'):g} is too small: one request of "
            f"model.max_len={model.max_len} needs {gib(one_request)} of KV; "
            "raise backend.kv_cache_gib or lower model.max_len"
        )
    if hardware.device_type() == "cuda":
        for tensor_parallel, place in engines:
            _check_gpu(model, cfg, tensor_parallel, place)
        return
    if any(tensor_parallel > 1 for tensor_parallel, _ in engines):
        raise ConfigError("scheduler.tensor_parallel must be 1 on a CPU: tensor parallelism needs GPUs")
    pool = kv_pool_bytes(model, cfg.backend.get("kv_cache_gib"), Place()) or one_request
    weights = model.weight_bytes or 0
    needed, available = len(engines) * (weights + pool), hardware.available_memory_bytes()
    if needed > available:
        hint = " or run fewer engines (scheduler.replicas, prefill, decode)" if len(engines) > 1 else ""
        raise ConfigError(
            f"model.max_len={model.max_len} does not fit: weights of {gib(weights)} and KV of {gib(pool)} per engine "
            f"need {gib(needed)}, and this machine has {gib(available)} free; lower model.max_len{hint}"
        )


def longest_request(model: ServedModel, cfg: Any, engines: Sequence[tuple[int, Place]]) -> int:
    """Tokens of the longest request whose KV fits in each of these engines, no more than model.max_len.

    engines: as in `check_memory`, which passes if this returns model.max_len. If the model's KV bytes are not known, it
    is assumed to fit.
    """
    cache = model.kv_cache
    if cache is None:
        return model.max_len
    if cfg.backend.get("kv_cache_gib") is not None:
        return min(model.max_len, cache.longest(int(cfg.backend.get("kv_cache_gib") * GIB)))
    if hardware.device_type() == "cuda":
        share = float((cfg.backend.get("engine") or {}).get("gpu_memory_utilization", 0)) or None
        pools = [_free_for_kv(model, tensor_parallel, place, share) for tensor_parallel, place in engines]
        return min(model.max_len, cache.longest(max(0, min(pools))))
    pool = hardware.available_memory_bytes() // len(engines) - (model.weight_bytes or 0)
    # As in `kv_pool_bytes`: a pool has at least 1 GiB, and a larger one has room for 256 tokens more than max_len.
    longest = (pool - (cache.state_bytes or 0)) // cache.token_bytes - 256
    return max(0, min(model.max_len, longest)) if pool >= GIB else 0


def _free_for_kv(model: ServedModel, tensor_parallel: int, place: Place, share: float | None) -> int:
    """Bytes for KV over all GPUs of an engine."""
    if place.sharing > 1:
        return kv_pool_bytes(model, None, place, tensor_parallel) or 0
    free = _memory_of(place.gpus) * (share or GPU_SHARE) - (model.weight_bytes or 0) / tensor_parallel
    return int(free) * model.kv_shards(tensor_parallel)


def _check_gpu(model: ServedModel, cfg: Any, tensor_parallel: int, place: Place) -> None:
    indices = [gpu.index for gpu in hardware.gpus()]
    if missing := [index for index in place.gpus if index not in indices]:
        raise ConfigError(f"scheduler.devices names GPU {missing[0]}, and there are {indices}: name those, or auto")
    one_request = 0 if model.kv_cache is None else model.kv_cache.least(model.max_len)
    weights = model.weight_bytes or 0
    # If backend.kv_cache_gib is unset, the pool is whatever the weights leave free, and must hold one request.
    pool = max(one_request, int((cfg.backend.get("kv_cache_gib") or 0.0) * GIB))
    share = float((cfg.backend.get("engine") or {}).get("gpu_memory_utilization", GPU_SHARE / place.sharing))
    available = int(_memory_of(place.gpus) * share)
    needed = weights // tensor_parallel + pool // model.kv_shards(tensor_parallel)
    pool_given = kv_pool_bytes(model, cfg.backend.get("kv_cache_gib"), place, tensor_parallel)
    if needed > available or (pool_given is not None and pool_given < one_request):
        shared = f"; {place.sharing} engines share it" if place.sharing > 1 else ""
        raise ConfigError(
            f"model.max_len={model.max_len} does not fit: weights of {gib(weights)} and KV of {gib(pool)} per engine "
            f"need {gib(needed)}, and vLLM may use {gib(available)} of the GPU{shared}; lower model.max_len"
            + (" or run fewer engines" if shared else "")
        )


def check_lengths(model: ServedModel, lengths: dict[str, int], output_len: int) -> None:
    """Raises ConfigError if a prompt leaves no room for the output within model.max_len. lengths: label: tokens."""
    for label, length in lengths.items():
        if length + output_len > model.max_len:
            raise ConfigError(
                f"the prompt {label!r} of {length} tokens and workload.output_len={output_len} exceed "
                f"model.max_len={model.max_len}: shorten one of them or raise model.max_len"
            )


def gib(size: int) -> str:
    """A number of bytes as text, in GiB."""
    return f"{size / GIB:.2f} GiB"
