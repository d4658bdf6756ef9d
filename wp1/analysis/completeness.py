"""Whether a run's folder still has everything the run wrote, checked before its files are used. Pure.

Lost lines would look like requests that were never sent, so the files are counted against what the run itself recorded:
measured requests against cells.jsonl, else summary.json, else the plan in config.yaml; handoffs, examples, goodput
searches and memory notes against the records; and the lines of every file, samples included, against their number when
the run ended. If a run did not complete, only the repeats that cells.jsonl lists as measured to their end are checked.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base import cells
from wp1.analysis.base.run_tables import RunTables
from wp1.core import files, run_files
from wp1.core.arms import scheduler_name
from wp1.core.errors import ConfigError, unreadable
from wp1.core.plan import is_scored, plan
from wp1.core.run_files import CELLS, CONFIG, EXAMPLES, GOODPUT, HANDOFFS, MEMORY, RECORDS, SUMMARY, RunFile
from wp1.core.run_folder import RunFolder
from wp1.workload.prompts import own_source

# Arm and cell, and the repeat if it is known.
Part = tuple[str | int, ...]


def check(run: RunTables, with_figures: bool = False) -> None:
    """Raises ConfigError if lines are missing, malformed or unreadable.

    The message is one line with the file, and the counts or the line's number.
    with_figures: figures will follow, so the requests are read as those need them, instead of twice.
    """
    try:
        _check(run, with_figures)
    except OSError as error:
        raise unreadable(error, run.path) from error


def _check(run: RunTables, with_figures: bool) -> None:
    metadata, config = run.metadata, run.config
    if with_figures:
        _ = run.requests
    # A duplicated line is one request.
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
    if is_scored(config["workload"]["prompts"]):
        asked = set(measured.select("cell", "example").iter_rows())
        _held(run, EXAMPLES, "examples", asked, [(line["cell"], line["example"]) for line in run.examples])
    if config["experiment"].get("memory"):
        noted = _noted(measured, run.notes, metadata)
        _held(run, MEMORY, "notes of memory", noted, map(_key_of, run.notes))
    if config["experiment"].get("goodput_budget_s") is not None:
        searched = {(arm, cells.parse(cell).prompt_len) for arm, cell in measured.select("arm", "cell").iter_rows()}
        ended = [(probe.arm, probe.prompt_len) for probe in run.probes if probe.ended is not None]
        _held(run, GOODPUT, "searches for goodput", searched, ended)
    # Last, as this says least about what is missing.
    for name, count in metadata.get("lines", {}).items():
        path = run / name
        # A missing file is reported by the data it should hold, above or on the page (`absent`).
        if path.is_file() and (lines := _lines(path)) < count:
            raise ConfigError(
                f"{path} has {lines:,} of the {count:,} lines that it had when the run ended: {_how(path)}"
            )


def lines_of(run_dir: Path) -> dict[str, int]:
    """The number of lines of each JSONL file, by name; a run records this when it ends.

    Includes files that `run_files` does not know, such as those of a collector from outside.
    """
    found = [path for path in files.plain_files(run_dir, "*.jsonl") if not path.name.endswith(".apart.jsonl")]
    return {path.name: _lines(path) for path in found}


def _lines(path: Path) -> int:
    count, last = 0, b"\n"
    with files.opened(path) as file:
        while block := file.read(1 << 20):
            count, last = count + block.count(b"\n"), block[-1:]
    # A last line without a newline counts too.
    return count + (last != b"\n")


def absent(run: RunFolder) -> dict[str, str]:
    """Files that the run's configuration implies but its folder lacks, each with what it would show.

    A packet may have had no room for them.
    """
    config, metadata = run.config, run.metadata
    return {
        file.name: file.shows for file in run_files.RUN_FILES if file.expected(config, metadata) and not run.has(file)
    }


def _requests(run_dir: Path, measured: pl.DataFrame, said: Mapping[Part, int], source: str, completed: bool) -> None:
    """Raises ConfigError unless every measured request has a record."""
    present = Counter[Part](measured.select("arm", "cell").iter_rows())
    present.update(measured.select("arm", "cell", "repeat").iter_rows())
    short = next((part for part, count in said.items() if present[part] < count), None)
    path = RECORDS.at(run_dir)
    if short is not None:
        have = sum(min(present[part], count) for part, count in said.items())
        where = f"{short[0]}/{short[1]}" + (f" repeat {short[2]}" if len(short) > 2 else "")
        counts = f"{have:,} of the {sum(said.values()):,} measured requests that {source} has"
        raise ConfigError(f"{path} has {counts} ({where}: {present[short]:,} of {said[short]:,}): {_how(path)}")
    if completed and measured.is_empty():
        raise ConfigError(f"{path} has no measured request, and the run completed: {_how(path)}")


def _how(path: Path) -> str:
    packed = path.with_suffix(f"{path.suffix}.gz")
    if packed.is_file() and not path.is_file():
        return f"unpack the files next to it with gunzip {path.parent}/*.gz"
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
    """What a completed run must have measured: its cells without those skipped; {} if an older plan does not say."""
    # Plain data: ${...} in a folder from elsewhere is never resolved.
    scheduler = run.config.get("scheduler") or {}
    # `plan` needs the scheduler's name, which older runs stored as its mode.
    config = _Named({**run.config, "scheduler": {**scheduler, "name": scheduler_name(scheduler)}})
    try:
        arms = plan(config)
    except AttributeError:
        return {}
    skipped = {one["cell"] for one in run.metadata.get("skipped", ())}
    source = own_source(config.workload.prompts)
    exact = source is not None and source.made_to_length
    return {
        # The plan does not know how many rows a dataset or trace has.
        (arm.name, cell.name): cell.repeats * ((cell.num_requests or 1) if exact else 1)
        for arm in arms
        for cell in arm.cells
        if cell.name not in skipped and _within_reach(cell.prompt_len, arm.name, run.metadata)
    }


class _Named(dict[str, Any]):
    """An object from a file whose keys can be read as attributes, like a configuration's."""

    def __getattr__(self, key: str) -> Any:
        if key not in self:
            raise AttributeError(key)
        return _Named(value) if isinstance(value := self[key], dict) else value


def _within_reach(prompt_len: int | None, arm: str, metadata: Mapping[str, Any]) -> bool:
    """Whether an arm reaches this prompt length. An arm with its own rotary scaling skips longer cells."""
    reach = metadata.get("ropes", {}).get(arm, metadata["model"]).get("max_len")
    return prompt_len is None or reach is None or prompt_len <= reach


def _progress(run: RunFolder, measured: pl.DataFrame) -> None:
    """Raises ConfigError unless every repeat of a completed run was measured to its end."""
    if run.has(CELLS):
        units = set(measured.select("arm", "cell", "repeat").iter_rows())
        _held(run, CELLS, "repeats", units, [one.unit for one in run.done])


def _held(run: RunFolder, file: RunFile, what: str, named: set[Any], present: Iterable[Any]) -> None:
    """Raises ConfigError if the file lacks some of what the records name."""
    missing = named - set(present)
    if missing:
        have, path = len(named) - len(missing), file.at(run.path)
        raise ConfigError(f"{path} has {have:,} of the {len(named):,} {what} that go with {RECORDS.name}: {_how(path)}")


def _key_of(note: Mapping[str, Any]) -> tuple[Any, ...]:
    return (note["arm"], note["engine"], note["note"].get("rank"), note["moment"], note["cell"], note["repeat"])


def _noted(measured: pl.DataFrame, notes: Iterable[Mapping[str, Any]], metadata: Mapping[str, Any]) -> set[Any]:
    """The notes a complete run has: from every worker after start-up, and before and after every repeat of a cell."""
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
