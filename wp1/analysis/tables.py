"""records.jsonl as a table of requests with their latencies.

The formulas are the usual ones of serving benchmarks (vLLM's and MLPerf's): TTFT and E2E count
from the intended arrival, so a late client is not hidden.
"""

import io
from pathlib import Path

import polars as pl

from wp1.errors import WP1Error

RECORD_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "request_id": pl.String,
    "arm": pl.String,
    "cell": pl.String,
    "repeat": pl.Int64,
    "label": pl.String,
    "warmup": pl.Boolean,
    "seed": pl.Int64,
    "status": pl.String,
    "error": pl.String,
    "cause": pl.String,
    "t_intended": pl.Float64,
    "t_sent": pl.Float64,
    "t_queued": pl.Float64,
    "t_scheduled": pl.Float64,
    "t_engine_first_token": pl.Float64,
    "t_engine_last_token": pl.Float64,
    "t_tokens": pl.List(pl.Float64),
    "t_end": pl.Float64,
    "prompt_tokens": pl.Int64,
    "output_tokens": pl.Int64,
    "cached_tokens": pl.Int64,
    "preemptions": pl.Int64,
    "finish_reason": pl.String,
    "text": pl.String,
    "token_ids": pl.List(pl.Int64),
    "pool": pl.String,
    "prefill_engine": pl.String,
    "decode_engine": pl.String,
}


def requests(path: Path) -> pl.DataFrame:
    """One row a record, with its fields and the latencies of `with_latencies`.

    A last line torn by a crash is left out. Raises WP1Error where the file is none of records.
    """
    text = path.read_bytes() if path.is_file() else b""
    whole = text[: text.rfind(b"\n") + 1]
    if not whole.strip():
        return with_latencies(pl.DataFrame(schema=RECORD_SCHEMA))
    try:
        return with_latencies(pl.read_ndjson(io.BytesIO(whole), schema=RECORD_SCHEMA))
    except pl.exceptions.PolarsError as error:
        raise WP1Error(f"{path} is no file of request records: {error}") from error


def with_latencies(records: pl.DataFrame) -> pl.DataFrame:
    """Adds, in ms (null where a request did not get that far):

    ttft_ms          first output token - intended arrival
    tpot_ms          (last token - first token) / (output tokens - 1); null for one output token
    e2e_ms           last token - intended arrival
    queue_ms         scheduled - intended arrival: the client's delay and the engine's queue
    prefill_ms       the engine's first token - scheduled
    delivery_ms      first token at the client - first token in the engine
    client_delay_ms  sent - intended arrival
    itl_ms           list of the single gaps between output tokens
    """
    first, last = pl.col("t_tokens").list.first(), pl.col("t_tokens").list.last()
    ok = pl.col("status") == "ok"
    gaps = pl.col("output_tokens") - 1
    return records.with_columns(
        ttft_ms=(first - pl.col("t_intended")) * 1e3,
        tpot_ms=pl.when(gaps > 0).then((last - first) / gaps * 1e3),
        e2e_ms=pl.when(ok).then((last - pl.col("t_intended")) * 1e3),
        queue_ms=(pl.col("t_scheduled") - pl.col("t_intended")) * 1e3,
        prefill_ms=(pl.col("t_engine_first_token") - pl.col("t_scheduled")) * 1e3,
        delivery_ms=(first - pl.col("t_engine_first_token")) * 1e3,
        client_delay_ms=(pl.col("t_sent") - pl.col("t_intended")) * 1e3,
        itl_ms=pl.col("t_tokens").list.eval((pl.element().diff() * 1e3).drop_nulls()),
    )
