"""Prompts of a wanted length: as many units of filling as fit, found with one tokenization of the whole, mostly.

Where a unit is longer than the 2 % that a prompt may fall short, sentences of noise fill the rest, if its task has any.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

from wp1.core.errors import ConfigError

# A prompt with its answer is at most the length asked for, and at least this share of it.
LEAST_SHARE = Fraction(98, 100)
# What repeats RULER's own noise, a sentence each, where a unit of filling is too long to come near enough.
PADDING = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")


@dataclass(frozen=True)
class Draft:
    """A text that can be made of more or fewer units.

    make: the text with so many units and so many sentences of padding; the same arguments give the same text.
    size: about how many tokens so many units have; what is wrong with it by a constant is found out.
    padded: whether noise may fill what is too little for another unit.
    """

    make: Callable[[int, int], str]
    size: Callable[[int], int]
    least: int = 1
    most: int = 1 << 30
    padded: bool = True


@dataclass
class Filler:
    """Fits drafts of one kind to one length; what it learns of the first serves the others.

    encode: the whole prompt as token ids, chat template and all.
    length: tokens of prompt and answer together; reserve: those of the answer.
    """

    encode: Callable[[str], list[int]]
    length: int
    reserve: int
    chosen: tuple[int, int] = field(default=(0, 0), init=False)  # units and padding of the last draft that was fitted
    _overhead: int | None = field(default=None, init=False)

    @property
    def bounds(self) -> tuple[int, int]:
        """Tokens of a prompt, from and to."""
        least = -(-self.length * LEAST_SHARE.numerator // LEAST_SHARE.denominator)
        return least - self.reserve, self.length - self.reserve

    def fit(self, draft: Draft, name: str) -> list[int]:
        """Token ids of the draft within `bounds`; just below them where even padding, or another unit, does not fit.

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
                self.chosen = units, 0
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
        if best is None:
            best = self.encode(draft.make(draft.least, 0)), draft.least
        if len(best[0]) > high:
            raise ConfigError(f"{name} does not fit into {self.length} tokens: ask for longer prompts")
        return self._padded(draft, *best) if draft.padded else self._grown(draft, *best)

    def _grown(self, draft: Draft, ids: list[int], units: int) -> list[int]:
        """As many units as fit: what is left is less than one."""
        while units < draft.most:
            longer = self.encode(draft.make(units + 1, 0))
            if len(longer) > self.bounds[1]:
                break
            ids, units = longer, units + 1
        self._overhead, self.chosen = len(ids) - draft.size(units), (units, 0)
        return ids

    def _padded(self, draft: Draft, ids: list[int], units: int) -> list[int]:
        """The next longer text has too many tokens, so noise fills the rest."""
        low, high = self.bounds
        used = padding = 0
        while len(ids) < low:
            padding += max(1, (low - len(ids)) // 8)
            longer = self.encode(draft.make(units, padding))
            if len(longer) > high or len(longer) <= len(ids):
                break
            ids, used = longer, padding
        self.chosen = units, used
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
