"""The page of a run with two arms, from its folder alone."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.analysis.synthetic import RUN_ID, Shape, make_run
from wp1.analysis import report
from wp1.analysis.base import metrics, style
from wp1.analysis.base.markdown import ms, with_interval
from wp1.core.run_folder import read_json
from wp1.runner.reports import make_report

pytestmark = pytest.mark.usefixtures("without_pixels")

SHAPES = {
    "e3": Shape(repeats=2, count=4, queue_factor=0.3),
    "decode_streams": Shape(repeats=1, count=6, first_token="decode", labels=("random weights", "shared GPU")),
    "one_cell": Shape(
        lengths=(256,), rates=(0,), repeats=1, count=2, slo={"name": "none", "ttft_ms": None, "tpot_ms": None}
    ),
    "all_failed": Shape(
        lengths=(256,), rates=(0.5,), repeats=1, count=2,
        fail={f"{arm}/256-rate0.5/r0/{n}" for arm in ("agg", "disagg") for n in range(2)},
    ),
    "both_aggregated": Shape(lengths=(256,), repeats=1, count=2, handoffs=False),
}  # fmt: skip


@pytest.mark.painted
@pytest.mark.parametrize("name", SHAPES)
def test_the_same_folder_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path, SHAPES[name])
    page = make_report(folder, tmp_path / "reports")
    made = [
        page, folder / "summary.json", folder / "e3_summary.json", folder / "artifacts" / "e3_mode_comparison.csv",
        *sorted((tmp_path / "reports" / RUN_ID).iterdir()),
    ]  # fmt: skip
    before = [file.read_bytes() for file in made]
    for file in made:
        file.unlink()
    make_report(folder, tmp_path / "reports")
    assert [file.read_bytes() for file in made] == before
    pictures = re.findall(r"\]\((\S+\.png)\)", page.read_text())
    assert sorted(pictures) == sorted(f"{RUN_ID}/{path.name}" for path in made[4:])


def test_a_plot_of_an_earlier_report_does_not_stay(tmp_path: Path) -> None:
    """As of a run that was cut short when one arm alone had answered."""
    folder = make_run(tmp_path, SHAPES["one_cell"])
    plots = tmp_path / "reports" / RUN_ID
    plots.mkdir(parents=True)
    (plots / "requests.png").write_bytes(b"old")
    make_report(folder, tmp_path / "reports")
    assert not (plots / "requests.png").exists()
    assert (plots / "phases.png").exists()


def test_what_the_page_of_two_arms_says(tmp_path: Path) -> None:
    folder = make_run(tmp_path, SHAPES["e3"])
    text = make_report(folder, tmp_path / "reports").read_text()
    compared = json.loads((folder / "e3_summary.json").read_text())
    assert compared["words"] in text
    assert "| means in ms | TTFT agg | TTFT disagg | TTFT Δ | TPOT agg | TPOT disagg | TPOT Δ | E2E agg |" in text
    [means] = [line for line in text.splitlines() if line.startswith("| 1,024 tokens at 0.5 requests/s |")]
    figures = compared["cells"]["1024-rate0.5"]["ttft_ms/mean"]
    assert means.split("|")[2].strip() == ms(figures["agg"])
    assert ("**" in means.split("|")[4]) == bool(figures["excludes_zero"])
    for cell in ("256-conc1", "256-rate0.5", "1024-conc1", "1024-rate0.5"):
        assert f"**{cell}**" in text
        assert f"| disagg/{cell} | 8 |" in text
    assert "| TTFT mean, ms | 8 |" in text
    assert "agg on 2 devices, disagg on 2 devices" in text
    assert "| disagg: engine decode-0 | decode; cuda:1;" in text
    assert "**stall ratio**" in text
    assert "random tokens" not in text.replace("of random tokens", "")
    assert "shared GPU" not in text


def test_labels_are_explained_wherever_they_stand(tmp_path: Path) -> None:
    text = make_report(make_run(tmp_path, SHAPES["decode_streams"]), tmp_path / "reports").read_text()
    assert "> **random weights**: the output means nothing, speed and memory do." in text
    assert "> **shared GPU**: engines share a GPU" in text
    assert "\n- **shared GPU**: engines share a GPU" in text


def test_words_that_do_not_occur_are_not_explained(tmp_path: Path) -> None:
    text = make_report(make_run(tmp_path, SHAPES["both_aggregated"]), tmp_path / "reports").read_text()
    assert "## Side by side" in text
    assert "**stall ratio**" not in text
    assert "## KV transfer" not in text


@pytest.mark.painted
def test_one_arm_has_no_comparison(tmp_path: Path) -> None:
    folder = make_run(tmp_path, Shape(arms=("agg",), lengths=(256,), rates=(0,), repeats=1, count=2, handoffs=False))
    text = make_report(folder, tmp_path / "reports").read_text()
    assert "## Side by side" not in text
    assert "**goodput**" not in text
    assert not (folder / "e3_summary.json").exists()
    assert list((folder / "artifacts").iterdir()) == [folder / "artifacts" / "requests.csv"]


def test_the_files_of_a_comparison(tmp_path: Path) -> None:
    folder = make_run(tmp_path, SHAPES["decode_streams"])
    make_report(folder, tmp_path / "reports")
    compared = json.loads((folder / "e3_summary.json").read_text())
    assert compared["labels"] == ["random weights", "shared GPU"]
    assert list(compared["cells"]) == ["256-conc1", "256-rate0.5", "1024-conc1", "1024-rate0.5"]
    row = compared["cells"]["256-conc1"]["ttft_ms/mean"]
    assert row["delta"] == pytest.approx(row["disagg"] - row["agg"], abs=1e-3)
    assert compared["goodput"]["disagg"][0]["prompt"] == "256"
    assert compared["parity"]["same"] == compared["parity"]["compared"] == 24
    with (folder / "artifacts" / "e3_mode_comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 * len(list(metrics.shown_in("comparison")))
    assert list(lines[0])[:6] == ["cell", "metric", "unit", "n_agg", "n_disagg", "agg"]
    assert {line["labels"] for line in lines} == {"random weights, shared GPU"}
    handoff = next(line for line in lines if line["metric"] == "handoff_ms/mean")
    assert (handoff["agg"], handoff["delta"]) == ("", "")


@pytest.mark.painted
def test_an_arm_that_never_ran_leaves_a_report(tmp_path: Path) -> None:
    """The first arm's engines did not start, or the run was stopped before the second's turn."""
    folder = make_run(tmp_path, SHAPES["e3"])
    records = folder / "records.jsonl"
    records.write_text("".join(f"{line}\n" for line in records.read_text().splitlines() if '"arm": "agg"' in line))
    metadata = json.loads((folder / "run_metadata.json").read_text()) | {"status": "failed", "reason": "no engine"}
    (folder / "run_metadata.json").write_text(json.dumps(metadata))
    text = make_report(folder, tmp_path / "reports").read_text()
    assert "No cell could be compared." in text
    assert "disagg was sent no requests." in text and "Both arms were sent" not in text
    records.write_text("")
    assert "**Nothing was measured**" in make_report(folder, tmp_path / "reports").read_text()


def test_answers_are_shown_where_there_are_questions(tmp_path: Path) -> None:
    asked = make_report(make_run(tmp_path / "q", Shape(repeats=1, count=1, prompts="dataset")), tmp_path / "a")
    random = make_report(make_run(tmp_path / "r", Shape(repeats=1, count=1)), tmp_path / "b")
    assert "## Answers, first repeat of agg" in asked.read_text()
    assert "## Answers" not in random.read_text()


def test_what_a_token_keeps_is_said_with_windows_states_and_the_engines_word() -> None:
    cache: dict[str, Any] = {"token_bytes": 4096, "heads": 8, "windows": [[512, 1024]], "state_bytes": 77}
    model = {"kv_bytes_per_token": 4096, "kv_cache": cache}
    said = report._kv(model, [])
    assert said == (
        "4,096 bytes per token; 1,024 of these for the last 512 tokens only; "
        "plus a recurrent state of 77 bytes a request"
    )
    engines = [{"settings": {"kv_note": "the engine keeps more"}}, {"settings": {"kv_note": "the engine keeps more"}}]
    assert report._kv({"kv_bytes_per_token": 9}, [{"engines": engines}]) == "9 bytes per token; the engine keeps more"
    unknown = {"kv_bytes_per_token": None, "kv_cache": None, "why_no_kv_cache": "no model_type"}
    assert report._kv(unknown, []) == "unknown: no model_type"


def _cells_of(page: str, begin: str) -> list[dict[str, str]]:
    """The rows of every table whose header begins so, by its columns."""
    rows: list[dict[str, str]] = []
    header: list[str] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            header = []
        elif line.startswith(begin):
            header = cells
        elif header and not line.startswith("| ---"):
            rows.append(dict(zip(header, cells, strict=True)))
    return rows


@pytest.mark.parametrize("repeats", [1, 3])
def test_one_mean_has_one_interval_on_the_whole_page(
    repeats: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an open loop with a steady state, too: all tables and plots are of the same requests."""
    import matplotlib.pyplot as plt

    drawn: dict[str, list[Any]] = {}
    monkeypatch.setattr(style, "save", lambda figure, path: (drawn.update({path.name: figure.axes}), path.touch()))
    shape = Shape(lengths=(256,), rates=(0, 2.0), repeats=repeats, count=40, noise=0.4)
    folder = make_run(tmp_path, shape)
    page = make_report(folder, tmp_path / "reports").read_text()
    latencies = [row for row in _cells_of(page, "|  | n | mean [95 %] |") if row[""] in ("TTFT", "TPOT")]
    summary = read_json(folder / "summary.json")
    by_load = {(row["arm"], row["cell"]): row for row in summary["by_load"]["rows"]}
    of_cell = summary["profiling"]["latency"]["cells"]
    assert all(of_cell[f"{arm}/256-rate2"]["ttft_ms"]["n"] < 40 * repeats for arm in ("agg", "disagg"))
    printed = []
    for name, found in of_cell.items():
        row = by_load[tuple(name.split("/"))]
        for key in ("ttft_ms", "tpot_ms"):
            bounds = tuple(found[key][part] for part in ("mean", "mean_low", "mean_high"))
            assert bounds == tuple(row[key][part] for part in ("value", "low", "high"))
            printed.append(with_interval(row[key], ms))
    assert [row["mean [95 %]"] for row in latencies] == printed
    # A row of panels a load, TTFT and TPOT; in each a line with bars for each arm.
    for axes, cell, key in zip(
        drawn["latency_by_length.png"], ("256-conc1",) * 2 + ("256-rate2",) * 2, ("ttft_ms", "tpot_ms") * 2, strict=True
    ):
        for bars, arm in zip(axes.containers, ("agg", "disagg"), strict=True):
            [segment] = bars.lines[2][0].get_segments()
            found = of_cell[f"{arm}/{cell}"][key]
            assert segment[:, 1].tolist() == pytest.approx([found["mean_low"], found["mean_high"]])
    plt.close("all")


def test_the_table_by_load_prints_what_the_latency_table_does(tmp_path: Path) -> None:
    shape = Shape(arms=("agg",), lengths=(256, 1024), rates=(0, 2.0), repeats=3, count=40, handoffs=False, noise=0.4)
    page = make_report(make_run(tmp_path, shape), tmp_path / "reports").read_text()
    of_cell = [row["mean [95 %]"] for row in _cells_of(page, "|  | n | mean [95 %] |") if row[""] == "TTFT"]
    assert [row["TTFT"] for row in _cells_of(page, "| prompt tokens | load | n | TTFT |")] == of_cell
    assert all("[" in figure for figure in of_cell) and len(of_cell) == 4
