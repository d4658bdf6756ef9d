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
