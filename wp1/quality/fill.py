"""Prompts of a wanted length: as many units of filling as fit, found with one tokenization of the whole, mostly."""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

from wp1.errors import ConfigError

# A prompt with its answer is at most the length asked for, and at least this share of it.
LEAST_SHARE = Fraction(98, 100)
# What repeats RULER's own noise, a sentence each, where a unit of filling is too long to come near enough.
PADDING = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")


@dataclass(frozen=True)
class Draft:
    """A text that can be made of more or fewer units.

    make: the text with so many units and so many sentences of padding; the same arguments give the same text.
    size: about how many tokens so many units have; what is wrong with it by a constant is found out.
    """

    make: Callable[[int, int], str]
    size: Callable[[int], int]
    least: int = 1
    most: int = 1 << 30


@dataclass
class Filler:
    """Fits drafts of one kind to one length; what it learns of the first serves the others.

    encode: the whole prompt as token ids, chat template and all.
    length: tokens of prompt and answer together; reserve: those of the answer.
    """

    encode: Callable[[str], list[int]]
    length: int
    reserve: int
    _overhead: int | None = field(default=None, init=False)

    @property
    def bounds(self) -> tuple[int, int]:
        """Tokens of a prompt, from and to."""
        least = -(-self.length * LEAST_SHARE.numerator // LEAST_SHARE.denominator)
        return least - self.reserve, self.length - self.reserve

    def fit(self, draft: Draft, name: str) -> list[int]:
        """Token ids of the draft within `bounds`; just below them where even padding does not reach.

        Raises ConfigError where the least units are too long.
        """
        low, high = self.bounds
        # A little below the top, as estimates are.
        aim = high - max(1, (high - low) // 8)
        overhead = self._overhead
        if overhead is None:
            overhead = len(self.encode(draft.make(draft.least, 0))) - draft.size(draft.least)
        best: tuple[list[int], int] | None = None
        for _ in range(12):
            units = _most_units(draft, aim - overhead)
            ids = self.encode(draft.make(units, 0))
            if len(ids) <= high and (best is None or len(ids) > len(best[0])):
                best = ids, units
            if low <= len(ids) <= high:
                self._overhead = len(ids) - draft.size(units)
                return ids
            if len(ids) > high and units == draft.least:
                raise ConfigError(
                    f"{name} does not fit into {self.length} tokens with {self.reserve} for the answer: its shortest "
                    f"form needs {len(ids) + self.reserve}; leave it out of dataset.tasks, or ask for longer prompts"
                )
            found = len(ids) - draft.size(units)
            if found == overhead:
                break
            overhead = found
        return self._padded(draft, best, name)

    def _padded(self, draft: Draft, best: tuple[list[int], int] | None, name: str) -> list[int]:
        """The next longer text has too many tokens, so noise fills the rest."""
        low, high = self.bounds
        if best is None:
            best = self.encode(draft.make(draft.least, 0)), draft.least
        ids, units = best
        if len(ids) > high:
            raise ConfigError(f"{name} does not fit into {self.length} tokens: ask for longer prompts")
        padding = 0
        while len(ids) < low:
            padding += max(1, (low - len(ids)) // 8)
            longer = self.encode(draft.make(units, padding))
            if len(longer) > high or len(longer) <= len(ids):
                break
            ids = longer
        return ids


def _most_units(draft: Draft, size: int) -> int:
    """The most units of at most `size` tokens."""
    low, high = draft.least, draft.least + 1
    while high < draft.most and draft.size(high) <= size:
        low, high = high, min(draft.most, high * 2)
    while low < high:
        middle = (low + high + 1) // 2
        if draft.size(middle) <= size:
            low = middle
        else:
            high = middle - 1
    return low


def padding(count: int) -> list[str]:
    """So many sentences of noise."""
    return [PADDING[n % len(PADDING)] for n in range(count)]
