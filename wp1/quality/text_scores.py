"""Text scores that several benchmarks share."""

import difflib
import re
import string
from collections import Counter
from collections.abc import Sequence


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation and articles (SQuAD's normalisation)."""
    bare = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over two bags of tokens; 0 if they share none."""
    shared = sum((Counter(prediction) & Counter(reference)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(reference)
    return 2 * precision * recall / (precision + recall)


def edit_similarity(a: str, b: str) -> float:
    """Similarity in 0..1, rounded to hundredths: fuzzywuzzy's `ratio` over difflib, as LongBench uses it."""
    if not a or not b:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, a, b).ratio()) / 100


def rouge_lsum(prediction: str, reference: str) -> float:
    """ROUGE-Lsum's F1 (Lin 2004, summary level): one sentence per line, words of a-z and 0-9, no stemming.

    Equal to Google's rouge-score with its defaults, but without the log handler that package adds to the root logger.
    """
    references, predictions = _sentences(reference), _sentences(prediction)
    unmatched_reference = Counter(word for sentence in references for word in sentence)
    unmatched_prediction = Counter(word for sentence in predictions for word in sentence)
    reference_words, predicted_words = unmatched_reference.total(), unmatched_prediction.total()
    if not reference_words or not predicted_words:
        return 0.0
    hits = 0
    for sentence in references:
        shared = sorted({index for other in predictions for index in _common(sentence, other)})
        for word in (sentence[index] for index in shared):
            if unmatched_reference[word] > 0 and unmatched_prediction[word] > 0:
                hits += 1
                unmatched_reference[word] -= 1
                unmatched_prediction[word] -= 1
    return 2 * hits / (reference_words + predicted_words)


def _sentences(text: str) -> list[list[str]]:
    return [words for line in text.lower().split("\n") if (words := re.findall(r"[a-z0-9]+", line))]


def _common(a: list[str], b: list[str]) -> list[int]:
    """Indices in `a` of a longest common subsequence with `b`; of several, the one that rouge-score finds."""
    table = [[0] * (len(b) + 1)]
    for word in a:
        above, row = table[-1], [0]
        for n, other in enumerate(b):
            row.append(above[n] + 1 if word == other else max(above[n + 1], row[n]))
        table.append(row)
    indices, i, j = [], len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            indices.append(i)
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return indices
