"""PG-19 (arXiv:1911.05507): long books. Perplexity over windows of a text, and which of four passages comes next.

Of a book from the hub or a file perplexity is of its beginning, as much as the model takes. The next passage is asked
for at a place drawn by the book's id, the same everywhere, and the other three are from elsewhere in the same book.

Neither is an official score: PG-19 states word-level perplexity over whole books. Perplexity here is exp of the mean
negative log-likelihood of a token, as the engine gives it, in the model's own tokens.
"""

import random
from functools import cache

from wp1.quality.tasks import Row, Task

NAME = "pg19"
TASKS = ("pg19_perplexity", "pg19_next_passage")
PASSAGE = 60  # words
# Words of a book before the question; more than any model here takes, and a book may have a million.
CONTEXT = 150_000
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
        chat=not perplexity,
        metric="perplexity" if perplexity else "accuracy",
    )


def row_of_book(name: str, book: str, text: str) -> Row:
    """A task's row from a whole book. Raises ValueError where the book is too short to ask which passage is next."""
    if name == "pg19_perplexity":
        return Row(book, name, context=text)
    words = text.split()
    if len(words) < 8 * PASSAGE:
        raise ValueError(f'has a "text" of {len(words)} words: at least {8 * PASSAGE} are needed')
    rng = random.Random(f"{name}/{book}")
    place = rng.randrange(len(words) // 2, len(words) - 3 * PASSAGE)
    elsewhere = [at for at in range(0, len(words) - PASSAGE, PASSAGE) if abs(at - place) >= PASSAGE]
    starts = [place, *rng.sample(elsewhere, 3)]
    rng.shuffle(starts)
    return Row(
        book,
        name,
        context=" ".join(words[max(0, place - CONTEXT) : place]),
        answers=["ABCD"[starts.index(place)]],
        choices=[" ".join(words[at : at + PASSAGE]) for at in starts],
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
