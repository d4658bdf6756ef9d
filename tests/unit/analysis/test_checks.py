"""A run whose figures cannot be believed fails."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.unit.analysis.synthetic import Shape, make_run
from wp1.analysis.base import tables
from wp1.analysis.checks import all_checks
from wp1.core.run_folder import read_config


def _config(same_tokens: bool = True, cache: bool = False) -> dict[str, Any]:
    return {
        "experiment": {"same_tokens": same_tokens},
        "backend": {"engine": {"enable_prefix_caching": cache}},
        "workload": {"prompts": "dataset"},
    }


def _requests(*rows: tuple[str, list[int], str, int]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"request_id": i, "token_ids": ids, "status": status, "cached_tokens": cached, "warmup": False}
            for i, ids, status, cached in rows
        ],
        schema=tables.RECORD_SCHEMA,
    )


def _verdicts(config: dict[str, Any], requests: pl.DataFrame) -> dict[str, bool]:
    return {check["name"]: check["passed"] for check in all_checks(config, requests)}


A0, A1, B0 = "agg/c/r0/0-a", "agg/c/r1/0-a", "agg/c/r0/1-b"


def test_all_is_well() -> None:
    found = _verdicts(_config(), _requests((A0, [1, 2], "ok", 0), (A1, [1, 2], "ok", 0)))
    assert found == {"prefix cache": True, "requests answered": True, "same seed, same tokens": True}


def test_other_tokens_in_the_second_repeat() -> None:
    assert not _verdicts(_config(), _requests((A0, [1, 2], "ok", 0), (A1, [1, 3], "ok", 0)))["same seed, same tokens"]


def test_a_repeat_that_failed_proves_nothing() -> None:
    assert not _verdicts(_config(), _requests((A0, [1], "ok", 0), (A1, [1], "timeout", 0)))["same seed, same tokens"]


def test_a_question_asked_only_once_proves_nothing() -> None:
    rows = _requests((A0, [1], "ok", 0), (A1, [1], "ok", 0), (B0, [1], "ok", 0))
    assert not _verdicts(_config(), rows)["same seed, same tokens"]
    [check] = [check for check in all_checks(_config(), rows) if check["name"] == "same seed, same tokens"]
    assert check["detail"].endswith(
        "1 of 2 questions gave the same tokens in all 2 repeats; not answered in every repeat: 1"
    )


def test_one_repeat_proves_nothing() -> None:
    assert not _verdicts(_config(), _requests((A0, [1], "ok", 0)))["same seed, same tokens"]


@pytest.mark.parametrize(
    ("prompts", "share", "cached", "passes"),
    [
        ("random", 0.0, 0, True),
        ("random", 0.0, 16, False),
        ("random", 0.5, 48, True),
        ("random", 0.5, 64, False),
        ("trace", 0.0, 64, True),
        ("text", 0.0, 64, True),
    ],
)
def test_with_the_cache_on_only_what_is_shared_may_come_from_it(
    prompts: str, share: float, cached: int, passes: bool
) -> None:
    config = _config(same_tokens=False, cache=True) | {"workload": {"prompts": prompts, "shared_prefix": share}}
    rows = _requests((A0, [1], "ok", cached)).with_columns(prompt_tokens=pl.lit(100, dtype=pl.Int64))
    assert _verdicts(config, rows)["prefix cache"] is passes
    preempted = rows.with_columns(preemptions=pl.lit(1, dtype=pl.Int64))
    assert _verdicts(config, preempted)["prefix cache"]


def test_a_cache_hit_with_the_cache_off() -> None:
    rows = _requests((A0, [1], "ok", 16))
    assert not _verdicts(_config(same_tokens=False), rows)["prefix cache"]
    assert _verdicts(_config(same_tokens=False, cache=True), rows)["prefix cache"]


def test_nothing_answered() -> None:
    assert not _verdicts(_config(same_tokens=False), _requests((A0, [], "error", 0)))["requests answered"]
    assert not _verdicts(_config(same_tokens=False), _requests())["requests answered"]


def _checks_of(folder: Path) -> dict[str, dict[str, Any]]:
    found = all_checks(
        read_config(folder), tables.requests(folder / "records.jsonl"), tables.handoffs(folder / "handoffs.jsonl")
    )
    return {check["name"]: check for check in found}


def test_two_arms_in_good_order(tmp_path: Path) -> None:
    checks = _checks_of(make_run(tmp_path, Shape(repeats=1, count=4)))
    assert all(check["passed"] for check in checks.values())
    assert checks["KV handoffs"]["detail"] == "16 of 16 arrived"
    assert checks["KV bytes"]["detail"] == "16 of 16 handoffs moved the bytes expected, to the byte"
    assert checks["same tokens in both arms"]["detail"] == "16 of 16 requests gave the same tokens"


def test_a_failed_handoff_fails_its_cell_by_name(tmp_path: Path) -> None:
    checks = _checks_of(make_run(tmp_path, Shape(repeats=1, count=4, fail={"disagg/1024-rate0.5/r0/2"})))
    assert not checks["KV handoffs"]["passed"]
    assert checks["KV handoffs"]["detail"] == "15 of 16 arrived; failed: disagg/1024-rate0.5 (1)"
    assert checks["KV bytes"]["passed"]


def test_a_warm_up_that_failed_is_not_judged(tmp_path: Path) -> None:
    checks = _checks_of(make_run(tmp_path, Shape(repeats=1, count=4, fail={"disagg/256-conc1/r0/warm-up-0"})))
    assert checks["KV handoffs"]["passed"]


@pytest.mark.parametrize(
    ("factor", "passed", "words"),
    [
        (1.0, True, "2 of 2 handoffs"),
        (
            17 / 16,
            False,
            "wrong number of bytes: disagg/256-conc1 (2), such as 6,266,880 instead of 5,898,240",
        ),  # one block more
        (15 / 16, False, "0 of 2 handoffs"),
        (0.0, False, "wrong number of bytes"),  # a counter that was never moved
        (None, False, "not reported by the connector: disagg/256-conc1 (2)"),
    ],
)
def test_bytes_are_right_to_the_byte(tmp_path: Path, factor: float | None, passed: bool, words: str) -> None:
    shape = Shape(lengths=(256,), rates=(0,), repeats=1, count=2, byte_factor=factor)
    check = _checks_of(make_run(tmp_path, shape))["KV bytes"]
    assert check["passed"] is passed
    assert words in check["detail"]


@pytest.mark.parametrize(("blocks", "passed"), [(0, False), (1, True), (2, False)])
def test_a_prompt_of_one_block_moves_one_block(tmp_path: Path, blocks: int, passed: bool) -> None:
    shape = Shape(lengths=(10,), rates=(0,), repeats=1, count=2, byte_factor=blocks)
    assert _checks_of(make_run(tmp_path, shape))["KV bytes"]["passed"] is passed


@pytest.mark.parametrize(("size", "passed"), [(5_898_240, True), (0, False), (None, False)])
def test_where_nothing_is_expected_bytes_are_told_and_not_judged(
    tmp_path: Path, size: int | None, passed: bool
) -> None:
    folder = make_run(tmp_path, Shape(lengths=(256,), rates=(0,), repeats=1, count=2))
    unknown = tables.handoffs(folder / "handoffs.jsonl").with_columns(
        bytes=pl.lit(size, pl.Int64), bytes_expected=pl.lit(None, pl.Int64)
    )
    found = all_checks(read_config(folder), tables.requests(folder / "records.jsonl"), unknown)
    check = next(check for check in found if check["name"].startswith("KV bytes"))
    assert check["passed"] is passed
    assert ("reported but not judged" in check["name"]) is passed
    if passed:
        assert check["detail"] == "11,796,480 bytes in 2 handoffs; the expected number is unknown"


def test_what_the_decode_engine_had_whole_moves_nothing_and_is_right(tmp_path: Path) -> None:
    folder = make_run(tmp_path, Shape(lengths=(256,), rates=(0,), repeats=1, count=2))
    nothing = tables.handoffs(folder / "handoffs.jsonl").with_columns(bytes=pl.lit(0), bytes_expected=pl.lit(0))
    found = all_checks(read_config(folder), tables.requests(folder / "records.jsonl"), nothing)
    assert next(check for check in found if check["name"] == "KV bytes")["passed"]


def test_other_tokens_in_the_second_arm_are_reported_and_fail_nothing(tmp_path: Path) -> None:
    shape = Shape(lengths=(256,), rates=(0,), repeats=1, count=4, other_tokens={"disagg/256-conc1/r0/1"})
    check = _checks_of(make_run(tmp_path, shape))["same tokens in both arms, reported but not judged"]
    assert check["passed"]
    assert check["detail"] == (
        "3 of 4 requests gave the same tokens; the earliest divergence is at token 5 (256-conc1/r0/1)"
    )


def test_tokens_that_could_not_be_compared_fail(tmp_path: Path) -> None:
    shape = Shape(lengths=(256,), rates=(0,), repeats=1, count=1, fail={"agg/256-conc1/r0/0"})
    assert not _checks_of(make_run(tmp_path, shape))["same tokens in both arms"]["passed"]


def test_sampled_tokens_and_one_arm_are_not_compared(tmp_path: Path) -> None:
    folder = make_run(tmp_path, Shape(repeats=1, count=2))
    requests = tables.requests(folder / "records.jsonl")
    config = read_config(folder)
    sampled = config | {"workload": config["workload"] | {"temperature": 0.7}}
    for changed in (sampled, config | {"arms": {}}):
        assert not any("same tokens in both arms" in check["name"] for check in all_checks(changed, requests))


def test_kv_that_stays_in_an_engine_fails_and_names_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path, Shape(repeats=1, count=1))
    files = tables.requests(folder / "records.jsonl"), tables.handoffs(folder / "handoffs.jsonl")

    def freed(kv_held: list[str] | None) -> list[tuple[bool, str]]:
        found = all_checks(read_config(folder), *files, kv_held)
        return [(check["passed"], check["detail"]) for check in found if check["name"] == "KV blocks freed"]

    assert freed(["disagg/decode-0", "disagg/decode-0"]) == [(False, "still held by disagg/decode-0")]
    assert freed([]) == [(True, "no engine held any after its requests had ended")]
    assert freed(None) == []
