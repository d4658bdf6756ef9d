"""Reads questions, prompts and recorded chats from a built-in file or from one of the user's."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wp1.core.errors import ConfigError
from wp1.workload import chats, row_files
from wp1.workload.row_files import BadRowError

log = logging.getLogger(__name__)

BUILTIN = Path(__file__).parent
FORMS = (
    'questions are read from "question" (with "context"), "prompt", "messages" (OpenAI, also under "body"), or '
    '"conversations" (ShareGPT)'
)


@dataclass(frozen=True)
class Question:
    """One row: an id, the question, and the text it is about, if any; for a chat, all messages to send.

    answer: the answer at the time of recording. output_len: tokens that the row asks for.
    """

    id: str
    question: str
    context: str = ""
    messages: chats.Messages = ()
    answer: str | None = None
    output_len: int | None = None
    where: str = ""  # FILE:LINE

    @property
    def prompt(self) -> str:
        """The whole prompt as one text, for a model without a chat template."""
        if self.messages:
            return "\n\n".join(text for _, text in self.messages)
        return f"{self.context}\n\n{self.question}" if self.context else self.question


@dataclass
class Questions:
    """A dataset's rows, and one message (file and line first) for each row left out."""

    rows: list[Question] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


def path_of(dataset: Any) -> Path:
    """The file of a configured dataset. Raises ConfigError for an unknown built-in name."""
    if dataset.source == "file":
        return Path(dataset.path).expanduser()
    path = BUILTIN / f"{dataset.name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in BUILTIN.glob("*.jsonl")))
        raise ConfigError(f"dataset.name={dataset.name} is not built in: set dataset.name to {known}")
    return path


def read(dataset: Any) -> Questions:
    """The first `dataset.limit` rows of a dataset in file order; later rows are not read.

    Raises ConfigError, naming file and line, for a row without a question or with a repeated id, unless
    dataset.on_bad_row=skip, which leaves such rows out and counts them; and for a file without a good row.
    """
    path, questions = path_of(dataset), Questions()
    seen: set[str] = set()
    skip = getattr(dataset, "on_bad_row", "error") == "skip"
    for number, (where, fields) in enumerate(row_files.read(path), start=1):
        try:
            questions.rows.append(_checked(fields, where, number, seen))
        except BadRowError as error:
            if not skip:
                hint = "; fix it, or set dataset.on_bad_row=skip" if dataset.source == "file" else ""
                raise ConfigError(f"{where} {error}{hint}") from error
            if not questions.bad:
                log.warning("left out: %s %s (run_metadata.json counts all bad rows)", where, error)
            questions.bad.append(f"{where} {error}")
        if len(questions.rows) == dataset.limit:
            break
    if not questions.rows:
        bad = f" that can be used ({len(questions.bad)} bad rows, first: {questions.bad[0]})" if questions.bad else ""
        raise ConfigError(f"{path} has no questions{bad}: JSON objects are needed, one per line or in an array")
    return questions


def _checked(fields: dict[str, Any] | BadRowError, where: str, number: int, seen: set[str]) -> Question:
    if isinstance(fields, BadRowError):
        raise fields
    row = _row(fields, where, _default_id(where, number))
    if row.id in seen:
        raise BadRowError(f"repeats the id {row.id}: ids are unique in a file")
    seen.add(row.id)
    return row


def _default_id(where: str, number: int) -> str:
    """From the line number if the file has one row per line, else from the row's number."""
    line = where.rpartition(":")[2]
    return f"q{line}" if line.isdecimal() else f"q-row{number}"


def _row(fields: dict[str, Any], where: str, default_id: str) -> Question:
    name = next((name for name in ("id", "custom_id", "_id") if fields.get(name) is not None), None)
    row_id = default_id if name is None else row_files.id_of(fields[name], name)
    question, context = fields.get("question"), fields.get("context", "")
    if question is None and (chat := chats.asked_of(fields)) is not None:
        label = next(text for role, text in reversed(chat.messages) if role == "user")
        return Question(row_id, label, "", chat.messages, chat.answer, chat.output_len, where)
    if not isinstance(question, str) or not question.strip():
        raise BadRowError(f'has no "question" with a text; it has the fields {row_files.fields_of(fields)}: {FORMS}')
    if not isinstance(context, str):
        raise BadRowError('has a "context" that is not a text')
    return Question(row_id, question, context, output_len=chats.output_len_of(fields), where=where)
