"""RULER's prompts for any tokenizer and length: what scripts/data/synthetic of NVIDIA/RULER at c3f5e3b4 does, fast.

A prompt and its answer have at most the length asked for and at least 98 % of it. Essays are verses of the King James
Bible unless a text is given. Wording is lm-eval's.
"""

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

from wp1.errors import ConfigError
from wp1.quality import ruler, wording
from wp1.quality.book import Passages
from wp1.quality.fill import Draft, Filler, padding
from wp1.quality.tasks import Row
from wp1.workload.prompts import derive_seed

# Of the context, in percent: prepare_niah.py's forty.
DEPTHS = [round(100 * n / 39) for n in range(40)]
# Prompts below this get shorter lists of words (common_words_extraction.py).
SHORT = 4096
VT_TYPO = ("assgined", "assigned")  # in lm-eval's copy only


@dataclass(frozen=True)
class Made:
    """A prompt: its row, and its token ids with the opening of the answer."""

    row: Row
    ids: list[int]


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

    def make(self, task: str, seed: int, number: int, depth: float | None = None) -> Made:
        """Prompt `number` of a task; the same arguments give the same prompt on any machine.

        depth: where the needle that is asked for stands, in percent of the context; None: drawn.
        Raises ConfigError where the task does not fit the length, or needs a file that is not given.
        """
        rng = random.Random(derive_seed(seed, "ruler", task, self._length, number, depth))
        if task in ruler.NEEDLES:
            asked = self._needles(ruler.NEEDLES[task], rng, depth)
        elif task in ruler.FILES:
            asked = self._documents(task, rng, number)
        else:
            asked = {"vt": self._variables, "cwe": self._common_words, "fwe": self._frequent_words}[task](rng)
        answer = asked.opening.strip()
        filler = self._fillers.setdefault(task, Filler(lambda _: [], self._length, ruler.task(task).max_tokens))
        written: list[str] = []

        def encode(text: str) -> list[int]:
            written[:] = [text]
            return self._tokens.chat(text, answer)

        filler.encode = encode
        ids = filler.fit(asked.draft, f"{task} at {self._length}")
        row = Row(
            id=f"{self._length}-{number}" + (f"-depth{depth:g}" if depth is not None else ""),
            task=task,
            context=written[0],
            answers=list(asked.answers),
            length=self._length,
            extra={"answer_prefix": answer, "depths": asked.depths, "depth": depth},
        )
        return Made(row, ids)

    def _needles(self, kind: ruler.Needles, rng: random.Random, depth: float | None) -> "_Asked":
        words, plural = _words("adjective", "noun"), kind.value
        new = {
            "words": lambda: f"{rng.choice(words[0])}-{rng.choice(words[1])}",
            "numbers": lambda: str(rng.randint(10**6, 10**7 - 1)),
            "uuids": lambda: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        }
        keys = [new[kind.key]() for _ in range(kind.keys)]
        values = [[new[kind.value]() for _ in range(kind.values)] for _ in keys]
        needle = str(wording.constant("ruler", "prepare_niah", "NEEDLE"))
        needles = [
            (needle.format(type_needle_v=plural, key=key, value=value), n)
            for n, key in enumerate(keys)
            for value in values[n]
        ]
        rng.shuffle(needles)
        asked = rng.sample(range(kind.keys), kind.queries)
        places = sorted(rng.sample(DEPTHS, len(needles)))
        if depth is not None:
            needles, places = _placed(needles, places, asked, depth)
        names = [keys[n] for n in asked]
        query = ", ".join(names[:-1]) + ", and " + names[-1] if len(names) > 1 else names[0]
        one = kind.queries * kind.values == 1
        template, noun = (_singular(), plural[:-1]) if one else (_niah_template(), plural)
        opening = wording.expression("ruler", "prepare_niah", "gen_prefix")(
            type_needle_v=plural, query=query, num_needle_q=kind.queries, num_needle_v=kind.values
        )
        hay = self._hay(kind.haystack, needle, plural, new[kind.key], new[kind.value], rng)
        texts = [text for text, _ in needles]

        def make(units: int, noise: int) -> str:
            straws = hay.straws(units) + padding(noise)
            cuts = [round(len(straws) * place / 100) for place in places]
            parts = []
            for begin, end, text in zip([0, *cuts], [*cuts, len(straws)], [*texts, None], strict=True):
                parts += straws[begin:end] + ([text] if text else [])
            return template.format(type_needle_v=noun, context=hay.joined.join(parts), query=query)

        depths = [float(place) for place, (_, n) in zip(places, needles, strict=True) if n in asked]
        return _Asked(Draft(make, hay.size, 1), [v for n in asked for v in values[n]], opening, depths)

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
            start = self._passages.somewhere(rng)
            return _Hay(
                lambda units: self._passages.texts(start, units), lambda units: self._passages.size(start, units), " "
            )
        if kind == "repeat":
            line = str(wording.constant("ruler", "prepare_niah", "haystack"))
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

    def _variables(self, rng: random.Random) -> "_Asked":
        """Variable tracking: a chain of assignments among noise, after a worked example."""
        noise = str(wording.constant("ruler", "vt_utils", "noise"))
        config = wording.constant("ruler", "vt_utils", "CONFIG")["variable_tracking"]
        opening = config["answer_prefix"].replace(*VT_TYPO)
        hops = 4
        example_names, example = _chain(rng, hops, 3)
        example_value = example[0].rpartition("= ")[2]
        shown = (
            config["template"].format(context=_woven([noise] * 5, example, rng), query=example_value)
            + opening.format(num_v=hops + 1, query=example_value)
            + " ".join(example_names)
        )
        names, chain = _chain(rng, hops, 5)
        value = chain[0].rpartition("= ")[2]
        woven_seed = rng.getrandbits(32)
        each = self._count(noise)

        def make(units: int, noise_sentences: int) -> str:
            lines = [noise] * units + [f"{sentence} " for sentence in padding(noise_sentences)]
            context = _woven(lines, chain, random.Random(woven_seed))
            return f"{shown}\n\n" + config["template"].format(context=context, query=value)

        answer = opening.format(num_v=hops + 1, query=value)
        return _Asked(Draft(make, lambda units: each * units, hops + 1), names, answer, [])

    def _common_words(self, rng: random.Random) -> "_Asked":
        """Common words: ten that occur more often than the others of a numbered list, after a worked example."""
        config = wording.constant("ruler", "cwe_utils", "CONFIG")
        pool = _cwe_words()
        short = self._length < SHORT
        repeats, rare, shown_words, shown_repeats, shown_rare = (6, 1, 20, 3, 1) if short else (30, 3, 40, 10, 3)
        words = rng.sample(pool, len(pool))
        common, others = words[:10], words[10:]
        shown, shown_common = _listed(rng.sample(pool, shown_words), shown_repeats, shown_rare, rng)
        example = (
            config["template"].format(context=shown, query="")
            + config["answer_prefix"]
            + " ".join(f"{n}. {word}" for n, word in enumerate(shown_common, 1))
        )
        shuffle_seed = rng.getrandbits(32)
        per_word = sum(self._tokens.counts([f" {word}" for word in words[:500]])) / 500 + self._count(" 1234.")

        def make(units: int, noise: int) -> str:
            context, _ = _listed(common + others[: units - 10], repeats, rare, random.Random(shuffle_seed))
            return f"{example}\n" + config["template"].format(context=" ".join([context, *padding(noise)]), query="")

        def size(units: int) -> int:
            return round((10 * repeats + (units - 10) * rare) * per_word)

        return _Asked(Draft(make, size, 11, len(words)), common, config["answer_prefix"], [])

    def _frequent_words(self, rng: random.Random) -> "_Asked":
        """Frequent words: made-up ones, with frequencies by Zipf's law of exponent 2; the first is noise."""
        config = wording.constant("ruler", "fwe_utils", "CONFIG")
        count = max(4, self._length // 50)
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
            return config["template"].format(context=" ".join([*words, *["..."] * noise]), query="")

        def size(units: int) -> int:
            return int(((units * weights).astype(int) * costs).sum())

        # The third must occur more often than the fourth.
        return _Asked(Draft(make, size, 60), vocabulary[1:4], config["answer_prefix"], [])

    def _documents(self, task: str, rng: random.Random, number: int) -> "_Asked":
        """Questions about one document, or two, among others (qa.py)."""
        if task not in self._qa:
            key = "squad" if task == "qa_1" else "hotpot"
            raise ConfigError(f"{task} needs its questions: set dataset.{key}=FILE, or leave it out of dataset.tasks")
        config = wording.constant("ruler", "qa_utils", "CONFIG")
        entry = str(wording.constant("ruler", "qa_utils", "DOCUMENT_PROMPT"))
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
            context = "\n\n".join([*texts, *([" ".join(padding(noise))] if noise else [])])
            return config["template"].format(context=context, query=question["query"])

        draft = Draft(make, lambda units: round(each * units), len(needed), len(documents))
        return _Asked(draft, question["outputs"], config["answer_prefix"], [])


@dataclass(frozen=True)
class _Asked:
    draft: Draft
    answers: list[str]
    opening: str  # the words that the answer begins with
    depths: list[float]  # of the needles asked for, in percent


@dataclass(frozen=True)
class _Hay:
    straws: Callable[[int], list[str]]
    size: Callable[[int], int]
    joined: str


def _placed(
    needles: list[tuple[str, int]], places: list[int], asked: list[int], depth: float
) -> tuple[list[tuple[str, int]], list[Any]]:
    """The needles asked for at one depth, the others where they were."""
    others = [needle for needle in needles if needle[1] not in asked]
    wanted = [needle for needle in needles if needle[1] in asked]
    placed = [(place, needle) for place, needle in zip(places, others, strict=False)]
    placed += [(depth, needle) for needle in wanted]
    placed.sort(key=lambda pair: pair[0])
    return [needle for _, needle in placed], [place for place, _ in placed]


def _niah_template() -> str:
    return str(wording.constant("ruler", "niah_utils", "TEMPLATE"))


def _singular() -> str:
    """The template where one value is asked for, as prepare_niah.py changes it."""
    template = _niah_template()
    for plural, singular in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
        template = template.replace(plural, singular)
    return template


def _chain(rng: random.Random, hops: int, letters: int) -> tuple[list[str], list[str]]:
    names: list[str] = []
    while len(names) < hops + 1:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name not in names:
            names.append(name)
    first = f"VAR {names[0]} = {rng.randint(10000, 99998)}"
    return names, [first, *(f"VAR {b} = VAR {a} " for a, b in itertools.pairwise(names))]


def _woven(lines: list[str], chain: list[str], rng: random.Random) -> str:
    """The chain's assignments among lines, in order."""
    places = sorted(rng.sample(range(len(lines)), min(len(chain), len(lines))))
    woven = list(lines)
    for shift, (place, assignment) in enumerate(zip(places, chain, strict=False)):
        woven.insert(place + shift, assignment)
    return " ".join(woven).replace(". \n", ".\n")


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
    """Questions and documents of SQuAD 2.0's or HotpotQA's development file. Raises ConfigError for another file."""
    import json

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return _squad(data) if task == "qa_1" else _hotpot(data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        key = "squad" if task == "qa_1" else "hotpot"
        # A decoding error holds the whole file.
        why = type(error).__name__ if isinstance(error, UnicodeError) else f"{error!r}"[:200]
        raise ConfigError(f"dataset.{key}={path} is no such set in its official form ({why})") from error


def _squad(data: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    documents = sorted({part["context"] for article in data["data"] for part in article["paragraphs"]})
    index = {text: n for n, text in enumerate(documents)}
    questions = []
    for article in data["data"]:
        related = [index[part["context"]] for part in article["paragraphs"]]
        for part in article["paragraphs"]:
            own = index[part["context"]]
            questions += [
                {
                    "query": asked["question"],
                    "outputs": [answer["text"] for answer in asked["answers"]],
                    "context": [own],
                    "more_context": [n for n in related if n != own],
                }
                for asked in part["qas"]
                if not asked.get("is_impossible")
            ]
    return questions, documents


def _hotpot(data: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    def whole(title: str, sentences: list[str]) -> str:
        return f"{title}\n{''.join(sentences)}"

    documents = sorted({whole(*part) for asked in data for part in asked["context"]})
    index = {text: n for n, text in enumerate(documents)}
    questions = [
        {
            "query": asked["question"],
            "outputs": [asked["answer"]],
            "context": [index[whole(*part)] for part in asked["context"]],
            "more_context": [],
        }
        for asked in data
    ]
    return questions, documents
