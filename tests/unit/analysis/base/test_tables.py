"""What follows from the timestamps of handed-over requests and of handoffs, worked out by hand."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from wp1.analysis.base import tables
from wp1.core.errors import ConfigError

AGGREGATED: dict[str, Any] = {
    "request_id": "agg/c/r0/0", "arm": "agg", "cell": "c", "repeat": 0, "warmup": False, "status": "ok",
    "output_tokens": 3, "t_intended": 10.0, "t_sent": 10.0, "t_scheduled": 10.2, "t_engine_first_token": 10.5,
    "t_tokens": [10.6, 10.8, 11.0], "t_end": 11.0,
}  # fmt: skip
# Its KV is usable at 10.9, the decode engine's first token is there at 11.0.
HANDED_OVER = AGGREGATED | {
    "t_decode_sent": 10.6, "t_decode_scheduled": 10.9, "t_decode_first_token": 11.0, "handoff_id": "h0",
    "t_tokens": [10.6, 11.1, 11.2], "t_end": 11.2,
}  # fmt: skip
FIRST_BY_DECODE = HANDED_OVER | {"t_tokens": [11.1, 11.2, 11.3], "t_end": 11.3}
HANDOFF: dict[str, Any] = {
    "handoff_id": "h0", "request_id": "disagg/c/r0/0", "arm": "disagg", "cell": "c", "repeat": 0, "warmup": False,
    "source": "prefill-0", "target": "decode-0", "transfer": "nixl_push", "status": "ok", "tokens": 32,
    "t_prefill_done": 10.5, "t_decode_sent": 10.6, "t_transfer_begin": 10.7, "t_transfer_end": 10.8,
    "t_decode_scheduled": 10.9, "t_decode_first_token": 11.0,
}  # fmt: skip


def _latencies(record: dict[str, Any]) -> dict[str, Any]:
    return tables.with_latencies(pl.DataFrame([record], schema=tables.RECORD_SCHEMA)).row(0, named=True)


def _handoff(**changes: Any) -> dict[str, Any]:
    return tables.with_handoff_times(pl.DataFrame([HANDOFF | changes], schema=tables.HANDOFF_SCHEMA)).row(0, named=True)


def test_an_aggregated_request_has_no_handoff_and_decodes_from_its_first_token_on() -> None:
    row = _latencies(AGGREGATED)
    assert row["handoff_ms"] is None
    assert not row["first_by_decode"]
    assert row["decode_step_ms"] == pytest.approx(300)
    assert row["decode_ms"] == pytest.approx(500)
    assert row["delivery_ms"] == pytest.approx(100)


def test_the_prefill_engine_streams_the_first_token() -> None:
    row = _latencies(HANDED_OVER)
    assert not row["first_by_decode"]
    assert row["ttft_ms"] == pytest.approx(600)
    assert row["handoff_ms"] == pytest.approx(400)
    assert row["decode_step_ms"] == pytest.approx(200)
    assert row["delivery_ms"] == pytest.approx(100)


def test_the_decode_engine_streams_the_first_token() -> None:
    row = _latencies(FIRST_BY_DECODE)
    assert row["first_by_decode"]
    assert row["ttft_ms"] == pytest.approx(1100)
    assert row["decode_step_ms"] == pytest.approx(200)
    assert row["delivery_ms"] == pytest.approx(100)
    assert row["ttft_ms"] == pytest.approx(sum(row[f"{p}_ms"] for p in ("queue", "prefill", "handoff", "decode_step")))


@pytest.mark.parametrize("record", [AGGREGATED, HANDED_OVER, FIRST_BY_DECODE])
def test_the_phases_add_up_to_the_whole(record: dict[str, Any]) -> None:
    row = _latencies(record)
    assert row["e2e_ms"] == pytest.approx(sum(row[f"{p}_ms"] or 0 for p in ("queue", "prefill", "handoff", "decode")))


@pytest.mark.parametrize("early", [0.0003, 0.0])
def test_kv_that_is_there_before_the_prefill_s_end_leaves_no_handoff(early: float) -> None:
    """The word leaves before the engine stamps the first token; phases are no less than nothing and add up."""
    row = _latencies(HANDED_OVER | {"t_decode_scheduled": HANDED_OVER["t_engine_first_token"] - early})
    assert row["handoff_ms"] == 0
    phases = ("queue", "prefill", "handoff", "decode")
    assert row["e2e_ms"] == pytest.approx(sum(row[f"{phase}_ms"] for phase in phases))
    at_once = _latencies(HANDED_OVER | {"t_decode_scheduled": HANDED_OVER["t_engine_first_token"]})
    assert row["decode_step_ms"] == pytest.approx(at_once["decode_step_ms"])


def test_a_request_of_one_token_has_no_step_of_decoding() -> None:
    assert _latencies(HANDED_OVER | {"output_tokens": 1, "t_tokens": [10.6]})["decode_step_ms"] is None


def test_a_handoff_whose_end_is_not_known_does_not_pass_for_decoding() -> None:
    row = _latencies(HANDED_OVER | {"t_decode_scheduled": None})
    assert (row["handoff_ms"], row["decode_step_ms"], row["decode_ms"]) == (None, None, None)


def test_the_times_of_a_handoff() -> None:
    row = _handoff()
    assert row["transfer_ms"] == pytest.approx(100)
    assert row["decode_queue_ms"] == pytest.approx(100)
    assert row["handoff_ms"] == pytest.approx(400)


def test_what_moves_beside_prefill_delays_nothing() -> None:
    overlapping = _handoff(t_transfer_begin=10.1)
    assert overlapping["transfer_ms"] == pytest.approx(700)
    assert overlapping["handoff_ms"] == pytest.approx(400)
    early = _handoff(t_transfer_begin=10.1, t_decode_scheduled=10.4)
    assert early["handoff_ms"] == 0


def test_a_handoff_that_failed_has_no_times_it_did_not_get_to() -> None:
    row = _handoff(status="failed", t_transfer_end=None, t_decode_scheduled=None)
    assert (row["transfer_ms"], row["handoff_ms"]) == (None, None)
    assert row["decode_queue_ms"] == pytest.approx(100)


def test_files_that_are_not_there_are_empty_tables(tmp_path: Path) -> None:
    assert tables.handoffs(tmp_path / "handoffs.jsonl").height == 0
    assert "handoff_ms" in tables.handoffs(tmp_path / "handoffs.jsonl").columns
    assert tables.queues(tmp_path / "queues.jsonl").schema == pl.Schema(tables.QUEUE_SCHEMA)
    assert "handoff_ms" in tables.requests(tmp_path / "records.jsonl").columns


def test_a_torn_last_line_is_left_out_and_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "handoffs.jsonl"
    path.write_text(json.dumps(HANDOFF) + "\n" + json.dumps(HANDOFF)[:50])
    assert tables.handoffs(path).height == 1
    for other in ("no handoff", '{"a": 1}', "5", json.dumps(HANDOFF | {"repeat": "x"})):
        path.write_text(json.dumps(HANDOFF) + f"\n\n{other}\n")
        with pytest.raises(ConfigError, match=r"handoffs\.jsonl:3 is not a valid handoff"):
            tables.handoffs(path)


def test_records_of_before_there_were_handoffs_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(AGGREGATED) + "\n")
    assert tables.requests(path)["handoff_id"].to_list() == [None]


def test_a_file_is_read_in_parts_and_bulk_is_left_out_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records.jsonl"
    rows = [AGGREGATED | {"request_id": f"agg/c/r0/{n}", "text": "é\n" * n, "token_ids": [n, 2, 3]} for n in range(50)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + '{"torn')
    whole = tables.requests(path)
    monkeypatch.setattr(tables, "PART_BYTES", 1000)
    in_parts = tables.requests(path)
    assert in_parts.height == 50
    assert in_parts.equals(whole)
    lean = tables.requests(path, tables.BULK)
    assert set(whole.columns) - set(lean.columns) == set(tables.BULK)
    assert lean.equals(whole.select(lean.columns))


def test_a_bad_line_far_into_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records.jsonl"
    monkeypatch.setattr(tables, "PART_BYTES", 500)
    for number in (1, 7, 20, 42):
        lines = [json.dumps(AGGREGATED)] * 42
        lines[number - 1] = json.dumps({"request_id": "agg/c/r0/0", "arm": "agg"})
        path.write_text("\n".join(lines) + "\n")
        with pytest.raises(ConfigError, match=rf"records\.jsonl:{number} is not a valid request record"):
            tables.requests(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "it is not JSON"),
        ("[1]", "it is not a JSON object"),
        (json.dumps(AGGREGATED | {"status": None}), "it has no status"),
        (json.dumps(AGGREGATED | {"nll": [1.0, float("nan")]}), "it has NaN or infinity, which is not JSON"),
        (json.dumps(AGGREGATED | {"t_intended": "soon"}), "a value has the wrong type or is out of range"),
    ],
)
def test_a_bad_line_is_refused_by_what_is_wrong_with_it(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f"{json.dumps(AGGREGATED)}\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        tables.requests(path)
    assert f"records.jsonl:2 is not a valid request record ({said}): restore" in str(caught.value)


def test_a_request_that_our_own_stop_cut_short_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    causes = ["timeout", "interrupted", None]
    rows = [AGGREGATED | {"request_id": f"agg/c/r0/{n}", "cause": cause} for n, cause in enumerate(causes)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tables.requests(path)["cause"].to_list() == ["timeout", None]


def test_a_line_that_is_there_twice_is_one_request(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(2 * (json.dumps(AGGREGATED) + "\n"))
    assert tables.requests(path).height == 1
    path.write_text(2 * (json.dumps(HANDOFF) + "\n"))
    assert tables.handoffs(path).height == 1
