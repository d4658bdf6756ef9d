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
    """The scores of a task's answers, in 0..1: all of them, and by reported group."""

    task: Task
    values: list[float] = field(default_factory=list)
    groups: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def summary(self) -> dict[str, Any]:
        """Score, n and interval, overall and for each group."""
        return {
            "task": f"{self.task.benchmark}/{self.task.name}",
            "metric": self.task.metric,
            **scoring.of_task(self.values),
            "groups": {name: scoring.of_task(values) for name, values in self.groups.items()},
        }


def scores_of(task: Task, paths: Sequence[Path], among: Benchmarks) -> Scores:
    """The scores of one task's answer files. Raises ConfigError naming the first line that cannot be scored."""
    if task.nll_window is not None:
        raise ConfigError(f"{task.name} is scored by the log-likelihoods of a text, which prediction files do not have")
    scores = Scores(task)
    for path in paths:
        _check_name(task, path, among)
        before = len(scores.values)
        for where, fields in row_files.read(path):
            try:
                prediction, row, groups = _read(task, fields, where, among)
                value = task.score(prediction, row)
            except BadRowError as error:
                raise ConfigError(f"{where} {error}") from error
            except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
                raise ConfigError(f"{where} cannot be scored as {task.name} ({error}): check its answers") from error
            scores.values.append(value)
            for group in groups:
                scores.groups[group].append(value)
        if len(scores.values) == before:
            raise ConfigError(f"{path} has no predictions: it must have JSON objects, one per line or in an array")
    return scores


def _task_in(name: str, among: Benchmarks) -> Task | None:
    """The task in a file's name, such as `hotpotqa` or `preds_passkey`; None if there is none."""
    short = re.sub(r"^preds?_", "", name.rpartition("/")[2])
    return next((one.task(short) for one in among.values() if short in one.names), None)


def _other(task: Task, name: str, among: Benchmarks) -> str | None:
    """The name of the task in `name`, if files of the given task are named differently; else None."""
    named = _task_in(name, among)
    return named.name if named is not None and _stem(named, among) != _stem(task, among) else None


def _stem(task: Task, among: Benchmarks) -> str:
    return among[task.benchmark].predictions.stem(task.name)


def _check_name(task: Task, path: Path, among: Benchmarks) -> None:
    if (other := _other(task, path.stem, among)) is not None:
        raise ConfigError(f"{path} is named after the task {other}, not {task.name}: give the task that it is from")


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
            f"has no answers: it needs one of {', '.join(REFERENCES)}, but has {row_files.fields_of(fields)}"
        )
    answers = benchmark.answers(task.name, fields, REFERENCES)
    classes = rows.classes(fields, needed=task.classes)
    row = Row(id=where, task=task.name, answers=answers, all_classes=classes)
    return prediction, row, benchmark.predictions.groups(task.name, fields)


def _check_origin(task: Task, fields: Mapping[str, Any], among: Benchmarks) -> None:
    """Raises BadRowError if a row has fields that belong to another benchmark or task."""
    marks = {name: one.name for one in among.values() for name in one.predictions.marks if fields.get(name) is not None}
    if marks and task.benchmark not in marks.values():
        name, benchmark = next(iter(marks.items()))
        raise BadRowError(f'is from {benchmark} (it has "{name}"), but {task.name} is a task of {task.benchmark}')
    if fields.get("all_classes") and not task.classes:
        raise BadRowError(f'is from a classification task (it has "all_classes"), which {task.name} is not')
    if fields.get("options") and not task.options:
        raise BadRowError(f'is from a multiple-choice task (it has "options"), which {task.name} is not')
    for key in ("task", "dataset"):
        name = fields.get(key)
        if isinstance(name, str) and (other := _other(task, name, among)) is not None:
            raise BadRowError(f'is from the task {other} (its "{key}"), not {task.name}')


def _prediction(benchmark: Benchmark, fields: Mapping[str, Any]) -> str:
    """The prediction of a row; a null field counts as missing. Raises BadRowError if there is none."""
    prediction = benchmark.predictions.prediction(fields)
    if not isinstance(prediction, str):
        raise BadRowError(
            f"has no prediction: it needs a text named {', '.join(PREDICTIONS)}, but has "
            f"{row_files.fields_of(dict(fields))}"
        )
    return prediction


def _sets(among: Benchmarks) -> dict[str, tuple[str, ...]]:
    """The tasks of each benchmark, and of each set within one that has a mean of its own, by name."""
    found = {one.name: one.names for one in among.values()}
    for one in among.values():
        found |= one.predictions.sets
    return found


def named(words: Sequence[str], among: Benchmarks) -> list[tuple[Task, list[Path]]]:
    """The tasks on the command line, each with its files. Raises ConfigError."""
    by_task: dict[str, tuple[Task, list[Path]]] = {}
    task, of_set, waits = None, None, ""
    for word in words:
        if (path := Path(word).expanduser()).is_dir():
            files = _files_of(path, of_set, task, among)
        elif path.is_file() and (task is not None or not _is_name(word, among)):
            files = [(task or _find(path, of_set, among), path)]
        elif waits:
            raise ConfigError(f"{word} does not exist: name a prediction file, or a folder of them, after {waits}")
        elif word in _sets(among) and _task_in(word, among) is None:
            task, of_set, waits = None, word, word
            continue
        elif task is not None and not _is_name(word, among) and ("." in word or "/" in word):
            raise ConfigError(f"{word} does not exist: name a prediction file or a task")
        else:
            task, of_set, waits = find(word, among), None, word
            continue
        waits = ""
        for of, file in files:
            by_task.setdefault(of.name, (of, []))[1].append(file)
    if waits or not by_task:
        raise ConfigError(f"a prediction file is missing{f' after {waits}' if waits else ''}: see --help")
    return list(by_task.values())


def _is_name(word: str, among: Benchmarks) -> bool:
    """Whether an argument is a task's name; files usually have a folder or a suffix."""
    try:
        find(word, among)
    except ConfigError:
        return False
    return True


def _find(path: Path, of_set: str | None, among: Benchmarks) -> Task:
    """The task that a file is named after. Raises ConfigError if there is none."""
    task = _task_in(path.stem, among)
    if task is not None and of_set is not None:
        # The files of a set may be named like another set's: LongBench-E's have LongBench's names.
        names = [name for name in _sets(among)[of_set] if name in among[task.benchmark].names]
        alike = [name for name in names if among[task.benchmark].predictions.stem(name) == _stem(task, among)]
        name = task.name if task.name in names else next(iter(alike), None)
        task = None if name is None else among[task.benchmark].task(name)
    if task is None:
        raise ConfigError(f"{path} is not named after a task: name its task before it (--list shows them)")
    return task


def _files_of(folder: Path, of_set: str | None, task: Task | None, among: Benchmarks) -> list[tuple[Task, Path]]:
    """The files of a folder that are named after tasks, with their tasks: a set's, or one task's."""
    pairs = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".jsonl", ".json") and path.is_file():
            with suppress(ConfigError):
                pairs.append((_find(path, of_set, among), path))
    if task is not None:
        pairs = [(task, path) for of, path in pairs if _stem(of, among) == _stem(task, among)]
    if not pairs:
        of = task.name if task is not None else of_set
        raise ConfigError(f"{folder} has no file named after a task{f' of {of}' if of else ''}: name a task before it")
    return pairs


def overall(scored: Sequence[Scores], by_category: bool) -> dict[str, Any]:
    """The mean over several tasks of one benchmark, or over their categories; also for each group."""
    categories = {one.task.name: one.task.category for one in scored} if by_category else None
    mean = scoring.mean_of({one.task.name: one.values for one in scored}, categories)
    groups: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for one in scored:
        for name, values in one.groups.items():
            groups[name][one.task.name] = values
    return {
        **mean,
        "over": "categories" if by_category else "tasks",
        "groups": {name: scoring.mean_of(of, categories) for name, of in groups.items()},
    }


def overalls(scored: Sequence[Scores], among: Benchmarks) -> dict[str, dict[str, Any]]:
    """The overall mean of each benchmark or set, such as LongBench or LongBench-E, with several scored tasks."""
    set_of = {
        (one.name, task): name for one in among.values() for name, of in one.predictions.sets.items() for task in of
    }
    by_set: dict[str, list[Scores]] = defaultdict(list)
    for one in scored:
        by_set[set_of.get((one.task.benchmark, one.task.name), one.task.benchmark)].append(one)
    return {
        name: overall(of, among[of[0].task.benchmark].reporting.by_category)
        for name, of in by_set.items()
        if len(of) > 1
    }
