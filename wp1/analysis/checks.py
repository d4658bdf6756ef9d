"""What must hold for a run's figures to be credible. A failed check fails the run."""

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
    """`name`, `passed` and `detail` of every check that applies. If nothing was measured, one failed check says so.

    requests, handoffs: from `tables`; None: the run had no handoffs. kv_held: engines (arm/name) that still held KV
    blocks after all requests had ended; None: not examined. tokens: what a comparison of tokens needs
    (`parity.basis_of`).
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
        return _result("requests answered", False, "no request was measured, so nothing else was checked")
    ok = measured.filter(pl.col("status") == "ok").height
    return _result("requests answered", ok > 0, f"{ok} of {measured.height} measured requests were answered")


def _no_unexpected_cache_hits(config: Any, requests: pl.DataFrame) -> dict[str, Any]:
    """With the prefix cache off, prompts must have been computed in full; with it on, all but their shared prefix.

    The shared prefix is known only for random prompts (`workload.shared_prefix`). Equal questions, overlapping texts
    and a trace's equal blocks may hit the cache.
    """
    on = bool(config["backend"]["engine"].get("enable_prefix_caching", True))
    hits = int(requests["cached_tokens"].sum())
    if not on:
        return _result("prefix cache", hits == 0, f"off; {hits} prompt tokens came from the cache")
    detail = f"on by configuration; {hits:,} prompt tokens came from the cache"
    if config["workload"]["prompts"] != "random":
        return _result("prefix cache", True, detail)
    share = config["workload"].get("shared_prefix", 0.0)
    # A request that was preempted hits the blocks it computed itself.
    whole = requests.filter(~pl.col("warmup") & (pl.col("preemptions").fill_null(0) == 0))
    unexpected = whole.filter(pl.col("cached_tokens") > (share * pl.col("prompt_tokens")).ceil()).height
    if unexpected:
        detail += f"; {unexpected:,} requests took more than the {share:.0%} that prompts share"
    return _result("prefix cache", unexpected == 0, detail)


def _same_tokens(config: Any, requests: pl.DataFrame, tokens: Basis) -> dict[str, Any]:
    """The same question with the same seed must give the same tokens in every repeat.

    Greedy answers may diverge where the two best tokens are so close that rounding decides.
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
    """A request whose KV did not arrive was not served as its cell specifies."""
    failed = handoffs.filter(pl.col("status") != "ok")
    detail = f"{handoffs.height - failed.height} of {handoffs.height} arrived"
    if failed.height:
        detail += f"; failed: {_by_cell(failed)}"
    return _result("KV handoffs", failed.is_empty(), detail)


def _kv_bytes(arrived: pl.DataFrame) -> dict[str, Any]:
    """Each handoff must have moved exactly the prompt's blocks that the decode engine lacked; unmeasured bytes fail.

    To the byte: every connector moves whole blocks, including the last, and a single block may be all there is to move.
    """
    compared = arrived.with_columns(same=(pl.col("bytes") == pl.col("bytes_expected")).fill_null(False))
    silent = compared.filter(pl.col("bytes").is_null())
    unknown = compared.filter(pl.col("bytes").is_not_null() & pl.col("bytes_expected").is_null())
    other = compared.filter(~pl.col("same") & pl.all_horizontal(pl.col("bytes", "bytes_expected").is_not_null()))
    if unknown.filter(pl.col("bytes") > 0).height == compared.height:
        # Some layers of the model do not keep whole blocks, or their size is unknown.
        detail = f"{compared['bytes'].sum():,} bytes in {compared.height} handoffs; the expected number is unknown"
        return _result("KV bytes, reported but not judged", True, detail)
    detail = f"{compared['same'].sum()} of {compared.height} handoffs moved the bytes expected, to the byte"
    for rows, what in (
        (silent, "not reported by the connector"),
        (unknown, "expected bytes unknown"),
        (other, "wrong number of bytes"),
    ):
        if rows.height:
            detail += f"; {what}: {_by_cell(rows)}"
    if other.height:
        row = other.sort("handoff_id").row(0, named=True)
        detail += f", such as {row['bytes']:,} instead of {row['bytes_expected']:,}"
    return _result("KV bytes", bool(compared["same"].all()), detail)


def _freed(kv_held: Sequence[str]) -> dict[str, Any]:
    """KV blocks that are never freed eventually fill an engine, and slow it down long before."""
    names = list(dict.fromkeys(kv_held))
    detail = f"still held by {', '.join(names)}" if names else "no engine held any after its requests had ended"
    return _result("KV blocks freed", not names, detail)


def _same_in_both(requests: pl.DataFrame, a: str, b: str, tokens: Basis | None) -> dict[str, Any]:
    """Reported but not judged: another batch may round differently on a GPU, and greedy decoding amplifies that."""
    found = parity(requests.filter(pl.col("arm") == a), requests.filter(pl.col("arm") == b), tokens)
    name = "same tokens in both arms"
    if found["same"] < found["compared"]:
        name += ", reported but not judged"
    return _result(name, found["compared"] > 0, in_words(found))


def _by_cell(rows: pl.DataFrame) -> str:
    """Counts by arm and cell, such as `disagg/256-rate0.5 (3)`."""
    counts = {(arm, cell): n for arm, cell, n in rows.group_by("arm", "cell").len().iter_rows()}
    ordered = [
        (arm, cell) for arm in sorted({arm for arm, _ in counts}) for cell in cells.ordered(c for _, c in counts)
    ]
    return ", ".join(f"{arm}/{cell} ({counts[arm, cell]})" for arm, cell in ordered if (arm, cell) in counts)
