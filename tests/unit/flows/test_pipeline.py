"""The whole pipeline from configuration to report, with the engine double as backend."""

import asyncio
import errno
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.conftest import Compose
from tests.double import TINY
from tests.records import read_records
from wp1.analysis.base import style
from wp1.core.errors import ConfigError
from wp1.core.jsonl import RecordWriter
from wp1.core.records import RequestRecord
from wp1.core.run_folder import read_json
from wp1.machine import hardware
from wp1.runner import outcome
from wp1.runner import run as run_module
from wp1.runner.console import Screen
from wp1.runner.prepare import prepare
from wp1.runner.reports import make_report

RUN_ID = "run-20260101T000000Z-00000000"


def _run(config: Compose, tmp_path: Path, *overrides: str) -> outcome.Outcome:
    cfg = config(*TINY, *overrides)
    with Screen() as screen:
        return run_module.run(cfg, tmp_path / "outputs" / RUN_ID, RUN_ID, screen)


@pytest.mark.painted
def test_e0_leaves_everything_a_run_leaves(config: Compose, double: Any, tmp_path: Path) -> None:
    outcome = _run(config, tmp_path)
    assert (outcome.status, outcome.reason) == ("completed", None)
    records = read_records(outcome.run_dir / "records.jsonl")
    assert len(records) == 13
    assert [record.warmup for record in records].count(True) == 1
    metadata = read_json(outcome.run_dir / "run_metadata.json")
    assert metadata["status"] == "completed"
    assert set(metadata["labels"]) - {"client late"} == {"random weights"}  # a busy machine makes wp1 late
    assert len(metadata["config_hash"]) == 64
    assert metadata["pools"][0]["engines"][0]["name"] == "agg-0"
    summary = read_json(outcome.run_dir / "summary.json")
    assert summary["profiling"]["latency"]["overall"]["ok"] == 12
    assert len(summary["profiling"]["latency"]["samples"]["ttft_ms"]) == 12
    assert [check["passed"] for check in summary["checks"]] == [True, True, True]
    assert OmegaConf.load(outcome.run_dir / "config.yaml").seed == 42
    assert outcome.report is not None
    page = outcome.report.read_text()
    assert "random weights" in page
    assert (outcome.run_dir / "artifacts" / "requests.csv").read_text().count("random weights") == 12
    for picture in re.findall(r"\]\((\S+\.png)\)", page):
        assert (outcome.report.parent / picture).is_file()
    assert double.started == double.stopped == ["agg-0"]


@pytest.mark.painted
def test_the_report_is_made_again_with_the_same_bytes(config: Compose, double: Any, tmp_path: Path) -> None:
    outcome = _run(config, tmp_path)
    assert outcome.report is not None
    reports = outcome.report.parent
    files = [outcome.report, outcome.run_dir / "summary.json", *sorted((reports / RUN_ID).iterdir())]
    before = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    make_report(outcome.run_dir, reports)
    assert [file.read_bytes() for file in files] == before
    assert len(files) >= 4


def test_other_tokens_from_the_same_seed_fail_the_run(config: Compose, double: Any, tmp_path: Path) -> None:
    double.drift = True
    outcome = _run(config, tmp_path)
    assert outcome.status == "failed"
    assert "same seed, same tokens: 0 of 6" in (outcome.reason or "")
    assert "**FAILED** | same seed" in outcome.report.read_text()  # type: ignore[union-attr]


def test_an_unexpected_cache_hit_fails_the_run(config: Compose, double: Any, tmp_path: Path) -> None:
    double.cached_tokens = 16
    assert "prefix cache" in (_run(config, tmp_path).reason or "")


@pytest.mark.painted
def test_an_engine_that_dies_fails_the_run_and_keeps_its_records(config: Compose, double: Any, tmp_path: Path) -> None:
    double.dies_at = 5
    outcome = _run(config, tmp_path)
    assert outcome.status == "failed"
    assert outcome.reason == "engine agg-0 died: killed by the test"
    records = [record for record in read_records(outcome.run_dir / "records.jsonl") if not record.warmup]
    assert [record.status for record in records] == ["ok"] * 3 + ["error"] * 9
    page = outcome.report.read_text()  # type: ignore[union-attr]
    assert "| engine died | prefill | 9 | engine agg-0 died" in page
    assert read_json(outcome.run_dir / "run_metadata.json")["status"] == "failed"
    assert double.stopped == ["agg-0"]


def test_an_engine_that_does_not_start_fails_the_run_with_a_report(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: Any) -> None:
        raise RuntimeError("no such device")

    monkeypatch.setattr(double, "__aenter__", refuse)
    outcome = _run(config, tmp_path)
    assert outcome.status == "failed"
    assert "no such device" in (outcome.reason or "")
    assert outcome.report is not None


def test_a_full_disk_is_one_clear_reason(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third record does not fit any more, with several requests in flight."""
    write, written = RecordWriter.write, []

    def full(self: RecordWriter, record: RequestRecord) -> None:
        written.append(record)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, record)

    monkeypatch.setattr(RecordWriter, "write", full)
    outcome = _run(config, tmp_path, "workload.concurrency=3")
    assert outcome.status == "failed"
    assert outcome.reason == f"{outcome.run_dir} could not be written: No space left on device"
    assert len(read_records(outcome.run_dir / "records.jsonl")) == 3
    assert double.stopped == ["agg-0"]


def test_a_run_that_is_stopped_leaves_a_page_at_once_and_its_plots_to_later(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = double.generate

    async def stopped(self: Any, request: Any, *words: Any) -> Any:
        if self.served == 8:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()  # it is in flight when the signal is seen, however late that is
        async for chunk in generate(self, request, *words):
            yield chunk

    folder = tmp_path / "outputs" / "reports" / RUN_ID
    folder.mkdir(parents=True)
    (folder / "old.png").touch()
    with monkeypatch.context() as while_stopped:
        while_stopped.setattr(double, "generate", stopped)
        while_stopped.setattr(style, "use", lambda: pytest.fail("plots are made while somebody waits"))
        outcome = _run(config, tmp_path)
    assert (outcome.status, outcome.reason) == ("interrupted", "stopped by a signal")
    assert outcome.summary is not None and outcome.report is not None
    assert outcome.summary["profiling"]["latency"]["overall"]["ok"] == 7
    page = outcome.report.read_text()
    assert f"**Without plots**, as the run was interrupted. `python -m wp1.report {outcome.run_dir}` adds them" in page
    assert ".png" not in page and not list(folder.iterdir())
    assert "plots" not in make_report(outcome.run_dir, folder.parent).read_text()
    assert (folder / "itl.png").is_file()


@pytest.mark.painted
def test_a_question_may_hold_anything(config: Compose, double: Any, tmp_path: Path) -> None:
    """Signs that markdown, formulas in plots or line-splitting could trip over."""
    path = tmp_path / "odd.jsonl"
    question = "Is $x_{$ or \\frac | bigger <b>than</b> \u2028 `this` 漢字 🙂?"
    path.write_text(json.dumps({"question": question}, ensure_ascii=False) + "\n", encoding="utf-8-sig")
    outcome = _run(config, tmp_path, "dataset=file", f"dataset.path={path}")
    assert outcome.status == "completed", outcome.reason
    assert read_records(outcome.run_dir / "records.jsonl")[1].label == question
    assert outcome.report is not None


@pytest.mark.parametrize("override", ["num_attention_heads=0", "hidden_size=null", "rope_scaling=3"])
def test_a_shape_that_is_none_is_refused(config: Compose, double: Any, tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError):
        _run(config, tmp_path, f"model.architecture.{override}", "model.architecture.head_dim=null")


def test_a_model_of_an_unknown_kind_has_a_run_and_reasons(config: Compose, double: Any, tmp_path: Path) -> None:
    kind = "model.architecture.model_type=llamoid"
    lengths = ("experiment=e1", "experiment.prompt_lens=[32,64]")
    outcome = _run(config, tmp_path, kind, *lengths)
    assert outcome.status == "completed", outcome.reason
    why = "wp1 does not know the layers of model_type 'llamoid'"
    metadata = json.loads((outcome.run_dir / "run_metadata.json").read_text())["model"]
    assert (metadata["kv_bytes_per_token"], metadata["weight_bytes"]) == (None, None)
    page = outcome.report.read_text()  # type: ignore[union-attr]
    assert f"unknown: {why}" in page
    assert f"No MFU and MBU: the formulas do not hold for this model: {why}." in page


def test_every_engine_is_warmed_up(config: Compose, double: Any, tmp_path: Path) -> None:
    for routing in ("round_robin", "least_loaded"):
        outcome = _run(config, tmp_path, "scheduler.replicas=3", f"scheduler.routing={routing}")
        records = read_records(outcome.run_dir / "records.jsonl")[-(3 + 12) :]
        warm = {record.prefill_engine for record in records if record.warmup}
        assert warm == {"agg-0", "agg-1", "agg-2"}


def test_random_prompts_under_load(config: Compose, double: Any, tmp_path: Path) -> None:
    overrides = ("workload=random", "workload.prompt_len=32", "workload.num_requests=8", "workload.concurrency=4")
    outcome = _run(config, tmp_path, *overrides, "experiment.same_tokens=false", "slo=interactive")
    assert outcome.status == "completed", outcome.reason
    assert outcome.summary is not None
    assert outcome.summary["profiling"]["latency"]["cells"]["agg/32-conc4"]["requests"] == 16
    assert outcome.summary["slo"]["attainment"] == 1.0
    assert "SLO `interactive`" in outcome.report.read_text()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("++collectors.x.y=5", r"unknown key collectors\.x: "),
        ("++collectors.device.hz=0", r"collectors\.device\.hz=0\S* is too small: set collectors\.device\.hz to 0\.001"),
        ("++collectors.device.hz=abc", r"'abc' of type 'str' could not be converted to Float; full_key: collectors\.d"),
        ("++collectors.device.hzz=5", r"unknown key collectors\.device\.hzz: did you mean collectors\.device\.hz\?"),
        ("++collectors.device._target_=os.getcwd", r"collectors\.device\._target_=os\.getcwd is not a collector"),
    ],
)
def test_collectors_that_cannot_be_made_are_refused(
    config: Compose, double: Any, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _run(config, tmp_path, override)


def test_a_prompt_that_does_not_fit_is_refused_before_any_engine(config: Compose, double: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'lighthouse'"):
        _run(config, tmp_path, "model.max_len=300")
    assert double.started == []
    assert not (tmp_path / "outputs" / RUN_ID / "records.jsonl").exists()


def test_replicas_all_serve(config: Compose, double: Any, tmp_path: Path) -> None:
    outcome = _run(config, tmp_path, "scheduler.replicas=2", "workload.concurrency=2")
    engines = {record.prefill_engine for record in read_records(outcome.run_dir / "records.jsonl")}
    assert engines == {"agg-0", "agg-1"}


@pytest.mark.painted
def test_a_run_that_was_killed_still_has_a_report(config: Compose, double: Any, tmp_path: Path) -> None:
    """The folder after kill -9: no end in the metadata, no summary, a torn last record of an incomplete repeat."""
    outcome = _run(config, tmp_path)
    (outcome.run_dir / "summary.json").unlink()
    done = (outcome.run_dir / "cells.jsonl").read_text().splitlines(keepends=True)
    (outcome.run_dir / "cells.jsonl").write_text("".join(done[:-1]))
    path = outcome.run_dir / "records.jsonl"
    path.write_text(path.read_text()[:-40])
    metadata = read_json(outcome.run_dir / "run_metadata.json") | {"status": "running", "ended": None}
    (outcome.run_dir / "run_metadata.json").write_text(json.dumps(metadata))
    page = make_report(outcome.run_dir, tmp_path / "reports").read_text()
    assert "**unfinished" in page
    assert "11 of 11 requests answered" in page


E3 = (
    "experiment=e3",
    "experiment.prompt_lens=[32,64]",
    "experiment.request_rates=[0,200]",
    "workload.num_requests=3",
    "workload.output_len=6",
)


@pytest.mark.painted
def test_e3_compares_both_arms(config: Compose, double: Any, tmp_path: Path) -> None:
    outcome = _run(config, tmp_path, *E3)
    assert (outcome.status, outcome.reason) == ("completed", None)
    records = [record for record in read_records(outcome.run_dir / "records.jsonl") if not record.warmup]
    assert len(records) == 2 * 4 * 3 * 3
    answers = {
        arm: {r.request_id.partition("/")[2]: r.token_ids for r in records if r.arm == arm} for arm in ("agg", "disagg")
    }
    assert answers["agg"] == answers["disagg"]
    handoffs = [json.loads(line) for line in (outcome.run_dir / "handoffs.jsonl").read_text().splitlines()]
    assert len([row for row in handoffs if not row["warmup"]]) == 36
    assert {row["status"] for row in handoffs} == {"ok"}
    assert (outcome.run_dir / "queues.jsonl").stat().st_size
    metadata = read_json(outcome.run_dir / "run_metadata.json")
    assert [(start["arm"], start["repeats"]) for start in metadata["starts"]] == [
        ("agg", [0]), ("disagg", [0, 1]), ("agg", [1, 2]), ("disagg", [2])
    ]  # fmt: skip
    assert [(pool["arm"], pool["pool"]) for pool in metadata["pools"]] == [
        ("agg", "agg"), ("disagg", "prefill"), ("disagg", "decode")
    ]  # fmt: skip
    assert metadata["transfer"]["name"] == "ipc"
    assert "this node" in metadata["transfer"]["why"]
    assert metadata["kv_held"] == []
    assert (outcome.run_dir / "e3_summary.json").exists()
    assert (outcome.run_dir / "artifacts" / "e3_mode_comparison.csv").exists()


def test_one_engine_is_compared_with_two_on_the_same_device(config: Compose, double: Any, tmp_path: Path) -> None:
    one_cell = ("experiment.prompt_lens=[32]", "experiment.request_rates=[0]", "experiment.repeats=1")
    outcome = _run(config, tmp_path, *E3, *one_cell, "arms.agg.replicas=1")
    assert (outcome.status, outcome.reason) == ("completed", None)
    metadata = read_json(outcome.run_dir / "run_metadata.json")
    assert [len(pool["engines"]) for pool in metadata["pools"]] == [1, 1, 1]
    page = outcome.report.read_text()  # type: ignore[union-attr]
    assert "agg on 1 device, disagg on 1 device" in page
    assert "Not on equal devices" not in page


def test_arms_on_unequal_devices_are_refused_before_any_engine(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = tuple(hardware.Gpu(n, "NVIDIA H100 80GB HBM3", 80 << 30) for n in range(2))
    monkeypatch.setattr(hardware, "gpus", lambda: cards)
    monkeypatch.setattr(hardware, "vllm_version", lambda: ("vllm", "0.26.0"))
    with pytest.raises(ConfigError, match="equal devices"):
        prepare(config(*TINY, "experiment=e3", "arms.agg.replicas=1"), tmp_path / "engine.log", lambda _: None)


def test_kv_that_is_not_given_back_fails_the_run(config: Compose, double: Any, tmp_path: Path) -> None:
    class Leaks(double):
        async def kv_free(self) -> bool:
            return self.name != "decode-0"

    Leaks.engines = double.engines
    monkey = pytest.MonkeyPatch()
    monkey.setattr("wp1.serving.vllm_backend.VLLMBackend", Leaks)
    monkey.setattr("wp1.runner.measure.KV_FREE_WITHIN_S", 0.1)
    outcome = _run(config, tmp_path, *E3, "experiment.repeats=1")
    monkey.undo()
    assert outcome.status == "failed"
    assert "disagg/decode-0" in (outcome.reason or "")


def test_a_run_without_handoffs_has_no_file_of_them(config: Compose, double: Any, tmp_path: Path) -> None:
    outcome = _run(config, tmp_path)
    assert not (outcome.run_dir / "handoffs.jsonl").exists()


# Without what takes time on a machine that is not a test's.
QUICK = ("experiment.measure_peaks=false", "experiment.goodput_budget_s=null", "experiment.arrivals_s=0.01")
PEAKS = {"device": "a test", "flops": 1e9, "bytes_per_s": 1e8, "kind": "measured", "source": "a test"}


@pytest.mark.painted
def test_e1_fits_a_curve_through_its_lengths(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wp1.machine.peaks.for_run", lambda *_: PEAKS)
    outcome = _run(config, tmp_path, "experiment=e1", "experiment.prompt_lens=[16,64,256]")
    assert (outcome.status, outcome.reason) == ("completed", None)
    assert outcome.summary is not None
    found = outcome.summary["by_length"]
    assert [row["prompt_len"] for row in found["rows"]] == [16, 64, 256]
    assert all(row["mfu"]["value"] > 0 and row["mbu"]["value"] > 0 for row in found["rows"])
    assert found["fits"]["agg"]["at"] == 256
    page = outcome.report.read_text()  # type: ignore[union-attr]
    assert "## What prompt length costs" in page
    assert "TTFT ≈" in page
    assert (outcome.report.parent / RUN_ID / "ttft_by_length.png").is_file()  # type: ignore[union-attr]
    assert (outcome.run_dir / "artifacts" / "e1_by_length.csv").read_text().count("random weights") == 3


@pytest.mark.painted
def test_e2_crosses_lengths_with_loads(config: Compose, double: Any, tmp_path: Path) -> None:
    lists = ("experiment.prompt_lens=[16,64]", "experiment.concurrencies=[1,6]", *QUICK)
    outcome = _run(config, tmp_path, "experiment=e2", *lists)
    assert (outcome.status, outcome.reason) == ("completed", None)
    assert outcome.summary is not None
    rows = outcome.summary["by_load"]["rows"]
    assert [row["cell"] for row in rows] == ["16-conc1", "16-conc6", "64-conc1", "64-conc6"]
    # As many requests as are to run at a time, though num_requests is less.
    assert [row["sent"] for row in rows] == [12, 18, 12, 18]
    assert rows[1]["batch"]["value"] > 2
    assert rows[0]["attainment"] == 1.0
    page = outcome.report.read_text()  # type: ignore[union-attr]
    assert "## What context and load cost" in page
    assert "No MFU and MBU: no peak is known" in page
    assert (outcome.report.parent / RUN_ID / "load.png").is_file()  # type: ignore[union-attr]


@pytest.mark.painted
def test_e2_at_rates(config: Compose, double: Any, tmp_path: Path) -> None:
    lists = ("experiment.prompt_lens=[16]", "experiment.request_rates=[50,200]", *QUICK)
    outcome = _run(config, tmp_path, "experiment=e2", *lists)
    assert (outcome.status, outcome.reason) == ("completed", None)
    assert outcome.summary is not None
    assert [row["cell"] for row in outcome.summary["by_load"]["rows"]] == ["16-rate50", "16-rate200"]
    # Goodput over what was tested.
    [found] = outcome.summary["goodput"]
    assert [(step["rate"], step["planned"]) for step in found["path"]] == [(50, True), (200, True)]
    assert "rates of the experiment, no search" in outcome.report.read_text()  # type: ignore[union-attr]


@pytest.mark.painted
def test_a_search_for_goodput_is_in_the_folder_and_the_report(config: Compose, double: Any, tmp_path: Path) -> None:
    lists = ("experiment.prompt_lens=[16]", "experiment.concurrencies=[1,2]", "experiment.measure_peaks=false")
    # Time enough for a few probes also on a busy machine; it ends sooner by how near it got.
    search = ("experiment.goodput_budget_s=30", "experiment.goodput_within=0.5", "experiment.arrivals_s=0.1")
    limits = ("slo.ttft_ms=30", "workload.num_requests=12")
    outcome = _run(config, tmp_path, "experiment=e2", *lists, *search, *limits)
    assert (outcome.status, outcome.reason) == ("completed", None)
    assert outcome.summary is not None
    [found] = outcome.summary["goodput"]
    assert len(found["path"]) >= 2
    assert found["ended"]
    assert found["goodput"] == found["goodput_per_device"]
    # Its probes are no cells of the experiment.
    assert [row["cell"] for row in outcome.summary["by_load"]["rows"]] == ["16-conc1", "16-conc2"]
    page = outcome.report.read_text()  # type: ignore[union-attr]
    assert "## Goodput" in page
    assert (outcome.report.parent / RUN_ID / "goodput.png").is_file()  # type: ignore[union-attr]
    assert (outcome.run_dir / "goodput.jsonl").read_text().count("\n") == len(found["path"]) + 1


@pytest.mark.painted
def test_a_trace_is_replayed_and_its_load_described(config: Compose, double: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 10 * n, "input_length": 600, "output_length": 3, "hash_ids": [0, n + 1]} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = ("workload=trace", f"workload.trace_path={path}", "experiment.same_tokens=false", "experiment.repeats=1")
    outcome = _run(config, tmp_path, *said)
    assert (outcome.status, outcome.reason) == ("completed", None)
    records = [r for r in read_records(outcome.run_dir / "records.jsonl") if not r.warmup]
    assert [r.prompt_tokens for r in records] == [600] * 60
    due = sorted(r.t_intended for r in records)
    assert due[-1] - due[0] == pytest.approx(0.59, abs=1e-4)
    assert (outcome.run_dir / "loop.jsonl").stat().st_size
    assert outcome.summary is not None
    cell = outcome.summary["profiling"]["load"]["cells"]["agg/trace-speed1"]
    assert cell["offered_per_s"] == pytest.approx(100, rel=0.01)
    assert cell["loop_lag_ms"]["n"] > 20
    page = outcome.report.read_text()  # type: ignore[union-attr]
    assert "steady state" in page
    assert "trace trace.jsonl in Mooncake's format" in page
    inputs = read_json(outcome.run_dir / "run_metadata.json")["inputs"]
    assert (inputs["trace"]["format"], inputs["trace"]["block_tokens"]) == ("mooncake", 512)
