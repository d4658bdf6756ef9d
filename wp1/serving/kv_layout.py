"""What an engine that is up says of its KV cache, and whether that is what the model's configuration gave."""

from collections.abc import Mapping, Sequence
from typing import Any

from wp1.model.models import ServedModel

STATE = "MambaSpec"


class WorkerExtension:
    """What vLLM adds to its workers by worker_extension_cls, to be called through AsyncLLM.collective_rpc."""

    def wp1_kv_layers(self) -> list[dict[str, Any]]:
        """vLLM's KV cache specification of this rank, an entry for layers that are alike."""
        return layers_of(self.model_runner.kv_cache_config.kv_cache_groups)  # type: ignore[attr-defined]


def layers_of(groups: Sequence[Any]) -> list[dict[str, Any]]:
    """Entries with the specification's class, how many layers, tokens of a block, and bytes of one in one layer.

    groups: of vllm.v1.kv_cache_interface.KVCacheGroupSpec. bytes: without padding; page_bytes: with it.
    """
    found: dict[tuple[Any, ...], int] = {}
    for group in groups:
        # A group of layers with blocks of several sizes holds a specification for each.
        several = getattr(group.kv_cache_spec, "kv_cache_specs", None)
        specs: dict[str, Any] = several or dict.fromkeys(group.layer_names, group.kv_cache_spec)
        for spec in specs.values():
            bare = getattr(spec, "real_page_size_bytes", spec.page_size_bytes)
            key = (type(spec).__name__, spec.block_size, bare, spec.page_size_bytes)
            found[key] = found.get(key, 0) + 1
    names = ("kind", "block_tokens", "bytes", "page_bytes")
    return [dict(zip(names, key, strict=True)) | {"layers": layers} for key, layers in found.items()]


def measured(ranks: Sequence[Sequence[Mapping[str, Any]]], shards: int) -> dict[str, Any]:
    """Settings of an engine, from every rank's `wp1_kv_layers`.

    kv_token_bytes: of one token in all attention layers; kv_block_bytes: of a block in them, as it is laid out, if all
    have blocks of one size, else None; kv_state_bytes: recurrent state of a request; kv_layers: in words. Each head
    counts once, on however many ranks it is repeated: shards of `ranks` are different.
    """
    layers = [layer for rank in ranks for layer in rank]
    attention = [layer for layer in layers if layer["kind"] != STATE]
    sizes = {layer["block_tokens"] for layer in attention}
    once = shards / len(ranks)

    def total(of: Sequence[Mapping[str, Any]], key: str, tokens: bool) -> int:
        summed = sum(layer["layers"] * layer[key] / (layer["block_tokens"] if tokens else 1) for layer in of)
        return round(summed * once)

    states = [layer for layer in layers if layer["kind"] == STATE]
    return {
        "kv_token_bytes": total(attention, "bytes", tokens=True),
        "kv_block_bytes": total(attention, "page_bytes", tokens=False) if len(sizes) == 1 else None,
        "kv_state_bytes": total(states, "bytes", tokens=False),
        "kv_layers": ", ".join(f"{layer['layers']} {layer['kind']}" for layer in ranks[0]),
    }


def difference(found: Mapping[str, Any], model: ServedModel) -> str | None:
    """What to say if the engine keeps other bytes of a token than the configuration gave; None if they agree."""
    there, expected = found["kv_token_bytes"], model.kv_bytes_per_token
    if expected is None:
        return f"KV bytes a token are the engine's own, {there:,}: {model.why_no_kv_cache}"
    if there != expected:
        return (
            f"the engine keeps {there:,} bytes of KV a token ({found['kv_layers']}), the model's configuration gives "
            f"{expected:,}: figures use the engine's, and MFU and MBU are left out"
        )
    return None
