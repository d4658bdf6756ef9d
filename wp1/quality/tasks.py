"""How a benchmark is declared: its tasks, rows, built-in examples, prediction files and place in reports.

A benchmark is one module with a `BENCHMARK`, either in wp1/quality/benchmarks/ or anywhere else that Python can import
from, named by `dataset.benchmark`. Only `name`, `names` and `task` are required.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wp1.quality import rows
from wp1.quality.book import Passages
from wp1.quality.rows import Fields, Row

# Fields that may hold the model's answer in a file of predictions.
PREDICTIONS = ("prediction", "pred", "response")


@dataclass(frozen=True)
class Task:
    """A task of a benchmark: its prompt, the longest answer, and how an answer is scored."""

    name: str  # as its authors call it
    benchmark: str
    category: str
    max_tokens: int
    prompt: Callable[[Row], str]
    score: Callable[[str, Row], float]  # scores a prediction, in 0..1
    chat: bool = True  # whether the prompt goes through the chat template
    stop: tuple[str, ...] = ()
    metric: str = "accuracy"
    classes: bool = False  # classification: scored by "all_classes" of the row
    options: bool = False  # multiple choice: rows may have "options"
    # If set, the score is the prompt's log-likelihood, summed over windows of this many tokens, and not the answer's.
    nll_window: int | None = None


@dataclass(frozen=True)
class Made:
    """A built-in example: its row, and the token ids of its prompt, including the opening of the answer."""

    row: Row
    ids: list[int]


@dataclass(frozen=True)
class Making:
    """The inputs for making examples of one length.

    tokens: a `wp1.workload.tokens.ModelTokens`. length: tokens of prompt and answer together. passages: passages of
    the built-in book. dataset: the configuration's `dataset` group.
    """

    tokens: Any
    length: int
    passages: Passages
    dataset: Any


# (task name, seed, number) -> example `number` of the task: one, or several as for RULER's depths. The same arguments
# give the same examples on any machine. Raises ConfigError if a task does not fit.
Make = Callable[[str, int, int], list[Made]]


@dataclass(frozen=True)
class BuiltIn:
    """Examples that are made to a given length, without a network (dataset.source=builtin)."""

    tasks: tuple[str, ...]  # the tasks that NAME_subset in `dataset.tasks` stands for
    maker: Callable[[Making], Make]
    more_tasks: tuple[str, ...] = ()  # tasks that need the user's files
    variant: str | None = None  # how the examples differ from the official ones, shown next to every score
    # `check` raises ConfigError for invalid settings of `dataset`, `check_files` for files of these tasks that cannot
    # be read.
    check: Callable[[Any], None] = lambda dataset: None
    check_files: Callable[[Any, Sequence[str]], None] = lambda dataset, tasks: None


@dataclass(frozen=True)
class Predictions:
    """The format of the benchmark's own files of predictions, for `python -m wp1.score`."""

    marks: tuple[str, ...] = ()  # fields by which these files are recognised
    # The prediction in a row, or None.
    prediction: Callable[[Fields], Any] = lambda fields: fields.get(rows.first_of(fields, PREDICTIONS) or "")
    # The groups of a task's row. Raises BadRowError for an unknown group.
    groups: Callable[[str, Fields], Sequence[str]] = lambda task, fields: ()
    # The name of a task's file, without its suffix.
    stem: Callable[[str], str] = lambda task: task
    # Named sets of tasks whose mean is separate from that of the other tasks.
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reporting:
    """How a report presents the benchmark's scores."""

    title: str = ""  # as its authors write it
    by_category: bool = False  # if true, the mean is over categories, each the mean of its tasks; else over tasks
    groups: tuple[str, ...] = ()  # groups of rows, in report order
    depths: bool = False  # whether to show scores by length and depth (`Row.extra`)
    threshold: float | None = None  # the score in percent that a length needs to count as reached


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of questions.

    row: builds a task's row from a JSON object; the third argument is the id to use if the object has none. Raises
    BadRowError.
    answers: the answers in the form in which the task scores them, from the first of these fields that the row has.
    Raises BadRowError if they cannot be used for scoring.
    """

    name: str
    names: tuple[str, ...]  # its tasks
    task: Callable[[str], Task]
    row: Callable[[str, Fields, str], Row] = rows.generic
    answers: Callable[[str, Fields, tuple[str, ...]], list[Any]] = rows.answers
    rows_of_all_tasks: bool = False  # whether every row belongs to every task, as with whole books
    features: Callable[[], Any] | None = None  # `datasets.Features` of its files, if inference would get them wrong
    built_in: BuiltIn | None = None
    predictions: Predictions = Predictions()
    reporting: Reporting = Reporting()
