"""JSON traces: the format and the block size follow from fields, times and hash ids, or the key is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.workload.traces import MOONCAKE, read, shared, token_ids_of
from wp1.core.errors import ConfigError
from wp1.workload import trace

BAILIAN = [
    {"chat_id": n, "parent_chat_id": -1, "timestamp": 3.0 * n, "input_length": 300, "output_length": 8, "type": "text",
     "turn": 1, "hash_ids": [*range(1, 11), *range(1000 * n, 1000 * n + 9)]}
    for n in range(4)
]  # fmt: skip


def test_bailian_s_blocks_have_16_tokens_and_its_times_are_in_seconds(tmp_path: Path) -> None:
    recorded = read(tmp_path, BAILIAN)
    assert recorded.words() == (
        "trace t.jsonl in Qwen-Bailian's format (workload.trace_format=bailian): 4 requests, times in s, hash blocks "
        "of 16 tokens"
    )
    assert trace.offsets(recorded.rows, 1.0).tolist() == [0, 3, 6, 9]
    ids = token_ids_of(recorded.rows)
    assert {shared(a, b) for a in ids for b in ids if a is not b} == {160}
    # Scaled by a tenth, a block has 1.6 tokens, not 2: 10 blocks have 16 tokens.
    scaled = read(tmp_path, BAILIAN, trace_length_scale=0.1).rows
    ids = token_ids_of(scaled, scale=0.1)
    assert {shared(a, b) for a in ids for b in ids if a is not b} == {16}


def test_mooncake_s_blocks_have_512_tokens_and_its_times_are_in_milliseconds(tmp_path: Path) -> None:
    recorded = read(tmp_path, MOONCAKE)
    assert (recorded.format.name, recorded.block) == ("mooncake", 512)
    assert trace.offsets(recorded.rows, 1.0).tolist() == [0, 0.5, 2.0]


@pytest.mark.parametrize("block", [8, 32, 64, 128, 256, 1024])
def test_another_block_size_is_accepted_if_the_format_is_named(tmp_path: Path, block: int) -> None:
    rows = [
        {"timestamp": n, "input_length": length, "output_length": 1, "hash_ids": list(range(-(-length // block)))}
        for n, length in enumerate((3 * block + 5, 7 * block + 1, 2 * block))
    ]
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, rows)
    assert f"blocks of {block} tokens fit: set workload.trace_format=mooncake (times in ms)" in str(caught.value)
    for name, second in (("mooncake", 1000), ("bailian", 1)):
        recorded = read(tmp_path, rows, trace_format=name)
        assert (recorded.format.name, recorded.block) == (name, block)
        assert [row.time_s * second for row in recorded.rows] == [0, 1, 2]
    assert shared(*token_ids_of(recorded.rows[:2])) == 3 * block + 5
    names = {"timestamp": "time_s", "input_length": "prompt_len", "output_length": "output_len"}
    own = read(tmp_path, [{names.get(key, key): value for key, value in row.items()} for row in rows])
    assert (own.format.name, own.block) == ("wp1", block)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        # Blocks of 16 without chat_id: the times may be in milliseconds or seconds.
        ([{k: v for k, v in row.items() if "chat" not in k} for row in BAILIAN], "blocks of 16 tokens fit"),
        ([row | {"hash_ids": [1]} for row in BAILIAN], "1 hash_ids for 300 tokens"),
        ([row | {"hash_ids": list(range(n + 1))} for n, row in enumerate(BAILIAN)], "no block size fits all rows"),
        ([{"timestamp": 0.5, "input_length": 3, "output_length": 2}], "times with fractions, .* and no chat_id"),
        # The hash ids fit blocks of 512 tokens, but Mooncake's times have no fractions.
        ([{"timestamp": 0.5, "input_length": 9, "output_length": 2, "hash_ids": [1]}], "times with fractions, .*"),
        ([{"timestamp": 0.5, "input_length": 900, "output_length": 2, "hash_ids": [1, 2]}], "times with fractions, .*"),
        ([*MOONCAKE, *BAILIAN], r"t.jsonl:4 looks like Qwen-Bailian's format and .*t.jsonl:1 like Mooncake's"),
        ([MOONCAKE[0], {"time_s": 1, "prompt_len": 3, "output_len": 2}], "t.jsonl:2 looks like wp1's own format"),
        (
            [{"time_s": 1, "timestamp": 2}],
            'both "time_s" and "timestamp": set workload.trace_format=wp1 to use the first',
        ),
    ],
)
def test_an_ambiguous_or_mixed_file_is_refused(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, rows)
    assert "workload.trace_format" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_named_format_accepts_prompts_with_ids_for_their_beginning_only(tmp_path: Path) -> None:
    rows = [{"timestamp": n, "input_length": 5000, "output_length": 1, "hash_ids": [7]} for n in range(2)]
    recorded = read(tmp_path, rows, trace_format="mooncake")
    assert recorded.block == 512
    assert shared(*token_ids_of(recorded.rows)) == 512
    with pytest.raises(ConfigError, match=r"t\.jsonl:1 has 1 hash_ids for 5,000 tokens"):
        read(tmp_path, rows)


def test_a_json_array_is_a_trace_too(tmp_path: Path) -> None:
    recorded = read(tmp_path, json.dumps(MOONCAKE, indent=1), "t.json")
    assert [row.prompt_len for row in recorded.rows] == [1100, 600, 1300]
    lines = json.dumps(MOONCAKE, indent=1).splitlines()
    assert lines[recorded.rows[2].line - 1].strip() == "{"
