"""A run's provenance as text: its command, the state of the code, and the model behind its answers. Pure."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from wp1.analysis.base.markdown import code

LOCAL_CHANGES = "with local changes"
LOCAL_CHANGES_MEANING = (
    "when the run began, files of the checkout differed from that commit or were not in it; the difference is not "
    "recorded"
)


def command_of(metadata: Mapping[str, Any]) -> str:
    """The command that repeats a run, from run_metadata.json; for a sweep's job with its own settings only."""
    job = metadata.get("sweep")
    return again(job["overrides"] if job else metadata["command"][1:])


def again(words: Sequence[str]) -> str:
    """The command with these arguments, without `root=`, which is a path of one machine."""
    return shlex.join(["python", "-m", "wp1", *(word for word in words if not word.startswith("root="))])


def code_of(git: Mapping[str, Any]) -> str:
    """The commit, and whether there were local changes."""
    return f"`{git['commit'][:12]}`{f' {LOCAL_CHANGES}' if git['dirty'] else ''}"


def answers_of(model: Mapping[str, Any], temperature: float) -> str:
    """Which model gave the answers and how they were sampled, in a sentence or two; "" if no model was loaded.

    model: from run_metadata.json.
    """
    if not model:
        return ""
    shape = model.get("shape")
    # Unknown for quantised weights, whose elements have several sizes.
    plain = shape and shape["unlike"] is None and model.get("weight_bytes")
    parameters = model["weight_bytes"] / shape["element_bytes"] if shape and plain else None
    size = f", a model of {_parameters(parameters)} parameters," if parameters else ""
    sampled = f"sampled at a temperature of {temperature:g}" if temperature else "at temperature 0"
    sentences = f"Answers are from {code(model['name'])}{size} {sampled}."
    if model.get("random_weights"):
        return f"{sentences} Its weights are random, so the answers mean nothing."
    if parameters and parameters < 1e9:
        sentences += " A model this small is often wrong or repeats itself, which says nothing about the serving."
    return sentences


def _parameters(count: float) -> str:
    return f"{count / 1e6:,.0f} million" if count < 1e9 else f"{count / 1e9:,.1f} billion"
