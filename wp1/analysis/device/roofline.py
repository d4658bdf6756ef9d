"""How near a cell came to what its devices can do: MFU of prefill, MBU of decode, and what holds each back. Pure.

MFU (Chowdhery et al., PaLM, 2022, appendix B) is useful FLOP/s over the device's peak; MBU (Databricks, LLM Inference
Performance Engineering, 2023) is the bytes/s that decoding has to move over the device's peak. A phase's time is that
in which any request was in it (union of intervals), so what requests share is not counted twice.

Work is counted once, and by who did it. Prompt tokens from the prefix cache are left out of a prefill's FLOPs, but the
others attend to them, and decoding reads their KV. A disaggregated request's prefill is that of its prefill engine. If
the decode engine gives the first token (scheduler.first_token=decode), it computes the prompt's last token again, which
is one of its steps. Work done again after a preemption is not useful and not counted; its time is.

What limits a phase is the roofline's word (Williams et al., 2009): of the times that its FLOPs and its bytes would take
at the peaks, the longer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis.base.markdown import share
from wp1.model.architecture import Architecture
from wp1.stats import samples, spans

# A phase that uses less than this share of either peak is held back by something else.
LITTLE = 1 / 3
# From this share of its time on, decoding that shares its steps with prefills is worth a word.
SHARED = 0.25
LIMITED = (
    "**limited by**: of the times that a phase's FLOPs and bytes would take at the peaks, the longer one's roof, "
    "compute or memory; overheads, where neither makes up a third of the time that it took."
)


@dataclass(frozen=True)
class Device:
    """What a phase runs on: devices that are alike, with the peaks of one."""

    flops: float  # FLOP/s
    bytes_per_s: float
    prefill: int  # devices that do prefill
    decode: int


def device_of(metadata: Mapping[str, Any], arm: str) -> Device | None:
    """From run_metadata.json; None where no peak is known."""
    peaks = metadata.get("peaks")
    if not peaks:
        return None
    counts = {phase: devices_of(metadata["pools"], arm, phase) for phase in ("prefill", "decode")}
    return Device(peaks["flops"], peaks["bytes_per_s"], **counts)


def devices_of(pools: Sequence[Mapping[str, Any]], arm: str, phase: str | None = None) -> int:
    """GPUs of an arm, or of those of its pools that do a phase; each once, however many engines share it.

    A host without GPU is one.
    """
    found = [pool for pool in pools if pool.get("arm") == arm and (phase is None or phase in pool["phases"])]
    engines = [engine for pool in found for engine in pool["engines"]]
    return len({device for engine in engines for device in engine["devices"] if device.startswith("cuda")}) or 1


def shape_of(metadata: Mapping[str, Any]) -> tuple[Architecture | None, str | None]:
    """The model's shape, or None and why its FLOPs are not known."""
    model = metadata["model"]
    described = model.get("shape")
    if not described:
        return None, model.get("why_no_shape") or "the model's shape is not known"
    shape = Architecture(**described)
    if shape.unlike is not None:
        return None, f"the formulas do not hold for {shape.unlike}"
    engines = [engine for pool in metadata.get("pools", ()) for engine in pool["engines"]]
    for engine in engines:
        there = engine["settings"].get("kv_token_bytes")
        if there is not None and there != shape.kv_bytes:
            return None, (
                f"engine {engine['name']} keeps {there:,} bytes of KV a token, and the model's configuration gives "
                f"{shape.kv_bytes:,}"
            )
    return shape, None


def chunk_of(metadata: Mapping[str, Any], arm: str) -> int | None:
    """Tokens that an engine of the arm that does prefill puts into one step at most."""
    pools = [pool for pool in metadata["pools"] if pool.get("arm") == arm and "prefill" in pool["phases"]]
    engines = [engine for pool in pools for engine in pool["engines"]]
    return next((engine["settings"].get("max_num_batched_tokens") for engine in engines), None)


def computed() -> pl.Expr:
    """Prompt tokens that a request's prefill computed: those that the prefix cache did not hold."""
    return pl.col("prompt_tokens") - pl.col("cached_tokens").fill_null(0)


def why_not(metadata: Mapping[str, Any]) -> str | None:
    """Why there is no MFU and MBU, in words; None where there is."""
    shape, reason = shape_of(metadata)
    if shape is None:
        return reason
    if not metadata.get("peaks"):
        return "no peak is known for this device: `python -m wp1.peaks` measures it, for later runs"
    return None


def note(rows: Sequence[Mapping[str, Any]], why: str | None) -> str:
    """What a section's note says of MFU and MBU: why there are none, or that they cannot be; "" where all is well."""
    if why:
        return f" No MFU and MBU: {why}."
    if any(row[key] and row[key]["value"] > 1 for row in rows for key in ("mfu", "mbu")):
        return (
            " **More than 100 % of a peak** cannot be: it was measured too low, beside other work, or with data in a "
            "cache; `python -m wp1.peaks` measures again, for later runs."
        )
    return ""


def roofline(
    requests: pl.DataFrame, shape: Architecture | None, device: Device | None, chunk: int | None = None
) -> dict[str, Any]:
    """Of one cell of an arm, from its answered requests (`tables.requests`), with intervals over repeats.

    mfu, mbu: shares of the peaks, null where `device` or `shape` is. Also achieved FLOP/s and bytes/s, `batch`
    (requests in decode at a time, on average), `shared` (share of decode's time in which the same engine also did a
    prefill), and `prefill_bound` and `decode_bound` in words. chunk: tokens of a prefill step at most.
    """
    repeats = [_phases(rows, shape, chunk) for _, rows in requests.group_by("repeat", maintain_order=True)]

    def over(above: str, below: str, peak: float | None = 1.0) -> dict[str, Any] | None:
        if peak is None:
            return None
        return samples.ratio([r[above] for r in repeats], [r[below] * peak for r in repeats])

    flops_peak = None if device is None else device.flops * device.prefill
    bytes_peak = None if device is None else device.bytes_per_s * device.decode
    total = {key: sum(r[key] for r in repeats) for key in (repeats[0] if repeats else ())}
    found: dict[str, Any] = {
        "mfu": over("prefill_flops", "prefill_s", flops_peak) if shape else None,
        "mbu": over("decode_bytes", "decode_s", bytes_peak) if shape else None,
        "prefill_flops_per_s": over("prefill_flops", "prefill_s") if shape else None,
        "decode_bytes_per_s": over("decode_bytes", "decode_s") if shape else None,
        "batch": over("decoding_s", "decode_s"),
        "shared": over("shared_s", "decode_s"),
        "prefill_bound": None,
        "decode_bound": None,
    }
    if total and shape and device:
        found["prefill_bound"] = bound(
            total["prefill_flops"] / device.flops / device.prefill,
            total["prefill_bytes"] / device.bytes_per_s / device.prefill,
            total["prefill_s"],
        )
        found["decode_bound"] = bound(
            total["decode_flops"] / device.flops / device.decode,
            total["decode_bytes"] / device.bytes_per_s / device.decode,
            total["decode_s"],
        )
    return found


def bound(compute_s: float, memory_s: float, took_s: float) -> str | None:
    """Which roof limits a phase: "compute", "memory" or "neither"; None where it took no time.

    compute_s, memory_s: what its FLOPs and bytes would take at the peaks.
    """
    if took_s <= 0:
        return None
    if max(compute_s, memory_s) / took_s < LITTLE:
        return "neither"
    return "compute" if compute_s >= memory_s else "memory"


def words(found: Mapping[str, Any], queue_share: float | None = None) -> str:
    """What limits a cell, as a phrase. queue_share: of mean TTFT, waiting before the prefill."""
    said = []
    if queue_share is not None and queue_share > 0.5:
        said.append(f"TTFT is {share(queue_share)} waiting")
    for phase, unit, key in (("prefill", "MFU", "mfu"), ("decode", "MBU", "mbu")):
        roof, figure, shared = found.get(f"{phase}_bound"), found.get(key), found.get("shared")
        if roof is None or figure is None:
            continue
        use = f"{unit} {share(figure['value'])}"
        if phase == "decode" and shared and shared["value"] >= SHARED and roof != "memory":
            said.append(f"decode gives way to prefills, {share(shared['value'])} of its time ({use})")
        elif roof == "neither":
            said.append(f"{phase} by overheads ({use})")
        else:
            said.append(f"{phase} by {roof} ({use})")
    return "; ".join(said)


def _phases(requests: pl.DataFrame, shape: Architecture | None, chunk: int | None) -> dict[str, float]:
    """Seconds, FLOPs and bytes of both phases of one repeat."""
    rows = requests.with_columns(t_decodable=pl.max_horizontal("t_decode_scheduled", "t_engine_first_token"))
    prefills = rows.drop_nulls(["t_scheduled", "t_engine_first_token", "prompt_tokens"])
    decodes = rows.drop_nulls(["t_decodable", "t_engine_last_token", "prompt_tokens"]).filter(
        pl.col("output_tokens") > 1
    )
    sums = ("prefill_flops", "prefill_bytes", "decode_flops", "decode_bytes", "decoding_s", "shared_s")
    found: dict[str, float] = dict.fromkeys(sums, 0.0)
    of_prefill = _by_engine(prefills, "prefill_engine", "t_scheduled", "t_engine_first_token")
    of_decode = _by_engine(decodes, "decode_engine", "t_decodable", "t_engine_last_token")
    found["prefill_s"] = spans.length(spans.merged(list(of_prefill.values())))
    found["decode_s"] = spans.length(spans.merged(list(of_decode.values())))
    for engine, intervals in of_decode.items():
        found["shared_s"] += spans.overlap(
            spans.merged([intervals]), spans.merged([of_prefill.get(engine, np.empty((0, 2)))])
        )
    if shape is not None:
        for tokens, cached, likelihood, count in _alike(prefills).iter_rows():
            logits = tokens - cached if likelihood else 1
            found["prefill_flops"] += shape.prefill_flops(tokens, cached, logits) * count
            found["prefill_bytes"] += shape.prefill_bytes(tokens, chunk, cached) * count
    for (engine,), of_engine in decodes.group_by("decode_engine", maintain_order=True):
        intervals = of_decode[str(engine)]
        together = float((intervals[:, 1] - intervals[:, 0]).sum())
        found["decoding_s"] += together
        if shape is not None:
            gaps = (of_engine["output_tokens"] - 1).to_numpy().astype(float)
            again = _again(of_engine)
            steps = gaps + again
            contexts = float((of_engine["prompt_tokens"].to_numpy() * steps + gaps * (gaps + 1) / 2).sum())
            batch = max(1.0, together / max(spans.length(spans.merged([intervals])), 1e-9))
            found["decode_flops"] += shape.decode_flops(contexts, int(steps.sum()))
            found["decode_bytes"] += shape.decode_bytes(contexts, int(steps.sum()), batch)
    return found


def _alike(prefills: pl.DataFrame) -> pl.DataFrame:
    """Prompt tokens, how many were cached, whether the likelihood of all was asked for, and requests like that."""
    asked = pl.col("nll_window").is_not_null() if "nll_window" in prefills.columns else pl.lit(False)
    columns = [pl.col("prompt_tokens"), pl.col("cached_tokens").fill_null(0), asked.alias("likelihood")]
    return prefills.select(columns).group_by(pl.all(), maintain_order=True).len()


def _again(decodes: pl.DataFrame) -> np.ndarray:
    """1.0 for requests whose decode engine gave the first token too, from the prompt's last, else 0.0."""
    if "first_by_decode" not in decodes.columns:
        return np.zeros(decodes.height)
    return decodes["first_by_decode"].fill_null(False).to_numpy().astype(float)


def _by_engine(rows: pl.DataFrame, engine: str, begin: str, end: str) -> dict[str, np.ndarray]:
    return {
        str(name): part.select(begin, end).to_numpy() for (name,), part in rows.group_by(engine, maintain_order=True)
    }
