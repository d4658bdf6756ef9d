"""A benchmark's row, and functions that read its fields from a JSON object and name any missing or wrong field."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wp1.workload import row_files
from wp1.workload.row_files import BadRowError, whole

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One example of any benchmark. Fields that only one benchmark has are in `extra`."""

    id: str
    task: str
    context: str = ""
    question: str = ""
    answers: list[Any] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    all_classes: list[str] = field(default_factory=list)
    length: int | None = None  # as stated by the dataset, in its own unit
    language: str = "en"
    groups: tuple[str, ...] = ()  # groups whose score includes this row; `Reporting.groups` has their order
    # answer_prefix: the opening words of the answer. depth: position of a needle, in percent of the context.
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
    """The first of these names whose value in the row is not null, or None."""
    return next((name for name in names if fields.get(name) is not None), None)


def text(fields: Fields, name: str, default: str | None = None) -> str:
    """A text field. Raises BadRowError if it is missing without a default, or is not a text."""
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise BadRowError(
            f'has no "{name}": a text is needed' if value is None else f'has a "{name}" that is not a text'
        )
    if not whole(value):
        raise BadRowError(f'has half a character (a lone surrogate) in "{name}"')
    return value


def filled(fields: Fields, name: str) -> str:
    """A text field that must not be blank."""
    value = text(fields, name)
    if not value.strip():
        raise BadRowError(f'has an empty "{name}"')
    return value


def first_text(fields: Fields, names: tuple[str, ...], default: str) -> str:
    """The text under the first of these names that the row has."""
    name = first_of(fields, names)
    return default if name is None else text(fields, name)


def answers(task: str, fields: Fields, names: tuple[str, ...]) -> list[Any]:
    """The answers of a row, from the first of these names that it has: the default of `Benchmark.answers`."""
    name = first_of(fields, names) or names[0]
    return listed(fields.get(name), name)


def listed(value: Any, name: str, nested: bool = False) -> list[Any]:
    """The answers of a row as a list of texts and numbers. nested: whether that list may be inside another.

    Raises BadRowError for an empty list, and if null, true, false, an object or a list is among the answers.
    """
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, bool | dict):
        raise BadRowError(f'has "{name}" that are not texts or numbers: a list of those is needed')
    if not isinstance(value, list) or not value or value == [[]]:
        raise BadRowError(f'has no "{name}": a list with at least one element is needed')
    inner = nested and len(value) == 1 and isinstance(value[0], list)
    for answer in value[0] if inner else value:
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            kind = "null" if answer is None else {dict: "an object", list: "a list"}.get(type(answer), "true or false")
            raise BadRowError(f'has "{name}" that are not texts or numbers ({kind} is among them)')
    return value


def classes(fields: Fields, needed: bool) -> list[str]:
    """All classes of a classification. Raises BadRowError if they are not a list of texts, or needed but missing."""
    names = fields.get("all_classes")
    if names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        if not names and needed:
            raise BadRowError('has no "all_classes": a list of texts is needed to score this task')
        return names or []
    raise BadRowError('has an "all_classes" that is not a list of texts')


def options(fields: Fields) -> list[str]:
    """The four options of a multiple-choice row, [] if it has none. Raises BadRowError for anything else."""
    texts = fields.get("options") or []
    if not isinstance(texts, list) or not all(isinstance(option, str) for option in texts):
        raise BadRowError('has "options" that are not a list of texts')
    if len(texts) not in (0, 4):
        raise BadRowError(f'has {len(texts)} "options": four are needed')
    return texts


def length(fields: Fields, name: str) -> int | None:
    """A length as stated by the dataset, or None."""
    value = fields.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise BadRowError(f'has a "{name}" that is not a whole number')
    return value
