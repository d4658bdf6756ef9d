"""A file is added to a run's folder by one row of a table, and everything that handles folders then handles it."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.analysis.synthetic import Shape, make_run
from wp1.analysis import completeness, packet
from wp1.analysis.base.run_tables import RunTables
from wp1.core import progress, records, run_files
from wp1.core.errors import ConfigError
from wp1.core.run_files import RUN_FILES, RunFile
from wp1.core.run_folder import RunFolder, write_json
from wp1.runner import resume
from wp1.runner.reports import make_report
from wp1.tracking.run import entry_of

pytestmark = pytest.mark.usefixtures("without_pixels")


@dataclasses.dataclass(slots=True)
class Echo:
    """A row of a newly added file."""

    t: float
    arm: str
    cell: str
    repeat: int


ECHOES = RunFile(
    name="echoes.jsonl", row=Echo, of="unit", published="always", shows="echoes", expected=lambda config, metadata: True
)
CELL = "256-conc1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with the file that is new: a line for each unit, and one for a unit that was cut short."""
    monkeypatch.setattr(run_files, "RUN_FILES", (*RUN_FILES, ECHOES))
    made = make_run(tmp_path, Shape(lengths=(256,), rates=(0,), repeats=2, count=3))
    units = [(arm, CELL, repeat) for arm in ("agg", "disagg") for repeat in (0, 1)]
    for unit in units:
        progress.note(made, records.Done(*unit, requests=3, seconds=1.0, warmup_s=0.1))
    lines = [Echo(1000.0 + n, *unit) for n, unit in enumerate([*units, ("disagg", CELL, 2)])]
    ECHOES.at(made).write_text("".join(json.dumps(dataclasses.asdict(line)) + "\n" for line in lines))
    return made


def test_a_new_file_is_resumed_and_moved_with_its_boot(folder: Path) -> None:
    known: dict[str, Any] = {key: [] for key in resume.NOTED} | {"parent_run_id": None}
    known |= RunFolder(folder).metadata
    write_json(folder / "run_metadata.json", known | {"status": "failed", "boot": "one"})
    fresh = known | {"boot": "two"}
    cells = [SimpleNamespace(arm=arm, name=CELL, prompt_len=256) for arm in ("agg", "disagg")]
    arms: Any = [SimpleNamespace(name=cell.arm, cells=[cell]) for cell in cells]
    resume.take_up(folder, fresh, arms)
    (apart,) = (folder / "echoes.apart.jsonl").read_text().splitlines()
    assert json.loads(apart)["repeat"] == 2
    kept = [json.loads(line) for line in ECHOES.at(folder).read_text().splitlines()]
    assert len(kept) == 4
    assert all(line["t"] < 0 for line in kept)


def test_a_new_file_is_published_packed_and_counted_and_a_report_links_it(folder: Path, tmp_path: Path) -> None:
    lines = completeness.lines_of(folder)
    assert lines["echoes.jsonl"] == 5
    write_json(folder / "run_metadata.json", RunFolder(folder).metadata | {"lines": lines})
    page = make_report(folder, tmp_path / "outputs" / "reports")
    assert "[echoes.jsonl](" in page.read_text()
    assert ECHOES.at(folder) in [path for path, _ in entry_of(RunFolder(folder), page.parent).files]
    packet.write(packet.choose(packet.find([folder])), tmp_path / "packet", "A packet", [])
    assert (tmp_path / "packet" / "e3" / "echoes.jsonl.gz").is_file()
    ECHOES.at(folder).write_text("\n".join(ECHOES.at(folder).read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(ConfigError, match=r"echoes\.jsonl has 4 of the 5 lines"):
        completeness.check(RunTables(folder))
    ECHOES.at(folder).unlink()
    assert "echoes (no `echoes.jsonl`)" in make_report(folder, page.parent).read_text()


def test_every_file_with_rows_says_what_a_row_is_and_what_it_belongs_to() -> None:
    for file in RUN_FILES:
        assert file.name.endswith(".jsonl") == (file.row is not None), file.name
        fields = {field.name for field in dataclasses.fields(file.row)} if file.row is not None else set()
        if file.of == "unit":
            assert fields >= {"arm", "cell", "repeat"}, file.name
        assert file.timed == bool(fields & {"t", "t_intended", "t_prefill_done"}), file.name
    assert len({file.name for file in RUN_FILES}) == len(RUN_FILES)
    assert all(file.timed for file in run_files.of("moment"))


def test_a_pattern_stands_for_the_plain_files_that_match_it(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    for name in ("b.csv", "a.csv", "a.txt"):
        (tmp_path / "artifacts" / name).touch()
    (tmp_path / "artifacts" / "link.csv").symlink_to(tmp_path / "artifacts" / "a.txt")
    (csv,) = [file for file in RUN_FILES if file.name == "artifacts/*.csv"]
    assert [path.name for path in csv.found(tmp_path)] == ["a.csv", "b.csv"]
