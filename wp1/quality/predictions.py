"""Files of predictions: which task each is of, what is in a row, and the scores of its answers.

A file has JSON objects, one a line or in an array: a prediction and what the task is scored by, in the names that the
benchmarks' own prediction files use. A file whose fields or name are of another benchmark or task is refused.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wp1.core.errors import ConfigError
from wp1.quality import rows, scoring
from wp1.quality.benchmarks import Benchmarks, find
from wp1.quality.tasks import PREDICTIONS, Benchmark, Row, Task
from wp1.workload import row_files
from wp1.workload.row_files import BadRowError

REFERENCES = ("answers", "ground_truth", "label", "outputs", "answer")


@dataclass
class Scores:
    """The scores of a task's answers in 0..1, all of them and by the groups that the task is reported by."""

    task: Task
    values: list[float] = field(default_factory=list)
    groups: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def summary(self) -> dict[str, Any]:
        """Score, n and interval, of all and of each group."""
        return {
            "task": f"{self.task.benchmark}/{self.task.name}",
            "metric": self.task.metric,
            **scoring.of_task(self.values),
            "groups": {name: scoring.of_task(values) for name, values in self.groups.items()},
        }


def scores_of(task: Task, paths: Sequence[Path], among: Benchmarks) -> Scores:
    """The scores of the answers in files of one task. Raises ConfigError naming the line that cannot be scored."""
    if task.nll_window is not None:
        raise ConfigError(f"{task.name} is of the log-likelihoods of a text, which no file of answers has")
    found = Scores(task)
    for path in paths:
        _check_name(task, path, among)
        before = len(found.values)
        for where, fields in row_files.read(path):
            try:
                prediction, row, groups = _read(task, fields, where, among)
                value = task.score(prediction, row)
            except BadRowError as error:
                raise ConfigError(f"{where} {error}") from error
            except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
                raise ConfigError(f"{where} cannot be scored as {task.name} ({error}): check its answers") from error
            found.values.append(value)
            for group in groups:
                found.groups[group].append(value)
        if len(found.values) == before:
            raise ConfigError(f"{path} has no predictions: JSON objects are needed, one a line or in an array")
    return found


def _task_in(name: str, among: Benchmarks) -> Task | None:
    """The task that a file is called after: `hotpotqa`, `preds_passkey`."""
    short = re.sub(r"^preds?_", "", name.rpartition("/")[2])
    return next((one.task(short) for one in among.values() if short in one.names), None)


def _other(task: Task, name: str, among: Benchmarks) -> str | None:
    """The task that a name says, if files of this task are called otherwise."""
    called = _task_in(name, among)
    return called.name if called is not None and _stem(called, among) != _stem(task, among) else None


def _stem(task: Task, among: Benchmarks) -> str:
    return among[task.benchmark].predictions.stem(task.name)


def _check_name(task: Task, path: Path, among: Benchmarks) -> None:
    if (other := _other(task, path.stem, among)) is not None:
        raise ConfigError(f"{path} is called after the task {other}, and {task.name} is asked for: name its own task")


def _read(
    task: Task, fields: dict[str, Any] | BadRowError, where: str, among: Benchmarks
) -> tuple[str, Row, Sequence[str]]:
    """Prediction, reference and groups of a row. Raises BadRowError."""
    if isinstance(fields, BadRowError):
        raise fields
    benchmark = among[task.benchmark]
    _check_origin(task, fields, among)
    prediction = _prediction(benchmark, fields)
    if rows.first_of(fields, REFERENCES) is None:
        raise BadRowError(
            f"has no answers: one of {', '.join(REFERENCES)} is needed, and it has {row_files.fields_of(fields)}"
        )
    answers = benchmark.answers(task.name, fields, REFERENCES)
    classes = rows.classes(fields, needed=task.classes)
    row = Row(id=where, task=task.name, answers=answers, all_classes=classes)
    return prediction, row, benchmark.predictions.groups(task.name, fields)


def _check_origin(task: Task, fields: Mapping[str, Any], among: Benchmarks) -> None:
    """Raises BadRowError if a row has what only another benchmark's or task's files have."""
    marks = {name: one.name for one in among.values() for name in one.predictions.marks if fields.get(name) is not None}
    if marks and task.benchmark not in marks.values():
        name, of = next(iter(marks.items()))
        raise BadRowError(f'is of {of} (it has "{name}"), and {task.name} is a task of {task.benchmark}')
    if fields.get("all_classes") and not task.classes:
        raise BadRowError(f'is of a classification (it has "all_classes"), and {task.name} is none')
    if fields.get("options") and not task.options:
        raise BadRowError(f'is of a choice (it has "options"), and {task.name} is none')
    for key in ("task", "dataset"):
        said = fields.get(key)
        if isinstance(said, str) and (other := _other(task, said, among)) is not None:
            raise BadRowError(f'is of the task {other} (its "{key}"), and {task.name} is asked for')


def _prediction(benchmark: Benchmark, fields: Mapping[str, Any]) -> str:
    """What was predicted; a name with null is as one that is not there."""
    found = benchmark.predictions.prediction(fields)
    if not isinstance(found, str):
        raise BadRowError(
            f"has no prediction: a text named {', '.join(PREDICTIONS)} is needed, and it has "
            f"{row_files.fields_of(dict(fields))}"
        )
    return found


def _sets(among: Benchmarks) -> dict[str, tuple[str, ...]]:
    """The tasks of each benchmark, and of each set within one that has a mean of its own, by name."""
    found = {one.name: one.names for one in among.values()}
    for one in among.values():
        found |= one.predictions.sets
    return found


def named(words: Sequence[str], among: Benchmarks) -> list[tuple[Task, list[Path]]]:
    """The tasks and their files that the words of the command line name. Raises ConfigError."""
    found: dict[str, tuple[Task, list[Path]]] = {}
    task, of_set, waits = None, None, ""
    for word in words:
        if (path := Path(word).expanduser()).is_dir():
            files = _files_of(path, of_set, task, among)
        elif path.is_file() and (task is not None or not _is_name(word, among)):
            files = [(task or _find(path, of_set, among), path)]
        elif waits:
            raise ConfigError(f"{word} is not there: name a file of predictions, or a folder of such, after {waits}")
        elif word in _sets(among) and _task_in(word, among) is None:
            task, of_set, waits = None, word, word
            continue
        elif task is not None and not _is_name(word, among) and ("." in word or "/" in word):
            raise ConfigError(f"{word} is not there: name a file of predictions, or a task")
        else:
            task, of_set, waits = find(word, among), None, word
            continue
        waits = ""
        for of, file in files:
            found.setdefault(of.name, (of, []))[1].append(file)
    if waits or not found:
        raise ConfigError(f"a file of predictions is missing{f' after {waits}' if waits else ''}: see --help")
    return list(found.values())


def _is_name(word: str, among: Benchmarks) -> bool:
    """Whether a word names a task and nothing else; a file has a folder or an ending, mostly."""
    try:
        find(word, among)
    except ConfigError:
        return False
    return True


def _find(path: Path, of_set: str | None, among: Benchmarks) -> Task:
    """The task that a file is called after. Raises ConfigError if it is called after none."""
    called = _task_in(path.stem, among)
    if called is not None and of_set is not None:
        # Files of a set may have the names of another: LongBench-E's have LongBench's.
        names = [name for name in _sets(among)[of_set] if name in among[called.benchmark].names]
        alike = [name for name in names if among[called.benchmark].predictions.stem(name) == _stem(called, among)]
        name = called.name if called.name in names else next(iter(alike), None)
        called = None if name is None else among[called.benchmark].task(name)
    if called is None:
        raise ConfigError(f"{path} is not called after a task: name its task before it (--list has them)")
    return called


def _files_of(folder: Path, of_set: str | None, task: Task | None, among: Benchmarks) -> list[tuple[Task, Path]]:
    """The files of a folder that are called after tasks: of a set, or one task's."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".jsonl", ".json") and path.is_file():
            with suppress(ConfigError):
                found.append((_find(path, of_set, among), path))
    if task is not None:
        found = [(task, path) for of, path in found if _stem(of, among) == _stem(task, among)]
    if not found:
        of = task.name if task is not None else of_set
        raise ConfigError(f"{folder} has no file that is called after a task{f' of {of}' if of else ''}")
    return found


def overall(scored: Sequence[Scores], by_category: bool) -> dict[str, Any]:
    """The mean over several tasks of one benchmark, or over their categories; and over the tasks of each group."""
    categories = {one.task.name: one.task.category for one in scored} if by_category else None
    found = scoring.mean_of({one.task.name: one.values for one in scored}, categories)
    groups: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for one in scored:
        for name, values in one.groups.items():
            groups[name][one.task.name] = values
    return {
        **found,
        "over": "categories" if by_category else "tasks",
        "groups": {name: scoring.mean_of(of, categories) for name, of in groups.items()},
    }


def overalls(scored: Sequence[Scores], among: Benchmarks) -> dict[str, dict[str, Any]]:
    """The means of tasks whose mean means something, by the name of their set, as LongBench or LongBench-E."""
    apart = {
        (one.name, task): name for one in among.values() for name, of in one.predictions.sets.items() for task in of
    }
    found: dict[str, list[Scores]] = defaultdict(list)
    for one in scored:
        found[apart.get((one.task.benchmark, one.task.name), one.task.benchmark)].append(one)
    return {
        name: overall(of, among[of[0].task.benchmark].reporting.by_category)
        for name, of in found.items()
        if len(of) > 1
    }
