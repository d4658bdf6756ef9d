"""A benchmark's row, and what reads its fields from a JSON object; a field that is missing or wrong is named."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wp1.workload import row_files
from wp1.workload.row_files import BadRowError, whole

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One example, whatever benchmark it is from. What only one benchmark has is in `extra`."""

    id: str
    task: str
    context: str = ""
    question: str = ""
    answers: list[Any] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    all_classes: list[str] = field(default_factory=list)
    length: int | None = None  # as the set states it, in its own unit
    language: str = "en"
    groups: tuple[str, ...] = ()  # in which its score is reported too; `Reporting.groups` has their order
    # answer_prefix: the words that the answer begins with. depth: where a needle is, in percent of the context.
    extra: dict[str, Any] = field(default_factory=dict)


def generic(task: str, fields: Fields, default_id: str) -> Row:
    """A row in the generic schema: `context` or `question` or both, and `answers` (or `answer`).

    Raises BadRowError for a field that is missing, empty or of the wrong type.
    """
    context, question = text(fields, "context", default=""), text(fields, "question", default="")
    if not context.strip() and not question.strip():
        raise BadRowError('has neither "context" nor "question": a text is needed')
    return Row(
        id=identifier(fields, ("id", "_id"), default_id),
        task=task,
        context=context,
        question=question,
        answers=answers(task, fields, ("answers", "answer")),
        all_classes=classes(fields, needed=False),
        length=length(fields, "length"),
        language=text(fields, "language", default="en"),
    )


def identifier(fields: Fields, names: tuple[str, ...], default: str) -> str:
    """The id under the first of these names that the row has; `default` if it has none of them."""
    name = first_of(fields, names)
    return default if name is None else row_files.id_of(fields[name], name)


def first_of(fields: Fields, names: tuple[str, ...]) -> str | None:
    """The first of these names that the row has, with something other than null."""
    return next((name for name in names if fields.get(name) is not None), None)


def text(fields: Fields, name: str, default: str | None = None) -> str:
    """A text. Raises BadRowError if it is missing and has no default, or is something else."""
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise BadRowError(f'has no "{name}": a text is needed' if value is None else f'has a "{name}" that is no text')
    if not whole(value):
        raise BadRowError(f'has half a character (a lone surrogate) in "{name}"')
    return value


def filled(fields: Fields, name: str) -> str:
    """A text that is not blank."""
    value = text(fields, name)
    if not value.strip():
        raise BadRowError(f'has an empty "{name}"')
    return value


def first_text(fields: Fields, names: tuple[str, ...], default: str) -> str:
    """The text under the first of these names that the row has."""
    name = first_of(fields, names)
    return default if name is None else text(fields, name)


def answers(task: str, fields: Fields, names: tuple[str, ...]) -> list[Any]:
    """The answers of a row, under the first of these names that it has; as a benchmark without rules of its own."""
    name = first_of(fields, names) or names[0]
    return listed(fields.get(name), name)


def listed(value: Any, name: str, nested: bool = False) -> list[Any]:
    """The answers of a row as a list of texts and numbers. nested: they may be one list of them, inside another.

    Raises BadRowError for an empty list, and for null, true or false, objects and lists among them.
    """
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, bool | dict):
        raise BadRowError(f'has "{name}" that are neither texts nor numbers: a list of those is needed')
    if not isinstance(value, list) or not value or value == [[]]:
        raise BadRowError(f'has no "{name}": a list with at least one is needed')
    inner = nested and len(value) == 1 and isinstance(value[0], list)
    for answer in value[0] if inner else value:
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            kind = "null" if answer is None else {dict: "an object", list: "a list"}.get(type(answer), "true or false")
            raise BadRowError(f'has "{name}" that are neither texts nor numbers ({kind} is among them)')
    return value


def classes(fields: Fields, needed: bool) -> list[str]:
    """All classes of a classification. Raises BadRowError if they are no list of texts, or needed and missing."""
    found = fields.get("all_classes")
    if found is None or (isinstance(found, list) and all(isinstance(name, str) for name in found)):
        if not found and needed:
            raise BadRowError('has no "all_classes", which this task is scored by: a list of texts')
        return found or []
    raise BadRowError('has an "all_classes" that is no list of texts')


def options(fields: Fields) -> list[str]:
    """The four options of a choice, [] if a row has none. Raises BadRowError for anything else."""
    found = fields.get("options") or []
    if not isinstance(found, list) or not all(isinstance(option, str) for option in found):
        raise BadRowError('has "options" that are no list of texts')
    if len(found) not in (0, 4):
        raise BadRowError(f'has {len(found)} "options": four are needed')
    return found


def length(fields: Fields, name: str) -> int | None:
    """A length as the set states it, if it does."""
    value = fields.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise BadRowError(f'has a "{name}" that is no whole number')
    return value
