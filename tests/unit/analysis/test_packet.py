"""From the folders of runs to a packet: what is taken, what is said to be missing, and that it stands on its own."""

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Compose
from tests.double import TINY
from tests.unit.analysis.synthetic import Shape, make_run
from wp1 import packet as command
from wp1.analysis import excerpt, packet
from wp1.core.errors import ConfigError
from wp1.core.run_folder import read_json
from wp1.runner.console import Screen
from wp1.runner.reports import make_report
from wp1.runner.run import run

CONF = Path(__file__).parents[3] / "conf" / "experiment"
# A file without a name of its own is a variant of another experiment.
NAMES = tuple(
    sorted(
        found[1]
        for path in CONF.glob("*.yaml")
        if (found := re.search(r"^experiment:\n(?:  .*\n)*?  name: (\w+)", path.read_text(), re.MULTILINE))
    )
)


def _run_of(name: str) -> str:
    """The folder's name of the run of an experiment in `_all`."""
    return f"run-20260101T0000{NAMES.index(name):02}Z-00000000"


@pytest.fixture(scope="module")
def e3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of E3 with its report, in outputs/."""
    root = tmp_path_factory.mktemp("home")
    folder = make_run(root, Shape(lengths=(256,), rates=(0,), repeats=2, count=4))
    make_report(folder, root / "outputs" / "reports")
    return folder


def _again(e3: Path, root: Path, experiment: str, name: str, **changes: Any) -> Path:
    """The same run under another name, as one of another experiment, with its report."""
    folder, reports = root / "outputs" / name, root / "outputs" / "reports"
    shutil.copytree(e3, folder)
    shutil.copytree(e3.parent / "reports" / e3.name, reports / name, dirs_exist_ok=True)
    page = (e3.parent / "reports" / f"{e3.name}.md").read_text()
    (reports / f"{name}.md").write_text(page.replace(f"({e3.name}/", f"({name}/"))
    metadata = read_json(folder / "run_metadata.json")
    metadata.update(experiment=experiment, run_id=name, **changes)
    (folder / "run_metadata.json").write_text(json.dumps(metadata))
    return folder


def _all(e3: Path, root: Path, **changes: dict[str, Any]) -> None:
    for n, name in enumerate(NAMES):
        known = {"status": "completed", "reason": None, "started": f"2026-01-{n + 1:02}T00:00:00+00:00"}
        _again(e3, root, name, _run_of(name), **(known | changes.get(name, {})))


def test_a_whole_packet_has_every_experiment(e3: Path, tmp_path: Path) -> None:
    _all(e3, tmp_path)
    code, said = command.make([tmp_path / "outputs"], tmp_path / "packet", "A packet", partial=False)
    assert code == 0
    page = Path(said).read_text()
    assert [line for line in page.splitlines() if re.match(r"## E\d:", line)] != []
    assert sorted(path.name for path in (tmp_path / "packet").iterdir()) == ["README.md", *packet.experiments()]
    assert "Incomplete" not in page
    assert page.count("python -m wp1 ") >= 2 * len(packet.experiments())


def test_it_fails_where_one_is_missing_or_failed_unless_partial(e3: Path, tmp_path: Path) -> None:
    _all(e3, tmp_path, e4={"status": "failed", "reason": "the disk was full\nmore"})
    shutil.rmtree(tmp_path / "outputs" / _run_of("e6"))
    code, said = command.make([tmp_path / "outputs"], tmp_path / "packet", "A packet", partial=False)
    assert code == 1
    assert "e6 is missing" in said
    assert "e4 failed (the disk was full)" in said
    assert not (tmp_path / "packet").exists()
    code, said = command.make([tmp_path / "outputs"], tmp_path / "packet", "A packet", partial=True)
    assert code == 0
    assert "**Incomplete**: e6 is missing; e4 failed (the disk was full)" in Path(said).read_text()


def test_runs_of_two_machines_are_no_packet(e3: Path, tmp_path: Path) -> None:
    other = read_json(e3 / "run_metadata.json")["hardware"] | {"cpu": "another"}
    _all(e3, tmp_path, e2={"hardware": other})
    code, said = command.make([tmp_path / "outputs"], tmp_path / "packet", "A packet", partial=False)
    assert code == 1
    assert "several machines" in said
    assert "another" in said


def test_experiments_are_those_of_conf_and_of_the_runs_found(e3: Path, tmp_path: Path) -> None:
    assert packet.experiments() == NAMES
    assert {"e0", "e1", "e2", "e3", "e4", "e5", "e6"} <= set(NAMES)
    _all(e3, tmp_path)
    _again(e3, tmp_path, "mine", "run-mine", started="2026-01-09", question="What of mine?")
    made = [tmp_path / "outputs"], tmp_path / "packet", "A packet"
    code, said = command.make(*made, partial=False)
    page = Path(said).read_text()
    assert code == 0
    assert [line for line in page.splitlines() if line.startswith("## mine: ")] == ["## mine: What of mine?"]
    assert "- [mine](#mine): " in page and "[Full report](mine/report.md)" in page
    assert (tmp_path / "packet" / "mine" / "report.md").is_file()
    # Made again without it, its old folder goes as those of the others do.
    shutil.rmtree(tmp_path / "outputs" / "run-mine")
    assert command.make(*made, partial=False)[0] == 0
    assert not (tmp_path / "packet" / "mine").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b"])
def test_a_name_that_is_not_plain_makes_no_folder(e3: Path, tmp_path: Path, name: str) -> None:
    folder = _again(e3, tmp_path, name, "run-a")
    with pytest.raises(ConfigError, match=f"{folder}/run_metadata.json has an invalid name, experiment="):
        command.make([folder], tmp_path / "packet", "A packet", partial=True)
    assert not (tmp_path / "packet").exists()


def test_a_name_with_an_underscore_is_a_variant_of_a_known_experiment_only(e3: Path, tmp_path: Path) -> None:
    for name in ("e1_gpu", "my_own"):
        _again(e3, tmp_path, name, f"run-{name}")
    assert list(packet.choose(packet.find([tmp_path / "outputs"]))) == ["e1", "my_own"]


def test_the_newest_completed_run_is_taken(e3: Path, tmp_path: Path) -> None:
    for name, started, status in (("a", "01", "completed"), ("b", "02", "completed"), ("c", "03", "failed")):
        _again(e3, tmp_path, "e1_gpu", f"run-{name}", started=f"2026-01-{started}", status=status)
    chosen = packet.choose(packet.find([tmp_path / "outputs"]))
    assert {name: run.folder.name for name, run in chosen.items()} == {"e1": "run-b"}
    unfinished = _again(e3, tmp_path, "e2", "run-d", started="2026-01-04", status="interrupted")
    code, said = command.make([tmp_path / "outputs"], tmp_path / "p", "", partial=False, missing_only=True)
    assert code == 0
    assert said.splitlines() == [
        f"e2 {unfinished.resolve()}" if name == "e2" else name for name in NAMES if name != "e1"
    ]


def test_it_stands_on_its_own(e3: Path, tmp_path: Path) -> None:
    chosen = packet.choose(packet.find([e3]))
    page = packet.write(chosen, tmp_path / "packet", "A packet", [])
    root = str(e3.parents[1])
    for file in (tmp_path / "packet").rglob("*"):
        if file.suffix in (".md", ".json", ".yaml", ".csv"):
            assert root not in file.read_text(), file
    for text, folder in ((page, page.parent), (page.parent / "e3" / "report.md", page.parent / "e3")):
        for target in re.findall(r"\]\(([^)#]+)\)", text.read_text()):
            assert (folder / target).is_file(), target
    # Unpacked, it is the folder of a run.
    unpacked = page.parent / "e3"
    for file in unpacked.glob("*.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
    again = make_report(unpacked, tmp_path / "reports")
    assert "256" in again.read_text()
    assert (unpacked / "records.jsonl").read_text() == (e3 / "records.jsonl").read_text()


def test_the_same_runs_give_the_same_bytes(e3: Path, tmp_path: Path) -> None:
    chosen = packet.choose(packet.find([e3]))
    made = [packet.write(chosen, tmp_path / name, "A packet", []).parent for name in ("one", "two")]
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) for folder in made]
    assert files[0] == files[1]
    assert all((made[0] / file).read_bytes() == (made[1] / file).read_bytes() for file in files[0])


def test_the_largest_records_are_left_out_beyond_the_limit(
    e3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packet, "MAX_BYTES", 1)
    page = packet.write(packet.choose(packet.find([e3])), tmp_path / "packet", "A packet", [])
    assert not list((tmp_path / "packet").rglob("*.gz"))
    assert "e3/records.jsonl.gz" in page.read_text()


def test_samples_are_left_out_before_records(e3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the records are larger."""
    sizes = {"queues.jsonl.gz": 10, "records.jsonl.gz": 50, "handoffs.jsonl.gz": 20}
    for name, size in sizes.items():
        for folder in ("e0", "e3"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(b"x" * (size + (folder == "e3")))
    monkeypatch.setattr(packet, "MAX_BYTES", 152)
    assert packet._shrink(tmp_path) == ["e3/queues.jsonl.gz"]
    monkeypatch.setattr(packet, "MAX_BYTES", 60)
    gone = ["e0/queues.jsonl.gz", "e3/handoffs.jsonl.gz", "e0/handoffs.jsonl.gz", "e3/records.jsonl.gz"]
    assert packet._shrink(tmp_path) == gone
    assert [file.name for file in tmp_path.rglob("*.gz")] == ["records.jsonl.gz"]


def test_nothing_of_others_is_overwritten(e3: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(ConfigError, match="not empty and is not a packet"):
        packet.write(packet.choose(packet.find([e3])), tmp_path, "A packet", [])
    with pytest.raises(ConfigError, match="contains no run"):
        packet.find([tmp_path])


def test_a_readme_does_not_make_a_packet(e3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = packet.choose(packet.find([e3]))
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (project / "README.md").write_text("# Mine\n")
    (project / "src" / "main.py").write_text("mine")
    with pytest.raises(ConfigError, match="not empty and is not a packet"):
        packet.write(chosen, project, "A packet", [])
    old = tmp_path / "packet"
    page = packet.write(chosen, old, "A packet", [])
    (old / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty and is not a packet"):
        packet.write(chosen, old, "A packet", [])
    (old / "notes.txt").unlink()
    assert packet.write(chosen, old, "Another", []) == page
    monkeypatch.chdir(project)
    for out in (Path(), e3, e3.parent):
        with pytest.raises(ConfigError, match="name another folder"):
            packet.write(chosen, out, "A packet", [])
    assert (project / "src" / "main.py").read_text() == "mine"
    assert (e3 / "records.jsonl").is_file()


def test_it_says_in_short_how_each_report_begins(e3: Path, tmp_path: Path) -> None:
    _all(e3, tmp_path)
    page = Path(command.make([tmp_path / "outputs"], tmp_path / "packet", "A packet", partial=False)[1]).read_text()
    line, *_ = page.partition("## In short")[2].partition("## ")[0].strip().splitlines()
    assert line.startswith("- [E0](#e0): ")
    begins = excerpt.key_parts((tmp_path / "packet" / "e0" / "report.md").read_text(), "e0")[0]
    assert begins.startswith(line.removeprefix("- [E0](#e0): "))


def test_a_plot_that_the_page_does_not_show_is_left_behind(e3: Path, tmp_path: Path) -> None:
    shutil.copytree(e3.parent, tmp_path / "outputs")
    plots = tmp_path / "outputs" / "reports" / e3.name
    (plots / "requests.png").write_bytes(b"old")
    page = packet.write(packet.choose(packet.find([tmp_path / "outputs"])), tmp_path / "packet", "A packet", [])
    assert (page.parent / "e3" / "phases.png").is_file()
    assert not (page.parent / "e3" / "requests.png").exists()


def test_local_changes_are_explained(e3: Path, tmp_path: Path) -> None:
    _all(e3, tmp_path, e1={"git": {"commit": "0123456789abcdef", "dirty": True, "branch": "main"}})
    page = Path(command.make([tmp_path / "outputs"], tmp_path / "packet", "A packet", partial=False)[1]).read_text()
    assert "`0123456789ab` with local changes |" in page
    assert "- **with local changes**: when the run began, files of the checkout differed from that commit" in page


def _damage(folder: Path, how: str) -> None:
    records = folder / "records.jsonl"
    content = records.read_bytes()
    if how == "missing":
        records.unlink()
    else:
        records.write_bytes({"empty": b"", "halved": content[: len(content) // 2], "no text": b"\x00\xff\n"}[how])


@pytest.mark.parametrize("how", ["missing", "empty", "halved", "no text"])
def test_a_run_that_has_lost_records_is_no_part_of_a_whole_packet(e3: Path, tmp_path: Path, how: str) -> None:
    _all(e3, tmp_path)
    _damage(tmp_path / "outputs" / _run_of("e3"), how)
    code, said = command.make([tmp_path / "outputs"], tmp_path / "packet", "A packet", partial=False)
    assert code == 1
    line = rf"  e3 \({_run_of('e3')}\) is incomplete: records\.jsonl(:1 is not a valid| has \d of the 16)"
    assert re.search(line, said)
    assert said.count("\n") == 1
    assert not (tmp_path / "packet").exists()
    code, said = command.make([tmp_path / "outputs"], tmp_path / "packet", "A packet", partial=True)
    page = Path(said).read_text()
    assert code == 0
    assert page.count("> **Incomplete**: ") == 2
    assert str(tmp_path) not in page


def test_a_report_that_is_not_there_is_made(e3: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = _again(e3, tmp_path, "e3", "run-a")
    shutil.rmtree(tmp_path / "outputs" / "reports")
    code, said = command.make([folder], tmp_path / "packet", "A packet", partial=True)
    assert code == 0
    assert "[Full report](e3/report.md)" in Path(said).read_text()
    assert list((tmp_path / "packet" / "e3").glob("*.png"))
    assert "making the report of e3" in capfd.readouterr().err


def test_a_report_that_cannot_be_made_is_told(e3: Path, tmp_path: Path) -> None:
    folder = _again(e3, tmp_path, "e3", "run-a")
    shutil.rmtree(tmp_path / "outputs" / "reports")
    (folder / "queues.jsonl").write_text("{}\n")
    code, said = command.make([folder], tmp_path / "packet", "A packet", partial=True)
    assert code == 0
    assert "e3 has no report, and none can be made: queues.jsonl:1 is not a valid sample" in Path(said).read_text()


def test_a_report_made_of_a_packet_is_the_one_that_it_has(config: Compose, double: Any, tmp_path: Path) -> None:
    """The packet carries all that a report is made of: E5 has handoffs, queues, notes of memory and samples."""
    cfg = config(*TINY, "experiment=e5", "experiment.prompt_lens=[16,32]")
    with Screen() as screen:
        folder = run(cfg, tmp_path / "outputs" / "run-a", "run-a", screen).run_dir
    page = packet.write(packet.choose(packet.find([folder])), tmp_path / "packet", "A packet", [])
    unpacked = page.parent / "e5"
    for file in unpacked.glob("*.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    before, summary = (unpacked / "report.md").read_text(), (unpacked / "summary.json").read_bytes()
    again = make_report(unpacked, tmp_path / "reports").read_text()
    files = "Files of this run"
    assert again.partition(files)[0].replace("(run-a/", "(") == before.partition(files)[0]
    assert "## Devices" in again
    assert {file.name for file in unpacked.glob("*.jsonl")} == {file.name for file in folder.glob("*.jsonl")}
    assert "Not in this folder" not in again
    assert (unpacked / "summary.json").read_bytes() == summary
    for name in ("device.jsonl", "loop.jsonl", "handoffs.jsonl"):
        (unpacked / name).unlink()
    (unpacked / "run_metadata.json").write_text(
        (unpacked / "run_metadata.json").read_text().replace('"completed"', '"interrupted"')
    )
    [note] = [line for line in make_report(unpacked, tmp_path / "reports").read_text().splitlines() if "Not in" in line]
    assert all(f"(no `{name}`)" in note for name in ("device.jsonl", "loop.jsonl", "handoffs.jsonl"))


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("summary.json", "{}", "summary.json has no checks"),
        ("run_metadata.json", "{}", "run_metadata.json has no run_id"),
    ],
)
def test_a_damaged_folder_is_one_line(
    e3: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    content: str,
    named: str,
) -> None:
    folder = _again(e3, tmp_path, "e3", e3.name)
    (folder / file).write_text(content)
    monkeypatch.setattr("sys.argv", ["packet", str(folder), "--out", str(tmp_path / "packet"), "--partial"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert f"{folder}/{named}" in line
