"""Tables of a run's JSONL files, a row per request, handoff or sample, with the latencies that their times give.

The formulas are the usual ones of serving benchmarks (vLLM's and MLPerf's). TTFT and E2E count from the intended
arrival, so a late client is not hidden.
"""

import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import polars as pl

from wp1.analysis.base import metrics, steady
from wp1.core import files, shapes
from wp1.core.errors import ConfigError
from wp1.core.records import (
    ControlRecord,
    DeviceSample,
    EngineStats,
    Handoff,
    LoopLag,
    QueueLengths,
    RequestRecord,
)
from wp1.workload.prompts import own_source

Schema = dict[str, pl.DataType | type[pl.DataType]]
PART_BYTES = 64 << 20
# Upper bound for any number in a line: thirty million years in seconds, a thousand terabytes in bytes.
MOST = 1e15
# Columns whose values appear in pages, file names and keys.
NAMES = ("arm", "cell", "status", "cause", "phase", "device", "engine")


def schema_of(kind: type, only: Sequence[str] | None = None) -> Schema:
    """The polars schema of a file with a dataclass per line, from the types and metadata of its fields.

    only: the fields to include. Raises TypeError for a field whose type has no column type.
    """
    hints, fields = get_type_hints(kind), dataclasses.fields(kind)
    return {field.name: _column(hints[field.name], field) for field in fields if only is None or field.name in only}


def _column(annotation: Any, field: "dataclasses.Field[Any]") -> pl.DataType | type[pl.DataType]:
    kinds = [kind for kind in (get_args(annotation) or (annotation,)) if kind is not type(None)]
    if get_origin(annotation) is list:
        return pl.List(_column(kinds[0], field))
    if get_origin(annotation) is Literal:
        return _column(type(kinds[0]), field)
    if len(kinds) == 1 and kinds[0] is not annotation:  # nullable
        return _column(kinds[0], field)
    if annotation is int:
        return {64: pl.Int64, 32: pl.Int32}[field.metadata.get("bits", 64)]
    column = {str: pl.String, float: pl.Float64, bool: pl.Boolean}.get(annotation)
    if column is None:
        raise TypeError(f"{field.name} has type {annotation}, which has no column type: add it to `_column`")
    return column


RECORD_SCHEMA = schema_of(RequestRecord)
# The fields read from control.jsonl.
CONTROL_SCHEMA = schema_of(
    ControlRecord, ("request_id", "arm", "cell", "repeat", "status", "token_ids", "margins", "parted")
)
HANDOFF_SCHEMA = schema_of(Handoff)
QUEUE_SCHEMA = schema_of(QueueLengths)
# The queues in which a request can be.
QUEUES = tuple(name for name in QUEUE_SCHEMA if name not in ("t", "arm"))
LAG_SCHEMA = schema_of(LoopLag)
STATS_SCHEMA = schema_of(EngineStats)
DEVICE_SCHEMA = schema_of(DeviceSample)

# Fields that a valid line must have; others may be null.
OF_RECORD = ("request_id", "arm", "cell", "repeat", "warmup", "status", "t_intended")
OF_HANDOFF = ("handoff_id", "request_id", "arm", "cell", "repeat", "warmup", "status")
OF_STATS = ("t", "arm", "engine")
# The fields that identify a record.
KEYS = ("request_id", "arm", "cell", "repeat", "warmup", "handoff_id", "example")

# Large columns that most readers do not need; itl_ms keeps what follows from t_tokens.
BULK = ("text", "token_ids", "t_tokens")


def bulk_of(config: Mapping[str, Any], compared: bool) -> tuple[str, ...]:
    """Columns that can be left out of a run's records: answers are shown only for questions, and tokens needed only if
    they are compared (`compared`)."""
    source = own_source(config["workload"]["prompts"])
    if source is None or not (source.made_to_length or source.recorded):
        return ()
    return tuple(name for name in BULK if name != "token_ids" or not compared)


def requests(path: Path, without: Sequence[str] = ()) -> pl.DataFrame:
    """One row per record, with its fields, the latencies of `with_latencies` and the windows of `steady.with_windows`.

    without: columns of `BULK` to leave out; a million requests of 100 tokens then take 1 GB instead of 3.
    Requests cut short by wp1's own stop are left out, as they say nothing about the engines. So is a last line torn by
    a crash. Raises ConfigError with the file and line of the first malformed record.
    """
    return measurable(records(path, without))


def records(path: Path, without: Sequence[str] = ()) -> pl.DataFrame:
    """One row per complete line of records.jsonl, as in `requests` but without exclusions and windows."""
    # t_tokens is needed until latencies are computed.
    schema = {name: kind for name, kind in RECORD_SCHEMA.items() if name not in without or name == "t_tokens"}
    return pl.concat(
        with_latencies(part).drop(without, strict=False) for part in _parts(path, schema, "request record", OF_RECORD)
    )


def measurable(lines: pl.DataFrame) -> pl.DataFrame:
    """The table of `requests`, from that of `records`."""
    # Each filter copies the whole table: apply it only if needed.
    if (lines["cause"] == "interrupted").any():
        lines = lines.filter(pl.col("cause").ne_missing("interrupted"))
    # A duplicated line is one request, as in `completeness`.
    if lines["request_id"].n_unique() < lines.height:
        lines = lines.unique("request_id", keep="last", maintain_order=True)
    return steady.with_windows(lines)


def keys(path: Path) -> pl.DataFrame:
    """One row per line with KEYS only, for counting; empty without a file. Raises as `requests` does."""
    schema = {name: RECORD_SCHEMA[name] for name in dict.fromkeys((*KEYS, *OF_RECORD))}
    return read(path, schema, "request record", OF_RECORD).select(KEYS)


def handoffs(path: Path) -> pl.DataFrame:
    """One row per handoff, with its fields and the times of `with_handoff_times`; empty without a file.

    A last line torn by a crash is left out. Raises ConfigError with the file and line of the first malformed handoff.
    """
    rows = read(path, HANDOFF_SCHEMA, "handoff", OF_HANDOFF)
    return with_handoff_times(rows.unique("handoff_id", keep="last", maintain_order=True))


def control(path: Path) -> pl.DataFrame:
    """One row per answered request that was asked again (`wp1.runner.control`); empty without a file.

    A last line torn by a crash is left out. Raises ConfigError with the file and line of the first malformed row.
    """
    rows = read(path, CONTROL_SCHEMA, "control record", tuple(CONTROL_SCHEMA))
    return rows.filter(pl.col("status") == "ok").unique("request_id", keep="last", maintain_order=True)


def queues(path: Path) -> pl.DataFrame:
    """One row per sample of queue lengths (requests, and `t` in seconds); empty without a file.

    A last line torn by a crash is left out. Raises ConfigError with the file and line of the first malformed row.
    """
    return read(path, QUEUE_SCHEMA, "sample of queue lengths", tuple(QUEUE_SCHEMA))


def lags(path: Path) -> pl.DataFrame:
    """One row per second of event-loop lags (lists, in seconds); empty without a file.

    A last line torn by a crash is left out. Raises ConfigError with the file and line of the first malformed row.
    """
    return read(path, LAG_SCHEMA, "event-loop lag record", tuple(LAG_SCHEMA))


def engine_stats(path: Path) -> pl.DataFrame:
    """One row per tenth of a second and engine (`records.EngineStats`); empty without a file.

    A last line torn by a crash is left out. Raises ConfigError with the file and line of the first malformed row.
    """
    return read(path, STATS_SCHEMA, "sample of engine stats", OF_STATS)


def device_samples(path: Path) -> pl.DataFrame:
    """One row per sample of a device (`records.DeviceSample`); empty without a file.

    A last line torn by a crash is left out. Raises ConfigError with the file and line of the first malformed row.
    """
    return read(path, DEVICE_SCHEMA, "sample of a device", ("t", "device"))


def read(path: Path, schema: Schema, content: str, needed: Sequence[str]) -> pl.DataFrame:
    """One row per line of a JSONL file; empty without a file. A last line torn by a crash is left out.

    content: what a line is, for the error message; needed: columns that must not be null.
    Raises ConfigError with the file and line of the first malformed row.
    """
    return pl.concat(_parts(path, schema, content, needed))


def _parts(path: Path, schema: Schema, content: str, needed: Sequence[str]) -> Iterator[pl.DataFrame]:
    """As `read`, in one or more tables of about 64 MiB of the file each, so that the text is never all in memory."""
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
                    raise ConfigError(
                        f"{path}:{before + bad} is not a valid {content} ({wrong}): restore the file from a copy"
                    )
                yield part
            before += whole.count(b"\n")


def _table(lines: bytes, schema: Schema, needed: Sequence[str]) -> pl.DataFrame | None:
    """The table; None if a line does not fit the schema or lacks a needed column, as polars reads that as null."""
    try:
        found = pl.read_ndjson(io.BytesIO(lines), schema=schema)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    if any(found[name].null_count() for name in needed):
        return None
    return None if found.select(_strange(schema)).row(0) != (False,) else found


def _strange(schema: Schema) -> pl.Expr:
    """Whether any value is one that no run writes, and that is unsafe in a page, a file name or a sum."""
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
    """The number, from 1, of the first line for which `_table` is None; at least one must be."""
    low, high = 0, len(lines)
    while high - low > 1:
        middle = (low + high) // 2
        text = b"\n".join(lines[low:middle])
        low, high = (low, middle) if text.strip() and _table(text, schema, needed) is None else (middle, high)
    return low + 1


def _wrong(line: bytes, needed: Sequence[str]) -> str:
    """What is wrong with a line for which `_table` is None, as text."""
    try:
        found = files.parsed(line)
    except ValueError:
        return "it is not JSON"
    if not isinstance(found, dict):
        return "it is not a JSON object"
    if missing := [name for name in needed if found.get(name) is None]:
        return f"it has no {missing[0]}"
    try:
        json.dumps(found, allow_nan=False)
    except ValueError:
        return "it has NaN or infinity, which is not JSON"
    return "a value has the wrong type or is out of range"


def with_latencies(records: pl.DataFrame) -> pl.DataFrame:
    """Adds the metrics of single requests (`METRICS`), in ms and null if a request did not get that far, and
    first_by_decode: whether the client got its first token from the decode engine.

    A request for the perplexity of its prompt has only metrics that are not `for_users`: the engine computes the
    log-likelihood of every prompt token for it, which no user waits for.
    """
    derived = {metric.key: metric.derive for metric in metrics.of_kind("request", "gaps")}
    # A metric may derive from others, and is then added after them.
    later = {key for key, made in derived.items() if set(made.meta.root_names()) & derived.keys()}
    timed = records.with_columns(
        **{key: made for key, made in derived.items() if key not in later},
        first_by_decode=metrics.FIRST_BY_DECODE,
    )
    if later:
        timed = timed.with_columns(**{key: derived[key] for key in later})
    for_users = [metric.key for metric in metrics.of_kind("request", "gaps") if metric.for_users]
    return timed.with_columns(pl.when(pl.col("nll_window").is_null()).then(pl.col(for_users)))


def with_handoff_times(records: pl.DataFrame) -> pl.DataFrame:
    """Adds, in ms, and null if a handoff did not get that far or its times are unknown:

    transfer_ms      bytes moving: transfer end - begin
    decode_queue_ms  sent to the decode engine - prefill done: waiting for a place there; 0 if it was sent earlier
    handoff_ms       scheduled in the decode engine with its KV there - prefill done; 0 if the KV was there by then, as
                     after a copy within prefill's last step, whose end the engine stamps later. All of it delays the
                     request: what moves while prefill still computes delays nothing and comes before it
    copy_ms          bytes moving by the connector's own clock (a GPU's events), if it has one
    wait_ms          time that ready blocks waited for their copy, if the connector knows
    """
    return records.with_columns(
        transfer_ms=(pl.col("t_transfer_end") - pl.col("t_transfer_begin")) * 1e3,
        decode_queue_ms=((pl.col("t_decode_sent") - pl.col("t_prefill_done")) * 1e3).clip(lower_bound=0),
        handoff_ms=((pl.col("t_decode_scheduled") - pl.col("t_prefill_done")) * 1e3).clip(lower_bound=0),
        copy_ms=pl.col("copy_s") * 1e3,
        wait_ms=pl.col("wait_s") * 1e3,
    )


def write_csv(table: pl.DataFrame, path: Path, float_precision: int | None = None) -> None:
    """Writes the file atomically; a link in its place is replaced, not followed."""
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
