"""RULER (arXiv:2404.06654): 13 tasks of any length. What they ask and how it is scored; `ruler_prompts` makes them.

Wording and limits are lm-eval's; scores as in scripts/eval/synthetic/constants.py of NVIDIA/RULER at c3f5e3b4.
"""

import re
from dataclasses import dataclass
from functools import cache

from wp1.quality import lm_eval_files
from wp1.quality.tasks import Row, Task

NAME = "ruler"
# Said wherever scores of prompts that were made here are shown.
VARIANT = (
    "RULER's prompts are laid out as NVIDIA's generators lay them out (not as lm-eval's), with draws of wp1's own and "
    "essays from the King James Bible."
)


@dataclass(frozen=True)
class Needles:
    """What a needle task hides and asks for (scripts/synthetic.yaml)."""

    haystack: str  # repeat, essay or needle
    key: str = "words"  # words or uuids
    value: str = "numbers"  # numbers or uuids
    keys: int = 1
    values: int = 1  # a key
    queries: int = 1


NEEDLES = {
    "niah_single_1": Needles("repeat"),
    "niah_single_2": Needles("essay"),
    "niah_single_3": Needles("essay", value="uuids"),
    "niah_multikey_1": Needles("essay", keys=4),
    "niah_multikey_2": Needles("needle"),
    "niah_multikey_3": Needles("needle", key="uuids", value="uuids"),
    "niah_multivalue": Needles("essay", values=4),
    "niah_multiquery": Needles("essay", keys=4, queries=4),
}
CATEGORY_OF = dict.fromkeys(NEEDLES, "retrieval") | {
    "vt": "multi-hop tracing",
    "cwe": "aggregation",
    "fwe": "aggregation",
    "qa_1": "question answering",
    "qa_2": "question answering",
}
# RULER's own: lm-eval's files have only 128 for all needle tasks and the same for the others.
FILES = {"qa_1": "qa_squad", "qa_2": "qa_hotpot"}
# The score that a length needs to count as reached: Llama-2-7B's at 4,096 tokens, in percent (paper, section 4).
THRESHOLD = 85.6


def names() -> tuple[str, ...]:
    return tuple(CATEGORY_OF)


@cache
def task(name: str) -> Task:
    file = lm_eval_files.task_file("ruler", f"{FILES.get(name, name)}.yaml")
    return Task(
        name=name,
        benchmark=NAME,
        category=CATEGORY_OF[name],
        max_tokens=lm_eval_files.max_tokens(file),
        prompt=lambda row: row.context,
        score=match_any if name in FILES else match_all,
        metric="match_any" if name in FILES else "match_all",
    )


def _clean(prediction: str) -> str:
    return re.sub(r"[\x00-\x1f]", "\n", prediction.strip()).strip().lower()


def match_all(prediction: str, row: Row) -> float:
    """The share of the references that occur, in any case of letters (`string_match_all`)."""
    said = _clean(prediction)
    return sum(str(answer).lower() in said for answer in row.answers) / len(row.answers)


def match_any(prediction: str, row: Row) -> float:
    """Whether any reference occurs (`string_match_part`). lm-eval averages over the references."""
    said = _clean(prediction)
    return float(any(str(answer).lower() in said for answer in row.answers))
