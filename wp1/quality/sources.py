"""Reads, checks, filters and samples a task's rows from the hub or from files: the same rows on every machine."""

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
    """The rows drawn for a run's tasks, and what they were drawn from."""

    rows: list[Row] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)  # task -> number of good rows that passed the filters
    bad: list[str] = field(default_factory=list)  # for each bad row, where it is and what is wrong

    def digest(self) -> str:
        """sha256 (hex) over task, id and contents of every row drawn, independent of their order."""
        lines = sorted(f"{row.task}\x1f{row.id}\x1f{_fingerprint(row)}" for row in self.rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def draw(dataset: Any, tasks: list[Task], seed: int) -> Drawn:
    """Draws `dataset.samples_per_task` rows of each task; the choice depends only on the seed and the rows' ids.

    Each row is ranked by a hash of seed, task and id, and the lowest ranks are taken, in that order. So neither file
    order nor machine matters, and memory holds no more rows than are drawn.
    Raises ConfigError, naming file and line, for a bad row unless dataset.on_bad_row=skip; for a source that cannot be
    read; for a task without rows.
    """
    drawn, known = Drawn(), benchmarks.known(dataset.benchmark)
    for task in tasks:
        benchmark = known[task.benchmark]
        heap: list[tuple[int, int, Row]] = []
        ids: set[bytes] = set()
        drawn.seen[task.name] = 0
        for where, fields in _rows(dataset, benchmark, task, len(tasks) == 1):
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
                f"{' that pass dataset.languages, min_chars and max_chars' if ids else ''}: check dataset.*, or remove "
                "it from dataset.tasks"
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


def _bad(dataset: Any, drawn: Drawn, fault: str) -> None:
    if dataset.on_bad_row == "error":
        raise ConfigError(f"{fault}; fix it, or set dataset.on_bad_row=skip")
    if not drawn.bad:
        log.warning("left out: %s (the report counts all bad rows)", fault)
    drawn.bad.append(fault)


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


def _rows(dataset: Any, benchmark: Benchmark, task: Task, alone: bool) -> Iterator[Place]:
    """Every row of a task as it is in its source, with its location. alone: whether it is the run's only task."""
    if dataset.path is None:
        yield from from_datasets(hub_set(dataset, benchmark, task), f"{_name_of(dataset)} {task.name}")
        return
    path = Path(dataset.path).expanduser()
    files = _files(path, task)
    for file in files:
        # In a file for several tasks every row names its task, unless every row belongs to all of them.
        named = path.is_file() and not alone and not benchmark.rows_of_all_tasks
        for where, fields in read_file(file):
            if named and isinstance(fields, dict):
                name = fields.get("task") or fields.get("dataset")
                if not isinstance(name, str):
                    fields = BadRowError('has no "task", which every row of a shared file needs')  # noqa: PLW2901
                elif name.rpartition("/")[2] != task.name:
                    continue
            yield where, fields


def _files(path: Path, task: Task) -> list[Path]:
    """The path itself if it is a file; in a folder, TASK.jsonl (or .json, .parquet) or the files in the folder TASK."""
    if path.is_file():
        return [path]
    found = [path / f"{task.name}{ending}" for ending in ENDINGS if (path / f"{task.name}{ending}").is_file()]
    folder = path / task.name
    found = found[:1] or sorted(file for file in folder.rglob("*") if file.suffix in ENDINGS)
    if not found:
        raise ConfigError(
            f"dataset.path={path} has no {task.name}{{{','.join(ENDINGS)}}} and no folder {task.name} with such files: "
            "add it, or remove the task from dataset.tasks"
        )
    return found


def read_file(path: Path) -> Iterator[Place]:
    """The rows of a JSONL, JSON or Parquet file, read one at a time unless the file is a JSON array."""
    yield from row_files.read(path, MAX_LINE)


def from_datasets(rows: Any, name: str) -> Iterator[Place]:
    """The rows of a `datasets.Dataset`."""
    for number, fields in enumerate(rows):
        row = dict(fields)
        half = half_character(row)
        yield f"{name} row {number}", row if half is None else BadRowError(half)


def hub_set(dataset: Any, benchmark: Benchmark, task: Task) -> Any:
    """A task's `datasets.Dataset`, which the library caches. Raises ConfigError if it cannot be fetched.

    dataset.files: the data files inside the repository, with {task} for the task's name. A set with a loading script
    can only be read by its files, because datasets 4 does not run scripts. Without dataset.repo, local files.
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
    except Exception as error:  # the library's own errors, the hub's, pyarrow's and Python's
        message = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{task.name} of {_name_of(dataset)} could not be fetched ({type(error).__name__}: {message}): check the "
            "network and HF_TOKEN, or set dataset.path to a folder that has the files"
        ) from error


def _builder(files: str) -> str:
    return "parquet" if files.endswith(".parquet") else "json"


def _filled(template: str, task: Task) -> str:
    return template.replace("{task}", task.name)
