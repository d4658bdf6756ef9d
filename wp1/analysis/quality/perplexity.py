"""Perplexity by position in a text, for one arm, and for two arms over the same texts. Pure.

Made from the rows of `quality.figures.scored`. Positions are binned by powers of two.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis.base import cells
from wp1.stats import intervals

METRIC = "perplexity"
# With two texts, a 95 % interval would be 12.7 standard errors of a logarithm to either side: too wide to be of use.
MIN_TEXTS = 3

# A window: where it begins (tokens), its sum of negative log-likelihoods (nats), its tokens. An arm's windows are keyed
# by cell, repeat, text and the window's number.
Window = tuple[int, float, int]
Windows = Mapping[tuple[str, int, str, int], Window]


def bucket(tokens: int) -> int:
    """The smallest power of two, at least 512, that is not below a length in tokens."""
    return max(512, 1 << (tokens - 1).bit_length())


def by_position(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """exp of the mean negative log-likelihood per token, with its 95 % interval over texts.

    Texts are the independent unit: windows of one text are correlated, and a text that was read again is the same text.
    low and high: Student's t over each text's share in the mean, null for fewer than three texts. n: tokens, each text
    once. Every text counts as far as it reaches, so later positions have fewer texts.
    """
    return [_positions(size) | _figures(_of_texts(of)) for size, of in _bins(_windows(rows)).items()]


def of_both(a: pl.DataFrame, b: pl.DataFrame) -> list[dict[str, Any]]:
    """Two arms over the text windows that both had, so that only the arm differs.

    a, b: figures of each as in `by_position`. ratio: b's perplexity / a's, with its interval over texts. p: for no
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


# Sums of negative log-likelihoods (nats) and numbers of tokens, an element per text.
Texts = tuple[np.ndarray, np.ndarray]


def _of_texts(of: Windows) -> Texts:
    """Sums and tokens by text; a text read in several repeats or under several loads counts once, with its mean."""
    found: dict[tuple[str, str], dict[int, list[tuple[float, int]]]] = {}
    for (cell, _, example, number), (_, nll, tokens) in of.items():
        found.setdefault((cells.parse(cell).prompt, example), {}).setdefault(number, []).append((nll, tokens))
    # Sorted, so that two arms' arrays are aligned by text.
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
