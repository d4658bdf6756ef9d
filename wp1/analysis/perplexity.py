"""Perplexity by position in a text, of one arm and of two over the same texts. From the rows of `quality.scored`; pure.

Positions are put together from one power of two to the next.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis.metrics import mean_interval

METRIC = "perplexity"

# The windows of an arm: by cell, repeat, text and number, the position in tokens where it begins, its sum of negative
# log-likelihoods (nats) and its tokens.
Window = tuple[int, float, int]
Windows = Mapping[tuple[str, int, str, int], Window]


def bucket(tokens: int) -> int:
    """The power of two at or above a length in tokens, from 512 on."""
    return max(512, 1 << (tokens - 1).bit_length())


def by_position(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """exp of the mean negative log-likelihood of a token, with its interval: a bootstrap over windows of tokens.

    n: tokens. Of every text of these rows, so that later positions are of fewer texts.
    """
    return [_positions(size) | _figures(of) for size, of in _bins(_windows(rows)).items()]


def of_both(a: pl.DataFrame, b: pl.DataFrame) -> list[dict[str, Any]]:
    """Two arms over the windows of the texts that both had, so that they differ by nothing but the arm.

    a, b: figures of each as in `by_position`; ratio: of b's perplexity to a's, with the interval of a bootstrap over
    the pairs of windows.
    """
    windows = [_windows(rows) for rows in (a, b)]
    same = windows[0].keys() & windows[1].keys()
    bins = [_bins({key: of[key] for key in of if key in same}) for of in windows]
    found = []
    for size, of_a in bins[0].items():
        of_b = bins[1][size]
        change = np.array([of_b[key][1] / of_b[key][2] - of_a[key][1] / of_a[key][2] for key in of_a])
        figures = _figures(of_a), _figures(of_b)
        low, high = mean_interval(change)
        found.append(
            _positions(size)
            | {key: figures[0][key] for key in ("texts", "n")}
            | {
                "a": figures[0],
                "b": figures[1],
                "ratio": round(_mean(of_b) / _mean(of_a), 4),
                "low": round(math.exp(low), 4),
                "high": round(math.exp(high), 4),
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


def _figures(of: Windows) -> dict[str, Any]:
    # Windows have nearly all the same number of tokens, so their means may be resampled.
    low, high = mean_interval(np.array([nll / tokens for _, nll, tokens in of.values()]))
    return {
        "texts": len({(cell, example) for cell, _, example, _ in of}),
        "n": sum(tokens for *_, tokens in of.values()),
        "mean": round(_mean(of), 3),
        "low": round(math.exp(low), 3),
        "high": round(math.exp(high), 3),
    }


def _mean(of: Windows) -> float:
    return math.exp(sum(nll for _, nll, _ in of.values()) / sum(tokens for *_, tokens in of.values()))
