"""A run's folder that was copied from another machine is read and written in place."""

import errno
import importlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit.analysis.synthetic import RUN_ID, Shape, make_run
from tests.unit.tracking import test_mlflow_store as published
from wp1 import compare, report
from wp1.core import paths
from wp1.core.errors import ConfigError
from wp1.core.run_folder import read_config, read_json
from wp1.runner import reports
from wp1.track import store_for, track

SMALL = Shape(arms=("agg",), lengths=(256,), rates=(0,), repeats=1, count=2, handoffs=False)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(params=["the root is gone", "the root is another project"])
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A run's folder as copied, and the root of its configuration."""
    root = tmp_path / "there"
    folder = make_run(root, SMALL)
    here = Path(shutil.copytree(folder, tmp_path / "here" / RUN_ID))
    shutil.rmtree(root)
    if request.param != "the root is gone":
        make_run(root, SMALL)
    return here, root


def test_the_report_of_a_copied_folder_is_in_it(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, root = copied
    before = files_in(root)
    monkeypatch.setattr("sys.argv", ["wp1.report", str(folder)])
    report.main()
    page = folder / "reports" / f"{RUN_ID}.md"
    assert capsys.readouterr().out == f"{page}\n"
    assert files_in(root) == before
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    assert f"{RUN_ID}/itl.png" in links and "../records.jsonl" in links
    assert all((page.parent / link).is_file() for link in links)
    assert str(root) not in page.read_text()


def test_copied_folders_are_compared_beside_the_first(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, root = copied
    other = Path(shutil.copytree(folder, folder.parent / "run-b"))
    known = read_json(other / "run_metadata.json") | {"run_id": "run-b"}
    (other / "run_metadata.json").write_text(json.dumps(known))
    reports.make_report(other, paths.reports_of(other, read_config(other)))
    before = files_in(root)
    monkeypatch.setattr("sys.argv", ["wp1.compare", str(folder), str(other)])
    compare.main()
    page = folder.parent / "comparisons" / "00000000-run-b" / "comparison.md"
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    assert files_in(root) == before
    # Only the second has a report to link to.
    assert "| report | — | [report](../../run-b/reports/run-b.md) |" in page.read_text()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.mark.parametrize("left", ["with its report beside it", "without a report"])
def test_a_copied_folder_is_published_from_where_it_lies(tmp_path: Path, store: str, left: str) -> None:
    """The root of its configuration is a project here too, with a report of the same name."""
    run_id = f"run-{left.replace(' ', '-')}"
    folder = published.make_run(tmp_path / "there", run_id)
    here = Path(shutil.copytree(folder, tmp_path / "here" / run_id))
    if left == "without a report":
        shutil.rmtree(here.parent, ignore_errors=True)
        here = Path(shutil.copytree(make_run(tmp_path / "made", SMALL), here))
        known = read_json(folder / "run_metadata.json") | {"run_id": run_id}
        (here / "run_metadata.json").write_text(json.dumps(known | {"pools": []}))
    else:
        reports = here.parent / "reports"
        shutil.copytree(folder.parent / "reports", reports)
        (reports / f"{run_id}.md").write_text("# Copied\n")
    before = files_in(tmp_path / "there")
    track(here, store)
    (run,) = published.runs_in(store, run_id)
    page = (published.artifacts_of(run) / "report.md").read_text()
    assert page == "# Copied\n" if left != "without a report" else "## Latency" in page
    assert (here / "reports" / f"{run_id}.md").is_file() == (left == "without a report")
    assert files_in(tmp_path / "there") == before


@pytest.mark.parametrize(
    ("uri", "at_home", "elsewhere"),
    [
        ("sqlite:///{root}/mlflow.db", "sqlite:///{root}/mlflow.db", "sqlite:///{project}/mlflow.db"),
        ("sqlite:///other.db", "sqlite:///other.db", "sqlite:///{project}/mlflow.db"),
        ("", "sqlite:///{root}/mlflow.db", "sqlite:///{project}/mlflow.db"),
    ],
)
def test_a_copied_run_goes_to_the_store_here(
    uri: str, at_home: str, elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WP1_ROOT", str(tmp_path / "project"))
    words = {"root": tmp_path / "there", "project": tmp_path / "project"}
    config = {"root": str(words["root"]), "tracking": {"uri": uri.format(**words)}}
    for folder, wanted in ((words["root"] / "outputs" / "run-x", at_home), (tmp_path / "run-x", elsewhere)):
        assert store_for(folder, config) == wanted.format(**words)


def test_a_server_that_a_run_names_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"root": str(tmp_path), "tracking": {"uri": "http://server:5000"}}
    for folder in (tmp_path / "outputs" / "run-x", tmp_path / "run-x"):
        with pytest.raises(ConfigError, match="name the store with --uri"):
            store_for(folder, config)
        with monkeypatch.context() as own:
            own.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
            assert store_for(folder, config) == "http://server:5000"


def test_a_project_that_is_reached_by_a_link_is_home(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "outputs").symlink_to(tmp_path / "disk")
    root = str(tmp_path / "project")
    assert paths.at_home(tmp_path / "disk" / "run-x", root)
    assert not paths.at_home(tmp_path / "project" / "copy", root)


def test_the_root_of_a_packet_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs" / "e1"
    assert paths.reports_of(folder, {"root": "."}) == folder / "reports"


@pytest.mark.parametrize("command", ["report", "compare", "track", "packet"])
def test_an_empty_word_is_no_folder(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would mean the current folder."""
    monkeypatch.setattr("sys.argv", [command, ""])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"wp1.{command}").main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("the name of a folder must not be empty") == 1


COMMANDS = ("report", "compare", "track", "packet")


def told_by(command: str, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The one line of a command that refuses its folder, which it takes for bad input."""
    monkeypatch.setattr("sys.argv", [command, *words])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"wp1.{command}").main()
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def refuse(path: Path, *_: Any, **__: Any) -> None:
    """As root, whom tests may run as, everything may be read and written."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_none_says_why(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    neither = "contains no run" if command == "packet" else "has no run_metadata.json and no sweep.json"
    told = {"file": "is not a folder", "none": "does not exist", "empty": neither}
    for name, why in told.items():
        line = told_by(command, [str(tmp_path / name)], capsys, monkeypatch)
        assert line.startswith(f"error: {tmp_path / name} {why}: name ")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("method", ["is_file", "scandir"])
def test_a_folder_that_may_not_be_looked_into_is_named(
    command: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as shut:
        shut.setattr(*((Path, method) if method == "is_file" else (paths.os, method)), refuse)
        line = told_by(command, [str(tmp_path)], capsys, shut)
    assert line.startswith(f"error: {tmp_path} cannot be read (Permission denied): ask for access to it")


@pytest.mark.parametrize(
    ("command", "more"), [("report", []), ("compare", ["copy"]), ("track", []), ("packet", ["--partial"])]
)
def test_a_place_that_may_not_be_written_is_one_line(
    command: str,
    more: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_run(tmp_path, SMALL)
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "mkdir", refuse)
    line = told_by(command, [str(folder), *more], capsys, monkeypatch)
    assert line.startswith(f"error: no access to {tmp_path}") and line.endswith("ask for it, or name another folder")
