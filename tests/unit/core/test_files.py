"""Files in a folder from someone else: links are not followed, and written JSON is valid."""

import json
import os
from pathlib import Path

import pytest

from tests.records import read_records
from tests.unit.analysis.synthetic import Shape, make_run
from wp1.analysis.base import tables
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.summary import summarise
from wp1.collectors.making import collectors_in, collectors_of
from wp1.core import files
from wp1.core.errors import ConfigError
from wp1.core.jsonl import RecordWriter
from wp1.core.records import Handoff, RequestRecord
from wp1.core.run_folder import read_config, read_json, write_json
from wp1.machine.output import output_to
from wp1.tracking.run import _files

SMALL = Shape(lengths=(256,), rates=(0,), repeats=2, count=3)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "project", SMALL)


def test_nothing_is_written_through_a_link(run_dir: Path, tmp_path: Path) -> None:
    victims = {name: tmp_path / f"victim-{n}" for n, name in enumerate(("summary.json", "summary.json.tmp"))}
    for name, victim in victims.items():
        victim.write_text("precious")
        (run_dir / name).symlink_to(victim)
    summarise(RunTables(run_dir), collectors_of(read_config(run_dir)))
    assert [victim.read_text() for victim in victims.values()] == ["precious", "precious"]
    assert read_json(run_dir / "summary.json")["run_id"] == run_dir.name
    assert not (run_dir / "summary.json").is_symlink()


@pytest.mark.parametrize("name", ["artifacts", "reports"])
def test_a_link_in_place_of_a_folder_is_refused(run_dir: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (run_dir / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=rf"{name} is a link"):
        if name == "artifacts":
            summarise(RunTables(run_dir), collectors_in(RunTables(run_dir)))
        else:
            files.real_folder(run_dir / name)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", ["records.jsonl", "handoffs.jsonl", "config.yaml", "run_metadata.json"])
def test_nothing_is_read_through_a_link(run_dir: Path, tmp_path: Path, name: str) -> None:
    (run_dir / name).rename(tmp_path / "moved")
    (run_dir / name).symlink_to(tmp_path / "moved")
    with pytest.raises(ConfigError, match=rf"{name} is a link"):
        summarise(RunTables(run_dir), collectors_in(RunTables(run_dir)))


def test_the_target_of_a_link_is_not_published(run_dir: Path, tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("PRIVATE KEY")
    (run_dir / "artifacts").mkdir()
    for name in ("artifacts/x.csv", "engine.log", "goodput.jsonl"):
        (run_dir / name).symlink_to(secret)
    published = [path.name for path, _ in _files(run_dir)]
    assert "records.jsonl" in published
    assert not {"x.csv", "engine.log", "goodput.jsonl"} & set(published)


def test_logs_and_records_are_not_appended_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "log").symlink_to(victim)
    with pytest.raises(ConfigError, match="log is a link"), output_to(tmp_path / "log"):
        pass
    with pytest.raises(ConfigError, match="log is a link"), RecordWriter(tmp_path / "log"):
        pass
    assert victim.read_text() == "precious"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe is not a regular file"):
        files.read_bytes(tmp_path / "pipe")


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.replaced(path) as work:
        work.write_text("half")
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert read_json(path) == {"a": 1}


def record(number: int, **fields: object) -> RequestRecord:
    return RequestRecord(f"agg/c-conc1/r0/{number}", "agg", "c-conc1", 0, "l", False, 0, "ok", t_intended=1.0, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["nll", "t_tokens", "t_sent", "t_end", "t_scheduled"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_fails_its_request_and_its_line_is_still_json(tmp_path: Path, field: str, value: float) -> None:
    listed = field in ("nll", "t_tokens")
    path = tmp_path / "records.jsonl"
    with RecordWriter(path) as out:
        out.write(record(0, **{field: [1.0, value] if listed else value}))
        out.write(record(1))
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert [line["status"] for line in lines] == ["error", "ok"]
    assert (lines[0]["cause"], lines[0]["error"]) == ("engine_error", f"not a finite number in {field}")
    assert lines[0][field] == ([] if listed else None)
    assert tables.requests(path)["status"].to_list() == ["error", "ok"]


def test_a_handoff_with_nan_failed(tmp_path: Path) -> None:
    handoff = Handoff("h", "r", "disagg", "c-conc1", 0, False, "p", "d", "ipc", "ok", copy_s=float("nan"))
    with RecordWriter(tmp_path / "handoffs.jsonl") as out:
        out.write(handoff)
    (row,) = tables.handoffs(tmp_path / "handoffs.jsonl").iter_rows(named=True)
    assert (row["status"], row["copy_s"], row["error"]) == ("failed", None, "not a finite number in copy_s")


def test_json_files_have_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [float("inf"), 1.5, {"c": (2, -float("inf"))}]})
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert found == {"a": None, "b": [None, 1.5, {"c": [2, None]}]}


def test_a_lone_surrogate_is_written_as_its_escape(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with RecordWriter(path) as out:
        for n, text in enumerate(("\ud83d", "a\u2028b\x85c\rd", "\x00", "😀")):
            out.write(record(n, text=text, example=text))
    path.read_bytes().decode("utf-8")
    assert [one.text for one in read_records(path)] == ["\\ud83d", "a\u2028b\x85c\rd", "\x00", "😀"]
    assert tables.requests(path)["text"].to_list() == ["\\ud83d", "a\u2028b\x85c\rd", "\x00", "😀"]
