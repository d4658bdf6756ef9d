"""Scores of texts that several benchmarks share."""

import difflib
import re
import string
from collections import Counter
from collections.abc import Sequence


def words_of(text: str) -> list[str]:
    """Lower case, without punctuation and articles, split at blanks (SQuAD's normalisation)."""
    bare = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over two bags of tokens; 0 where nothing is shared."""
    shared = sum((Counter(prediction) & Counter(reference)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(reference)
    return 2 * precision * recall / (precision + recall)


def edit_similarity(a: str, b: str) -> float:
    """Similarity in 0..1, rounded to hundredths: fuzzywuzzy's `ratio` over difflib, which LongBench's scores are of."""
    if not a or not b:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, a, b).ratio()) / 100


def rouge_lsum(prediction: str, reference: str) -> float:
    """ROUGE-Lsum's F1 (Lin 2004, summary level), a line a sentence, words of a-z and 0-9, without stemming.

    Equal to Google's rouge-score with its defaults, a package that would put a log handler on the root logger.
    """
    wanted, given = _sentences(reference), _sentences(prediction)
    left, there = Counter(word for s in wanted for word in s), Counter(word for s in given for word in s)
    length, size = left.total(), there.total()
    if not length or not size:
        return 0.0
    hits = 0
    for sentence in wanted:
        shared = sorted({index for other in given for index in _common(sentence, other)})
        for word in (sentence[index] for index in shared):
            if left[word] > 0 and there[word] > 0:
                hits += 1
                left[word] -= 1
                there[word] -= 1
    return 2 * hits / (length + size)


def _sentences(text: str) -> list[list[str]]:
    return [words for line in text.lower().split("\n") if (words := re.findall(r"[a-z0-9]+", line))]


def _common(a: list[str], b: list[str]) -> list[int]:
    """Places in `a` of a longest common subsequence with `b`, the one that rouge-score finds of several."""
    table = [[0] * (len(b) + 1)]
    for word in a:
        above, row = table[-1], [0]
        for n, other in enumerate(b):
            row.append(above[n] + 1 if word == other else max(above[n + 1], row[n]))
        table.append(row)
    found, i, j = [], len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            found.append(i)
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return found
