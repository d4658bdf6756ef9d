"""Of what a run came, in words: how to run it again, the state of the code, and whose answers they are. Pure."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from wp1.analysis.base.markdown import code

LOCAL_CHANGES = "with local changes"
LOCAL_CHANGES_MEANING = (
    "when the run began, files of the checkout differed from that commit or were not in it; what differed is not "
    "recorded"
)


def command_of(metadata: Mapping[str, Any]) -> str:
    """How to run it again, from run_metadata.json: of a sweep's job its own settings, not those of all jobs."""
    job = metadata.get("sweep")
    return again(job["overrides"] if job else metadata["command"][1:])


def again(words: Sequence[str]) -> str:
    """The command with these words, less the folder of that machine in which outputs lay."""
    return shlex.join(["python", "-m", "wp1", *(word for word in words if not word.startswith("root="))])


def code_of(git: Mapping[str, Any]) -> str:
    """The commit, and whether it is all that ran."""
    return f"`{git['commit'][:12]}`{f' {LOCAL_CHANGES}' if git['dirty'] else ''}"


def answers_of(model: Mapping[str, Any], temperature: float) -> str:
    """Whose answers a run has, and how they were sampled, in a sentence or two; "" where no model came up.

    model: of run_metadata.json.
    """
    if not model:
        return ""
    shape = model.get("shape")
    # Not of quantised weights, whose elements are of several sizes.
    plain = shape and shape["unlike"] is None and model.get("weight_bytes")
    parameters = model["weight_bytes"] / shape["element_bytes"] if shape and plain else None
    size = f", a model of {_parameters(parameters)} parameters," if parameters else ""
    sampled = f"sampled at a temperature of {temperature:g}" if temperature else "at temperature 0"
    said = f"Answers are those of {code(model['name'])}{size} {sampled}."
    if model.get("random_weights"):
        return f"{said} Its weights are random, so they mean nothing."
    if parameters and parameters < 1e9:
        said += " A model this small is often wrong or repeats itself; that says nothing of how it is served."
    return said


def _parameters(count: float) -> str:
    return f"{count / 1e6:,.0f} million" if count < 1e9 else f"{count / 1e9:,.1f} billion"
