"""YaRN is written in the form of each kind of configuration."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from wp1.core.errors import ConfigError
from wp1.model import rope

PLAIN = {"max_position_embeddings": 8192, "rope_theta": 10000.0}
NULL = {"max_position_embeddings": 8192, "rope_theta": 10000.0, "rope_scaling": None}
PARAMETERS = {"max_position_embeddings": 8192, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}
OLD_TYPE = {
    "max_position_embeddings": 32768,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
}
LLAMA3 = {
    "max_position_embeddings": 131072,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
}
PER_LAYER = {
    "max_position_embeddings": 8192,
    "rope_parameters": {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}},
}


def _rope(type_: str, factor: float | None = None, original: int | None = None) -> Any:
    return OmegaConf.create({"type": type_, "factor": factor, "original_max_len": original})


@pytest.mark.parametrize("config", [PLAIN, NULL, PARAMETERS])
def test_auto_changes_nothing_within_reach(config: dict[str, Any]) -> None:
    served, choice = rope.apply(config, _rope("auto"), 8192)
    assert served == config
    assert (choice.type, choice.written_as) == ("default", None)


@pytest.mark.parametrize("config", [PLAIN, NULL])
def test_auto_writes_rope_scaling_if_there_is_none(config: dict[str, Any]) -> None:
    served, choice = rope.apply(config, _rope("auto"), 131072)
    assert served["rope_scaling"] == {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 8192}
    assert served["rope_theta"] == 10000.0
    assert served["max_position_embeddings"] == 131072
    assert (choice.factor, choice.original_max_len, choice.written_as) == (16.0, 8192, "rope_scaling.rope_type")


def test_auto_writes_rope_parameters_and_keeps_theta() -> None:
    served, choice = rope.apply(PARAMETERS, _rope("auto"), 16384)
    assert served["rope_parameters"] == {
        "rope_theta": 100000.0,
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 8192,
    }
    assert "rope_scaling" not in served
    assert choice.written_as == "rope_parameters.rope_type"


def test_yarn_keeps_the_older_name_of_its_type() -> None:
    served, choice = rope.apply(OLD_TYPE, _rope("yarn", 2.0), 65536)
    assert served["rope_scaling"] == {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32768}
    assert choice.written_as == "rope_scaling.type"


def test_a_model_with_yarn_already_reaches_further() -> None:
    assert rope.reach(OLD_TYPE) == 131072
    served, choice = rope.apply(OLD_TYPE, _rope("auto"), 131072)
    assert choice.type == "yarn"
    # vLLM takes the stated length as the limit.
    assert served == OLD_TYPE | {"max_position_embeddings": 131072}
    assert rope.apply(OLD_TYPE, _rope("auto"), 32768)[0] == OLD_TYPE


def test_llama3_scaling_reaches_its_stated_length_and_is_not_stacked_on() -> None:
    assert rope.apply(LLAMA3, _rope("auto"), 131072)[1].type == "llama3"
    with pytest.raises(ConfigError, match=r"llama3.*rope=yarn"):
        rope.apply(LLAMA3, _rope("auto"), 131073)


def test_none_refuses_lengths_beyond_the_native_one() -> None:
    assert rope.apply(PLAIN, _rope("none"), 8192)[0] == PLAIN
    with pytest.raises(ConfigError, match=r"model\.max_len=8193.*8192"):
        rope.apply(PLAIN, _rope("none"), 8193)


def test_yarn_refuses_lengths_beyond_its_factor() -> None:
    assert rope.apply(PLAIN, _rope("yarn", 4.0), 32768)[1].factor == 4.0
    assert rope.apply(PLAIN, _rope("yarn", 4.0, 4096), 16384)[1].original_max_len == 4096
    with pytest.raises(ConfigError, match=r"raise rope\.factor"):
        rope.apply(PLAIN, _rope("yarn", 4.0), 32769)


def test_scalings_that_differ_between_layers_are_refused_unless_untouched() -> None:
    assert rope.apply(PER_LAYER, _rope("none"), 8192)[0] == PER_LAYER
    with pytest.raises(ConfigError, match="layers differently"):
        rope.apply(PER_LAYER, _rope("auto"), 16384)


def test_the_language_model_of_a_composite_is_scaled() -> None:
    served, choice = rope.apply({"model_type": "vl", "text_config": PARAMETERS}, _rope("auto"), 16384)
    assert served["text_config"]["rope_parameters"]["factor"] == 2.0
    assert (served["model_type"], choice.factor) == ("vl", 2.0)


@pytest.mark.parametrize("native", [4096, 8192, 40960, 32768, 10007])
@pytest.mark.parametrize("wanted", [50000, 65537, 100003, 131072])
def test_the_factor_never_loses_a_token_to_rounding(native: int, wanted: int) -> None:
    served, choice = rope.apply({"max_position_embeddings": native}, _rope("auto"), wanted)
    assert choice.factor == pytest.approx(max(1.0, wanted / native))
    assert served["max_position_embeddings"] >= wanted


def test_the_given_configuration_is_not_changed() -> None:
    before = dict(PARAMETERS)
    rope.apply(PARAMETERS, _rope("auto"), 16384)
    assert before == PARAMETERS
    assert PARAMETERS["rope_parameters"]["rope_type"] == "default"  # type: ignore[index]


FIELDS = {
    "partial_rotary_factor": 0.4,
    "rope_theta": 500.0,
    "mrope_section": [16, 24, 24],
    "rope_dim": 32,
    "of_tomorrow": "x",
}


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("type_", [{"rope_type": "default"}, {"type": "default"}, {"type": "mrope"}, {}])
def test_yarn_keeps_every_other_rotary_field(key: str, type_: dict[str, str]) -> None:
    config = {"max_position_embeddings": 2048, key: {**type_, **FIELDS}}
    served, choice = rope.apply(config, _rope("auto"), 4096)
    name = "type" if "type" in type_ else "rope_type"
    assert served == {
        "max_position_embeddings": 4096,
        key: {**FIELDS, name: "yarn", "factor": 2.0, "original_max_position_embeddings": 2048},
    }
    assert choice.written_as == f"{key}.{name}"


def test_fields_outside_of_the_scaling_stay() -> None:
    old = {"rotary_pct": 0.25, "rotary_emb_base": 10000, "partial_rotary_factor": 0.25, "rope_theta": 10000.0}
    served, _ = rope.apply({"max_position_embeddings": 2048, **old}, _rope("auto"), 4096)
    assert {key: served[key] for key in old} == old


def test_fields_under_both_names_come_under_one() -> None:
    """transformers reads only rope_scaling if both are present."""
    config = {"max_position_embeddings": 2048, "rope_parameters": {"rope_theta": 5.0}, "rope_scaling": {"x": 1}}
    served, _ = rope.apply(config, _rope("auto"), 4096)
    assert "rope_scaling" not in served
    assert served["rope_parameters"] | {"rope_theta": 5.0, "x": 1} == served["rope_parameters"]


def test_yarn_with_another_factor_keeps_yarns_own_fields() -> None:
    """The fields of DeepSeek-V2-Lite."""
    own = {"beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707, "type": "yarn"}
    config = {
        "max_position_embeddings": 163840,
        "rope_scaling": {**own, "factor": 40, "original_max_position_embeddings": 4096},
    }
    served, _ = rope.apply(config, _rope("yarn", 8.0), 32768)
    assert served["rope_scaling"] == {**own, "factor": 8.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    "scaling",
    [
        LLAMA3["rope_scaling"] | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0], "attention_factor": 1.2},
        {"type": "linear", "factor": 4.0},
        {"type": "dynamic", "alpha": 1000.0},
    ],
)
def test_explicit_yarn_replaces_another_scaling(scaling: dict[str, Any]) -> None:
    config = {"max_position_embeddings": 131072, "rope_scaling": {**scaling, "partial_rotary_factor": 0.5}}
    assert rope.apply(config, _rope("auto"), 4096)[0] == config
    with pytest.raises(ConfigError, match=r"is beyond 131072 tokens, which .* does not stack YaRN on that"):
        rope.apply(config, _rope("auto"), 262144)
    served, _ = rope.apply(config, _rope("yarn", 2.0, 131072), 262144)
    key = "rope_type" if "rope_type" in scaling else "type"
    kept = {"partial_rotary_factor": 0.5, key: "yarn"}
    assert served["rope_scaling"] == kept | {"factor": 2.0, "original_max_position_embeddings": 131072}


@pytest.mark.parametrize(
    "config",
    [
        PER_LAYER,
        {"max_position_embeddings": 8192, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        {"max_position_embeddings": 8192, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0},
    ],
)
def test_layers_that_differ_are_served_to_their_length_and_not_beyond(config: dict[str, Any]) -> None:
    for type_ in ("auto", "none"):
        assert rope.apply(config, _rope(type_), 8192)[0] == config
        with pytest.raises(ConfigError, match=r"layers differently.*model\.max_len to 8192"):
            rope.apply(config, _rope(type_), 8193)
    with pytest.raises(ConfigError, match="layers differently"):
        rope.apply(config, _rope("yarn", 2.0), 4096)


@pytest.mark.parametrize("key", ["max_position_embeddings", "n_positions", "max_seq_len"])
def test_learned_positions_cannot_be_extended(key: str) -> None:
    config = {"model_type": "gpt2", key: 1024}
    assert rope.apply(config, _rope("auto"), 1024)[0] == config
    with pytest.raises(ConfigError, match=r"model\.max_len=2048: models of type gpt2 have no rotary positions"):
        rope.apply(config, _rope("auto"), 2048)


def test_phi_3_reads_the_length_before_scaling_from_outside() -> None:
    served, _ = rope.apply({"model_type": "phi3", "max_position_embeddings": 4096}, _rope("auto"), 8192)
    assert served["original_max_position_embeddings"] == 4096


def test_vllm_rotates_as_many_elements_with_yarn_as_without(tmp_path: Path) -> None:
    """Partial rotary positions in the old form and the new, read by transformers as vLLM reads them."""
    from transformers import AutoConfig

    for kind, fields in [
        ("phi", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.4}}),
        ("gpt_neox", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
        ("gpt_neox", {"rotary_pct": 0.1, "rotary_emb_base": 10000}),
        ("glm", {"partial_rotary_factor": 0.75, "rope_theta": 10000.0}),
        ("stablelm", {"partial_rotary_factor": 0.125, "rope_theta": 10000.0, "rope_scaling": None}),
    ]:
        config = {"model_type": kind, "max_position_embeddings": 2048, **fields}
        turned = []
        for one in (config, rope.apply(config, _rope("auto"), 4096)[0]):
            (tmp_path / "config.json").write_text(json.dumps(one))
            turned.append(AutoConfig.from_pretrained(tmp_path).rope_parameters["partial_rotary_factor"])
        assert turned[0] == turned[1] < 1
