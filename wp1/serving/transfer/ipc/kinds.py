"""Which models' KV this connector moves: by their configuration before an engine starts, and by what vLLM makes of it.

It moves attention that keeps every token, in one group of blocks. Layers with a window or chunks beside layers without
are kept by vLLM like these (disable_hybrid_kv_cache_manager), so such models are moved too. Imports no vllm.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from wp1.model.kinds import ATTENTION_KINDS, HYBRID_KINDS, Config, text_of

WAY_OUT = "use transfer=nixl_push"

# vLLM's specification of a layer's cache, by the name of its class: of these each block is whole for as long as its
# request runs. A subclass may be otherwise, so names are compared and not ancestry.
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

# Keys of a config.json (of transformers) that only models with a recurrent state or convolution in some layers have.
STATES = ("mamba_d_state", "mamba_d_ssm", "ssm_state_size", "linear_conv_kernel_dim", "conv_L_cache", "lru_width")
# Models whose `sliding_window` is that of all layers, where nothing else is said.
WINDOW_IN_ALL = ("mistral", "mixtral", "phi3", "starcoder2")
KEEPS_ALL = "full_attention"
LOCAL = ("sliding_attention", "chunked_attention")


def obstacle_in_config(config: dict[str, Any]) -> str | None:
    """Why the KV of a model of this config.json is not moved, and what to do; None where nothing there says so."""
    found = next(_properties(text_of(config)), None)
    return None if found is None else f"it moves the KV of full attention, and the model has {found}: {WAY_OUT}"


def _properties(text: Config) -> Iterator[str]:
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
    # A configuration without the field has its class's default.
    window = text.get("sliding_window", ATTENTION_KINDS[kind].window if kind in WINDOW_IN_ALL else None)
    if window is not None and kind in WINDOW_IN_ALL and text.get("use_sliding_window") is not False:
        yield f"a sliding window in all layers (sliding_window={window})"


def obstacle_in_engine(groups: Sequence[Any], stages: int) -> str | None:
    """The same of an engine. groups: of vllm.v1.kv_cache_interface.KVCacheGroupSpec; stages: of its pipeline."""
    names = {type(spec).__name__ for group in groups for spec in specs_of(group).values()}
    if others := sorted(names - {MOVED}):
        found = ", ".join(f"{KINDS[name]} ({name})" if name in KINDS else name for name in others)
    elif len(groups) != 1:
        found = f"{len(groups)} groups of blocks"
    elif stages > 1:
        return f"transfer=ipc knows no pipeline: set backend.engine.pipeline_parallel_size={stages} to 1, or {WAY_OUT}"
    else:
        return None
    return f"transfer=ipc moves the KV of full attention in one group of blocks, and the model has {found}: {WAY_OUT}"


def specs_of(group: Any) -> dict[str, Any]:
    """vLLM's specification of each layer in a group of the KV cache."""
    single = getattr(group.kv_cache_spec, "kv_cache_specs", None)
    return single or dict.fromkeys(group.layer_names, group.kv_cache_spec)
