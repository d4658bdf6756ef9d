"""From notes to parts: a GPU with and without a figure of the process, engines that share one, and what fits."""

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wp1.analysis.base import tables
from wp1.analysis.base.markdown import GIB
from wp1.analysis.base.markdown import MIB as MIB_
from wp1.analysis.memory import capacity, capacity_report
from wp1.analysis.memory import figures as memory_figures
from wp1.analysis.memory import report as memory_report

MIB = 1 << 20
MODEL = {
    "kv_bytes_per_token": 1 << 10,
    "weight_bytes": 100 * MIB,
    "max_len": 4096,
    "shape": {"hidden": 64, "intermediate": 256, "kv_heads": 8, "vocab": 81920, "element_bytes": 2},
}
SETTINGS = {"kv_blocks": 1024, "block_size": 16, "max_num_seqs": 8, "max_num_batched_tokens": 2048}
POOL = 16 * MIB
REQUESTS = tables.with_latencies(pl.DataFrame(schema=tables.RECORD_SCHEMA))


def _metadata(*engines: tuple[str, str, str], devices: dict[str, list[str]] | None = None) -> dict[str, Any]:
    """Of (arm, pool, engine), all on one device but those that `devices` has others of."""
    return {
        "model": MODEL,
        "pools": [
            {
                "arm": arm,
                "pool": pool,
                "engines": [{"name": name, "devices": (devices or {}).get(name, ["cuda:0"]), "settings": SETTINGS}],
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
    [row] = memory_figures.rows_of(_gpu("agg", "agg", "agg-0", process), REQUESTS, metadata)
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
    assert row.matrix == 10 * MIB and not row.copied


def test_engines_that_share_a_gpu_have_even_shares_of_what_is_beside_torch() -> None:
    metadata = _metadata(("disagg", "prefill", "prefill-0"), ("disagg", "decode", "decode-0"))
    of_both = [_gpu("disagg", pool, f"{pool}-0", False, 2) for pool in ("prefill", "decode")]
    notes = [note for moment in zip(*of_both, strict=True) for note in moment]
    rows = memory_figures.rows_of(notes, REQUESTS, metadata)
    assert [row.engine for row in rows] == ["prefill-0", "decode-0"]
    for row in rows:
        assert row.parts["runtime"] == 70 * MIB  # the transfer's cannot be told from it
        assert row.reported == 250 * MIB
        assert "even share" in row.source


def test_what_grew_since_the_start_is_unexplained_and_said() -> None:
    notes = _gpu("agg", "agg", "agg-0", True)
    notes[-1]["note"]["process"] += 20 * MIB
    [row] = memory_figures.rows_of(notes, REQUESTS, _metadata(("agg", "agg", "agg-0")))
    assert row.parts["unexplained"] == 20 * MIB
    assert not row.adds_up


def test_a_cell_without_its_second_note_is_no_row() -> None:
    assert (
        memory_figures.rows_of(_gpu("agg", "agg", "agg-0", True)[:2], REQUESTS, _metadata(("agg", "agg", "agg-0")))
        == []
    )


def test_a_length_that_was_left_out_or_failed_is_said() -> None:
    known = {name: [None] for name in tables.RECORD_SCHEMA}
    failed = known | {
        "arm": ["agg"], "cell": ["1024-conc1"], "warmup": [False], "status": ["timeout"], "error": ["too late"],
    }  # fmt: skip
    requests = tables.with_latencies(pl.DataFrame(failed, schema=tables.RECORD_SCHEMA))
    metadata = _metadata(("agg", "agg", "agg-0")) | {"skipped": [{"cell": "4096-conc1", "reason": "no room"}]}
    assert memory_figures.rows_of(_gpu("agg", "agg", "agg-0", True), requests, metadata) == []
    left_out = memory_figures.not_measured(metadata, requests)
    assert left_out == [(1024, "agg: too late"), (4096, "no room")]
    table = memory_figures.long_table([], left_out)
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


@pytest.mark.parametrize(("weights", "copied"), [(120, True), (124, True), (100, False), (110, False), (160, False)])
def test_weights_that_a_cpu_s_kernels_copied_are_told_where_that_is_it(weights: int, copied: bool) -> None:
    """100 MiB are calculated, 10 are the embedding's: two copies of that and no other surplus are explained."""
    host = memory_figures.Row(
        "agg", "agg", "agg-0", 0, "1024-conc1", 1024, "host", 400 * MIB, "resident memory", 1000 * MIB,
        {name: 0 for name, _ in memory_figures.PARTS} | {"weights": weights * MIB},
    )  # fmt: skip
    host.calculated, host.matrix = {"weights": 100 * MIB}, 10 * MIB
    text = memory_report._beside_calculated([host])
    assert ("2 × 10.0 MiB are for the matrices" in text) == copied
    assert (f"up to {weights - 100}.0 MiB more than calculated" in text) == copied
    host.kind = "gpu"
    assert "matrices" not in memory_report._beside_calculated([host])


@pytest.mark.parametrize(
    ("kind", "eager", "taken", "said"),
    [("host", True, 20, True), ("host", True, 10, False), ("host", False, 20, False), ("gpu", True, 20, False)],
)
def test_activations_beyond_the_calculated_are_explained_where_a_host_keeps_them(
    kind: str, eager: bool, taken: int, said: bool
) -> None:
    row = memory_figures.Row(
        "agg", "agg", "agg-0", 0, "1024-conc1", 1024, kind, 400 * MIB, "resident memory", 1000 * MIB,
        {name: 0 for name, _ in memory_figures.PARTS} | {"activations": taken * MIB}, {"activations": 10 * MIB},
        one_by_one=eager,
    )  # fmt: skip
    assert (memory_report.KEPT_WITHIN_STEP in memory_report._beside_calculated([row])) == said


def test_what_is_left_by_the_parts_is_of_what_vllm_allows_itself() -> None:
    notes = _gpu("agg", "agg", "agg-0", True)
    notes[0]["note"]["vllm"] = {"requested_memory": 900 * MIB, "available_kv_cache_memory_bytes": POOL}
    metadata = _metadata(("agg", "agg", "agg-0"))
    [pool] = capacity.pools_of(memory_figures.rows_of(notes, REQUESTS, metadata), metadata)
    left = 900 - 100 - 60 - 3 - 20 - 10 - 30
    assert pool.left == left * MIB
    for unit, row in ((MIB_, f"| 16.0 | {left:.1f} |"), (GIB, f"| 0.02 | {left / 1024:.2f} |")):
        text = capacity_report.fits([pool], [], unit)
        assert f"| KV pool, {unit[0]} | budget left for KV, {unit[0]} |" in text and row in text


ENGINES = [("agg", "agg", "agg-0"), ("disagg", "prefill", "prefill-0"), ("disagg", "decode", "decode-0")]
IN_USE = 65 * (16 << 10)


def _handoffs(*times: tuple[float, float, float], warmup: bool = False) -> pl.DataFrame:
    """Of (asked of the decode engine, prefill done, moved), seconds."""
    known = {"arm": "disagg", "cell": "1024-conc1", "warmup": warmup, "status": "ok"}
    rows = [
        known | {"t_decode_sent": asked, "t_prefill_done": done, "t_transfer_end": end} for asked, done, end in times
    ]
    return tables.with_handoff_times(pl.DataFrame(rows, schema=tables.HANDOFF_SCHEMA))


def _price(handoffs: pl.DataFrame, devices: dict[str, list[str]] | None = None) -> dict[str, Any]:
    metadata = _metadata(*ENGINES, devices=devices)
    rows = memory_figures.rows_of([note for engine in ENGINES for note in _gpu(*engine, True)], REQUESTS, metadata)
    return capacity.price_of(rows, handoffs, metadata)


def test_the_price_of_a_second_pool() -> None:
    price = _price(_handoffs())
    assert price["extra"]["weights"] == 100 * MIB
    nothing = dict.fromkeys(("decode_ms", "early_ms", "prefill_ms", "both_ms"))
    assert price["kv_held"] == [{"prompt_len": 1024, "bytes": IN_USE, **nothing}]
    assert "| 1,024 | 1.0 | — | — | — |" in capacity_report.price(price)
    metadata = _metadata(*ENGINES)
    alone = memory_figures.rows_of(_gpu(*ENGINES[0], True), REQUESTS, metadata)
    assert capacity.price_of(alone, _handoffs(), metadata) == {}


def _held(*times: tuple[float, float, float]) -> dict[str, Any]:
    [row] = _price(_handoffs(*times))["kv_held"]
    return {name: pytest.approx(value) for name, value in row.items() if name.endswith("_ms")}


def test_a_decode_pool_that_is_asked_early_holds_its_blocks_while_the_prompt_is_computed() -> None:
    held = {"decode_ms": 10_006, "early_ms": 10_000, "prefill_ms": 6, "both_ms": 6}
    assert _held((1.0, 11.0, 11.006)) == held
    text = capacity_report.price(_price(_handoffs((1.0, 11.0, 11.006))))
    assert "| 1,024 | 1.0 | 10,006 | 10,000 | 6.0 |" in text
    assert "For 10,000 ms of that time the prompt is still being computed" in text
    assert "Both pools hold all of the KV for 6.0 ms, on the same device," in text


def test_one_that_is_asked_afterwards_holds_them_from_then() -> None:
    """It waits 4 ms for a place, and 2 ms for its KV."""
    assert _held((11.004, 11.0, 11.006)) == {"decode_ms": 2, "early_ms": 0, "prefill_ms": 6, "both_ms": 2}
    text = capacity_report.price(_price(_handoffs((11.004, 11.0, 11.006))))
    assert "transfer.overlap" not in text
    assert "holds 1.0 MiB of KV for 6.0 ms after the prompt is computed" in text
    assert "Both pools hold all of it for 2.0 ms" in text


def test_times_are_means_over_measured_handoffs() -> None:
    both = pl.concat([_handoffs((1.0, 2.0, 2.5), (1.0, 3.0, 3.5)), _handoffs((1.0, 90.0, 99.0), warmup=True)])
    [row] = _price(both)["kv_held"]
    assert row["early_ms"] == pytest.approx(1500)


def test_pools_on_devices_of_their_own_share_nothing() -> None:
    devices = {"decode-0": ["cuda:1"]}
    metadata = _metadata(*ENGINES, devices=devices)
    rows = memory_figures.rows_of([note for engine in ENGINES for note in _gpu(*engine, False)], REQUESTS, metadata)
    # Each has its device to itself, so that nothing is shared out evenly.
    assert {row.source for row in rows} == {"NVML, device minus what was there before"}
    assert [row.reported for row in rows] == [250 * MIB] * 3
    assert "2 engines hold 500.0 MiB of 2 devices with 1,000.0 MiB each" in memory_report.words(rows, "disagg", 2)
    text = capacity_report.price(_price(_handoffs((1.0, 2.0, 2.5)), devices))
    assert "Engines: 2 on 2 devices (disagg) against 1 on 1 device (agg)" in text
    assert "Both pools hold all of the KV for 500 ms, each on its own device," in text
    assert "same device" not in text


def test_two_prefill_engines_of_two_ranks_are_a_row_a_length() -> None:
    """A request is in one engine; on each rank of it is a part."""
    engines = [*ENGINES, ("disagg", "prefill", "prefill-1")]
    devices = {"prefill-0": ["cuda:0", "cuda:1"], "prefill-1": ["cuda:2", "cuda:3"]}
    metadata = _metadata(*engines, devices=devices)
    notes = [note for engine in engines for note in _gpu(*engine, True)]
    second = [note | {"note": note["note"] | {"rank": 1}} for note in notes if note["engine"].startswith("prefill")]
    rows = memory_figures.rows_of(notes + second, REQUESTS, metadata)
    [row] = capacity.price_of(rows, _handoffs(), metadata)["kv_held"]
    assert row["bytes"] == 2 * IN_USE


def test_a_device_has_the_memory_that_cuda_counts_and_nvml_counts_more() -> None:
    rows = memory_figures.rows_of(_gpu(*ENGINES[0], True), REQUESTS, _metadata(ENGINES[0]))
    said = memory_report.words(rows, "agg", 1, 1.2)
    assert "of the device's 1,000.0 MiB (as seen by CUDA; NVML reports 1.2 GiB)" in said
    assert "NVML" not in memory_report.words(rows, "agg", 1)


@pytest.mark.parametrize("cache", [{"windows": [[4096, 512]], "state_bytes": 0}, {"windows": [], "state_bytes": 9}])
def test_windows_and_states_have_no_calculated_kv(cache: dict[str, Any]) -> None:
    """The engine frees and groups their blocks by rules of its own."""
    metadata = _metadata(("agg", "agg", "agg-0"))
    metadata["model"] = MODEL | {"kv_cache": {"token_bytes": 1 << 10, "heads": 8} | cache}
    [row] = memory_figures.rows_of(_gpu("agg", "agg", "agg-0", True), REQUESTS, metadata)
    assert not [name for name in row.calculated if name.startswith("kv_")]
    assert capacity.pools_of([row], metadata) == []
    assert "Not calculated" in capacity_report.fits([], [], GIB)


def test_the_engines_own_bytes_a_token_come_first() -> None:
    metadata = _metadata(("agg", "agg", "agg-0"))
    metadata["model"] = MODEL | {"kv_bytes_per_token": None, "weight_bytes": None, "shape": None}
    [engine] = metadata["pools"][0]["engines"]
    [row] = memory_figures.rows_of(_gpu("agg", "agg", "agg-0", True), REQUESTS, metadata)
    assert row.calculated == {}
    engine["settings"] = SETTINGS | {"kv_token_bytes": 512, "kv_state_bytes": 0}
    [row] = memory_figures.rows_of(_gpu("agg", "agg", "agg-0", True), REQUESTS, metadata)
    assert row.calculated["kv_in_use"] == 1024 * 512


def test_latent_attention_is_not_spread_over_gpus() -> None:
    cache = {"token_bytes": 1 << 10, "heads": 1, "windows": [], "state_bytes": 0}
    assert memory_figures.shards({"shape": MODEL["shape"], "kv_cache": cache}, 8) == 1
    assert memory_figures.shards({"shape": MODEL["shape"]}, 8) == 8


def test_activations_are_those_of_dense_layers_alone() -> None:
    metadata = _metadata(("agg", "agg", "agg-0"))
    for shape, calculated in (({"mlp_matrices": 2}, 1024 * (2 * 256 + 2 * 64) * 2), ({"unlike": "experts"}, None)):
        metadata["model"] = MODEL | {"shape": MODEL["shape"] | shape}  # type: ignore[operator]
        [row] = memory_figures.rows_of(_gpu("agg", "agg", "agg-0", True), REQUESTS, metadata)
        assert row.calculated.get("activations") == calculated
