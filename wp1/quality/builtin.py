"""Built-in tasks: work of the kind that LongBench, InfiniteBench and PG-19 ask for, on texts that need no network.

Not the official sets, and labelled so: the questions are wp1's own, the texts are the King James Bible and the source
of the lm-eval package. Wording, limits and scores are those of the official tasks. RULER's, which are generated anyway,
come from `ruler_prompts`.
"""

import json
import random
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from wp1.quality import lm_eval_files
from wp1.quality.benchmarks import find, infinitebench, longbench, pg19, ruler
from wp1.quality.book import Passages
from wp1.quality.fit_to_length import Draft, Filler, padding
from wp1.quality.ruler_prompts import Made
from wp1.quality.tasks import Row
from wp1.workload.seeds import derive_seed

SUBSETS = {
    "longbench_subset": tuple(
        f"{longbench.NAME}/{name}" for name in ("multifieldqa_en", "passage_retrieval_en", "passage_count", "lcc")
    ),
    "infinitebench_subset": tuple(
        f"{infinitebench.NAME}/{name}"
        for name in ("passkey", "number_string", "kv_retrieval", "math_find", "longbook_choice_eng")
    ),
    "pg19_subset": tuple(f"{pg19.NAME}/{name}" for name in pg19.TASKS),
    "ruler_subset": tuple(f"{ruler.NAME}/{name}" for name in ruler.names() if name not in ruler.FILES),
}
PARAGRAPHS = 30  # passage_retrieval_en says so in its wording


@dataclass(frozen=True)
class Question:
    """A question about the book, and the verse that answers it."""

    index: int  # of the verse
    kind: str  # person, place, thing or number
    text: str
    answers: list[str]


@dataclass(frozen=True)
class _Kind:
    """How a task's rows are made: a row of so many units, and about how many tokens those have."""

    row: Callable[[int, int], Row]
    size: Callable[[int], int]
    least: int = 1
    most: int = 1 << 30


class BuiltinPrompts:
    """Makes prompts of one length for one tokenizer (a `wp1.workload.tokens.ModelTokens`)."""

    def __init__(self, tokens: Any, length: int, passages: Passages) -> None:
        self._tokens = tokens
        self._length = length
        self._book = passages
        self._makers = {
            "multifieldqa_en": self._question,
            "passage_retrieval_en": self._retrieval,
            "passage_count": self._count_passages,
            "lcc": self._code,
            "passkey": self._hidden("pass key", 5),
            "number_string": self._hidden("sequence of digits", 10),
            "kv_retrieval": self._pairs,
            "math_find": self._numbers,
            "longbook_choice_eng": self._choice,
            "pg19_perplexity": self._text,
            "pg19_next_passage": self._next,
        }

    def make(self, name: str, seed: int, number: int) -> Made:
        """Prompt `number` of a task; the same arguments give the same prompt on any machine.

        Raises ConfigError where the task does not fit the length.
        """
        task = find(name)
        rng = random.Random(derive_seed(seed, "built-in", task.name, self._length, number))
        kind = self._makers[task.name](rng, number)
        made: list[Row] = []

        def write(units: int, noise: int) -> str:
            made[:] = [kind.row(units, noise)]
            return task.prompt(made[0])

        encode = self._tokens.chat if task.chat else self._tokens.plain
        filler = Filler(encode, self._length, task.max_tokens)
        if task.name == "pg19_perplexity":
            # Nothing is asked, so it ends where its length does.
            ids = encode(write(self._book.count_within(0, 2 * self._length) + 1, 0))[: filler.bounds[1]]
            return Made(replace(made[0], id=f"{self._length}-{number}", task=task.name, length=self._length), ids)
        ids = filler.fit(Draft(write, kind.size, kind.least, kind.most), f"{task.name} at {self._length}")
        # The last draft that was tried may not be the one that fits.
        write(*filler.chosen)
        row = replace(made[0], id=f"{self._length}-{number}", task=task.name, length=self._length)
        return Made(row, ids)

    def _around(self, rng: random.Random, number: int) -> tuple[Question, Callable[[int], tuple[int, int]], float]:
        """A question, and for a number of verses where a stretch begins that has its verse at a drawn depth."""
        every = questions()
        question = every[(rng.randrange(len(every)) + number) % len(every)]
        depth = rng.uniform(0, 1)

        def stretch(units: int) -> tuple[int, int]:
            return (question.index - round(depth * (units - 1))) % len(self._book.verses), units

        return question, stretch, round(100 * depth, 1)

    def _question(self, rng: random.Random, number: int) -> _Kind:
        question, stretch, depth = self._around(rng, number)

        def row(units: int, noise: int) -> Row:
            context = " ".join([*self._book.texts(*stretch(units)), *padding(noise)])
            return Row("", "", context, question.text, question.answers, extra={"depth": depth})

        return _Kind(row, lambda units: self._book.size(*stretch(units)))

    def _choice(self, rng: random.Random, number: int) -> _Kind:
        question, stretch, depth = self._around(rng, number)
        others = sorted({q.answers[0] for q in questions() if q.kind == question.kind} - set(question.answers))
        options = [question.answers[0], *rng.sample(others, 3)]
        rng.shuffle(options)
        label = infinitebench.label_of("longbook_choice_eng", [question.answers[0]], options)

        def row(units: int, noise: int) -> Row:
            context = " ".join([*self._book.texts(*stretch(units)), *padding(noise)])
            return Row("", "", context, question.text, label, choices=options, extra={"depth": depth})

        return _Kind(row, lambda units: self._book.size(*stretch(units)))

    def _retrieval(self, rng: random.Random, number: int) -> _Kind:
        """Thirty paragraphs, and words from one of them: which?"""
        starts = [self._book.somewhere(rng) for _ in range(PARAGRAPHS)]
        right = rng.randrange(PARAGRAPHS)

        def row(units: int, noise: int) -> Row:
            texts = []
            for n, start in enumerate(starts):
                size = units // PARAGRAPHS + (n < units % PARAGRAPHS)
                # No verse has fewer than two words.
                texts.append(" ".join(" ".join(self._book.texts(start, size // 2 + 1)).split()[:size]))
            context = "\n\n".join(f"Paragraph {n}: {text}" for n, text in enumerate(texts, 1))
            words = texts[right].split()[:40]
            return Row("", "", context, " ".join(words[len(words) // 3 :]), [f"Paragraph {right + 1}"])

        return _Kind(row, lambda units: round(units * 1.4), PARAGRAPHS * 6)

    def _count_passages(self, rng: random.Random, number: int) -> _Kind:
        """Numbered paragraphs of which some occur twice: how many different ones?"""
        drawn: list[int] = []

        def row(units: int, noise: int) -> Row:
            while len(drawn) < units:
                again = len(drawn) > 2 and rng.random() < 0.3
                drawn.append(rng.choice(drawn) if again else self._book.somewhere(rng))
            texts = [self._book.texts(start, 1)[0] for start in drawn[:units]]
            context = "\n\n".join(f"Paragraph {n}: {text}" for n, text in enumerate(texts, 1))
            return Row("", "", f"{context} {' '.join(padding(noise))}".strip(), "", [str(len(set(drawn[:units])))])

        each = self._book.tokens / len(self._book.verses) + 6
        return _Kind(row, lambda units: round(units * each), 2)

    def _code(self, rng: random.Random, number: int) -> _Kind:
        """The line of code that follows; what goes before begins anywhere, as a window does."""
        source = code()
        while True:
            at = source.index("\n", rng.randrange(len(source) // 4, len(source) - 1000)) + 1
            line = source[at : source.index("\n", at)]
            if len(line.strip()) >= 12 and not set(line) & set("#`\"'"):
                break
        each = self._tokens.counts([source[at - 20_000 : at]])[0] / 20_000

        def row(units: int, noise: int) -> Row:
            return Row("", "", source[at - units : at], "", [line])

        return _Kind(row, lambda units: round(units * each), 1, at)

    def _hidden(self, what: str, digits: int) -> Callable[[random.Random, int], _Kind]:
        """A number among noise, as InfiniteBench's construct_synthetic_dataset.py hides it."""

        def kind(rng: random.Random, number: int) -> _Kind:
            value = "".join(rng.choices(string.digits[1:], k=digits))
            depth = rng.uniform(0, 1)
            line = " ".join(padding(5))
            hidden = f"The {what} is {value}. Remember it. {value} is the {what}."

            def row(units: int, noise: int) -> Row:
                lines = [line] * units + ([" ".join(padding(noise))] if noise else [])
                lines.insert(round(depth * units), hidden)
                return Row("", "", "\n".join(lines), f"What is the {what}?", [value], extra={"depth": 100 * depth})

            each = self._tokens.counts([f"{line}\n"])[0]
            return _Kind(row, lambda units: units * each)

        return kind

    def _pairs(self, rng: random.Random, number: int) -> _Kind:
        """One value of a JSON object of many."""
        pairs: list[tuple[str, str]] = []
        place = rng.random()

        def new() -> str:
            return str(uuid.UUID(int=rng.getrandbits(128), version=4))

        def row(units: int, noise: int) -> Row:
            while len(pairs) < units:
                pairs.append((new(), new()))
            key, value = pairs[int(place * units)]
            asked = f'Key: "{key}"\nThe value associated with the specified key is: '
            fillers = {"": " ".join(padding(noise))} if noise else {}
            context = "JSON data:\n" + json.dumps(dict(pairs[:units]) | fillers, indent=0)
            return Row("", "", context, asked, [value], extra={"depth": round(100 * place, 1)})

        each = sum(self._tokens.counts([f'"{new()}": "{new()}",\n' for _ in range(16)])) / 16
        return _Kind(row, lambda units: round(units * each), 2)

    def _numbers(self, rng: random.Random, number: int) -> _Kind:
        """The largest or smallest of a list; never a number that stands there twice."""
        largest = rng.random() < 0.5
        drawn: list[int] = []

        def row(units: int, noise: int) -> Row:
            while len(drawn) < units:
                drawn.append(rng.randrange(10, 90))
            end = 90 + number % 10 if largest else number % 10
            values = list(drawn[:units])
            values.insert(len(values) // 3, end)
            which = "largest" if largest else "smallest"
            asked = f"You should answer with only one number, no other words. The {which} number of the list is: "
            return Row("", "", str(values), asked, [end])

        each = self._tokens.counts([", 47, 83, 15, 62"])[0] / 4
        return _Kind(row, lambda units: round(units * each), 4)

    def _text(self, rng: random.Random, number: int) -> _Kind:
        start = self._book.somewhere(rng)
        return _Kind(
            lambda units, noise: Row("", "", " ".join(self._book.texts(start, units))),
            lambda units: self._book.size(start, units),
        )

    def _next(self, rng: random.Random, number: int) -> _Kind:
        """A stretch of text and four that may follow; three of them follow elsewhere in the same part of the book."""
        verses = self._book.verses
        end = self._book.somewhere(rng)
        picks = rng.sample([n for n in range(end - 200, end + 200) if not -1 <= n - end <= 1], 3)
        right = rng.randrange(4)
        picks.insert(right, end)
        choices = [verses[pick % len(verses)].text for pick in picks]

        def row(units: int, noise: int) -> Row:
            context = " ".join([*padding(noise), *self._book.texts((end - units) % len(verses), units)])
            return Row("", "", context, "", ["ABCD"[right]], choices=choices)

        return _Kind(row, lambda units: self._book.size((end - units) % len(verses), units))


@cache
def questions() -> tuple[Question, ...]:
    """The questions about the book, written for wp1."""
    from wp1.workload.book import verses

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
    """Python: the source of lm-eval, whose version is pinned, without blank lines."""
    root = lm_eval_files.folder("longbench").parents[1]
    files = [file for part in ("api", "models") for file in sorted((root / part).rglob("*.py"))]
    lines = (line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return "\n".join(line.rstrip() for line in lines if line.strip()) + "\n"


def expanded(tasks: list[str]) -> list[str]:
    """Task names with each subset's name replaced by its tasks; every task once."""
    return list(dict.fromkeys(name for task in tasks for name in SUBSETS.get(task, (task,))))
