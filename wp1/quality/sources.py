"""Examples of a task from the hub or from files of one's own, checked, filtered and drawn: the same rows everywhere."""

import hashlib
import heapq
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wp1.core.errors import ConfigError
from wp1.model import hub
from wp1.quality import benchmarks
from wp1.quality.tasks import Benchmark, Row, Task
from wp1.workload import row_files
from wp1.workload.row_files import BadRowError, Place, half_character

log = logging.getLogger(__name__)

MAX_LINE = row_files.MAX_LINE
ENDINGS = (".jsonl", ".json", ".parquet")


@dataclass
class Drawn:
    """The rows of a run's tasks, and how they were come by."""

    rows: list[Row] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)  # by task: good rows that passed the filters
    bad: list[str] = field(default_factory=list)  # where, and what was wrong

    def digest(self) -> str:
        """sha256 (hex) over task, id and contents of every row drawn, in any order."""
        lines = sorted(f"{row.task}\x1f{row.id}\x1f{_fingerprint(row)}" for row in self.rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def draw(dataset: Any, tasks: list[Task], seed: int) -> Drawn:
    """`dataset.samples_per_task` rows of each task by a draw that depends on the seed and the rows' ids alone.

    Every row has a number from seed, task and id; those with the smallest are taken, in that order. So neither the
    order in a file nor the machine matters, and no more rows are in memory than are wanted.
    Raises ConfigError, naming file and line, for a bad row unless dataset.on_bad_row=skip; for a source that cannot be
    read; for a task without rows.
    """
    drawn, known = Drawn(), benchmarks.known(dataset.benchmark)
    for task in tasks:
        benchmark = known[task.benchmark]
        heap: list[tuple[int, int, Row]] = []
        ids: set[bytes] = set()
        drawn.seen[task.name] = 0
        for where, fields in _places(dataset, benchmark, task, len(tasks) == 1):
            try:
                row = _checked(benchmark, task, fields, ids)
            except BadRowError as error:
                _bad(dataset, drawn, f"{where} {error}")
                continue
            if not _passes(dataset, row):
                continue
            drawn.seen[task.name] += 1
            rank = int.from_bytes(hashlib.sha256(f"{seed}\x1f{task.name}\x1f{row.id}".encode()).digest()[:12], "big")
            entry = (-rank, drawn.seen[task.name], row)
            if dataset.samples_per_task is None or len(heap) < dataset.samples_per_task:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)
        if not heap:
            raise ConfigError(
                f"{task.benchmark}/{task.name} has no rows in {_name_of(dataset)}"
                f"{' that pass dataset.languages, min_chars and max_chars' if ids else ''}: check dataset.*, or leave "
                "it out of dataset.tasks"
            )
        drawn.rows += [row for _, _, row in sorted(heap, key=lambda entry: -entry[0])]
    return drawn


def _checked(benchmark: Benchmark, task: Task, fields: dict[str, Any] | BadRowError, ids: set[bytes]) -> Row:
    if isinstance(fields, BadRowError):
        raise fields
    contents = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()
    row = benchmark.row(task.name, fields, contents[:16])
    key = hashlib.sha256(row.id.encode()).digest()[:10]
    if key in ids:
        raise BadRowError(f"repeats the id {row.id}: ids are unique in a task")
    ids.add(key)
    return row


def _bad(dataset: Any, drawn: Drawn, said: str) -> None:
    if dataset.on_bad_row == "error":
        raise ConfigError(f"{said}; mend it, or set dataset.on_bad_row=skip")
    if not drawn.bad:
        log.warning("left out: %s (more may follow; their number is in the report)", said)
    drawn.bad.append(said)


def _passes(dataset: Any, row: Row) -> bool:
    size = len(row.context)
    return (
        (dataset.languages is None or row.language in dataset.languages)
        and (dataset.min_chars is None or size >= dataset.min_chars)
        and (dataset.max_chars is None or size <= dataset.max_chars)
    )


def _fingerprint(row: Row) -> str:
    parts = [row.context, row.question, row.answers, row.choices, row.all_classes]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()


def _name_of(dataset: Any) -> str:
    return str(dataset.path) if dataset.path is not None else str(dataset.repo or dataset.files)


def _places(dataset: Any, benchmark: Benchmark, task: Task, alone: bool) -> Iterator[Place]:
    """Every row of a task as it lies there, with where that is."""
    if dataset.path is None:
        yield from from_datasets(hub_set(dataset, benchmark, task), f"{_name_of(dataset)} {task.name}")
        return
    path = Path(dataset.path).expanduser()
    files = _files(path, task)
    for file in files:
        # One file for several tasks says in every row which task it is of, unless all of them ask every row.
        told = path.is_file() and not alone and not benchmark.rows_of_all_tasks
        for where, fields in read_file(file):
            if told and isinstance(fields, dict):
                name = fields.get("task") or fields.get("dataset")
                if not isinstance(name, str):
                    fields = BadRowError('has no "task", which tells the tasks of one file apart')  # noqa: PLW2901
                elif name.rpartition("/")[2] != task.name:
                    continue
            yield where, fields


def _files(path: Path, task: Task) -> list[Path]:
    """A file itself; of a folder TASK.jsonl and the like, or what lies in the folder TASK."""
    if path.is_file():
        return [path]
    found = [path / f"{task.name}{ending}" for ending in ENDINGS if (path / f"{task.name}{ending}").is_file()]
    folder = path / task.name
    found = found[:1] or sorted(file for file in folder.rglob("*") if file.suffix in ENDINGS)
    if not found:
        raise ConfigError(
            f"dataset.path={path} has no {task.name}{{{','.join(ENDINGS)}}} and no folder {task.name} with such files: "
            "add it, or leave the task out of dataset.tasks"
        )
    return found


def read_file(path: Path) -> Iterator[Place]:
    """The rows of a JSONL, JSON or Parquet file; of all but JSON arrays one at a time, however large it is."""
    yield from row_files.read(path, MAX_LINE)


def from_datasets(rows: Any, name: str) -> Iterator[Place]:
    """The rows of a `datasets.Dataset`."""
    for number, fields in enumerate(rows):
        row = dict(fields)
        half = half_character(row)
        yield f"{name} row {number}", row if half is None else BadRowError(half)


def hub_set(dataset: Any, benchmark: Benchmark, task: Task) -> Any:
    """A task's `datasets.Dataset`, fetched once and kept by that library. Raises ConfigError where it cannot be had.

    dataset.files: the data files inside the repository, with {task} for the task's name; a set whose loading needs a
    script is had by its files only, as datasets 4 runs none. Without a repository they are files of this machine.
    """
    import datasets

    if dataset.repo is not None:
        hub.check_answers("dataset.path to a folder that has the files")
    options: dict[str, Any] = {"split": dataset.split}
    if dataset.files is not None:
        at = f"@{dataset.revision}" if dataset.revision else ""
        base = f"hf://datasets/{dataset.repo}{at}/" if dataset.repo else ""
        options |= {"path": _builder(dataset.files), "data_files": {dataset.split: base + _filled(dataset.files, task)}}
    else:
        options |= {"path": dataset.repo, "revision": dataset.revision}
        if dataset.config is not None:
            options["name"] = _filled(dataset.config, task)
    if benchmark.features is not None:
        options["features"] = benchmark.features()
    with suppress(AttributeError):
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(**options)
    except Exception as error:  # it raises its own, the hub's, pyarrow's and Python's
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{task.name} of {_name_of(dataset)} could not be fetched ({type(error).__name__}: {said}): check the "
            "network and HF_TOKEN, or set dataset.path to a folder that has the files"
        ) from error


def _builder(files: str) -> str:
    return "parquet" if files.endswith(".parquet") else "json"


def _filled(template: str, task: Task) -> str:
    return template.replace("{task}", task.name)
