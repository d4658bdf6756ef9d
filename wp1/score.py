"""python -m wp1.score TASK FILE: scores files of predictions by a task's official rules, with n and 95 % intervals.

A file has JSON objects, one a line or in an array: a prediction (`prediction`, `pred` or `response`) and what the task
is scored by, in the names that the benchmarks' own prediction files use (`answers`, `ground_truth`, `label`, `outputs`,
`answer`; `all_classes` for LongBench's trec and lsht; `options` for InfiniteBench's choices, unless the answer is a
text with its letter). A file whose fields or name are of another benchmark or task is refused. No engine is started.

Several at once, with their overall mean (LongBench's over its categories):

  python -m wp1.score hotpotqa a.jsonl qasper b.jsonl     a task before its files
  python -m wp1.score hotpotqa.jsonl preds_passkey.jsonl  files that are called after their tasks
  python -m wp1.score longbench FOLDER                    all files of a folder that are called after its tasks
  python -m wp1.score longbench_e FOLDER                  LongBench-E's, which are called after LongBench's
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wp1.core import command
from wp1.core.errors import ConfigError
from wp1.quality import benchmarks, rows, scoring
from wp1.quality.benchmarks import find, infinitebench, longbench, longbench_v2, pg19, ruler
from wp1.quality.tasks import Row, Task
from wp1.workload import row_files
from wp1.workload.row_files import BadRowError

PREDICTIONS = ("prediction", "pred", "response")
REFERENCES = ("answers", "ground_truth", "label", "outputs", "answer")
# LongBench-E, on the command line.
E = f"{longbench.NAME}_e"
# What only one benchmark's own prediction files have.
MARKS = {
    "ground_truth": infinitebench.NAME,
    "outputs": ruler.NAME,
    "all_classes": longbench.NAME,
    "difficulty": longbench_v2.NAME,
    "sub_domain": longbench_v2.NAME,
    "choice_A": longbench_v2.NAME,
}


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


def scores_of(task: Task, paths: Sequence[Path]) -> Scores:
    """The scores of the answers in files of one task. Raises ConfigError naming the line that cannot be scored."""
    if task.name == pg19.TASKS[0]:
        raise ConfigError(f"{task.name} is of the log-likelihoods of a text, which no file of answers has")
    found = Scores(task)
    for path in paths:
        _check_name(task, path)
        before = len(found.values)
        for where, fields in row_files.read(path):
            try:
                prediction, row, groups = _read(task, fields, where)
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


def _task_in(name: str, benchmark: str | None = None) -> str | None:
    """The task that a file is called after: `hotpotqa`, `preds_passkey`."""
    short = re.sub(r"^preds?_", "", name.rpartition("/")[2])
    of = [module for module in benchmarks.benchmarks().values() if benchmark in (None, module.NAME)]
    return short if any(short in module.names() for module in of) else None


def _check_name(task: Task, path: Path) -> None:
    called = _task_in(path.stem)
    # LongBench-E's own files are called as LongBench's.
    if called is not None and called.removesuffix("_e") != task.name.removesuffix("_e"):
        raise ConfigError(f"{path} is called after the task {called}, and {task.name} is asked for: name its own task")


def _read(task: Task, fields: dict[str, Any] | BadRowError, where: str) -> tuple[str, Row, list[str]]:
    """Prediction, reference and groups of a row. Raises BadRowError."""
    if isinstance(fields, BadRowError):
        raise fields
    _check_origin(task, fields)
    prediction = _prediction(task, fields)
    name = next((name for name in REFERENCES if fields.get(name) is not None), None)
    if name is None:
        raise BadRowError(
            f"has no answers: one of {', '.join(REFERENCES)} is needed, and it has {row_files.fields_of(fields)}"
        )
    options = rows.options_of(fields)
    answers = rows.answers_of(task.name, fields[name], name)
    # InfiniteBench has a text and its letter for choices alone.
    choice = name == "ground_truth" and len(answers) == 2 and answers[1] in infinitebench.LETTERS
    if choice and task.name not in infinitebench.CHOICES:
        raise BadRowError(f"is of a choice (its answer has a letter), and {task.name} is none")
    answers = rows.judged_by(task.name, task.benchmark, answers, options)
    if task.benchmark == longbench_v2.NAME and answers[0] not in infinitebench.LETTERS:
        raise BadRowError(f'has the "{name}" {str(answers[0])[:40]!r}: one of A, B, C, D is needed')
    classes = rows.classes_of(fields, needed=task.metric == "classification")
    row = Row(id=where, task=task.name, answers=answers, choices=options, all_classes=classes)
    return prediction, row, _groups(task, fields)


def _check_origin(task: Task, fields: Mapping[str, Any]) -> None:
    """Raises BadRowError where a row has what only another benchmark's or task's files have."""
    marks = {name: of for name, of in MARKS.items() if fields.get(name) is not None}
    if marks and task.benchmark not in marks.values():
        name, of = next(iter(marks.items()))
        raise BadRowError(f'is of {of} (it has "{name}"), and {task.name} is a task of {task.benchmark}')
    if fields.get("all_classes") and task.metric != "classification":
        raise BadRowError(f'is of a classification (it has "all_classes"), and {task.name} is none')
    if fields.get("options") and task.name not in infinitebench.CHOICES:
        raise BadRowError(f'is of a choice (it has "options"), and {task.name} is none')
    for key in ("task", "dataset"):
        said = fields.get(key)
        called = _task_in(said) if isinstance(said, str) else None
        if called is not None and called.removesuffix("_e") != task.name.removesuffix("_e"):
            raise BadRowError(f'is of the task {called} (its "{key}"), and {task.name} is asked for')


def _prediction(task: Task, fields: Mapping[str, Any]) -> str:
    """What was predicted; a name with null is as one that is not there."""
    if task.benchmark == longbench_v2.NAME and not isinstance(fields.get("response"), str) and "pred" in fields:
        # Its own files have what the model said as `response`, and as `pred` the letter taken from it, null for none.
        letter = fields["pred"]
        if letter is not None and not isinstance(letter, str):
            raise BadRowError('has a "pred" that is neither a letter nor null')
        return f"The correct answer is ({letter})" if letter else ""
    names = ("response", "prediction") if task.benchmark == longbench_v2.NAME else PREDICTIONS
    found = next((fields[name] for name in names if fields.get(name) is not None), None)
    if not isinstance(found, str):
        raise BadRowError(
            f"has no prediction: a text named {', '.join(PREDICTIONS)} is needed, and it has "
            f"{row_files.fields_of(dict(fields))}"
        )
    return found


def _groups(task: Task, fields: Mapping[str, Any]) -> list[str]:
    """LongBench-E by length, LongBench v2 by difficulty and length; where the file says them."""
    length = fields.get("length")
    if task.benchmark == longbench_v2.NAME:
        known = {"difficulty": longbench_v2.DIFFICULTIES, "length": longbench_v2.LENGTHS}
        for key, names in known.items():
            if fields.get(key) is not None and fields[key] not in names:
                raise BadRowError(f'has a "{key}" that is none of {", ".join(names)}')
        return [fields[key] for key in known if fields.get(key) is not None]
    if task.benchmark != longbench.NAME or not task.name.endswith("_e") or length is None:
        return []
    if type(length) is not int or length < 0:
        raise BadRowError('has a "length" that is no whole number, by which LongBench-E is grouped')
    group = longbench.length_group(task.name, length)
    return [group] if group else []


def _named(words: Sequence[str]) -> list[tuple[Task, list[Path]]]:
    """The tasks and their files that the words of the command line name. Raises ConfigError."""
    found: dict[str, tuple[Task, list[Path]]] = {}
    task, benchmark, waits = None, None, ""
    for word in words:
        if (path := Path(word).expanduser()).is_dir():
            files = _files_of(path, benchmark, task)
        elif path.is_file() and (task is not None or not _is_name(word)):
            files = [(task or _find(path, benchmark), path)]
        elif waits:
            raise ConfigError(f"{word} is not there: name a file of predictions, or a folder of such, after {waits}")
        elif word in (*benchmarks.benchmarks(), E) and word != longbench_v2.NAME:
            task, benchmark, waits = None, word, word
            continue
        elif task is not None and not _is_name(word) and ("." in word or "/" in word):
            raise ConfigError(f"{word} is not there: name a file of predictions, or a task")
        else:
            task, benchmark, waits = find(word), None, word
            continue
        waits = ""
        for of, file in files:
            found.setdefault(of.name, (of, []))[1].append(file)
    if waits or not found:
        raise ConfigError(f"a file of predictions is missing{f' after {waits}' if waits else ''}: see --help")
    return list(found.values())


def _is_name(word: str) -> bool:
    """Whether a word names a task and nothing else; a file has a folder or an ending, mostly."""
    try:
        find(word)
    except ConfigError:
        return False
    return True


def _find(path: Path, benchmark: str | None) -> Task:
    """The task that a file is called after. Raises ConfigError if it is called after none."""
    called = _task_in(path.stem, longbench.NAME if benchmark == E else benchmark)
    if benchmark == E and called is not None:
        # LongBench-E's own files have LongBench's names.
        called = f"{called.removesuffix('_e')}_e"
        called = called if called in longbench.names() else None
    if called is None:
        raise ConfigError(f"{path} is not called after a task: name its task before it (--list has them)")
    return find(called)


def _files_of(folder: Path, benchmark: str | None, task: Task | None) -> list[tuple[Task, Path]]:
    """The files of a folder that are called after tasks: of a benchmark, or one task's."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".jsonl", ".json") and path.is_file():
            with suppress(ConfigError):
                found.append((_find(path, benchmark), path))
    if task is not None:
        found = [(task, path) for of, path in found if of.name.removesuffix("_e") == task.name.removesuffix("_e")]
    if not found:
        of = task.name if task is not None else benchmark
        raise ConfigError(f"{folder} has no file that is called after a task{f' of {of}' if of else ''}")
    return found


def overall(scored: Sequence[Scores]) -> dict[str, Any]:
    """The mean over several tasks of one benchmark, and over their length groups; LongBench's over its categories."""
    categories = {one.task.name: one.task.category for one in scored}
    by_category = categories if all(one.task.benchmark == longbench.NAME for one in scored) else None
    found = scoring.mean_of({one.task.name: one.values for one in scored}, by_category)
    groups: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for one in scored:
        for name, values in one.groups.items():
            groups[name][one.task.name] = values
    return {
        **found,
        "over": "categories" if by_category else "tasks",
        "groups": {name: scoring.mean_of(of, by_category) for name, of in groups.items()},
    }


def _line(name: str, score: dict[str, Any]) -> str:
    answers = "1 answer" if score["n"] == 1 else f"{score['n']} answers"
    few = f"  ({answers}: hardly a measurement)" if score["n"] < scoring.FEW else ""
    return f"{name:32} {score['mean']:7.2f}  [{score['low']:.2f}, {score['high']:.2f}]  n = {score['n']:,}{few}"


def _list() -> str:
    found = [module.task(name) for module in benchmarks.benchmarks().values() for name in module.names()]
    return "\n".join(f"{f'{one.benchmark}/{one.name}':40} {one.metric:16} {one.category}" for one in found)


def _print(scored: Sequence[Scores]) -> None:
    single = len(scored) == 1
    for one in scored:
        found = one.summary()
        print(f"{found['task']}, {found['metric']}, in percent with its 95 % interval")
        print(_line("all", found))
        for name, score in sorted(found["groups"].items()):
            print(_line(f"  {name}", score))
    for benchmark, of in _by_benchmark(scored).items() if not single else ():
        found = overall(of)
        over = f"the categories of {len(of)}" if found["over"] == "categories" else f"{len(of)}"
        print(f"{benchmark}, mean over {over} tasks")
        print(_line("overall", found))
        for name, score in sorted(found["groups"].items()):
            print(_line(f"  {name}", score))


def _by_benchmark(scored: Sequence[Scores]) -> dict[str, list[Scores]]:
    """Tasks whose mean means something: of one benchmark; those of LongBench-E are not those of LongBench."""
    found: dict[str, list[Scores]] = defaultdict(list)
    for one in scored:
        lengths = one.task.benchmark == longbench.NAME and one.task.name.endswith("_e")
        found[E if lengths else one.task.benchmark].append(one)
    return {name: of for name, of in found.items() if len(of) > 1}


def main() -> None:
    parser = command.Parser(
        prog="python -m wp1.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="TASK FILE",
        help="a task (hotpotqa, longbench/hotpotqa, passkey, niah_single_1, longbench_v2) and its files; more of both",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--list", action="store_true", help="print the names of all tasks, with metric and category")
    words = parser.parse_args()
    if words.list:
        print(_list())
        return
    try:
        scored = [scores_of(task, paths) for task, paths in _named(words.words)]
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if not words.json:
        _print(scored)
    elif len(scored) == 1:
        print(json.dumps(scored[0].summary(), indent=1))
    else:
        means = {name: overall(of) for name, of in _by_benchmark(scored).items()}
        print(json.dumps({"tasks": [one.summary() for one in scored], "overall": means}, indent=1))


if __name__ == "__main__":
    command.run(main)
