"""Whether two sides (two arms of a run, or two runs) gave the same tokens, and what a divergence proves. Pure.

Greedy decoding takes the best token. If the two best are close, rounding decides, since another batch sums in another
order. A divergence is therefore judged by two controls: how often an arm diverges from itself if it is asked the same
request again, and how far apart the two best tokens were where the answers diverge (`wp1.runner.control`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from wp1.analysis.base import cells, tables
from wp1.analysis.comparison.figures import NAME
from wp1.core.records import common_name
from wp1.workload.prompts import own_source

# The largest gap between the two best log-probabilities (nats) that rounding can reverse, by the engines' data type.
# For bfloat16 it is two steps of a logit between 16 and 32, which has 8 significant bits: 2 x 2^(4 - 7). The others
# have 3 and 16 bits more. Measured with SmolLM2-135M in bfloat16 on two CPU cores (workload=text, 120 tokens, eight at
# a time against one at a time): 9 of 24 answers of 64 tokens diverged, where the two best were 0 to 0.125 nats apart;
# 10 % of all 1,536 positions of these answers are within 0.25 nats.
MARGIN_NATS = {"bfloat16": 0.25, "float16": 0.25 / 2**3, "float32": 0.25 / 2**16}
# How many of the requests that diverge by more than that are named.
MOST_NAMED = 3


def margin_of(pools: Iterable[Mapping[str, Any]]) -> float:
    """MARGIN_NATS of the coarsest data type among engines (pools of run_metadata.json); bfloat16's if unknown."""
    types = {engine.get("settings", {}).get("dtype") for pool in pools for engine in pool["engines"]}
    return max((MARGIN_NATS.get(str(kind), MARGIN_NATS["bfloat16"]) for kind in types), default=MARGIN_NATS["bfloat16"])


# A request, its first token that differs (from 1), and the gap in nats between the two best there, if known.
Divergence = tuple[str, int, float | None]


@dataclass(frozen=True)
class Basis:
    """What a comparison of tokens needs besides the answers.

    why_not: why they cannot be compared, as text; None: they can. again: `tables.control` of both sides, with the same
    arm names as the answers. alike: all repeats ask the same. margin: nats, from `margin_of`.
    """

    why_not: str | None = None
    again: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=tables.CONTROL_SCHEMA))
    alike: bool = False
    margin: float = MARGIN_NATS["bfloat16"]


def basis_of(config: Mapping[str, Any], metadata: Mapping[str, Any], again: pl.DataFrame) -> Basis:
    """The basis for the arms of one run, from its configuration, its run_metadata.json and its `tables.control`."""
    source = own_source(config["workload"]["prompts"])
    return Basis(
        why_not(config),
        again,
        source is not None and source.repeated,
        margin_of(metadata.get("pools", ())),
    )


def why_not(config: Mapping[str, Any]) -> str | None:
    """Why the arms of a run need not give the same tokens; None if they must, except for rounding."""
    if temperature := config["workload"].get("temperature", 0):
        return f"answers were sampled (workload.temperature={temperature:g}), so they differ by chance"
    ropes = [arm.get("rope") for arm in (config.get("arms") or {}).values()]
    if any(rope != ropes[0] for rope in ropes[1:3]):
        return "the arms have different rotary scalings, so they are not the same model"
    return None


def parity(a: pl.DataFrame, b: pl.DataFrame, basis: Basis | None = None) -> dict[str, Any]:
    """Answered requests of two sides (`tables.requests`), paired by their id without the arm.

    requests: pairs sent; compared: pairs with both answered, to the same prompt; same: compared pairs with all tokens
    equal; other_prompts: pairs left out because their prompts differ; first_difference: the request whose tokens
    diverge earliest, and its first token that differs, counted from 1 (None if there is none); cells: compared and same
    by cell; why_not: why nothing was compared, or None.

    margin: nats that rounding can reverse; parted: `_explained` of the pairs that diverge; itself: by arm, over the
    requests it was asked more than once: again (how often it was asked again), same (how often with the same tokens)
    and parted. Without a basis no request was asked again, and these two are None and {}.
    """
    known, basis = basis is not None, basis or Basis()
    sides = [_named(rows, mark) for rows, mark in ((a, "_a"), (b, "_b"))]
    pairs = sides[0].join(sides[1], on=["cell", "name"], how="inner").sort("cell", "name")
    both = pairs.filter((pl.col("status_a") == "ok") & (pl.col("status_b") == "ok"))
    alike = pl.all_horizontal(pl.col(f"{key}_a").eq_missing(pl.col(f"{key}_b")) for key in ("label", "prompt_tokens"))
    other_prompts = both.filter(~alike).height
    both = both.filter(alike) if basis.why_not is None else both.clear()
    asked = _Asked(basis)
    same = pl.col("token_ids_a").eq_missing(pl.col("token_ids_b"))
    counts = both.group_by("cell").agg(compared=pl.len(), same=same.sum()).rows_by_key("cell", named=True, unique=True)
    parted: list[Divergence] = []
    for row in both.filter(~same).iter_rows(named=True):
        at = first_difference(row["token_ids_a"], row["token_ids_b"])
        ids = [(row[f"request_id{mark}"], row[f"arm{mark}"]) for mark in ("_a", "_b")]
        parted.append((row["name"], at, asked.margin(ids, row["token_ids_a"][: at - 1])))
    earliest = min(parted, key=lambda one: one[1], default=None)
    return {
        "requests": pairs.height,
        "compared": both.height,
        "same": both.height - len(parted),
        "other_prompts": other_prompts,
        "first_difference": earliest and {"request": earliest[0], "token": earliest[1]},
        "cells": {cell: counts.get(cell, {"compared": 0, "same": 0}) for cell in cells.ordered(pairs["cell"])},
        "why_not": basis.why_not,
        "margin": basis.margin,
        "parted": _explained(parted, basis.margin) if known else None,
        "itself": {
            rows["arm"][0]: asked.itself(rows) for rows in (a, b) if rows.height and known and basis.why_not is None
        },
    }


def itself(rows: pl.DataFrame, basis: Basis) -> dict[str, Any]:
    """How far an arm (`tables.requests`) agrees with itself: again, same and parted, as in `parity`."""
    return _Asked(basis).itself(rows)


class _Asked:
    """Requests that were asked again, by arm and the request's name."""

    def __init__(self, basis: Basis) -> None:
        self._alike, self._limit = basis.alike, basis.margin
        self._rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in basis.again.iter_rows(named=True):
            self._rows.setdefault(self._key(row["request_id"], row["arm"]), []).append(row)

    def _key(self, request_id: str, arm: str) -> tuple[str, str]:
        return arm, common_name(request_id, self._alike)

    def margin(self, of: Sequence[tuple[str, str]], before: Sequence[int]) -> float | None:
        """Largest gap in nats between the two best tokens right after the tokens `before`, over these (id, arm).

        None if none of them was asked again, or none gave the same tokens up to there.
        """
        position = len(before)
        known = [
            row["margins"][position]
            for request_id, arm in of
            for row in self._rows.get(self._key(request_id, arm), ())
            if len(row["margins"]) > position and list(row["token_ids"][:position]) == list(before)
        ]
        return max(known, default=None)

    def itself(self, rows: pl.DataFrame) -> dict[str, Any]:
        """Compares every repetition of a request to an arm with its first answer."""
        measured = rows.filter(~pl.col("warmup") & (pl.col("status") == "ok")).sort("repeat", maintain_order=True)
        first: dict[tuple[str, str], list[int]] = {}
        count = 0
        parted: list[Divergence] = []
        for request_id, arm, tokens in self._every_time(measured):
            key = self._key(request_id, arm)
            if key not in first:
                first[key] = tokens
                continue
            count += 1
            if tokens != first[key]:
                at = first_difference(first[key], tokens)
                parted.append((key[1], at, self.margin([(request_id, arm)], tokens[: at - 1])))
        return {"again": count, "same": count - len(parted), "parted": _explained(parted, self._limit)}

    def _every_time(self, measured: pl.DataFrame) -> Iterator[tuple[str, str, list[int]]]:
        """Id, arm and tokens of requests an arm was asked more than once: first as measured, then as asked again."""
        arms = set(measured["arm"].unique())
        for row in measured.select("request_id", "arm", "token_ids").iter_rows():
            if self._alike or self._key(row[0], row[1]) in self._rows:
                yield row
        for (arm, _), of in self._rows.items():
            # Requests chosen because they had diverged would diverge more often than others: they are left out.
            yield from ((row["request_id"], arm, row["token_ids"]) for row in of if arm in arms and not row["parted"])


def _explained(parted: Sequence[Divergence], most: float) -> dict[str, Any]:
    """Counts of divergences by whether rounding explains them.

    within: at most `most` nats apart; beyond: further apart; unknown: not asked again; furthest: the largest of those
    beyond.
    """
    known = [(request, at, nats) for request, at, nats in parted if nats is not None]
    beyond = sorted((one for one in known if one[2] > most), key=lambda one: -one[2])
    return {
        "within": len(known) - len(beyond),
        "beyond": len(beyond),
        "unknown": len(parted) - len(known),
        "furthest": [
            {"request": request, "token": at, "nats": round(nats, 3)} for request, at, nats in beyond[:MOST_NAMED]
        ],
    }


def in_words(found: Mapping[str, Any], emphasis: str = "") -> str:
    """The verdict in one line. found: from `parity`; `emphasis` encloses what rounding does not explain."""
    if found.get("why_not"):
        return f"not compared: {found['why_not']}"
    if not found["compared"]:
        return "no request was answered by both arms, so none could be compared"
    text = f"{found['same']} of {found['compared']} requests gave the same tokens"
    if found["first_difference"] is not None:
        text += f"; the earliest divergence is at token {found['first_difference']['token']}"
        text += f" ({found['first_difference']['request']})"
    left_out = found["requests"] - found["compared"] - found.get("other_prompts", 0)
    text += f"; {left_out} more were not answered by both" if left_out else ""
    if others := found.get("other_prompts"):
        text += f"; {others} more had different prompts"
    text += "".join(f"; {part}" for part in _control_in_words(found))
    return text + apart_in_words(found.get("parted"), found.get("margin", 0.0), emphasis)


def _control_in_words(found: Mapping[str, Any]) -> list[str]:
    """How far each arm agrees with itself, as a list of at most one clause."""
    known = {arm: of for arm, of in found.get("itself", {}).items() if of["again"]}
    if not known:
        return []
    each = ", ".join(f"{of['same']} of {of['again']} ({arm})" for arm, of in known.items())
    return [f"the same arm against itself: {each}"]


def apart_in_words(parted: Mapping[str, Any] | None, margin: float, emphasis: str = "") -> str:
    """How close the two best tokens were where answers diverge, and whether rounding explains it; "" if none do."""
    count = sum(parted[key] for key in ("within", "beyond", "unknown")) if parted else 0
    if not parted or not count:
        return ""
    if parted["unknown"] == count:
        return "; how close the two best tokens were where they diverge is unknown, as no request was asked again"
    text = f"; where they diverge, the two best tokens were within {margin:.2g} nats in {parted['within']} of {count}"
    if parted["within"]:
        text += ", which rounding explains"
    if parted["unknown"]:
        text += f"; in {parted['unknown']} the distance is unknown"
    if parted["beyond"]:
        furthest = (f"{one['nats']:.2g} at token {one['token']} of {one['request']}" for one in parted["furthest"])
        text += f"; {emphasis}in {parted['beyond']} they were further apart, which rounding does not explain{emphasis}"
        text += f" (nats: {', '.join(furthest)})"
    return text


def _named(requests: pl.DataFrame, mark: str) -> pl.DataFrame:
    rows = requests.filter(~pl.col("warmup"))
    return rows.select(
        "cell",
        NAME,
        *(
            pl.col(key).alias(f"{key}{mark}")
            for key in ("request_id", "arm", "status", "token_ids", "label", "prompt_tokens")
        ),
    )


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """The first token that differs between two unequal answers, counted from 1."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False), start=1) if x != y), min(len(a), len(b)) + 1)
