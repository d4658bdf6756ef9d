"""What a benchmark says of itself: tasks, rows, examples that it makes, files of predictions, and its place in reports.

A benchmark is one module with a `BENCHMARK`: in wp1/quality/benchmarks/, or anywhere else that Python can import from,
named by `dataset.benchmark`. Only `name`, `names` and `task` have to be given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wp1.quality import rows
from wp1.quality.book import Passages
from wp1.quality.rows import Fields, Row

# What a model said, in files of predictions.
PREDICTIONS = ("prediction", "pred", "response")


@dataclass(frozen=True)
class Task:
    """A task of a benchmark: how it asks, how much may be answered, and how an answer is scored."""

    name: str  # as its authors call it
    benchmark: str
    category: str
    max_tokens: int
    prompt: Callable[[Row], str]
    score: Callable[[str, Row], float]  # of a prediction, in 0..1
    chat: bool = True  # False: asked without the chat template
    stop: tuple[str, ...] = ()
    metric: str = "accuracy"
    classes: bool = False  # a classification: rows have "all_classes", which it is scored by
    options: bool = False  # a choice: rows may have "options"
    # None: answers are scored. Else the log-likelihood of the prompt is, summed over this many tokens at a time.
    nll_window: int | None = None


@dataclass(frozen=True)
class Made:
    """An example that was made: its row, and the token ids of its prompt with the opening of the answer."""

    row: Row
    ids: list[int]


@dataclass(frozen=True)
class Making:
    """What examples of one length are made from.

    tokens: a `wp1.workload.tokens.ModelTokens`. length: tokens of prompt and answer together. passages: of the
    built-in book. dataset: that group of the configuration.
    """

    tokens: Any
    length: int
    passages: Passages
    dataset: Any


# From a task's name, a seed and a number: example `number` of the task, in one form or, as RULER's at several depths,
# in more. The same arguments give the same examples on any machine. Raises ConfigError if a task does not fit.
Make = Callable[[str, int, int], list[Made]]


@dataclass(frozen=True)
class BuiltIn:
    """Examples that are made to a length, and need no network (dataset.source=builtin)."""

    tasks: tuple[str, ...]  # for which NAME_subset stands in `dataset.tasks`
    maker: Callable[[Making], Make]
    more_tasks: tuple[str, ...] = ()  # that can be made as well, with files of the user's
    variant: str | None = None  # how they differ from the official ones, said beside every score
    # Raises ConfigError for settings of `dataset` that cannot be, and for files of these tasks that cannot be read.
    check: Callable[[Any], None] = lambda dataset: None
    check_files: Callable[[Any, Sequence[str]], None] = lambda dataset, tasks: None


@dataclass(frozen=True)
class Predictions:
    """How the benchmark's own files of predictions look, for `python -m wp1.score`."""

    marks: tuple[str, ...] = ()  # fields that only these files have
    # What was predicted, from a row. None if there is none.
    prediction: Callable[[Fields], Any] = lambda fields: fields.get(rows.first_of(fields, PREDICTIONS) or "")
    # The groups of a row of a task. Raises BadRowError for a group that does not exist.
    groups: Callable[[str, Fields], Sequence[str]] = lambda task, fields: ()
    # What the file of a task is called.
    stem: Callable[[str], str] = lambda task: task
    # Names for sets of tasks that have a mean of their own, apart from the other tasks.
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reporting:
    """How a report puts the benchmark's scores together."""

    title: str = ""  # as its authors write it
    by_category: bool = False  # the mean is over categories, each the mean of its tasks; else over tasks
    groups: tuple[str, ...] = ()  # of rows, in the order of the report
    depths: bool = False  # scores by length and depth (`Row.extra`)
    threshold: float | None = None  # the score in percent up to which a length counts as reached


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of questions.

    row: a task's row from a JSON object; the third argument is the id of one that has none. Raises BadRowError.
    answers: the answers in the form that the task is scored by, from the first of these names that the row has.
    Raises BadRowError if it cannot be scored by them.
    """

    name: str
    names: tuple[str, ...]  # of its tasks
    task: Callable[[str], Task]
    row: Callable[[str, Fields, str], Row] = rows.generic
    answers: Callable[[str, Fields, tuple[str, ...]], list[Any]] = rows.answers
    rows_of_all_tasks: bool = False  # every row is asked by every task, as a whole book is
    features: Callable[[], Any] | None = None  # `datasets.Features` of its files, if they would be guessed wrong
    built_in: BuiltIn | None = None
    predictions: Predictions = Predictions()
    reporting: Reporting = Reporting()
