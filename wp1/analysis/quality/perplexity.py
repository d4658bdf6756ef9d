"""Perplexity by position in a text, of one arm and of two over the same texts. From the rows of `quality.scored`; pure.

Positions are put together from one power of two to the next.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis.base import cells
from wp1.stats import intervals

METRIC = "perplexity"
# Of two texts a 95 % interval is 12.7 standard errors to either side of a logarithm, which says nothing.
MIN_TEXTS = 3

# The windows of an arm: by cell, repeat, text and number, the position in tokens where it begins, its sum of negative
# log-likelihoods (nats) and its tokens.
Window = tuple[int, float, int]
Windows = Mapping[tuple[str, int, str, int], Window]


def bucket(tokens: int) -> int:
    """The power of two at or above a length in tokens, from 512 on."""
    return max(512, 1 << (tokens - 1).bit_length())


def by_position(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """exp of the mean negative log-likelihood of a token, with its 95 % interval over texts.

    Texts are what is independent: windows of one text are alike, and a text that was read again is the same text. low
    and high are Student's over each text's share in the mean, and null for fewer than three texts. n: tokens,
    of each text once. Of every text of these rows, so that later positions are of fewer texts.
    """
    return [_positions(size) | _figures(_of_texts(of)) for size, of in _bins(_windows(rows)).items()]


def of_both(a: pl.DataFrame, b: pl.DataFrame) -> list[dict[str, Any]]:
    """Two arms over the windows of the texts that both had, so that they differ by nothing but the arm.

    a, b: figures of each as in `by_position`; ratio: of b's perplexity to a's, with its interval over texts; p: of no
    difference, null for fewer than three texts.
    """
    windows = [_windows(rows) for rows in (a, b)]
    same = windows[0].keys() & windows[1].keys()
    bins = [_bins({key: of[key] for key in of if key in same}) for of in windows]
    found = []
    for size, of_a in bins[0].items():
        texts = _of_texts(of_a), _of_texts(bins[1][size])
        figures = tuple(map(_figures, texts))
        shares = [intervals.of_ratio(*text) for text in texts]
        change = intervals.between(*shares) if texts[0][0].size >= MIN_TEXTS else None
        found.append(
            _positions(size)
            | {key: figures[0][key] for key in ("texts", "n")}
            | {
                "a": figures[0],
                "b": figures[1],
                "ratio": round(math.exp(shares[1].value - shares[0].value), 4),
                "low": None if change is None else round(math.exp(change.low), 4),
                "high": None if change is None else round(math.exp(change.high), 4),
                "p": None if change is None else change.p,
            }
        )
    return found


def _windows(rows: pl.DataFrame) -> Windows:
    found: dict[tuple[str, int, str, int], Window] = {}
    for record in rows.filter(pl.col("metric") == METRIC).iter_rows(named=True):
        window, total = record["nll_window"], record["prompt_tokens"]
        for number, nll in enumerate(record["nll"] or []):
            begin = number * window
            # The first token of a text has no likelihood.
            tokens = min(begin + window, total) - max(begin, 1)
            if tokens > 0:
                found[record["cell"], record["repeat"], record["example"], number] = begin, nll, tokens
    return found


def _bins(windows: Windows) -> dict[int, dict[tuple[str, int, str, int], Window]]:
    bins: dict[int, dict[tuple[str, int, str, int], Window]] = {}
    for key, window in windows.items():
        bins.setdefault(bucket(window[0] + 1), {})[key] = window
    return dict(sorted(bins.items()))


def _positions(size: int) -> dict[str, int]:
    return {"from": 0 if size == 512 else size // 2, "to": size}


# Of each text: the sum of negative log-likelihoods, and its tokens.
Texts = tuple[np.ndarray, np.ndarray]


def _of_texts(of: Windows) -> Texts:
    """A text that was read in several repeats, or under several loads, is one: it has the mean of what was found."""
    found: dict[tuple[str, str], dict[int, list[tuple[float, int]]]] = {}
    for (cell, _, example, number), (_, nll, tokens) in of.items():
        found.setdefault((cells.parse(cell).prompt, example), {}).setdefault(number, []).append((nll, tokens))
    # In an order of their own, so that two arms' texts stand side by side.
    texts = [found[key] for key in sorted(found)]
    sums = [sum(nll / len(read) for read in windows.values() for nll, _ in read) for windows in texts]
    tokens = [sum(read[0][1] for read in windows.values()) for windows in texts]
    return np.array(sums), np.array(tokens, dtype=float)


def _figures(of: Texts) -> dict[str, Any]:
    parts = intervals.of_ratio(*of)
    interval = intervals.around(parts) if of[0].size >= MIN_TEXTS else None
    return {
        "texts": int(of[0].size),
        "n": int(of[1].sum()),
        "mean": round(math.exp(parts.value), 3),
        "low": None if interval is None else round(math.exp(interval.low), 3),
        "high": None if interval is None else round(math.exp(interval.high), 3),
    }
