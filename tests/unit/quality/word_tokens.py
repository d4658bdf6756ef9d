"""A tokenizer for tests that needs no model: words, digits one by one, and signs."""

import re
from collections.abc import Sequence

PIECES = re.compile(r" ?[A-Za-z]+| ?\d|\s+|[^\w\s]|\w")
HEAD, TAIL = ["<user>"], ["<end>", "<assistant>"]


class WordTokens:
    """As `wp1.workload.tokens.ModelTokens`, with ids that are numbered as they come."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._texts: list[str] = []
        self.encoded = 0

    def _of(self, pieces: list[str]) -> list[int]:
        for piece in pieces:
            if piece not in self._ids:
                self._ids[piece] = len(self._texts)
                self._texts.append(piece)
        return [self._ids[piece] for piece in pieces]

    def ids(self, text: str) -> list[int]:
        return self._of(PIECES.findall(text))

    def chat(self, text: str, opening: str = "") -> list[int]:
        self.encoded += 1
        return self._of(HEAD) + self.ids(text) + self._of(TAIL) + self.ids(opening)

    def plain(self, text: str) -> list[int]:
        self.encoded += 1
        return self.ids(text)

    def counts(self, texts: Sequence[str]) -> list[int]:
        return [len(PIECES.findall(text)) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._texts[n] for n in ids if self._texts[n] not in (*HEAD, *TAIL))
