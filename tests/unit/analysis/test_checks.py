"""A run whose figures cannot be believed fails."""

from typing import Any

import polars as pl

from wp1.analysis import tables
from wp1.analysis.checks import all_checks


def _config(same_tokens: bool = True, cache: bool = False) -> dict[str, Any]:
    return {"experiment": {"same_tokens": same_tokens}, "backend": {"engine": {"enable_prefix_caching": cache}}}


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


def test_one_repeat_proves_nothing() -> None:
    assert not _verdicts(_config(), _requests((A0, [1], "ok", 0)))["same seed, same tokens"]


def test_a_cache_hit_with_the_cache_off() -> None:
    rows = _requests((A0, [1], "ok", 16))
    assert not _verdicts(_config(same_tokens=False), rows)["prefix cache"]
    assert _verdicts(_config(same_tokens=False, cache=True), rows)["prefix cache"]


def test_nothing_answered() -> None:
    assert not _verdicts(_config(same_tokens=False), _requests((A0, [], "error", 0)))["requests answered"]
    assert not _verdicts(_config(same_tokens=False), _requests())["requests answered"]
