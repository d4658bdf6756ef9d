"""What must hold for a run's figures to be believed. Each check that fails, fails the run."""

from typing import Any

import polars as pl


def all_checks(config: Any, requests: pl.DataFrame) -> list[dict[str, Any]]:
    """`name`, `passed` and `detail` of every check that applies, from the run's configuration and requests."""
    found = [_no_unexpected_cache_hits(config, requests), _some_answers(requests)]
    if config["experiment"]["same_tokens"]:
        found.append(_same_tokens(requests))
    return found


def _result(name: str, passed: bool, detail: str) -> dict[str, Any]:
    return {"name": name, "passed": passed, "detail": detail}


def _some_answers(requests: pl.DataFrame) -> dict[str, Any]:
    measured = requests.filter(~pl.col("warmup"))
    ok = measured.filter(pl.col("status") == "ok").height
    return _result("requests answered", ok > 0, f"{ok} of {measured.height} measured requests were answered")


def _no_unexpected_cache_hits(config: Any, requests: pl.DataFrame) -> dict[str, Any]:
    """With the prefix cache off every prompt must have been computed whole."""
    on = bool(config["backend"]["engine"].get("enable_prefix_caching", True))
    hits = int(requests["cached_tokens"].sum())
    if on:
        return _result("prefix cache", True, f"on by configuration; {hits} prompt tokens came from it")
    return _result("prefix cache", hits == 0, f"off; {hits} prompt tokens came from it")


def _same_tokens(requests: pl.DataFrame) -> dict[str, Any]:
    """The same question with the same seed gives the same tokens in every repeat."""
    measured = requests.filter(~pl.col("warmup"))
    # The repeat is the only part of a request's id that differs.
    keyed = measured.with_columns(question=pl.col("request_id").str.replace(r"/r\d+/", "/"))
    groups = keyed.group_by("question", maintain_order=True).agg(
        times=pl.len(), answered=(pl.col("status") == "ok").sum(), answers=pl.col("token_ids").n_unique()
    )
    repeats = groups["times"].max() or 0
    same = groups.filter(
        (pl.col("answers") == 1) & (pl.col("answered") == repeats) & (pl.col("times") == repeats)
    ).height
    total = groups.height
    return _result(
        "same seed, same tokens",
        total > 0 and same == total and int(repeats) > 1,  # pyright: ignore[reportArgumentType]
        f"{same} of {total} questions gave the same tokens in all {repeats} repeats",
    )
