"""The KV cache that an engine reports, and the message if the configuration disagrees."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.published import MODELS
from wp1.model.models import ServedModel
from wp1.model.rope import RopeChoice
from wp1.serving import kv_layout


def _served(name: str) -> ServedModel:
    rope = RopeChoice("default", 1.0, 8192)
    return ServedModel(name, Path("/nonexistent"), dict(MODELS[name].config), 8192, "auto", True, "", rope)


class FullAttentionSpec(SimpleNamespace):
    pass


class MambaSpec(SimpleNamespace):
    pass


def _group(spec: Any, *names: str) -> Any:
    return SimpleNamespace(kv_cache_spec=spec, layer_names=list(names))


def _llama(heads: int = 8, element: int = 2) -> list[dict[str, Any]]:
    size = 16 * 2 * heads * 128 * element
    spec = FullAttentionSpec(block_size=16, real_page_size_bytes=size, page_size_bytes=size)
    return kv_layout.layers_of([_group(spec, *(f"layers.{n}" for n in range(32)))])


def test_an_engine_with_the_expected_kv_bytes_has_no_note() -> None:
    found = kv_layout.measured([_llama()], 1)
    assert (found["kv_token_bytes"], found["kv_block_bytes"], found["kv_state_bytes"]) == (131_072, 16 * 131_072, 0)
    assert found["kv_layers"] == "32 FullAttentionSpec"
    assert kv_layout.difference(found, _served("Llama-3.1-8B")) is None


def test_a_head_on_several_ranks_counts_once() -> None:
    model = _served("Llama-3.1-8B")
    for ranks, heads in ((2, 4), (8, 1), (16, 1)):
        found = kv_layout.measured([_llama(heads)] * ranks, model.kv_shards(ranks))
        assert found["kv_token_bytes"] == 131_072


def test_a_difference_is_one_line_with_both_figures() -> None:
    said = kv_layout.difference(kv_layout.measured([_llama(element=4)], 1), _served("Llama-3.1-8B")) or ""
    assert "\n" not in said
    assert "keeps 262,144 bytes of KV per token (32 FullAttentionSpec)" in said
    assert "gives 131,072" in said


def test_for_an_unknown_kind_the_engines_figure_is_used() -> None:
    model = dataclasses.replace(_served("Llama-3.1-8B"), config={"model_type": "llamoid"})
    said = kv_layout.difference(kv_layout.measured([_llama()], 1), model) or ""
    assert "131,072" in said
    assert "llamoid" in said


def test_layers_of_several_kinds_are_distinguished() -> None:
    attention = FullAttentionSpec(block_size=48, real_page_size_bytes=48 * 2048, page_size_bytes=48 * 2048)
    state = MambaSpec(block_size=8192, real_page_size_bytes=8192, page_size_bytes=98304)
    groups = [_group(attention, *"abcdef"), _group(state, *"ghijk"), _group(state, *"lmnop")]
    found = kv_layout.measured([kv_layout.layers_of(groups)], 1)
    assert (found["kv_token_bytes"], found["kv_state_bytes"]) == (12_288, 81_920)
    assert kv_layout.difference(found, _served("LFM2-1.2B")) is None
