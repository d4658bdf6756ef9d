"""A report reads each file once, and tables have the columns of the dataclasses that a run writes."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.unit.analysis.synthetic import Shape, make_run
from wp1.analysis.base import tables
from wp1.analysis.base.run_tables import RunTables
from wp1.collectors.making import collectors_in
from wp1.collectors.sampling import note
from wp1.core import files
from wp1.core.records import DeviceSample, RequestRecord
from wp1.runner.console import Screen
from wp1.runner.reports import make_report
from wp1.runner.run import _finish

pytestmark = pytest.mark.usefixtures("without_pixels")

SMALL = Shape(lengths=(256,), rates=(0,), repeats=2, count=3)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was parsed as a table, by its name."""
    found: Counter[str] = Counter()
    parts = tables._parts

    def counted(path: Path, schema: tables.Schema, content: str, needed: Sequence[str]) -> Iterator[pl.DataFrame]:
        found[path.name] += 1
        return parts(path, schema, content, needed)

    monkeypatch.setattr(tables, "_parts", counted)
    return found


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was opened to be read, by its name."""
    found: Counter[str] = Counter()
    open_ = files.opened

    def counted(path: Path) -> Any:
        found[path.name] += 1
        return open_(path)

    monkeypatch.setattr(files, "opened", counted)
    return found


def test_a_report_opens_each_file_once(tmp_path: Path, parsed: Counter[str], opened: Counter[str]) -> None:
    folder = make_run(tmp_path, SMALL)
    make_report(folder, tmp_path / "reports")
    for name in ("records.jsonl", "handoffs.jsonl", "queues.jsonl"):
        assert (parsed[name], opened[name]) == (1, 1), name
    assert (opened["config.yaml"], opened["run_metadata.json"]) == (1, 1)
    assert max(parsed.values()) == 1


def test_a_run_s_end_parses_its_records_once(
    tmp_path: Path, parsed: Counter[str], opened: Counter[str], capfd: pytest.CaptureFixture[str]
) -> None:
    run = RunTables(make_run(tmp_path, SMALL))
    cfg = run.config.changed(dataset={"benchmark": None})
    outcome = _finish(cfg, run.path, dict(run.metadata), collectors_in(run), "completed", None)
    with Screen() as screen:
        screen.end(outcome, None)
    assert "TTFT" in capfd.readouterr().err
    # And once to count its lines, which is before anything is made of them.
    assert (parsed["records.jsonl"], opened["records.jsonl"]) == (1, 2)
    assert max(parsed.values()) == 1


def test_requests_give_back_their_memory_and_are_read_again(tmp_path: Path, parsed: Counter[str]) -> None:
    run = RunTables(make_run(tmp_path, SMALL))
    assert run.keys().height == run.requests.height == run.keys().height
    assert parsed["records.jsonl"] == 2
    assert "token_ids" in run.requests.columns
    run.drop_tokens()
    assert "token_ids" not in run.requests.columns
    run.drop_requests()
    assert "token_ids" in run.requests.columns
    assert parsed["records.jsonl"] == 3


def test_the_same_keys_are_read_beside_requests_and_alone(tmp_path: Path) -> None:
    """Requests that were cut short by our own stop and lines that are there twice are among them."""
    folder = make_run(tmp_path, SMALL)
    lines = (folder / "records.jsonl").read_text().splitlines()
    cut = json.loads(lines[0]) | {"request_id": "agg/cut", "status": "aborted", "cause": "interrupted"}
    (folder / "records.jsonl").write_text("\n".join([*lines, lines[-1], json.dumps(cut)]) + "\n")
    read, alone = RunTables(folder), RunTables(folder)
    assert read.requests.height == len(lines)
    assert read.keys().equals(alone.keys())
    assert alone.keys().height == len(lines) + 2


@dataclasses.dataclass
class Kinds:
    name: str
    share: float | None
    count: int = 0
    small: list[int] = dataclasses.field(default_factory=list, metadata={"bits": 32})
    moments: list[float] = dataclasses.field(default_factory=list)


def test_columns_follow_from_the_fields_of_a_dataclass() -> None:
    assert tables.schema_of(Kinds) == {
        "name": pl.String,
        "share": pl.Float64,
        "count": pl.Int64,
        "small": pl.List(pl.Int32),
        "moments": pl.List(pl.Float64),
    }
    assert list(tables.schema_of(Kinds, ("count", "name"))) == ["name", "count"]
    assert tables.RECORD_SCHEMA["status"] == tables.RECORD_SCHEMA["cause"] == pl.String
    assert list(tables.RECORD_SCHEMA) == [field.name for field in dataclasses.fields(RequestRecord)]


def test_a_field_of_a_type_that_is_no_column_is_named() -> None:
    strange = dataclasses.make_dataclass("Strange", [("where", dict[str, int])])
    with pytest.raises(TypeError, match=r"where has type .*no column"):
        tables.schema_of(strange)


def test_a_sample_of_a_device_has_the_fields_of_its_dataclass() -> None:
    assert set(note("host", "why")) == {field.name for field in dataclasses.fields(DeviceSample)}
