"""RULER's questions about documents (scripts/data/synthetic/qa.py), from a file of SQuAD's or HotpotQA's."""

import random
from functools import cache
from pathlib import Path
from typing import Any

from wp1.core.errors import ConfigError
from wp1.quality import lm_eval_files
from wp1.quality.fit_to_length import Draft
from wp1.quality.ruler.asked import Asked
from wp1.workload import row_files
from wp1.workload.row_files import BadRowError


def questions_asked(task: str, path: Path | None, rng: random.Random, number: int, tokens: Any) -> Asked:
    """Question `number` of the file at `path`, about one document, or two, among others (qa.py).

    Raises ConfigError if there is no path.
    """
    if path is None:
        key = "squad" if task == "qa_1" else "hotpot"
        raise ConfigError(f"{task} needs its questions: set dataset.{key}=FILE, or leave it out of dataset.tasks")
    config = lm_eval_files.constant("ruler", "qa_utils", "CONFIG")
    entry = str(lm_eval_files.constant("ruler", "qa_utils", "DOCUMENT_PROMPT"))
    questions, documents = qa_set(task, path)
    question = questions[number % len(questions)]
    needed = list(dict.fromkeys(question["context"]))
    others = [n for n in question["more_context"] if n not in needed]
    taken = set(needed) | set(others)
    rest = [n for n in range(len(documents)) if n not in taken]
    rng.shuffle(others)
    rng.shuffle(rest)
    order = others + rest
    shuffle_seed = rng.getrandbits(32)
    each = sum(tokens.counts([f"\n\nDocument 100:\n{documents[n]}" for n in order[:64]])) / max(1, len(order[:64]))

    def make(units: int, noise: int) -> str:
        chosen = needed + order[: units - len(needed)]
        random.Random(shuffle_seed).shuffle(chosen)
        texts = [entry.format(i=n, document=documents[index]) for n, index in enumerate(chosen, 1)]
        return config["template"].format(context="\n\n".join(texts), query=question["query"])

    draft = Draft(make, lambda units: round(each * units), len(needed), len(documents), padded=False)
    return Asked(draft, question["outputs"], config["answer_prefix"])


@cache
def qa_set(task: str, path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Questions and documents of SQuAD 2.0's or HotpotQA's development file, JSON or JSONL.

    Raises ConfigError for another file, naming the line where one is bad.
    """
    key = "squad" if task == "qa_1" else "hotpot"
    rows = list(row_files.read(path))
    bad = next((f"{where} {row}" for where, row in rows if isinstance(row, BadRowError)), None)
    if bad is not None:
        raise ConfigError(f"dataset.{key}: {bad}")
    given = [row for _, row in rows if isinstance(row, dict)]
    if len(given) == 1 and isinstance(given[0].get("data"), list):
        given = given[0]["data"]
    try:
        questions, documents = _squad(given) if task == "qa_1" else _hotpot(given)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"dataset.{key}={path} is no such set in its official form ({f'{error!r}'[:200]})") from error
    if not questions:
        raise ConfigError(f"dataset.{key}={path} is no such set in its official form (no questions in it)")
    return questions, documents


def _squad(articles: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    documents = sorted({part["context"] for article in articles for part in article["paragraphs"]})
    index = {text: n for n, text in enumerate(documents)}
    questions = []
    for article in articles:
        related = [index[part["context"]] for part in article["paragraphs"]]
        for part in article["paragraphs"]:
            own = index[part["context"]]
            questions += [
                {
                    "query": _text(asked["question"]),
                    "outputs": [_text(answer["text"]) for answer in asked["answers"]],
                    "context": [own],
                    "more_context": [n for n in related if n != own],
                }
                for asked in part["qas"]
                if not asked.get("is_impossible") and asked["answers"]
            ]
    return questions, documents


def _hotpot(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    def whole(title: str, sentences: list[str]) -> str:
        return f"{_text(title)}\n{''.join(sentences)}"

    documents = sorted({whole(*part) for asked in rows for part in asked["context"]})
    index = {text: n for n, text in enumerate(documents)}
    questions = [
        {
            "query": _text(asked["question"]),
            "outputs": [_text(asked["answer"])],
            "context": [index[whole(*part)] for part in asked["context"]],
            "more_context": [],
        }
        for asked in rows
    ]
    return questions, documents


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} is no text")
    return value
