"""The files of a run's folder are read once, and errors name the file."""

from pathlib import Path

import pytest

from tests.unit.analysis.synthetic import Shape, make_run
from wp1.core.errors import ConfigError
from wp1.core.run_folder import RunFolder, read_json, write_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path, Shape(lengths=(256,), rates=(0,), repeats=1, count=1))


def test_a_file_is_read_when_it_is_asked_for_and_once(folder: Path) -> None:
    run = RunFolder(folder)
    assert run.metadata["experiment"] == "e3"
    for path in folder.iterdir():
        path.unlink()
    assert run.metadata["experiment"] == "e3"
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read \(No such file"):
        _ = run.config


@pytest.mark.parametrize("name", ["run_metadata.json", "config.yaml", "summary.json"])
def test_what_is_missing_or_broken_is_named(folder: Path, name: str) -> None:
    of = {"run_metadata.json": "metadata", "config.yaml": "config", "summary.json": "summary"}[name]
    (folder / name).unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=rf"{name} cannot be read"):
        getattr(RunFolder(folder), of)
    (folder / name).write_text("- 1\n")
    with pytest.raises(ConfigError, match=rf"{name} cannot be read"):
        getattr(RunFolder(folder), of)
    (folder / name).unlink()
    (folder / name).symlink_to("/etc/hostname")
    with pytest.raises(ConfigError, match=rf"{name} is a link"):
        getattr(RunFolder(folder), of)


def test_a_copy_with_other_values_leaves_what_was_read_and_names_the_file(folder: Path) -> None:
    run = RunFolder(folder)
    changed = run.metadata.changed(labels=["other"])
    assert (changed["labels"], run.metadata["labels"]) == (["other"], [])
    with pytest.raises(ConfigError, match=r"run_metadata\.json has no nothing"):
        _ = changed["nothing"]


def test_metadata_of_an_earlier_run_says_shared_gpu_for_colocated(folder: Path) -> None:
    metadata = read_json(folder / "run_metadata.json")
    for pool in metadata["pools"]:
        pool["colocated"] = pool.pop("shared_gpu")
    write_json(folder / "run_metadata.json", metadata | {"labels": ["random weights", "colocated"]})
    found = RunFolder(folder).metadata
    assert found["labels"] == ["random weights", "shared GPU"]
    assert [pool["shared_gpu"] for pool in found["pools"]] == [pool["colocated"] for pool in metadata["pools"]]
    assert not any("colocated" in pool for pool in found["pools"])


def test_files_with_a_line_each_are_empty_without_the_file(folder: Path) -> None:
    run = RunFolder(folder)
    assert (run.done, run.probes, run.examples, run.notes) == ([], [], [], [])
    (folder / "goodput.jsonl").write_text('{"arm": "agg"}\n')
    with pytest.raises(ConfigError, match=r"goodput\.jsonl:1 is not a valid probe of a search"):
        _ = RunFolder(folder).probes


def test_a_name_within_it_is_a_path(folder: Path) -> None:
    assert RunFolder(folder) / "records.jsonl" == folder / "records.jsonl"
