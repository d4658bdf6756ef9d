"""YaRN is written the way each kind of configuration has it."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from wp1.errors import ConfigError
from wp1.serving import rope

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
def test_auto_leaves_what_is_within_reach(config: dict[str, Any]) -> None:
    served, choice = rope.apply(config, _rope("auto"), 8192)
    assert served == config
    assert (choice.type, choice.written_as) == ("default", None)


@pytest.mark.parametrize("config", [PLAIN, NULL])
def test_auto_writes_rope_scaling_where_there_is_none(config: dict[str, Any]) -> None:
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
    # vLLM takes the stated length for all there is.
    assert served == OLD_TYPE | {"max_position_embeddings": 131072}
    assert rope.apply(OLD_TYPE, _rope("auto"), 32768)[0] == OLD_TYPE


def test_llama3_scaling_reaches_its_stated_length_and_is_not_stacked_on() -> None:
    assert rope.apply(LLAMA3, _rope("auto"), 131072)[1].type == "llama3"
    with pytest.raises(ConfigError, match=r"llama3.*rope=yarn"):
        rope.apply(LLAMA3, _rope("auto"), 131073)


def test_none_refuses_what_is_beyond_the_native_length() -> None:
    assert rope.apply(PLAIN, _rope("none"), 8192)[0] == PLAIN
    with pytest.raises(ConfigError, match=r"model\.max_len=8193.*8192"):
        rope.apply(PLAIN, _rope("none"), 8193)


def test_yarn_refuses_what_is_beyond_its_factor() -> None:
    assert rope.apply(PLAIN, _rope("yarn", 4.0), 32768)[1].factor == 4.0
    assert rope.apply(PLAIN, _rope("yarn", 4.0, 4096), 16384)[1].original_max_len == 4096
    with pytest.raises(ConfigError, match=r"raise rope\.factor"):
        rope.apply(PLAIN, _rope("yarn", 4.0), 32769)


def test_different_scalings_a_layer_are_refused_unless_untouched() -> None:
    assert rope.apply(PER_LAYER, _rope("none"), 8192)[0] == PER_LAYER
    with pytest.raises(ConfigError, match="layers differently"):
        rope.apply(PER_LAYER, _rope("auto"), 16384)


def test_the_language_model_of_a_composite_is_scaled() -> None:
    served, choice = rope.apply({"model_type": "vl", "text_config": PARAMETERS}, _rope("auto"), 16384)
    assert served["text_config"]["rope_parameters"]["factor"] == 2.0
    assert (served["model_type"], choice.factor) == ("vl", 2.0)


@pytest.mark.parametrize("native", [4096, 8192, 40960, 32768, 10007])
@pytest.mark.parametrize("wanted", [50000, 65537, 100003, 131072])
def test_the_factor_never_falls_a_token_short(native: int, wanted: int) -> None:
    served, choice = rope.apply({"max_position_embeddings": native}, _rope("auto"), wanted)
    assert choice.factor == pytest.approx(max(1.0, wanted / native))
    assert served["max_position_embeddings"] >= wanted


def test_the_given_configuration_is_not_changed() -> None:
    before = dict(PARAMETERS)
    rope.apply(PARAMETERS, _rope("auto"), 16384)
    assert before == PARAMETERS
    assert PARAMETERS["rope_parameters"]["rope_type"] == "default"  # type: ignore[index]
