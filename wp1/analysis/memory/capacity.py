"""How many tokens and requests an engine's memory holds, and what disaggregated serving costs in bytes. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from wp1.analysis.comparison.arms import devices_of
from wp1.analysis.memory.figures import Row, rank_token_bytes, together

# Upper bound for the prompt lengths that are doubled until one does not fit.
LONGEST = 1 << 24


@dataclass(frozen=True)
class Fit:
    """What one engine holds at one length, by the bytes measured and by its block count."""

    arm: str
    pool: str
    engine: str
    tokens: int  # prompt and output of one request
    predicted: int  # concurrent requests, from bytes
    by_blocks: int  # concurrent requests, from the engine's blocks
    most: int  # the engine's limit of concurrent requests (max_num_seqs)
    why: str | None  # why a request does not fit or could not be sent


@dataclass(frozen=True)
class Pool:
    """The KV pool of one engine. Bytes and tokens are those of one rank; all ranks are alike."""

    arm: str
    pool: str
    engine: str
    kv_bytes: int  # as measured
    blocks: int  # reported by the engine, which keeps one for itself
    block_tokens: int
    token_bytes: int  # calculated
    max_len: int
    # vLLM's memory budget minus all measured parts but KV; None if the pool's size was set explicitly.
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
    """The KV pool of every engine that has rows and a known number of KV bytes per token."""
    model = metadata["model"]
    engines = {(pool["arm"], engine["name"]): engine for pool in metadata["pools"] for engine in pool["engines"]}
    pools = {}
    for row in rows:
        engine = engines[row.arm, row.engine]
        settings, token_bytes = engine["settings"], rank_token_bytes(model, engine)
        if token_bytes is None:
            continue
        allowed, available = row.vllm.get("requested_memory"), row.vllm.get("available_kv_cache_memory_bytes")
        left = None
        if allowed is not None and available is not None:
            others = ("weights", "runtime", "buffers", "graphs", "transfer", "activations")
            left = allowed - sum(row.parts[name] for name in others)
        pools[row.arm, row.engine] = Pool(
            row.arm, row.pool, row.engine, row.kv_pool, settings["kv_blocks"], settings["block_size"],
            token_bytes, model["max_len"], left,
        )  # fmt: skip
    return list(pools.values())


def fits_of(pools: Sequence[Pool], rows: Sequence[Row], metadata: Mapping[str, Any], output_len: int) -> list[Fit]:
    """What every pool holds at every length measured, and at doubled lengths until one request does not fit."""
    if not pools:
        return []
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
    """Powers of two above the longest length, up to and including the first that does not fit."""
    more = [1 << longest.bit_length()]
    while more[-1] <= min(pool.longest_by_blocks, LONGEST):
        more.append(more[-1] * 2)
    return more


def _why(tokens: int, blocks: int, pool: Pool) -> str | None:
    if blocks > pool.blocks - 1:
        return f"does not fit: needs {blocks:,} blocks, has {pool.blocks - 1:,}"
    if tokens > pool.max_len:
        return f"fits, but exceeds model.max_len={pool.max_len}"
    return None


def price_of(rows: Sequence[Row], handoffs: pl.DataFrame, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes that disaggregated serving takes beyond aggregated serving, at the longest prompt that both have.

    {} if the run does not have both. `kv_held`: `_kv_held`.
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
        "devices": devices_of(metadata["pools"], [agg, disagg]),
        "kv_held": _kv_held([row for row in rows if row.arm == disagg], handoffs),
    }


def _engines(rows: Sequence[Row]) -> int:
    return len({row.engine for row in rows})


def _kv_held(rows: Sequence[Row], handoffs: pl.DataFrame) -> list[dict[str, Any]]:
    """For each prompt length, the bytes of its KV in one pool, and how long pools hold them.

    Times are in ms, means over the handoffs, None without any; "asked" is when the decode engine got the request:

    decode_ms   the decode pool holds the blocks before all of the KV is in them: end of transfer - asked. An engine
                allocates all blocks of a request at once, in the scheduler step after it was asked.
    early_ms    the part of decode_ms before the prompt was computed; not zero if the decode engine was asked early
                (transfer.overlap=on) and had room
    prefill_ms  the prefill pool holds the blocks after the prompt was computed, until the end of the transfer
    both_ms     both pools hold all of it: from the later of the prefill's end and asked, to the end of the transfer
    """
    held = handoffs.filter((pl.col("status") == "ok") & ~pl.col("warmup"))
    end, done, asked = pl.col("t_transfer_end"), pl.col("t_prefill_done"), pl.col("t_decode_sent")
    spans = {
        "decode_ms": end - asked,
        "early_ms": pl.min_horizontal(done, end) - asked,
        "prefill_ms": end - done,
        "both_ms": end - pl.max_horizontal(done, asked),
    }
    pool = [row for row in rows if row.pool == "prefill"]
    found = []
    for cell in dict.fromkeys(row.cell for row in pool):
        of_cell = held.filter((pl.col("cell") == cell) & (pl.col("arm") == pool[0].arm))
        times = of_cell.drop_nulls(["t_transfer_end", "t_prefill_done", "t_decode_sent"]).select(
            **{name: (span.clip(lower_bound=0) * 1e3).mean() for name, span in spans.items()}
        )
        # A request is in one engine, spread over that engine's ranks.
        engines: dict[str, int] = {}
        for row in pool:
            if row.cell == cell:
                engines[row.engine] = engines.get(row.engine, 0) + row.parts["kv_in_use"]
        length = next(row.prompt_len for row in pool if row.cell == cell)
        found.append({"prompt_len": length, "bytes": max(engines.values()), **times.row(0, named=True)})
    return sorted(found, key=lambda row: row["prompt_len"])
