"""A long text as token ids, from which prompts of real language are cut: a file, or the bundled book."""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np

from wp1.core.errors import ConfigError
from wp1.workload import book


def path_of(text_path: str | None) -> Path:
    """The file that text prompts are cut from. Raises ConfigError if the bundled book is needed and not installed."""
    return book.path() if text_path is None else Path(text_path).expanduser()


def read(text_path: str | None) -> str:
    """The whole text. Raises ConfigError if it cannot be read or is empty."""
    if text_path is None:
        return _bundled()
    path = path_of(text_path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"workload.text_path={path} cannot be read as text: {error}") from error
    if not text.strip():
        raise ConfigError(f"workload.text_path={path} is empty: set it to a file with a long text")
    return text


def _bundled() -> str:
    """The book as running text, each chapter under its name."""
    chapters = groupby(book.verses(), key=lambda verse: (verse.book, verse.chapter))
    return "\n\n".join(
        f"{name} {number}\n\n{' '.join(verse.text for verse in verses)}" for (name, number), verses in chapters
    )


def tokens(text: str, encode: Callable[[str], list[int]]) -> np.ndarray:
    """The text's token ids (int32). `encode` takes plain text and adds no special tokens.

    The text is encoded in pieces that end at paragraphs, because tokenisers need more than linear memory for a book.
    """
    paragraphs = text.split("\n\n")
    pieces, size = [[]], 0
    for paragraph in paragraphs:
        if size > 1 << 16:
            pieces.append([])
            size = 0
        pieces[-1].append(paragraph + "\n\n")
        size += len(paragraph)
    return np.concatenate([np.asarray(encode("".join(piece)), dtype=np.int32) for piece in pieces])


def start_of(index: int, length: int, book: int, seed: int) -> int:
    """The token at which prompt number `index`, of `length` tokens, begins in a book of `book` tokens.

    No start is used twice until all have been used: prompts advance by a step that is coprime with the number of
    starts. Raises ConfigError if the book is too short.
    """
    starts = book - length + 1
    if starts < 1:
        raise ConfigError(
            f"the text has {book:,} tokens, too few for a prompt of {length:,}: shorten workload.prompt_len or set "
            "workload.text_path to a longer text"
        )
    step = max(1, round(starts * 0.6180339887))
    while np.gcd(step, starts) != 1:
        step += 1
    return (seed + index * step) % starts
