"""A sweep's folder becomes one table, one page and one plot, whatever its jobs came to."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from wp1 import report
from wp1.analysis.sweep import figures as sweep_figures
from wp1.analysis.sweep.report import write_comparison
from wp1.core.errors import WP1Error

NAME = "20261123T120000"
CELL = "256-conc1"


def make_sweep(tmp_path: Path, jobs: list[list[str]], status: str = "completed") -> Path:
    folder = tmp_path / "multirun" / NAME
    folder.mkdir(parents=True)
    manifest = {
        "sweep": NAME, "status": status, "started": "2026-11-23T12:00:00+00:00", "ended": None, "experiment": "e0",
        "question": "", "command": ["wp1", "-m", "a=1,2"], "overrides": ["a=1,2"], "jobs": jobs, "root": str(tmp_path),
        "tracking": {"uri": "sqlite:///mlflow.db", "timeout_s": 5.0}, "parent_run_id": None,
    }  # fmt: skip
    sweep_figures.write_manifest(folder, manifest)
    return folder


def make_run(
    folder: Path,
    number: int,
    overrides: list[str],
    ttft_ms: float = 10.0,
    status: str = "completed",
    cells: tuple[tuple[str, str], ...] = (("agg", CELL),),
    requests: int = 8,
    seed: int = 42,
    gpus: int = 1,
    labels: tuple[str, ...] = (),
) -> Path:
    """A job's run of `requests` answered requests a cell, and one that failed; four output tokens 2 ms apart."""
    run_dir = folder / str(number)
    run_dir.mkdir()
    metadata = {
        "run_id": f"run-{number}", "status": status, "reason": None if status == "completed" else "it broke\nlog",
        "experiment": "e0", "labels": list(labels),
        "sweep": {"name": NAME, "job": number, "overrides": overrides},
        "pools": [
            {"arm": arm, "engines": [{"devices": [f"cuda:{n}"]} for n in range(gpus)]} for arm in dict(cells)
        ],
    }  # fmt: skip
    config = {
        "root": str(folder.parents[1]), "seed": seed, "model": {}, "dataset": {}, "workload": {"prompts": "random"},
        "slo": {"ttft_ms": None, "tpot_ms": None}, "tracking": {}, "experiment": {},
    }  # fmt: skip
    lines = []
    for arm, cell in cells:
        for n in range(requests + 1):
            failed = n == requests
            first = n + (ttft_ms + n % 3) / 1e3
            times = [] if failed else [round(first + k * 0.002, 6) for k in range(4)]
            record = {
                "request_id": f"{arm}/{cell}/r0/{n}", "arm": arm, "cell": cell, "repeat": 0, "warmup": False,
                "status": "error" if failed else "ok", "error": "no" if failed else None, "t_intended": float(n),
                "t_sent": float(n), "t_scheduled": float(n), "t_engine_first_token": first, "t_tokens": times,
                "t_end": n + 0.05, "output_tokens": len(times), "token_ids": [1, 2, 3, 4][: len(times)],
            }  # fmt: skip
            lines.append(json.dumps(record) + "\n")
    (run_dir / "records.jsonl").write_text("".join(lines))
    (run_dir / "run_metadata.json").write_text(json.dumps(metadata))
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    return run_dir


def refuse(folder: Path, number: int, overrides: list[str], reason: str) -> None:
    (folder / str(number)).mkdir()
    left = {"job": number, "overrides": overrides, "status": "refused", "reason": reason}
    (folder / str(number) / "job.json").write_text(json.dumps(left))


def table_of(folder: Path) -> pl.DataFrame:
    return sweep_figures.rows(jobs_of(folder))


def jobs_of(folder: Path) -> list[sweep_figures.Job]:
    return sweep_figures.read_jobs(folder, sweep_figures.read_manifest(folder))


def test_every_job_is_a_row_also_one_that_never_ran(tmp_path: Path) -> None:
    jobs = [[f"++model.max_len={n}", "seed=1"] for n in (1, 2, 3, 4, 5)]
    folder = make_sweep(tmp_path, jobs)
    make_run(folder, 0, jobs[0])
    make_run(folder, 1, jobs[1], status="failed")
    refuse(folder, 2, jobs[2], "model.max_len=3 is too small")
    (folder / "3").mkdir()
    found = table_of(folder)
    assert found["model.max_len"].to_list() == ["1", "2", "3", "4", "5"]
    assert found["status"].to_list() == ["completed", "failed", "refused", "stopped", "not started"]
    assert found["reason"].to_list()[1:3] == ["it broke", "model.max_len=3 is too small"]
    assert found["requests_ok"].to_list() == [8, 8, None, None, None]
    assert found["requests_failed"].to_list() == [1, 1, None, None, None]
    assert "seed" not in found.columns


def test_a_cells_figures_are_those_of_its_answered_requests(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, [["a=1"]])
    make_run(folder, 0, ["a=1"], ttft_ms=10)
    row = table_of(folder).row(0, named=True)
    assert (row["ttft_ms_p50"], row["tpot_ms_p50"], row["e2e_ms_p50"]) == pytest.approx((11, 2, 17))
    assert row["output_tokens_per_s"] == pytest.approx(32 / 8.05, abs=0.01)


def test_a_runs_own_summary_is_taken_where_it_has_one(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, [["a=1"]])
    run_dir = make_run(folder, 0, ["a=1"])
    spread = {"n": 3, **dict.fromkeys(("mean", "mean_low", "mean_high", "p50", "p95"), 77.0)}
    cell = {"ok": 3, "failed": 2, "ttft_ms": spread, "tpot_ms": {"n": 0}, "e2e_ms": spread, "output_tokens_per_s": None}
    (run_dir / "summary.json").write_text(json.dumps({"profiling": {"latency": {"cells": {"agg/c": cell}}}}))
    row = table_of(folder).row(0, named=True)
    assert (row["cell"], row["requests_ok"], row["ttft_ms_p95"], row["tpot_ms_p50"]) == ("c", 3, 77.0, None)


def test_a_run_that_was_killed_is_unfinished(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, [["a=1"]])
    make_run(folder, 0, ["a=1"], status="running")
    assert table_of(folder)["status"].to_list() == ["unfinished"]


def test_a_job_whose_files_are_damaged_does_not_hide_the_others(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, [["a=1"], ["a=2"]])
    for number in range(2):
        make_run(folder, number, [f"a={number + 1}"])
    (folder / "0" / "run_metadata.json").write_text("{")
    assert table_of(folder)["status"].to_list() == ["stopped", "completed"]


@pytest.mark.parametrize(
    ("statuses", "stopped", "expected"),
    [
        (["completed", "completed"], False, "completed"),
        (["completed", "refused"], False, "failed"),
        (["completed", "not started"], True, "interrupted"),
        (["interrupted", "not started"], False, "interrupted"),
    ],
)
def test_a_sweep_ends_as_its_jobs_did(statuses: list[str], stopped: bool, expected: str) -> None:
    jobs = [sweep_figures.Job(n, {}, status, None, None, {}) for n, status in enumerate(statuses)]
    assert sweep_figures.status_of(jobs, stopped) == expected


def contrasts_of(folder: Path) -> dict[tuple[str, str], list[list[str]]]:
    jobs = jobs_of(folder)
    found = sweep_figures.contrasts(sweep_figures.pairs(jobs, sweep_figures.rows(jobs)))
    return {names: [pair.cells for pair in of] for names, of in found.items()}


def test_two_jobs_with_the_same_cells_are_compared_under_one_name(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, [])
    jobs = [(scheduler, length) for scheduler in ("agg", "disagg") for length in (256, 512)]
    for number, (scheduler, length) in enumerate(jobs):
        overrides = [f"scheduler={scheduler}", f"workload.prompt_len={length}"]
        make_run(folder, number, overrides, cells=((scheduler, f"{length}-conc1"),))
    assert contrasts_of(folder) == {("scheduler=agg", "scheduler=disagg"): [["256-conc1"], ["512-conc1"]]}


def test_three_jobs_with_the_same_cell_are_no_pair_and_neither_is_one_that_failed(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, [])
    for number in range(3):
        make_run(folder, number, [f"a={number}"])
    assert contrasts_of(folder) == {}
    metadata = json.loads((folder / "2" / "run_metadata.json").read_text()) | {"status": "failed"}
    (folder / "2" / "run_metadata.json").write_text(json.dumps(metadata))
    assert contrasts_of(folder) == {("a=0", "a=1"): [[CELL]]}


def test_jobs_of_several_arms_are_compared_arm_by_arm(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, [])
    for number in range(2):
        make_run(folder, number, [f"a={number}"], cells=(("agg", CELL), ("disagg", CELL)))
    assert contrasts_of(folder) == {("a=0, agg", "a=1, agg"): [[CELL]], ("a=0, disagg", "a=1, disagg"): [[CELL]]}


def compared(folder: Path) -> pl.DataFrame:
    write_comparison(folder)
    return pl.read_csv(folder / "comparison_pairs.csv")


def test_the_side_by_side_table_has_both_jobs_figures(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, [])
    make_run(folder, 0, ["s=agg"], ttft_ms=10, cells=(("agg", CELL),))
    make_run(folder, 1, ["s=disagg"], ttft_ms=30, cells=(("disagg", CELL),), labels=("shared GPU",))
    row = compared(folder).filter(pl.col("metric") == "ttft_ms/p50").row(0, named=True)
    assert (row["name_a"], row["name_b"], row["job_a"], row["job_b"]) == ("s=agg", "s=disagg", 0, 1)
    assert (row["a"], row["b"], row["delta"], row["excludes_zero"]) == (11, 31, 20, True)
    assert row["labels"] == "shared GPU"


def page_of(folder: Path) -> str:
    return write_comparison(folder).read_text()


def test_the_page_shows_rows_reasons_labels_and_a_plot(tmp_path: Path) -> None:
    jobs = [["s=agg"], ["s=disagg"], ["s=other"]]
    folder = make_sweep(tmp_path, jobs, status="failed")
    make_run(folder, 0, jobs[0], cells=(("agg", CELL),))
    make_run(folder, 1, jobs[1], ttft_ms=30, cells=(("disagg", CELL),), labels=("random weights",))
    refuse(folder, 2, jobs[2], "s=other | does not exist")
    (tmp_path / "outputs" / "reports").mkdir(parents=True)
    (tmp_path / "outputs" / "reports" / "run-1.md").touch()
    page = page_of(folder)
    assert "**2 of 3 jobs completed**" in page
    assert "> **random weights**: the output means nothing, speed and memory do (jobs 1)." in page
    assert "| 1 | disagg | 256-conc1 | 8 | 1 | 31.0 |" in page
    assert "- job 2, refused: s=other \\| does not exist" in page
    assert "## s=disagg against s=agg" in page
    assert "Same tokens: 8 of 8 requests" in page
    # The first has none to link to.
    assert "Reports of the runs: [job 1](../../outputs/reports/run-1.md)." in page
    assert "- **Δ**" in page
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"gpus": 2}, "**Not on equal devices**: s=1 had 1, s=2 had 2."),
        ({"seed": 7}, "differ: see seed"),
    ],
)
def test_what_makes_a_comparison_unfair_is_said(tmp_path: Path, other: dict[str, Any], said: str) -> None:
    folder = make_sweep(tmp_path, [])
    make_run(folder, 0, ["s=1"])
    make_run(folder, 1, ["s=2"], **other)
    assert said in page_of(folder)


@pytest.mark.parametrize(
    ("config", "metadata", "said"),
    [
        (
            {"workload": {"prompts": "random", "temperature": 0.2}},
            {},
            "answers were sampled (workload.temperature=0.2)",
        ),
        ({}, {"model": {"digest": "other"}}, "they had different weights"),
        ({"rope": {"type": "yarn", "factor": 4.0}}, {}, "rope is not the same in both"),
        ({"backend": {"engine": {"kv_cache_dtype": "fp8"}}}, {}, "kv_cache_dtype is not the same in both"),
        ({"workload": {"prompts": "random", "timeout_s": 9.0}}, {}, None),
        ({"backend": {"engine": {"block_size": 32}}}, {}, None),
    ],
)
def test_tokens_that_need_not_be_equal_are_not_compared(
    tmp_path: Path, config: dict[str, Any], metadata: dict[str, Any], said: str | None
) -> None:
    folder = make_sweep(tmp_path, [])
    both = [make_run(folder, n, [f"s={n}"]) for n in range(2)]
    # Where the workload is not the same, that is said instead.
    for run_dir in both if "temperature" in config.get("workload", {}) else both[1:]:
        for name, other, read in (("config.yaml", config, yaml.safe_load), ("run_metadata.json", metadata, json.loads)):
            (run_dir / name).write_text(json.dumps(read((run_dir / name).read_text()) | other))
    page = page_of(folder)
    assert ("Tokens are not compared: " in page) == (said is not None)
    assert (said or "Same tokens: 8 of 8 requests gave the same tokens") in page
    assert ("gave the same tokens" in page) == (said is None)


def test_jobs_tell_by_what_they_were_asked_again_whether_rounding_parts_them(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, [])
    make_run(folder, 0, ["s=1"])
    run_dir = make_run(folder, 1, ["s=2"])
    path = run_dir / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[:2]:
        line["token_ids"][2] = 9
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = [
        {key: line[key] for key in ("request_id", "arm", "cell", "repeat", "status", "token_ids")}
        | {"margins": [5, 5, margin, 5], "parted": False}
        for line, margin in zip(lines, (0.125, 1.5), strict=False)
    ]
    (run_dir / "control.jsonl").write_text("".join(json.dumps(line) + "\n" for line in again))
    page = page_of(folder)
    assert "Same tokens: 6 of 8 requests gave the same tokens" in page
    assert "the same arm against itself: 2 of 2 (s=2)" in page
    assert "were within 0.25 nats in 1 of 2, which rounding explains; **in 1 they were further apart" in page


def test_a_sweep_without_an_answer_has_a_page_and_no_plot(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, [["a=1"]], status="interrupted")
    make_run(folder, 0, ["a=1"], status="interrupted", cells=())
    page = page_of(folder)
    assert "0 of 1 jobs completed, stopped by a signal" in page
    assert not (folder / "comparison.png").exists()
    assert "comparison.png" not in page


def test_the_comparison_is_made_again_with_the_same_bytes(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, [])
    for number in range(2):
        make_run(folder, number, [f"workload.prompt_len={number}", "a=b"], ttft_ms=10 + 300 * number)
    names = ("comparison.md", "comparison.csv", "comparison_pairs.csv", "comparison.png")
    write_comparison(folder)
    before = [(folder / name).read_bytes() for name in names]
    for name in names:
        (folder / name).unlink()
    write_comparison(folder)
    assert [(folder / name).read_bytes() for name in names] == before


def test_a_pair_that_is_no_more_leaves_no_table_of_it(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, [])
    for number in range(2):
        make_run(folder, number, [f"a={number}"])
    write_comparison(folder)
    make_run(folder, 2, ["a=2"])
    assert "against" not in page_of(folder)
    assert not (folder / "comparison_pairs.csv").exists()


def test_keys_are_called_by_their_last_part_where_that_is_no_others() -> None:
    assert sweep_figures.titles(["a.len", "b.len", "seed"]) == {"a.len": "a.len", "b.len": "b.len", "seed": "seed"}
    job = sweep_figures.Job(3, {"a.len": "1"}, "completed", None, None, {})
    assert sweep_figures.name_of(job, ["a.len"]) == "len=1"
    assert sweep_figures.name_of(job, []) == "job 3"


def test_overrides_are_shown_as_they_were_typed() -> None:
    words = ["++a.b=1", r"tracking.uri=http\://host\:5000", "note=x=y", "~dataset"]
    assert sweep_figures.by_key(words) == {
        "a.b": "1",
        "tracking.uri": "http://host:5000",
        "note": "x=y",
        "~dataset": "",
    }


def test_many_rows_are_cut_in_the_plot_and_kept_in_the_table(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, [])
    for number in range(42):
        make_run(folder, number, [f"a={number}"], ttft_ms=1 + number * 10, requests=2)
    write_comparison(folder)
    assert pl.read_csv(folder / "comparison.csv").height == 42
    assert (folder / "comparison.png").is_file()


def test_the_report_command_makes_it_again_also_where_the_folder_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_sweep(tmp_path, [["a=1"]])
    make_run(folder, 0, ["a=1"])
    moved = folder.rename(tmp_path / "moved")
    monkeypatch.setattr("sys.argv", ["wp1.report", str(moved)])
    report.main()
    assert capsys.readouterr().out == f"{moved / 'comparison.md'}\n"
    assert table_of(moved)["status"].to_list() == ["completed"]


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WP1Error, match=r"sweep\.json"):
        write_comparison(tmp_path)
