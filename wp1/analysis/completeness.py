"""Whether a run's folder still has what the run left in it, before anything is made of it. Pure.

Lines that are gone would pass for requests that never were. So what is there is counted and held against what the run
itself says: its measured requests against cells.jsonl, else summary.json, else the plan in config.yaml; its handoffs,
examples, searches and notes of memory against the records; and the lines of every file, those of samples too, against
how many there were when it ended. Of a run that did not complete only those repeats count that cells.jsonl has as
measured to their end: the rest is short by right.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base import cells
from wp1.analysis.base.run_tables import RunTables
from wp1.core import files, run_files
from wp1.core.errors import ConfigError, unreadable
from wp1.core.plan import has_length, plan
from wp1.core.run_files import CELLS, CONFIG, EXAMPLES, GOODPUT, HANDOFFS, MEMORY, RECORDS, SUMMARY, RunFile
from wp1.core.run_folder import RunFolder

# Arm and cell; where it is known, the repeat too.
Part = tuple[str | int, ...]


def check(run: RunTables, with_figures: bool = False) -> None:
    """Raises ConfigError where lines are missing, or are not what they should be, or cannot be read.

    The message is one line that names the file, and the counts or the line's number.
    with_figures: figures are to follow, so that the requests are read as these need them, and once.
    """
    try:
        _check(run, with_figures)
    except OSError as error:
        raise unreadable(error, run.path) from error


def _check(run: RunTables, with_figures: bool) -> None:
    metadata, config = run.metadata, run.config
    if with_figures:
        _ = run.requests
    # A line that is there twice stands for one request.
    records = run.keys().unique("request_id")
    measured = records.filter(~pl.col("warmup"))
    completed = metadata["status"] == "completed"
    _requests(run.path, measured, *_said(run, completed), completed)
    if not completed:
        return
    _progress(run, measured)
    named = set(records["handoff_id"].drop_nulls())
    if named:
        _held(run, HANDOFFS, "handoffs", named, run.handoffs["handoff_id"])
    if config["workload"]["prompts"] == "judged":
        asked = set(measured.select("cell", "example").iter_rows())
        _held(run, EXAMPLES, "examples", asked, [(line["cell"], line["example"]) for line in run.examples])
    if config["experiment"].get("memory"):
        noted = _noted(measured, run.notes, metadata)
        _held(run, MEMORY, "notes of memory", noted, map(_key_of, run.notes))
    if config["experiment"].get("goodput_budget_s") is not None:
        searched = {(arm, cells.parse(cell).prompt_len) for arm, cell in measured.select("arm", "cell").iter_rows()}
        ended = [(probe.arm, probe.prompt_len) for probe in run.probes if probe.ended is not None]
        _held(run, GOODPUT, "searches for goodput", searched, ended)
    # Last, as it says least of what is gone.
    for name, count in metadata.get("lines", {}).items():
        path = run / name
        # A file that is not there is told by what is missed of it, here or on the page (`absent`).
        if path.is_file() and (there := _lines(path)) < count:
            raise ConfigError(
                f"{path} has {there:,} of the {count:,} lines that it had when the run ended: {_how(path)}"
            )


def lines_of(run_dir: Path) -> dict[str, int]:
    """How many lines each file with rows has: a run that ends notes it of itself.

    Files that `run_files` does not know are among them, such as those of a collector of somebody's own.
    """
    found = [path for path in files.plain_files(run_dir, "*.jsonl") if not path.name.endswith(".apart.jsonl")]
    return {path.name: _lines(path) for path in found}


def _lines(path: Path) -> int:
    count, last = 0, b"\n"
    with files.opened(path) as file:
        while block := file.read(1 << 20):
            count, last = count + block.count(b"\n"), block[-1:]
    # A last line without its end is one, too.
    return count + (last != b"\n")


def absent(run: RunFolder) -> dict[str, str]:
    """Files that a run of its configuration leaves and its folder lacks, each with what it would show.

    A packet may have had no room for them.
    """
    return {file.name: file.shows for file in run_files.RUN_FILES if file.expected(run.config) and not run.has(file)}


def _requests(run_dir: Path, measured: pl.DataFrame, said: Mapping[Part, int], source: str, completed: bool) -> None:
    """That there is a record for every measured request."""
    there = Counter[Part](measured.select("arm", "cell").iter_rows())
    there.update(measured.select("arm", "cell", "repeat").iter_rows())
    short = next((part for part, count in said.items() if there[part] < count), None)
    path = RECORDS.at(run_dir)
    if short is not None:
        have = sum(min(there[part], count) for part, count in said.items())
        where = f"{short[0]}/{short[1]}" + (f" repeat {short[2]}" if len(short) > 2 else "")
        counts = f"{have:,} of the {sum(said.values()):,} measured requests that {source} has"
        raise ConfigError(f"{path} has {counts} ({where}: {there[short]:,} of {said[short]:,}): {_how(path)}")
    if completed and measured.is_empty():
        raise ConfigError(f"{path} has no measured request, and the run completed: {_how(path)}")


def _how(path: Path) -> str:
    packed = path.with_suffix(f"{path.suffix}.gz")
    if packed.is_file() and not path.is_file():
        return f"unpack what is beside it, gunzip {path.parent}/*.gz"
    return "restore the file from a copy"


def _said(run: RunFolder, completed: bool) -> tuple[dict[Part, int], str]:
    """How many requests the run says it measured, by part, and the file that says so."""
    if run.done:
        return {one.unit: one.requests for one in run.done}, CELLS.name
    if not completed:
        return {}, CELLS.name
    if run.has(SUMMARY):
        # By arm/cell; an arm's name has no slash.
        profile = run.summary.get("profiling", {}).get("latency", {}).get("cells", {})
        if profile:
            return {tuple(name.split("/", 1)): cell["requests"] for name, cell in profile.items()}, SUMMARY.name
    return _planned(run), f"the plan in {CONFIG.name}"


def _planned(run: RunFolder) -> dict[Part, int]:
    """What a run that completed must have measured: its cells less those skipped; {} where an older plan says less."""
    # Plain data: what a folder that somebody sent has in ${...} is never looked up.
    config = _Named(run.config)
    try:
        arms = plan(config)
    except AttributeError:
        return {}
    skipped = {one["cell"] for one in run.metadata.get("skipped", ())}
    exact = has_length(config.workload.prompts)
    return {
        # Of a dataset's or trace's rows the plan does not know how many there are.
        (arm.name, cell.name): cell.repeats * ((cell.num_requests or 1) if exact else 1)
        for arm in arms
        for cell in arm.cells
        if cell.name not in skipped and _within_reach(cell.prompt_len, arm.name, run.metadata)
    }


class _Named(dict[str, Any]):
    """An object of a file whose keys are asked for as attributes, as those of a configuration are."""

    def __getattr__(self, key: str) -> Any:
        if key not in self:
            raise AttributeError(key)
        return _Named(value) if isinstance(value := self[key], dict) else value


def _within_reach(prompt_len: int | None, arm: str, metadata: Mapping[str, Any]) -> bool:
    """An arm with a rotary scaling of its own has no cells beyond what that reaches."""
    reach = metadata.get("ropes", {}).get(arm, metadata["model"]).get("max_len")
    return prompt_len is None or reach is None or prompt_len <= reach


def _progress(run: RunFolder, measured: pl.DataFrame) -> None:
    """Of a run that completed every repeat was measured to its end."""
    if run.has(CELLS):
        units = set(measured.select("arm", "cell", "repeat").iter_rows())
        _held(run, CELLS, "repeats", units, [one.unit for one in run.done])


def _held(run: RunFolder, file: RunFile, what: str, named: set[Any], there: Iterable[Any]) -> None:
    """Raises ConfigError where some of what the records name is not there."""
    gone = named - set(there)
    if gone:
        have, path = len(named) - len(gone), file.at(run.path)
        raise ConfigError(f"{path} has {have:,} of the {len(named):,} {what} that go with {RECORDS.name}: {_how(path)}")


def _key_of(note: Mapping[str, Any]) -> tuple[Any, ...]:
    return (note["arm"], note["engine"], note["note"].get("rank"), note["moment"], note["cell"], note["repeat"])


def _noted(measured: pl.DataFrame, notes: Iterable[Mapping[str, Any]], metadata: Mapping[str, Any]) -> set[Any]:
    """The notes that there must be: of every worker when it was up, and before and after every repeat of a cell."""
    ranks = {(pool["arm"], engine["name"]): {0} for pool in metadata["pools"] for engine in pool["engines"]}
    for note in notes:
        ranks.setdefault((note["arm"], note["engine"]), {0}).add(note["note"].get("rank"))
    units = set(measured.select("arm", "cell", "repeat").iter_rows())
    workers = [(arm, engine, rank) for (arm, engine), found in ranks.items() for rank in found]
    return {(*worker, "start", None, None) for worker in workers} | {
        (*worker, moment, cell, repeat)
        for worker in workers
        for arm, cell, repeat in units
        if arm == worker[0]
        for moment in ("begin", "end")
    }
