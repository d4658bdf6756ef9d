"""Scores of answers: by the rule of one of wp1's tasks, or as saved by a run with a benchmark from outside wp1.

A run's folder is data, and a report imports no code that it names. So a run with a benchmark from outside saves its
scores in its folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.quality import perplexity
from wp1.core import files, shapes
from wp1.core.errors import ConfigError
from wp1.core.jsonl import read_rows
from wp1.core.run_files import SCORES
from wp1.core.run_folder import RunFolder
from wp1.quality import benchmarks
from wp1.quality.benchmarks import Benchmarks
from wp1.quality.tasks import Row, Task

# A score in 0..1, and whether the task's rule failed on the answer; then the score is zero and the report counts it.
Score = tuple[float, bool]


def examples(run: RunFolder) -> dict[tuple[str, str], dict[str, Any]]:
    """The lines of examples.jsonl by cell and example. Raises ConfigError if the file is broken."""
    return {(line["cell"], line["example"]): line for line in run.examples}


def groups(example: Mapping[str, Any]) -> list[str]:
    """The groups that an example is reported in; older folders keep them under two other keys."""
    names = example.get("groups")
    return (
        [name for name in (example.get("difficulty"), example.get("length_group")) if name] if names is None else names
    )


class Scores:
    """The scores of a run's answers."""

    def __init__(self, run: RunFolder) -> None:
        self._path = SCORES.at(run.path)
        self._saved: dict[str, Score] | None = None

    def of(self, example: Mapping[str, Any], record: Mapping[str, Any]) -> Score | None:
        """The score of a request, zero if it failed. None for a perplexity task, which scores the prompt instead.

        Raises ConfigError for a task that does not exist, or whose scores are missing.
        """
        if example["metric"] == perplexity.METRIC:
            return None
        if record["status"] != "ok":
            return 0.0, False
        benchmark = example["task"].partition("/")[0]
        if benchmark in benchmarks.own():
            return _score(benchmarks.find(example["task"]), example, record["text"])
        if self._saved is None:
            self._saved = _read(self._path, benchmark)
        if (score := self._saved.get(record["request_id"])) is None:
            raise ConfigError(f"{self._path} lacks the score of {record['request_id']}: restore it from a copy")
        return score


def save(run: RunTables, among: Benchmarks) -> None:
    """Writes scores.jsonl: a line per answer to a benchmark from outside. among: all benchmarks known to the run."""
    asked = examples(run)
    requests = run.requests
    lines = []
    for record in requests.select("request_id", "cell", "example", "status", "text").iter_rows(named=True):
        example = asked.get((record["cell"], record["example"]))
        if example is None or record["status"] != "ok" or example["metric"] == perplexity.METRIC:
            continue
        if example["task"].partition("/")[0] not in benchmarks.own():
            score, odd = _score(benchmarks.find(example["task"], among), example, record["text"])
            lines.append({"request_id": record["request_id"], "score": score, "odd": odd})
    files.write_text(SCORES.at(run.path), "".join(f"{files.json_text(line)}\n" for line in lines))


def _read(path: Path, benchmark: str) -> dict[str, Score]:
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing: it holds the scores of {benchmark}, a benchmark from outside wp1. Restore the file "
            "from a copy, or continue the run with resume="
        )
    lines = read_rows(path, "score", *shapes.SCORE, shape=shapes.SCORE)
    wrong = next((line for line in lines if not 0 <= line["score"] <= 1), None)
    if wrong is not None:
        raise ConfigError(f"{path}: score {wrong['score']} must be in [0, 1]: restore the file from a copy")
    return {line["request_id"]: (float(line["score"]), line["odd"]) for line in lines}


def _score(task: Task, example: Mapping[str, Any], text: str | None) -> Score:
    row = Row("", "", answers=example["answers"], all_classes=example["all_classes"])
    try:
        score = float(task.score(text or "", row))
    except Exception:  # the rule may be third-party code, and a model may answer anything
        return 0.0, True
    return (score, False) if 0 <= score <= 1 else (0.0, True)
