"""Which models' KV this connector can move: checked in the configuration before an engine starts, then in the engine.

It moves the KV of attention that keeps every token, in one group of blocks. If only some layers have a window or
chunks, vLLM stores them like full attention (disable_hybrid_kv_cache_manager), so such models work too. Does not import
vllm.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from wp1.model.kinds import ATTENTION_KINDS, HYBRID_KINDS, LOCAL, Config, text_of
from wp1.serving.kv_layout import specs_of

WAY_OUT = "use transfer=nixl_push"

# Class name of vLLM's specification for a layer whose blocks all stay complete for as long as their request runs. This
# may not hold for a subclass, so names are compared instead of using isinstance.
MOVED = "FullAttentionSpec"
KINDS = {
    "MLAAttentionSpec": "latent attention",
    "SlidingWindowSpec": "a sliding window in all layers",
    "SlidingWindowMLASpec": "a sliding window over latent attention",
    "ChunkedLocalAttentionSpec": "attention in chunks in all layers",
    "MambaSpec": "a recurrent state",
    "CrossAttentionSpec": "attention to an encoder",
    "EncoderOnlyAttentionSpec": "an encoder",
}

# Keys of a transformers config.json that only models with recurrent or convolutional layers have.
STATES = ("mamba_d_state", "mamba_d_ssm", "ssm_state_size", "linear_conv_kernel_dim", "conv_L_cache", "lru_width")
# Models whose `sliding_window` applies to all layers unless `layer_types` says otherwise.
WINDOW_IN_ALL = ("mistral", "mixtral", "phi3", "starcoder2")
KEEPS_ALL = "full_attention"


def obstacle_in_config(config: dict[str, Any]) -> str | None:
    """Why this model's KV cannot be moved, judging by its config.json, and what to do; None if nothing rules it out."""
    other = next(_unsupported(text_of(config)), None)
    return None if other is None else f"it moves the KV of full attention, and the model has {other}: {WAY_OUT}"


def _unsupported(text: Config) -> Iterator[str]:
    """Properties of the model that this connector does not support."""
    if text.get("kv_lora_rank") is not None:
        yield f"latent attention (kv_lora_rank={text['kv_lora_rank']})"
    for key in STATES:
        if text.get(key) is not None:
            yield f"a recurrent state ({key}={text[key]})"
    kind = str(text.get("model_type"))
    if kind in HYBRID_KINDS:
        yield f"a recurrent state (model_type={kind})"
    kinds = text.get("layer_types")
    if kinds:
        other = sorted(set(kinds) - {KEEPS_ALL, *LOCAL})
        if other:
            yield f"layers of another kind (layer_types has {', '.join(other)})"
        if KEEPS_ALL not in kinds:
            yield f"no layer that keeps all tokens (layer_types has {', '.join(sorted(set(kinds)))} only)"
        return
    # Without the field, the default of the configuration's class applies.
    window = text.get("sliding_window", ATTENTION_KINDS[kind].window if kind in WINDOW_IN_ALL else None)
    if window is not None and kind in WINDOW_IN_ALL and text.get("use_sliding_window") is not False:
        yield f"a sliding window in all layers (sliding_window={window})"


def obstacle_in_engine(groups: Sequence[Any], stages: int) -> str | None:
    """Like `obstacle_in_config`, but for a running engine.

    groups: vllm.v1.kv_cache_interface.KVCacheGroupSpec; stages: pipeline-parallel size.
    """
    names = {type(spec).__name__ for group in groups for spec in specs_of(group).values()}
    if others := sorted(names - {MOVED}):
        other = ", ".join(f"{KINDS[name]} ({name})" if name in KINDS else name for name in others)
    elif len(groups) != 1:
        other = f"{len(groups)} groups of blocks"
    elif stages > 1:
        return (
            "IpcConnector does not support pipeline parallelism: "
            f"set backend.engine.pipeline_parallel_size={stages} to 1, or {WAY_OUT}"
        )
    else:
        return None
    return f"IpcConnector moves the KV of full attention in one group of blocks, and the model has {other}: {WAY_OUT}"
