"""Whether two arms gave the same tokens, request by request. Pure."""

from typing import Any

import polars as pl

from wp1.analysis import cells


def parity(a: pl.DataFrame, b: pl.DataFrame) -> dict[str, Any]:
    """Answered requests of two arms (`tables.requests`), paired by their id without the arm.

    requests: how many pairs were sent; compared: of how many both were answered; same: in how many of these all tokens
    are equal; first_difference: the request whose tokens part earliest, and its first other token, counted from 1
    (None where there is none); cells: compared and same by cell.
    """
    pairs = _named(a, "_a").join(_named(b, "_b"), on=["cell", "name"], how="inner").sort("cell", "name")
    both = pairs.filter((pl.col("status_a") == "ok") & (pl.col("status_b") == "ok"))
    earliest: dict[str, Any] | None = None
    by_cell = {cell: {"compared": 0, "same": 0} for cell in cells.ordered(pairs["cell"])}
    for row in both.iter_rows(named=True):
        at = _first_difference(row["token_ids_a"], row["token_ids_b"])
        by_cell[row["cell"]]["compared"] += 1
        by_cell[row["cell"]]["same"] += at is None
        if at is not None and (earliest is None or at < earliest["token"]):
            earliest = {"request": row["name"], "token": at}
    return {
        "requests": pairs.height,
        "compared": both.height,
        "same": sum(cell["same"] for cell in by_cell.values()),
        "first_difference": earliest,
        "cells": by_cell,
    }


def in_words(found: dict[str, Any]) -> str:
    """The verdict in one line."""
    if not found["compared"]:
        return "no request was answered in both arms, so none could be compared"
    text = f"{found['same']} of {found['compared']} requests gave the same tokens"
    if found["first_difference"] is not None:
        text += f"; of the others the earliest parts at token {found['first_difference']['token']}"
        text += f" ({found['first_difference']['request']})"
    left_out = found["requests"] - found["compared"]
    return text + (f"; {left_out} more were not answered in both" if left_out else "")


def _named(requests: pl.DataFrame, arm: str) -> pl.DataFrame:
    return requests.filter(~pl.col("warmup")).select(
        "cell",
        pl.col("request_id").str.replace(r"^[^/]*/", "").alias("name"),
        pl.col("status").alias(f"status{arm}"),
        pl.col("token_ids").alias(f"token_ids{arm}"),
    )


def _first_difference(a: list[int], b: list[int]) -> int | None:
    if a == b:
        return None
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False), start=1) if x != y), min(len(a), len(b)) + 1)
