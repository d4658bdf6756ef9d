"""records.jsonl, handoffs.jsonl and queues.jsonl as tables, with what follows from their timestamps.

The formulas are the usual ones of serving benchmarks (vLLM's and MLPerf's): TTFT and E2E count
from the intended arrival, so a late client is not hidden.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base import metric_table, steady
from wp1.core import files, shapes
from wp1.core.errors import ConfigError

Schema = dict[str, pl.DataType | type[pl.DataType]]
PART_BYTES = 64 << 20
# Of any number in a line: seconds of thirty million years, bytes of a thousand terabytes.
MOST = 1e15
# Columns that stand in pages, in names of files and in keys.
NAMES = ("arm", "cell", "status", "cause", "phase", "device", "engine")

RECORD_SCHEMA: Schema = {
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
    "phase": pl.String,
    "t_intended": pl.Float64,
    "ramp": pl.Boolean,
    "t_sent": pl.Float64,
    "held_s": pl.Float64,
    "t_queued": pl.Float64,
    "t_scheduled": pl.Float64,
    "t_engine_first_token": pl.Float64,
    "t_engine_last_token": pl.Float64,
    "t_decode_sent": pl.Float64,
    "t_decode_scheduled": pl.Float64,
    "t_decode_first_token": pl.Float64,
    "t_tokens": pl.List(pl.Float64),
    "t_end": pl.Float64,
    "prompt_tokens": pl.Int64,
    "output_tokens": pl.Int64,
    "cached_tokens": pl.Int64,
    "preemptions": pl.Int64,
    "finish_reason": pl.String,
    "text": pl.String,
    "token_ids": pl.List(pl.Int32),
    "pool": pl.String,
    "prefill_engine": pl.String,
    "decode_engine": pl.String,
    "handoff_id": pl.String,
    "example": pl.String,
    "nll_window": pl.Int64,
    "nll": pl.List(pl.Float64),
}
# Of control.jsonl, what is read of it.
CONTROL_SCHEMA: Schema = {
    **{name: RECORD_SCHEMA[name] for name in ("request_id", "arm", "cell", "repeat", "status", "token_ids")},
    "margins": pl.List(pl.Float64),
    "parted": pl.Boolean,
}
HANDOFF_SCHEMA: Schema = {
    "handoff_id": pl.String,
    "request_id": pl.String,
    "arm": pl.String,
    "cell": pl.String,
    "repeat": pl.Int64,
    "warmup": pl.Boolean,
    "source": pl.String,
    "target": pl.String,
    "transfer": pl.String,
    "status": pl.String,
    "error": pl.String,
    "phase": pl.String,
    "tokens": pl.Int64,
    "tokens_kept": pl.Int64,
    "blocks": pl.Int64,
    "bytes": pl.Int64,
    "bytes_expected": pl.Int64,
    "block_bytes": pl.Int64,
    "copy_s": pl.Float64,
    "wait_s": pl.Float64,
    "runs": pl.Int64,
    "t_prefill_done": pl.Float64,
    "t_decode_sent": pl.Float64,
    "t_transfer_begin": pl.Float64,
    "t_transfer_end": pl.Float64,
    "t_decode_scheduled": pl.Float64,
    "t_decode_first_token": pl.Float64,
}
QUEUES = ("prefill_waiting", "prefilling", "decode_waiting", "transferring", "decoding")
QUEUE_SCHEMA: Schema = {
    "t": pl.Float64,
    "arm": pl.String,
    **dict.fromkeys(QUEUES, pl.Int64),
}
LAG_SCHEMA: Schema = {
    "t": pl.Float64,
    "arm": pl.String,
    "cell": pl.String,
    "repeat": pl.Int64,
    "lags": pl.List(pl.Float64),
}


STATS_SCHEMA: Schema = {
    "t": pl.Float64,
    "arm": pl.String,
    "engine": pl.String,
    "kv_use": pl.Float64,
    "kv_use_peak": pl.Float64,
    "running": pl.Int64,
    "waiting": pl.Int64,
    "preemptions": pl.Int64,
    "steps": pl.Int64,
}

# What a line must have to be one of its kind; other fields may be null.
OF_RECORD = ("request_id", "arm", "cell", "repeat", "warmup", "status", "t_intended")
OF_HANDOFF = ("handoff_id", "request_id", "arm", "cell", "repeat", "warmup", "status")
OF_STATS = ("t", "arm", "engine")
# Of a record, what says which it is.
KEYS = ("request_id", "arm", "cell", "repeat", "warmup", "handoff_id", "example")

# Columns that are large and that most readers do without; what follows from t_tokens is kept in itl_ms.
BULK = ("text", "token_ids", "t_tokens")


def bulk_of(config: Mapping[str, Any], compared: bool) -> tuple[str, ...]:
    """What can be left out of the records of a run: answers are read where questions were asked, and tokens compared
    where there are others to compare them with."""
    if config["workload"]["prompts"] not in ("random", "text", "trace"):
        return ()
    return tuple(name for name in BULK if name != "token_ids" or not compared)


def requests(path: Path, without: Sequence[str] = ()) -> pl.DataFrame:
    """One row a record, with its fields, the latencies of `with_latencies` and the windows of `steady.with_windows`.

    without: columns to leave out, of `BULK`; a million requests of 100 tokens then take 1 GB instead of 3.
    Requests that our own stop cut short are left out: they say nothing of the engines. So is a last line torn by a
    crash. Raises ConfigError naming the file and line of what is no record.
    """
    # What latencies are made of is needed until they are.
    schema = {name: kind for name, kind in RECORD_SCHEMA.items() if name not in without or name == "t_tokens"}
    parts = [
        with_latencies(part).drop(without, strict=False) for part in _parts(path, schema, "request record", OF_RECORD)
    ]
    # A line that is there twice stands for one request, as `whole` counts them.
    records = pl.concat(parts).filter(pl.col("cause").ne_missing("interrupted"))
    if records["request_id"].n_unique() < records.height:  # it would be a copy of all of them
        records = records.unique("request_id", keep="last", maintain_order=True)
    return steady.with_windows(records)


def keys(path: Path) -> pl.DataFrame:
    """One row a record with KEYS alone, to count them by; empty where there is no file. Raises as `requests` does."""
    schema = {name: RECORD_SCHEMA[name] for name in dict.fromkeys((*KEYS, *OF_RECORD))}
    return read(path, schema, "request record", OF_RECORD).select(KEYS)


def handoffs(path: Path) -> pl.DataFrame:
    """One row a handoff, with its fields and the times of `with_handoff_times`; empty where there is no file.

    A last line torn by a crash is left out. Raises ConfigError naming the file and line of what is no handoff.
    """
    rows = read(path, HANDOFF_SCHEMA, "handoff", OF_HANDOFF)
    return with_handoff_times(rows.unique("handoff_id", keep="last", maintain_order=True))


def control(path: Path) -> pl.DataFrame:
    """One row an answered request that was asked again (`wp1.runner.control`); empty where there is no file.

    A last line torn by a crash is left out. Raises ConfigError naming file and line of what is none.
    """
    rows = read(path, CONTROL_SCHEMA, "request that was asked again", tuple(CONTROL_SCHEMA))
    return rows.filter(pl.col("status") == "ok").unique("request_id", keep="last", maintain_order=True)


def queues(path: Path) -> pl.DataFrame:
    """One row a sample of queue lengths (requests, and `t` in seconds); empty where there is no file.

    A last line torn by a crash is left out. Raises ConfigError naming file and line of what is none.
    """
    return read(path, QUEUE_SCHEMA, "sample of queue lengths", tuple(QUEUE_SCHEMA))


def lags(path: Path) -> pl.DataFrame:
    """One row a second of the event loop's lags (lists, in seconds); empty where there is no file.

    A last line torn by a crash is left out. Raises ConfigError naming file and line of what is none.
    """
    return read(path, LAG_SCHEMA, "second of event-loop lags", tuple(LAG_SCHEMA))


def engine_stats(path: Path) -> pl.DataFrame:
    """One row a tenth of a second and engine (`records.EngineStats`); empty where there is no file.

    A last line torn by a crash is left out. Raises ConfigError naming file and line of what is none.
    """
    return read(path, STATS_SCHEMA, "engine's counts", OF_STATS)


def read(path: Path, schema: Schema, content: str, needed: Sequence[str]) -> pl.DataFrame:
    """One row a line of a JSONL file; empty where there is none. A last line torn by a crash is left out.

    content: what a line is, in words; needed: columns that it may not lack.
    Raises ConfigError naming the file and line of what is no such thing.
    """
    return pl.concat(_parts(path, schema, content, needed))


def _parts(path: Path, schema: Schema, content: str, needed: Sequence[str]) -> Iterator[pl.DataFrame]:
    """As `read`, in tables of about 64 MiB of the file each, so that it is never in memory itself; at least one."""
    yield pl.DataFrame(schema=schema)
    if not path.is_file():
        return
    with files.opened(path) as file:
        rest, before = b"", 0
        while block := file.read(PART_BYTES):
            text = rest + block
            end = text.rfind(b"\n") + 1
            whole, rest = text[:end], text[end:]
            if whole.strip():
                part = _table(whole, schema, needed)
                if part is None:
                    lines = whole.split(b"\n")[:-1]
                    bad = _first_bad(lines, schema, needed)
                    wrong = _wrong(lines[bad - 1], needed)
                    raise ConfigError(f"{path}:{before + bad} is no {content} ({wrong}): restore the file from a copy")
                yield part
            before += whole.count(b"\n")


def _table(lines: bytes, schema: Schema, needed: Sequence[str]) -> pl.DataFrame | None:
    """None where a line is not of the schema, or lacks what is needed: polars makes nulls of any other object."""
    try:
        found = pl.read_ndjson(io.BytesIO(lines), schema=schema)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    if any(found[name].null_count() for name in needed):
        return None
    return None if found.select(_strange(schema)).row(0) != (False,) else found


def _strange(schema: Schema) -> pl.Expr:
    """Whether any value is none that a run writes, and would not do in a page, a file's name or a sum."""
    found = [pl.lit(False)]
    for name, kind in schema.items():
        if name in NAMES:
            found.append((~pl.col(name).str.contains(f"^{shapes.NAME.pattern}$")).any())
        elif kind in (pl.Float64, pl.Int64):
            found.append((pl.col(name).abs() > MOST).any())
        elif kind == pl.List(pl.Float64):
            found.append((pl.col(name).list.max().abs() > MOST).any())
    return pl.any_horizontal(*(part.fill_null(False) for part in found)).alias("strange")


def _first_bad(lines: Sequence[bytes], schema: Schema, needed: Sequence[str]) -> int:
    """The number, from 1, of the first line for which `_table` is None; there is one."""
    low, high = 0, len(lines)
    while high - low > 1:
        middle = (low + high) // 2
        text = b"\n".join(lines[low:middle])
        low, high = (low, middle) if text.strip() and _table(text, schema, needed) is None else (middle, high)
    return low + 1


def _wrong(line: bytes, needed: Sequence[str]) -> str:
    """What is wrong with a line for which `_table` is None, in words."""
    try:
        found = files.parsed(line)
    except ValueError:
        return "it is not JSON"
    if not isinstance(found, dict):
        return "it is no object"
    if missing := [name for name in needed if found.get(name) is None]:
        return f"it has no {missing[0]}"
    try:
        json.dumps(found, allow_nan=False)
    except ValueError:
        return "it has NaN or infinity, which is not JSON"
    return "a value in it is of another type, or out of range"


def with_latencies(records: pl.DataFrame) -> pl.DataFrame:
    """Adds the metrics of single requests (`metric_table`), in ms and null where a request did not get that far, and
    first_by_decode: whether the client had its first token from the decode engine.

    A request for the perplexity of its prompt has only those that are not `for_users`: the engine computes the
    log-likelihood of every prompt token for it, which no user waits for.
    """
    derived = {metric.key: metric.derive for metric in metric_table.of_kind("request", "gaps")}
    # A metric may be made of others, and then comes after them.
    later = {key for key, made in derived.items() if set(made.meta.root_names()) & derived.keys()}
    timed = records.with_columns(
        **{key: made for key, made in derived.items() if key not in later},
        first_by_decode=metric_table.FIRST_BY_DECODE,
    )
    if later:
        timed = timed.with_columns(**{key: derived[key] for key in later})
    for_users = [metric.key for metric in metric_table.of_kind("request", "gaps") if metric.for_users]
    return timed.with_columns(pl.when(pl.col("nll_window").is_null()).then(pl.col(for_users)))


def with_handoff_times(records: pl.DataFrame) -> pl.DataFrame:
    """Adds, in ms and null where a handoff did not get that far, or its times are not known:

    transfer_ms      bytes moving: transfer end - begin
    decode_queue_ms  sent to the decode engine - prefill done: waiting for a place there; 0 where it was sent before
    handoff_ms       scheduled in the decode engine, its KV there - prefill done; zero where the KV was there by then,
                     as of a copy within the prefill's last step, whose end the engine stamps after it. All of it delays
                     the request: what moves while prefill still computes delays nothing and lies before it
    copy_ms          bytes moving by the connector's own clock (a GPU's events), where it has one
    wait_ms          that blocks which were ready waited for their copy, where the connector knows
    """
    return records.with_columns(
        transfer_ms=(pl.col("t_transfer_end") - pl.col("t_transfer_begin")) * 1e3,
        decode_queue_ms=((pl.col("t_decode_sent") - pl.col("t_prefill_done")) * 1e3).clip(lower_bound=0),
        handoff_ms=((pl.col("t_decode_scheduled") - pl.col("t_prefill_done")) * 1e3).clip(lower_bound=0),
        copy_ms=pl.col("copy_s") * 1e3,
        wait_ms=pl.col("wait_s") * 1e3,
    )


def write_csv(table: pl.DataFrame, path: Path, float_precision: int | None = None) -> None:
    """Writes the file whole or not at all; a link in its place is replaced and not followed."""
    with files.replaced(path) as work:
        table.write_csv(work, float_precision=float_precision)


def flat(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> pl.DataFrame:
    """Rows with figures ({n, value, low, high}) as a table for CSV: x, x_low, x_high and x_n; labels in every row."""
    lines = []
    for row in rows:
        line: dict[str, Any] = {}
        for key, value in row.items():
            if isinstance(value, Mapping):
                line |= {key if part == "value" else f"{key}_{part}": value[part] for part in value}
            elif isinstance(value, (tuple, list)):
                line |= dict(zip((f"{key}_low", f"{key}_high"), value, strict=True))
            else:
                line[key] = value
        lines.append(line | {"labels": ", ".join(labels)})
    columns = list(dict.fromkeys(key for line in lines for key in line))
    return pl.DataFrame([{key: line.get(key) for key in columns} for line in lines], infer_schema_length=None)
