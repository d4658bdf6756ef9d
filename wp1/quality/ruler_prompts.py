"""RULER's prompts for any tokenizer and length, laid out as scripts/data/synthetic of NVIDIA/RULER at c3f5e3b4 does.

What is NVIDIA's: every line and its order, the worked examples, which words are drawn from, how often they occur, where
needles may stand, and that nothing else is added; tests hold it against files that those scripts made. What is not:

- the draws, which are Python's by a seed of each prompt's own, so no prompt is one of NVIDIA's
- essays, which are verses of the King James Bible and not Paul Graham's, cut to the word
- the length: as much filling as fits, where NVIDIA's search leaves up to a tenth free. A prompt and its answer have at
  most the length asked for; less than 98 % of it only where another line, word or document would be too much
- cwe of more words than wonderwords has (8,166; far beyond 100,000 tokens) is refused, where NVIDIA has another list

Sentences are lm-eval's copy of NVIDIA's, without the typo in vt's. lm-eval's own generators differ: in vt's layout
(blanks for line ends, an example of five lines) and in cwe's (no blank before the example's answer).
"""

import bisect
import itertools
import random
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from wp1.core.errors import ConfigError
from wp1.quality import lm_eval_files
from wp1.quality.book import Passages
from wp1.quality.fit_to_length import Draft, Filler
from wp1.quality.tasks import Made, Row
from wp1.workload import row_files
from wp1.workload.row_files import BadRowError
from wp1.workload.seeds import derive_seed

# Of an essay's sentences, in percent (niah.py). Among lines every place but the last is as likely as another.
DEPTHS = [round(100 * n / 39) for n in range(40)]
# Prompts below this get shorter lists of words (common_words_extraction.py).
SHORT = 4096
VT_TYPO = ("assgined", "assigned")  # in lm-eval's copy only
# Tokens that vt's worked example has at most: as many lines of noise as fit (14 by SmolLM2's tokenizer).
VT_EXAMPLE = 500
VT_HOPS = 4


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
# Tasks that ask the questions of a file of the user's, with lm-eval's name of each.
FILES = {"qa_1": "qa_squad", "qa_2": "qa_hotpot"}


def task_file(name: str) -> dict[str, Any]:
    """lm-eval's file of a task."""
    return lm_eval_files.task_file("ruler", f"{FILES.get(name, name)}.yaml")


class RulerPrompts:
    """Makes prompts of one length for one tokenizer.

    tokens: a `wp1.workload.tokens.ModelTokens`. haystack: a text file in place of the built-in one.
    qa: by task, a file of SQuAD or HotpotQA in its official form.
    """

    def __init__(self, tokens: Any, length: int, passages: Passages, qa: dict[str, Path] | None = None) -> None:
        self._tokens = tokens
        self._length = length
        self._passages = passages
        self._qa = qa or {}
        self._fillers: dict[str, Filler] = {}
        self._vt_lines: int | None = None

    def make(self, task: str, seed: int, number: int, depth: float | None = None) -> Made:
        """Prompt `number` of a task; the same arguments give the same prompt on any machine.

        depth: where the needle that is asked for stands, in percent of the context; None: drawn.
        Raises ConfigError where the task does not fit the length, or needs a file that is not given.
        """
        rng = random.Random(derive_seed(seed, "ruler", task, self._length, number, depth))
        if task in NEEDLES:
            asked = self._needles(NEEDLES[task], rng, depth)
        elif task in FILES:
            asked = self._documents(task, rng, number)
        else:
            makers = {"vt": self._variables, "cwe": self._common_words, "fwe": self._frequent_words}
            asked = makers[task](rng, seed)
        answer = asked.opening.strip()
        filler = self._fillers.setdefault(
            task, Filler(lambda _: [], self._length, lm_eval_files.max_tokens(task_file(task)))
        )
        filler.encode = lambda text: self._tokens.chat(text, answer)
        ids = filler.fit(asked.draft, f"{task} at {self._length}")
        units = filler.chosen[0]
        if task == "cwe" and units == asked.draft.most and len(ids) < filler.bounds[0]:
            raise ConfigError(
                f"cwe at {self._length} needs more words than the {asked.draft.most:,} there are: leave it out of "
                "dataset.tasks, or ask for shorter prompts"
            )
        row = Row(
            id=f"{self._length}-{number}" + (f"-depth{depth:g}" if depth is not None else ""),
            task=task,
            context=asked.draft.make(units, 0),
            answers=list(asked.answers),
            length=self._length,
            extra={"answer_prefix": answer, "depths": asked.depths(units), "depth": depth},
        )
        return Made(row, ids)

    def _needles(self, kind: Needles, rng: random.Random, depth: float | None) -> "_Asked":
        words, plural = _words("adjective", "noun"), kind.value
        new = {
            "words": lambda: f"{rng.choice(words[0])}-{rng.choice(words[1])}",
            "numbers": lambda: str(rng.randint(10**6, 10**7 - 1)),
            "uuids": lambda: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        }
        keys = [new[kind.key]() for _ in range(kind.keys)]
        values = [[new[kind.value]() for _ in range(kind.values)] for _ in keys]
        needle = str(lm_eval_files.constant("ruler", "prepare_niah", "NEEDLE"))
        needles = [
            (needle.format(type_needle_v=plural, key=key, value=value), n)
            for n, key in enumerate(keys)
            for value in values[n]
        ]
        rng.shuffle(needles)
        asked = rng.sample(range(kind.keys), kind.queries)
        names = [keys[n] for n in asked]
        query = ", ".join(names[:-1]) + ", and " + names[-1] if len(names) > 1 else names[0]
        one = kind.queries * kind.values == 1
        template, noun = (_singular(), plural[:-1]) if one else (_niah_template(), plural)
        opening = lm_eval_files.expression("ruler", "prepare_niah", "gen_prefix")(
            type_needle_v=plural, query=query, num_needle_q=kind.queries, num_needle_v=kind.values
        )
        hay = self._hay(kind.haystack, needle, plural, new[kind.key], new[kind.value], rng)
        drawn, place_seed = sorted(rng.sample(DEPTHS, len(needles))), rng.getrandbits(32)

        def placed(straws: list[str]) -> list[tuple[int, float, tuple[str, int]]]:
            """Each needle with the number of straws before it and its depth in percent."""
            if kind.haystack == "essay":
                cuts = [int(len(straws) * place / 100) for place in drawn]
            else:
                cuts = sorted(random.Random(place_seed).sample(range(len(straws)), len(needles)))
            found = [(cut, 100 * cut / len(straws), text) for cut, text in zip(cuts, needles, strict=True)]
            return found if depth is None else _moved(found, straws, asked, depth)

        def make(units: int, noise: int) -> str:
            straws = hay.straws(units)
            parts, last = [], 0
            for cut, _, (text, _) in placed(straws):
                parts += [*straws[last:cut], text]
                last = cut
            return template.format(type_needle_v=noun, context=hay.joined.join([*parts, *straws[last:]]), query=query)

        def depths(units: int) -> list[float]:
            return [round(at, 1) for _, at, (_, n) in placed(hay.straws(units)) if n in asked]

        draft = Draft(make, hay.size, len(needles), padded=False)
        return _Asked(draft, [v for n in asked for v in values[n]], opening, depths)

    def _hay(
        self,
        kind: str,
        needle: str,
        plural: str,
        new_key: Callable[[], str],
        new_value: Callable[[], str],
        rng: random.Random,
    ) -> "_Hay":
        if kind == "essay":
            return _essay(self._passages, self._passages.somewhere(rng))
        if kind == "repeat":
            line = str(lm_eval_files.constant("ruler", "prepare_niah", "haystack"))
            each = self._count(f"{line}\n")
            return _Hay(lambda units: [line] * units, lambda units: each * units, "\n")
        lines: list[str] = []

        def straws(units: int) -> list[str]:
            while len(lines) < units:
                lines.append(needle.format(type_needle_v=plural, key=new_key(), value=new_value()))
            return lines[:units]

        each_of = sum(self._tokens.counts([f"{line}\n" for line in straws(32)])) / 32
        return _Hay(straws, lambda units: round(each_of * units), "\n")

    def _count(self, text: str) -> int:
        return self._tokens.counts([text])[0]

    def _variables(self, rng: random.Random, seed: int) -> "_Asked":
        """Variable tracking: a chain of assignments among lines of noise, after a worked example."""
        config = lm_eval_files.constant("ruler", "vt_utils", "CONFIG")["variable_tracking"]
        opening = config["answer_prefix"].replace(*VT_TYPO)
        noise = str(lm_eval_files.constant("ruler", "vt_utils", "noise")).rstrip("\n")

        def asked(chain: list[str], lines: int, places: random.Random) -> str:
            context = "\n".join(_woven([noise] * lines, chain, places))
            return config["template"].format(context=context, query=chain[0].rpartition("= ")[2])

        def example(chain: list[str], lines: int) -> str:
            # Where the assignments stand is the same in all prompts of a seed; names and value are not.
            places = random.Random(derive_seed(seed, "ruler", "vt", "example", lines))
            answer = opening.format(num_v=VT_HOPS + 1, query=chain[0].rpartition("= ")[2])
            return asked(chain, lines, places) + answer

        names, chain = _chain(rng, 3)
        if self._vt_lines is None:
            # Counted without its answer, as variable_tracking.py counts it.
            lines = VT_HOPS + 1
            while self._count(example(chain, lines + 1)) <= VT_EXAMPLE:
                lines += 1
            self._vt_lines = lines
        shown = f"{example(chain, self._vt_lines)} {' '.join(names)}"
        names, chain = _chain(rng, 5)
        woven_seed = rng.getrandbits(32)
        each = self._count(f"{noise}\n")

        def make(units: int, noise: int) -> str:
            return f"{shown}\n\n{asked(chain, units, random.Random(woven_seed))}"

        answer = opening.format(num_v=VT_HOPS + 1, query=chain[0].rpartition("= ")[2])
        draft = Draft(make, lambda units: each * units, VT_HOPS + 1, padded=False)
        return _Asked(draft, names, answer)

    def _common_words(self, rng: random.Random, _: int) -> "_Asked":
        """Common words: ten that occur more often than the others of a numbered list, after a worked example."""
        config = lm_eval_files.constant("ruler", "cwe_utils", "CONFIG")
        pool = _cwe_words()
        short = self._length < SHORT
        repeats, rare, shown_words, shown_repeats, shown_rare = (6, 1, 20, 3, 1) if short else (30, 3, 40, 10, 3)
        words = rng.sample(pool, len(pool))
        common, others = words[:10], words[10:]
        shown, shown_common = _listed(rng.sample(pool, shown_words), shown_repeats, shown_rare, rng)
        example = (
            config["template"].format(context=shown, query="")
            + config["answer_prefix"]
            + "".join(f" {n}. {word}" for n, word in enumerate(shown_common, 1))
        )
        shuffle_seed = rng.getrandbits(32)
        per_word = sum(self._tokens.counts([f" {word}" for word in words[:500]])) / 500 + self._count(" 1234.")

        def make(units: int, noise: int) -> str:
            context, _ = _listed(common + others[: units - 10], repeats, rare, random.Random(shuffle_seed))
            return f"{example}\n" + config["template"].format(context=context, query="")

        def size(units: int) -> int:
            return round((10 * repeats + (units - 10) * rare) * per_word)

        return _Asked(Draft(make, size, 11, len(words), padded=False), common, config["answer_prefix"])

    def _frequent_words(self, rng: random.Random, _: int) -> "_Asked":
        """Frequent words: made-up ones, with frequencies by Zipf's law of exponent 2; the first is noise."""
        config = lm_eval_files.constant("ruler", "fwe_utils", "CONFIG")
        # A word for every fifty tokens that the prompt itself may have (freq_words_extraction.py).
        count = max(5, (self._length - lm_eval_files.max_tokens(task_file("fwe"))) // 50)
        vocabulary: list[str] = []
        while len(vocabulary) < count:
            word = "".join(rng.choices(string.ascii_lowercase, k=6))
            if word not in vocabulary:
                vocabulary.append(word)
        vocabulary[0] = "..."
        weights = np.arange(1, count + 1) ** -2.0 / (np.pi**2 / 6)  # over zeta(2)
        shuffle_seed = rng.getrandbits(32)
        costs = np.array(self._tokens.counts([f" {word}" for word in vocabulary]))

        def make(units: int, noise: int) -> str:
            times = (units * weights).astype(int)
            words = [word for word, n in zip(vocabulary, times, strict=True) for _ in range(n)]
            random.Random(shuffle_seed).shuffle(words)
            return config["template"].format(context=" ".join(words), query="")

        def size(units: int) -> int:
            return int(((units * weights).astype(int) * costs).sum())

        # The third must occur more often than the fourth.
        return _Asked(Draft(make, size, 60, padded=False), vocabulary[1:4], config["answer_prefix"])

    def _documents(self, task: str, rng: random.Random, number: int) -> "_Asked":
        """Questions about one document, or two, among others (qa.py)."""
        if task not in self._qa:
            key = "squad" if task == "qa_1" else "hotpot"
            raise ConfigError(f"{task} needs its questions: set dataset.{key}=FILE, or leave it out of dataset.tasks")
        config = lm_eval_files.constant("ruler", "qa_utils", "CONFIG")
        entry = str(lm_eval_files.constant("ruler", "qa_utils", "DOCUMENT_PROMPT"))
        questions, documents = qa_set(task, self._qa[task])
        question = questions[number % len(questions)]
        needed = list(dict.fromkeys(question["context"]))
        others = [n for n in question["more_context"] if n not in needed]
        taken = set(needed) | set(others)
        rest = [n for n in range(len(documents)) if n not in taken]
        rng.shuffle(others)
        rng.shuffle(rest)
        order = others + rest
        shuffle_seed = rng.getrandbits(32)
        each = sum(self._tokens.counts([f"\n\nDocument 100:\n{documents[n]}" for n in order[:64]])) / max(
            1, len(order[:64])
        )

        def make(units: int, noise: int) -> str:
            chosen = needed + order[: units - len(needed)]
            random.Random(shuffle_seed).shuffle(chosen)
            texts = [entry.format(i=n, document=documents[index]) for n, index in enumerate(chosen, 1)]
            return config["template"].format(context="\n\n".join(texts), query=question["query"])

        draft = Draft(make, lambda units: round(each * units), len(needed), len(documents), padded=False)
        return _Asked(draft, question["outputs"], config["answer_prefix"])


@dataclass(frozen=True)
class _Asked:
    draft: Draft
    answers: list[str]
    opening: str  # the words that the answer begins with
    depths: Callable[[int], list[float]] = lambda _: []  # of the needles asked for, in percent, by units of filling


@dataclass(frozen=True)
class _Hay:
    """What needles are hidden in. straws: sentences or lines of so many units; size: about their tokens."""

    straws: Callable[[int], list[str]]
    size: Callable[[int], int]
    joined: str


def _essay(passages: Passages, start: int) -> _Hay:
    """Verses from `start` on as sentences, the last cut to the word: a unit is a word, as in niah.py."""
    ends: list[int] = []  # words up to the end of each verse

    def last(words: int) -> int:
        """The verse, from `start` on, that has the word of that number."""
        while not ends or ends[-1] < words:
            verse = passages.texts(start + len(ends), 1)[0]
            ends.append((ends[-1] if ends else 0) + len(verse.split()))
        return bisect.bisect_left(ends, words)

    def straws(words: int) -> list[str]:
        index = last(words)
        texts = passages.texts(start, index + 1)
        before = ends[index - 1] if index else 0
        return [*texts[:-1], " ".join(texts[-1].split()[: words - before])]

    def size(words: int) -> int:
        index = last(words)
        before = ends[index - 1] if index else 0
        whole = passages.size(start, index)
        share = (words - before) / (ends[index] - before)
        return whole + round(share * (passages.size(start, index + 1) - whole))

    return _Hay(straws, size, " ")


def _moved(
    placed: list[tuple[int, float, tuple[str, int]]], straws: list[str], asked: list[int], depth: float
) -> list[tuple[int, float, tuple[str, int]]]:
    """The needles asked for at one depth of the text, to the nearest end of a sentence; the others where they were."""
    ends = [0, *itertools.accumulate(len(straw) + 1 for straw in straws)]
    cut = min(range(len(ends)), key=lambda n: abs(ends[n] - ends[-1] * depth / 100))
    moved = [(cut, depth, needle) if needle[1] in asked else (at, place, needle) for at, place, needle in placed]
    return sorted(moved, key=lambda one: one[0])


def _niah_template() -> str:
    return str(lm_eval_files.constant("ruler", "niah_utils", "TEMPLATE"))


def _singular() -> str:
    """The template where one value is asked for, as prepare_niah.py changes it."""
    template = _niah_template()
    for plural, singular in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
        template = template.replace(plural, singular)
    return template


def _chain(rng: random.Random, letters: int) -> tuple[list[str], list[str]]:
    names: list[str] = []
    while len(names) < VT_HOPS + 1:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name not in names:
            names.append(name)
    first = f"VAR {names[0]} = {rng.randint(10000, 99998)}"
    return names, [first, *(f"VAR {b} = VAR {a} " for a, b in itertools.pairwise(names))]


def _woven(lines: list[str], chain: list[str], rng: random.Random) -> list[str]:
    """The chain's assignments among lines, in order."""
    places = sorted(rng.sample(range(len(lines)), len(chain)))
    woven = list(lines)
    for shift, (place, assignment) in enumerate(zip(places, chain, strict=True)):
        woven.insert(place + shift, assignment)
    return woven


def _listed(words: list[str], repeats: int, rare: int, rng: random.Random) -> tuple[str, list[str]]:
    """A shuffled, numbered list of words; the first ten, which are returned too, occur more often."""
    every = words[:10] * repeats + words[10:] * rare
    rng.shuffle(every)
    return " ".join(f"{n}. {word}" for n, word in enumerate(every, 1)), words[:10]


@cache
def _words(*categories: str) -> tuple[list[str], ...]:
    from wonderwords import RandomWord

    return tuple(sorted(set(RandomWord().filter(include_categories=[category]))) for category in categories)


@cache
def _cwe_words() -> list[str]:
    return sorted({word for part in _words("noun", "adjective", "verb") for word in part})


@cache
def qa_set(task: str, path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Questions and documents of SQuAD 2.0's or HotpotQA's development file, JSON or JSONL.

    Raises ConfigError for another file, naming the line where one is bad.
    """
    key = "squad" if task == "qa_1" else "hotpot"
    rows = list(row_files.read(path))
    bad = next((f"{where} {row}" for where, row in rows if isinstance(row, BadRowError)), None)
    if bad is not None:
        raise ConfigError(f"dataset.{key}: {bad}")
    given = [row for _, row in rows if isinstance(row, dict)]
    if len(given) == 1 and isinstance(given[0].get("data"), list):
        given = given[0]["data"]
    try:
        questions, documents = _squad(given) if task == "qa_1" else _hotpot(given)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"dataset.{key}={path} is no such set in its official form ({f'{error!r}'[:200]})") from error
    if not questions:
        raise ConfigError(f"dataset.{key}={path} is no such set in its official form (no questions in it)")
    return questions, documents


def _squad(articles: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    documents = sorted({part["context"] for article in articles for part in article["paragraphs"]})
    index = {text: n for n, text in enumerate(documents)}
    questions = []
    for article in articles:
        related = [index[part["context"]] for part in article["paragraphs"]]
        for part in article["paragraphs"]:
            own = index[part["context"]]
            questions += [
                {
                    "query": _text(asked["question"]),
                    "outputs": [_text(answer["text"]) for answer in asked["answers"]],
                    "context": [own],
                    "more_context": [n for n in related if n != own],
                }
                for asked in part["qas"]
                if not asked.get("is_impossible") and asked["answers"]
            ]
    return questions, documents


def _hotpot(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    def whole(title: str, sentences: list[str]) -> str:
        return f"{_text(title)}\n{''.join(sentences)}"

    documents = sorted({whole(*part) for asked in rows for part in asked["context"]})
    index = {text: n for n, text in enumerate(documents)}
    questions = [
        {
            "query": _text(asked["question"]),
            "outputs": [_text(asked["answer"])],
            "context": [index[whole(*part)] for part in asked["context"]],
            "more_context": [],
        }
        for asked in rows
    ]
    return questions, documents


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} is no text")
    return value
