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

from wp1.analysis.base import cells, tables
from wp1.analysis.load import probes
from wp1.analysis.memory import figures as memory_figures
from wp1.analysis.quality import figures as quality_figures
from wp1.core import files, progress, shapes
from wp1.core.errors import ConfigError, unreadable
from wp1.core.plan import has_length, plan
from wp1.core.records import read_rows
from wp1.core.request_names import FILE as CONTROL
from wp1.core.run_folder import arms_moving_kv, read_config, read_json, read_metadata, scheduler_name
from wp1.quality.examples import FILE as EXAMPLES

RECORDS = "records.jsonl"
# Arm and cell; where it is known, the repeat too.
Part = tuple[str | int, ...]


def check(run_dir: Path) -> None:
    """Raises ConfigError where lines are missing, or are not what they should be, or cannot be read.

    The message is one line that names the file, and the counts or the line's number.
    """
    try:
        _check(run_dir)
    except OSError as error:
        raise unreadable(error, run_dir) from error


def _check(run_dir: Path) -> None:
    metadata, config = read_metadata(run_dir), read_config(run_dir)
    # A line that is there twice stands for one request.
    records = tables.keys(run_dir / RECORDS).unique("request_id")
    measured = records.filter(~pl.col("warmup"))
    completed = metadata["status"] == "completed"
    _requests(run_dir, measured, *_said(run_dir, metadata, completed), completed)
    if not completed:
        return
    _progress(run_dir, measured)
    named = set(records["handoff_id"].drop_nulls())
    if named:
        _held(run_dir / "handoffs.jsonl", "handoffs", named, tables.handoffs(run_dir / "handoffs.jsonl")["handoff_id"])
    if config["workload"]["prompts"] == "judged":
        asked = set(measured.select("cell", "example").iter_rows())
        lines = read_rows(run_dir / EXAMPLES, "example", *quality_figures.NEEDED, shape=shapes.EXAMPLE)
        _held(run_dir / EXAMPLES, "examples", asked, [(line["cell"], line["example"]) for line in lines])
    if config["experiment"].get("memory"):
        notes = memory_figures.read_notes(run_dir)
        _held(run_dir / "memory.jsonl", "notes of memory", _noted(measured, notes, metadata), map(_key_of, notes))
    if config["experiment"].get("goodput_budget_s") is not None:
        searched = {(arm, cells.parse(cell).prompt_len) for arm, cell in measured.select("arm", "cell").iter_rows()}
        ended = [(probe.arm, probe.prompt_len) for probe in probes.read(run_dir) if probe.ended is not None]
        _held(run_dir / probes.FILE, "searches for goodput", searched, ended)
    # Last, as it says least of what is gone.
    for name, count in metadata.get("lines", {}).items():
        path = run_dir / name
        # A file that is not there is told by what is missed of it, here or on the page (`absent`).
        if path.is_file() and (there := _lines(path)) < count:
            raise ConfigError(
                f"{path} has {there:,} of the {count:,} lines that it had when the run ended: {_how(path)}"
            )


def lines_of(run_dir: Path) -> dict[str, int]:
    """How many lines each file has that has one a request, sample or the like: a run that ends notes it of itself."""
    found = [path for path in files.plain_files(run_dir, "*.jsonl") if not path.name.endswith(".apart.jsonl")]
    return {path.name: _lines(path) for path in found}


def _lines(path: Path) -> int:
    count, last = 0, b"\n"
    with files.opened(path) as file:
        while block := file.read(1 << 20):
            count, last = count + block.count(b"\n"), block[-1:]
    # A last line without its end is one, too.
    return count + (last != b"\n")


def absent(run_dir: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Files that a run of this configuration leaves and this folder lacks, each with what it would show.

    A packet may have had no room for them.
    """
    collectors = [str(part.get("_target_")) for part in (config.get("collectors") or {}).values()]
    left = {}
    if any(target.startswith("wp1.collectors.device.") for target in collectors):
        left["device.jsonl"] = "memory, load, power and energy of the devices"
    left |= {"engine_stats.jsonl": "KV use, waiting and preemptions in the engines", "loop.jsonl": "event-loop lag"}
    if config["experiment"].get("control") and config["workload"].get("temperature") == 0:
        left[CONTROL] = "how close tokens were that part"
    if arms_moving_kv(read_metadata(run_dir), config):
        left |= {"handoffs.jsonl": "KV transfer", "queues.jsonl": "queue lengths"}
    if config["experiment"].get("memory"):
        left["memory.jsonl"] = "where memory goes"
    if config["workload"]["prompts"] == "judged":
        left[EXAMPLES] = "scores"
    return {name: what for name, what in left.items() if not (run_dir / name).is_file()}


def _requests(run_dir: Path, measured: pl.DataFrame, said: Mapping[Part, int], source: str, completed: bool) -> None:
    """That there is a record for every measured request."""
    there = Counter[Part](measured.select("arm", "cell").iter_rows())
    there.update(measured.select("arm", "cell", "repeat").iter_rows())
    short = next((part for part, count in said.items() if there[part] < count), None)
    path = run_dir / RECORDS
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


def _said(run_dir: Path, metadata: Mapping[str, Any], completed: bool) -> tuple[dict[Part, int], str]:
    """How many requests the run says it measured, by part, and the file that says so."""
    if done := progress.read(run_dir):
        return {one.unit: one.requests for one in done}, progress.FILE
    if not completed:
        return {}, progress.FILE
    if (run_dir / "summary.json").is_file():
        # By arm/cell; an arm's name has no slash.
        profile = read_json(run_dir / "summary.json").get("profiling", {}).get("latency", {}).get("cells", {})
        if profile:
            return {tuple(name.split("/", 1)): cell["requests"] for name, cell in profile.items()}, "summary.json"
    return _planned(run_dir, metadata), "the plan in config.yaml"


def _planned(run_dir: Path, metadata: Mapping[str, Any]) -> dict[Part, int]:
    """What a run that completed must have measured: its cells less those skipped; {} where an older plan says less."""
    # Plain data: what a folder that somebody sent has in ${...} is never looked up.
    plain = read_config(run_dir)
    scheduler = plain.get("scheduler") or {}
    # `plan` asks for the scheduler's name, which older runs have as its mode.
    config = _Named({**plain, "scheduler": {**scheduler, "name": scheduler_name(scheduler)}})
    try:
        arms = plan(config)
    except AttributeError:
        return {}
    skipped = {one["cell"] for one in metadata.get("skipped", ())}
    exact = has_length(config.workload.prompts)
    return {
        # Of a dataset's or trace's rows the plan does not know how many there are.
        (arm.name, cell.name): cell.repeats * ((cell.num_requests or 1) if exact else 1)
        for arm in arms
        for cell in arm.cells
        if cell.name not in skipped and _within_reach(cell.prompt_len, arm.name, metadata)
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


def _progress(run_dir: Path, measured: pl.DataFrame) -> None:
    """Of a run that completed every repeat was measured to its end."""
    if (run_dir / progress.FILE).is_file():
        units = set(measured.select("arm", "cell", "repeat").iter_rows())
        _held(run_dir / progress.FILE, "repeats", units, [one.unit for one in progress.read(run_dir)])


def _held(path: Path, what: str, named: set[Any], there: Iterable[Any]) -> None:
    """Raises ConfigError where some of what the records name is not there."""
    gone = named - set(there)
    if gone:
        have = len(named) - len(gone)
        raise ConfigError(f"{path} has {have:,} of the {len(named):,} {what} that go with {RECORDS}: {_how(path)}")


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
