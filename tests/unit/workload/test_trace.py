"""Recorded traffic is replayed as it was: times, lengths, and the shared prefixes that its hash ids show."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Compose
from tests.unit.workload.traces import MOONCAKE, load, token_ids_of, write
from wp1.config import checks
from wp1.core.errors import ConfigError
from wp1.core.plan import plan
from wp1.workload import prompts, trace
from wp1.workload.limits import TRACE_FORMATS
from wp1.workload.prompts import PromptData
from wp1.workload.trace_formats import FORMATS


def test_a_mooncake_trace_is_sent_in_the_order_of_its_times(tmp_path: Path) -> None:
    rows = load(write(tmp_path / "t.jsonl", MOONCAKE))
    assert [(row.line, row.prompt_len, row.output_len) for row in rows] == [(2, 1100, 10), (3, 600, 5), (1, 1300, 20)]
    assert trace.offsets(rows, 1.0).tolist() == [0.0, 0.5, 2.0]
    assert trace.offsets(rows, 2.0).tolist() == [0.0, 0.25, 1.0]


def test_only_equal_hash_ids_give_equal_tokens(tmp_path: Path) -> None:
    a, b, c = token_ids_of(load(write(tmp_path / "t.jsonl", MOONCAKE)))
    assert [len(ids) for ids in (a, b, c)] == [1100, 600, 1300]
    assert a[:1024] == c[:1024]
    assert a[1024:] != c[1024:1100]
    # The second has one id for its first 512 tokens; no other prompt shares the rest.
    for ids in (a, b, c):
        assert len({tuple(ids[n : n + 64]) for n in range(0, len(ids) - 64, 64)}) == (len(ids) - 1) // 64
        assert min(ids) >= trace.LOWEST_ID
        assert max(ids) < 49152


def test_a_partial_block_is_a_prefix_of_the_whole_one(tmp_path: Path) -> None:
    rows = [{"timestamp": 0, "input_length": n, "output_length": 1, "hash_ids": [7]} for n in (512, 100)]
    whole, cut = token_ids_of(load(write(tmp_path / "t.jsonl", rows)))
    assert cut == whole[:100]


def test_the_same_seed_gives_the_same_tokens_on_any_machine(tmp_path: Path) -> None:
    rows = load(write(tmp_path / "t.jsonl", MOONCAKE))
    assert hashlib.sha256(json.dumps(token_ids_of(rows)).encode()).hexdigest()[:16] == "7164c24ae539e186"
    assert token_ids_of(rows, seed=2) != token_ids_of(rows)


def test_scaled_lengths_keep_shared_prefixes(tmp_path: Path) -> None:
    rows = load(write(tmp_path / "t.jsonl", MOONCAKE), trace_length_scale=0.1)
    assert [(row.prompt_len, row.output_len) for row in rows] == [(110, 1), (60, 1), (130, 2)]
    a, _, c = token_ids_of(rows, scale=0.1)
    assert a[:102] == c[:102]
    assert a[:103] != c[:103]


def test_wp1_s_own_format_may_have_texts(tmp_path: Path) -> None:
    rows = [{"time_s": 0.5, "prompt": "Why?", "output_len": 3}, {"time_s": 0, "prompt_len": 9, "output_len": 2}]
    loaded = load(write(tmp_path / "own.jsonl", rows))
    assert [(row.prompt_len, row.output_len) for row in loaded] == [(9, 2), (4, 3)]
    assert bytes(token_ids_of(loaded)[1]) == b"Why?"


def test_num_requests_takes_the_first_rows_by_time(tmp_path: Path) -> None:
    assert [row.line for row in load(write(tmp_path / "t.jsonl", MOONCAKE), num_requests=2)] == [2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"t\.jsonl:1 is not JSON"),
        ("[1]", r"t\.jsonl:1 has no time"),
        ('{"timestamp": 1, "input_length": 3, "output_length": 2}\n{"a": 1}', r"t\.jsonl:2 has no time"),
        (
            '{"timestamp": -1, "input_length": 3, "output_length": 2}',
            r't\.jsonl:1 has "timestamp" -1: it must be a number',
        ),
        (
            '{"timestamp": 1, "input_length": 0, "output_length": 2}',
            r't\.jsonl:1 has "input_length" 0: it must be a number, 1 or more',
        ),
        ('{"timestamp": 1, "input_length": 3}', r't\.jsonl:1 has no "output_length"'),
        ('{"timestamp": 1, "input_length": 3, "output_length": 2, "hash_ids": ["x"]}', r"t\.jsonl:1 has \"hash_ids\""),
        ('{"time_s": 1, "prompt": " ", "output_len": 2}', r't\.jsonl:1 has a "prompt" that is not text'),
        ('{"time_s": true, "prompt_len": 3, "output_len": 2}', r't\.jsonl:1 has "time_s" True'),
        ('{"time_s": 1, "prompt_len": 4095, "output_len": 2}', r"t\.jsonl:1 has 4,095 prompt .* model\.max_len=4096"),
        ("\n", r"t\.jsonl has no requests"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_trace_format_is_checked(config: Compose, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", MOONCAKE)
    overrides = ("workload=trace", f"workload.trace_path={path}", "experiment.same_tokens=false")
    assert tuple(FORMATS) == TRACE_FORMATS
    checks.check(config(*overrides, "workload.trace_format=bailian"))
    with pytest.raises(ConfigError, match=r"workload\.trace_format=mooncak is not known: set .* auto or mooncake or"):
        checks.check(config(*overrides, "workload.trace_format=mooncak"))
    with pytest.raises(ConfigError, match=r"workload\.trace_format has no effect on random prompts"):
        checks.check(config("workload=random", "workload.trace_format=wp1"))


def test_a_trace_is_one_cell_and_repeats_share_no_tokens(config: Compose, tmp_path: Path) -> None:
    path = write(tmp_path / "my trace (1).jsonl", MOONCAKE)
    overrides = ("workload=trace", f"workload.trace_path='{path}'", "workload.trace_speed=2")
    cfg = config(*overrides, "experiment.same_tokens=false")
    checks.check(cfg)
    [cell] = plan(cfg)[0].cells
    assert cell.name == "my_trace_1_-speed2"
    data = PromptData(49152, prompts.as_token_ids, rows=load(path))
    first, second = (prompts.measured(cfg, cell, repeat, data) for repeat in (0, 1))
    assert [len(request.prompt) for request in first] == [1100, 600, 1300]
    assert [request.max_tokens for request in first] == [10, 5, 20]
    assert all(a.prompt[:50] != b.prompt[:50] for a, b in zip(first, second, strict=True))
    arrivals = prompts.arrivals(cfg, cell, 0, data)
    assert arrivals is not None
    np.testing.assert_allclose(arrivals.offsets, [0, 0.25, 1.0])
    warm = prompts.warmup_round(cfg, cell, 0, data, 1, 0)
    assert len(warm[0].prompt) == 1100
