"""`wp1.compare`: the comparison of any runs, and the input that it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.conftest import Compose
from tests.double import TINY, DoubleBackend
from wp1.compare import compare
from wp1.core.errors import ConfigError
from wp1.core.run_folder import read_json
from wp1.runner.console import Screen
from wp1.runner.run import run

Make = Callable[..., Path]


@pytest.fixture
def make(config: Compose, double: type[DoubleBackend], tmp_path: Path) -> Make:
    """A run's folder, by a number in its name."""

    def make_(number: int, *overrides: str) -> Path:
        run_id = f"run-20260101T000000Z-0000000{number}"
        words = (
            "experiment.same_tokens=false",
            "workload.num_requests=8",
            "experiment.repeats=1",
            "workload.temperature=0",
        )
        with Screen() as screen:
            return run(config(*TINY, *words, *overrides), tmp_path / "outputs" / run_id, run_id, screen).run_dir

    return make_


def change(run_dir: Path, **parts: Any) -> None:
    path = run_dir / "run_metadata.json"
    path.write_text(json.dumps(read_json(path) | parts))


@pytest.mark.painted
def test_two_runs_side_by_side(make: Make, tmp_path: Path) -> None:
    page, said = compare([make(1), make(2, "scheduler=disagg")], None)
    assert page == tmp_path / "outputs" / "comparisons" / "00000001-00000002" / "comparison.md"
    text = page.read_text()
    assert "## scheduler=disagg against scheduler=agg" in text
    assert "| scheduler.prefill | — | 1 |" in text
    assert "Same tokens: 8 of 8" in text
    assert (page.parent / "comparison.png").is_file()
    pairs = pl.read_csv(page.parent / "comparison_pairs.csv")
    assert set(pairs["name_a"]) == {"scheduler=agg"} and "ttft_ms/mean" in pairs["metric"].to_list()
    assert said[0].startswith("scheduler=disagg against scheduler=agg:")


def test_each_of_several_is_held_against_the_first(make: Make, tmp_path: Path) -> None:
    runs = [make(n, f"seed={n}") for n in (1, 2, 3)]
    page, said = compare(runs, tmp_path / "here")
    assert page.parent == tmp_path / "here"
    assert "## seed=2 against seed=1" in page.read_text() and "## seed=3 against seed=1" in page.read_text()
    assert said[0] == "different seed: run 0 1; run 1 2; run 2 3"


def test_runs_of_one_configuration_go_by_their_names(make: Make, tmp_path: Path) -> None:
    page, _ = compare([make(1), make(2)], None)
    assert "The configurations are the same." in page.read_text()
    assert "against run=run-20260101T000000Z-00000001" in page.read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("workload.output_len=5",), r"workload\.output_len is 4 in run-.*1 and 5 in run-.*2"),
        (("slo=interactive", "slo.ttft_ms=7"), r"slo\.ttft_ms is .* and 7"),
        (("workload.concurrency=2",), r"no cell in common \(run 0: questions-conc1; run 1: questions-conc2\)"),
    ],
)
def test_unlike_things_are_refused(make: Make, tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare([make(1, "slo=interactive"), make(2, "slo=interactive", *overrides[-1:])], None)
    assert not (tmp_path / "outputs" / "comparisons").exists()


def test_a_run_without_limits_compares_with_one_that_has_some(make: Make) -> None:
    page, _ = compare([make(1), make(2, "slo=interactive")], None)
    assert "| SLO attainment" not in page.read_text()


def test_what_makes_a_difference_doubtful_is_said(make: Make) -> None:
    a, b = make(1), make(2)
    hardware = read_json(b / "run_metadata.json")["hardware"] | {"cpu": "abacus"}
    change(b, hardware=hardware, labels=[], status="failed", reason="something")
    page, said = compare([a, b], None)
    doubts = "\n".join(said)
    for part in ("different hardware", "abacus", "different labels: run 0 random weights; run 1 none"):
        assert part in doubts
    assert "run 1 failed" in doubts
    assert "different hardware" in page.read_text()


def test_one_run_is_nothing_to_compare(make: Make) -> None:
    with pytest.raises(ConfigError, match="two runs or more"):
        compare([make(1)], None)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path} has no run_metadata.json and no sweep.json: name "):
        compare([tmp_path, tmp_path], None)


def test_a_run_that_has_lost_records_is_not_compared(make: Make, tmp_path: Path) -> None:
    runs = [make(1), make(2)]
    records = runs[1] / "records.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError, match=r"records\.jsonl has 7 of the 8 measured requests that cells\.jsonl has"):
        compare(runs, tmp_path / "here")
    assert not (tmp_path / "here").exists()
