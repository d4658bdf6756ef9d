"""What must hold for a run's figures to be believed. Each check that fails, fails the run."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from wp1.analysis.base import cells, tables
from wp1.analysis.comparison import arms
from wp1.analysis.comparison.parity import Basis, apart_in_words, in_words, itself, parity, why_not


def all_checks(
    config: Any,
    requests: pl.DataFrame,
    handoffs: pl.DataFrame | None = None,
    kv_held: Sequence[str] | None = None,
    tokens: Basis | None = None,
) -> list[dict[str, Any]]:
    """`name`, `passed` and `detail` of every check that applies; where nothing was measured, that alone.

    From the run's configuration and its tables (`tables.requests`, `tables.handoffs`; None: there were none).
    kv_held: engines (arm/name) that still held KV blocks when no request was left; None: nobody looked.
    tokens: what a comparison of tokens goes by (`parity.basis_of`).
    """
    if requests["warmup"].all():
        return [_some_answers(requests)]
    found = [_no_unexpected_cache_hits(config, requests), _some_answers(requests)]
    if config["experiment"]["same_tokens"]:
        found.append(_same_tokens(config, requests, tokens or Basis()))
    moved = pl.DataFrame(schema=tables.HANDOFF_SCHEMA) if handoffs is None else handoffs
    moved = moved.filter(~pl.col("warmup"))
    if moved.height:
        found.append(_handoffs(moved))
    if (moved["status"] == "ok").any():
        found.append(_kv_bytes(moved.filter(pl.col("status") == "ok")))
    if moved.height and kv_held is not None:
        found.append(_freed(kv_held))
    names = arms.names_of(config)
    if names and why_not(config) is None:
        found.append(_same_in_both(requests, names[0], names[1], tokens))
    return found


def _result(name: str, passed: bool, detail: str) -> dict[str, Any]:
    return {"name": name, "passed": passed, "detail": detail}


def _some_answers(requests: pl.DataFrame) -> dict[str, Any]:
    measured = requests.filter(~pl.col("warmup"))
    if measured.is_empty():
        return _result("requests answered", False, "no request was measured, and nothing else was checked")
    ok = measured.filter(pl.col("status") == "ok").height
    return _result("requests answered", ok > 0, f"{ok} of {measured.height} measured requests were answered")


def _no_unexpected_cache_hits(config: Any, requests: pl.DataFrame) -> dict[str, Any]:
    """With the prefix cache off every prompt must have been computed whole; with it on, what no other prompt shares.

    Of random prompts that is known: all but `workload.shared_prefix` of each. Equal questions, texts that overlap, and
    a trace's equal blocks may be found there.
    """
    on = bool(config["backend"]["engine"].get("enable_prefix_caching", True))
    hits = int(requests["cached_tokens"].sum())
    if not on:
        return _result("prefix cache", hits == 0, f"off; {hits} prompt tokens came from it")
    detail = f"on by configuration; {hits:,} prompt tokens came from it"
    if config["workload"]["prompts"] != "random":
        return _result("prefix cache", True, detail)
    share = config["workload"].get("shared_prefix", 0.0)
    # One that was preempted finds what it had computed itself.
    whole = requests.filter(~pl.col("warmup") & (pl.col("preemptions").fill_null(0) == 0))
    unexpected = whole.filter(pl.col("cached_tokens") > (share * pl.col("prompt_tokens")).ceil()).height
    if unexpected:
        detail += f", in {unexpected:,} requests more than the {share:.0%} that they share"
    return _result("prefix cache", unexpected == 0, detail)


def _same_tokens(config: Any, requests: pl.DataFrame, tokens: Basis) -> dict[str, Any]:
    """The same question with the same seed gives the same tokens in every repeat.

    Greedy ones may part where the two best tokens are so close that rounding decides between them.
    """
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
    complete = groups.filter((pl.col("answered") == repeats) & (pl.col("times") == repeats)).height
    detail = f"{same} of {total} questions gave the same tokens in all {repeats} repeats"
    if complete < total:
        detail += f"; not answered in every repeat: {total - complete}"
    explained = False
    if same < total and config["workload"].get("temperature") == 0:
        parted = itself(measured, Basis(again=tokens.again, alike=True, margin=tokens.margin))["parted"]
        explained = complete == total and not parted["beyond"] and not parted["unknown"]
        detail += apart_in_words(parted, tokens.margin)
    return _result(
        "same seed, same tokens",
        total > 0 and (same == total or explained) and int(repeats) > 1,  # pyright: ignore[reportArgumentType]
        detail,
    )


def _handoffs(handoffs: pl.DataFrame) -> dict[str, Any]:
    """A request whose KV did not arrive was not served as its cell says."""
    failed = handoffs.filter(pl.col("status") != "ok")
    detail = f"{handoffs.height - failed.height} of {handoffs.height} arrived"
    if failed.height:
        detail += f"; failed: {_by_cell(failed)}"
    return _result("KV handoffs", failed.is_empty(), detail)


def _kv_bytes(arrived: pl.DataFrame) -> dict[str, Any]:
    """What moved is what was not there yet of the prompt's blocks; bytes nobody measured prove nothing.

    To the byte: every connector moves whole blocks, the last one too, and one block may be all that there is to move.
    """
    judged = arrived.with_columns(same=(pl.col("bytes") == pl.col("bytes_expected")).fill_null(False))
    silent = judged.filter(pl.col("bytes").is_null())
    unknown = judged.filter(pl.col("bytes").is_not_null() & pl.col("bytes_expected").is_null())
    other = judged.filter(~pl.col("same") & pl.all_horizontal(pl.col("bytes", "bytes_expected").is_not_null()))
    if unknown.filter(pl.col("bytes") > 0).height == judged.height:
        # The model's layers do not all keep whole blocks, or of a size that nothing tells.
        detail = f"{judged['bytes'].sum():,} bytes in {judged.height} handoffs; how many to expect is not known"
        return _result("KV bytes, told and not judged", True, detail)
    detail = f"{judged['same'].sum()} of {judged.height} handoffs moved the bytes expected, to the byte"
    for rows, what in (
        (silent, "the connector reported none"),
        (unknown, "what to expect is not known"),
        (other, "other bytes"),
    ):
        if rows.height:
            detail += f"; {what}: {_by_cell(rows)}"
    if other.height:
        row = other.sort("handoff_id").row(0, named=True)
        detail += f", as {row['bytes']:,} instead of {row['bytes_expected']:,}"
    return _result("KV bytes", bool(judged["same"].all()), detail)


def _freed(kv_held: Sequence[str]) -> dict[str, Any]:
    """KV that nobody gives back fills an engine in the end, and slows it long before."""
    names = list(dict.fromkeys(kv_held))
    detail = f"still held by {', '.join(names)}" if names else "no engine held any when its requests had ended"
    return _result("KV blocks freed", not names, detail)


def _same_in_both(requests: pl.DataFrame, a: str, b: str, tokens: Basis | None) -> dict[str, Any]:
    """Reported and not judged: on a GPU other batches may round another way, and greedy decoding amplifies it."""
    found = parity(requests.filter(pl.col("arm") == a), requests.filter(pl.col("arm") == b), tokens)
    name = "same tokens in both arms"
    if found["same"] < found["compared"]:
        name += ", told and not judged"
    return _result(name, found["compared"] > 0, in_words(found))


def _by_cell(rows: pl.DataFrame) -> str:
    """`disagg/256-rate0.5 (3)` and the like."""
    counts = {(arm, cell): n for arm, cell, n in rows.group_by("arm", "cell").len().iter_rows()}
    ordered = [
        (arm, cell) for arm in sorted({arm for arm, _ in counts}) for cell in cells.ordered(c for _, c in counts)
    ]
    return ", ".join(f"{arm}/{cell} ({counts[arm, cell]})" for arm, cell in ordered if (arm, cell) in counts)
