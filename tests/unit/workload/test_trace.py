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
from wp1.workload import prompts, trace
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
    found = trace.read(Workload(trace_path=str(path), **settings))
    return trace.tokenized(found, max_len, prompts.as_token_ids).rows


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"t\.jsonl:1 is not JSON"),
        ("[1]", r"t\.jsonl:1 has no time"),
        ('{"timestamp": 1, "input_length": 3, "output_length": 2}\n{"a": 1}', r"t\.jsonl:2 has no time"),
        ('{"timestamp": -1, "input_length": 3, "output_length": 2}', r't\.jsonl:1 has no good "timestamp"'),
        ('{"timestamp": 1, "input_length": 0, "output_length": 2}', r't\.jsonl:1 has no good "input_length"'),
        ('{"timestamp": 1, "input_length": 3}', r't\.jsonl:1 has no good "output_length"'),
        ('{"timestamp": 1, "input_length": 3, "output_length": 2, "hash_ids": ["x"]}', r"t\.jsonl:1 has \"hash_ids\""),
        ('{"time_s": 1, "prompt": " ", "output_len": 2}', r't\.jsonl:1 has a "prompt" that is no text'),
        ('{"time_s": true, "prompt_len": 3, "output_len": 2}', r't\.jsonl:1 has no good "time_s"'),
        ('{"time_s": 1, "prompt_len": 4095, "output_len": 2}', r"t\.jsonl:1 has 4,095 prompt .* model\.max_len=4096"),
        ("\n", r"t\.jsonl has no requests"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        _load(path)


BAILIAN = [
    {"chat_id": n, "parent_chat_id": -1, "timestamp": 3.0 * n, "input_length": 300, "output_length": 8, "type": "text",
     "turn": 1, "hash_ids": [*range(1, 11), *range(1000 * n, 1000 * n + 9)]}
    for n in range(4)
]  # fmt: skip
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def _read(path: Path, text: str | list[dict[str, Any]], name: str = "t.jsonl", **settings: Any) -> trace.Trace:
    file = path / name
    file.write_text(text if isinstance(text, str) else "".join(json.dumps(row) + "\n" for row in text))
    return trace.read(Workload(trace_path=str(file), **settings))


def _shared(a: list[int], b: list[int]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_bailian_s_blocks_are_of_sixteen_tokens_and_its_times_in_seconds(tmp_path: Path) -> None:
    found = _read(tmp_path, BAILIAN)
    assert found.words() == (
        "trace t.jsonl in Qwen-Bailian's format (workload.trace_format=bailian): 4 requests, times in s, hash blocks "
        "of 16 tokens"
    )
    assert trace.offsets(found.rows, 1.0).tolist() == [0, 3, 6, 9]
    ids = _ids(found.rows)
    assert {_shared(a, b) for a in ids for b in ids if a is not b} == {160}
    # Scaled by a tenth, a block has 1.6 tokens and not 2: 10 blocks of 16.
    scaled = _read(tmp_path, BAILIAN, trace_length_scale=0.1).rows
    ids = _ids(scaled, scale=0.1)
    assert {_shared(a, b) for a in ids for b in ids if a is not b} == {16}


def test_mooncake_s_are_of_512_tokens_and_in_milliseconds(tmp_path: Path) -> None:
    found = _read(tmp_path, MOONCAKE)
    assert (found.format.name, found.block) == ("mooncake", 512)
    assert trace.offsets(found.rows, 1.0).tolist() == [0, 0.5, 2.0]


@pytest.mark.parametrize("block", [8, 32, 64, 128, 256, 1024])
def test_another_block_size_is_taken_where_the_format_is_said(tmp_path: Path, block: int) -> None:
    rows = [
        {"timestamp": n, "input_length": length, "output_length": 1, "hash_ids": list(range(-(-length // block)))}
        for n, length in enumerate((3 * block + 5, 7 * block + 1, 2 * block))
    ]
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, rows)
    assert f"blocks of {block} tokens fit: set workload.trace_format=mooncake (times in ms)" in str(caught.value)
    for name, second in (("mooncake", 1000), ("bailian", 1)):
        found = _read(tmp_path, rows, trace_format=name)
        assert (found.format.name, found.block) == (name, block)
        assert [row.time_s * second for row in found.rows] == [0, 1, 2]
    assert _shared(*_ids(found.rows[:2])) == 3 * block + 5
    names = {"timestamp": "time_s", "input_length": "prompt_len", "output_length": "output_len"}
    own = _read(tmp_path, [{names.get(key, key): value for key, value in row.items()} for row in rows])
    assert (own.format.name, own.block) == ("wp1", block)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        # Blocks of 16 without a conversation's id: milliseconds or seconds?
        ([{k: v for k, v in row.items() if "chat" not in k} for row in BAILIAN], "blocks of 16 tokens fit"),
        ([row | {"hash_ids": [1]} for row in BAILIAN], "1 hash_ids for 300 tokens"),
        ([row | {"hash_ids": list(range(n + 1))} for n, row in enumerate(BAILIAN)], "no block size fits all rows"),
        ([{"timestamp": 0.5, "input_length": 3, "output_length": 2}], "times with fractions, .* and no chat_id"),
        # One block of 512 tokens, or of 16, or a block of 512 at a time in seconds.
        ([{"timestamp": 0.5, "input_length": 9, "output_length": 2, "hash_ids": [1]}], "times with fractions, .*"),
        ([{"timestamp": 0.5, "input_length": 900, "output_length": 2, "hash_ids": [1, 2]}], "times with fractions, .*"),
        ([*MOONCAKE, *BAILIAN], r"t.jsonl:4 looks like Qwen-Bailian's format and .*t.jsonl:1 like Mooncake's"),
        ([MOONCAKE[0], {"time_s": 1, "prompt_len": 3, "output_len": 2}], "t.jsonl:2 looks like wp1's own format"),
        ([{"time_s": 1, "timestamp": 2}], 'both "time_s" and "timestamp": set workload.trace_format=wp1 for the first'),
    ],
)
def test_what_could_be_of_two_formats_is_refused_by_the_key(
    tmp_path: Path, rows: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        _read(tmp_path, rows)
    assert "workload.trace_format" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_format_that_is_said_takes_prompts_with_ids_for_their_beginning_only(tmp_path: Path) -> None:
    rows = [{"timestamp": n, "input_length": 5000, "output_length": 1, "hash_ids": [7]} for n in range(2)]
    found = _read(tmp_path, rows, trace_format="mooncake")
    assert found.block == 512
    assert _shared(*_ids(found.rows)) == 512
    with pytest.raises(ConfigError, match=r"t\.jsonl:1 has 1 hash_ids for 5,000 tokens"):
        _read(tmp_path, rows)


def test_an_array_is_a_trace_too(tmp_path: Path) -> None:
    found = _read(tmp_path, json.dumps(MOONCAKE, indent=1), "t.json")
    assert [row.prompt_len for row in found.rows] == [1100, 600, 1300]
    lines = json.dumps(MOONCAKE, indent=1).splitlines()
    assert lines[found.rows[2].line - 1].strip() == "{"


def test_azure_s_csv(tmp_path: Path) -> None:
    """2023 with seven decimals, 2024 with a time zone; in any order; what failed is left out."""
    text = (
        AZURE + "2023-11-16 18:15:47.6805900,374,44\n\n2023-11-16 18:15:46.6805900,396,109\n2023-11-16 18:16:00,5,0\n"
    )
    found = _read(tmp_path, text, "azure.csv")
    assert [(row.line, row.prompt_len, row.output_len) for row in found.rows] == [(4, 396, 109), (2, 374, 44)]
    assert trace.offsets(found.rows, 1.0).tolist() == pytest.approx([0, 1], abs=1e-5)
    assert found.words().endswith(
        "2 requests, times as date and time; 1 row with 0 tokens was left out (failed when recorded)"
    )
    text = AZURE + "2024-05-10 00:00:00.009930+00:00,374,44\r\n2024-05-10 01:00:01.009930+01:00,374,44\r\n"
    assert trace.offsets(_read(tmp_path, "\ufeff" + text, "a.csv").rows, 1.0).tolist() == pytest.approx(
        [0, 1], abs=1e-5
    )


def test_burstgpt_s_csv(tmp_path: Path) -> None:
    text = BURSTGPT + "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,0,0,0,API log\n118.5,GPT-4,417,276,693,API log\n"
    found = _read(tmp_path, text, "b.csv")
    assert (found.format.name, found.left_out, found.block) == ("burstgpt", 1, None)
    assert trace.offsets(found.rows, 1.0).tolist() == [0, 113.5]
    newer = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    [row] = _read(tmp_path, newer + "5,,3.2,ChatGPT,472,18,490,API log\n", "b.csv").rows
    assert (row.prompt_len, row.output_len) == (472, 18)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", r"t\.csv:1 has not the columns .*it has a, b"),
        (
            "Timestamp,Request tokens,Request tokens,Response tokens\n1,5,6,7\n",
            't.csv:1 has the column "Request tokens" twice',
        ),
        (AZURE + "yesterday,1,2\n", r't\.csv:2 has no good "TIMESTAMP": .*there is \'yesterday\''),
        (AZURE + "2023-13-40 18:15:46,1,2\n", r't\.csv:2 has no good "TIMESTAMP"'),
        (AZURE + "2023-11-16 18:15:46,1.5,2\n", r't\.csv:2 has no good "ContextTokens"'),
        (AZURE + "2023-11-16 18:15:46,1\n", r"t\.csv:2 has 2 values, and there are 3 columns"),
        (BURSTGPT + "-1,a,1,2,3,x\n", r't\.csv:2 has no good "Timestamp": seconds from 0 on'),
        (BURSTGPT + "nan,a,1,2,3,x\n", r't\.csv:2 has no good "Timestamp"'),
        (BURSTGPT + "1,a,-1,2,3,x\n", r't\.csv:2 has no good "Request tokens"'),
        (BURSTGPT + "1,a,0,0,0,x\n", r"t\.csv has no requests: all of its 1 rows have 0 tokens"),
        (BURSTGPT, r"t\.csv has no requests"),
        (BURSTGPT + f'1,"{"x" * 200_000}",1,2,3,x\n', r"t\.csv:\d is no CSV: field larger"),
    ],
)
def test_a_bad_csv_is_named_by_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        _read(tmp_path, text, "t.csv")


def test_a_format_that_the_file_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has not the columns of workload\.trace_format=azure"):
        _read(tmp_path, MOONCAKE, trace_format="azure")
    with pytest.raises(ConfigError, match=r"is a CSV, and workload\.trace_format=mooncake is JSON"):
        _read(tmp_path, AZURE + "2023-11-16 18:15:46,1,2\n", "t.csv", trace_format="mooncake")
    with pytest.raises(ConfigError, match='has no good "time_s"'):
        _read(tmp_path, MOONCAKE, trace_format="wp1")


def test_the_key_is_checked(config: Compose, tmp_path: Path) -> None:
    path = _write(tmp_path / "t.jsonl", MOONCAKE)
    said = ("workload=trace", f"workload.trace_path={path}", "experiment.same_tokens=false")
    assert tuple(trace.FORMATS) == TRACE_FORMATS
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
