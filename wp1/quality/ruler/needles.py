"""RULER's needles in a haystack (scripts/data/synthetic/niah.py): what is hidden, in what, and at which depth."""

import bisect
import itertools
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wp1.quality import lm_eval_files
from wp1.quality.book import Passages
from wp1.quality.fit_to_length import Draft
from wp1.quality.ruler.asked import Asked, english_words

# Of an essay's sentences, in percent (niah.py). Among lines every place but the last is as likely as another.
DEPTHS = [round(100 * n / 39) for n in range(40)]


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


@dataclass(frozen=True)
class _Hay:
    """What needles are hidden in. straws: sentences or lines of so many units; size: about their tokens."""

    straws: Callable[[int], list[str]]
    size: Callable[[int], int]
    joined: str


def needles_asked(kind: Needles, rng: random.Random, depth: float | None, tokens: Any, passages: Passages) -> Asked:
    """A prompt that hides `kind`. depth: where what is asked for stands, in percent of the context; None: drawn."""
    words, plural = english_words("adjective", "noun"), kind.value
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
    hay = _hay(
        kind.haystack,
        lambda: needle.format(type_needle_v=plural, key=new[kind.key](), value=new[kind.value]()),
        rng,
        tokens,
        passages,
    )
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
    return Asked(draft, [v for n in asked for v in values[n]], opening, depths)


def _hay(kind: str, new_needle: Callable[[], str], rng: random.Random, tokens: Any, passages: Passages) -> _Hay:
    if kind == "essay":
        return _essay(passages, passages.somewhere(rng))
    if kind == "repeat":
        line = str(lm_eval_files.constant("ruler", "prepare_niah", "haystack"))
        each = tokens.counts([f"{line}\n"])[0]
        return _Hay(lambda units: [line] * units, lambda units: each * units, "\n")
    lines: list[str] = []

    def straws(units: int) -> list[str]:
        while len(lines) < units:
            lines.append(new_needle())
        return lines[:units]

    each_of = sum(tokens.counts([f"{line}\n" for line in straws(32)])) / 32
    return _Hay(straws, lambda units: round(each_of * units), "\n")


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
    """The template if one value is asked for, as prepare_niah.py changes it."""
    template = _niah_template()
    for plural, singular in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
        template = template.replace(plural, singular)
    return template
