"""Where memory goes, by engine, prompt length and part, from memory.jsonl and the run's other files. Pure; bytes.

Every part is measured; parts with a formula are calculated too. Sources of the measured figures: `wp1.serving.memory`.
On a host, parts are those at the moment of the peak. On a GPU, torch keeps memory that it once reserved, so the parts
at the end are those at the peak.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from wp1.analysis.base import cells

# In stacking order: parts that do not depend on prompt length first.
PARTS = (
    ("weights", "weights"),
    ("runtime", "context and code"),
    ("buffers", "buffers"),
    ("graphs", "CUDA graphs"),
    ("transfer", "transfer"),
    ("kv_in_use", "KV in use"),
    ("kv_free", "KV reserved, free"),
    ("activations", "activations, peak"),
    ("kept", "kept by the allocator"),
    ("unexplained", "unexplained"),
)
# Tolerated share of what the device reports for the process.
UNEXPLAINED_SHARE = {"host": 0.05, "gpu": 0.02}


@dataclass
class Row:
    """One worker at one prompt length."""

    arm: str
    pool: str
    engine: str
    rank: int
    cell: str
    prompt_len: int
    kind: str  # host or gpu
    reported: int | None  # peak memory of the process, as reported by the device
    source: str  # where `reported` comes from
    limit: int  # the device's memory
    parts: dict[str, int]
    calculated: dict[str, int] = field(default_factory=dict)
    kv_pool: int = 0
    blocks: int = 0  # of the request, as counted by the engine's scheduler
    calculated_blocks: int = 0
    prefill_peak: int | None = None  # activations in prefill steps
    decode_peak: int | None = None
    core_process: int | None = None  # host memory of the engine's scheduler process, apart from the worker
    vllm: dict[str, int] = field(default_factory=dict)
    # Size of the embedding's matrix, and of the output layer's; a kernel may keep a copy of either.
    matrix: int | None = None
    one_by_one: bool = False  # a layer's operations run one by one, since nothing is compiled (enforce_eager)

    @property
    def total(self) -> int:
        """The bytes that the device reports, else the sum of the parts."""
        return self.reported if self.reported is not None else sum(self.parts.values())

    @property
    def unexplained_share(self) -> float | None:
        """The unexplained part as a share of what the device reports."""
        return None if not self.reported else self.parts["unexplained"] / self.reported

    @property
    def copied(self) -> bool:
        """Whether the weights exceed the calculated ones by two copies of `matrix`, within the host's tolerance.

        On a CPU, vLLM packs the weights of unquantised layers for oneDNN and drops the originals, except those of the
        embedding and the output layer (`dispatch_cpu_unquantized_gemm(layer, remove_weight=False)`). Each of these two
        gets a packed copy, even if they share one tensor.
        """
        if self.kind != "host" or not self.matrix or "weights" not in self.calculated:
            return False
        beyond = self.parts["weights"] - self.calculated["weights"] - 2 * self.matrix
        return abs(beyond) <= UNEXPLAINED_SHARE["host"] * self.parts["weights"]

    @property
    def kept_within_step(self) -> bool:
        """Whether activations exceed the calculated ones because of what a step on a host leaves resident.

        A peak of resident memory includes pages freed within the step that the C library keeps, and without compilation
        the MLP has one more buffer (vLLM's SiluAndMul.forward_native). Measured with SmolLM2-135M and chunks of 2,048
        tokens, for which 22.5 MiB are calculated, or 28.5 MiB with that buffer: 49 MiB, and 33 MiB if the library
        returns freed memory (MALLOC_MMAP_THRESHOLD_=65536), in proportion to the tokens.
        """
        calculated = self.calculated.get("activations")
        if self.kind != "host" or not self.one_by_one or calculated is None:
            return False
        return self.parts["activations"] > (1 + UNEXPLAINED_SHARE["host"]) * calculated

    @property
    def adds_up(self) -> bool:
        """Whether the parts add up to what the device reports, within its tolerance."""
        share = self.unexplained_share
        return share is not None and abs(share) <= UNEXPLAINED_SHARE[self.kind]


def one_each(config: Mapping[str, Any], requests: pl.DataFrame) -> bool:
    """Whether a run measured memory only: notes were taken, and no cell had more than one measured request.

    One request is not a measurement of speed, so the report then only lists what each one took. requests: with arm,
    cell and warmup.
    """
    if not config["experiment"].get("memory"):
        return False
    counts = requests.filter(~pl.col("warmup")).group_by("arm", "cell").len()["len"]
    return int(counts.max() or 0) == 1  # pyright: ignore[reportArgumentType]


def rows_of(notes: Sequence[Mapping[str, Any]], requests: pl.DataFrame, metadata: Mapping[str, Any]) -> list[Row]:
    """A row for every worker and cell with notes from before and after it; of several repeats, the one with most bytes.

    A cell whose requests all failed has no row, but an entry in `not_measured`. Rows are ordered by the workers'
    starts, then by prompt length.

    requests: `tables.requests`; metadata: run_metadata.json, whose `pools` describe each engine.
    """
    failed = set(_failed(requests))
    settings = {(pool["arm"], engine["name"]): engine for pool in metadata["pools"] for engine in pool["engines"]}
    starts: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    best: dict[tuple[Any, ...], Row] = {}
    firsts: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for note in notes:
        worker = (note["arm"], note["engine"], note["note"]["rank"])
        if note["moment"] == "start":
            # A later start of the same arm: forget the notes of the earlier one.
            starts[worker] = note["note"]
            for key in [key for key in firsts if key[:2] == worker[:2]]:
                del firsts[key]
        elif note["moment"] == "begin":
            firsts.setdefault(worker, note["note"])
        elif worker in starts and worker in firsts and (note["arm"], note["cell"]) not in failed:
            others = [
                (starts[other], firsts[other])
                for other in starts
                if other[0] == note["arm"] and _share(settings, worker, other) and other in firsts
            ]
            row = _row(note, starts[worker], others, requests, metadata, settings[worker[:2]])
            key = (*worker, note["cell"])
            if key not in best or row.total > best[key].total:
                best[key] = row
    order = cells.ordered(row.cell for row in best.values())
    workers = list(starts)
    return sorted(
        best.values(), key=lambda row: (workers.index((row.arm, row.engine, row.rank)), order.index(row.cell))
    )


def _share(settings: Mapping[tuple[str, str], Mapping[str, Any]], one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two workers are on the same GPU."""
    return _gpu_of(settings, one) == _gpu_of(settings, other)


def _gpu_of(settings: Mapping[tuple[str, str], Mapping[str, Any]], worker: tuple[Any, ...]) -> str:
    devices = settings[worker[:2]]["devices"]
    return devices[min(worker[2], len(devices) - 1)]


def _row(
    note: Mapping[str, Any],
    start: Mapping[str, Any],
    on_device: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    requests: pl.DataFrame,
    metadata: Mapping[str, Any],
    engine: Mapping[str, Any],
) -> Row:
    now, settings = note["note"], engine["settings"]
    kind = "gpu" if "reserved" in now else "host"
    prompt_len = cells.parse(note["cell"]).prompt_len or 0
    block_bytes = start["kv_pool"] // settings["kv_blocks"]
    in_use = now["blocks_at_once"] * block_bytes
    parts, reported, source = (
        _gpu_parts(now, start, on_device, in_use) if kind == "gpu" else _host_parts(now, start, in_use)
    )
    parts["unexplained"] = 0 if reported is None else reported - sum(parts.values())
    row = Row(
        note["arm"], note["pool"], note["engine"], now["rank"], note["cell"], prompt_len, kind, reported, source,
        now["limit"], parts, kv_pool=start["kv_pool"], blocks=now["blocks_a_request"],
        prefill_peak=now["step_peaks"].get("prefill"), decode_peak=now["step_peaks"].get("decode"),
        core_process=now.get("core_process"), vllm=start["vllm"],
    )  # fmt: skip
    _calculate(row, requests, metadata["model"], engine)
    return row


def _host_parts(now: Mapping[str, Any], start: Mapping[str, Any], in_use: int) -> tuple[dict[str, int], int, str]:
    """Resident memory by part: what each stage of the start added, and what was measured at the peak."""
    at = {stage["stage"]: stage for stage in start["stages"]}
    weights = at["weights"]["anonymous"] - at["device"]["anonymous"]
    kv, kv_shared = now["kv"] or 0, now["kv_shared"]
    kv_at_start = 0 if kv_shared else at["ready"]["kv"] or 0
    started = at["ready"]["anonymous"] - at["imported"]["anonymous"]
    used = min(in_use, kv)
    parts = {
        "weights": weights,
        "runtime": at["imported"]["anonymous"] + now["files"],
        "buffers": started - weights - kv_at_start,
        "graphs": 0,
        # Mapped memory of another engine; includes vLLM's buffers between processes, which are small.
        "transfer": now["shared"] - (kv if kv_shared else 0),
        "kv_in_use": used,
        "kv_free": kv - used,
        "activations": max([0, *(peak or 0 for peak in now["step_peaks"].values())]),
        "kept": 0,
    }
    return parts, now["peak"], "resident memory at its peak"


def _gpu_parts(
    now: Mapping[str, Any],
    start: Mapping[str, Any],
    on_device: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    in_use: int,
) -> tuple[dict[str, int], int | None, str]:
    """Torch's memory by purpose, and what the process has on the GPU outside torch."""
    at = {stage["stage"]: stage for stage in start["stages"]}
    live = now["allocated"] - now["graph_pools_allocated"]
    activations = max([0, *(peak or 0 for peak in now["step_peaks"].values())])
    if now["process"] is not None and at["ready"]["process"] is not None:
        beside = {name: stage["process"] - stage["reserved"] for name, stage in at.items() if "reserved" in stage}
        reported, source = now["process"], "NVML, this process"
    else:
        # The device's memory minus what was there before, in even shares if several engines are on the device.
        before = min(stages["stages"][0]["device"] for stages, _ in on_device)
        together = len(on_device)
        ready = sum(first["reserved"] for _, first in on_device)
        begin = max(first["device"] for _, first in on_device)
        beside = {"ready": (begin - before - ready) // together}
        if together == 1:
            beside = {name: s["device"] - before - s["reserved"] for name, s in at.items() if "reserved" in s}
            reported, source = now["device"] - before, "NVML, device minus what was there before"
        else:
            reported = now["reserved"] + beside["ready"] + (now["device"] - begin) // together
            source = f"NVML, device minus what was there before; outside torch, an even share among {together} engines"
    transfer = max(0, beside["kv_cache"] - beside["profiled"]) if "kv_cache" in beside else 0
    used = min(in_use, now["kv"])
    parts = {
        "weights": now["weights"],
        "runtime": beside["ready"] - transfer,
        "buffers": live - now["weights"] - now["kv"],
        "graphs": now["graph_pools"],
        "transfer": transfer,
        "kv_in_use": used,
        "kv_free": now["kv"] - used,
        "activations": activations,
        "kept": max(0, now["reserved"] - now["graph_pools"] - live - activations),
    }
    return parts, reported, source


def _calculate(row: Row, requests: pl.DataFrame, model: Mapping[str, Any], engine: Mapping[str, Any]) -> None:
    """Fills in what the architecture and the configuration imply: weights, KV, and activations of the largest chunk.

    KV of a request: tokens kept (all but the last output token) x bytes per token (`wp1.model.kv_cache`), and the same
    in whole blocks. It is left out if the model has windows or recurrent states, whose blocks the engine frees or
    groups by its own rules. Activations of a chunk of n tokens in an MLP, the widest place of a dense layer:
    n x (matrices x intermediate + 2 x hidden size) x bytes per element.
    """
    settings, shape = engine["settings"], model["shape"]
    ranks = len(engine["devices"])
    token_bytes = rank_token_bytes(model, engine)
    of_cell = requests.filter(
        (pl.col("arm") == row.arm) & (pl.col("cell") == row.cell) & ~pl.col("warmup") & (pl.col("status") == "ok")
    )
    kept = row.prompt_len
    if row.pool != "prefill" and of_cell.height:
        kept += int(of_cell["output_tokens"].max() or 1) - 1  # pyright: ignore[reportArgumentType]
    block = settings["block_size"]
    chunk = min(row.prompt_len, settings["max_num_batched_tokens"])
    if model["weight_bytes"] is not None:
        row.calculated["weights"] = model["weight_bytes"] // ranks
    if token_bytes is not None:
        row.calculated_blocks = -(-kept // block)
        row.calculated |= {
            "kv_in_use": kept * token_bytes,
            "kv_in_use_blocks": row.calculated_blocks * block * token_bytes,
            "kv_reserved": settings["kv_blocks"] * block * token_bytes,
        }
    row.one_by_one = bool(settings.get("enforce_eager"))
    if shape is not None:
        row.matrix = shape["vocab"] * shape["hidden"] * shape["element_bytes"] // ranks
    if row.prefill_peak is not None and shape is not None and shape.get("unlike") is None:
        wide = shape.get("mlp_matrices", 3) * shape["intermediate"] // ranks + 2 * shape["hidden"]
        row.calculated["activations"] = chunk * wide * shape["element_bytes"]


def rank_token_bytes(model: Mapping[str, Any], engine: Mapping[str, Any]) -> int | None:
    """Bytes of KV per token on one GPU of an engine, by the engine's own figure if it reported one.

    None if a request's KV does not grow by it (models with windows, or with a state beside the KV), or if it is
    unknown. model, engine: from run_metadata.json.
    """
    cache = model.get("kv_cache")
    if cache is not None and (cache["windows"] or cache["state_bytes"] != 0):
        return None
    token_bytes = engine["settings"].get("kv_token_bytes") or model["kv_bytes_per_token"]
    if token_bytes is None or (cache is None and engine["settings"].get("kv_state_bytes")):
        return None
    return token_bytes // shards(model, len(engine["devices"]))


def shards(model: Mapping[str, Any], ranks: int) -> int:
    """Number of an engine's GPUs that a token's KV is spread over: each holds at least one KV head."""
    if model.get("kv_cache") is not None:
        return min(ranks, model["kv_cache"]["heads"])
    return ranks if model["shape"] is None else min(ranks, model["shape"]["kv_heads"] or ranks)


def measured(row: Row, name: str) -> int:
    """The measured figure to compare with `row.calculated[name]`."""
    if name == "kv_reserved":
        return row.kv_pool
    return row.parts["kv_in_use" if name == "kv_in_use_blocks" else name]


def together(rows: Sequence[Row], name: str) -> int:
    """Sum of a part over several workers. On a host, mapped memory counts with the worker that owns it."""
    if name == "transfer" and len(rows) > 1 and rows[0].kind == "host":
        return 0
    return sum(row.parts[name] for row in rows)


def _failed(requests: pl.DataFrame) -> dict[tuple[str, str], str]:
    """Arms and cells without an answered request, with the first request's error."""
    of_cells = requests.filter(~pl.col("warmup")).group_by("arm", "cell", maintain_order=True)
    outcomes = of_cells.agg(ok=(pl.col("status") == "ok").sum(), status=pl.first("status"), error=pl.first("error"))
    return {
        (row["arm"], row["cell"]): row["error"] or row["status"]
        for row in outcomes.iter_rows(named=True)
        if not row["ok"]
    }


def not_measured(metadata: Mapping[str, Any], requests: pl.DataFrame) -> list[tuple[int, str]]:
    """(prompt tokens, why) of lengths that were skipped, because they do not fit or take too long, or that failed."""
    left_out = [(one["cell"], one["reason"]) for one in metadata.get("skipped", ())]
    left_out += [(cell, f"{arm}: {why}") for (arm, cell), why in _failed(requests).items()]
    return sorted({(cells.parse(cell).prompt_len or 0, why) for cell, why in left_out})


def long_table(rows: Sequence[Row], left_out: Sequence[tuple[int, str]] = ()) -> pl.DataFrame:
    """A line per worker, prompt length and part, for CSV: measured, calculated, difference; bytes.

    left_out: from `not_measured`, a line each.
    """
    lines: list[dict[str, Any]] = [
        {"prompt_len": length, "part": "not measured", "source": why} for length, why in left_out
    ]
    for row in rows:
        known = {
            "arm": row.arm, "pool": row.pool, "engine": row.engine, "rank": row.rank, "prompt_len": row.prompt_len,
        }  # fmt: skip
        names = [*row.parts, *(name for name in row.calculated if name not in row.parts)]
        for name in names:
            value = row.parts[name] if name in row.parts else measured(row, name)
            calculated = row.calculated.get(name)
            lines.append(
                known
                | {
                    "part": name,
                    "measured_bytes": value,
                    "calculated_bytes": calculated,
                    "difference_bytes": None if calculated is None else value - calculated,
                }
            )
        lines.append(known | {"part": "reported", "measured_bytes": row.reported, "source": row.source})
        lines.append(known | {"part": "device_limit", "measured_bytes": row.limit})
    schema: dict[str, Any] = {
        "arm": pl.String, "pool": pl.String, "engine": pl.String, "rank": pl.Int64, "prompt_len": pl.Int64,
        "part": pl.String, "measured_bytes": pl.Int64, "calculated_bytes": pl.Int64, "difference_bytes": pl.Int64,
        "source": pl.String,
    }  # fmt: skip
    return pl.DataFrame(lines, schema=schema)
