"""RULER's lists of words that occur often (common_words_extraction.py and freq_words_extraction.py)."""

import random
import string
from functools import cache
from typing import Any

import numpy as np

from wp1.quality import lm_eval_files
from wp1.quality.fit_to_length import Draft
from wp1.quality.ruler.asked import Asked, english_words, task_file

# Prompts below this get shorter lists of words (common_words_extraction.py).
SHORT = 4096


def common_words_asked(rng: random.Random, length: int, tokens: Any) -> Asked:
    """Common words: ten that occur more often than the others of a numbered list, after a worked example."""
    config = lm_eval_files.constant("ruler", "cwe_utils", "CONFIG")
    pool = _cwe_words()
    short = length < SHORT
    repeats, rare, shown_words, shown_repeats, shown_rare = (6, 1, 20, 3, 1) if short else (30, 3, 40, 10, 3)
    words = rng.sample(pool, len(pool))
    common, others = words[:10], words[10:]
    shown, shown_common = _listed(rng.sample(pool, shown_words), shown_repeats, shown_rare, rng)
    example = (
        config["template"].format(context=shown, query="")
        + config["answer_prefix"]
        + "".join(f" {n}. {word}" for n, word in enumerate(shown_common, 1))
    )
    shuffle_seed = rng.getrandbits(32)
    per_word = sum(tokens.counts([f" {word}" for word in words[:500]])) / 500 + tokens.counts([" 1234."])[0]

    def make(units: int, noise: int) -> str:
        context, _ = _listed(common + others[: units - 10], repeats, rare, random.Random(shuffle_seed))
        return f"{example}\n" + config["template"].format(context=context, query="")

    def size(units: int) -> int:
        return round((10 * repeats + (units - 10) * rare) * per_word)

    return Asked(Draft(make, size, 11, len(words), padded=False), common, config["answer_prefix"])


def frequent_words_asked(rng: random.Random, length: int, tokens: Any) -> Asked:
    """Frequent words: made-up ones, with frequencies by Zipf's law of exponent 2; the first is noise."""
    config = lm_eval_files.constant("ruler", "fwe_utils", "CONFIG")
    # A word for every fifty tokens that the prompt itself may have (freq_words_extraction.py).
    count = max(5, (length - lm_eval_files.max_tokens(task_file("fwe"))) // 50)
    vocabulary: list[str] = []
    while len(vocabulary) < count:
        word = "".join(rng.choices(string.ascii_lowercase, k=6))
        if word not in vocabulary:
            vocabulary.append(word)
    vocabulary[0] = "..."
    weights = np.arange(1, count + 1) ** -2.0 / (np.pi**2 / 6)  # over zeta(2)
    shuffle_seed = rng.getrandbits(32)
    costs = np.array(tokens.counts([f" {word}" for word in vocabulary]))

    def make(units: int, noise: int) -> str:
        times = (units * weights).astype(int)
        words = [word for word, n in zip(vocabulary, times, strict=True) for _ in range(n)]
        random.Random(shuffle_seed).shuffle(words)
        return config["template"].format(context=" ".join(words), query="")

    def size(units: int) -> int:
        return int(((units * weights).astype(int) * costs).sum())

    # The third must occur more often than the fourth.
    return Asked(Draft(make, size, 60, padded=False), vocabulary[1:4], config["answer_prefix"])


def _listed(words: list[str], repeats: int, rare: int, rng: random.Random) -> tuple[str, list[str]]:
    """A shuffled, numbered list of words; the first ten, which are returned too, occur more often."""
    every = words[:10] * repeats + words[10:] * rare
    rng.shuffle(every)
    return " ".join(f"{n}. {word}" for n, word in enumerate(every, 1)), words[:10]


@cache
def _cwe_words() -> list[str]:
    return sorted({word for part in english_words("noun", "adjective", "verb") for word in part})
