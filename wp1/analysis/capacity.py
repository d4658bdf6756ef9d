"""How many tokens and requests an engine's memory holds, and what a second pool costs in bytes. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from wp1.analysis.memory import Row, shards, together

# Prompt lengths are doubled until one does not fit, to here at most.
LONGEST = 1 << 24


@dataclass(frozen=True)
class Fit:
    """What one engine holds at one length, as the bytes measured say and as its block count says."""

    arm: str
    pool: str
    engine: str
    tokens: int  # of a request: prompt and output
    predicted: int  # requests at once, from bytes
    by_blocks: int  # requests at once, from the engine's blocks
    most: int  # requests that the engine works on at once (max_num_seqs)
    why: str | None  # it does not fit, or could not be asked for


@dataclass(frozen=True)
class Pool:
    """The KV pool of one engine. Bytes and tokens of one rank; ranks are alike."""

    arm: str
    pool: str
    engine: str
    kv_bytes: int  # as measured
    blocks: int  # as the engine says; one is its own
    block_tokens: int
    token_bytes: int  # calculated
    max_len: int
    # What would be left for KV of what vLLM allows itself, by the parts measured; None where its size was set outright.
    left: int | None

    @property
    def longest_predicted(self) -> int:
        """Tokens of the longest single request that the bytes hold."""
        return self.kv_bytes // self.token_bytes

    @property
    def longest_by_blocks(self) -> int:
        """Tokens of the longest single request that the blocks hold."""
        return (self.blocks - 1) * self.block_tokens


def pools_of(rows: Sequence[Row], metadata: Mapping[str, Any]) -> list[Pool]:
    """The KV pool of every engine that has rows."""
    model = metadata["model"]
    engines = {(pool["arm"], engine["name"]): engine for pool in metadata["pools"] for engine in pool["engines"]}
    found = {}
    for row in rows:
        engine = engines[row.arm, row.engine]
        settings, spread = engine["settings"], shards(model, len(engine["devices"]))
        allowed, available = row.vllm.get("requested_memory"), row.vllm.get("available_kv_cache_memory_bytes")
        left = None
        if allowed is not None and available is not None:
            others = ("weights", "runtime", "buffers", "graphs", "transfer", "activations")
            left = allowed - sum(row.parts[name] for name in others)
        found[row.arm, row.engine] = Pool(
            row.arm, row.pool, row.engine, row.kv_pool, settings["kv_blocks"], settings["block_size"],
            model["kv_bytes_per_token"] // spread, model["max_len"], left,
        )  # fmt: skip
    return list(found.values())


def fits_of(pools: Sequence[Pool], rows: Sequence[Row], metadata: Mapping[str, Any], output_len: int) -> list[Fit]:
    """Every pool at every length measured, then doubled until a single request does not fit its blocks."""
    lengths = sorted({row.prompt_len for row in rows})
    engines = {(pool["arm"], engine["name"]): engine for pool in metadata["pools"] for engine in pool["engines"]}
    found = []
    for pool in pools:
        most = engines[pool.arm, pool.engine]["settings"]["max_num_seqs"]
        tokens_of = [length + output_len for length in lengths]
        for tokens in [*tokens_of, *_doubled(tokens_of[-1], pool)]:
            blocks = -(-tokens // pool.block_tokens)
            found.append(
                Fit(
                    pool.arm, pool.pool, pool.engine, tokens,
                    predicted=pool.kv_bytes // (tokens * pool.token_bytes),
                    by_blocks=(pool.blocks - 1) // blocks,
                    most=most,
                    why=_why(tokens, blocks, pool),
                )
            )  # fmt: skip
    return found


def _doubled(longest: int, pool: Pool) -> list[int]:
    """Powers of two above the longest length, to the first that does not fit."""
    more = [1 << longest.bit_length()]
    while more[-1] <= min(pool.longest_by_blocks, LONGEST):
        more.append(more[-1] * 2)
    return more


def _why(tokens: int, blocks: int, pool: Pool) -> str | None:
    if blocks > pool.blocks - 1:
        return f"does not fit: {blocks:,} blocks needed, {pool.blocks - 1:,} there"
    if tokens > pool.max_len:
        return f"fits, and is beyond model.max_len={pool.max_len}"
    return None


def price_of(rows: Sequence[Row], handoffs: pl.DataFrame, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What disaggregated serving takes beyond aggregated serving, in bytes, at the longest prompt that both have.

    {} where the run does not have both. `kv_twice`: for each prompt length, bytes of KV that the prefill pool still
    holds when the decode pool has it too, and for how long (ms, mean), from the end of the prefill on.
    """
    modes = {arm: {row.pool for row in rows if row.arm == arm} for arm in {row.arm for row in rows}}
    agg = next((arm for arm in sorted(modes) if "prefill" not in modes[arm]), None)
    disagg = next((arm for arm in sorted(modes) if "prefill" in modes[arm]), None)
    if agg is None or disagg is None:
        return {}
    common = {r.prompt_len for r in rows if r.arm == agg} & {r.prompt_len for r in rows if r.arm == disagg}
    if not common:
        return {}
    at = max(common)
    one = [row for row in rows if row.arm == agg and row.prompt_len == at]
    two = [row for row in rows if row.arm == disagg and row.prompt_len == at]
    extra = {name: together(two, name) - together(one, name) for name in one[0].parts if not name.startswith("kv_")}
    decode = [row for row in two if row.pool == "decode"]
    return {
        "arms": [agg, disagg],
        "engines": {agg: _engines(one), disagg: _engines(two)},
        "prompt_len": at,
        "extra": extra,
        "kv_pool": {agg: sum(row.kv_pool for row in one), disagg: sum(row.kv_pool for row in two)},
        "kv_pool_decode": sum(row.kv_pool for row in decode),
        "kv_twice": _kv_twice([row for row in rows if row.arm == disagg], handoffs),
    }


def _engines(rows: Sequence[Row]) -> int:
    return len({row.engine for row in rows})


def _kv_twice(rows: Sequence[Row], handoffs: pl.DataFrame) -> list[dict[str, Any]]:
    found = []
    held = handoffs.filter((pl.col("status") == "ok") & ~pl.col("warmup"))
    for row in rows:
        if row.pool != "prefill" or row.rank != 0:
            continue
        of_cell = held.filter((pl.col("cell") == row.cell) & (pl.col("arm") == row.arm))
        ends = (pl.col("t_transfer_end") - pl.col("t_prefill_done")).clip(lower_bound=0) * 1e3
        found.append(
            {
                "prompt_len": row.prompt_len,
                "bytes": row.parts["kv_in_use"],
                "ms": of_cell.select(ends.mean()).item() if of_cell.height else None,
            }
        )
    return found
