"""Examples from JSON objects, in the official schemas and a generic one, and what is wrong with those that are none."""

import re
from collections.abc import Mapping
from typing import Any

from wp1.quality.benchmarks import infinitebench, longbench, longbench_v2, pg19
from wp1.quality.tasks import Row
from wp1.workload.row_files import BadRowError, id_of, whole

# Tasks of LongBench whose answers name a paragraph; its scorers take the number that follows.
RETRIEVED = {"passage_retrieval_en": "Paragraph ", "passage_retrieval_zh": "段落"}


def read(task: str, benchmark: str, fields: Mapping[str, Any], default_id: str) -> Row:
    """A row in the schema of its benchmark; the generic schema is `context`, `question`, `answers` (or `answer`).

    Raises BadRowError for a field that is missing, empty or of the wrong type.
    """
    if benchmark == longbench_v2.NAME:
        return _longbench_v2(task, fields, default_id)
    if benchmark == infinitebench.NAME:
        return _infinitebench(task, fields, default_id)
    if benchmark == "ruler":
        return _ruler(task, fields, default_id)
    if benchmark == pg19.NAME:
        return _pg19(task, fields, default_id)
    return _longbench(task, fields, default_id)


def _longbench(task: str, fields: Mapping[str, Any], default_id: str) -> Row:
    language = _text(fields, "language", default="zh" if task in longbench.CHINESE else "en")
    return Row(
        id=_id(fields, ("_id", "id"), default_id),
        task=task,
        context=_filled(fields, "context"),
        # Their own name, lm-eval's copy's, and the generic one's.
        question=_first_text(fields, ("input", "question"), default=""),
        answers=judged_by(task, longbench.NAME, _answers(task, fields, ("answers", "answer")), []),
        all_classes=_classes(task, fields),
        length=_length(fields, "length"),
        language=language,
    )


def _classes(task: str, fields: Mapping[str, Any]) -> list[str]:
    return classes_of(fields, needed=task.removesuffix("_e") in ("trec", "lsht"))


def classes_of(fields: Mapping[str, Any], needed: bool) -> list[str]:
    """All classes of a classification. Raises BadRowError where they are no list of texts, or needed and not there."""
    classes = fields.get("all_classes")
    if classes is None or (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        if not classes and needed:
            raise BadRowError('has no "all_classes", which this task is scored by: a list of texts')
        return classes or []
    raise BadRowError('has an "all_classes" that is no list of texts')


def _longbench_v2(task: str, fields: Mapping[str, Any], default_id: str) -> Row:
    answer = _filled(fields, "answer")
    if answer not in ("A", "B", "C", "D"):
        raise BadRowError(f'has the "answer" {answer!r}: one of A, B, C, D is needed')
    extra = {key: _text(fields, key, default="") for key in ("difficulty", "length", "domain", "sub_domain")}
    return Row(
        id=_id(fields, ("_id", "id"), default_id),
        task=task,
        context=_filled(fields, "context"),
        question=_filled(fields, "question"),
        answers=[answer],
        choices=[_filled(fields, f"choice_{letter}") for letter in "ABCD"],
        extra=extra,
    )


def _infinitebench(task: str, fields: Mapping[str, Any], default_id: str) -> Row:
    options = options_of(fields)
    if task in infinitebench.CHOICES and not options:
        raise BadRowError('has 0 "options": four are needed')
    answers = judged_by(task, infinitebench.NAME, _answers(task, fields, ("answer", "answers")), options)
    return Row(
        id=_id(fields, ("id", "_id"), default_id),
        task=task,
        context=_filled(fields, "context"),
        question=_first_text(fields, ("input", "question"), default=""),
        answers=answers,
        choices=options,
        language="zh" if task.endswith("_chn") else "en",
    )


def _ruler(task: str, fields: Mapping[str, Any], default_id: str) -> Row:
    return Row(
        id=_id(fields, ("index", "id"), default_id),
        task=task,
        context=_filled(fields, "input"),
        answers=judged_by(task, "ruler", _answers(task, fields, ("outputs", "answers")), []),
        length=_length(fields, "length"),
        extra={"answer_prefix": _text(fields, "answer_prefix", default="")},
    )


def _pg19(task: str, fields: Mapping[str, Any], default_id: str) -> Row:
    book = _id(fields, ("url", "short_book_title", "id"), default_id)
    try:
        return pg19.row_of_book(task, book, _filled(fields, "text"))
    except BadRowError:
        raise
    except ValueError as error:
        raise BadRowError(str(error)) from None


def _id(fields: Mapping[str, Any], names: tuple[str, ...], default: str) -> str:
    name = next((name for name in names if fields.get(name) is not None), None)
    return default if name is None else id_of(fields[name], name)


def _text(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise BadRowError(f'has no "{name}": a text is needed' if value is None else f'has a "{name}" that is no text')
    if not whole(value):
        raise BadRowError(f'has half a character (a lone surrogate) in "{name}"')
    return value


def _filled(fields: Mapping[str, Any], name: str) -> str:
    value = _text(fields, name)
    if not value.strip():
        raise BadRowError(f'has an empty "{name}"')
    return value


def _first_text(fields: Mapping[str, Any], names: tuple[str, ...], default: str) -> str:
    return next((_text(fields, name) for name in names if fields.get(name) is not None), default)


def _answers(task: str, fields: Mapping[str, Any], names: tuple[str, ...]) -> list[Any]:
    name = next((name for name in names if fields.get(name) is not None), names[0])
    return answers_of(task, fields.get(name), name)


def answers_of(task: str, value: Any, name: str) -> list[Any]:
    """The answers of a row as a list: texts and numbers; of math_calc also one list of them, as the set has it.

    Raises BadRowError for none, and for null, true or false, objects and lists among them.
    """
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, bool | dict):
        raise BadRowError(f'has "{name}" that are neither texts nor numbers: a list of those is needed')
    if not isinstance(value, list) or not value or value == [[]]:
        raise BadRowError(f'has no "{name}": a list with at least one is needed')
    nested = task == "math_calc" and len(value) == 1 and isinstance(value[0], list)
    for answer in value[0] if nested else value:
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            kind = "null" if answer is None else {dict: "an object", list: "a list"}.get(type(answer), "true or false")
            raise BadRowError(f'has "{name}" that are neither texts nor numbers ({kind} is among them)')
    return value


def options_of(fields: Mapping[str, Any]) -> list[str]:
    """The four options of a choice, none where a row has none. Raises BadRowError for what are not."""
    options = fields.get("options") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise BadRowError('has "options" that are no list of texts')
    if len(options) not in (0, 4):
        raise BadRowError(f'has {len(options)} "options": four are needed')
    return options


def judged_by(task: str, benchmark: str, answers: list[Any], options: list[str]) -> list[Any]:
    """The answers in the form that a task is scored by. Raises BadRowError for those that it cannot be scored by."""
    if benchmark == "ruler" and not all(str(answer).strip() for answer in answers):
        raise BadRowError("has an empty answer, which every text contains")
    if task.removesuffix("_e") in RETRIEVED:
        form = RETRIEVED[task.removesuffix("_e")]
        for answer in answers:
            if not re.search(rf"{form}\d", str(answer)):
                raise BadRowError(f"has the answer {str(answer)[:40]!r}: the number after {form!r} is what is scored")
    if benchmark != infinitebench.NAME:
        return answers
    try:
        infinitebench.check_answers(task, answers)
        return infinitebench.label_of(task, answers, options)
    except ValueError as error:
        raise BadRowError(str(error)) from None


def _length(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise BadRowError(f'has a "{name}" that is no whole number')
    return value
