"""One MLflow run as plain data, and the names and values that MLflow accepts."""

import getpass
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STATUS = {"completed": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
# MLflow's limits; a longer value is refused or truncated by the server, depending on its version.
MAX_KEY, MAX_PARAM, MAX_TAG = 250, 6000, 8000
# Without this query, MLflow 3 opens its trace pages, on which a run's description and metrics are hard to find.
TRAINING_VIEW = "workflowType=machine_learning"


@dataclass(frozen=True)
class Entry:
    """One MLflow run as plain data.

    A wp1 run is one entry, with an entry for each cell below it through the tag `mlflow.parentRunId`. They share the
    tag `run_id`, by which they are found and replaced together. A sweep is an entry above its runs.
    """

    experiment: str
    question: str
    run_id: str  # wp1's
    name: str  # what MLflow shows it as
    status: str
    start_ms: int
    end_ms: int
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    files: list[tuple[Path, str | None]]  # and the artifact folder of each
    texts: dict[str, str]  # by artifact name
    description: str  # markdown, with {run} for the address of its page
    parent: str | None = None  # the MLflow run that it belongs under; ignored if that does not exist
    dataset: dict[str, str] | None = None  # name, digest and source of a scored run's dataset
    curves: list[tuple[str, float, int]] = field(default_factory=list)  # metric, value, prompt length (tokens) as step
    cells: list["Entry"] = field(default_factory=list)  # runs below this one


def name_of(experiment: str, what: Iterable[str | None], started: str) -> str:
    """The display name of a run or sweep in MLflow, such as `e3 agg+disagg llama31_8b_shape 14:05`; its id is a tag.

    started: an ISO 8601 moment. The time of day is in UTC, as in wp1's own ids.
    """
    clock = datetime.fromisoformat(started).astimezone(UTC).strftime("%H:%M")
    return " ".join([experiment, *(word for word in what if word), clock])


def experiment_of(known: dict[str, Any]) -> str:
    """The MLflow experiment of a run or sweep, from its run_metadata.json or sweep.json."""
    return f"wp1-{known['experiment']}"


def milliseconds(moment: str) -> int:
    """An ISO 8601 moment in MLflow's unit, milliseconds since 1970."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


def user() -> str:
    """The name of the publishing user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def named(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The values under keys that MLflow accepts (letters, digits, blanks, `_-.:/`); duplicates are numbered."""
    taken: dict[str, Any] = {}
    for name, value in values:
        parts = [re.sub(r"[^\w\-. :]", "_", part, flags=re.ASCII).strip() for part in str(name).split("/")]
        # MLflow refuses paths with parts that are empty or consist of dots.
        key = "/".join(part if part.strip(".") else "_" for part in parts if part)[:MAX_KEY].rstrip("/") or "_"
        alike = sum(1 for other in taken if other == key or re.fullmatch(re.escape(key) + r"_\d+", other))
        taken[key if key not in taken else f"{key[: MAX_KEY - 8]}_{alike + 1}"] = value
    return taken
