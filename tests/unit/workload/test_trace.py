"""Recorded traffic comes again as it was: times, lengths, and the prefixes that its hash ids say were shared."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Compose
from wp1.config import checks
from wp1.config.schema import Workload
from wp1.core.errors import ConfigError
from wp1.core.plan import plan
from wp1.workload import prompts, trace, trace_files
from wp1.workload.limits import TRACE_FORMATS
from wp1.workload.prompts import Material

MOONCAKE = [
    {"timestamp": 3000, "input_length": 1300, "output_length": 20, "hash_ids": [1, 2, 9]},
    {"timestamp": 1000, "input_length": 1100, "output_length": 10, "hash_ids": [1, 2, 3]},
    {"timestamp": 1500, "input_length": 600, "output_length": 5, "hash_ids": [4]},
]


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _load(path: Path, max_len: int = 4096, **settings: Any) -> list[trace.Row]:
    return trace.load(Workload(trace_path=str(path), **settings), max_len, prompts.as_token_ids)


def _ids(rows: list[trace.Row], seed: int = 1, scale: float = 1.0) -> list[list[int]]:
    return [trace.token_ids(row, n, 49152, seed, scale).tolist() for n, row in enumerate(rows)]


def test_a_mooncake_trace_is_sent_in_its_order_at_its_times(tmp_path: Path) -> None:
    rows = _load(_write(tmp_path / "t.jsonl", MOONCAKE))
    assert [(row.line, row.prompt_len, row.output_len) for row in rows] == [(2, 1100, 10), (3, 600, 5), (1, 1300, 20)]
    assert trace.offsets(rows, 1.0).tolist() == [0.0, 0.5, 2.0]
    assert trace.offsets(rows, 2.0).tolist() == [0.0, 0.25, 1.0]


def test_equal_hash_ids_give_equal_tokens_and_nothing_else_does(tmp_path: Path) -> None:
    a, b, c = _ids(_load(_write(tmp_path / "t.jsonl", MOONCAKE)))
    assert [len(ids) for ids in (a, b, c)] == [1100, 600, 1300]
    assert a[:1024] == c[:1024]
    assert a[1024:] != c[1024:1100]
    # The second has one id for its first 512 tokens; the rest is its own.
    for ids in (a, b, c):
        assert len({tuple(ids[n : n + 64]) for n in range(0, len(ids) - 64, 64)}) == (len(ids) - 1) // 64
        assert min(ids) >= trace.LOWEST_ID
        assert max(ids) < 49152


def test_a_cut_block_is_the_beginning_of_the_whole_one(tmp_path: Path) -> None:
    rows = [{"timestamp": 0, "input_length": n, "output_length": 1, "hash_ids": [7]} for n in (512, 100)]
    whole, cut = _ids(_load(_write(tmp_path / "t.jsonl", rows)))
    assert cut == whole[:100]


def test_the_same_seed_gives_the_same_tokens_on_any_machine(tmp_path: Path) -> None:
    rows = _load(_write(tmp_path / "t.jsonl", MOONCAKE))
    assert hashlib.sha256(json.dumps(_ids(rows)).encode()).hexdigest()[:16] == "7164c24ae539e186"
    assert _ids(rows, seed=2) != _ids(rows)


def test_scaled_lengths_keep_what_is_shared(tmp_path: Path) -> None:
    rows = _load(_write(tmp_path / "t.jsonl", MOONCAKE), trace_length_scale=0.1)
    assert [(row.prompt_len, row.output_len) for row in rows] == [(110, 1), (60, 1), (130, 2)]
    a, _, c = _ids(rows, scale=0.1)
    assert a[:102] == c[:102]
    assert a[:103] != c[:103]


def test_a_trace_of_ones_own_may_have_texts(tmp_path: Path) -> None:
    rows = [{"time_s": 0.5, "prompt": "Why?", "output_len": 3}, {"time_s": 0, "prompt_len": 9, "output_len": 2}]
    loaded = _load(_write(tmp_path / "own.jsonl", rows))
    assert [(row.prompt_len, row.output_len) for row in loaded] == [(9, 2), (4, 3)]
    assert bytes(_ids(loaded)[1]) == b"Why?"


def test_the_first_so_many(tmp_path: Path) -> None:
    assert [row.line for row in _load(_write(tmp_path / "t.jsonl", MOONCAKE), num_requests=2)] == [2, 3]


def test_the_key_is_checked(config: Compose, tmp_path: Path) -> None:
    path = _write(tmp_path / "t.jsonl", MOONCAKE)
    said = ("workload=trace", f"workload.trace_path={path}", "experiment.same_tokens=false")
    assert tuple(trace_files.FORMATS) == TRACE_FORMATS
    checks.check(config(*said, "workload.trace_format=bailian"))
    with pytest.raises(ConfigError, match=r"workload\.trace_format=mooncak is not known: set .* auto or mooncake or"):
        checks.check(config(*said, "workload.trace_format=mooncak"))
    with pytest.raises(ConfigError, match=r"workload\.trace_format has no effect on random prompts"):
        checks.check(config("workload=random", "workload.trace_format=wp1"))


def test_a_trace_is_one_cell_and_no_two_repeats_share_tokens(config: Compose, tmp_path: Path) -> None:
    path = _write(tmp_path / "my trace (1).jsonl", MOONCAKE)
    said = ("workload=trace", f"workload.trace_path='{path}'", "workload.trace_speed=2")
    cfg = config(*said, "experiment.same_tokens=false")
    checks.check(cfg)
    [cell] = plan(cfg)[0].cells
    assert cell.name == "my_trace_1_-speed2"
    material = Material(49152, prompts.as_token_ids, rows=_load(path))
    first, second = (prompts.measured(cfg, cell, repeat, material) for repeat in (0, 1))
    assert [len(request.prompt) for request in first] == [1100, 600, 1300]
    assert [request.max_tokens for request in first] == [10, 5, 20]
    assert all(a.prompt[:50] != b.prompt[:50] for a, b in zip(first, second, strict=True))
    arrivals = prompts.arrivals(cfg, cell, 0, material)
    assert arrivals is not None
    np.testing.assert_allclose(arrivals.offsets, [0, 0.25, 1.0])
    warm = prompts.warmup_round(cfg, cell, 0, material, 1, 0)
    assert len(warm[0].prompt) == 1100
