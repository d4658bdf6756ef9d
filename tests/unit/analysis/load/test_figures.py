"""Loads side by side: throughput, KV use and preemptions of each cell, and words for what limits it."""

from typing import Any

import polars as pl
import pytest

from tests.unit.analysis.timed import metadata, table, together
from wp1.analysis.base import tables
from wp1.analysis.load.figures import by_load
from wp1.analysis.load.report import section

NONE = pl.DataFrame(schema=tables.STATS_SCHEMA)
SLO = {"ttft_ms": 500, "tpot_ms": None, "e2e_ms": None}


def _rows() -> pl.DataFrame:
    return table(
        [
            *together(1024, 1, 0.1, 0.01),
            *together(1024, 8, 0.1, 0.02, start=10_000),
        ]
    )


def _stats(*rows: dict[str, Any]) -> pl.DataFrame:
    base = {"arm": "agg", "engine": "agg-0", "kv_use": 0.5, "kv_use_peak": 0.6, "running": 1, "waiting": 0}
    base |= {"preemptions": 0, "steps": 1}
    return pl.DataFrame([base | row for row in rows], schema=tables.STATS_SCHEMA)


def test_throughput_is_per_device_and_attainment_over_all_sent() -> None:
    found = by_load(_rows(), NONE, metadata(engines=2), SLO)
    assert found is not None
    one, eight = found["rows"]
    # Nine tokens in 0.1 + 8 x 0.01 s, on two devices.
    assert one["output_tokens_per_s_per_device"]["value"] == pytest.approx(9 / 0.18 / 2, rel=1e-3)
    assert (one["sent"], eight["sent"], one["repeats"]) == (3, 24, 3)
    assert one["attainment"] == 1.0
    # Of eight whose prefills follow each other, the first five have their token within 500 ms.
    assert eight["attainment"] == pytest.approx(5 / 8)
    assert eight["tpot_ms"]["value"] == pytest.approx(20)
    assert (one["kv_use_peak"], one["preemptions"]) == (None, None)


def test_kv_use_is_of_the_cells_own_time() -> None:
    stats = _stats(
        {"t": 0.05, "kv_use": 0.1, "kv_use_peak": 0.2},
        {"t": 500.0, "kv_use_peak": 1.0, "preemptions": 9},  # nobody's
        {"t": 10_000.3, "kv_use": 0.9, "kv_use_peak": 0.99, "waiting": 3},
        {"t": 11_000.3, "kv_use": 0.7, "kv_use_peak": 0.8, "preemptions": 2},
    )
    found = by_load(_rows(), stats, metadata(), SLO)
    assert found is not None
    one, eight = found["rows"]
    assert (one["kv_use_mean"], one["kv_use_peak"], one["preemptions"]) == (0.1, 0.2, 0)
    assert (eight["kv_use_mean"], eight["kv_use_peak"]) == (0.8, 0.99)
    assert (eight["preemptions"], eight["waiting_peak"]) == (2, 3)
    assert "the KV cache is full: 2 preemptions of 24 requests" in eight["limited_by"]


def test_a_full_cache_is_one_for_which_requests_wait() -> None:
    for waiting, words in ((3, True), (0, False)):
        stats = _stats({"t": 10_000.3, "kv_use_peak": 0.93, "waiting": waiting})
        found = by_load(_rows(), stats, metadata(), SLO)
        assert found is not None
        assert ("the KV cache is full (93 %): requests wait for room" in found["rows"][1]["limited_by"]) == words


def test_a_single_load_is_no_comparison() -> None:
    assert by_load(table(together(1024, 1, 0.1, 0.01)), NONE, metadata(), SLO) is None


def test_the_section_names_what_limits_the_highest_load() -> None:
    page = section(by_load(_rows(), NONE, metadata(), SLO), {"name": "mine", **SLO})
    assert "SLO `mine`: TTFT ≤" in page
    assert "- **1,024 tokens**: compared with one at a time, 8 at a time gave" in page
    assert "2 times the TPOT (20.0 ms)" in page
    assert "| 1,024 | 8 at a time | 24 |" in page
    assert "62.5 % [" in page
