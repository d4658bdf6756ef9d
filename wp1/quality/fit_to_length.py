"""Fits prompts to a length: as many units of filling as fit, usually found with one tokenization of the whole prompt.

If a unit is longer than the 2 % by which a prompt may fall short, sentences of noise fill the rest, if the task allows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

from wp1.core.errors import ConfigError

# A prompt with its answer is at most the requested length, and at least this share of it.
LEAST_SHARE = Fraction(98, 100)
# RULER's own noise, sentence by sentence, for when a unit of filling is too long to come close enough.
PADDING = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")


@dataclass(frozen=True)
class Draft:
    """A text that can be made from more or fewer units.

    make: the text for a number of units and of padding sentences; the same arguments give the same text.
    size: estimated tokens of a number of units; a constant error is corrected for.
    padded: whether noise may fill a gap too small for another unit.
    """

    make: Callable[[int, int], str]
    size: Callable[[int], int]
    least: int = 1
    most: int = 1 << 30
    padded: bool = True


@dataclass
class Filler:
    """Fits drafts of one kind to one length; the overhead measured on the first speeds up the others.

    encode: the whole prompt as token ids, including the chat template.
    length: tokens of prompt and answer together; reserve: tokens of the answer.
    """

    encode: Callable[[str], list[int]]
    length: int
    reserve: int
    chosen: tuple[int, int] = field(default=(0, 0), init=False)  # units and padding of the last fitted draft
    _overhead: int | None = field(default=None, init=False)

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most tokens of a prompt."""
        least = -(-self.length * LEAST_SHARE.numerator // LEAST_SHARE.denominator)
        return least - self.reserve, self.length - self.reserve

    def fit(self, draft: Draft, name: str) -> list[int]:
        """Token ids of the draft within `bounds`, or just below if neither padding nor another unit fits.

        Raises ConfigError if even the fewest units are too long.
        """
        low, high = self.bounds
        # A little below the upper bound, because sizes are estimates.
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
                    f"form needs {len(ids) + self.reserve}; remove it from dataset.tasks, or ask for longer prompts"
                )
            measured = len(ids) - draft.size(units)
            if measured == overhead:
                break
            overhead = measured
        if best is None:
            best = self.encode(draft.make(draft.least, 0)), draft.least
        if len(best[0]) > high:
            raise ConfigError(f"{name} does not fit into {self.length} tokens: ask for longer prompts")
        return self._padded(draft, *best) if draft.padded else self._grown(draft, *best)

    def _grown(self, draft: Draft, ids: list[int], units: int) -> list[int]:
        """Adds units one at a time for as long as they fit."""
        while units < draft.most:
            longer = self.encode(draft.make(units + 1, 0))
            if len(longer) > self.bounds[1]:
                break
            ids, units = longer, units + 1
        self._overhead, self.chosen = len(ids) - draft.size(units), (units, 0)
        return ids

    def _padded(self, draft: Draft, ids: list[int], units: int) -> list[int]:
        """Fills the rest with noise, because one more unit would be too long."""
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
    """Largest number of units that fits in `size` tokens."""
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
    """`count` sentences of noise."""
    return [PADDING[n % len(PADDING)] for n in range(count)]
