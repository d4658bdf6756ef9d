"""How far a model's rotary positions reach, and how YaRN stretches them. Pure functions over a model's config.json.

YaRN: arXiv:2309.00071. A static factor, applied at every length, as vLLM and transformers do.
"""

import copy
from dataclasses import asdict, dataclass
from typing import Any

from wp1.errors import ConfigError


@dataclass(frozen=True)
class RopeChoice:
    """What is in effect: the scaling's type, its factor, the length it starts from, and where it was written."""

    type: str
    factor: float
    original_max_len: int  # tokens
    written_as: str | None = None  # None: the model's own configuration, untouched

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def scaling_of(config: dict[str, Any]) -> dict[str, Any]:
    """A model's rotary scaling under any of its names; {} where it has none.

    Raises ConfigError for a model with different scalings a layer type, which wp1 does not rewrite.
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise ConfigError(f"rope: the model's rope_scaling is {scaling!r}, and must be a mapping or null")
    if scaling and all(isinstance(value, dict) for value in scaling.values()):
        raise ConfigError("rope: this model scales its layers differently; wp1 serves it with rope=none only")
    return scaling


def type_of(config: dict[str, Any]) -> str:
    """ "default" (unscaled), "yarn", "llama3", ...: `rope_type`, or `type` in older configurations."""
    scaling = scaling_of(config)
    return scaling.get("rope_type") or scaling.get("type") or "default"


def reach(config: dict[str, Any]) -> int:
    """The longest position, in tokens, that a configuration was made for."""
    native = int(config["max_position_embeddings"])
    if type_of(config) == "yarn":
        scaling = scaling_of(config)
        return int(scaling.get("original_max_position_embeddings", native) * scaling.get("factor", 1.0))
    return native


def apply(config: dict[str, Any], rope: Any, max_len: int) -> tuple[dict[str, Any], RopeChoice]:
    """The configuration to serve with, and what was chosen.

    Raises ConfigError, naming the key to change, where `max_len` (tokens) is beyond what `rope` allows.
    """
    if isinstance(config.get("text_config"), dict):
        # A model of several kinds of input keeps its language model's settings one level down.
        text, choice = apply(config["text_config"], rope, max_len)
        return {**config, "text_config": text}, choice
    if rope.type == "none" and isinstance(config.get("rope_parameters"), dict) and _nested(config):
        return config, RopeChoice("per layer type", 1.0, int(config["max_position_embeddings"]))
    own = RopeChoice(type_of(config), float(scaling_of(config).get("factor", 1.0)), _original(config))
    native = reach(config)
    if rope.type == "yarn":
        original = rope.original_max_len or _original(config)
        if max_len > original * rope.factor:
            raise ConfigError(
                f"model.max_len={max_len} is beyond YaRN's reach of {original} x {rope.factor:g} = "
                f"{int(original * rope.factor)} tokens: raise rope.factor or lower model.max_len"
            )
        return _with_yarn(config, float(rope.factor), original)
    if max_len <= native:
        # Some models state YaRN and yet only the length before it, which vLLM would take for all there is.
        stated = int(config["max_position_embeddings"])
        return (config if max_len <= stated else {**config, "max_position_embeddings": native}), own
    if rope.type == "none":
        raise ConfigError(
            f"model.max_len={max_len} is beyond the model's native {native} tokens: lower model.max_len, "
            "or choose rope=auto or rope=yarn"
        )
    if own.type != "default":
        raise ConfigError(
            f"model.max_len={max_len} is beyond {native} tokens, which this model reaches by scaling of type "
            f"{own.type}; rope=auto does not stack YaRN on that: lower model.max_len, or choose rope=yarn with "
            "rope.factor and "
            "rope.original_max_len"
        )
    factor = max_len / native
    # The engine computes int(native * factor): it must not fall a token short by rounding.
    while int(native * factor) < max_len:
        factor = factor * (1 + 1e-12)
    return _with_yarn(config, factor, native)


def _nested(config: dict[str, Any]) -> bool:
    values = (config.get("rope_parameters") or {}).values()
    return bool(values) and all(isinstance(value, dict) for value in values)


def _original(config: dict[str, Any]) -> int:
    return int(scaling_of(config).get("original_max_position_embeddings", config["max_position_embeddings"]))


def _with_yarn(config: dict[str, Any], factor: float, original: int) -> tuple[dict[str, Any], RopeChoice]:
    """Writes YaRN under the name that this configuration uses already."""
    config = copy.deepcopy(config)
    yarn = {"factor": factor, "original_max_position_embeddings": original}
    if isinstance(config.get("rope_parameters"), dict):
        # transformers 5: theta lives in the same place and stays.
        theta = {key: value for key, value in config["rope_parameters"].items() if key == "rope_theta"}
        config["rope_parameters"] = {**theta, "rope_type": "yarn", **yarn}
        written_as = "rope_parameters.rope_type"
    else:
        old = config.get("rope_scaling") or {}
        key = "type" if "type" in old and "rope_type" not in old else "rope_type"
        config["rope_scaling"] = {key: "yarn", **yarn}
        written_as = f"rope_scaling.{key}"
    # vLLM (from 0.27 or so) and transformers take this for the length after scaling; older vLLM computes it itself.
    config["max_position_embeddings"] = int(original * factor)
    return config, RopeChoice("yarn", factor, original, written_as)
