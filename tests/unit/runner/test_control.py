"""Control requests: which ones are sent again, and that they change nothing else in a run. With the engine double."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.conftest import Compose
from tests.double import TINY
from tests.records import read_records
from tests.unit.flows.test_pipeline import E3, RUN_ID
from wp1.analysis import completeness
from wp1.analysis.base import tables
from wp1.analysis.base.run_tables import RunTables
from wp1.config import checks
from wp1.core.errors import ConfigError
from wp1.core.run_folder import read_json
from wp1.runner.console import Screen
from wp1.runner.control import count_of
from wp1.runner.outcome import Outcome
from wp1.runner.run import run

GREEDY = "workload.temperature=0"


def _run(config: Compose, tmp_path: Path, *overrides: str) -> Outcome:
    with Screen() as screen:
        return run(config(*TINY, *overrides), tmp_path / "outputs" / RUN_ID, RUN_ID, screen)


def _lines(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (outcome.run_dir / "control.jsonl").read_text().splitlines()]


def test_the_first_requests_of_a_cell_are_asked_again_apart_from_all_figures(
    config: Compose, double: Any, tmp_path: Path
) -> None:
    outcome = _run(config, tmp_path, GREEDY, "scheduler=disagg", "experiment.control=4")
    assert (outcome.status, outcome.reason) == ("completed", None)
    asked = _lines(outcome)
    assert [line["request_id"].split("/")[2:] for line in asked] == [
        ["r0", name] for name in ("0-capital", "1-water", "2-planets", "3-primary")
    ]
    assert all(line["margins"] == [2.0] * 4 and not line["parted"] for line in asked)
    records = [record for record in read_records(outcome.run_dir / "records.jsonl") if not record.warmup]
    assert len(records) == 12
    assert max(record.t_end or 0 for record in records) < min(line["t_sent"] for line in asked)
    assert outcome.summary is not None
    assert outcome.summary["profiling"]["latency"]["overall"]["requests"] == 12
    assert outcome.summary["profiling"]["kv_transfer"]["overall"]["handoffs"] == 12
    completeness.check(RunTables(outcome.run_dir))
    (outcome.run_dir / "control.jsonl").unlink()
    assert "control.jsonl" in completeness.absent(RunTables(outcome.run_dir))


@pytest.mark.parametrize("overrides", [("workload.temperature=0.5",), (GREEDY, "experiment.control=0")])
def test_nothing_is_asked_again_of_sampled_answers(
    config: Compose, double: Any, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    outcome = _run(config, tmp_path, *overrides)
    assert outcome.status == "completed"
    assert not (outcome.run_dir / "control.jsonl").exists()
    assert "control.jsonl" not in completeness.absent(RunTables(outcome.run_dir))
    with pytest.raises(ConfigError, match=r"experiment\.control=3 has no effect with workload\.temperature"):
        checks.check_overrides(config("workload.temperature=0.5"), ["experiment.control=3"])


def test_how_many_are_asked_again(config: Compose) -> None:
    """Six if same_tokens is set, even if the load turns it off."""
    assert count_of(config(GREEDY)) == 6
    assert count_of(config(GREEDY, "workload=random")) == 6
    assert count_of(config(GREEDY, "experiment.same_tokens=false")) == 0
    assert count_of(config(GREEDY, "experiment.same_tokens=false", "experiment.control=3")) == 3
    assert count_of(config("experiment=e3")) == 2
    assert count_of(config("experiment=e2")) == 0
    assert count_of(config("workload.temperature=1")) == 0


def test_e3_asks_again_what_parted_and_says_whether_rounding_explains_it(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decode engine gives another first token of its own to the third request of every repeat."""
    generate = double.generate

    async def other(self: Any, request: Any, params: Any = None) -> Any:
        async for chunk in generate(self, request, params):
            if (params or {}).get("do_remote_prefill") and request.seed % 3 == 0:
                chunk.token_ids = [token + 7 for token in chunk.token_ids]
            yield chunk

    monkeypatch.setattr(double, "generate", other)
    for margin, words in ((0.01, "which rounding explains"), (5.0, "further apart, which rounding does not explain")):
        double.margin = margin
        outcome = _run(config, tmp_path / str(margin), *E3, "experiment.control=1")
        assert outcome.status == "completed", outcome.reason
        parity = read_json(outcome.run_dir / "e3_summary.json")["parity"]
        parted = parity["compared"] - parity["same"]
        assert parted > 0
        asked = {line["request_id"]: line["parted"] for line in _lines(outcome)}
        # Both arms ask the first request of each cell; and each, what the other had answered otherwise before.
        cells = ("32-conc1", "32-rate200", "64-conc1", "64-rate200")
        assert {f"{arm}/{cell}/r0/0" for arm in ("agg", "disagg") for cell in cells} <= set(asked)
        by_reason = parity["parted"]
        assert by_reason["within" if margin < 1 else "beyond"] > 0
        assert sum(by_reason[key] for key in ("within", "beyond", "unknown")) == parted
        assert outcome.report is not None
        page = outcome.report.read_text()
        assert words in page
        assert ("**in " in page) == (margin > 1)
        assert "the same arm against itself: 4 of 4 (agg), 4 of 4 (disagg)" in page


def test_repeats_that_part_by_rounding_do_not_fail_a_run(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last token of one answer of the second repeat is another."""
    generate = double.generate

    async def other(self: Any, request: Any, params: Any = None) -> Any:
        async for chunk in generate(self, request, params):
            if request.request_id.endswith("/r1/2-planets") and chunk.finish_reason:
                chunk.token_ids = [0]
            yield chunk

    monkeypatch.setattr(double, "generate", other)
    double.margin = 0.0
    outcome = _run(config, tmp_path / "close", GREEDY)
    assert outcome.status == "completed", outcome.reason
    assert outcome.report is not None
    assert (
        "5 of 6 questions gave the same tokens in all 2 repeats; where they diverge, the two best tokens were within "
        in (outcome.report.read_text())
    )
    double.margin = 2.0
    apart = _run(config, tmp_path / "apart", GREEDY)
    assert apart.status == "failed" and "further apart, which rounding does not explain" in (apart.reason or "")
    unknown = _run(config, tmp_path / "unknown", GREEDY, "experiment.control=0")
    assert unknown.status == "failed" and "as no request was asked again" in (unknown.reason or "")


def test_the_control_of_long_prompts_ends_in_time(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wp1.runner.control.ENOUGH_S", 0.0)
    outcome = _run(config, tmp_path, GREEDY)
    assert outcome.status == "completed"
    assert len(_lines(outcome)) == 1


def test_lines_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "control.jsonl"
    assert tables.control(path).is_empty()
    path.write_text('{"request_id": "a/c/r0/0"}\n')
    with pytest.raises(ConfigError, match=r"control\.jsonl:1 is not a valid control record"):
        tables.control(path)
    assert isinstance(tables.CONTROL_SCHEMA["margins"], pl.List)
