"""From notes to parts: a GPU with and without a figure of the process, engines that share one, and what fits."""

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wp1.analysis import capacity, memory, tables

MIB = 1 << 20
MODEL = {
    "kv_bytes_per_token": 1 << 10,
    "weight_bytes": 100 * MIB,
    "max_len": 4096,
    "shape": {"hidden": 64, "intermediate": 256, "kv_heads": 8, "element_bytes": 2},
}
SETTINGS = {"kv_blocks": 1024, "block_size": 16, "max_num_seqs": 8, "max_num_batched_tokens": 2048}
POOL = 16 * MIB
REQUESTS = tables.with_latencies(pl.DataFrame(schema=tables.RECORD_SCHEMA))


def _metadata(*engines: tuple[str, str, str], devices: list[str] | None = None) -> dict[str, Any]:
    """Of (arm, pool, engine), all on one device."""
    return {
        "model": MODEL,
        "pools": [
            {
                "arm": arm,
                "pool": pool,
                "engines": [{"name": name, "devices": devices or ["cuda:0"], "settings": SETTINGS}],
            }
            for arm, pool, name in engines
        ],
    }


def _gpu(arm: str, pool: str, engine: str, process: bool, together: int = 1) -> list[dict[str, Any]]:
    """The notes of an engine with 60 MiB of context, 10 of transfer, 100 of weights, 20 of graphs, 30 at most."""
    before, context = 500 * MIB, 60 * MIB
    torch_ = {"device": 0, "weights": 100, "profiled": 140, "kv_cache": 156, "ready": 180}
    stages: list[dict[str, Any]] = [{"stage": "imported", "process": None, "device": before}]
    for name, reserved in torch_.items():
        beside = context + (10 * MIB if name in ("kv_cache", "ready") else 0)
        total = reserved * MIB + beside
        stages.append(
            {
                "stage": name, "process": total if process else None, "device": before + total * together,
                "allocated": reserved * MIB, "reserved": reserved * MIB,
            }
        )  # fmt: skip
    end = 180 * MIB + context + 10 * MIB
    account = {
        "rank": 0, "process": end if process else None, "device": before + end * together, "reserved": 180 * MIB,
        "allocated": 119 * MIB, "weights": 100 * MIB, "kv": POOL, "graph_pools": 20 * MIB,
        "graph_pools_allocated": 0, "limit": 1000 * MIB,
    }  # fmt: skip
    # One token more than 64 blocks hold.
    after = account | {
        "steps": {"prefill": 1}, "step_peaks": {"prefill": 30 * MIB}, "blocks_a_request": 65, "blocks_at_once": 65,
    }  # fmt: skip
    known = {"arm": arm, "pool": pool, "engine": engine, "cell": None, "repeat": None}
    of_cell = known | {"cell": "1024-conc1", "repeat": 0}
    return [
        known | {"moment": "start", "note": {"rank": 0, "stages": stages, "kv_pool": POOL, "vllm": {}}},
        of_cell | {"moment": "begin", "note": account},
        of_cell | {"moment": "end", "note": after},
    ]


@pytest.mark.parametrize("process", [True, False])
def test_parts_on_a_gpu(process: bool) -> None:
    metadata = _metadata(("agg", "agg", "agg-0"))
    [row] = memory.rows_of(_gpu("agg", "agg", "agg-0", process), REQUESTS, metadata)
    assert row.parts == {
        "weights": 100 * MIB,
        "runtime": 60 * MIB,
        "buffers": 3 * MIB,
        "graphs": 20 * MIB,
        "transfer": 10 * MIB,
        "kv_in_use": 65 * (16 << 10),
        "kv_free": POOL - 65 * (16 << 10),
        "activations": 30 * MIB,
        "kept": 11 * MIB,
        "unexplained": 0,
    }
    assert row.reported == 250 * MIB
    assert row.adds_up
    assert row.calculated["kv_in_use"] == 1024 << 10
    assert row.calculated["kv_reserved"] == row.kv_pool
    assert row.calculated["activations"] == 1024 * (3 * 256 + 2 * 64) * 2


def test_engines_that_share_a_gpu_have_even_shares_of_what_is_beside_torch() -> None:
    metadata = _metadata(("disagg", "prefill", "prefill-0"), ("disagg", "decode", "decode-0"))
    of_both = [_gpu("disagg", pool, f"{pool}-0", False, 2) for pool in ("prefill", "decode")]
    notes = [note for moment in zip(*of_both, strict=True) for note in moment]
    rows = memory.rows_of(notes, REQUESTS, metadata)
    assert [row.engine for row in rows] == ["prefill-0", "decode-0"]
    for row in rows:
        assert row.parts["runtime"] == 70 * MIB  # the transfer's cannot be told from it
        assert row.reported == 250 * MIB
        assert "even share" in row.source


def test_what_grew_since_the_start_is_unexplained_and_said() -> None:
    notes = _gpu("agg", "agg", "agg-0", True)
    notes[-1]["note"]["process"] += 20 * MIB
    [row] = memory.rows_of(notes, REQUESTS, _metadata(("agg", "agg", "agg-0")))
    assert row.parts["unexplained"] == 20 * MIB
    assert not row.adds_up


def test_a_cell_without_its_second_note_is_no_row() -> None:
    assert memory.rows_of(_gpu("agg", "agg", "agg-0", True)[:2], REQUESTS, _metadata(("agg", "agg", "agg-0"))) == []


def test_a_length_that_was_left_out_or_failed_is_said() -> None:
    known = {name: [None] for name in tables.RECORD_SCHEMA}
    failed = known | {
        "arm": ["agg"], "cell": ["1024-conc1"], "warmup": [False], "status": ["timeout"], "error": ["too late"],
    }  # fmt: skip
    requests = tables.with_latencies(pl.DataFrame(failed, schema=tables.RECORD_SCHEMA))
    metadata = _metadata(("agg", "agg", "agg-0")) | {"skipped": [{"cell": "4096-conc1", "reason": "no room"}]}
    assert memory.rows_of(_gpu("agg", "agg", "agg-0", True), requests, metadata) == []
    left_out = memory.not_measured(metadata, requests)
    assert left_out == [(1024, "agg: too late"), (4096, "no room")]
    table = memory.long_table([], left_out)
    assert table.select("prompt_len", "part", "source").rows() == [
        (1024, "not measured", "agg: too late"),
        (4096, "not measured", "no room"),
    ]


def _pool(blocks: int, block_tokens: int, token_bytes: int) -> capacity.Pool:
    size = blocks * block_tokens * token_bytes
    return capacity.Pool("agg", "agg", "agg-0", size, blocks, block_tokens, token_bytes, 4096, None)


@given(st.integers(2, 5000), st.sampled_from([1, 16, 128]), st.integers(1, 1 << 20), st.integers(1, 20000))
def test_bytes_and_blocks_agree_to_a_block_a_request(blocks: int, block: int, token: int, length: int) -> None:
    pool = _pool(blocks, block, token)
    rows: Any = [type("R", (), {"prompt_len": length})]
    metadata = _metadata(("agg", "agg", "agg-0"))
    fits = capacity.fits_of([pool], rows, metadata, 1)
    assert [fit.tokens for fit in fits] == sorted({fit.tokens for fit in fits})
    for fit in fits:
        assert fit.by_blocks <= fit.predicted
        # A request's blocks hold it, and so many requests' blocks are there.
        assert fit.by_blocks * -(-fit.tokens // block) <= blocks - 1
        assert (fit.by_blocks == 0) == (fit.why is not None and fit.why.startswith("does not fit"))
    assert fits[-1].by_blocks == 0 or fits[-1].tokens > capacity.LONGEST
    assert pool.longest_by_blocks <= pool.longest_predicted


def test_what_is_left_by_the_parts_is_of_what_vllm_allows_itself() -> None:
    notes = _gpu("agg", "agg", "agg-0", True)
    notes[0]["note"]["vllm"] = {"requested_memory": 900 * MIB, "available_kv_cache_memory_bytes": POOL}
    metadata = _metadata(("agg", "agg", "agg-0"))
    [pool] = capacity.pools_of(memory.rows_of(notes, REQUESTS, metadata), metadata)
    assert pool.left == (900 - 100 - 60 - 3 - 20 - 10 - 30) * MIB


def test_the_price_of_a_second_pool() -> None:
    engines = [("agg", "agg", "agg-0"), ("disagg", "prefill", "prefill-0"), ("disagg", "decode", "decode-0")]
    metadata = _metadata(*engines)
    rows = memory.rows_of([note for engine in engines for note in _gpu(*engine, True)], REQUESTS, metadata)
    handoffs = tables.with_handoff_times(pl.DataFrame(schema=tables.HANDOFF_SCHEMA))
    price = capacity.price_of(rows, handoffs, metadata)
    assert price["extra"]["weights"] == 100 * MIB
    assert price["kv_twice"] == [{"prompt_len": 1024, "bytes": 65 * (16 << 10), "ms": None}]
    assert capacity.price_of([row for row in rows if row.arm == "agg"], handoffs, metadata) == {}
