"""LongBench v2 (arXiv:2412.15204): 503 multiple-choice questions; the letter is extracted from the model's answer.

Prompt, extraction and groups are as in pred.py and result.py of THUDM/LongBench. The question's wording is lm-eval's,
which scores by log-likelihood and therefore lacks the line that asks for a format.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from wp1.quality import lm_eval_files, rows
from wp1.quality.rows import Fields
from wp1.quality.tasks import Benchmark, Predictions, Reporting, Row, Task
from wp1.workload.row_files import BadRowError

NAME = "longbench_v2"
# The last line of prompts/0shot.txt; lm-eval's has "Answer:" instead.
FORMAT = 'Format your response as follows: "The correct answer is (insert answer here)".'
MAX_TOKENS = 128  # pred.py
DIFFICULTIES = ("easy", "hard")
LENGTHS = ("short", "medium", "long")
GROUPS = {"difficulty": DIFFICULTIES, "length": LENGTHS}


@cache
def task(name: str) -> Task:
    file = lm_eval_files.task_file("longbench2", "_longbench_common_yaml")
    template = file["doc_to_text"].removesuffix("Answer:") + FORMAT
    return Task(
        name=name,
        benchmark=NAME,
        category="multiple choice",
        max_tokens=MAX_TOKENS,
        prompt=lambda row: lm_eval_files.render(
            template,
            context=row.context.strip(),
            question=row.question,
            choices=[choice.strip() for choice in row.choices],
        ),
        score=lambda prediction, row: float(extract(prediction) == row.answers[0]),
    )


def extract(response: str) -> str | None:
    """The letter that a response names in the requested format, or None (pred.py, `extract_answer`)."""
    text = response.replace("*", "")
    match = re.search(r"The correct answer is \(([A-D])\)", text) or re.search(r"The correct answer is ([A-D])", text)
    return match.group(1) if match else None


def row(name: str, fields: Fields, default_id: str) -> Row:
    """A row from the official schema."""
    rows.filled(fields, "answer")
    letters = answers(name, fields, ("answer",))
    extra = {key: rows.text(fields, key, default="") for key in ("difficulty", "length", "domain", "sub_domain")}
    return Row(
        id=rows.identifier(fields, ("_id", "id"), default_id),
        task=name,
        context=rows.filled(fields, "context"),
        question=rows.filled(fields, "question"),
        answers=letters,
        choices=[rows.filled(fields, f"choice_{letter}") for letter in "ABCD"],
        groups=tuple(extra[key] for key in GROUPS if extra[key]),
        extra=extra,
    )


def answers(name: str, fields: Fields, names: tuple[str, ...]) -> list[Any]:
    """One letter from A to D."""
    letters = rows.answers(name, fields, names)
    if letters[0] not in ("A", "B", "C", "D"):
        key = rows.first_of(fields, names)
        raise BadRowError(f'has the "{key}" {str(letters[0])[:40]!r}: one of A, B, C, D is needed')
    return letters


def _prediction(fields: Fields) -> Any:
    """The model's answer. Official files have it as `response`, and the letter extracted from it as `pred`."""
    if isinstance(fields.get("response"), str) or "pred" not in fields:
        return fields.get(rows.first_of(fields, ("response", "prediction")) or "")
    letter = fields["pred"]
    if letter is not None and not isinstance(letter, str):
        raise BadRowError('has a "pred" that is not a letter or null')
    return f"The correct answer is ({letter})" if letter else ""


def _groups_of_prediction(name: str, fields: Fields) -> Sequence[str]:
    for key, known in GROUPS.items():
        if fields.get(key) is not None and fields[key] not in known:
            raise BadRowError(f'has a "{key}" that is not one of {", ".join(known)}')
    return [fields[key] for key in GROUPS if fields.get(key) is not None]


BENCHMARK = Benchmark(
    name=NAME,
    names=(NAME,),
    task=task,
    row=row,
    answers=answers,
    predictions=Predictions(
        marks=("difficulty", "sub_domain", "choice_A"), prediction=_prediction, groups=_groups_of_prediction
    ),
    reporting=Reporting("LongBench v2", groups=(*DIFFICULTIES, *LENGTHS)),
)
