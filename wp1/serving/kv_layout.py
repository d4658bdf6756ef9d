"""The KV cache that a running engine reports, and whether it agrees with the model's configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

from wp1.model.models import ServedModel

STATE = "MambaSpec"


class WorkerExtension:
    """Mixed into vLLM's workers by worker_extension_cls; called through AsyncLLM.collective_rpc."""

    def wp1_kv_layers(self) -> list[dict[str, Any]]:
        """vLLM's KV cache specification on this rank, as `layers_of` returns it."""
        return layers_of(self.model_runner.kv_cache_config.kv_cache_groups)  # type: ignore[attr-defined]


def layers_of(groups: Sequence[Any]) -> list[dict[str, Any]]:
    """One entry for each set of equal layers.

    kind: class of the specification; layers: how many; block_tokens: tokens in a block; bytes, page_bytes: of a block
    in one layer, without and with padding. groups: vllm.v1.kv_cache_interface.KVCacheGroupSpec.
    """
    counts: dict[tuple[Any, ...], int] = {}
    for group in groups:
        for spec in specs_of(group).values():
            bare = getattr(spec, "real_page_size_bytes", spec.page_size_bytes)
            key = (type(spec).__name__, spec.block_size, bare, spec.page_size_bytes)
            counts[key] = counts.get(key, 0) + 1
    names = ("kind", "block_tokens", "bytes", "page_bytes")
    return [dict(zip(names, key, strict=True)) | {"layers": layers} for key, layers in counts.items()]


def specs_of(group: Any) -> dict[str, Any]:
    """vLLM's specification of each layer in a group of the KV cache (KVCacheGroupSpec)."""
    # A group whose layers have blocks of different sizes has a specification for each layer.
    several = getattr(group.kv_cache_spec, "kv_cache_specs", None)
    return several or dict.fromkeys(group.layer_names, group.kv_cache_spec)


def measured(ranks: Sequence[Sequence[Mapping[str, Any]]], shards: int) -> dict[str, Any]:
    """Settings of an engine, from every rank's `wp1_kv_layers`.

    kv_token_bytes: one token's KV in all attention layers. kv_block_bytes: a block in all of them with padding, or None
    if their blocks differ in size. kv_state_bytes: a request's recurrent state. kv_layers: a description.
    Each head counts once, even if it is repeated on several ranks: only `shards` of the ranks hold different heads.
    """
    layers = [layer for rank in ranks for layer in rank]
    attention = [layer for layer in layers if layer["kind"] != STATE]
    sizes = {layer["block_tokens"] for layer in attention}
    distinct = shards / len(ranks)

    def total(layers: Sequence[Mapping[str, Any]], key: str, per_token: bool) -> int:
        bytes_of_ranks = sum(
            layer["layers"] * layer[key] / (layer["block_tokens"] if per_token else 1) for layer in layers
        )
        return round(bytes_of_ranks * distinct)

    states = [layer for layer in layers if layer["kind"] == STATE]
    return {
        "kv_token_bytes": total(attention, "bytes", per_token=True),
        "kv_block_bytes": total(attention, "page_bytes", per_token=False) if len(sizes) == 1 else None,
        "kv_state_bytes": total(states, "bytes", per_token=False),
        "kv_layers": ", ".join(f"{layer['layers']} {layer['kind']}" for layer in ranks[0]),
    }


def difference(settings: Mapping[str, Any], model: ServedModel) -> str | None:
    """Message if the engine's KV bytes per token differ from the model's configuration; None if they agree.

    settings: as returned by `measured`.
    """
    actual, expected = settings["kv_token_bytes"], model.kv_bytes_per_token
    if expected is None:
        return f"KV bytes per token are taken from the engine, {actual:,}: {model.why_no_kv_cache}"
    if actual != expected:
        return (
            f"the engine keeps {actual:,} bytes of KV per token ({settings['kv_layers']}), the model's configuration "
            f"gives {expected:,}: figures use the engine's value, and MFU and MBU are left out"
        )
    return None
