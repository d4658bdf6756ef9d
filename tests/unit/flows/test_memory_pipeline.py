"""E5 from configuration to report, with an engine double whose memory notes have round figures."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.conftest import Compose
from tests.double import TINY
from tests.records import read_records
from wp1.analysis.base.run_tables import RunTables
from wp1.config import checks
from wp1.core.errors import ConfigError
from wp1.core.run_folder import read_json
from wp1.runner import outcome
from wp1.runner import run as run_module
from wp1.runner.console import Screen
from wp1.runner.reports import make_report
from wp1.tracking.run import entry_of

RUN_ID = "run-20260101T000000Z-00000000"
MIB = 1 << 20


def _run(config: Compose, tmp_path: Path, *overrides: str) -> outcome.Outcome:
    cfg = config(*TINY, "experiment=e5", *overrides)
    checks.check(cfg)
    with Screen() as screen:
        return run_module.run(cfg, tmp_path / "outputs" / RUN_ID, RUN_ID, screen)


@pytest.mark.painted
def test_e5_leaves_table_plots_and_words(config: Compose, double: Any, tmp_path: Path) -> None:
    outcome = _run(config, tmp_path)
    assert (outcome.status, outcome.reason) == ("completed", None)
    # Lengths of 512, 1,024, 2,048 and what 4,096 leaves beside the output; the warm-up comes before any peak counts.
    moments = [moment for name, moment in double.noted if name == "decode-0"]
    assert moments == ["start", "served", "served", *["begin", "served", "end"] * 4]
    warm = [record for record in read_records(outcome.run_dir / "records.jsonl") if record.warmup]
    assert [(one.arm, one.cell) for one in warm] == [("agg", "512-conc1"), *[("disagg", "512-conc1")] * 2]
    table = pl.read_csv(outcome.run_dir / "artifacts" / "e5_memory.csv")
    assert table["prompt_len"].unique().sort().to_list() == [512, 1024, 2048, 4092]
    assert sorted(table["engine"].unique()) == ["agg-0", "decode-0", "prefill-0"]
    one = table.filter((pl.col("engine") == "agg-0") & (pl.col("prompt_len") == 512))
    parts = dict(one.select("part", "measured_bytes").iter_rows())
    assert parts["weights"] == 300 * MIB
    assert parts["runtime"] == 700 * MIB
    assert parts["buffers"] == 10 * MIB
    assert parts["activations"] == 30 * MIB
    # 1,042 MiB at the peak, the pool apart.
    assert parts["unexplained"] == 2 * MIB
    assert outcome.report is not None
    page = outcome.report.read_text()
    assert "## Where memory goes" in page
    assert "What disaggregation costs in memory" in page
    assert "does not fit:" in page
    pictures = re.findall(r"\]\((\S+/memory-\w+\.png)\)", page)
    assert len(pictures) == 2
    assert all((outcome.report.parent / picture).is_file() for picture in pictures)
    summary = read_json(outcome.run_dir / "summary.json")
    assert summary["profiling"]["memory"]["overall"]["agg/agg-0"]["weights_gib"] == pytest.approx(0.293, abs=1e-3)


SPEED = ("## What prompt length costs", "## disagg against agg", "## Side by side", "## KV transfer", "## Latency")


def test_one_request_a_length_is_no_measurement_of_speed(config: Compose, double: Any, tmp_path: Path) -> None:
    outcome = _run(config, tmp_path, "experiment.doubling_from=1024")
    assert outcome.report is not None and outcome.summary is not None
    page, folder = outcome.report.read_text(), outcome.report.parent / RUN_ID
    assert [chapter for chapter in SPEED if chapter in page] == []
    assert outcome.summary["by_length"] is outcome.summary["by_load"] is None
    assert sorted(plot.name for plot in folder.glob("*.png")) == ["device.png", "memory-agg.png", "memory-disagg.png"]
    header = "| prompt tokens | agg, TTFT ms | agg, E2E ms | disagg, TTFT ms | disagg, E2E ms |"
    lines = page[page.index(header) :].splitlines()[2:5]
    assert [line.split("|")[1].strip() for line in lines] == ["1,024", "2,048", "4,092"]
    assert all(float(cell) > 0 for line in lines for cell in line.strip("| ").split("|")[1:])
    # Making the page again leaves no plot of the earlier page next to it.
    (folder / "ttft_by_length.png").write_bytes(b"")
    make_report(outcome.run_dir, outcome.report.parent)
    assert not (folder / "ttft_by_length.png").exists()


def test_the_page_in_mlflow_opens_with_memory(config: Compose, double: Any, tmp_path: Path) -> None:
    outcome = _run(config, tmp_path)
    assert outcome.report is not None
    entry = entry_of(RunTables(outcome.run_dir), outcome.report.parent)
    _, *found, machine, _ = entry.description.split("\n\n")
    assert [paragraph.partition(",")[0] for paragraph in found] == ["**agg**", "**disagg**"]
    assert "TTFT" not in machine
    assert "memory/agg/agg-0/weights_gib" in entry.metrics
    assert not any(name.startswith("comparison/") for name in entry.metrics)


def test_several_requests_a_length_are(config: Compose, double: Any, tmp_path: Path) -> None:
    outcome = _run(config, tmp_path, "experiment.prompt_lens=[32,64,128]", "workload.num_requests=2")
    page = outcome.report.read_text()  # type: ignore[union-attr]
    assert [chapter for chapter in SPEED if chapter in page] == list(SPEED)
    assert "What the requests took" not in page


def test_without_memory_no_engine_is_asked(config: Compose, double: Any, tmp_path: Path) -> None:
    outcome = _run(config, tmp_path, "experiment.memory=false", "arms.agg.replicas=2", "experiment.prompt_lens=[64]")
    assert outcome.status == "completed"
    assert {moment for _, moment in double.noted} == {"served"}
    assert not (outcome.run_dir / "memory.jsonl").exists()
    assert "Where memory goes\n" not in outcome.report.read_text()  # type: ignore[union-attr]


def test_a_run_that_was_stopped_before_its_first_request_says_that_nothing_was_measured(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Any, *_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return generate(self, *_)

    generate = double.generate
    monkeypatch.setattr(double, "generate", stopped)
    outcome = _run(config, tmp_path)
    assert outcome.status == "interrupted"
    # The plots are made later, and the page again.
    pages = [outcome.report, make_report(outcome.run_dir, tmp_path / "reports")]
    for page in pages:
        text = page.read_text()  # type: ignore[union-attr]
        assert "**Nothing was measured**: the run ended before its first request did." in text
        assert not any(words in text for words in ("FAILED", "Both arms had", "## Checks", "## Latency", "## Side"))
    [check] = read_json(outcome.run_dir / "summary.json")["checks"]
    assert (check["name"], check["passed"]) == ("requests answered", False)


@pytest.mark.painted
def test_notes_are_kept_of_an_engine_that_dies(config: Compose, double: Any, tmp_path: Path) -> None:
    double.dies_at = 3
    outcome = _run(config, tmp_path)
    assert outcome.status == "failed"
    table = pl.read_csv(outcome.run_dir / "artifacts" / "e5_memory.csv")
    measured = table.filter((pl.col("part") == "weights") & (pl.col("arm") == "agg"))
    # The next length has a new engine, which dies of its second request after the warm-up as well.
    assert measured["prompt_len"].unique().sort().to_list() == [512, 2048]
    # Disagg's first warm-up round has one request for each of its engines, and nothing is measured.
    left_out = table.filter((pl.col("part") == "not measured") & pl.col("source").str.starts_with("agg"))
    assert left_out["prompt_len"].unique().sort().to_list() == [1024, 4092]
    assert all("died" in why for why in left_out["source"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["experiment.doubling_from=5000"],
            r"experiment\.doubling_from=5000 .*model\.max_len=4096 .*set it to 4,092 or less",
        ),
        (["model.max_len=100"], r"experiment\.doubling_from=512 .*model\.max_len=100 .*set it to 96 or less"),
        (["experiment.doubling_from=0"], r"experiment\.doubling_from=0 is too small"),
        (["workload.prompt_len=5"], r"workload\.prompt_len=null"),
    ],
)
def test_what_e5_cannot_do_is_refused(config: Compose, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checks.check(config(*TINY, "experiment=e5", *overrides))
