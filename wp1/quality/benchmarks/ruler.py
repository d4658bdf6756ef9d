"""RULER (arXiv:2404.06654): 13 tasks of any length. Declares and scores them; `wp1.quality.ruler` makes their prompts.

Wording and limits are lm-eval's; scores are as in scripts/eval/synthetic/constants.py of NVIDIA/RULER at c3f5e3b4.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from wp1.core.errors import ConfigError
from wp1.quality import lm_eval_files, rows
from wp1.quality.rows import Fields
from wp1.quality.ruler.asked import FILES, task_file
from wp1.quality.ruler.needles import NEEDLES
from wp1.quality.ruler.prompts import RulerPrompts
from wp1.quality.ruler.questions import qa_set
from wp1.quality.tasks import Benchmark, BuiltIn, Made, Make, Making, Predictions, Reporting, Row, Task
from wp1.workload.row_files import BadRowError

NAME = "ruler"
# Shown wherever scores of built-in prompts are shown.
VARIANT = (
    "RULER's prompts are laid out as NVIDIA's generators lay them out (not as lm-eval's), with draws of wp1's own and "
    "essays from the King James Bible."
)
CATEGORY_OF = dict.fromkeys(NEEDLES, "retrieval") | {
    "vt": "multi-hop tracing",
    "cwe": "aggregation",
    "fwe": "aggregation",
    "qa_1": "question answering",
    "qa_2": "question answering",
}
# Score in percent that a length needs to count as reached: Llama-2-7B's at 4,096 tokens (paper, section 4).
THRESHOLD = 85.6


@cache
def task(name: str) -> Task:
    return Task(
        name=name,
        benchmark=NAME,
        category=CATEGORY_OF[name],
        max_tokens=lm_eval_files.max_tokens(task_file(name)),
        prompt=lambda row: row.context,
        score=match_any if name in FILES else match_all,
        metric="match_any" if name in FILES else "match_all",
    )


def _clean(prediction: str) -> str:
    return re.sub(r"[\x00-\x1f]", "\n", prediction.strip()).strip().lower()


def match_all(prediction: str, row: Row) -> float:
    """Share of the references that occur, ignoring case (`string_match_all`)."""
    text = _clean(prediction)
    return sum(str(answer).lower() in text for answer in row.answers) / len(row.answers)


def match_any(prediction: str, row: Row) -> float:
    """Whether any reference occurs (`string_match_part`). lm-eval averages over the references instead."""
    text = _clean(prediction)
    return float(any(str(answer).lower() in text for answer in row.answers))


def row(name: str, fields: Fields, default_id: str) -> Row:
    """A row from the schema of NVIDIA's generators, or from the generic one with its prompt as `input`."""
    return Row(
        id=rows.identifier(fields, ("index", "id"), default_id),
        task=name,
        context=rows.filled(fields, "input"),
        answers=answers(name, fields, ("outputs", "answers")),
        length=rows.length(fields, "length"),
        extra={"answer_prefix": rows.text(fields, "answer_prefix", default="")},
    )


def answers(name: str, fields: Fields, names: tuple[str, ...]) -> list[Any]:
    """The references. Raises BadRowError if one is empty."""
    references = rows.answers(name, fields, names)
    if not all(str(answer).strip() for answer in references):
        raise BadRowError("has an empty answer, which every text contains")
    return references


def _maker(making: Making) -> Make:
    """Makes needle tasks at each of `dataset.depths`, if set, and all others once."""
    prompts = RulerPrompts(making.tokens, making.length, making.passages, _files(making.dataset))

    def make(name: str, seed: int, number: int) -> list[Made]:
        depths = making.dataset.depths if making.dataset.depths and name in NEEDLES else [None]
        return [prompts.make(name, seed, number, depth) for depth in depths]

    return make


def _files(dataset: Any) -> dict[str, Path]:
    """Task -> the user's file of questions."""
    named = (("qa_1", dataset.squad), ("qa_2", dataset.hotpot))
    return {name: Path(path).expanduser() for name, path in named if path}


def _check(dataset: Any) -> None:
    for key in ("squad", "hotpot"):
        if dataset[key] is not None and not Path(dataset[key]).expanduser().is_file():
            raise ConfigError(f"dataset.{key}={dataset[key]} is not a file: name the set's development file (JSON)")
    for depth in dataset.depths or []:
        if not 0 <= depth <= 100:
            raise ConfigError(f"dataset.depths={list(dataset.depths)} must be percent of the context, 0 to 100")


def _check_files(dataset: Any, names: Sequence[str]) -> None:
    for name, path in _files(dataset).items():
        if name in names:
            qa_set(name, path)


BENCHMARK = Benchmark(
    name=NAME,
    names=tuple(CATEGORY_OF),
    task=task,
    row=row,
    answers=answers,
    built_in=BuiltIn(
        tasks=tuple(name for name in CATEGORY_OF if name not in FILES),
        maker=_maker,
        more_tasks=tuple(FILES),
        variant=VARIANT,
        check=_check,
        check_files=_check_files,
    ),
    predictions=Predictions(marks=("outputs",)),
    reporting=Reporting("RULER", depths=True, threshold=THRESHOLD),
)
