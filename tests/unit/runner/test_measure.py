"""Skipped cells, and engines that die between cells, with the engine double as backend."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Compose
from tests.double import TINY
from tests.records import read_records
from wp1.core.errors import ConfigError
from wp1.core.run_folder import read_json
from wp1.machine import hardware
from wp1.machine.hardware import GIB
from wp1.runner.console import Screen
from wp1.runner.outcome import Outcome
from wp1.runner.run import run
from wp1.serving import vllm_backend
from wp1.workload import arrivals, prompts

RUN_ID = "run-20260101T000000Z-00000000"
LENGTHS = (
    "workload=random",
    "workload.prompt_len=null",
    "experiment.prompt_lens=[32,64,128]",
    "workload.num_requests=4",
    "experiment.same_tokens=false",
    "experiment.repeats=1",
)


def _run(config: Compose, tmp_path: Path, *overrides: str) -> tuple[Outcome, dict[str, Any]]:
    with Screen() as screen:
        outcome = run(config(*TINY, *overrides), tmp_path / "outputs" / RUN_ID, RUN_ID, screen)
    return outcome, read_json(outcome.run_dir / "run_metadata.json")


def _measured(outcome: Outcome) -> dict[tuple[str, str], int]:
    """Answered requests by arm and cell."""
    counts: dict[tuple[str, str], int] = {}
    for record in read_records(outcome.run_dir / "records.jsonl"):
        if not record.warmup and record.status == "ok":
            counts[record.arm, record.cell] = counts.get((record.arm, record.cell), 0) + 1
    return counts


def test_an_engine_that_dies_in_a_cell_is_started_again_for_the_next(
    config: Compose, double: Any, tmp_path: Path
) -> None:
    """Each serves seven: a cell's warm-up and four requests, and of the next cell the warm-up and one."""
    double.dies_at = 8
    outcome, metadata = _run(config, tmp_path, *LENGTHS)
    assert outcome.status == "failed"
    assert outcome.reason == "engine agg-0 died: killed by the test"
    assert _measured(outcome) == {("agg", "32-conc1"): 4, ("agg", "64-conc1"): 1, ("agg", "128-conc1"): 4}
    assert len(metadata["starts"]) == 2
    assert double.started == double.stopped == ["agg-0", "agg-0"]


# At this rate the requests of a repeat are due within a quarter of an hour.
SLOWLY = ("workload=poisson", "workload.prompt_len=32", "workload.request_rate=0.01", "workload.num_requests=8")
DIED = "engine agg-0 died: killed by the test"


@pytest.mark.parametrize("dies_at", [1, 3])
@pytest.mark.parametrize("scheduler", [(), ("scheduler.replicas=2",)])
def test_an_open_loop_ends_when_an_engine_dies(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int, scheduler: tuple[str]
) -> None:
    """In its warm-up, or with its first request: nothing more is sent, to this engine or another."""
    monkeypatch.setattr(prompts, "schedule", lambda *_: arrivals.Schedule(np.arange(8) * 100.0))
    double.dies_at = dies_at
    begin = time.monotonic()
    outcome, metadata = _run(config, tmp_path, *SLOWLY, *scheduler, "workload.num_warmup=2", "workload.max_warmup=2")
    assert time.monotonic() - begin < 60
    assert (outcome.status, outcome.reason, metadata["reason"]) == ("failed", DIED, DIED)
    records = [record for record in read_records(outcome.run_dir / "records.jsonl") if not record.warmup]
    assert len(records) == 16
    assert {(record.status, record.cause, record.error) for record in records if record.status != "ok"} == {
        ("error", "engine_died", DIED)
    }
    assert sum(record.t_sent is not None for record in records) <= 1
    assert all(engine.served <= dies_at for engine in double.engines.values())


def test_a_disaggregated_cell_ends_when_one_of_several_engines_dies(
    config: Compose, double: Any, tmp_path: Path
) -> None:
    class Second(double):
        async def generate(self, *words: Any) -> Any:
            if self.name == "decode-1":
                self.kill()
            async for chunk in super().generate(*words):
                yield chunk

    pools = ("scheduler=disagg", "scheduler.decode=2", "workload.num_warmup=0", "experiment.repeats=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_backend, "VLLMBackend", Second)
        outcome, metadata = _run(config, tmp_path, *pools)
    assert outcome.status == "failed"
    assert metadata["reason"] == "engine decode-1 died: killed by the test"
    records = read_records(outcome.run_dir / "records.jsonl")
    assert len(records) == 12
    # Prompts go to the decode engines in turn.
    assert [record.status for record in records] == ["ok"] + ["error"] * 11
    assert all(record.phase == "queue" and record.t_sent is None for record in records[2:])


def test_a_cell_that_would_not_end_in_time_is_skipped_with_its_figure(
    config: Compose, double: Any, tmp_path: Path
) -> None:
    """Four requests of four tokens take 0.8 s; twice and four times as long prompts are taken to take 1.6 and 3.2."""
    double.gap_s = 0.05
    outcome, metadata = _run(config, tmp_path, *LENGTHS, "experiment.time_budget_s=1")
    assert (outcome.status, outcome.reason) == ("completed", None)
    assert _measured(outcome) == {("agg", "32-conc1"): 4}
    first, second = metadata["skipped"]
    assert (first["cell"], second["cell"]) == ("64-conc1", "128-conc1")
    assert second["predicted_s"] == pytest.approx(2 * first["predicted_s"], rel=0.1)
    assert "experiment.time_budget_s=1" in first["reason"]
    assert outcome.report is not None and outcome.summary is not None
    assert "## Skipped" in outcome.report.read_text()
    assert outcome.summary["skipped"] == metadata["skipped"]


def test_a_skipped_cell_is_skipped_in_every_arm_and_repeat(config: Compose, double: Any, tmp_path: Path) -> None:
    double.gap_s = 0.02
    e3 = (
        "experiment=e3",
        "experiment.prompt_lens=[32,256]",
        "experiment.request_rates=[0]",
        "experiment.repeats=2",
        "workload.num_requests=2",
        "workload.output_len=6",
    )
    outcome, metadata = _run(config, tmp_path, *e3, "experiment.time_budget_s=4")
    assert outcome.status == "completed", outcome.reason
    assert _measured(outcome) == {("agg", "32-conc1"): 4, ("disagg", "32-conc1"): 4}
    assert [one["cell"] for one in metadata["skipped"]] == ["256-conc1"]


def test_a_budget_that_suffices_skips_nothing(config: Compose, double: Any, tmp_path: Path) -> None:
    outcome, metadata = _run(config, tmp_path, *LENGTHS, "experiment.time_budget_s=600")
    assert len(_measured(outcome)) == 3
    assert metadata["skipped"] == []


LONG = (*LENGTHS, "experiment.prompt_lens=[32,3000]", "model.architecture.num_hidden_layers=4000")


def test_a_prompt_that_memory_has_no_room_for_is_skipped_with_its_figure(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(*TINY, *LONG)
    from wp1.model import models

    model = models.prepare(cfg)
    one, weights = model.kv_bytes_per_token or 0, model.weight_bytes or 0
    assert one * 1000 > GIB
    monkeypatch.setattr(hardware, "available_memory_bytes", lambda: weights + one * 1256)
    outcome, metadata = _run(config, tmp_path, *LONG)
    assert outcome.status == "completed", outcome.reason
    assert _measured(outcome) == {("agg", "32-conc1"): 4}
    (skipped,) = metadata["skipped"]
    assert (skipped["cell"], skipped["kind"], skipped["needed_bytes"]) == ("3000-conc1", "memory", one * 3004)
    assert "room for 1,000 tokens" in skipped["reason"]
    # The engines are for the longest that is measured.
    assert metadata["model"]["max_len"] == 36


def test_where_no_prompt_has_room_the_run_is_refused(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "available_memory_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match=r"model\.max_len"):
        _run(config, tmp_path, *LONG)
    assert double.started == []
