"""Questions to ask, from a built-in file or one of the user's."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wp1.errors import ConfigError

BUILTIN = Path(__file__).parent


@dataclass(frozen=True)
class Question:
    """One row: an id, the question, and the text it is about, if any."""

    id: str
    question: str
    context: str = ""

    @property
    def prompt(self) -> str:
        return f"{self.context}\n\n{self.question}" if self.context else self.question


def path_of(dataset: Any) -> Path:
    """The JSONL file behind a dataset's configuration. Raises ConfigError for an unknown built-in name."""
    if dataset.source == "file":
        return Path(dataset.path).expanduser()
    path = BUILTIN / f"{dataset.name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in BUILTIN.glob("*.jsonl")))
        raise ConfigError(f"dataset.name={dataset.name} is not built in: set dataset.name to {known}")
    return path


def load(dataset: Any) -> list[Question]:
    """The rows of a dataset, in the file's order, at most `dataset.limit`.

    Raises ConfigError naming file and line of a row that is not an object with a "question", or whose id was used.
    """
    path = path_of(dataset)
    questions: list[Question] = []
    seen: set[str] = set()
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"dataset.path={path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question = _row(line, f"{path}:{number}", default_id=f"q{number}")
        if question.id in seen:
            raise ConfigError(f"{path}:{number} repeats the id {question.id}: ids are unique in a file")
        seen.add(question.id)
        questions.append(question)
    if not questions:
        raise ConfigError(f"{path} has no questions: one JSON object a line is needed")
    return questions[: dataset.limit]


def _row(line: str, where: str, default_id: str) -> Question:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ConfigError(f'{where} is not an object: write {{"question": "..."}}')
    question, context = row.get("question"), row.get("context", "")
    if not isinstance(question, str) or not question.strip():
        raise ConfigError(f'{where} has no "question": add one, a text')
    if not isinstance(context, str):
        raise ConfigError(f'{where} has a "context" that is no text')
    try:
        (question + context).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where} has half a character (a lone surrogate): mend the text") from error
    return Question(str(default_id if row.get("id") is None else row["id"]), question, context)
