"""Makes built-in examples: tasks of the same kind as the benchmarks', on texts that need no network.

They are labelled as different from the official sets: the questions are wp1's own, the texts are the King James Bible
and the source of the lm-eval package. Wording, limits and scores are those of the official tasks. Each benchmark's
module makes its own; RULER's, which are generated in any case, come from `wp1.quality.ruler`.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from wp1.quality import lm_eval_files
from wp1.quality.book import Passages
from wp1.quality.fit_to_length import Draft, Filler
from wp1.quality.rows import Row
from wp1.quality.tasks import Made, Make, Making, Task
from wp1.workload.book import verses
from wp1.workload.seeds import derive_seed


@dataclass(frozen=True)
class Question:
    """A question about the book, and the verse that answers it."""

    index: int  # the verse's
    kind: str  # person, place, thing or number
    text: str
    answers: list[str]


@dataclass(frozen=True)
class Kind:
    """How to make the row of one example longer or shorter.

    row: the row for a number of units of filling and a number of padding sentences. size: estimated tokens of a number
    of units. least, most: limits on the number of units.
    """

    row: Callable[[int, int], Row]
    size: Callable[[int], int]
    least: int = 1
    most: int = 1 << 30


# (inputs, random generator of one example, its number) -> Kind
KindOf = Callable[[Making, random.Random, int], Kind]


def maker(making: Making, kinds: Mapping[str, KindOf], task: Callable[[str], Task]) -> Make:
    """A `Make` for these tasks; each example is filled up to the length with units of its kind."""

    def make(name: str, seed: int, number: int) -> list[Made]:
        one = task(name)
        rng = random.Random(derive_seed(seed, "built-in", name, making.length, number))
        return [_made(making, one, kinds[name](making, rng, number), number)]

    return make


def _made(making: Making, task: Task, kind: Kind, number: int) -> Made:
    drafted: list[Row] = []

    def write(units: int, noise: int) -> str:
        drafted[:] = [kind.row(units, noise)]
        return task.prompt(drafted[0])

    encode = making.tokens.chat if task.chat else making.tokens.plain
    filler = Filler(encode, making.length, task.max_tokens)
    if task.nll_window is not None:
        # There is no question at the end, so the text is simply cut to length.
        ids = encode(write(making.passages.count_within(0, 2 * making.length) + 1, 0))[: filler.bounds[1]]
    else:
        ids = filler.fit(Draft(write, kind.size, kind.least, kind.most), f"{task.name} at {making.length}")
        # Rewrite the chosen draft: the last one tried may not be the one that fits.
        write(*filler.chosen)
    return Made(replace(drafted[0], id=f"{making.length}-{number}", task=task.name, length=making.length), ids)


def around(
    passages: Passages, rng: random.Random, number: int
) -> tuple[Question, Callable[[int], tuple[int, int]], float]:
    """A question, a function for the passage around its verse, and the verse's random depth in percent.

    The function maps a number of verses to the passage's first verse and its length in verses.
    """
    every = questions()
    question = every[(rng.randrange(len(every)) + number) % len(every)]
    depth = rng.uniform(0, 1)

    def stretch(units: int) -> tuple[int, int]:
        return (question.index - round(depth * (units - 1))) % len(passages.verses), units

    return question, stretch, round(100 * depth, 1)


@cache
def questions() -> tuple[Question, ...]:
    """The questions about the book, written for wp1."""
    places: dict[tuple[str, int], list[int]] = {}
    for index, verse in enumerate(verses()):
        places.setdefault((verse.book, verse.chapter), []).append(index)
    lines = (Path(__file__).parent / "book_questions.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(
        Question(places[row["book"], row["chapter"]][row["verse"] - 1], row["kind"], row["question"], row["answers"])
        for row in map(json.loads, lines)
    )


@cache
def code() -> str:
    """Python code: the source of lm-eval, whose version is pinned, without blank lines."""
    root = lm_eval_files.folder("longbench").parents[1]
    files = [file for part in ("api", "models") for file in sorted((root / part).rglob("*.py"))]
    lines = (line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return "\n".join(line.rstrip() for line in lines if line.strip()) + "\n"
