"""PG-19 (arXiv:1911.05507), long books: perplexity over windows of a text, and which of four passages comes next.

For a book from the hub or a file, perplexity covers its beginning, up to the model's length. The question for the next
passage is at a position drawn from the book's id, the same everywhere; the other three passages are from elsewhere in
the same book.

Neither is an official score: PG-19 reports word-level perplexity over whole books. Perplexity here is exp of the mean
negative log-likelihood per token, as the engine reports it, in the model's own tokens.
"""

import random
import re
from functools import cache

from wp1.quality import builtin, rows
from wp1.quality.builtin import Kind
from wp1.quality.fit_to_length import padding
from wp1.quality.rows import Fields
from wp1.quality.tasks import Benchmark, BuiltIn, Making, Reporting, Row, Task
from wp1.workload.row_files import BadRowError

NAME = "pg19"
PERPLEXITY, NEXT_PASSAGE = "pg19_perplexity", "pg19_next_passage"
# Tokens over which a prompt's log-likelihood is summed.
NLL_WINDOW = 128
PASSAGE = 60  # words
# Words of a book before the question: more than any model here takes, but a book may have a million.
CONTEXT = 150_000
QUESTION = (
    "Which of these passages follows directly? Answer with one letter (A, B, C or D) and nothing else.\n\n"
    "{choices}\n\nThe passage that follows is"
)


@cache
def task(name: str) -> Task:
    perplexity = name == PERPLEXITY
    return Task(
        name=name,
        benchmark=NAME,
        category="language modelling",
        max_tokens=1 if perplexity else 4,
        prompt=(lambda row: row.context) if perplexity else _next_passage,
        score=_no_text if perplexity else letter,
        chat=not perplexity,
        metric="perplexity" if perplexity else "accuracy",
        nll_window=NLL_WINDOW if perplexity else None,
    )


def row(name: str, fields: Fields, default_id: str) -> Row:
    """A task's row from a whole book, the field `text`."""
    book = rows.identifier(fields, ("url", "short_book_title", "id"), default_id)
    return _row_of_book(name, book, rows.filled(fields, "text"))


def _row_of_book(name: str, book: str, text: str) -> Row:
    """Raises BadRowError if the book is too short to ask which passage is next."""
    if name == PERPLEXITY:
        return Row(book, name, context=text)
    words = text.split()
    if len(words) < 8 * PASSAGE:
        raise BadRowError(f'has a "text" of {len(words)} words: at least {8 * PASSAGE} are needed')
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
    found = re.search(r"\b([A-D])\b", prediction)
    return float(found is not None and found.group(1) == row.answers[0])


def _no_text(prediction: str, row: Row) -> float:
    raise ValueError("perplexity comes from the prompt's log-likelihoods, not from an answer")


def _text(making: Making, rng: random.Random, number: int) -> Kind:
    start = making.passages.somewhere(rng)
    return Kind(
        lambda units, noise: Row("", "", " ".join(making.passages.texts(start, units))),
        lambda units: making.passages.size(start, units),
    )


def _next(making: Making, rng: random.Random, number: int) -> Kind:
    """A passage and four verses that may follow it; three of them are from nearby in the book."""
    verses = making.passages.verses
    end = making.passages.somewhere(rng)
    picks = rng.sample([n for n in range(end - 200, end + 200) if not -1 <= n - end <= 1], 3)
    right = rng.randrange(4)
    picks.insert(right, end)
    choices = [verses[pick % len(verses)].text for pick in picks]

    def row(units: int, noise: int) -> Row:
        context = " ".join([*padding(noise), *making.passages.texts((end - units) % len(verses), units)])
        return Row("", "", context, "", ["ABCD"[right]], choices=choices)

    return Kind(row, lambda units: making.passages.size((end - units) % len(verses), units))


MADE = {PERPLEXITY: _text, NEXT_PASSAGE: _next}
BENCHMARK = Benchmark(
    name=NAME,
    names=tuple(MADE),
    task=task,
    row=row,
    rows_of_all_tasks=True,
    built_in=BuiltIn(tasks=tuple(MADE), maker=lambda making: builtin.maker(making, MADE, task)),
    reporting=Reporting("PG-19"),
)
