"""How many tokens and requests an engine's memory holds, and what a second pool costs in bytes. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from wp1.analysis.comparison.arms import devices_of
from wp1.analysis.memory.figures import Row, rank_token_bytes, together

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
    """The KV pool of every engine that has rows, and of which it is known what a token keeps in it."""
    model = metadata["model"]
    engines = {(pool["arm"], engine["name"]): engine for pool in metadata["pools"] for engine in pool["engines"]}
    found = {}
    for row in rows:
        engine = engines[row.arm, row.engine]
        settings, a_token = engine["settings"], rank_token_bytes(model, engine)
        if a_token is None:
            continue
        allowed, available = row.vllm.get("requested_memory"), row.vllm.get("available_kv_cache_memory_bytes")
        left = None
        if allowed is not None and available is not None:
            others = ("weights", "runtime", "buffers", "graphs", "transfer", "activations")
            left = allowed - sum(row.parts[name] for name in others)
        found[row.arm, row.engine] = Pool(
            row.arm, row.pool, row.engine, row.kv_pool, settings["kv_blocks"], settings["block_size"],
            a_token, model["max_len"], left,
        )  # fmt: skip
    return list(found.values())


def fits_of(pools: Sequence[Pool], rows: Sequence[Row], metadata: Mapping[str, Any], output_len: int) -> list[Fit]:
    """Every pool at every length measured, then doubled until a single request does not fit its blocks."""
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

    {} where the run does not have both. `kv_held`: `_kv_held`.
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
    """For each prompt length, bytes of its KV in a pool, and how long (ms, means over the handoffs, None without any)

    decode_ms   the decode pool holds its blocks before all of the KV is in them: end of transfer - asked. An engine
                gives a request all blocks at once, in the step of its scheduler after it was asked.
    early_ms    of that, before the prompt was computed, with its wait for that: it was asked early
                (transfer.overlap=on), and had room
    prefill_ms  the prefill pool holds its blocks after the prompt was computed: it releases them at the end of the
                transfer
    both_ms     both pools hold all of it: the later of prefill's end and asked, to the end of the transfer
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
        # A request is in one engine, and a part of it on each of that engine's ranks.
        engines: dict[str, int] = {}
        for row in pool:
            if row.cell == cell:
                engines[row.engine] = engines.get(row.engine, 0) + row.parts["kv_in_use"]
        length = next(row.prompt_len for row in pool if row.cell == cell)
        found.append({"prompt_len": length, "bytes": max(engines.values()), **times.row(0, named=True)})
    return sorted(found, key=lambda row: row["prompt_len"])
