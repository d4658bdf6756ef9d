"""Passages of the built-in book, by their length in tokens."""

import bisect
import random
from itertools import accumulate
from typing import Protocol

from wp1.workload.book import Verse, verses


class Counts(Protocol):
    """Counts tokens: `wp1.workload.tokens.ModelTokens`, or a test double."""

    def counts(self, texts: list[str]) -> list[int]: ...


class Passages:
    """Passages of the book of a wanted length. Tokens are counted once, when it is built."""

    def __init__(self, tokens: Counts) -> None:
        self.verses = verses()
        # With the preceding space, because most tokenizers make it part of the word.
        self._sums = [0, *accumulate(tokens.counts([f" {verse.text}" for verse in self.verses]))]

    @property
    def tokens(self) -> int:
        """Tokens of the whole book."""
        return self._sums[-1]

    def size(self, start: int, count: int) -> int:
        """Tokens of `count` verses from `start` on; the last verse is followed by the first."""
        turns, rest = divmod(count, len(self.verses))
        end = start + rest
        size = self._sums[min(end, len(self.verses))] - self._sums[start]
        return turns * self.tokens + size + (self._sums[end - len(self.verses)] if end > len(self.verses) else 0)

    def count_within(self, start: int, size: int) -> int:
        """Number of verses from `start` on that fit in `size` tokens."""
        turns, size = divmod(max(0, size), self.tokens)
        count = bisect.bisect_right(range(len(self.verses) + 1), size, key=lambda n: self.size(start, n)) - 1
        return turns * len(self.verses) + count

    def stretch(self, start: int, count: int) -> list[Verse]:
        return [self.verses[(start + n) % len(self.verses)] for n in range(count)]

    def texts(self, start: int, count: int) -> list[str]:
        return [verse.text for verse in self.stretch(start, count)]

    def somewhere(self, rng: random.Random) -> int:
        """Index of a random verse to start at."""
        return rng.randrange(len(self.verses))
