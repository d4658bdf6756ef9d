"""Nothing is made of a completed run's folder that has lost lines, and what is there is not written over."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Compose
from tests.double import TINY
from tests.records import read_records
from tests.unit.analysis.synthetic import Shape, make_run
from wp1 import report
from wp1.analysis import completeness
from wp1.analysis.base.run_tables import RunTables
from wp1.core import progress
from wp1.core.errors import ConfigError
from wp1.core.run_files import CELLS
from wp1.core.run_folder import read_json
from wp1.runner.console import Screen
from wp1.runner.reports import make_report
from wp1.runner.run import run

pytestmark = pytest.mark.usefixtures("without_pixels")

SHAPE = Shape(lengths=(256,), rates=(0,), repeats=2, count=3)
CELL = "256-conc1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of two arms with a summary, and no cells.jsonl, as those of a packet."""
    made = make_run(tmp_path, SHAPE)
    make_report(made, tmp_path / "reports")
    return made


def drop(path: Path, number: int, instead: str = "") -> None:
    """Takes a line out of a file, counted from 1, or puts another in its place."""
    lines = path.read_text().splitlines(keepends=True)
    lines[number - 1] = f"{instead}\n" if instead else ""
    path.write_text("".join(lines))


def number_of(path: Path, of_line: Callable[[dict[str, Any]], bool]) -> int:
    """The number of the first such line, from 1."""
    return next(n for n, line in enumerate(path.read_text().splitlines(), start=1) if of_line(json.loads(line)))


def lose_one_request(folder: Path, instead: str = "") -> None:
    records = folder / "records.jsonl"
    drop(records, number_of(records, lambda row: not row["warmup"] and row["arm"] == "agg"), instead)


def note_all(folder: Path) -> None:
    """cells.jsonl, as the run would have left it."""
    units = {(r.arm, r.cell, r.repeat) for r in read_records(folder / "records.jsonl") if not r.warmup}
    for unit in sorted(units):
        progress.note(folder, progress.Done(*unit, requests=SHAPE.count, seconds=1.0, warmup_s=0.1))


def mark(folder: Path, **changes: Any) -> None:
    path = folder / "run_metadata.json"
    path.write_text(json.dumps(read_json(path) | changes))


def set_config(folder: Path, **groups: dict[str, Any]) -> None:
    """Sets keys of config.yaml, which JSON is too."""
    from wp1.core.run_folder import read_config

    config = read_config(folder)
    for group, settings in groups.items():
        config[group] = {**config.get(group, {}), **settings}
    (folder / "config.yaml").write_text(json.dumps(config))


@pytest.mark.parametrize("source", ["summary.json", "cells.jsonl", "the plan in config.yaml"])
def test_a_lost_record_is_told_by_whatever_says_how_many_there_were(
    folder: Path, source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    each, where = (3, f"agg/{CELL} repeat 0") if source == "cells.jsonl" else (6, f"agg/{CELL}")
    if source == "cells.jsonl":
        note_all(folder)
    elif source == "the plan in config.yaml":
        (folder / "summary.json").unlink()
        experiment = {"prompt_lens": [256], "request_rates": None, "concurrencies": None, "arrivals_s": None}
        set_config(folder, workload={"num_requests": 3, "concurrency": 1, "request_rate": 0.0}, experiment=experiment)
    completeness.check(RunTables(folder))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    lose_one_request(folder)
    monkeypatch.setattr("sys.argv", ["report", str(folder)])
    with pytest.raises(SystemExit) as ended:
        report.main()
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: {folder}/records.jsonl has 11 of the 12 measured requests that {source} has "
        f"({where}: {each - 1} of {each}): restore the file from a copy"
    )
    del before[folder / "records.jsonl"]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not (folder / "reports").exists()


def test_a_line_that_is_there_twice_is_one_request(folder: Path) -> None:
    records = folder / "records.jsonl"
    lines = records.read_text().splitlines()
    lose_one_request(folder, instead=next(line for line in lines[::-1] if '"arm": "agg"' in line))
    with pytest.raises(ConfigError, match="11 of the 12"):
        completeness.check(RunTables(folder))


@pytest.mark.parametrize("there", ["nothing", "empty", "packed", "torn"])
def test_without_records_it_says_what_to_do(folder: Path, there: str) -> None:
    records = folder / "records.jsonl"
    content = records.read_bytes()
    records.unlink()
    if there == "packed":
        (folder / "records.jsonl.gz").write_bytes(gzip.compress(content))
    elif there != "nothing":
        records.write_bytes(b"" if there == "empty" else content[:-10])
    with pytest.raises(ConfigError, match="gunzip" if there == "packed" else "restore the file from a copy"):
        completeness.check(RunTables(folder))
    if there == "torn":
        return
    # Also where nothing says how many there were.
    (folder / "summary.json").unlink()
    with pytest.raises(ConfigError, match="has no measured request, and the run completed"):
        completeness.check(RunTables(folder))


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_a_run_that_did_not_complete_is_short_by_right(folder: Path, status: str, tmp_path: Path) -> None:
    mark(folder, status=status, reason="stopped by a signal")
    lose_one_request(folder)
    assert make_report(folder, tmp_path / "reports").is_file()
    # But not in what it had measured to its end.
    note_all(folder)
    with pytest.raises(ConfigError, match=r"11 of the 12 .*cells\.jsonl"):
        completeness.check(RunTables(folder))


def test_a_completed_run_has_noted_every_repeat(folder: Path) -> None:
    note_all(folder)
    drop(folder / "cells.jsonl", 2)
    with pytest.raises(ConfigError, match=r"cells\.jsonl has 3 of the 4 repeats"):
        completeness.check(RunTables(folder))


@pytest.mark.parametrize("name", ["records.jsonl", "handoffs.jsonl", "queues.jsonl"])
def test_a_line_of_other_keys_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    before = (folder / "summary.json").read_bytes()
    drop(folder / name, 2, instead='{"a": 1}')
    with pytest.raises(ConfigError, match=rf"{name}:2 is not a valid "):
        make_report(folder, tmp_path / "reports")
    assert (folder / "summary.json").read_bytes() == before


def test_handoffs_are_held_against_the_records(folder: Path) -> None:
    drop(folder / "handoffs.jsonl", 2)
    # A warm-up's, and one a measured request.
    with pytest.raises(ConfigError, match=r"handoffs\.jsonl has 6 of the 7 handoffs"):
        completeness.check(RunTables(folder))
    (folder / "handoffs.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"handoffs\.jsonl has 0 of the 7 handoffs"):
        completeness.check(RunTables(folder))


@pytest.mark.parametrize("prompts", ["scored", "judged"])  # the second in folders of earlier runs
def test_answers_are_held_against_their_examples(folder: Path, prompts: str) -> None:
    set_config(folder, workload={"prompts": prompts})
    with pytest.raises(ConfigError, match=r"examples\.jsonl has 0 of the 1 examples"):
        completeness.check(RunTables(folder))


def test_a_search_for_goodput_has_come_to_its_end(folder: Path) -> None:
    set_config(folder, experiment={"goodput_budget_s": 30})
    ends = [json.dumps({"arm": arm, "prompt_len": 256, "number": 1, "ended": "narrow"}) for arm in ("agg", "disagg")]
    path = folder / "goodput.jsonl"
    path.write_text(f"{ends[0]}\n")
    with pytest.raises(ConfigError, match=r"goodput\.jsonl has 1 of the 2 searches"):
        completeness.check(RunTables(folder))
    path.write_text("\n".join(ends) + "\n")
    completeness.check(RunTables(folder))
    path.write_text('{"a": 1}\n')
    with pytest.raises(ConfigError, match=r"goodput\.jsonl:1 is not a valid probe"):
        completeness.check(RunTables(folder))


def test_notes_of_memory_are_there_for_every_repeat(config: Compose, double: Any, tmp_path: Path) -> None:
    cfg = config(*TINY, "experiment=e5", "experiment.prompt_lens=[16,32]")
    with Screen() as screen:
        folder = run(cfg, tmp_path / "outputs" / "run-x", "run-x", screen).run_dir
    completeness.check(RunTables(folder))
    path = folder / "memory.jsonl"
    content = path.read_text()
    count = len(content.splitlines())
    for number in range(1, count + 1):
        path.write_text(content)
        drop(path, number)
        with pytest.raises(ConfigError, match=rf"memory\.jsonl has {count - 1} of the {count} notes"):
            completeness.check(RunTables(folder))
    path.write_text(content)
    drop(path, 3, instead='{"a": 1}')
    with pytest.raises(ConfigError, match=r"memory\.jsonl:3 is not a valid note"):
        completeness.check(RunTables(folder))


@pytest.mark.parametrize("experiment", ["e0", "e3"])
def test_the_plan_says_how_many_there_were(config: Compose, double: Any, tmp_path: Path, experiment: str) -> None:
    """Of a run whose other files say nothing. Of a dataset the plan does not know the rows."""
    words = ["experiment.prompt_lens=[16]", "experiment.request_rates=[0,200]", "workload.num_requests=3"]
    cfg = config(*TINY, f"experiment={experiment}", *(words if experiment == "e3" else []))
    with Screen() as screen:
        folder = run(cfg, tmp_path / "outputs" / "run-x", "run-x", screen).run_dir
    for name in ("cells.jsonl", "summary.json"):
        (folder / name).unlink()
    completeness.check(RunTables(folder))
    records = folder / "records.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    measured = [line for line in lines if not json.loads(line)["warmup"]]
    gone = measured if experiment == "e0" else measured[:1]
    records.write_text("".join(line for line in lines if line not in gone))
    with pytest.raises(ConfigError, match=r"that the plan in config\.yaml has"):
        completeness.check(RunTables(folder))


SAMPLES = ("device.jsonl", "loop.jsonl", "queues.jsonl")


def test_every_line_that_was_there_when_the_run_ended_counts(config: Compose, double: Any, tmp_path: Path) -> None:
    cfg = config(*TINY, "scheduler=disagg", "experiment.same_tokens=false")
    with Screen() as screen:
        folder = run(cfg, tmp_path / "run-20260101T000000Z-00000000", "run-20260101T000000Z-00000000", screen).run_dir
    completeness.check(RunTables(folder))
    noted = read_json(folder / "run_metadata.json")["lines"]
    assert {*SAMPLES, "engine_stats.jsonl", "handoffs.jsonl", "records.jsonl", CELLS.name} == set(noted)
    for name in SAMPLES:
        before = (folder / name).read_bytes()
        drop(folder / name, noted[name])
        with pytest.raises(
            ConfigError,
            match=rf"{name} has {noted[name] - 1} of the {noted[name]} lines that it had when the run ended",
        ):
            completeness.check(RunTables(folder))
        # One that a packet had no room for is told on the page.
        (folder / name).unlink()
        completeness.check(RunTables(folder))
        (folder / name).write_bytes(before.removesuffix(b"\n"))
        completeness.check(RunTables(folder))
    # A repeat that is gone from the two files that would tell on each other.
    for name in ("records.jsonl", CELLS.name):
        rows = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(row for row in rows if json.loads(row)["repeat"] != 1))
    with pytest.raises(ConfigError, match=r"has \d+ of the \d+ "):
        completeness.check(RunTables(folder))
