"""What every kind of RULER task hands to `prompts`: a draft to fill, and what it asks for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from wp1.quality import lm_eval_files
from wp1.quality.fit_to_length import Draft

# Tasks that ask the questions of a file of the user's, with lm-eval's name of each.
FILES = {"qa_1": "qa_squad", "qa_2": "qa_hotpot"}


def task_file(name: str) -> dict[str, Any]:
    """lm-eval's file of a task."""
    return lm_eval_files.task_file("ruler", f"{FILES.get(name, name)}.yaml")


@dataclass(frozen=True)
class Asked:
    """A prompt before it has its length."""

    draft: Draft
    answers: list[str]
    opening: str  # the words that the answer begins with
    depths: Callable[[int], list[float]] = lambda _: []  # of the needles asked for, in percent, by units of filling


@cache
def english_words(*categories: str) -> tuple[list[str], ...]:
    """wonderwords' words of each category, sorted."""
    from wonderwords import RandomWord

    return tuple(sorted(set(RandomWord().filter(include_categories=[category]))) for category in categories)
