"""PG-19 (arXiv:1911.05507): long books. Perplexity over windows of a text, and which of four passages comes next.

Neither is an official score: PG-19 states word-level perplexity over whole books. Perplexity here is exp of the mean
negative log-likelihood of a token, as the engine gives it, in the model's own tokens.
"""

from functools import cache

from wp1.quality.tasks import Row, Task

NAME = "pg19"
TASKS = ("pg19_perplexity", "pg19_next_passage")
QUESTION = (
    "Which of these passages follows directly? Answer with one letter (A, B, C or D) and nothing else.\n\n"
    "{choices}\n\nThe passage that follows is"
)


def names() -> tuple[str, ...]:
    return TASKS


@cache
def task(name: str) -> Task:
    perplexity = name == "pg19_perplexity"
    return Task(
        name=name,
        benchmark=NAME,
        category="language modelling",
        max_tokens=1 if perplexity else 4,
        prompt=(lambda row: row.context) if perplexity else _next_passage,
        score=_no_text if perplexity else letter,
        graded=perplexity,
        chat=not perplexity,
        metric="perplexity" if perplexity else "accuracy",
    )


def _next_passage(row: Row) -> str:
    choices = "\n\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", row.choices, strict=True))
    return f"{row.context}\n\n{QUESTION.format(choices=choices)}"


def letter(prediction: str, row: Row) -> float:
    """Whether the first lone letter from A to D is the right one."""
    import re

    found = re.search(r"\b([A-D])\b", prediction)
    return float(found is not None and found.group(1) == row.answers[0])


def _no_text(prediction: str, row: Row) -> float:
    raise ValueError("perplexity is of the prompt's log-likelihoods, not of an answer")
