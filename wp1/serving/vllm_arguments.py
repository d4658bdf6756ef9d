"""vLLM's engine arguments, those that wp1 sets and those that a user may set, and its environment."""

import dataclasses
import difflib
import os
from collections.abc import Iterable

from wp1.core.errors import ConfigError

# Engine arguments that wp1 sets, and the configuration key that each comes from.
OWN_ARGUMENTS = {
    "model": "model",
    "tokenizer": "model",
    "revision": "model.revision",
    "max_model_len": "model.max_len",
    "dtype": "model.dtype",
    "hf_overrides": "rope",
    "load_format": "model.source",
    "skip_tokenizer_init": "model.source",
    "seed": "seed",
    "tensor_parallel_size": "scheduler.tensor_parallel",
    "kv_cache_memory_bytes": "backend.kv_cache_gib",
    "kv_transfer_config": "transfer",
    "worker_extension_cls": "transfer",
    "worker_cls": "experiment.memory",
}


def set_environment() -> None:
    """Sets what must be in the environment before vllm is imported; child processes inherit it."""
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # NVML's order, in which `wp1.machine.hardware` counts GPUs.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def check_names(arguments: Iterable[str]) -> None:
    """Raises ConfigError for a backend.engine.NAME that wp1 sets itself or that vLLM does not have."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for name in arguments:
        if name in OWN_ARGUMENTS:
            raise ConfigError(f"backend.engine.{name} is set by {OWN_ARGUMENTS[name]}: set that key instead")
        if name not in known:
            near = difflib.get_close_matches(str(name), sorted(known), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "see vLLM's engine arguments for the names"
            raise ConfigError(f"backend.engine.{name} is not an argument of vLLM's engine: {hint}")


def gist(error: Exception, most: int = 300) -> str:
    """vLLM's error message on one line of at most `most` characters, without pydantic's header and footer."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [
        line.partition(" [type=")[0] for line in lines if "validation error" not in line and "pydantic" not in line
    ]
    text = "; ".join(reasons) or type(error).__name__
    return text if len(text) <= most else text[: most - 1] + "…"
