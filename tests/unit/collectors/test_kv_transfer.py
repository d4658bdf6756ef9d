"""What moving KV cost, from the files of a run."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.unit.analysis.synthetic import BLOCK_BYTES, Shape, make_run
from wp1.analysis.base import tables
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.transfer.figures import figures
from wp1.collectors.kv_transfer import KVTransferStatsCollector

SMALL = {"lengths": (256,), "rates": (0,), "repeats": 2, "count": 4}


def _profile(folder: Path) -> dict[str, Any]:
    return KVTransferStatsCollector().profile(RunTables(folder), tables.requests(folder / "records.jsonl"))


def test_figures_of_a_cell_and_of_the_run(tmp_path: Path) -> None:
    profile = _profile(make_run(tmp_path, Shape(lengths=(256, 1024), rates=(0,), repeats=2, count=4)))
    assert list(profile["cells"]) == ["disagg/256-conc1", "disagg/1024-conc1"]
    cell = profile["cells"]["disagg/256-conc1"]
    assert (cell["handoffs"], cell["ok"], cell["failed"]) == (8, 8, 0)
    assert cell["bytes"] == cell["bytes_expected"] == 8 * 16 * BLOCK_BYTES
    transfer_ms = 16 * BLOCK_BYTES / 0.5e9 * 1e3
    assert cell["transfer_ms"]["p50"] == pytest.approx(transfer_ms, abs=2e-3)
    # One at a time, so that the union of intervals is their sum.
    assert cell["gb_per_s"] == pytest.approx(0.5, rel=1e-3)
    assert cell["handoff_ms"]["p95"] == pytest.approx(transfer_ms + 3, abs=2e-3)
    assert cell["decode_queue_ms"]["mean"] == pytest.approx(1, abs=2e-3)
    assert cell["queues"]["decoding"]["max"] == 1
    assert profile["overall"]["handoffs"] == 16
    assert profile["overall"]["bytes"] == sum(part["bytes"] for part in profile["cells"].values())


def test_the_stall_ratio_is_of_the_same_requests(tmp_path: Path) -> None:
    folder = make_run(tmp_path, Shape(**SMALL))
    requests = tables.requests(folder / "records.jsonl").filter(~pl.col("warmup") & (pl.col("arm") == "disagg"))
    expected = sum(requests["handoff_ms"]) / sum(requests["e2e_ms"])
    assert _profile(folder)["overall"]["stall_ratio"] == pytest.approx(expected, rel=1e-4)


def test_the_share_of_ttft_depends_on_who_streams_the_first_token(tmp_path: Path) -> None:
    at_once = _profile(make_run(tmp_path / "p", Shape(**SMALL)))["overall"]
    after = _profile(make_run(tmp_path / "d", Shape(**SMALL, first_token="decode")))["overall"]
    assert at_once["share_of_ttft"] == 0
    assert after["share_of_ttft"] == pytest.approx(15 / 300, rel=0.2)


def test_warm_ups_are_in_no_figure(tmp_path: Path) -> None:
    folder = make_run(tmp_path, Shape(**SMALL))
    assert tables.handoffs(folder / "handoffs.jsonl").height == 9
    assert _profile(folder)["overall"]["handoffs"] == 8


def test_a_run_without_handoffs_has_no_figures(tmp_path: Path) -> None:
    assert _profile(make_run(tmp_path, Shape(**SMALL, handoffs=False))) == {}


def test_failed_handoffs_are_counted_by_phase_and_have_no_times(tmp_path: Path) -> None:
    failed = {f"disagg/256-conc1/r0/{n}" for n in range(4)}
    overall = _profile(make_run(tmp_path, Shape(**SMALL, fail=failed)))["overall"]
    assert (overall["handoffs"], overall["failed"], overall["failed_by_phase"]) == (8, 4, {"handoff": 4})
    assert overall["transfer_ms"]["n"] == overall["handoff_ms"]["n"] == 4


def test_bytes_that_nobody_measured_stay_unknown(tmp_path: Path) -> None:
    overall = _profile(make_run(tmp_path, Shape(**SMALL, byte_factor=None)))["overall"]
    assert (overall["bytes"], overall["gb_per_s"], overall["bytes_unreported"]) == (None, None, 8)
    assert overall["bytes_expected"] == 8 * 16 * BLOCK_BYTES


def test_bytes_and_seconds_that_are_zero_are_in_no_rate(tmp_path: Path) -> None:
    silent = _profile(make_run(tmp_path / "silent", Shape(**SMALL, byte_factor=0.0, copy_gb_per_s=2.0)))["overall"]
    assert (silent["bytes"], silent["gb_per_s"], silent["copy_gb_per_s"]) == (0, None, None)
    folder = make_run(tmp_path / "mixed", Shape(**SMALL, copy_gb_per_s=2.0))
    requests, queues = tables.requests(folder / "records.jsonl"), tables.queues(folder / "queues.jsonl")
    rows = tables.handoffs(folder / "handoffs.jsonl").filter(~pl.col("warmup"))
    # A clock too coarse for half of them, which would double the rate.
    half = pl.int_range(pl.len()) % 2 == 0
    end, copy = pl.col("t_transfer_end"), pl.col("copy_ms")
    coarse = rows.with_columns(
        t_transfer_end=pl.when(half).then("t_transfer_begin").otherwise(end),
        copy_ms=pl.when(half).then(0.0).otherwise(copy),
    )
    found = figures(coarse, requests, queues)
    assert found["gb_per_s"] == pytest.approx(0.5, rel=1e-3)
    assert found["copy_gb_per_s"] == pytest.approx(2.0, rel=1e-2)


def test_what_was_kept_did_not_move(tmp_path: Path) -> None:
    folder = make_run(tmp_path, Shape(**SMALL))
    rows = tables.handoffs(folder / "handoffs.jsonl").filter(~pl.col("warmup")).with_columns(tokens_kept=pl.lit(192))
    requests, queues = tables.requests(folder / "records.jsonl"), tables.queues(folder / "queues.jsonl")
    assert figures(rows, requests, queues)["tokens"] == 8 * 64


def test_nothing_but_failures_gives_no_rate(tmp_path: Path) -> None:
    failed = {f"disagg/256-conc1/r{r}/{n}" for r in range(2) for n in range(4)}
    overall = _profile(make_run(tmp_path, Shape(**SMALL, fail=failed)))["overall"]
    assert (overall["gb_per_s"], overall["stall_ratio"], overall["share_of_ttft"]) == (None, None, None)


def test_queues_are_read_only_while_a_cell_is_measured() -> None:
    handoffs = tables.with_handoff_times(pl.DataFrame(schema=tables.HANDOFF_SCHEMA))
    request = {
        "request_id": "disagg/c/r0/0",
        "arm": "disagg",
        "cell": "c",
        "repeat": 0,
        "warmup": False,
        "status": "ok",
    }
    requests = tables.with_latencies(
        pl.DataFrame([request | {"t_sent": 1.0, "t_end": 2.0, "t_tokens": []}], schema=tables.RECORD_SCHEMA)
    )
    lengths = dict.fromkeys(tables.QUEUES, 0)
    queues = pl.DataFrame(
        [
            {"t": 0.5, "arm": "disagg", **lengths, "decoding": 9},
            {"t": 1.5, "arm": "disagg", **lengths, "decoding": 2},
            {"t": 1.6, "arm": "other", **lengths, "decoding": 7},
            {"t": 1.7, "arm": "disagg", **lengths, "decoding": 1},
        ],
        schema=tables.QUEUE_SCHEMA,
    )
    assert figures(handoffs, requests, queues)["queues"]["decoding"] == {"mean": 1.5, "max": 2}


def test_the_connectors_own_clock_counts_where_it_has_one(tmp_path: Path) -> None:
    without = _profile(make_run(tmp_path / "none", Shape(**SMALL)))["overall"]
    assert (without["copy_gb_per_s"], without["copy_ms"]["n"], without["runs"]) == (None, 0, None)
    own = _profile(make_run(tmp_path / "own", Shape(**SMALL, copy_gb_per_s=2.0)))["overall"]
    assert own["copy_gb_per_s"] == pytest.approx(2.0, rel=1e-2)
    assert own["copy_ms"]["p50"] == pytest.approx(own["transfer_ms"]["p50"] / 4, rel=1e-2)
    assert own["wait_ms"]["mean"] == pytest.approx(0.5)
    assert own["runs"] == 2
    assert own["blocks"] == 8 * 16


def test_a_transfer_that_overlaps_its_prefill_has_no_rate_but_of_its_copy(tmp_path: Path) -> None:
    """Its span is as long as the prefill: a rate over that would be the prefill's."""
    apart = _profile(make_run(tmp_path / "off", Shape(**SMALL, copy_gb_per_s=2.0)))["overall"]
    assert (apart["overlapped"], apart["gb_per_s"]) == (0, pytest.approx(0.5, rel=1e-3))
    early = _profile(make_run(tmp_path / "on", Shape(**SMALL, copy_gb_per_s=2.0, overlap=True)))["overall"]
    assert (early["overlapped"], early["gb_per_s"]) == (8, None)
    assert early["copy_gb_per_s"] == pytest.approx(2.0, rel=1e-2)
    assert early["transfer_ms"]["p50"] > 2 * apart["transfer_ms"]["p50"]
